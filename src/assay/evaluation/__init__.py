"""Test metrics with intervals, baselines, figures and the report of one model."""
