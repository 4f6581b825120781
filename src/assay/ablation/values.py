"""Values of params by their paths: read, changed, validated, and written as people and files have them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from assay.errors import ParamsError
from assay.params import RunParams
from assay.params_messages import explain
from assay.params_yaml import assign

ABLATED_SECTIONS = ("model", "train", "device")
"""Sections whose params can be factors: the data and its test split stay the same for all."""

FIXED = {
    "train.seed": "seeds are what every variant is repeated with; ablation.num_seeds says how many",
    "train.checkpoint_every_seconds": "it changes no result",
    "device.kind": "all trials compute on the same kind of device",
    "device.num_threads": "all trials compute with the same number of threads",
}
"""Params in which no two trials differ, and why."""
Values = dict[str, Any]
"""All params of a run, as JSON has them."""


def with_changes(values: Values, changes: Mapping[str, JsonValue], where: str) -> Values:
    """Apply changes and validate; the result is what the params make of it.

    Raises:
        ParamsError: A path is unknown or cannot be a factor, or a value is not valid there.
    """
    changed: Values = json.loads(json.dumps(values))
    # A section before what is in it, and a kind before the rest: each of them drops what was there.
    for path, value in sorted(changes.items(), key=lambda change: change[0].removesuffix(".kind")):
        _require_free(path, where)
        assign(changed, path, value)
    origin = dict.fromkeys(changes, f"in {where}")
    return validated(changed, origin).model_dump(mode="json")


def _require_free(path: str, where: str) -> None:
    section = path.partition(".")[0]
    if section not in ABLATED_SECTIONS or "." not in path:
        raise ParamsError(
            f"{where}.{path}: is no params path that trials can differ in; one starts with "
            f"{', '.join(f'{name}.' for name in ABLATED_SECTIONS)} e.g. train.dropout_prob."
        )
    for fixed, reason in FIXED.items():
        if path == fixed:
            raise ParamsError(f"{where}.{path}: cannot differ between trials: {reason}. Leave it out.")


def validated(values: Values, origin: Mapping[str, str]) -> RunParams:
    """Return values as params.

    Args:
        values: All params of a run.
        origin: Path -> where its value came from, for the message.

    Raises:
        ParamsError: A value is not valid; one sentence for each.
    """
    try:
        return RunParams.model_validate(values)
    except ValidationError as error:
        sentences = [explain(problem, RunParams, Path("params.yaml"), origin) for problem in error.errors()]
        raise ParamsError("\n".join(sentences)) from error


def there(base: Values, path: str) -> str:
    """The path itself, or the section above it that is null in the baseline and so has no such key."""
    here: Any = base
    names = path.split(".")
    for number, name in enumerate(names[:-1], 1):
        here = here.get(name)
        if not isinstance(here, Mapping):
            return ".".join(names[:number])
    return path


def value_at(values: Values, path: str) -> Any:
    """Return the value at a path; None where there is no such path."""
    here: Any = values
    for name in path.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def differences(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the paths at which two trees of values differ, with both values; of two kinds of a thing, the thing's.

    Args:
        one: Values.
        other: Values.
        path: Where in the params both are.
    """
    if one == other:
        return {}
    trees = isinstance(one, Mapping) and isinstance(other, Mapping)
    if not trees or one.get("kind") != other.get("kind"):
        return {path: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*one, *other)):
        found |= differences(one.get(name), other.get(name), f"{path}.{name}" if path else name)
    return found


def overlap(path: str, other: str) -> bool:
    """Say whether setting one changes what the other is: one is in the other, or a kind to which the other belongs."""
    one, two = f"{path.removesuffix('.kind')}.", f"{other.removesuffix('.kind')}."
    return one.startswith(two) or two.startswith(one)


def as_text(value: Any) -> str:
    """Return the JSON text of a value, the same for equal ones."""
    return json.dumps(value, sort_keys=True)


def shown(value: Any) -> str:
    """Write a level as people read it: ``0.5``, ``[16, 32]``, ``sgd(learning_rate=0.1)``, ``null``."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key}={shown(item)}" for key, item in value.items() if key != "kind")
        kind = str(value.get("kind", ""))
        return f"{kind}({rest})" if rest else kind
    return value if isinstance(value, str) else json.dumps(value)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return what each path is called: its last part, or all of it where two would be called the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}
