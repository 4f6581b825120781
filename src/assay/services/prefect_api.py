"""The process behind `assay.services.local_prefect`: one Prefect API on an inherited socket.

It ends when its standard input closes, so a parent that is killed leaves nothing behind.
"""

import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

_GRACE_SECONDS = 5.0


def main() -> None:
    """Serve Prefect's API on the socket whose file descriptor is the first argument."""
    import uvicorn

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_with_parent(server: "uvicorn.Server") -> None:
    """Let the server write what it still holds, then make sure that it is gone."""
    sys.stdin.buffer.read()
    server.should_exit = True
    time.sleep(_GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
