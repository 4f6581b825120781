"""Every kind of model on every kind of data that it takes: it learns, resumes exactly and comes back from disk."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data.loading import Dataset
from assay.data.splits import load_split, make_splits
from assay.data.tokenizer import PAD_ID, TextEncoder
from assay.devices import resolve
from assay.errors import ParamsError
from assay.evaluation.predictions import predict_probabilities
from assay.models.files import load_model
from assay.models.fitting import TAKES, takes_any_length
from assay.params import (
    CnnParams,
    ConstantSchedule,
    CropFlipAugmentation,
    LstmParams,
    MlpParams,
    ModelParams,
    RmspropParams,
    SeriesAugmentation,
    SgdParams,
    SplitParams,
    TokenDropoutAugmentation,
    TokenizerParams,
    TrainParams,
    TransformerParams,
)
from assay.records import IMAGE, SERIES, TABLE, TEXT, Splits
from assay.training.batches import Batches, input_statistics
from assay.training.fit import fit
from assay.training.specify import specify
from tests.bf16 import need_bf16
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.training.tiny import BF16, FP32, tiny_dataset

TOKENIZER = TokenizerParams(vocab_size=120)
MODELS: dict[str, ModelParams] = {
    "cnn": CnnParams(channels=(4, 8), hidden_units=16, residual_blocks=1, head="average"),
    "lstm": LstmParams(embedding_dim=8, hidden_units=12, num_layers=2, max_length=48, tokenizer=TOKENIZER),
    "transformer": TransformerParams(dim=16, num_layers=1, feedforward_dim=24, max_length=48, tokenizer=TOKENIZER),
    "mlp": MlpParams(hidden_units=(16,), batch_norm=True),
}
TRAIN = TrainParams(
    num_epochs=3,
    batch_size=16,
    early_stopping=None,
    dropout_prob=0.2,
    input_dropout_prob=0.1,
    recurrent_dropout_prob=0.1,
    attention_dropout_prob=0.1,
)
PAIRS = [(model, kind) for model, kinds in TAKES.items() for kind in kinds]
AUGMENTATIONS = {
    IMAGE: CropFlipAugmentation(padding_pixels=1, cutout_pixels=2, mixup_alpha=0.2),
    TEXT: TokenDropoutAugmentation(prob=0.1),
    SERIES: SeriesAugmentation(),
}


def make(kind: str, folder: Path, num_examples: int = 120) -> tuple[Dataset, Splits]:
    if kind == IMAGE:
        return tiny_dataset(folder, num_examples)
    maker = {TEXT: text_dataset, SERIES: series_dataset, TABLE: table_dataset}[kind]
    dataset = maker(np.arange(num_examples) % 2)
    return dataset, make_splits(dataset, SplitParams(val_fraction=0.15, test_fraction=0.15), folder / "splits")


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_a_paused_run_ends_in_the_same_bytes(tmp_path: Path, model: str, kind: str) -> None:
    dataset, splits = make(kind, tmp_path)
    train = TRAIN.model_copy(update={"augmentation": AUGMENTATIONS.get(kind, TRAIN.augmentation)})
    whole = fit(dataset, splits, MODELS[model], train, FP32, tmp_path / "whole")
    for epoch in (1, 2):
        fit(dataset, splits, MODELS[model], train, FP32, tmp_path / "parts", until_epoch=epoch)
    parts = fit(dataset, splits, MODELS[model], train, FP32, tmp_path / "parts")
    assert parts.resumed_from_step == 2 * whole.num_steps // 3
    assert parts.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_it_learns_and_answers_from_disk_as_it_did_on_val(tmp_path: Path, model: str, kind: str) -> None:
    dataset, splits = make(kind, tmp_path, 240)
    train = TrainParams(num_epochs=12, batch_size=16, early_stopping=None, dropout_prob=0.0)
    result = fit(dataset, splits, MODELS[model], train, FP32, tmp_path / "run")
    module, spec = load_model(Path(result.model_dir))
    rows = load_split(splits).val
    probabilities = predict_probabilities(module, spec, dataset, rows, resolve(FP32))
    accuracy = float((probabilities.argmax(axis=1) == dataset.labels[rows]).mean())
    assert accuracy > 0.7
    assert accuracy == pytest.approx(result.history[-1].val_accuracy)


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_bf16_trains_like_fp32(tmp_path: Path, model: str, kind: str) -> None:
    if model == "lstm":
        need_bf16()
    dataset, splits = make(kind, tmp_path)
    train = TrainParams(num_epochs=4, batch_size=16, early_stopping=None, dropout_prob=0.0)
    losses = [
        [epoch.train_loss for epoch in fit(dataset, splits, MODELS[model], train, device, tmp_path / name).history]
        for name, device in (("fp32", FP32), ("bf16", BF16))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.15, abs=0.02)
    assert losses[1] != losses[0]


@pytest.mark.parametrize(
    "pair", [pair for pair in itertools.product(TAKES, (IMAGE, TEXT, SERIES, TABLE)) if pair not in PAIRS]
)
def test_a_model_refuses_other_data_and_names_a_fitting_one(tmp_path: Path, pair: tuple[str, str]) -> None:
    model, kind = pair
    dataset, splits = make(kind, tmp_path)
    with pytest.raises(ParamsError, match=f"model.kind={model}: takes .* the data is of kind {kind}. Choose"):
        fit(dataset, splits, MODELS[model], TRAIN, FP32, tmp_path / "run")


@pytest.mark.parametrize(("augmented", "kind"), list(itertools.permutations(AUGMENTATIONS, 2)))
def test_an_augmentation_refuses_other_data(tmp_path: Path, augmented: str, kind: str) -> None:
    dataset, splits = make(kind, tmp_path)
    train = TRAIN.model_copy(update={"augmentation": AUGMENTATIONS[augmented]})
    with pytest.raises(ParamsError, match=f"varies {augmented} data, and the data is of kind {kind}"):
        fit(dataset, splits, MODELS["cnn" if kind == IMAGE else "transformer"], train, FP32, tmp_path / "run")


def test_what_is_fitted_is_fitted_on_train_only(tmp_path: Path) -> None:
    dataset, splits = make(TEXT, tmp_path)
    rows = load_split(splits).train
    spec = specify(dataset, rows, MODELS["lstm"], TRAIN)
    others = np.setdiff1d(np.arange(120), rows)
    texts = [text if row in rows else "zzzz qqqq" for row, text in enumerate(dataset.texts(np.arange(120)))]
    assert len(others) and specify(text_dataset(dataset.labels, texts), rows, MODELS["lstm"], TRAIN) == spec
    assert specify(text_dataset(dataset.labels, texts), others, MODELS["lstm"], TRAIN) != spec


@pytest.mark.parametrize("kind", [SERIES, TABLE])
def test_statistics_leave_padding_and_missing_values_out(tmp_path: Path, kind: str) -> None:
    dataset, _ = make(kind, tmp_path)
    rows = np.arange(0, 120, 2)
    values = np.concatenate([dataset.series.row(row) for row in rows]) if kind == SERIES else dataset.table[rows]
    mean, std = input_statistics(dataset, rows)
    assert mean == pytest.approx(np.nanmean(values, axis=0, dtype=np.float64).tolist())
    assert std == pytest.approx(np.nanstd(values, axis=0, dtype=np.float64).tolist(), rel=1e-6)


@pytest.mark.parametrize("kind", [TEXT, SERIES])
def test_training_batches_are_as_long_as_they_need_to_be(tmp_path: Path, kind: str) -> None:
    dataset, _ = make(kind, tmp_path)
    rows = np.arange(120)
    spec = specify(dataset, rows, MODELS["lstm"], TRAIN)
    assert takes_any_length(spec)
    whole, trimmed = (Batches(dataset, rows, torch.device("cpu"), spec, is_trimmed=flag) for flag in (False, True))
    for positions in torch.arange(120).split(16):
        inputs, shorter = whole.take(positions)[0], trimmed.take(positions)[0]
        there = inputs != PAD_ID if kind == TEXT else ~inputs.isnan().all(dim=2)
        longest = int(there.sum(dim=1).max())
        assert inputs.shape[1] == spec.shape[0] and shorter.shape[1] == min(spec.shape[0], -(-longest // 8) * 8)
        assert torch.equal(inputs[:, : shorter.shape[1]].nan_to_num(-1), shorter.nan_to_num(-1))


def test_tokens_are_those_of_the_tokenizer_that_is_kept(tmp_path: Path) -> None:
    dataset, splits = make(TEXT, tmp_path)
    result = fit(
        dataset, splits, MODELS["transformer"], TRAIN.model_copy(update={"num_epochs": 1}), FP32, tmp_path / "r"
    )
    _, spec = load_model(Path(result.model_dir))
    encoder = TextEncoder(spec.tokenizer)
    assert encoder.num_tokens == spec.num_tokens
    row = np.array([3])
    tokens = Batches(dataset, row, torch.device("cpu"), spec).take(torch.tensor([0]))[0]
    expected = encoder.encode(dataset.texts(row), spec.shape[0]).row(0)
    assert tokens[0, : len(expected)].tolist() == expected.tolist() and not tokens[0, len(expected) :].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": RmspropParams(momentum=0.5)},
        {"optimizer": SgdParams(nesterov=True), "schedule": ConstantSchedule(warmup_fraction=0.2)},
        {"sampling": "balanced"},
        {"class_weights": "balanced"},
        {"ema_decay": 0.9},
    ],
)
def test_choices_of_training_change_it_and_resume_exactly(tmp_path: Path, changes: dict[str, object]) -> None:
    dataset, splits = make(TABLE, tmp_path)
    plain, changed = TRAIN, TRAIN.model_copy(update=changes)
    hashes = {
        name: fit(dataset, splits, MODELS["mlp"], train, FP32, tmp_path / name).weights_sha256
        for name, train in (("plain", plain), ("changed", changed))
    }
    fit(dataset, splits, MODELS["mlp"], changed, FP32, tmp_path / "parts", until_epoch=2)
    parts = fit(dataset, splits, MODELS["mlp"], changed, FP32, tmp_path / "parts")
    assert parts.weights_sha256 == hashes["changed"]
    assert "class_weights" in changes or hashes["changed"] != hashes["plain"]


def test_statistics_of_series_resume_exactly_where_the_last_batch_is_one_example(tmp_path: Path) -> None:
    dataset, splits = make(SERIES, tmp_path)
    model = MlpParams(features="statistics", hidden_units=(16,), batch_norm=True)
    train = TRAIN.model_copy(update={"ema_decay": 0.9, "batch_size": splits.num_train - 1})
    whole = fit(dataset, splits, model, train, FP32, tmp_path / "whole")
    assert whole.num_steps == 2 * train.num_epochs
    fit(dataset, splits, model, train, FP32, tmp_path / "parts", until_epoch=2)
    assert fit(dataset, splits, model, train, FP32, tmp_path / "parts").weights_sha256 == whole.weights_sha256
