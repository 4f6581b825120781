"""What the figures of an ablation are drawn on: a page in inches, its colours, its words."""

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, GREY, FAINT, BAND = "#24292f", "#59636e", "#b8bcc2", "#e4e7eb", "#eceff3"
DPI = 144
LINE, CHARACTER = 0.2, 0.078
NAME_CHARACTERS = 40


class Page:
    """A figure that is laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes at a place."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        """Write text whose middle is at `top`; single lines share their baseline."""
        align = "center" if "\n" in text else "center_baseline"
        self.figure.text(left / self.width, 1 - top / self.height, text, **({"va": align} | how))


def wrap(name: str, width: int, max_lines: int) -> tuple[str, ...]:
    """Break a name into lines of glyphs that the font has; what does not fit ends in an ellipsis."""
    line = "".join(character if ord(character) < 0x250 else "?" for character in " ".join(name.split()))
    words = re.split(r"(?<=[ (,])", line)
    pieces = [word[start : start + width] for word in words for start in range(0, max(len(word), 1), width)]
    lines = [""]
    for piece in pieces:
        if len((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    kept = [line.rstrip() for line in lines[:max_lines]]
    if len(lines) > max_lines:
        kept[-1] = f"{kept[-1][: width - 2]} …"
    return tuple(kept)
