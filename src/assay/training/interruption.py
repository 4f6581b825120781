"""Signals that ask a process to end wait until training can be left without losing a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Whether the process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether training should be left after this step."""
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the second SIGINT does not wait, for people who press Ctrl+C twice."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Hold back SIGTERM and SIGINT while the block runs; what they usually do is done when it is left.

    In a thread other than the main one nothing is held back: only the main thread has signal handlers.

    Yields:
        Whether the process was asked to end. The block looks at it between steps, saves its state and leaves.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    usual = {number: signal.getsignal(number) for number in _ENDING}
    usual = {number: handler for number, handler in usual.items() if handler not in (signal.SIG_IGN, None)}
    for number in usual:
        signal.signal(number, asked.note)
    try:
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if asked.signal is not None:
            signal.raise_signal(asked.signal)
