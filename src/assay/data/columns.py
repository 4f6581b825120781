"""Which column of a table is what: label, text, split, group, features.

What is inferred is said in a note; a doubt is an error that names the option to give.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from assay.data.column_facts import ColumnFacts, rows_of
from assay.data.label_values import name_classes
from assay.data.sources import SourceOptions
from assay.errors import DataError, SourceError
from assay.records import TABLE, TEXT

MAX_LEVELS = 20
"""Different values of a text column that become a feature each."""

SPLIT_VALUES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

_LABEL_NAMES = {
    *("label", "labels", "target", "class", "classname", "y", "category", "sentiment", "outcome", "species", "variety"),
    *("diagnosis", "intent"),
}
_TEXT_NAMES = {
    *(
        "text",
        "texts",
        "sentence",
        "review",
        "reviewtext",
        "comment",
        "message",
        "content",
        "body",
        "document",
        "tweet",
    ),
    *("utterance", "phrase", "snippet", "headline"),
}
_SPLIT_NAMES = {"split", "subset", "partition", "datasplit", "set"}
_GROUP_NAMES = {"group", "subject", "user", "patient", "speaker", "person", "participant"}
_GROUP_NAMES |= {f"{name}s" for name in _GROUP_NAMES} | {f"{name}id" for name in _GROUP_NAMES}
_ID_NAMES = {"id", "index", "idx", "rowid", "row", "rownumber", "unnamed0", "uuid", "guid", "recordid", "sampleid"}
_RESERVED = ("label", "split", "group", "image", "text", "series")
_NUM_LISTED = 5
_LONG_TEXT = 40
_MIN_ROWS_OF_IDS = 20
_MIN_GROUPS = 3


@dataclass(frozen=True)
class Feature:
    """A column that features are made of.

    Attributes:
        column: Its name in the file.
        names: Names of its features: one for a number, one for each level otherwise.
        levels: What each feature stands for; empty for a number.
        decimal_comma: Whether its numbers have a comma before the decimals.
    """

    column: str
    names: tuple[str, ...]
    levels: tuple[str, ...] = ()
    decimal_comma: bool = False


@dataclass(frozen=True)
class Plan:
    """What each column of a table is.

    Attributes:
        kind: ``text`` or ``table``.
        label: Column with the classes.
        class_of: Index into `class_names` of each value of it.
        class_names: Class names in label order.
        text: Column with the texts, for kind text.
        features: Columns of features in the file's order, for kind table.
        split: Column that says which split, if any.
        group: Column that says which group, if any.
        notes: Sentences about what was inferred and left out.
    """

    kind: str
    label: str
    class_of: dict[str, int]
    class_names: tuple[str, ...]
    text: str | None
    features: tuple[Feature, ...]
    split: str | None
    group: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all features."""
        return tuple(name for feature in self.features for name in feature.names)

    @property
    def used(self) -> tuple[str, ...]:
        """Columns of the file that are read."""
        special = (self.label, self.text, self.split, self.group)
        return (*(name for name in special if name), *(feature.column for feature in self.features))


