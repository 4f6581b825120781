"""What people are told about a run that waits."""


def no_worker_words(pool: str) -> str:
    """Say that a pool has no worker, and what to do."""
    return (
        f"Pool {pool} has no worker: the run waits until one is there. Start one (assay up services.{pool}_workers=1 "
        "where the device is), or cancel this run and use another pool."
    )
