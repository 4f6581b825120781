"""What a pass over a table finds out about each column, a chunk at a time, in memory that does not grow with it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

MAX_VALUES = 1000
"""Different values of a column that are counted one by one."""

MISSING = (
    "",
    "NA",
    "N/A",
    "#N/A",
    "na",
    "n/a",
    "nan",
    "NaN",
    "NAN",
    "null",
    "NULL",
    "Null",
    "none",
    "None",
    "NONE",
    "?",
    "-",
)
"""What stands for a missing value in a column of numbers, and in a column of few levels."""

MISSING_LABELS = ("", "NA", "N/A", "#N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL")
"""What stands for a missing label: ``none`` may well be a class."""

_NUMBER = r"^[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|(?i:inf|infinity))$"
_DECIMAL_COMMA = r"^[-+]?[0-9]+,[0-9]+$"
_THOUSANDS = r"^[-+]?[0-9]{1,3}(,[0-9]{3})+$"
_DATE = r"^([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([T ][0-9:.,+Z -]*)?$"
_NUM_LISTED = 5
_MAX_ODD_SHARE = 0.01
_MAX_ODD = 3


@dataclass(frozen=True)
class Numbers:
    """Cells of a column read as numbers.

    Attributes:
        values: float64 ``[row]``, NaN where a cell is missing or odd.
        is_missing: bool ``[row]``.
        is_odd: bool ``[row]``: there is something, and it is no number.
        is_infinite: bool ``[row]``: a number beyond what float32 holds.
    """

    values: np.ndarray
    is_missing: np.ndarray
    is_odd: np.ndarray
    is_infinite: np.ndarray


def trim(strings: "pa.Array") -> "pa.Array":
    """Cut white space off the ends of strings; null becomes the empty string."""
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(pc.fill_null(strings, ""))


def read_numbers(trimmed: "pa.Array", *, decimal_comma: bool = False) -> Numbers:
    """Read strings as numbers.

    Args:
        trimmed: From `trim`.
        decimal_comma: Whether a comma stands before the decimals.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pc.is_in(trimmed, value_set=pa.array(MISSING))
    cells = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)
    if decimal_comma:
        cells = pc.replace_substring(cells, ",", ".")
    try:
        numbers = cells.cast(pa.float64())
    except pa.ArrowInvalid:
        is_number = pc.match_substring_regex(cells, _NUMBER)
        numbers = pc.if_else(is_number, cells, pa.scalar(None, pa.string())).cast(pa.float64())
    values = np.array(numbers.to_numpy(zero_copy_only=False), np.float64)
    is_missing = missing.to_numpy(zero_copy_only=False)
    is_odd = np.isnan(values) & ~is_missing
    with np.errstate(invalid="ignore"):
        is_infinite = np.abs(values) > np.finfo(np.float32).max
    return Numbers(values, is_missing, is_odd, is_infinite)


