"""Registered models: register and load."""
