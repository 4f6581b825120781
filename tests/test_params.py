"""params.yaml is read once, completely, and every mistake is named with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.errors import ParamsError
from assay.params import AdamWParams, Params, SgdParams, flatten, load_params
from assay.params_yaml import parse_override

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  num_epochs: 7\n  optimizer: {kind: adamw, weight_decay: 0.02}\n")
    return path


def test_file_values_stand_and_the_rest_are_defaults(params_file: Path) -> None:
    params = load_params(params_file)
    assert params.train.num_epochs == 7
    assert params.train.optimizer == AdamWParams(weight_decay=0.02)
    assert params.split == Params().split


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# nothing yet\n")
    assert load_params(path) == Params()


def test_the_committed_file_names_every_default_that_it_shows() -> None:
    assert load_params(ROOT / "params.yaml").registry.model_name == "mnist5k-cnn"


def test_overrides_apply_in_order_and_win_over_the_file(params_file: Path) -> None:
    params = load_params(params_file, ["train.num_epochs=3", "train.l1=1e-3", "train.num_epochs=4"])
    assert params.train.num_epochs == 4
    assert params.train.l1 == pytest.approx(0.001)


def test_a_new_kind_drops_the_keys_of_the_old_kind(params_file: Path) -> None:
    params = load_params(params_file, ["train.optimizer.kind=sgd", "train.optimizer.momentum=0.5"])
    assert params.train.optimizer == SgdParams(momentum=0.5)


def test_null_switches_an_optional_section_off(params_file: Path) -> None:
    assert load_params(params_file, ["train.early_stopping=null"]).train.early_stopping is None


def test_params_are_frozen(params_file: Path) -> None:
    with pytest.raises(ValidationError):
        load_params(params_file).train.num_epochs = 3  # type: ignore[misc]


MISTAKES = [
    ("train.dropout_prob=1.4", "train.dropout_prob=1.4 on the command line: must be in [0, 0.999]. Lower it."),
    ("train.dropout_prob=-0.1", "must be in [0, 0.999]. Raise it."),
    ("train.dropout_prob=1", "must be in [0, 0.999]. Lower it."),
    ("train.dropout=0.3", "there is no such parameter. Did you mean train.dropout_prob?"),
    ("dropout_prob=0.3", "there is no such parameter. Did you mean train.dropout_prob?"),
    ("trian.seed=1", "trian on the command line: there is no such parameter. Did you mean train?"),
    ("train.optimizer.kind=adamax", "train.optimizer.kind=adamax on the command line: must be one of 'sgd'"),
    ("train.optimizer.momentum=0.3", "It belongs to kind sgd; kind adamw takes"),
    ("train.optimizer.learning_rat=0.3", "Did you mean train.optimizer.learning_rate?"),
    ("train.num_epochs=2.5", "must be a whole number"),
    ("train.num_epochs=many", "train.num_epochs=many on the command line: must be a whole number"),
    ("train.num_epochs=0", "must be in [1, 100000]. Raise it."),
    ("train.l1=.inf", "must be a finite number"),
    ("train.l2=.nan", "must be a finite number"),
    (
        "model.kind=gru",
        "model.kind=gru on the command line: must be one of 'cnn', 'lstm', 'transformer', 'mlp'. Choose",
    ),
    ("model.channels=[]", "must have at least 1 entries, not 0"),
    ("model.channels=[32,0]", "model.channels.1=0 on the command line: must be in [1, 4096]. Raise it."),
    ("train.early_stopping=3", "must be a section with keys of its own"),
    ("split=4", "split=4 on the command line: must be a section"),
    ("registry.model_name=a/b", "may hold letters, digits"),
    (
        "zzz=1",
        "Known here: data, split, model, train, evaluation, device, registry, ablation, gate, schedule, services.",
    ),
    ("train.num_epochs", "an override looks like train.num_epochs=3"),
    ("train.num_epochs=[1", "is not a YAML value"),
]


@pytest.mark.parametrize(("override", "sentence"), MISTAKES)
def test_a_mistake_is_named(params_file: Path, override: str, sentence: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load_params(params_file, [override])
    assert sentence in str(caught.value)


def test_all_mistakes_are_said_at_once(params_file: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        load_params(params_file, ["train.seed=-1", "split.seed=x"])
    assert len(str(caught.value).splitlines()) == 2


FILES = [
    ("train:\n  num_epochs: 3\n  num_epochs: 4\n", "key 'num_epochs' is given twice"),
    ("- a\n- b\n", "holds a list, not sections"),
    ("train: [1\n", "params.yaml:2"),
    ("train:\n  dropout_prob: 1.4\n", "train.dropout_prob=1.4 in params.yaml: must be in [0, 0.999]. Lower it."),
    ("3: 4\n", "key 3 is not text"),
    ("train: !!python/object/apply:os.system ['true']\n", "params.yaml:1"),
]


@pytest.mark.parametrize(("text", "sentence"), FILES)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert sentence in str(caught.value)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="cannot be read"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="is not UTF-8"):
        load_params(tmp_path / "binary.yaml")


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-6, max_value=1e6))
def test_numbers_survive_an_override_in_any_spelling(value: float) -> None:
    assert parse_override(f"a.b={value!r}") == ("a.b", value)
    assert float(parse_override(f"a.b={value:e}")[1]) == pytest.approx(value, rel=1e-5)


def test_flatten_gives_every_leaf_once() -> None:
    flat = flatten(Params())
    assert flat["train.optimizer.kind"] == "adamw"
    assert flat["model.channels"] == [32, 64]
    assert not any(isinstance(value, dict) for value in flat.values())


def test_a_recipe_of_the_file_is_changed_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("ablation:\n  recipes:\n    long: {train.num_epochs: 9, train.l2: 0.1}\n")
    params = load_params(path, ["ablation.recipes.long.train.num_epochs=40", "ablation.recipes.new={train.l1: 0.1}"])
    assert params.ablation.recipes == {"long": {"train.num_epochs": 40, "train.l2": 0.1}, "new": {"train.l1": 0.1}}