@dataclass
class ColumnFacts:
    """What a column holds.

    Attributes:
        name: Name of the column.
        unit: What rows are counted in, ``line`` or ``row``.
        num_rows: Rows so far.
        num_missing: Cells that stand for a missing value.
        num_empty: Cells without a character but white space.
        num_numbers: Cells that are numbers, those beyond float32 included.
        num_infinite: Numbers beyond what float32 holds.
        num_odd: Cells that are there and no numbers.
        num_decimal_commas: Odd cells that would be numbers if a comma stood before the decimals.
        num_thousands: Odd cells that would be numbers if commas divided thousands.
        num_dates: Odd cells that look like a date.
        num_chars: Characters in all.
        num_spaces: Spaces within cells.
        max_bytes: Bytes of the largest cell, in UTF-8.
        is_whole: Whether all numbers are whole.
        is_consecutive: Whether each cell is the whole number after the one above it.
        values: How often each value occurs, or None beyond `MAX_VALUES` different ones.
        missing_at: Line and cell of the first missing ones.
        empty_at: Lines of the first empty cells.
        odd_at: Line and cell of the first odd ones.
        infinite_at: Line and cell of the first ones beyond float32.
    """

    name: str
    unit: str = "line"
    num_rows: int = 0
    num_missing: int = 0
    num_empty: int = 0
    num_numbers: int = 0
    num_infinite: int = 0
    num_odd: int = 0
    num_decimal_commas: int = 0
    num_thousands: int = 0
    num_dates: int = 0
    num_chars: int = 0
    num_spaces: int = 0
    max_bytes: int = 0
    is_whole: bool = True
    is_consecutive: bool = True
    values: Counter[str] | None = field(default_factory=Counter)
    missing_at: list[tuple[int, str]] = field(default_factory=list)
    empty_at: list[int] = field(default_factory=list)
    odd_at: list[tuple[int, str]] = field(default_factory=list)
    infinite_at: list[tuple[int, str]] = field(default_factory=list)
    _last: float = field(default=float("nan"), compare=False)

    @property
    def num_there(self) -> int:
        """Cells that are not missing."""
        return self.num_rows - self.num_missing

    @property
    def mean_chars(self) -> float:
        """Characters of a cell that is not missing, on average."""
        return self.num_chars / max(1, self.num_there)

    @property
    def has_decimal_commas(self) -> bool:
        """Whether a comma stands before the decimals: every cell that is no number would be one then."""
        return 0 < self.num_decimal_commas == self.num_odd and not self.has_thousands

    @property
    def has_thousands(self) -> bool:
        """Whether each comma may divide thousands, too, so that 1,234 is 1234 or 1.234."""
        return 0 < self.num_thousands == self.num_odd

    @property
    def is_numeric(self) -> bool:
        """Whether the column holds numbers: all but one cell in a hundred, or all but three where there are few."""
        if self.has_decimal_commas or self.has_thousands:
            return True
        few = self.num_odd <= _MAX_ODD_SHARE * self.num_there or (
            self.num_odd <= _MAX_ODD and self.num_numbers >= 9 * self.num_odd
        )
        return self.num_numbers > 0 and few

    @property
    def is_dates(self) -> bool:
        """Whether all that is there looks like dates."""
        return 0 < self.num_dates == self.num_there

    @property
    def levels(self) -> tuple[str, ...] | None:
        """The different values that are not missing, sorted; None if there are too many to count."""
        return None if self.values is None else tuple(sorted(set(self.values) - set(MISSING)))

    def update(self, strings: "pa.Array", numbers: list[int]) -> None:
        """Look at some more cells.

        Args:
            strings: The cells.
            numbers: Line of each.
        """
        import pyarrow.compute as pc

        if not numbers:
            return
        trimmed = trim(strings)
        found = read_numbers(trimmed)
        self.num_rows += len(numbers)
        self.num_missing += int(found.is_missing.sum())
        self.num_odd += int(found.is_odd.sum())
        self.num_numbers += int((~found.is_missing & ~found.is_odd).sum())
        self.num_infinite += int(found.is_infinite.sum())
        self._note_places(trimmed, found, numbers)
        self._note_numbers(found)
        if found.is_odd.any():
            self.num_dates += pc.sum(pc.match_substring_regex(trimmed, _DATE)).as_py() or 0
            self.num_decimal_commas += pc.sum(pc.match_substring_regex(trimmed, _DECIMAL_COMMA)).as_py() or 0
            self.num_thousands += pc.sum(pc.match_substring_regex(trimmed, _THOUSANDS)).as_py() or 0
            self.num_spaces += pc.sum(pc.count_substring(trimmed, " ")).as_py() or 0
        self.num_chars += pc.sum(pc.utf8_length(trimmed)).as_py() or 0
        self.max_bytes = max(self.max_bytes, pc.max(pc.binary_length(strings)).as_py() or 0)
        self._count(trimmed)

    def lacks(self, num_rows: int) -> None:
        """Count rows in which the file does not have this column."""
        if num_rows:
            self.num_rows += num_rows
            self.num_missing += num_rows
            self.num_empty += num_rows
            self.is_consecutive = False
            if self.values is not None:
                self.values[""] += num_rows

    def _note_places(self, trimmed: "pa.Array", found: Numbers, numbers: list[int]) -> None:
        import pyarrow.compute as pc

        kinds = (
            (self.missing_at, found.is_missing),
            (self.odd_at, found.is_odd),
            (self.infinite_at, found.is_infinite),
        )
        for places, mask in kinds:
            if len(places) < _NUM_LISTED and mask.any():
                rows = np.flatnonzero(mask)[: _NUM_LISTED - len(places)].tolist()
                places.extend((numbers[row], trimmed[row].as_py()) for row in rows)
        if found.is_missing.any():
            is_empty = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
            self.num_empty += int(is_empty.sum())
            rows = np.flatnonzero(is_empty)[: _NUM_LISTED - len(self.empty_at)].tolist()
            self.empty_at.extend(numbers[row] for row in rows)

    def _note_numbers(self, found: Numbers) -> None:
        values = found.values
        is_there = ~found.is_missing & ~found.is_odd & ~found.is_infinite
        self.is_whole &= bool((values[is_there] == np.floor(values[is_there])).all())
        if self.is_consecutive:
            steps = np.diff(values, prepend=self._last)
            is_first = self.num_rows == len(values)
            self.is_consecutive = bool(is_there.all() and (steps[1 if is_first else 0 :] == 1).all())
            self._last = float(values[-1])

    def _count(self, trimmed: "pa.Array") -> None:
        import pyarrow.compute as pc

        if self.values is None:
            return
        counts = pc.value_counts(trimmed)
        if len(counts) > MAX_VALUES + 1:
            self.values = None
            return
        for value, count in zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True):
            self.values[value] += count
        if len(self.values) > MAX_VALUES + 1:
            self.values = None


def rows_of(fact: ColumnFacts, lines: list[str], count: int) -> str:
    """Name some rows for people, with the unit in which the file counts them.

    Args:
        fact: The column that they are rows of.
        lines: Numbers of the first of them.
        count: How many there are.
    """
    more = ", ..." if count > len(lines) else ""
    return f"{fact.unit}s {', '.join(lines)}{more}" if lines else "the column is not in them"
