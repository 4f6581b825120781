"""Prefect flows: order, retries and artifacts of the stages in `assay`."""
