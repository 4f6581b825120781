"""What the values of a label column say: which classes there are, or why they are none."""

import re
import unicodedata
from pathlib import Path

from assay.data.column_facts import MAX_VALUES, MISSING_LABELS, ColumnFacts, rows_of
from assay.errors import DataError, SourceError

MAX_CLASSES = MAX_VALUES

_INTEGER = re.compile(r"[-+]?[0-9]+")


def name_classes(path: Path, fact: ColumnFacts, skip_bad: bool) -> tuple[dict[str, int], tuple[str, ...], list[str]]:
    """Name the classes of a label column: whole numbers in their order, anything else by name.

    Args:
        path: The file, for errors.
        fact: What the column holds.
        skip_bad: Whether rows without a label are to be left out, not refused.

    Returns:
        Index of the class of each value, the class names, and sentences about what was changed.

    Raises:
        DataError: A label is missing, or the labels are measurements.
        SourceError: There is only one class, or there are too many.
    """
    where = f"{path}, column {fact.name!r}"
    if fact.num_numbers and not fact.num_odd and not fact.is_whole:
        raise DataError(
            f"{where}: the labels are numbers with decimals ({_example(fact)}), so this looks like regression. Assay "
            "trains classifiers: name another column as label, or write classes."
        )
    if fact.values is None:
        raise SourceError(
            f"{where}: holds more than {MAX_CLASSES:,} different values ({_example(fact)}), so it looks like an id or "
            "free text. Name another column as label."
        )
    num_missing = sum(fact.values[value] for value in MISSING_LABELS)
    if num_missing and not skip_bad:
        lines = [str(number) for number, value in fact.missing_at if value in MISSING_LABELS]
        raise DataError(
            f"{where}: {num_missing} of {fact.num_rows} rows have no label ({rows_of(fact, lines, num_missing)}). Add "
            "them, or leave such rows out with --skip-bad."
        )
    values = [value for value in fact.values if value not in MISSING_LABELS]
    names = {value: unicodedata.normalize("NFC", value) for value in values}
    notes = []
    if values and fact.num_numbers and not fact.num_odd and any(not _INTEGER.fullmatch(value) for value in values):
        names = {value: str(int(float(value))) for value in values}
        notes.append(f"Read the labels in {fact.name!r} as whole numbers (written like {_example(fact)}).")
    class_names = tuple(sorted(set(names.values())))
    if all(_INTEGER.fullmatch(name) for name in class_names):
        class_names = tuple(sorted(class_names, key=lambda name: (int(name), name)))
    _check_classes(where, class_names, fact)
    if len({name.casefold() for name in class_names}) < len(class_names):
        notes.append(f"Some classes in {fact.name!r} differ in upper and lower case only; they are kept apart.")
    return {value: class_names.index(name) for value, name in names.items()}, class_names, notes


def _check_classes(where: str, class_names: tuple[str, ...], fact: ColumnFacts) -> None:
    if len(class_names) > MAX_CLASSES:
        raise SourceError(f"{where}: holds more than {MAX_CLASSES:,} classes. Name another column as label.")
    if len(class_names) < 2:
        found = f"all {fact.num_rows} rows are of class {class_names[0]!r}" if class_names else "no row has a label"
        raise SourceError(f"{where}: {found}. A classifier needs two classes.")
    for name in class_names:
        if not name.isprintable() or len(name) > 200:
            raise SourceError(
                f"{where}: the class {name[:40]!r} is too long or has letters that cannot be shown. Rename it."
            )


def _example(fact: ColumnFacts) -> str:
    values = [value for value in fact.values or () if value][:2] or [value for _, value in fact.odd_at[:2]]
    return "e.g. " + ", ".join(value[:30] for value in values) if values else f"{fact.num_numbers} numbers"
