"""Progress of long work: stages announce it, whoever drives them listens.

A stage calls `announce`; the command line draws it on a terminal, a flow puts it into its page. Nobody listening
costs nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one stage has come.

    Attributes:
        stage: Name of the stage, e.g. ``train``.
        done: Units of work done.
        total: Units of work in all; 0 where nobody knows.
        text: What a person wants to read beside the bar.
        finished: Whether the stage is over.
    """

    stage: str
    done: int = 0
    total: int = 0
    text: str = ""
    finished: bool = False


Listener = Callable[[Progress], None]

_listeners: list[Listener] = []


def announce(stage: str, text: str = "", *, done: int = 0, total: int = 0, finished: bool = False) -> None:
    """Tell all listeners how far a stage has come.

    Args:
        stage: Name of the stage.
        text: What a person wants to read.
        done: Units of work done.
        total: Units of work in all; 0 where nobody knows.
        finished: Whether the stage is over.
    """
    event = Progress(stage, done, total, text, finished)
    for listener in tuple(_listeners):
        listener(event)


class Stopwatch:
    """Wall time of each stage; announces its start and its end.

    Attributes:
        seconds: Stage -> wall time in seconds, of the stages that ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, text: str = "") -> Iterator[list[str]]:
        """Time a block as one stage.

        Args:
            name: Name of the stage.
            text: What a person reads while it works.

        Yields:
            A list; its last entry is what a person reads when the stage is over.
        """
        words = [text]
        announce(name, text)
        begun = time.perf_counter()
        yield words
        self.seconds[name] = time.perf_counter() - begun
        announce(name, words[-1], finished=True)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every `Progress` while the block runs.

    Args:
        listener: Called in the thread that does the work; it must be quick.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
