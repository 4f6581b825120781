"""The process behind `assay.services.local_prefect`: one Prefect API on an inherited socket.

It ends when its standard input closes, so a parent that is killed leaves nothing behind. Only one starts at a time
in a home: two that make the same database at once get in each other's way.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import uvicorn

from assay.garbage import collect_rarely
from assay.project import only_one

_GRACE_SECONDS = 5.0


class _Server(uvicorn.Server):
    """Starts under a lock and serves without it."""

    def __init__(self, config: uvicorn.Config, lock_file: Path) -> None:
        super().__init__(config)
        self._lock_file = lock_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with only_one(self._lock_file, on_wait=lambda: None):
            await super().startup(sockets)


def main() -> None:
    """Serve Prefect's API on the socket whose file descriptor is the first argument."""
    collect_rarely()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    server = _Server(config, Path(os.environ["PREFECT_HOME"], "start.lock"))
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_with_parent(server: uvicorn.Server) -> None:
    """Let the server write what it still holds, then make sure that it is gone."""
    while os.read(0, 1024):
        pass
    server.should_exit = True
    time.sleep(_GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
