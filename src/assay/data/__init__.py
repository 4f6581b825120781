"""Sources, shards, validation, pins, splits and loading; the only importer of dvc."""
