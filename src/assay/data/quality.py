"""What is odd about data that an ordinary run would accept: findings that stop a night or warn it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from assay.data.loading import Dataset
from assay.data.profile import find_shards, is_missing
from assay.data.shards import ShardInfo
from assay.data.splits import SplitIndices
from assay.data.validation import EXACTLY
from assay.errors import DataError
from assay.records import IMAGE, SERIES, TABLE, TEXT
from assay.records.night import STOPS, WARNS, DataProfile, Finding, QualityLimits

_DEFAULT_LIMITS = QualityLimits()
_KNOWN_COLUMNS = ("image", "text", "series", "label", "split")
_BLANK = {
    IMAGE: ("of the images", "are of one colour"),
    TEXT: ("of the texts", "hold nothing but white space"),
    SERIES: ("of the series", "do not vary"),
    TABLE: ("of the rows", "have no value in any column"),
}
"""Kind of data -> what an example is called that holds nothing, and how it does."""
_MAX_DISTINCT = 50
_NUM_NAMED = 5
_CHANCE = 0.001


def check_quality(
    old: DataProfile | None,
    new: DataProfile,
    dataset: Dataset,
    splits: SplitIndices,
    limits: QualityLimits = _DEFAULT_LIMITS,
) -> tuple[Finding, ...]:
    """Look for what makes data unfit for training, or not comparable with the data before.

    Args:
        old: Summary of the data that the champion was trained on; None where there is no champion, and then nothing
            is compared.
        new: Summary of the new data.
        dataset: The new data, decoded.
        splits: How it is divided.
        limits: From where on something is odd, and how bad it is.

    Returns:
        What was found, what stops first; empty if nothing is odd.

    Raises:
        DataError: The shards cannot be read, or are not those that were decoded.
    """
    findings = [
        *(_compared(old, new, limits) if old else ()),
        *_missing(old, new, limits),
        *_copies(old, new, limits),
        *_shared(dataset, splits),
        *_label_copies(dataset, limits),
    ]
    return tuple(sorted(findings, key=lambda finding: not finding.stops))


def _compared(old: DataProfile, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    yield from _changed_classes(old, new, limits)
    yield from _changed_shape(old, new)
    yield from _changed_size(old, new, limits)
    yield from _changed_shares(old, new, limits)


def _changed_classes(old: DataProfile, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    for what, here, there in (("new", new, old), ("vanished", old, new)):
        for name in here.class_names:
            if name not in there.class_names:
                count = here.class_counts[name]
                verb = f"is new, with {count:,} examples" if what == "new" else f"is gone; it had {count:,} examples"
                yield Finding(
                    f"{what} class: {name}",
                    limits.changed_classes,
                    f"Class {name!r} {verb}: a model of other classes is another model. Correct the data, or train and "
                    "promote such a model by hand first.",
                    {"count": count},
                )


def _changed_shape(old: DataProfile, new: DataProfile) -> Iterator[Finding]:
    """Another kind of data, other image sizes, channels or columns; a longer text or series is no change."""
    if old.kind != new.kind:
        yield Finding(
            "kind of data",
            STOPS,
            f"The data was of kind {old.kind} and is of kind {new.kind} now: the champion cannot answer it. Import "
            "data of the old kind, or give the other data a project of its own.",
        )
    elif new.kind == IMAGE and old.shape != new.shape:
        before, after = (" x ".join(map(str, shape)) for shape in (old.shape, new.shape))
        yield Finding(
            "image shape",
            STOPS,
            f"Images were {before} and are {after} now: the champion cannot answer them. Import them in the old size, "
            "or train and promote a model of the new one by hand first.",
        )
    elif new.kind in (SERIES, TABLE) and (old.shape[-1], old.columns) != (new.shape[-1], new.columns):
        what = "channels" if new.kind == SERIES else "columns"
        yield Finding(
            what,
            STOPS,
            f"There are other {what} than before ({_changed_columns(old, new)}): the champion cannot answer them. "
            f"Import the old {what}, or train and promote a model of the new ones by hand first.",
            {"old": old.shape[-1], "new": new.shape[-1]},
        )


def _changed_columns(old: DataProfile, new: DataProfile) -> str:
    """Say which columns or channels are new and gone, by name where they have names."""
    parts = []
    for what, here, there in (("new", new, old), ("gone", old, new)):
        names = [name for name in here.columns if name not in there.columns]
        if names and there.columns:
            more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
            parts.append(f"{what}: {', '.join(map(repr, names[:_NUM_NAMED]))}{more}")
    if parts:
        return "; ".join(parts)
    if old.shape[-1] == new.shape[-1] and sorted(old.columns) == sorted(new.columns):
        return "the same ones in another order"
    return f"{old.shape[-1]} then, {new.shape[-1]} now"


def _changed_size(old: DataProfile, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    if new.num_examples < limits.min_size_ratio * old.num_examples:
        yield Finding(
            "fewer examples",
            STOPS,
            f"There are {new.num_examples:,} examples, there were {old.num_examples:,}: less than "
            f"{limits.min_size_ratio:.0%}. Look whether the import was cut short.",
            {"old": old.num_examples, "new": new.num_examples},
        )


def _changed_shares(old: DataProfile, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    """Classes whose share grew or shrank by more than a factor, and not by chance."""
    shared = [name for name in old.class_names if name in new.class_names]
    sizes = [sum(profile.class_counts[name] for name in shared) for profile in (old, new)]
    for name in shared:
        counts = [profile.class_counts[name] for profile in (old, new)]
        before, after = counts[0] / sizes[0], counts[1] / sizes[1]
        if max(before / after, after / before) < limits.max_class_ratio:
            continue
        p = float(stats.fisher_exact([counts, [sizes[0] - counts[0], sizes[1] - counts[1]]]).pvalue)
        if p <= _CHANCE / len(shared):
            yield Finding(
                f"class share: {name}",
                WARNS,
                f"Class {name!r} was {before:.1%} of the examples and is {after:.1%} now. Look whether it is still "
                "collected as before.",
                {"old": before, "new": after, "p": p},
            )


def _missing(old: DataProfile | None, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    """Columns, files and images that hold nothing, beyond what the old data had."""
    columns = {**(dict.fromkeys(old.missing_shares, 1.0) if old and new.missing_shares else {}), **new.missing_shares}
    before = {} if old is None else {**old.missing_shares}
    cases = [
        (f"missing: {name}", f"of the values of column {name!r}", "are missing", before.get(name, 0.0), share)
        for name, share in columns.items()
    ]
    cases += [
        ("unreadable", "of the files", "cannot be decoded", old.unreadable_share if old else 0.0, new.unreadable_share),
        ("blank", *_BLANK[new.kind], old.blank_share if old else 0.0, new.blank_share),
    ]
    for name, of_what, verb, share_before, share in cases:
        if share > share_before + limits.max_missing:
            yield Finding(
                name,
                WARNS,
                f"{share:.1%} {of_what} {verb}{f', it was {share_before:.1%}' if old else ''}. Look at where they come "
                "from.",
                {"old": share_before, "new": share},
            )


def _copies(old: DataProfile | None, new: DataProfile, limits: QualityLimits) -> Iterator[Finding]:
    before, share = old.duplicate_share if old else 0.0, new.duplicate_share
    if share > before + limits.max_duplicate_rise:
        yield Finding(
            "duplicates",
            WARNS,
            f"{share:.1%} of the examples repeat an earlier one{f', it was {before:.1%}' if old else ''}. Look whether "
            "something was imported twice.",
            {"old": before, "new": share},
        )
    if new.num_conflicting:
        share = new.num_conflicting / new.num_examples
        yield Finding(
            "contradictory labels",
            STOPS if share > limits.max_conflicting else WARNS,
            f"{new.num_conflicting:,} examples ({share:.2%}) are copies of an earlier one and carry another label: one "
            "of the two is wrong. Correct the labels.",
            {"count": new.num_conflicting, "share": share},
        )


def _shared(dataset: Dataset, splits: SplitIndices) -> Iterator[Finding]:
    """Contents and groups that two splits share."""
    hashes, groups = np.asarray(dataset.content_hash), np.asarray(dataset.groups)
    for part, whole in (("test", "train"), ("test", "val"), ("val", "train")):
        rows, others = getattr(splits, part), getattr(splits, whole)
        if count := int(np.isin(hashes[rows], hashes[others]).sum()):
            yield Finding(
                f"{part} in {whole}",
                STOPS,
                f"{count:,} of {len(rows):,} {part} examples are in {whole}, too, {EXACTLY[dataset.ref.kind]}: what is "
                "measured on them is memory. Make the splits anew.",
                {"count": count, "share": count / len(rows)},
            )
        grouped = groups[rows][groups[rows] >= 0]
        if count := int(np.isin(np.unique(grouped), groups[others]).sum()):
            yield Finding(
                f"groups across {part} and {whole}",
                STOPS,
                f"{count:,} groups have examples in {part} and in {whole}: what belongs together must stay together. "
                "Make the splits anew.",
                {"count": count},
            )


def _label_copies(dataset: Dataset, limits: QualityLimits) -> Iterator[Finding]:
    info = find_shards(dataset)
    if info is None:
        return
    labels = np.asarray(dataset.labels)
    majority = float(np.bincount(labels).max() / len(labels))
    for name in _extra_columns(info):
        codes = column_codes(info, name)
        accuracy, back = voted_accuracy(codes, labels), voted_accuracy(labels, codes)
        if accuracy - majority < limits.min_label_copy * (1 - majority):
            continue
        # A group often has one label, a patient one diagnosis; only a group for each class is a copy of the label.
        if name == "group" and back < limits.min_label_copy:
            continue
        is_input = dataset.ref.kind == TABLE and name in dataset.ref.columns
        advice = "leave it out of the import" if is_input else "keep it from every model"
        yield Finding(
            f"label copy: {name}",
            limits.label_copy,
            f"Column {name!r} gives the label away: the other examples with its value name the class of {accuracy:.1%} "
            f"of the examples, the largest class alone {majority:.1%}. If it will not be known of new examples, "
            f"{advice}; if it marks what belongs together, call it group.",
            {"accuracy": accuracy, "majority": majority, "column_from_label": back},
        )


def voted_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose label is what most of the other examples with the same value have.

    An example has no vote on itself and a tie is a miss, so a value that occurs once, such as an id, predicts
    nothing.

    Args:
        values: int64 ``[example]``.
        labels: int64 ``[example]``.
    """
    _, values = np.unique(values, return_inverse=True)
    kinds, labels = np.unique(labels, return_inverse=True)
    cells, cell_of, counts = np.unique(values * len(kinds) + labels, return_inverse=True, return_counts=True)
    value_of = cells // len(kinds)
    order = np.lexsort((-counts, value_of))
    starts = np.flatnonzero(np.r_[True, np.diff(value_of) != 0])
    largest = np.maximum.reduceat(counts, starts)
    second = np.zeros(len(starts), np.int64)
    has_second = np.diff(np.r_[starts, len(cells)]) > 1
    second[has_second] = counts[order][starts[has_second] + 1]
    of_value = np.cumsum(np.r_[False, np.diff(value_of) != 0])
    # The best of the other labels: the second where this label leads, also when it leads with another.
    rival = np.where(counts == largest[of_value], second[of_value], largest[of_value])
    return float((counts - 1 > rival)[cell_of].mean())


