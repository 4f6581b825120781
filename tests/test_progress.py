"""Stages announce progress; whoever listens hears it, and only while listening."""

from assay.progress import Progress, announce, listening


def test_listeners_hear_what_is_announced_while_they_listen() -> None:
    heard: list[Progress] = []
    announce("train", "before")
    with listening(heard.append):
        announce("train", "epoch 1", done=1, total=3)
        announce("train", finished=True)
    announce("train", "after")
    assert heard == [Progress("train", 1, 3, "epoch 1"), Progress("train", finished=True)]
