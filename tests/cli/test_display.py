"""Progress on a terminal: names and bars keep their place, however long the words beside them are."""

import io

import pytest
from rich.console import Console

from assay.cli.display import drawing
from assay.progress import announce


@pytest.mark.parametrize("width", [60, 80, 200])
def test_long_words_give_way_and_nothing_else_does(width: int) -> None:
    out = io.StringIO()
    with drawing(Console(file=out, width=width, force_terminal=True, color_system=None)):
        announce("evaluate", "short", finished=True)
        announce("gate", "kept champion: " + "a long reason, " * 30, finished=True)
    last = [line.rstrip() for line in out.getvalue().rsplit("\x1b[2K", 1)[1].splitlines() if "✓" in line]
    assert [line.split()[1] for line in last] == ["evaluate", "gate"]
    assert {line.count("━") for line in last} == {24}
    assert max(map(len, last)) <= width and last[1].endswith("…")