def plan_columns(
    path: Path, facts: dict[str, ColumnFacts], nested: tuple[str, ...], options: SourceOptions, skip_bad: bool
) -> Plan:
    """Say what each column is.

    Args:
        path: The file, for errors.
        facts: What a pass over it found, by column, in the file's order.
        nested: Columns that hold lists, objects or bytes.
        options: What a person says.
        skip_bad: Whether rows with a bad cell are to be left out, not refused.

    Raises:
        SourceError: It is unclear which column is what, or there is only one class.
        DataError: Cells are not what their column must hold.
    """
    _check_options(path, facts, options)
    free = {name: fact for name, fact in facts.items() if name not in options.drop_columns and name not in nested}
    split = options.split_column or _find_split(path, free, options)
    group = options.group_column or _find_group(path, free, options)
    rest = {name: fact for name, fact in free.items() if name not in (split, group)}
    label = options.label_column or _find_label(path, rest, options)
    class_of, class_names, notes = name_classes(path, facts[label], skip_bad)
    del rest[label]
    if split:
        _check_split(path, facts[split], options, skip_bad)
    text = options.text_column or _find_text(rest, options)
    plan = Plan(TEXT if text else TABLE, label, class_of, class_names, text, (), split, group, notes)
    _say_roles(plan, options)
    if text:
        _check_text(path, facts[text], skip_bad)
        left_out = {name: "not the text" for name in (*rest, *nested) if name != text}
        _say_left_out(plan, left_out | dict.fromkeys(options.drop_columns, "as told"))
        return plan
    left_out = dict.fromkeys(nested, "lists, objects or bytes") | dict.fromkeys(options.drop_columns, "as told")
    features = _find_features(path, rest, options, left_out, skip_bad)
    plan = Plan(TABLE, label, class_of, class_names, None, features, split, group, notes)
    _say_features(plan, facts)
    _say_left_out(plan, left_out)
    _check_features(path, plan, options, left_out)
    return plan


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _check_options(path: Path, facts: dict[str, ColumnFacts], options: SourceOptions) -> None:
    roles = {name: getattr(options, name) for name in ("label_column", "text_column", "split_column", "group_column")}
    named = [(option, column) for option, column in roles.items() if column]
    named += [("keep_columns", column) for column in options.keep_columns]
    named += [("drop_columns", column) for column in options.drop_columns]
    for option, column in named:
        if column not in facts:
            near = get_close_matches(column, facts, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {_listed(list(facts))}."
            raise SourceError(f"{options.written(option, column)}: {path} has no such column. {hint}")
    for column, count in Counter(column for option, column in named if option != "keep_columns").items():
        if count > 1:
            given = [options.written(*one) for one in named if one[1] == column and one[0] != "keep_columns"]
            raise SourceError(f"{' and '.join(given)}: both name {column!r}. Name a column once.")


def _find_split(path: Path, facts: dict[str, ColumnFacts], options: SourceOptions) -> str | None:
    found = [
        name
        for name, fact in facts.items()
        if _plain(name) in _SPLIT_NAMES
        and name not in (options.label_column, options.text_column, options.group_column, *options.keep_columns)
        and (_plain(name) == "split" or (fact.levels and all(level.lower() in SPLIT_VALUES for level in fact.levels)))
    ]
    if len(found) > 1:
        raise SourceError(
            f"{path}: columns {_listed(found)} all look like splits. Say which, e.g. "
            f"{options.written('split_column', found[0])}."
        )
    return found[0] if found else None


def _check_split(path: Path, fact: ColumnFacts, options: SourceOptions, skip_bad: bool) -> None:
    values = fact.values if fact.values is not None else Counter({"more than 1,000 different values": 1})
    unknown = sorted(value for value in values if value.lower() not in SPLIT_VALUES and value)
    if unknown and not skip_bad:
        raise DataError(
            f"{path}, column {fact.name!r}: {_listed(unknown)} is no split. Write train, val or test; leave the column "
            f"out ({options.written('drop_columns', fact.name)}), or keep it as a feature "
            f"({options.written('keep_columns', fact.name)})."
        )
    if not any(SPLIT_VALUES.get(value.lower()) == "train" for value in values):
        raise SourceError(f"{path}, column {fact.name!r}: no row is of split train. Add some, or drop the column.")


def _find_group(path: Path, facts: dict[str, ColumnFacts], options: SourceOptions) -> str | None:
    taken = (options.label_column, options.text_column, options.split_column, *options.keep_columns)
    found = [name for name in facts if _plain(name) in _GROUP_NAMES and name not in taken]
    if len(found) > 1:
        raise SourceError(
            f"{path}: columns {_listed(found)} all look like groups. Say which, e.g. "
            f"{options.written('group_column', found[0])}; keep the others as features "
            f"({options.written('keep_columns', found[1])}), or leave them out "
            f"({options.written('drop_columns', found[1])})."
        )
    if not found:
        return None
    levels = facts[found[0]].levels
    if levels is not None and len(levels) < _MIN_GROUPS:
        raise SourceError(
            f"{path}: column {found[0]!r} is named like a group and has only {len(levels)} different values, too few "
            f"to divide by. Keep it as a feature ({options.written('keep_columns', found[0])}) or leave it out "
            f"({options.written('drop_columns', found[0])})."
        )
    return found[0]


def _find_label(path: Path, facts: dict[str, ColumnFacts], options: SourceOptions) -> str:
    facts = {name: fact for name, fact in facts.items() if name != options.text_column}
    named = [name for name in facts if _plain(name) in _LABEL_NAMES]
    if len(named) == 1:
        return named[0]
    few = [
        name
        for name, fact in facts.items()
        if fact.levels
        and 2 <= len(fact.levels) <= MAX_LEVELS
        and fact.is_whole
        and 2 * len(fact.levels) <= fact.num_rows
    ]
    if not named and len(few) == 1 and not facts[few[0]].has_decimal_commas:
        return few[0]
    candidates = named or few or list(facts)
    why = (
        "several could be"
        if named or few
        else "no column is named like a label or has few different values, so none is"
    )
    raise SourceError(
        f"{path}: {why} the label: {_listed(candidates)}. Say which, e.g. "
        f"{options.written('label_column', candidates[-1] if candidates else 'NAME')}."
    )


def _find_text(facts: dict[str, ColumnFacts], options: SourceOptions) -> str | None:
    """The column named like a text, or the longest free text; short texts only where there is nothing else."""
    texts = {
        name: fact
        for name, fact in facts.items()
        if fact.num_there and not fact.is_numeric and not fact.is_dates and name not in options.keep_columns
    }
    named = [name for name in texts if _plain(name) in _TEXT_NAMES]
    many = [name for name, fact in texts.items() if fact.levels is None or 2 * len(fact.levels) > fact.num_there]
    long = [
        name for name in many if texts[name].mean_chars >= _LONG_TEXT and texts[name].num_spaces > texts[name].num_there
    ]
    has_features = any(fact.is_numeric or (fact.levels and name not in many) for name, fact in facts.items())
    candidates = named or long or ([] if has_features else many)
    return max(candidates, key=lambda name: texts[name].mean_chars) if candidates else None


def _check_text(path: Path, fact: ColumnFacts, skip_bad: bool) -> None:
    if fact.num_empty and not skip_bad:
        lines = rows_of(fact, [str(number) for number in fact.empty_at], fact.num_empty)
        raise DataError(
            f"{path}, column {fact.name!r}: {fact.num_empty} of {fact.num_rows} texts are empty ({lines}). Add them, "
            "or leave such rows out with --skip-bad."
        )


def _find_features(
    path: Path, facts: dict[str, ColumnFacts], options: SourceOptions, left_out: dict[str, str], skip_bad: bool
) -> tuple[Feature, ...]:
    """Make features of columns; what is left out is added to `left_out` with the reason."""
    features = []
    for name, fact in facts.items():
        kept = name in options.keep_columns
        levels = fact.levels
        stored = f"{name}_" if name in _RESERVED else name
        if fact.num_there == 0:
            left_out[name] = "empty"
        elif fact.num_missing == 0 and levels is not None and len(levels) == 1:
            left_out[name] = "constant"
        elif not kept and (_plain(name) in _ID_NAMES or (fact.is_consecutive and fact.num_rows >= _MIN_ROWS_OF_IDS)):
            left_out[name] = "row ids"
        elif fact.is_numeric:
            _check_numbers(path, fact, options, skip_bad)
            features.append(Feature(name, (stored,), decimal_comma=fact.has_decimal_commas))
        elif fact.is_dates:
            left_out[name] = "dates"
        elif levels is not None and len(levels) <= MAX_LEVELS:
            names = tuple(f"{name}={unicodedata.normalize('NFC', level)}" for level in levels)
            features.append(Feature(name, names, levels))
        else:
            left_out[name] = f"text with more than {MAX_LEVELS} different values, {_example_at(fact)}"
    return tuple(features)


def _example_at(fact: ColumnFacts) -> str:
    line, value = fact.odd_at[0] if fact.odd_at else (0, "")
    what = f"no number in {fact.num_odd} of {fact.num_there} cells, first" if fact.num_numbers else "e.g."
    return f"{what} {value[:30]!r} in {fact.unit} {line}"


def _check_numbers(path: Path, fact: ColumnFacts, options: SourceOptions, skip_bad: bool) -> None:
    left_out = options.written("drop_columns", fact.name)
    if fact.has_thousands:
        line, value = fact.odd_at[0]
        raise DataError(
            f"{path}, {fact.unit} {line}, column {fact.name!r}: the comma in {value!r} may divide thousands or stand "
            f"before decimals. Write such numbers without comma, or leave the column out ({left_out})."
        )
    if skip_bad:
        return
    odd = [] if fact.has_decimal_commas else fact.odd_at
    for places, count, what in (
        (odd, fact.num_odd, "no number"),
        (fact.infinite_at, fact.num_infinite, "not finite in float32"),
    ):
        if places:
            line, value = places[0]
            raise DataError(
                f"{path}, {fact.unit} {line}, column {fact.name!r}: {value[:40]!r} is {what}, and the column holds "
                f"numbers ({count} such of {fact.num_there} cells). Mend them, leave the column out "
                f"({left_out}), or leave such rows out with --skip-bad."
            )


def _say_roles(plan: Plan, options: SourceOptions) -> None:
    given = {"label": options.label_column, "text": options.text_column}
    given |= {"split": options.split_column, "group": options.group_column}
    found = {role: getattr(plan, role) for role in given if getattr(plan, role) and not given[role]}
    if found:
        plan.notes.insert(0, f"Took {', '.join(f'column {name!r} as {role}' for role, name in found.items())}.")
    if plan.text and not options.text_column:
        dropped = options.written("drop_columns", plan.text)
        plan.notes.append(f"For features of the other columns instead of texts, give {dropped}.")


def _say_features(plan: Plan, facts: dict[str, ColumnFacts]) -> None:
    for feature in plan.features:
        if feature.levels:
            plan.notes.append(
                f"Made {len(feature.levels)} features of {feature.column!r}, one a value: {_listed(feature.levels)}."
            )
        if feature.decimal_comma:
            plan.notes.append(f"Read the comma in {feature.column!r} as decimal comma.")
        if not feature.levels and feature.names != (feature.column,):
            plan.notes.append(
                f"Called the feature {feature.column!r} {feature.names[0]!r}, since shards use that name."
            )
    lacking = {feature.column: facts[feature.column].num_missing for feature in plan.features}
    lacking = {name: count for name, count in lacking.items() if count}
    if lacking:
        shown = [
            f"{count} of {facts[name].num_rows} in {name!r}" for name, count in list(lacking.items())[:_NUM_LISTED]
        ]
        more = f" and more in {len(lacking) - _NUM_LISTED} other columns" if len(lacking) > _NUM_LISTED else ""
        plan.notes.append(f"Missing values: {', '.join(shown)}{more}.")


def _say_left_out(plan: Plan, left_out: dict[str, str]) -> None:
    if left_out:
        shown = [f"{name!r} ({reason})" for name, reason in list(left_out.items())[:20]]
        more = f" and {len(left_out) - 20} more" if len(left_out) > 20 else ""
        plan.notes.append(f"Left out columns: {', '.join(shown)}{more}.")


def _check_features(path: Path, plan: Plan, options: SourceOptions, left_out: dict[str, str]) -> None:
    if not plan.features:
        found = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items()) or "there is only the label"
        raise SourceError(
            f"{path}: no column is left as a feature or text ({found}). Say which holds the text "
            f"({options.written('text_column', 'NAME')}), or keep one ({options.written('keep_columns', 'NAME')})."
        )
    for name, count in Counter(plan.columns).items():
        if count > 1:
            raise SourceError(f"{path}: two features would be named {name!r}. Rename a column.")
