"""The ledger: what needs a transaction. A SQLite file of the project, or PostgreSQL by ``ASSAY_DATABASE_URL``.

Now it holds the nights: which flow run took which one, so that no night is run twice.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, Connection, Engine, MetaData, String, Table, create_engine, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from assay.errors import ServiceError
from assay.project import Project

DATABASE_VARIABLE = "ASSAY_DATABASE_URL"

_metadata = MetaData()
_nights = Table(
    "assay_nights",
    _metadata,
    Column("project", String(500), primary_key=True),
    Column("due_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("flow_run_id", String(64), nullable=False),
    Column("taken_ms", BigInteger, nullable=False),
    Column("outcome", String(2000), nullable=False, default=""),
)


class Ledger:
    """One project's ledger; tables are made when they are missing.

    Args:
        project: The project.

    Raises:
        ServiceError: The database cannot be opened.
    """

    def __init__(self, project: Project) -> None:
        self._project = str(project.root)
        url = os.environ.get(DATABASE_VARIABLE)
        if not url:
            file = project.make_home() / "ledger.db"
            if not file.exists():
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            url = f"sqlite:///{file}"
        self._engine: Engine = create_engine(url)
        with self._transaction() as connection:
            _metadata.create_all(connection)

    def take_night(self, due: datetime, flow_run_id: str) -> str | None:
        """Take a night for a flow run, unless another one has it.

        Args:
            due: When the night was due, with its time zone.
            flow_run_id: The flow run; one that is started again gets its own night again.

        Returns:
            None if the night is this flow run's, else the flow run that has it.
        """
        key = {"project": self._project, "due_ms": _ms(due)}
        values = key | {"flow_run_id": flow_run_id, "taken_ms": _ms(datetime.now(UTC)), "outcome": ""}
        try:
            with self._transaction() as connection:
                connection.execute(_nights.insert().values(values))
            return None
        except IntegrityError:
            with self._transaction() as connection:
                query = select(_nights.c.flow_run_id).filter_by(**key)
                owner = str(connection.execute(query).scalar_one())
            return None if owner == flow_run_id else owner

    def close_night(self, due: datetime, outcome: str) -> None:
        """Note what a night came to, in words."""
        with self._transaction() as connection:
            mine = (_nights.c.project == self._project) & (_nights.c.due_ms == _ms(due))
            connection.execute(_nights.update().where(mine).values(outcome=outcome[:2000]))

    def last_night(self) -> tuple[datetime, str] | None:
        """Return when the latest night that was taken was due, and what it came to."""
        with self._transaction() as connection:
            query = select(_nights.c.due_ms, _nights.c.outcome).filter_by(project=self._project)
            row = connection.execute(query.order_by(_nights.c.due_ms.desc()).limit(1)).first()
        return None if row is None else (datetime.fromtimestamp(row.due_ms / 1000, UTC), row.outcome)

    def close(self) -> None:
        """Let the database go."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            shown = self._engine.url.render_as_string(hide_password=True)
            raise ServiceError(f"{shown}: the ledger cannot be used ({str(error).splitlines()[0]}).") from error


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
