"""A run's process, as its worker sees it: started, ended, waited for."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from assay.services.child import GRACE_SECONDS
from assay.services.run_process import RunRequest

_UNKNOWN_EXIT_CODE = -signal.SIGKILL
_ANSWER_SECONDS = 20.0
"""How long the process that forks may take to begin: it may be importing. Well before the keeper gives up on a run that
nobody begins."""


class RunHandle:
    """A run under way.

    Attributes:
        pid: Its process id.
        code: Its exit code, once it has ended.
    """

    def __init__(self, pid: int, code: "asyncio.Task[int]") -> None:
        self.pid = pid
        self.code = code

    async def end(self) -> None:
        """Have it write its checkpoint and end; kill it when it takes too long."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.code.done():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.code), GRACE_SECONDS)


async def fork_run(address: Path, request: RunRequest) -> RunHandle | None:
    """Have `assay.services.run_starter` fork a run's process.

    Args:
        address: Its Unix socket.
        request: The run.

    Returns:
        The run; None where nobody listens or answers.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(address))
    except OSError:
        return None
    pid = None
    with contextlib.suppress(OSError):  # `TimeoutError` is one
        async with asyncio.timeout(_ANSWER_SECONDS):
            writer.write(json.dumps(request._asdict()).encode() + b"\n")
            await writer.drain()
            pid = (await _answer(reader)).get("pid")
    if pid is None:
        writer.close()
        return None

    async def code() -> int:
        try:
            return int((await _answer(reader)).get("code", _UNKNOWN_EXIT_CODE))
        finally:
            writer.close()

    return RunHandle(pid, asyncio.create_task(code()))


async def start_run(folder: Path, request: RunRequest) -> RunHandle:
    """Start a run's process, which imports everything for itself.

    Args:
        folder: Where it works.
        request: The run.
    """
    with Path(request.log_file).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "assay.services.run_process", request.slot, str(os.getpid()), request.flow_run_id),
            cwd=folder,
            env=request.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a SIGINT or SIGTERM to the worker's group is not for the run
        )
    return RunHandle(process.pid, asyncio.create_task(process.wait()))


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next line; nothing where the other side has ended."""
    try:
        line = await reader.readline()
    except OSError:
        return {}
    answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
    return answer
