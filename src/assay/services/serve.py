"""One of the two servers behind its guard, in one process.

    python -m assay.services.serve NAME

``ASSAY_SERVE`` in the environment says where it listens and what it allows, so that no secret is in a process list.
"""

import importlib
import json
import logging
import os
from dataclasses import dataclass
from typing import cast

import uvicorn

from assay.garbage import collect_rarely
from assay.records import Record
from assay.services.guard import App, Guard, Rules
from assay.services.page_head import PageHead

SERVE_VARIABLE = "ASSAY_SERVE"
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Serving(Record):
    """What one server process is told.

    Attributes:
        app: The ASGI application, ``module:name``.
        is_factory: Whether that name is a function that makes the application.
        host: Address to listen on.
        port: Port to listen on.
        hosts: Exact values of ``Host`` that are let through.
        health_path: Path that answers 200 when all is well, without credentials.
        closed_paths: Beginnings of paths that are switched off.
        page_head: HTML that is added to the head of the page at ``/``; empty for nothing.
        auth: ``user:password``, or None.
    """

    app: str
    is_factory: bool
    host: str
    port: int
    hosts: tuple[str, ...]
    health_path: str
    closed_paths: tuple[str, ...]
    page_head: str
    auth: str | None


def main() -> None:
    """Serve until SIGTERM."""
    collect_rarely()
    serving = Serving.from_json(json.loads(os.environ.pop(SERVE_VARIABLE)))
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    rules = Rules(frozenset(serving.hosts), serving.auth, frozenset({serving.health_path}), serving.closed_paths)
    uvicorn.run(
        Guard(_load(serving), rules),
        host=serving.host,
        port=serving.port,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def _load(serving: Serving) -> App:
    module, _, name = serving.app.partition(":")
    found = getattr(importlib.import_module(module), name)
    app = cast(App, found() if serving.is_factory else found)
    return PageHead(app, serving.page_head) if serving.page_head else app


if __name__ == "__main__":
    main()
