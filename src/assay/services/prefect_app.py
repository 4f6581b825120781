"""Prefect's server as `assay up` runs it: on SQLite, transactions that write wait for each other.

Prefect begins a transaction on SQLite DEFERRED, and one that has read and then writes fails at once with "database is
locked" when another has written in between: waiting would not help it, its view is stale. With a poll a second from
each of some workers that is a 503 every few seconds. Begun IMMEDIATE, such transactions queue up instead.

Source: https://www.sqlite.org/lang_transaction.html, "DEFERRED, IMMEDIATE, and EXCLUSIVE transactions".
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prefect.server.api import server
from prefect.server.database import dependencies
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class QueuedSqlite(AioSqliteConfiguration):
    """SQLite whose transactions take the right to write when they begin."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction; `with_for_update` is what makes Prefect's own begin IMMEDIATE."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def create_app() -> FastAPI:
    """Return Prefect's application; on PostgreSQL it is as Prefect makes it."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url is not None and str(url).startswith("sqlite"):
        dependencies.MODELS_DEPENDENCIES["database_config"] = QueuedSqlite(connection_url=str(url))
    return server.create_app()
