"""Servers, pools and workers around the flows."""
