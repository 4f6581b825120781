import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from assay.data.splits import load_split
from assay.errors import NonFiniteError
from assay.models import pooled_conv, pooling_native
from assay.models.build import build_model
from assay.models.files import load_model
from assay.params import (
    AdamParams,
    AdamWParams,
    CnnParams,
    ConstantSchedule,
    CropFlipAugmentation,
    DeviceParams,
    EarlyStoppingParams,
    SgdParams,
    TrainParams,
)
from assay.records import EpochRecord, StepRecords
from assay.training.batches import input_statistics
from assay.training.fit import fit
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset


def change(params: TrainParams, **values: object) -> TrainParams:
    return TrainParams.model_validate({**params.model_dump(), **values})


def weights(folder: Path) -> bytes:
    return (folder / "model" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, device: DeviceParams) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(TRAIN, augmentation={"kind": "crop-flip", "padding_pixels": 1})
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(dataset, splits, MODEL, change(train, seed=seed), device, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_machine_code_that_begins_within_training_changes_no_byte(
    tmp_path: Path, device: DeviceParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    model = CnnParams(channels=(16, 32), hidden_units=16)
    pooled_in_a_step = TRAIN.batch_size * (10 * 9 * 16 + 5 * 4 * 32)
    made = []
    compile_kernels = pooling_native._compile
    monkeypatch.setattr(pooling_native, "_compile", lambda: made.append(True) or compile_kernels())
    for name, enough in (("without", 1 << 60), ("from the third step on", 3 * pooled_in_a_step)):
        monkeypatch.setattr(pooling_native, "_pooled", pooling_native._Pooled())
        monkeypatch.setattr(pooling_native, "_ENOUGH", enough)
        pooling_native.make_kernels.cache_clear()
        fit(dataset, splits, model, TRAIN, device, tmp_path / name)
        assert bool(made) == (name != "without")
    assert weights(tmp_path / "without") == weights(tmp_path / "from the third step on")


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_gradients_of_maxima_pause_and_go_on_in_the_same_bytes(
    tmp_path: Path, device: DeviceParams, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    arguments = (dataset, splits, CnnParams(channels=(16, 32), hidden_units=16), TRAIN, device)
    theirs = fit(*arguments, tmp_path / "theirs")
    fit(*arguments, tmp_path / "other", until_epoch=1)
    monkeypatch.setattr(pooled_conv, "_ENOUGH", 0)
    monkeypatch.setattr(pooled_conv, "_multiplies_tiles", lambda: False)
    unbroken = fit(*arguments, tmp_path / "unbroken")
    fit(*arguments, tmp_path / "paused", until_epoch=1)
    resumed = fit(*arguments, tmp_path / "paused")
    assert weights(tmp_path / "paused") == weights(tmp_path / "unbroken")
    assert resumed.resumed_from_step > 0 and not caplog.records
    for ours, by_torch in zip(unbroken.history, theirs.history, strict=True):
        assert ours.train_loss == pytest.approx(by_torch.train_loss, rel=0.01)
    assert fit(*arguments, tmp_path / "other").resumed_from_step == 0  # it began with torch's, which round otherwise
    assert "not used" in caplog.text


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(dataset, splits, MODEL, TRAIN, FP32.model_copy(update={"num_threads": 2}), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_test_split_is_not_read(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    blank = dataset.images.copy()
    blank[load_split(splits).test] = 0
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "a")
    fit(dataclasses.replace(dataset, inputs=blank), splits, MODEL, TRAIN, FP32, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_one_batch_overfits(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path, num_examples=24)
    train = change(
        TRAIN,
        num_epochs=120,
        batch_size=64,
        dropout_prob=0,
        schedule=ConstantSchedule(),
        optimizer=AdamParams(learning_rate=0.01),
    )
    result = fit(dataset, splits, MODEL, train, FP32, tmp_path / "run")
    assert result.history[-1].train_loss < 0.01
    assert result.history[-1].train_accuracy == 1.0


def test_golden_losses_of_the_cnn(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    result = fit(dataset, splits, MODEL, change(TRAIN, dropout_prob=0), FP32, tmp_path / "run")
    losses = [record.train_loss for record in result.history]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4)


@pytest.mark.parametrize(
    "optimizer", [SgdParams(), SgdParams(momentum=0.9, nesterov=True), AdamParams(), AdamWParams()]
)
def test_the_loop_equals_the_textbook_loop(tmp_path: Path, optimizer: object) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(TRAIN, num_epochs=2, dropout_prob=0, schedule=ConstantSchedule(), optimizer=optimizer)
    seen: list[float] = []
    result = fit(dataset, splits, MODEL, train, FP32, tmp_path / "run", on_steps=lambda s: seen.extend(s.loss))
    assert seen == pytest.approx(textbook_losses(dataset, splits, train, tmp_path / "run"), rel=1e-4)
    assert result.num_steps == len(seen)


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_l1_and_l2_are_in_the_loss_and_in_the_update_as_in_the_textbook(
    tmp_path: Path, max_grad_norm: float | None
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(
        TRAIN,
        num_epochs=2,
        dropout_prob=0,
        schedule=ConstantSchedule(),
        optimizer=SgdParams(),
        l1=0.003,
        l2=0.2,
        max_grad_norm=max_grad_norm,
    )
    seen: list[float] = []
    fit(dataset, splits, MODEL, train, FP32, tmp_path / "run", on_steps=lambda s: seen.extend(s.loss))
    assert seen == pytest.approx(textbook_losses(dataset, splits, train, tmp_path / "run"), rel=1e-4)


def textbook_losses(dataset, splits, train, run_dir) -> list[float]:
    """NCHW, contiguous, max_pool(relu), unfused, with torch's own optimizer."""
    from assay.training.session import batch_order

    _, spec = load_model(run_dir / "model")
    module = build_model(spec, train.seed).to(memory_format=torch.contiguous_format)
    decay = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim == 1]
    rate = train.optimizer.learning_rate
    match train.optimizer:
        case SgdParams():
            optimizer = torch.optim.SGD(
                module.parameters(),
                rate,
                momentum=train.optimizer.momentum,
                nesterov=train.optimizer.nesterov,
                foreach=False,
            )
        case AdamParams():
            optimizer = torch.optim.Adam(module.parameters(), rate, foreach=False)
        case AdamWParams():
            groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, rate, foreach=False)
    rows, losses = load_split(splits).train, []
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in input_statistics(dataset, rows))
    for epoch in range(train.num_epochs):
        for batch in batch_order(len(rows), train.seed, epoch).split(train.batch_size):
            images = torch.from_numpy(dataset.images[rows[batch.numpy()]]).permute(0, 3, 1, 2).contiguous()
            features = (images.float() - mean.float()) / std.float()
            for conv in module.convs:
                features = F.max_pool2d(F.relu(F.conv2d(features, conv.weight, conv.bias, padding=1)), 2)
            hidden = F.relu(module.hidden(features.permute(0, 2, 3, 1).reshape(len(features), -1)))
            loss = F.cross_entropy(module.output(hidden), torch.from_numpy(dataset.labels[rows[batch.numpy()]]))
            optimizer.zero_grad()
            loss = (
                loss
                + train.l1 * sum(p.abs().sum() for p in decay)
                + train.l2 / 2 * sum(p.square().sum() for p in decay)
            )
            loss.backward()
            if train.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), train.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(
        TRAIN,
        num_epochs=40,
        schedule=ConstantSchedule(),
        optimizer=AdamParams(learning_rate=0.03),
        early_stopping=EarlyStoppingParams(patience_epochs=2),
    )
    result = fit(dataset, splits, MODEL, train, FP32, tmp_path / "run")
    losses = [record.val_loss for record in result.history]
    assert result.stopped_early
    assert result.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 2
    module, _ = load_model(tmp_path / "run" / "model")
    val = load_split(splits).val
    images = torch.from_numpy(dataset.images[val]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        kept = F.cross_entropy(module(images), torch.from_numpy(dataset.labels[val])).item()
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_without_early_stopping_the_last_epoch_is_kept(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    result = fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "run")
    assert (result.best_epoch, result.stopped_early) == (3, False)
    last = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for name, tensor in load_file(tmp_path / "run" / "model" / "weights.safetensors").items():
        assert torch.equal(tensor, last[f"module.{name}"])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    told: list[tuple[list[EpochRecord], list[StepRecords]]] = []
    results = []
    for _ in range(2):
        epochs: list[EpochRecord] = []
        steps: list[StepRecords] = []
        results.append(
            fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "run", on_epoch=epochs.append, on_steps=steps.append)
        )
        told.append((epochs, steps))
    assert results[0] == results[1]
    assert told[0][0] == told[1][0] == list(results[0].history)
    for column in ("step", "loss", "learning_rate", "grad_norm", "timestamp_ms"):
        first, second = ([value for part in steps for value in getattr(part, column)] for _, steps in told)
        assert first == second
    assert [s for part in told[0][1] for s in part.step] == list(range(1, results[0].num_steps + 1))


def test_a_lost_model_is_written_again(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "run")
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    result = fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "run")
    assert weights(tmp_path / "run") == before
    assert result.resumed_from_step == result.num_steps


@pytest.mark.parametrize("damage", ["another run", "flipped byte", "truncated", "garbage"])
def test_an_unusable_checkpoint_is_said_and_not_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "clean")
    path = tmp_path / "run" / "checkpoint.safetensors"
    fit(dataset, splits, MODEL, change(TRAIN, seed=9), FP32, tmp_path / "run")
    content = bytearray(path.read_bytes())
    if damage == "flipped byte":
        content[-3] ^= 1
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "garbage":
        content[:] = b"not a checkpoint"
    path.write_bytes(content)
    seed = TRAIN.seed if damage == "another run" else 9
    result = fit(dataset, splits, MODEL, change(TRAIN, seed=seed), FP32, tmp_path / "run")
    assert result.resumed_from_step == 0
    assert str(path) in caplog.text and "not used" in caplog.text
    if damage == "another run":
        assert weights(tmp_path / "run") == weights(tmp_path / "clean")


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_nan_stops_before_the_step(tmp_path: Path, device: DeviceParams) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(
        TRAIN, num_epochs=30, optimizer=SgdParams(learning_rate=100, momentum=0), schedule=ConstantSchedule(),
        checkpoint_every_seconds=0, dropout_prob=0, l2=10,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"step \d+ \(epoch \d+\): NaN or infinity in .*rows \d+") as caught:
        fit(dataset, splits, MODEL, train, device, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.isfinite(tensor).all() for name, tensor in saved.items() if name.startswith("module."))
    failed = int(str(caught.value).split()[1])
    assert len(saved["steps.loss"]) == failed - 1
    assert torch.isfinite(saved["steps.loss"]).all()


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path, num_examples=24)
    train = change(
        TRAIN, num_epochs=1, batch_size=64, dropout_prob=0, schedule=ConstantSchedule(),
        optimizer=SgdParams(learning_rate=0.5, momentum=0), max_grad_norm=0.01,
    )  # fmt: skip
    norms: list[float] = []
    fit(dataset, splits, MODEL, train, FP32, tmp_path / "run", on_steps=lambda s: norms.extend(s.grad_norm))
    module, spec = load_model(tmp_path / "run" / "model")
    start = build_model(spec, train.seed)
    moved = [(a - b).detach() for a, b in zip(module.parameters(), start.parameters(), strict=True)]
    assert norms[0] > 0.01
    assert float(torch.nn.utils.get_total_norm(moved)) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    still = change(TRAIN, num_epochs=1, optimizer=SgdParams(learning_rate=1e-8, momentum=0))
    fit(dataset, splits, MODEL, still, FP32, tmp_path / "a")
    other = change(still, dropout_prob=0.7, batch_size=5, augmentation=CropFlipAugmentation(padding_pixels=1))
    fit(dataset, splits, MODEL, other, FP32, tmp_path / "b")
    first, second = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in "ab")
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


def test_result_file_is_plain_json(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    result = fit(dataset, splits, MODEL, TRAIN, FP32, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["result"]["weights_sha256"] == result.weights_sha256


GOLDEN_LOSSES = [1.114597581681751, 1.080754177910941, 1.0626740455627441]
