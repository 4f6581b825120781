"""MLflow runs: run keys, metrics, lineage."""
