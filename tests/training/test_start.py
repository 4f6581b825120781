"""Where training starts from, layers that are frozen, and rates that fall towards the input."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from assay.data.splits import make_splits
from assay.data.tokenizer import TextEncoder
from assay.errors import ModelFileError, ParamsError
from assay.models.build import build_model
from assay.models.depth import layers_of
from assay.models.files import load_model
from assay.models.fitting import TAKES
from assay.models.huggingface_files import read_folder
from assay.params import (
    AdamWParams,
    ConstantSchedule,
    HuggingFaceStart,
    RmspropParams,
    SgdParams,
    SplitParams,
    TokenDropoutAugmentation,
    TrainParams,
    VersionStart,
)
from assay.records import IMAGE, SERIES, TABLE, TEXT, StartRef
from assay.training.fit import fit
from assay.training.layers import LayerRates
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer
from assay.training.specify import specify
from tests.bf16 import need_bf16
from tests.data.kinds import text_dataset
from tests.models.test_huggingface import write_encoder
from tests.training.test_kinds import MODELS, make
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset

STILL = {"optimizer": SgdParams(learning_rate=1e-8, momentum=0), "num_epochs": 1}


def version_at(folder: Path) -> StartRef:
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return StartRef("version", "made@1", str(folder), digest)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "weights.safetensors")


def from_version(**values: object) -> TrainParams:
    return TRAIN.model_copy(update={"start": VersionStart(version="made@1"), **values})


def test_a_version_gives_its_weights_architecture_and_normalisation(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "first")
    brighter = dataclasses.replace(dataset, inputs=dataset.images // 2)
    other = MODEL.model_copy(update={"channels": (3,)})
    start = version_at(tmp_path / "first" / "model")
    fit(brighter, splits, other, from_version(**STILL), FP32, tmp_path / "second", start=start)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert load_model(tmp_path / "second" / "model")[1].mean == load_model(tmp_path / "first" / "model")[1].mean


def test_other_classes_get_a_fresh_output_layer(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "first")
    renamed = dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, class_names=("x", "y", "z")))
    start = version_at(tmp_path / "first" / "model")
    fit(renamed, splits, MODEL, from_version(**STILL), FP32, tmp_path / "second", start=start)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    fresh = build_model(load_model(tmp_path / "second" / "model")[1], TRAIN.seed).state_dict()
    assert torch.allclose(after["output.weight"], fresh["output.weight"], atol=1e-6)
    assert torch.allclose(after["convs.0.weight"], before["convs.0.weight"], atol=1e-6)


def test_a_version_that_takes_other_data_is_refused(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "first")
    texts, text_splits = make(TEXT, tmp_path / "texts")
    start = version_at(tmp_path / "first" / "model")
    with pytest.raises(ParamsError, match="cannot start from this model: it takes image data"):
        fit(texts, text_splits, MODEL, from_version(), FP32, tmp_path / "second", start=start)


def test_changed_files_are_refused_and_a_changed_start_is_another_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    for name, seed in (("one", 1), ("two", 2)):
        fit(dataset, splits, MODEL, TRAIN.model_copy(update={"seed": seed}), FP32, tmp_path / name)
    starts = [version_at(tmp_path / name / "model") for name in ("one", "two")]
    first = fit(dataset, splits, MODEL, from_version(), FP32, tmp_path / "run", start=starts[0])
    assert fit(dataset, splits, MODEL, from_version(), FP32, tmp_path / "run", start=starts[0]) == first
    second = fit(dataset, splits, MODEL, from_version(), FP32, tmp_path / "run", start=starts[1])
    assert "belongs to another run" in caplog.text
    assert second.weights_sha256 != first.weights_sha256
    wrong = dataclasses.replace(starts[0], digest=starts[1].digest)
    with pytest.raises(ModelFileError, match="SHA-256"):
        fit(dataset, splits, MODEL, from_version(), FP32, tmp_path / "run", start=wrong)


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_an_encoder_is_trained_on_resumes_exactly_and_comes_back_from_disk(tmp_path: Path, device: object) -> None:
    write_encoder(tmp_path / "encoder")
    digest = read_folder(tmp_path / "encoder")[1]
    start = StartRef("huggingface", "encoder", str(tmp_path / "encoder"), digest)
    texts = [f"{'good' if row % 2 else 'bad'} film {'a ' * (row % 5)}!" for row in range(90)]
    dataset = text_dataset([row % 2 for row in range(90)], texts)
    splits = make_splits(dataset, SplitParams(), tmp_path / "splits")
    train = TRAIN.model_copy(
        update={
            "start": HuggingFaceStart(path="encoder", max_length=8),
            "augmentation": TokenDropoutAugmentation(prob=0.1),
            "freeze_layers": 1,
            "layer_decay": 0.8,
        }
    )
    whole = fit(dataset, splits, MODEL, train, device, tmp_path / "whole", start=start)  # type: ignore[arg-type]
    fit(dataset, splits, MODEL, train, device, tmp_path / "parts", start=start, until_epoch=1)  # type: ignore[arg-type]
    parts = fit(dataset, splits, MODEL, train, device, tmp_path / "parts", start=start)  # type: ignore[arg-type]
    assert parts.resumed_from_step > 0 and parts.weights_sha256 == whole.weights_sha256
    _, spec = load_model(Path(whole.model_dir))
    assert TextEncoder(spec.tokenizer).tokens("good!", 8) == ["[CLS]", "good", "!", "[SEP]"]
    assert spec.shape == (8,) and spec.class_names == dataset.ref.class_names


@pytest.mark.parametrize(("model", "kind"), [(model, kinds[0]) for model, kinds in TAKES.items()])
@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_frozen_layers_keep_their_weights_and_the_others_do_not(
    tmp_path: Path, model: str, kind: str, device: object
) -> None:
    if device is BF16 and model == "lstm":
        need_bf16()
    dataset, splits = make(kind, tmp_path)
    train = TrainParams(num_epochs=2, batch_size=16, early_stopping=None, freeze_layers=1)
    fit(dataset, splits, MODELS[model], train, device, tmp_path / "run")  # type: ignore[arg-type]
    module, spec = load_model(tmp_path / "run" / "model")
    bottom, *above = layers_of(module)
    start_bottom, *start_above = layers_of(build_model(spec, train.seed))
    assert all(torch.equal(a, b) for a, b in zip(bottom, start_bottom, strict=True))
    for layer, start_layer in zip(above, start_above, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(layer, start_layer, strict=True))


def test_the_output_layer_cannot_be_frozen(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    with pytest.raises(ParamsError, match=r"train.freeze_layers=4: the model has 4 layers, .* Lower it to 3 or less"):
        fit(dataset, splits, MODEL, TRAIN.model_copy(update={"freeze_layers": 4}), FP32, tmp_path / "run")


@pytest.mark.parametrize(("model", "kind"), [("transformer", TEXT), ("lstm", SERIES), ("mlp", TABLE), ("cnn", IMAGE)])
def test_every_parameter_is_in_one_layer_and_the_output_in_the_last(tmp_path: Path, model: str, kind: str) -> None:
    dataset, _ = make(kind, tmp_path)
    module = build_model(specify(dataset, np.arange(len(dataset.labels)), MODELS[model], TRAIN), 0)
    layers = layers_of(module)
    found = [id(parameter) for layer in layers for parameter in layer]
    assert sorted(found) == sorted(id(parameter) for parameter in module.parameters())
    assert any(parameter is module.output.weight for parameter in layers[-1])  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", [SgdParams(), AdamWParams(), RmspropParams()], ids=lambda params: params.kind)
def test_layer_rates_are_those_of_an_optimizer_with_a_group_for_each_layer(tmp_path: Path, optimizer: object) -> None:
    torch.manual_seed(0)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)])
            self.output = nn.Linear(4, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.output(self.layers[1](self.layers[0](values).tanh()).tanh())
            return result

    ours, theirs = Stack(), Stack()
    theirs.load_state_dict(ours.state_dict())
    master = MasterWeights(ours, torch.float32)
    rates = LayerRates(master, ours, 0.5)
    own = build_optimizer(master.weights, master.rest, optimizer)  # type: ignore[arg-type]
    rate = optimizer.learning_rate  # type: ignore[attr-defined]
    groups = []
    for depth, layer in enumerate(reversed(layers_of(theirs))):
        for is_weight in (True, False):
            decay = getattr(optimizer, "weight_decay", 0.0) if is_weight else 0.0
            chosen = [p for p in layer if (p.ndim > 1) == is_weight]
            groups.append({"params": chosen, "lr": rate * 0.5**depth, "weight_decay": decay})
    single = build_optimizer(nn.Parameter(torch.zeros(1)), torch.zeros(0), optimizer)  # type: ignore[arg-type]
    settings = {
        name: value
        for name, value in single.defaults.items()
        if name in ("momentum", "nesterov", "betas", "eps", "alpha")
    }
    textbook = type(single)(groups, lr=rate, **settings)
    for _ in range(5):
        values = torch.randn(8, 3)
        master.refresh()
        ours(values).square().sum().backward()
        master.collect()
        rates.step(own)
        textbook.zero_grad()
        theirs(values).square().sum().backward()
        textbook.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_defaults_change_no_bit(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    plain = fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "a")
    named = TrainParams.model_validate(
        {**TRAIN.model_dump(), "start": {"kind": "scratch"}, "freeze_layers": 0, "layer_decay": 1.0}
    )
    assert fit(dataset, splits, MODEL, named, FP32, tmp_path / "b").weights_sha256 == plain.weights_sha256
    slower = TRAIN.model_copy(update={"layer_decay": 0.5, "schedule": ConstantSchedule()})
    assert fit(dataset, splits, MODEL, slower, FP32, tmp_path / "c").weights_sha256 != plain.weights_sha256
