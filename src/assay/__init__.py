"""Assay: a training line that tests every PyTorch classifier before MLflow stamps it."""

__version__ = "0.1.0"
