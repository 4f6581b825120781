"""The ledger's tables, and the triggers by which the database itself refuses to change what was decided."""

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    inspect,
)
from sqlalchemy.schema import ExecutableDDLElement

_NAME = String(500)
_metadata = MetaData()

nights = Table(
    "assay_nights",
    _metadata,
    Column("project", _NAME, primary_key=True),
    Column("due_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("flow_run_id", String(64), nullable=False),
    Column("taken_ms", BigInteger, nullable=False),
    Column("outcome", String(2000), nullable=False, default=""),
)
"""Which flow run took which night."""

night_records = Table(
    "assay_night_records",
    _metadata,
    Column("project", _NAME, primary_key=True),
    Column("due_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("record", Text, nullable=False),
    Column("closed_ms", BigInteger, nullable=False),
)
"""What a night came to, as JSON of any length."""

decisions = Table(
    "assay_decisions",
    _metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("registry", _NAME, nullable=False),
    Column("model_name", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("champion", Integer),
    Column("outcome", String(50), nullable=False),
    Column("decided_ms", BigInteger, nullable=False),
    Column("decision", Text, nullable=False),
    Index("assay_decisions_of_version", "registry", "model_name", "version"),
)
"""Everything that the gate decided; the last column is the whole `Decision` as JSON."""

promotions = Table(
    "assay_promotions",
    _metadata,
    Column("registry", _NAME, primary_key=True),
    Column("model_name", _NAME, primary_key=True),
    Column("fence", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
    Column("action", String(50), nullable=False),
    Column("reason", Text, nullable=False),
    Column("decided_ms", BigInteger, nullable=False),
    Column("decision_id", BigInteger),
)
"""Who became champion, when and why; the line with the highest fence is the champion."""

looks = Table(
    "assay_looks",
    _metadata,
    Column("registry", _NAME, primary_key=True),
    Column("test_set", String(200), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("model_name", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("champion", Integer, nullable=False),
    Column("max_looks", Integer, nullable=False),
    Column("alpha", Float, nullable=False),
    Column("decided_ms", BigInteger, nullable=False),
    UniqueConstraint("registry", "test_set", "model_name", "version", "champion"),
)
"""Which comparison was which look at a test set, and what chance of a false promotion it may spend."""

_APPEND_ONLY = (decisions, promotions, looks)
_REFUSAL = "lines are added to the ledger and never changed"

_POSTGRESQL_FUNCTION = f"""
CREATE OR REPLACE FUNCTION assay_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'restrict_violation';
END $$
"""
_POSTGRESQL_TRIGGER = """
CREATE TRIGGER %(table)s_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s
FOR EACH STATEMENT EXECUTE FUNCTION assay_refuse_change()
"""
_SQLITE_TRIGGER = f"""
CREATE TRIGGER %(table)s_no_%(change)s BEFORE %(change)s ON %(table)s %(condition)s
BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END
"""


def create_missing(connection: Connection) -> None:
    """Make the tables that are not there, with their triggers. To be called by one process at a time."""
    _metadata.create_all(connection)


def is_complete(connection: Connection) -> bool:
    """Whether all tables are there."""
    return set(_metadata.tables) <= set(inspect(connection).get_table_names())


def _refuse_changes(table: Table) -> None:
    """Have the database refuse UPDATE, DELETE, and what comes to the same."""
    event.listen(table, "after_create", _ddl(_POSTGRESQL_TRIGGER, "postgresql"))
    # SQLite's INSERT OR REPLACE deletes without firing triggers of DELETE.
    same_key = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
    replaces = f"WHEN EXISTS (SELECT 1 FROM {table.name} WHERE {same_key})"
    for change, condition in (("update", ""), ("delete", ""), ("insert", replaces)):
        trigger = _ddl(_SQLITE_TRIGGER, "sqlite", change=change, condition=condition)
        event.listen(table, "after_create", trigger)


def _ddl(statement: str, dialect: str, **context: str) -> ExecutableDDLElement:
    ddl: ExecutableDDLElement = DDL(statement, context=context)  # type: ignore[no-untyped-call]
    return ddl.execute_if(dialect=dialect)


event.listen(_metadata, "before_create", _ddl(_POSTGRESQL_FUNCTION, "postgresql"))
for _table in _APPEND_ONLY:
    _refuse_changes(_table)
