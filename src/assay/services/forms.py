"""The form of a deployment: every parameter typed, with its description and limits, nested as in params.yaml."""

from typing import Any

from assay.params import RunParams, Section

FORMS: dict[str, tuple[str, ...]] = {
    "pipeline": ("data", "split", "model", "train", "evaluation", "device", "registry", "ablation", "gate"),
    "train": ("data", "split", "model", "train", "device", "registry"),
    "ablate": ("data", "split", "model", "train", "device", "registry", "ablation"),
    "promote": ("data", "split", "evaluation", "device", "registry", "gate"),
    "nightly": (),
}
"""Flow -> the sections that its form shows."""

FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "promote": {
        "version": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
            "default": None,
            "description": "Which version; the latest by default.",
        },
        "forced_reason": {
            "type": "string",
            "default": "",
            "description": "Why it is to be champion whatever the gate finds; empty leaves it to the gate.",
        },
    }
}
"""Flow -> what its form asks before the sections, as JSON schema."""


def form_schema(flow: str) -> dict[str, Any]:
    """Return the parameter schema of a flow as Prefect's form draws it.

    It is made from the params themselves, so that deploying imports no flow and with it no torch.

    Args:
        flow: Name of the flow.

    Returns:
        An OpenAPI schema whose references start with ``#/definitions/``.
    """
    schema = RunParams.model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    asked = FIELDS.get(flow, {}) | {name: _as_tabs(schema["properties"][name]) for name in FORMS[flow]}
    properties = {
        name: field | {"position": position, "title": name} for position, (name, field) in enumerate(asked.items())
    }
    used = _used(properties, definitions)
    return {
        "title": "Parameters",
        "type": "object",
        "properties": properties,
        "required": [],
        "additionalProperties": False,
        "definitions": {name: _named_as_in_the_file(definition) for name, definition in used.items()},
    }


def sections_of(flow: str, params: RunParams) -> dict[str, Section]:
    """Return the sections that a flow takes, by name.

    Args:
        flow: Name of the flow.
        params: The params of a run.
    """
    return {name: section for name, section in params.sections().items() if name in FORMS[flow]}


def form_values(flow: str, params: RunParams) -> dict[str, Any]:
    """Return what a form is filled with before anybody changes it.

    Args:
        flow: Name of the flow.
        params: The project's params.
    """
    values = params.model_dump(mode="json")
    own = {name: field["default"] for name, field in FIELDS.get(flow, {}).items()}
    return own | {name: values[name] for name in FORMS[flow]}


def _named_as_in_the_file(definition: dict[str, Any]) -> dict[str, Any]:
    """Give fields the names, and the branches of a choice the kinds, that people know from params.yaml."""
    if "properties" not in definition:  # any JSON value
        return definition
    fields = {name: _as_tabs(field) | {"title": name} for name, field in definition["properties"].items()}
    kind = fields.get("kind", {}).get("const")
    return definition | {"properties": fields} | ({"title": kind} if kind else {})


def _as_tabs(field: dict[str, Any]) -> dict[str, Any]:
    """Say anyOf for oneOf: Prefect's form draws the first as tabs and the second as a box of JSON."""
    if "oneOf" not in field:
        return field
    rest = {key: value for key, value in field.items() if key not in ("oneOf", "discriminator")}
    return rest | {"anyOf": field["oneOf"]}


def _used(properties: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a schema leads to."""
    used: dict[str, Any] = {}
    waiting = [properties]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in used:
                used[name] = definitions[name]
                waiting.append(definitions[name])
    return dict(sorted(used.items()))


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_references(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value))
    return set()
