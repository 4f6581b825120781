"""Changing single values of ``params.yaml`` the way a careful person does: everything else stays as it is.

The YAML is parsed for where each value stands in the text, and only that stretch of text is replaced. Comments, order,
quotes, indentation and line ends of all other lines therefore stay byte for byte, whatever their layout.
"""

import difflib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from assay.errors import ParamsError
from assay.params import load_params
from assay.params_yaml import assign, path_keys, read_mapping

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*( [\w./-]+)*")
_COMMENT = re.compile(r"([\]}]*)([ \t]{2,})(?=#)")
_MISSING = object()


def edit_params(path: Path, values: Mapping[str, str]) -> tuple[str, str]:
    """Set values in the text of a params file; nothing is written.

    A missing key is added at the end of its section, a missing section at the end of the file. A mapping replaces the
    whole mapping that was there, and a new ``kind`` drops the other kind's keys. What is set to the value that it has
    already stays as it is spelled.

    Args:
        path: The params file.
        values: Dotted path -> value as JSON text, e.g. ``{"train.dropout_prob": "0.5"}``, set in order.

    Returns:
        The file's new text, and a unified diff from the old one, empty where nothing changes.

    Raises:
        ParamsError: The file cannot be read, a value is no JSON or not valid there, or the file is written in a way in
            which it cannot be set without changing something else.
    """
    wanted = read_mapping(path)
    old = path.read_bytes().decode("utf-8")
    text = old
    for dotted, raw in values.items():
        value = _parse(dotted, raw)
        if _same(_value_at(wanted, path_keys(dotted)), value):
            continue
        assign(wanted, dotted, value)
        keys = path_keys(dotted)
        if keys[-1] == "kind" and len(keys) > 1:  # the other kind's keys went with it
            keys = keys[:-1]
            value = _value_at(wanted, keys)
        text = _set(text, keys, value, path.name)
    _check(text, wanted, path.name, values)
    return text, _diff(old, text, path.name)


def _parse(dotted: str, raw: str) -> Any:
    if not all(dotted.split(".")):
        raise ParamsError(f"{dotted!r}: is no params path; one looks like train.dropout_prob.")
    try:
        return json.loads(raw, parse_constant=lambda name: json.loads(f"not {name}"))
    except json.JSONDecodeError as error:
        raise ParamsError(f"{dotted}={raw}: is no JSON value. Write text in double quotes.") from error


