"""Sentences for wrong parameters: what, where, what was found, what to do."""

import difflib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_EXPECTED: dict[str, tuple[str, str]] = {
    "finite_number": ("must be a finite number", "Give a finite number."),
    "int_parsing": ("must be a whole number", "Give a whole number."),
    "int_type": ("must be a whole number", "Give a whole number."),
    "int_from_float": ("must be a whole number", "Give a whole number."),
    "float_parsing": ("must be a number", "Give a number."),
    "float_type": ("must be a number", "Give a number."),
    "bool_parsing": ("must be true or false", "Give true or false."),
    "bool_type": ("must be true or false", "Give true or false."),
    "string_type": ("must be text", "Put it in quotes."),
    "literal_error": ("must be {expected}", "Choose one of them."),
    "too_short": ("must have at least {min_length} entries, not {actual_length}", "Add to it."),
    "too_long": ("must have at most {max_length} entries, not {actual_length}", "Shorten it."),
    "tuple_type": ("must be a list", "Write it as [a, b]."),
    "string_too_short": ("must not be empty", "Give it a name."),
    "string_too_long": ("must have at most {max_length} characters", "Shorten it."),
    "string_pattern_mismatch": ("may hold letters, digits, spaces, '.', '_' and '-' only", "Rename it."),
    "model_type": ("must be a section with keys of its own", "Write its keys below it, indented."),
    "model_attributes_type": ("must be a section with keys of its own", "Write its keys below it, indented."),
    "dict_type": ("must be a section with keys of its own", "Write its keys below it, indented."),
}


class _Place(NamedTuple):
    """Where in the schema an error is.

    Attributes:
        names: Keys from the root, as a person writes them.
        section: The section that holds the last key, where the way there is known.
        siblings: Other kinds of that section.
        field: The field of the last key, where there is one.
    """

    names: list[str]
    section: type[BaseModel] | None
    siblings: list[type[BaseModel]]
    field: FieldInfo | None

    @property
    def dotted(self) -> str:
        return ".".join(self.names)


def explain(problem: ErrorDetails, root: type[BaseModel], path: Path, origin: Mapping[str, str]) -> str:
    """Turn one of pydantic's errors into a sentence for people.

    Args:
        problem: One of ``ValidationError.errors()``.
        root: The model that was validated.
        path: The params file, for the places that `origin` does not name.
        origin: Dotted path of an override -> where it was given.

    Returns:
        What is wrong, where, what was found and what to do, e.g. ``train.dropout_prob=1.4 in params.yaml: must be in
        [0, 0.999]. Lower it.``
    """
    place = _locate(problem["loc"], root)
    where = next((text for key, text in origin.items() if _overlaps(key, place.dotted)), f"in {path.name}")
    if problem["type"] == "extra_forbidden":
        return f"{place.dotted} {where}: there is no such parameter. {_nearest(place, root)}"
    found, context = problem["input"], problem.get("ctx", {})
    if problem["type"].startswith("union_tag"):
        kind = found.get("kind") if isinstance(found, dict) else found
        tags = context.get("expected_tags", "")
        return f"{place.dotted}.kind={_shown(kind)} {where}: must be one of {tags}. Choose one of them."
    if problem["type"] in ("less_than", "less_than_equal", "greater_than", "greater_than_equal"):
        advice = "Lower it." if problem["type"].startswith("less") else "Raise it."
        return f"{place.dotted}={_shown(found)} {where}: must be {_range(place.field, context)}. {advice}"
    if problem["type"] == "value_error":
        return f"{place.dotted}={_shown(found)} {where}: {context.get('error', problem['msg'])}. Correct it."
    template, advice = _EXPECTED.get(problem["type"], (problem["msg"].lower(), "Correct it."))
    return f"{place.dotted}={_shown(found)} {where}: {template.format(**context)}. {advice}"


def _overlaps(key: str, dotted: str) -> bool:
    return f"{dotted}.".startswith(f"{key}.") or f"{key}.".startswith(f"{dotted}.")


def _locate(loc: tuple[int | str, ...], root: type[BaseModel]) -> _Place:
    """Follow an error's location through the schema, dropping the union tags that pydantic puts into it."""
    names: list[str] = []
    branches: list[type[BaseModel]] = [root]
    section: type[BaseModel] | None = root
    siblings: list[type[BaseModel]] = []
    field: FieldInfo | None = None
    for part in loc:
        tagged = next((branch for branch in branches if len(branches) > 1 and _kind(branch) == part), None)
        if tagged is not None:
            siblings, branches = [branch for branch in branches if branch is not tagged], [tagged]
            continue
        names.append(str(part))
        if isinstance(part, int):
            continue
        section = branches[0] if branches else None
        field = section.model_fields.get(part) if section else None
        if section and part in section.model_fields:
            siblings = []
        branches = list(_sections(field.annotation)) if field else []
    return _Place(names, section, siblings, field)


def _nearest(place: _Place, root: type[BaseModel]) -> str:
    """Say which parameter was probably meant."""
    name, parents = place.names[-1], place.names[:-1]
    other = next((branch for branch in place.siblings if name in branch.model_fields), None)
    known = [key for key in place.section.model_fields] if place.section else []
    if other is not None and place.section is not None:
        return f"It belongs to kind {_kind(other)}; kind {_kind(place.section)} takes {', '.join(known)}."
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"Did you mean {'.'.join([*parents, near[0]])}?"
    leaves = {dotted.rpartition(".")[2]: dotted for dotted in _leaves(root)}
    if near := difflib.get_close_matches(name, leaves, n=1, cutoff=0.7):
        return f"Did you mean {leaves[near[0]]}?"
    return f"Known here: {', '.join(known)}."


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = list(_sections(field.annotation))
        for branch in inner:
            yield from _leaves(branch, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for arg in get_args(annotation):
            yield from _sections(arg)


def _kind(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("kind")
    return str(field.default) if field else None


def _range(field: FieldInfo | None, context: Mapping[str, Any]) -> str:
    """The allowed range in the form [low, high), from the field's own limits."""
    limits = {
        name: getattr(item, name) for item in _limits(field) for name in ("ge", "gt", "le", "lt") if hasattr(item, name)
    }
    if not limits or not set(context) & set(limits):
        limits = dict(context)
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}" if "gt" in limits else ""
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})" if "lt" in limits else ""
    if low and high:
        return f"in {low}, {high}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {value}" for name, value in limits.items() if name in words)


def _limits(field: FieldInfo | None) -> Iterator[Any]:
    """A field's own limits, or those of a list's entries."""
    if field is None:
        return
    yield from field.metadata
    for arg in get_args(field.annotation):
        for item in getattr(arg, "__metadata__", ()):
            yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
