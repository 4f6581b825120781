"""Params for data that nobody has said anything about: valid, and each with the right tendency."""

from pathlib import Path
from typing import Any

import pytest

from assay.infer import infer_params
from assay.new_project import preset_text
from assay.params import CropFlipAugmentation, MlpParams, Params, load_params
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef

WORDS = ("cat", "dog", "horse")
DIGITS = tuple("0123456789")


def ref(kind: str, shape: tuple[int, ...], num_examples: int = 3000, classes: tuple[str, ...] = WORDS) -> DataRef:
    return DataRef("data", "0" * 32 + ".dir", "made", num_examples, classes, shape, kind)


def values(data: DataRef) -> dict[str, Any]:
    return {path: value for choice in infer_params(data, "mine") for path, value in choice.values.items()}


def params(data: DataRef, tmp_path: Path) -> Params:
    preset = {IMAGE: "image", TEXT: "text", SERIES: "sequence", TABLE: "tabular"}[data.kind]
    file = tmp_path / "params.yaml"
    file.write_text(preset_text(preset, "other", values(data)))
    return load_params(file)


@pytest.mark.parametrize("num_examples", [30, 1_999, 5_000, 60_000])
@pytest.mark.parametrize(
    ("kind", "shape", "model"),
    [
        (IMAGE, (28, 28, 1), "cnn"),
        (IMAGE, (8, 8, 1), "cnn"),
        (IMAGE, (128, 96, 3), "cnn"),
        (TEXT, (250,), "transformer"),
        (SERIES, (100, 6), "lstm"),
        (TABLE, (30,), "mlp"),
    ],
)
def test_every_choice_is_valid_in_the_preset_of_its_kind(
    kind: str, shape: tuple[int, ...], model: str, num_examples: int, tmp_path: Path
) -> None:
    found = params(ref(kind, shape, num_examples), tmp_path)
    assert found.model.kind == model
    assert found.registry.model_name == "mine"
    assert found.data.is_pinned


def test_every_choice_says_its_reason_on_one_line() -> None:
    for choice in infer_params(ref(TEXT, (250,)), "mine"):
        assert choice.reason and "\n" not in choice.describe()
    assert "model.kind=transformer: " in infer_params(ref(TEXT, (250,)), "mine")[0].describe()


@pytest.mark.parametrize(("side", "num_pools"), [(8, 1), (11, 1), (12, 2), (28, 2), (32, 3), (224, 4)])
def test_the_pools_leave_maps_of_some_pixels(side: int, num_pools: int) -> None:
    channels = values(ref(IMAGE, (side, side, 1)))["model.channels"]
    assert len(channels) == num_pools
    assert side >> num_pools >= 3


@pytest.mark.parametrize(
    ("classes", "flips"),
    [
        (DIGITS, False),
        (("a", "b", "c"), False),
        (("zero", "One", "TWO"), False),
        (("a_upper", "b_lower"), False),
        (WORDS, True),
        (("6", "dog"), True),
    ],
)
def test_digits_and_letters_are_not_mirrored(classes: tuple[str, ...], flips: bool, tmp_path: Path) -> None:
    augmentation = params(ref(IMAGE, (32, 32, 3), classes=classes), tmp_path).train.augmentation
    assert isinstance(augmentation, CropFlipAugmentation)
    assert augmentation.horizontal_flip is flips


def test_more_examples_make_larger_steps_and_fewer_rounds() -> None:
    for kind, shape in [(IMAGE, (28, 28, 1)), (TEXT, (250,)), (SERIES, (100, 6)), (TABLE, (30,))]:
        few, many = values(ref(kind, shape, 500)), values(ref(kind, shape, 50_000))
        assert few["train.num_epochs"] > many["train.num_epochs"]
        assert few["train.batch_size"] < many["train.batch_size"]
        assert few["train.optimizer"]["learning_rate"] < many["train.optimizer"]["learning_rate"]


def test_lengths_cover_the_longest_example_within_bounds() -> None:
    assert values(ref(TEXT, (20,)))["model.max_length"] == 16
    assert values(ref(TEXT, (300,)))["model.max_length"] == 112
    assert values(ref(TEXT, (10**6,)))["model.max_length"] == 256
    assert values(ref(SERIES, (92, 13)))["model.max_length"] == 92
    assert values(ref(SERIES, (10**5, 13)))["model.max_length"] == 512


def test_a_wide_table_has_a_wider_network(tmp_path: Path) -> None:
    narrow, wide = params(ref(TABLE, (4,)), tmp_path).model, params(ref(TABLE, (200,)), tmp_path).model
    assert isinstance(narrow, MlpParams) and isinstance(wide, MlpParams)
    assert narrow.hidden_units[0] < wide.hidden_units[0]
