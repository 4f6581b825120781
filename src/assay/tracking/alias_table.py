"""A model's versions and aliases in MLflow's own tables, where the store is a SQLite file.

Importing MLflow takes 2 s, most of what a rollback would cost; a rollback is wanted at once. What is written here is
what MLflow writes: a row of ``registered_model_aliases``. With another revision of the tables, MLflow has to be asked.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from assay.tracking.lookup import KNOWN_SCHEMA, SlowLookupError

_TIMEOUT_SECONDS = 60.0
_WORKSPACE = "default"
_VERSIONS = """
SELECT version FROM model_versions
WHERE workspace = ? AND name = ? AND status = 'READY' AND current_stage != 'Deleted_Internal' ORDER BY version DESC
"""


def versions_and_aliases(database: Path, name: str) -> tuple[tuple[int, ...], dict[str, int]]:
    """Read a model's versions, the latest first, and where its aliases point.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    with closing(_open(database)) as tables:
        try:
            versions = tables.execute(_VERSIONS, (_WORKSPACE, name)).fetchall()
            query = "SELECT alias, version FROM registered_model_aliases WHERE workspace = ? AND name = ?"
            aliases = tables.execute(query, (_WORKSPACE, name)).fetchall()
        except sqlite3.Error as error:
            raise SlowLookupError from error
    return tuple(int(version) for (version,) in versions), {alias: int(version) for alias, version in aliases}


def point_aliases(database: Path, name: str, wanted: Mapping[str, int | None]) -> None:
    """Set aliases, and take away those that are to point nowhere, all at once.

    Args:
        database: MLflow's SQLite file.
        name: Registered model.
        wanted: Alias -> version that exists, or None.

    Raises:
        SlowLookupError: Ask through MLflow; nothing was changed.
    """
    with closing(_open(database)) as tables:
        try:
            with tables:
                for alias, version in wanted.items():
                    gone = "DELETE FROM registered_model_aliases WHERE workspace = ? AND name = ? AND alias = ?"
                    tables.execute(gone, (_WORKSPACE, name, alias))
                    if version is not None:
                        new = (
                            "INSERT INTO registered_model_aliases (workspace, name, alias, version) VALUES (?, ?, ?, ?)"
                        )
                        tables.execute(new, (_WORKSPACE, name, alias, version))
        except sqlite3.Error as error:
            raise SlowLookupError from error


def _open(database: Path) -> sqlite3.Connection:
    if not database.is_file():
        raise SlowLookupError
    tables = sqlite3.connect(database, timeout=_TIMEOUT_SECONDS)
    try:
        tables.execute("PRAGMA foreign_keys = ON")
        if tables.execute("SELECT version_num FROM alembic_version").fetchall() != [(KNOWN_SCHEMA,)]:
            raise SlowLookupError
    except BaseException as error:
        tables.close()
        if isinstance(error, sqlite3.Error):
            raise SlowLookupError from error
        raise
    return tables