def _extra_columns(info: ShardInfo) -> list[str]:
    """Columns of text, numbers or yes and no that are not the layout's own; group among them."""
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    is_simple = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    names: dict[str, None] = {}
    for path in info.files:
        for field in pq.read_schema(path):
            kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
            if field.name not in _KNOWN_COLUMNS and any(test(kind) for test in is_simple):
                names[field.name] = None
    return list(names)


def column_codes(info: ShardInfo, name: str) -> np.ndarray:
    """Number the values of a column of the shards, equal for equal values; what is missing is a value of its own.

    Fractional numbers with many values are cut into 50 parts of equal size.

    Args:
        info: The shards.
        name: Column of text, numbers or yes and no; a shard without it counts as missing.

    Returns:
        int64 ``[example]``, 0 where the value is missing.

    Raises:
        DataError: A shard cannot be read.
    """
    numbers: dict[object, int] = {}
    codes = np.concatenate([_shard_codes(path, name, numbers) for path in info.files])
    is_fractional = all(isinstance(value, float) for value in numbers)
    return _cut(codes, numbers) if is_fractional and len(numbers) > _MAX_DISTINCT else codes


def _shard_codes(path: Path, name: str, numbers: dict[object, int]) -> np.ndarray:
    """Number the values of one shard's column; `numbers` grows by those that are new."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    try:
        with pq.ParquetFile(path) as file:
            if name not in file.schema_arrow.names:
                return np.zeros(file.metadata.num_rows, np.int64)
            column = file.read([name], use_threads=False).column(name).combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Put the pinned data back: assay data pull.") from error
    plain = column.dictionary_decode() if kinds.is_dictionary(column.type) else column
    encoded = plain.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    known = np.array([0, *(numbers.setdefault(value, len(numbers) + 1) for value in values)])
    places = np.asarray(encoded.indices.fill_null(-1), np.int64) + 1
    return np.where(is_missing(plain), 0, known[places])


def _cut(codes: np.ndarray, numbers: dict[object, int]) -> np.ndarray:
    """Replace numbered fractional values by the fiftieth that they are in."""
    values = np.array([np.nan, *numbers], np.float64)[codes]
    edges = np.nanquantile(values[codes > 0], np.arange(1, _MAX_DISTINCT) / _MAX_DISTINCT)
    return np.where(codes > 0, 1 + np.searchsorted(edges, values, side="right"), 0)
