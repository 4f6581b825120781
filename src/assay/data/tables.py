"""The ``table`` source: a csv, tsv, jsonl or parquet file whose rows are texts or rows of numbers.

Three passes, all streamed: facts about each column; whether a column gives the label away, which mostly ends within
the first rows; then the examples.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.column_facts import MISSING_LABELS, ColumnFacts, read_numbers, trim
from assay.data.columns import SPLIT_VALUES, Feature, Plan, plan_columns
from assay.data.rows import Chunk, RowReader, open_rows
from assay.data.sources import Example, Source, SourceOptions, content_hash
from assay.data.text_lines import clean_text
from assay.errors import BadExampleError, SourceError
from assay.progress import announce
from assay.records import TEXT

if TYPE_CHECKING:
    import pyarrow as pa

_NO_OPTIONS = SourceOptions()
_MIN_ROWS_FOR_LEAKS = 20
_ROWS_PER_VALUE = 5


def open_table(path: Path, options: SourceOptions = _NO_OPTIONS, *, skip_bad: bool = False) -> Source:
    """Open a table of texts or numbers.

    Args:
        path: A csv, tsv, jsonl or parquet file.
        options: What is in which column, where it is not to be inferred.
        skip_bad: Leave out rows that cannot be read, lack label or text, or hold no number where one must be.

    Raises:
        SourceError: The file is missing or empty, or it is unclear which column is what.
        DataError: Its content cannot be read, or a column gives the label away.
        BadExampleError: A row cannot be read and `skip_bad` is off.
    """
    reader = open_rows(path, encoding=options.encoding, separator=options.separator, skip_bad=skip_bad)
    facts = _find_facts(reader)
    num_rows = max((fact.num_rows for fact in facts.values()), default=0)
    if not num_rows:
        raise SourceError(f"{path}: holds no rows{' beside its header' if facts else ''}. Was it written to its end?")
    plan = plan_columns(path, facts, tuple(reader.nested), options, skip_bad)
    _check_leaks(reader, plan, facts, options)
    notes = [*reader.notes, *_notes_on_nuls(reader), *plan.notes]
    bad: list[str] = []
    is_text = plan.kind == TEXT
    per_row = facts[plan.text].num_chars * 4 // num_rows + 64 if plan.text else 4 * len(plan.columns) + 64
    return Source(
        name="table",
        details=_details(path, plan, options, skip_bad),
        class_names=plan.class_names,
        shape=(max(1, facts[plan.text].max_bytes),) if plan.text else (len(plan.columns),),
        num_examples=num_rows,
        size_bytes=num_rows * per_row,
        has_splits=plan.split is not None,
        examples=lambda: _Rows(reader, plan, skip_bad, bad, notes).examples(num_rows),
        kind=plan.kind,
        columns=() if is_text else plan.columns,
        has_groups=plan.group is not None,
        notes=notes,
        bad_examples=bad,
    )


def _details(path: Path, plan: Plan, options: SourceOptions, skip_bad: bool) -> dict[str, str]:
    with open(path, "rb") as file:
        details = {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    roles = {"label": plan.label, "text": plan.text, "split": plan.split, "group": plan.group}
    details |= {f"{role}_column": name for role, name in roles.items() if name}
    return details | options.given | ({"skip_bad": "yes"} if skip_bad else {})


def _notes_on_nuls(reader: RowReader) -> list[str]:
    count = reader.num_nuls
    return [f"Removed {count} NUL characters."] if count else []


def _find_facts(reader: RowReader) -> dict[str, ColumnFacts]:
    """Look at every cell once."""
    facts: dict[str, ColumnFacts] = {}
    num_done = 0
    for chunk in reader.chunks():
        for name in (*facts, *(name for name in chunk.columns if name not in facts)):
            if name not in facts:
                facts[name] = ColumnFacts(name, reader.unit)
                facts[name].lacks(num_done)
            facts[name].update(chunk.column(name), chunk.numbers)
        num_done += len(chunk.numbers)
        announce("import", "reading columns", done=num_done)
    for name in reader.nested:
        if name not in facts:
            facts[name] = ColumnFacts(name, reader.unit)
            facts[name].lacks(num_done)
    return facts


def _check_leaks(reader: RowReader, plan: Plan, facts: dict[str, ColumnFacts], options: SourceOptions) -> None:
    """Refuse features that give the label away: each value goes with one label, and there are hardly more values.

    Raises:
        SourceError: There is such a column, and nobody said to keep it.
    """
    num_classes, suspects = len(plan.class_names), {}
    for feature in plan.features:
        fact = facts[feature.column]
        few = fact.values is not None and num_classes <= len(fact.values) <= 2 * num_classes
        enough = fact.values and fact.num_rows >= max(_MIN_ROWS_FOR_LEAKS, _ROWS_PER_VALUE * len(fact.values))
        if few and enough and feature.column not in options.keep_columns:
            suspects[feature.column] = dict[str, int]()
    chunks = reader.chunks() if suspects else iter(())
    for chunk in chunks:
        labels = _class_of(plan, chunk)
        for name in tuple(suspects):
            if not _is_function(suspects[name], trim(chunk.column(name)).to_pylist(), labels):
                del suspects[name]
        if not suspects:
            return
    if suspects:
        name, found = next(iter(suspects.items()))
        others = f" So do {', '.join(map(repr, list(suspects)[1:]))}." if len(suspects) > 1 else ""
        value, label = next(iter(found.items()))
        raise SourceError(
            f"{reader.path}: column {name!r} gives the label {plan.label!r} away: each of its {len(found)} values goes "
            f"with one class, e.g. {value[:40]!r} with {plan.class_names[label]!r}.{others} If it is known only once "
            f"the label is, leave it out: {options.written('drop_columns', name)}. If it is a feature, keep it: "
            f"{options.written('keep_columns', name)}."
        )


def _is_function(known: dict[str, int], values: list[str], labels: np.ndarray) -> bool:
    """Whether each value goes with one label, in what is `known` and here."""
    for value, label in dict.fromkeys(zip(values, labels.tolist(), strict=True)):
        if label >= 0 and known.setdefault(value, label) != label:
            return False
    return True


def _class_of(plan: Plan, chunk: Chunk) -> np.ndarray:
    """Class of each row, int64 ``[row]``, -1 where there is no label."""
    values = trim(chunk.column(plan.label)).to_pylist()
    return np.array([plan.class_of.get(value, -1) for value in values], np.int64)


@dataclass
class _Rows:
    """Makes examples of rows."""

    reader: RowReader
    plan: Plan
    skip_bad: bool
    bad: list[str]
    notes: list[str]

    def examples(self, num_rows: int) -> Iterator[Example]:
        """Read all examples, in the order of the rows."""
        num_done = num_listed = num_without_split = 0
        self.bad.clear()
        for chunk in self.reader.chunks():
            self.bad.extend(self.reader.bad[num_listed:])
            num_listed = len(self.reader.bad)
            labels = _class_of(self.plan, chunk)
            reasons: dict[int, str] = {int(row): "has no label" for row in np.flatnonzero(labels < 0)}
            contents = self._texts(chunk, reasons) if self.plan.text else self._numbers(chunk, reasons)
            splits, groups = self._splits(chunk, reasons), self._groups(chunk)
            num_without_split += sum(split is None for split in splits) if self.plan.split else 0
            for row, number in enumerate(chunk.numbers):
                if row in reasons:
                    self._leave_out(number, reasons[row])
                    continue
                content = contents[row]
                name = f"{self.reader.path.name}, {self.reader.unit} {number}"
                yield Example(name, content, int(labels[row]), splits[row], content_hash(content), groups[row])
            num_done += len(chunk.numbers)
            announce("import", "reading rows", done=num_done, total=num_rows)
        self.bad.extend(self.reader.bad[num_listed:])
        if num_without_split:
            self.notes.append(f"{num_without_split} rows say no split; they are divided like data without splits.")

    def _leave_out(self, number: int, reason: str) -> None:
        if not self.skip_bad:  # Found by the pass before, unless the file changed in between.
            raise BadExampleError(f"{self.reader.place(number)}: {reason}. Leave such rows out with --skip-bad.")
        self.bad.append(f"{self.reader.path.name}, {self.reader.unit} {number}: {reason}")

    def _texts(self, chunk: Chunk, reasons: dict[int, str]) -> list[str]:
        assert self.plan.text is not None
        texts = [clean_text(text or "") for text in chunk.column(self.plan.text).to_pylist()]
        for row, text in enumerate(texts):
            if not text.strip():
                reasons.setdefault(row, "has an empty text")
        return texts

    def _numbers(self, chunk: Chunk, reasons: dict[int, str]) -> list[np.ndarray]:
        """Features of each row, float32 ``[column]``."""
        values = np.zeros((len(chunk.numbers), len(self.plan.columns)), np.float32)
        place = 0
        for feature in self.plan.features:
            cells = trim(chunk.column(feature.column))
            if feature.levels:
                _fill_levels(values[:, place : place + len(feature.levels)], cells, feature)
            else:
                values[:, place] = to_float32(cells, feature, reasons)
            place += len(feature.names)
        return list(values)

    def _splits(self, chunk: Chunk, reasons: dict[int, str]) -> list[str | None]:
        if self.plan.split is None:
            return [None] * len(chunk.numbers)
        values = trim(chunk.column(self.plan.split)).to_pylist()
        for row, value in enumerate(values):
            if value and value.lower() not in SPLIT_VALUES:
                reasons.setdefault(row, f"{value[:40]!r} in column {self.plan.split!r} is no split")
        return [SPLIT_VALUES.get(value.lower()) for value in values]

    def _groups(self, chunk: Chunk) -> list[str | None]:
        if self.plan.group is None:
            return [None] * len(chunk.numbers)
        values = trim(chunk.column(self.plan.group)).to_pylist()
        return [None if value in MISSING_LABELS else clean_text(value) for value in values]


def _fill_levels(features: np.ndarray, cells: "pa.Array", feature: Feature) -> None:
    """Set 1 where a cell has a feature's level; a missing cell has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.fill_null(pc.index_in(cells, value_set=pa.array(feature.levels)), -1).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(codes >= 0)
    features[rows, codes[rows]] = 1


def to_float32(cells: "pa.Array", feature: Feature, reasons: dict[int, str]) -> np.ndarray:
    """Read numbers, float32 ``[row]``; -0 becomes 0, so that equal rows have equal hashes."""
    found = read_numbers(cells, decimal_comma=feature.decimal_comma)
    for row in np.flatnonzero(found.is_odd | found.is_infinite).tolist():
        what = "is no number" if found.is_odd[row] else "is not finite in float32"
        reasons.setdefault(row, f"{cells[row].as_py()[:40]!r} in column {feature.column!r} {what}")
    return (np.where(found.is_odd | found.is_infinite, np.nan, found.values) + 0.0).astype(np.float32)
