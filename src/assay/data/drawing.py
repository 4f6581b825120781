"""What all figures share: colours, settings, and words that the font can spell.

Every figure is a `matplotlib.figure.Figure` of its own: nothing is shared, no window system is asked for. Colours are
Okabe and Ito's, told apart by colour-blind readers.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, INK, FAINT = "#b8bcc2", "#24292f", "#e4e7eb"
DPI = 110
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.edgecolor": "#8b949e",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.usetex": False,
    "text.parse_math": False,
    "path.simplify": True,
}
"""Matplotlib's settings, which every figure is drawn with."""

_NO_GLYPH = "\u25a1"


@contextmanager
def style() -> Iterator[None]:
    """Draw with `STYLE`, whatever the process has set; its settings are back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def to_png(figure: Figure) -> bytes:
    """Render a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def display_name(name: str, number: int, limit: int = 13, what: str = "class") -> str:
    """Make a name safe to draw: short, one line, and only glyphs that the font has.

    Args:
        name: The name, e.g. of a class.
        number: Its number, shown where the font cannot spell the name.
        limit: Longest result in characters.
        what: What it is the name of, shown with the number.
    """
    line = " ".join(name.split())
    if not line or any(ord(character) not in _glyphs() for character in line):
        return f"{what} {number}"
    return line if len(line) <= limit else f"{line[: limit - limit // 2]}…{line[1 - limit // 2 :]}"


def drawable(text: str) -> str:
    """Make a text one line of glyphs that the font has; up to three boxes stand for those in a row that it lacks."""
    line = " ".join(text.split())
    spelt = "".join(letter if ord(letter) in _glyphs() else _NO_GLYPH for letter in line)
    return re.sub(f"(?:{_NO_GLYPH} ?){{4,}}", f"{3 * _NO_GLYPH} ", spelt).rstrip()


def snippet(text: str, limit: int) -> str:
    """Return the start of a text on one line, at most `limit` characters."""
    line = " ".join(text[: 20 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def wrapped(text: str, width: int, num_lines: int) -> str:
    """Break the start of a text into at most `num_lines` lines of at most `width` characters, ready to be drawn."""
    found = textwrap.wrap(
        drawable(text[: 20 * width * num_lines]), width, max_lines=num_lines, placeholder=" …", break_on_hyphens=False
    )
    return "\n".join(found)


@cache
def _glyphs() -> frozenset[int]:
    """Code points that matplotlib's own font can draw."""
    return frozenset(FT2Font(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))).get_charmap())
