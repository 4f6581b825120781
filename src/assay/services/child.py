"""For processes that others start: ended with their parent, and forks that end at once."""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable

GRACE_SECONDS = 60.0
"""How long a run may take to write its checkpoint and end."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int, signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies.

    Args:
        parent: Process id of the parent, as the parent itself knows it.
        signal_number: The signal.

    Source:
        prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it died before the kernel knew
        signal.raise_signal(signal_number)


def end_at_once_after(main: Callable[[], int]) -> None:
    """Do a process's work, and have the process leave its memory to the kernel at its end.

    The interpreter frees what was imported object by object, which in a fork copies every page first. Everything else
    that it does at its end is done: exit functions, threads waited for, outputs flushed. To be called before anything
    is imported that registers an exit function, as the first one to be registered is the last one to be called.

    Args:
        main: The work; returns the exit code. It may end by `SystemExit`, too.
    """
    code = 1  # of an exception that nobody caught

    def end() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    atexit.register(end)
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