def _value_at(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    here: Any = values
    for key in keys:
        if not isinstance(here, Mapping) or key not in here:
            return _MISSING
        here = here[key]
    return here


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, telling 1 from true."""
    return one is not _MISSING and one == other and json.dumps(one, default=str) == json.dumps(other, default=str)


def _check(text: str, wanted: Mapping[str, Any], name: str, values: Mapping[str, str]) -> None:
    """Read the new text as a params file and require that it holds what is wanted, and nothing else."""
    cannot = (
        f"{name}: {', '.join(values)} cannot be set in the way this file is written (anchors, tags, several documents) "
        "without changing something else. Set it by hand."
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, name)
        copy.write_bytes(text.encode("utf-8"))
        try:
            found = read_mapping(copy)
        except ParamsError as error:
            raise ParamsError(cannot) from error
        if found != wanted:
            raise ParamsError(cannot)
        load_params(copy)


def _diff(old: str, new: str, name: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), fromfile=f"a/{name}", tofile=f"b/{name}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _set(text: str, keys: Sequence[str], value: Any, name: str) -> str:
    """Set one path in the text."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):  # an empty file, or comments only
        return _ended(text) + _block(keys, value, 0, _line_end(text))
    for depth, key in enumerate(keys):
        pair = next((pair for pair in node.value if pair[0].value == key), None)
        if pair is None:
            return _insert(text, node, keys[depth:], value)
        key_node, child = pair
        if child.start_mark.index < key_node.end_mark.index:
            raise ParamsError(
                f"{name}:{key_node.start_mark.line + 1}: {'.'.join(keys[: depth + 1])} is an alias of another value. "
                "Write the value out there, then set it."
            )
        if depth == len(keys) - 1:
            return _replace(text, keys, key_node, child, value, name)
        if not isinstance(child, yaml.MappingNode):
            for key_below in reversed(keys[depth + 1 :]):
                value = {key_below: value}
            return _replace(text, keys[: depth + 1], key_node, child, value, name)
        node = child
    raise AssertionError("a path has at least one key")


def _replace(text: str, keys: Sequence[str], key: yaml.Node, old: yaml.Node, value: Any, name: str) -> str:
    """Replace one value; a mapping in block style keeps the lines of the keys that stay."""
    if isinstance(old, yaml.CollectionNode) and not old.flow_style:
        if isinstance(old, yaml.MappingNode) and isinstance(value, dict) and value:
            return _replace_block(text, keys, [pair[0].value for pair in old.value], value, name)
        if isinstance(old, yaml.SequenceNode) and isinstance(value, list) and value:
            indent = _line_end(text) + " " * old.start_mark.column
            return _splice(text, old.start_mark.index, _end(old), indent.join(f"- {_flow(item)}" for item in value))
        colon = text.index(":", key.end_mark.index) + 1
        comment = text[colon : text.index("\n", colon)].rstrip("\r")
        return text[:colon] + f" {_flow(value)}{comment}{_line_end(text)}" + text[_next_line(text, _end(old)) :]
    shown = _flow(value, quote=old.style if isinstance(old, yaml.ScalarNode) else None)
    if isinstance(old, yaml.ScalarNode) and old.style in ("|", ">"):
        shown += _line_end(text)
    if old.start_mark.index == old.end_mark.index:  # "key:" with nothing behind it
        shown = f" {shown}"
    return _splice(text, old.start_mark.index, old.end_mark.index, shown)


def _replace_block(text: str, keys: Sequence[str], old_keys: Sequence[str], value: dict[str, Any], name: str) -> str:
    """Set each key of a mapping in block style, then take out the lines of those that are gone."""
    for key, item in value.items():
        current = _value_at(yaml.safe_load(text), [*keys, key])
        text = text if _same(current, item) else _set(text, [*keys, key], item, name)
    for gone in (key for key in old_keys if key not in value):
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        for key in keys:
            node = next(child for found, child in node.value if found.value == key)
        found, child = next(pair for pair in node.value if pair[0].value == gone)
        start = text.rfind("\n", 0, found.start_mark.index) + 1
        text = text[:start] + text[_next_line(text, _end(child)) :]
    return text


def _insert(text: str, node: yaml.MappingNode, keys: Sequence[str], value: Any) -> str:
    """Add a key at the end of a mapping."""
    if node.flow_style:
        for key in reversed(keys[1:]):
            value = {key: value}
        pair = f"{_flow(keys[0])}: {_flow(value)}"
        if not node.value:
            return _splice(text, node.start_mark.index, node.end_mark.index, f"{{{pair}}}")
        last = _end(node.value[-1][1])
        comma = text[last : node.end_mark.index].find(",")
        place = last if comma < 0 else last + comma + 1
        return _splice(text, place, place, f", {pair}" if comma < 0 else f" {pair}")
    place = _next_line(text, _end(node.value[-1][1]))
    indent = node.value[0][0].start_mark.column
    line_end = _line_end(text)
    is_section = not indent and len(keys) > 1 and f"{line_end}{line_end}" in text
    lines = (line_end if is_section else "") + _block(keys, value, indent, line_end)
    return _ended(text[:place]) + lines + text[place:]


def _splice(text: str, start: int, end: int, new: str) -> str:
    """Replace a stretch of text; a comment behind it stays in its column where there is room."""
    rest = text[end:]
    comment = _COMMENT.match(rest)
    if comment and "\n" not in text[start:end] + new:
        width = max(2, len(comment[2]) + (end - start) - len(new))
        rest = comment[1] + " " * width + rest[comment.end() :]
    return text[:start] + new + rest


def _end(node: yaml.Node) -> int:
    """Where a value's text ends; a block's own mark lies beyond the comments that follow it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _next_line(text: str, place: int) -> int:
    """Start of the next line, or of this one where `place` is its first character."""
    if place and text[place - 1] == "\n":
        return place
    found = text.find("\n", place)
    return len(text) if found < 0 else found + 1


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _ended(text: str) -> str:
    """The text with its last line ended."""
    return text if not text or text.endswith("\n") else text + _line_end(text)


def _block(keys: Sequence[str], value: Any, indent: int, line_end: str) -> str:
    """Write nested keys a line each, and the value behind the last."""
    *parents, last = keys
    lines = [f"{' ' * (indent + 2 * depth)}{_flow(key)}:" for depth, key in enumerate(parents)]
    lines.append(f"{' ' * (indent + 2 * len(parents))}{_flow(last)}: {_flow(value)}")
    return "".join(line + line_end for line in lines)


def _flow(value: Any, quote: str | None = None) -> str:
    """Write a value on one line as people do: ``0.5``, ``1e-05``, ``[16, 32]``, ``{kind: sgd, momentum: 0.9}``."""
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0] != "kind")  # which says what the others are about
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if quote == "'" and "\n" not in value:
        return "'" + value.replace("'", "''") + "'"
    if quote != '"' and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
