"""The ledger: what needs a transaction. A SQLite file of the project, or PostgreSQL by ``ASSAY_DATABASE_URL``.

Here are its transactions and the nights: which flow run took which one, so that no night is run twice. What the gate
decided and who became champion is in `assay.registry.promotions`.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, Row, Select, create_engine, event, func, make_url, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from assay.errors import ServiceError
from assay.project import Project
from assay.registry import schema
from assay.registry.schema import night_records, nights

DATABASE_VARIABLE = "ASSAY_DATABASE_URL"
LOCK_TIMEOUT_SECONDS = 300.0
"""How long to wait for other processes that write to a SQLite ledger; an alias may be set over HTTP meanwhile."""

_SCHEMA_LOCK = "schema"


@dataclass(frozen=True)
class Night:
    """A night that was taken.

    Attributes:
        due: When it was due, in UTC.
        flow_run_id: The flow run that has it.
        taken: When it was first taken, by the clock of that flow run.
        outcome: What it came to, in words; empty while it is under way.
        record: What it came to, as JSON; empty where none was kept.
    """

    due: datetime
    flow_run_id: str
    taken: datetime
    outcome: str
    record: str


class Ledger:
    """One project's ledger; tables are made when they are missing.

    Args:
        project: The project.

    Raises:
        ServiceError: The database cannot be opened.
        StorageError: The state folder cannot be made.
    """

    def __init__(self, project: Project) -> None:
        self._project = str(project.root)
        self._engine = _open_engine(os.environ.get(DATABASE_VARIABLE) or _own_file(project))
        with self.reading() as connection:
            complete = schema.is_complete(connection)
        if not complete:
            with self.writing(_SCHEMA_LOCK) as connection:
                schema.create_missing(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            ServiceError: The database fails.
        """
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def writing(self, lock: str) -> Iterator[Connection]:
        """A transaction that writes, alone of all that name the same lock; it sees what the one before committed.

        SQLite has one lock for the whole file, PostgreSQL one for each name. Either is let go when its process dies.

        Args:
            lock: What nobody else may touch meanwhile.

        Raises:
            IntegrityError: A line is there already, or is one that nobody may change.
            ServiceError: The database fails.
        """
        with self._transaction(self._engine.execution_options(assay_writes=True)) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_lock_number(lock))))
            yield connection

    def take_night(self, due: datetime, flow_run_id: str) -> str | None:
        """Take a night for a flow run, unless another one has it.

        Args:
            due: When the night was due, with its time zone: the same instant is the same night in every zone.
            flow_run_id: The flow run; one that is started again gets its own night again.

        Returns:
            None if the night is this flow run's, else the flow run that has it.
        """
        key = {"project": self._project, "due_ms": _ms(due)}
        with self.writing(f"night {key}") as connection:
            owner = connection.execute(select(nights.c.flow_run_id).filter_by(**key)).scalar_one_or_none()
            if owner is None:
                values = key | {"flow_run_id": flow_run_id, "taken_ms": _now_ms(), "outcome": ""}
                connection.execute(nights.insert().values(values))
        return None if owner in (None, flow_run_id) else str(owner)

    def close_night(self, due: datetime, outcome: str, record: str = "") -> None:
        """Note what a night came to.

        Args:
            due: When the night was due, with its time zone.
            outcome: In words; the first 2,000 characters are kept.
            record: As JSON, of any length.
        """
        key = {"project": self._project, "due_ms": _ms(due)}
        values = {"record": record, "closed_ms": _now_ms()}
        with self.writing(f"night {key}") as connection:
            connection.execute(nights.update().filter_by(**key).values(outcome=outcome[:2000]))
            if connection.execute(night_records.update().filter_by(**key).values(values)).rowcount == 0:
                connection.execute(night_records.insert().values(key | values))

    def night(self, due: datetime) -> Night | None:
        """Return the night that was due then, if it was taken."""
        with self.reading() as connection:
            row = connection.execute(self._nights().where(nights.c.due_ms == _ms(due))).first()
        return None if row is None else _night(row)

    def nights(self, limit: int = 30) -> tuple[Night, ...]:
        """Return the nights that were taken, the latest first.

        Args:
            limit: At most so many.
        """
        with self.reading() as connection:
            rows = connection.execute(self._nights().order_by(nights.c.due_ms.desc()).limit(limit)).all()
        return tuple(_night(row) for row in rows)

    def last_night(self) -> tuple[datetime, str] | None:
        """Return when the latest night that was taken was due, and what it came to."""
        latest = self.nights(limit=1)
        return (latest[0].due, latest[0].outcome) if latest else None

    def close(self) -> None:
        """Let the database go."""
        self._engine.dispose()

    def _nights(self) -> Select[tuple[int, str, int, str, str | None]]:
        same = (night_records.c.project == nights.c.project) & (night_records.c.due_ms == nights.c.due_ms)
        columns = (nights.c.due_ms, nights.c.flow_run_id, nights.c.taken_ms, nights.c.outcome, night_records.c.record)
        return (
            select(*columns).select_from(nights.outerjoin(night_records, same)).where(nights.c.project == self._project)
        )

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise _unusable(self._engine.url.render_as_string(hide_password=True), error) from error


def _own_file(project: Project) -> str:
    file = project.make_home() / "ledger.db"
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    return f"sqlite:///{file}"


def _open_engine(text: str) -> Engine:
    """Name the database without connecting to it yet."""
    try:
        url = make_url(text)
    except SQLAlchemyError as error:
        raise ServiceError(
            f"{DATABASE_VARIABLE}: not the address of a database. Give postgresql://USER@HOST/DATABASE or "
            "sqlite:///FILE, or unset it to use the project's own SQLite file."
        ) from error
    shown = url.render_as_string(hide_password=True)
    try:
        if url.get_backend_name() == "sqlite":
            return _with_begin_immediate(create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_SECONDS}))
        if url.get_backend_name() == "postgresql":
            return create_engine(url, isolation_level="READ COMMITTED", pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ServiceError(
            f"{shown}: its driver {error.name} is not installed. Install it: pip install 'assay[postgres]'."
        ) from error
    except SQLAlchemyError as error:
        raise _unusable(shown, error) from error
    raise ServiceError(
        f"{DATABASE_VARIABLE}={shown}: the ledger can be kept in SQLite or PostgreSQL. Give "
        "postgresql://USER@HOST/DATABASE or sqlite:///FILE, or unset it to use the project's own SQLite file."
    )


def _with_begin_immediate(engine: Engine) -> Engine:
    """Have writers wait at their start: a read that turns into a write fails at once if another wrote in between."""

    def leave_begin_to_us(dbapi_connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        dbapi_connection.isolation_level = None

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("assay_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", leave_begin_to_us)
    event.listen(engine, "begin", begin)
    return engine


def _unusable(shown: str, error: SQLAlchemyError) -> ServiceError:
    return ServiceError(f"{shown}: the ledger cannot be used ({str(error).splitlines()[0]}).")


def _lock_number(lock: str) -> int:
    """64 signed bits of a lock's name; two names that share them would only wait for each other."""
    digest = hashlib.sha256(f"assay ledger {lock}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _night(row: "Row[tuple[int, str, int, str, str | None]]") -> Night:
    return Night(_moment(row.due_ms), row.flow_run_id, _moment(row.taken_ms), row.outcome, row.record or "")


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _ms(moment: datetime) -> int:
    assert moment.tzinfo is not None, "a moment without a time zone is no instant"
    return int(moment.timestamp() * 1000)


def _now_ms() -> int:
    return _ms(datetime.now(UTC))
