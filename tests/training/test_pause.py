"""Training that pauses at an epoch's end and goes on later."""

from pathlib import Path

import pytest

from assay.params import EarlyStoppingParams
from assay.training.fit import fit
from assay.training.loop import CHECKPOINT_FILE
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset

LONG = TRAIN.model_copy(update={"num_epochs": 6})


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_paused_run_ends_in_the_bytes_of_an_unbroken_one(tmp_path: Path, device, batch_norm: bool) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    model = MODEL.model_copy(update={"batch_norm": batch_norm})
    whole = fit(dataset, splits, model, LONG, device, tmp_path / "whole")
    for epoch in (1, 4):
        part = fit(dataset, splits, model, LONG, device, tmp_path / "parts", until_epoch=epoch, every_epoch_saved=False)
        assert len(part.history) == epoch
        assert [r.val_loss for r in part.history] == [r.val_loss for r in whole.history[:epoch]]
        again = fit(dataset, splits, model, LONG, device, tmp_path / "parts", until_epoch=epoch)
        assert again.weights_sha256 == part.weights_sha256
    rest = fit(dataset, splits, model, LONG, device, tmp_path / "parts", every_epoch_saved=False)
    assert rest.weights_sha256 == whole.weights_sha256
    assert part.weights_sha256 != rest.weights_sha256
    assert rest.resumed_from_step == part.num_steps


def test_a_farther_checkpoint_is_not_gone_back_from(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    whole = fit(dataset, splits, MODEL, LONG, FP32, tmp_path / "run")
    asked = fit(dataset, splits, MODEL, LONG, FP32, tmp_path / "run", until_epoch=2)
    assert asked.weights_sha256 == whole.weights_sha256
    assert len(asked.history) == 6


def test_early_stopping_ends_a_run_before_the_epoch_it_was_to_pause_at(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = LONG.model_copy(
        update={"early_stopping": EarlyStoppingParams(patience_epochs=1, min_delta=10.0), "num_epochs": 9}
    )
    paused = fit(dataset, splits, MODEL, train, FP32, tmp_path / "run", until_epoch=7)
    assert paused.stopped_early
    assert len(paused.history) == 2
    assert fit(dataset, splits, MODEL, train, FP32, tmp_path / "run").weights_sha256 == paused.weights_sha256


def test_a_short_run_has_a_checkpoint_where_it_pauses_and_none_at_its_end(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    seen: list[bool] = []
    checkpoint = tmp_path / "run" / CHECKPOINT_FILE

    def train(until_epoch: int | None) -> None:
        fit(
            dataset, splits, MODEL, LONG, FP32, tmp_path / "run", until_epoch=until_epoch, every_epoch_saved=False,
            on_epoch=lambda record: seen.append(checkpoint.exists()),
        )  # fmt: skip

    train(2)
    assert seen == [False, True]
    checkpoint.unlink()
    train(None)
    assert seen[2:] == [False] * 6
    assert not checkpoint.exists()
