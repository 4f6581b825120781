"""Ports that nobody listens on."""

import secrets
import socket

_FIRST, _END = 15_000, 32_000
"""Below those that systems give to whoever does not ask for one: such a port may be gone before it is listened on."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago, and that only somebody who asks for it gets."""
    for _ in range(1000):
        port = _FIRST + secrets.randbelow(_END - _FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port from {_FIRST} to {_END} is free")
