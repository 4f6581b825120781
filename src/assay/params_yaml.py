"""Reading YAML as people write it, and values that are given on the command line."""

import re
from pathlib import Path
from typing import Any

import yaml

from assay.errors import ParamsError

_SHORTHANDS = {"ablate": "ablation.preset"}
"""What people may write instead of a path."""

_KEYED_BY_PATH = ("ablation.factors", "ablation.baseline")
_RECIPES = "ablation.recipes"


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``train.num_epochs=3`` into its dotted path and its YAML value.

    Raises:
        ParamsError: There is no ``=``, no path, or the value is no YAML.
    """
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise ParamsError(f"{text!r} on the command line: an override looks like train.num_epochs=3.")
    path = _SHORTHANDS.get(dotted.strip(), dotted.strip())
    try:
        return path, _load_yaml(raw)
    except yaml.YAMLError as error:
        raise ParamsError(f"{text!r} on the command line: {raw!r} is not a YAML value.") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader that reads 1e-3 as a number and refuses a key given twice."""


def _construct_unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique_mapping)
# YAML 1.1 wants a dot in 1e-3; people do not.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeyLoader)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ParamsError: The file cannot be read, is no YAML or no mapping, or a key is given twice.
    """
    try:
        values = _load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}). Name a params file with --params.") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ParamsError(f"{where}: {problem}. Mend the YAML there.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ParamsError(
            f"{path}: holds a {type(values).__name__}, not sections such as 'train:'. Write 'section:' and "
            "its keys below, indented."
        )
    return values


def path_keys(dotted: str) -> list[str]:
    """Split a dotted path into keys; what an ablation's factor, recipe or baseline is about is one key."""
    for mapping in _KEYED_BY_PATH:
        if dotted.startswith(f"{mapping}."):
            return [*mapping.split("."), dotted.removeprefix(f"{mapping}.")]
    if dotted.startswith(f"{_RECIPES}."):
        name, _, path = dotted.removeprefix(f"{_RECIPES}.").partition(".")
        return [*_RECIPES.split("."), name, *([path] if path else [])]
    return dotted.split(".")


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted path; a new ``kind`` drops the other kind's own keys."""
    *parents, last = path_keys(dotted)
    here = values
    for name in parents:
        if not isinstance(here.get(name), dict):
            here[name] = {}
        here = here[name]
    if last == "kind" and here.get("kind") != value:
        here.clear()
    here[last] = value
