"""For processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys

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
