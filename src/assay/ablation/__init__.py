"""Ablations: variants x paired seeds, and what they say about each level."""
