"""The form of a deployment takes what the flow takes, and refuses what params.yaml refuses."""

import inspect
import json
from importlib import import_module
from typing import Any

import jsonschema
import pytest

from assay.params import Params, RunParams
from assay.services.forms import FIELDS, FORMS, form_schema, form_values


@pytest.mark.parametrize("flow", FORMS)
def test_the_form_has_the_parameters_of_the_flow(flow: str) -> None:
    function = getattr(import_module(f"flows.{flow}"), flow).fn
    asked = [*FIELDS.get(flow, {}), *FORMS[flow]]
    assert [name for name in inspect.signature(function).parameters if name != "project_dir"] == asked


@pytest.mark.parametrize("flow", FORMS)
def test_the_defaults_fit_their_own_form(flow: str) -> None:
    jsonschema.validate(form_values(flow, Params()), form_schema(flow))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("train", {"dropout_prob": 1.0}),
        ("train", {"num_epochs": 0}),
        ("train", {"num_epochs": "many"}),
        ("train", {"optimizer": {"kind": "sgd", "weight_decay": 0.1}}),
        ("train", {"dropuot_prob": 0.5}),
        ("device", {"kind": "quantum"}),
        ("split", {"val_fraction": 0.9}),
        ("registry", {"model_name": ""}),
        ("ablation", {"num_seeds": 0}),
        ("ablation", {"mode": "all"}),
        ("ablation", {"factors": {"train.l2": 0.1}}),
    ],
)
def test_a_bad_value_is_refused_by_the_form_as_by_the_file(section: str, value: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({section: value}, form_schema("pipeline"))
    with pytest.raises(ValueError, match=section):
        RunParams.model_validate({section: value})


def test_every_field_of_the_form_says_what_it_is() -> None:
    schema = form_schema("pipeline")
    fields = [
        (title, name, field)
        for title, definition in schema["definitions"].items()
        for name, field in definition.get("properties", {}).items()
    ]
    assert len(fields) > 30
    undescribed = [(title, name) for title, name, field in fields if name != "kind" and not field.get("description")]
    assert not undescribed


def test_every_choice_between_kinds_is_drawn_as_tabs() -> None:
    for flow in FORMS:
        schema = json.dumps(form_schema(flow))
        assert "oneOf" not in schema and "discriminator" not in schema, flow
