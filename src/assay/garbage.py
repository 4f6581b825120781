"""How often a process of ours looks for garbage in cycles."""

import gc

_YOUNG_OBJECTS = 50_000


def collect_rarely() -> None:
    """Look for cycles of objects after tens of thousands of new ones, for the rest of the process.

    The interpreter looks after 700 by default, which is a tenth to a fifth of the time that importing Prefect's
    server, torch or MLflow takes: they make objects by the hundred thousand that stay. Only our own processes call
    this, never a library of ours on import.

    Source:
        Python documentation, ``gc.set_threshold``.
    """
    gc.set_threshold(_YOUNG_OBJECTS)
