"""SIGKILL at random moments; the run goes on and ends in the same bytes."""

import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from safetensors.torch import load_file

from assay.errors import NonFiniteError
from assay.params import AdamParams, CropFlipAugmentation, SgdParams
from assay.records import StepRecords
from assay.training.fit import fit
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset
from tests.training.train_until_killed import KILLED_TRAIN
from tests.training.train_until_killed import main as train_until_killed


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_runs_end_in_the_same_bytes(tmp_path: Path, killable: ForkServerContext, precision: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    dataset, splits = tiny_dataset(whole)
    device = BF16 if precision == "bf16" else FP32
    unbroken = fit(dataset, splits, MODEL, KILLED_TRAIN, device, whole / "run")

    chance, kills, told = random.Random(precision), 0, broken / "told"
    while kills < 4:
        before = told.read_text() if told.exists() else ""
        process = killable.Process(target=train_until_killed, args=(broken, precision))
        process.start()
        while process.is_alive() and (not told.exists() or told.read_text() == before):
            time.sleep(0.002)  # it trains: steps were told since this process began
        time.sleep(chance.uniform(0, 0.15))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 2, "the run was over before it could be killed"

    dataset, splits = tiny_dataset(broken)
    resumed = fit(dataset, splits, MODEL, KILLED_TRAIN, device, broken / "run")
    name = "model/weights.safetensors"
    assert (broken / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert 0 < resumed.resumed_from_step <= resumed.num_steps
    for ours, theirs in zip(resumed.history, unbroken.history, strict=True):
        assert {**ours.to_json(), "seconds": 0, "timestamp_ms": 0} == {
            **theirs.to_json(), "seconds": 0, "timestamp_ms": 0,
        }  # fmt: skip
    assert not list((broken / "run").glob("*.tmp")) or resumed.weights_sha256 == unbroken.weights_sha256


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [SgdParams(), AdamParams()], ids=["sgd", "adam"])
@pytest.mark.parametrize("cut_at", [1, 7, 20])
def test_a_run_cut_mid_epoch_goes_on_where_it_was(tmp_path: Path, device, optimizer, cut_at: int) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(
        update={
            "optimizer": optimizer,
            "checkpoint_every_seconds": 0.0,
            "augmentation": CropFlipAugmentation(padding_pixels=1),
        }
    )
    steps: list[list[StepRecords]] = [[], []]
    fit(dataset, splits, MODEL, train, device, tmp_path / "whole")

    def cut(part: StepRecords) -> None:
        steps[0].append(part)
        if part.step[-1] >= cut_at:
            raise _PowerCutError

    if cut_at < 18:  # 3 epochs of 6 steps
        with pytest.raises(_PowerCutError):
            fit(dataset, splits, MODEL, train, device, tmp_path / "cut", on_steps=cut)
    else:
        fit(dataset, splits, MODEL, train, device, tmp_path / "cut", on_steps=cut)
    result = fit(dataset, splits, MODEL, train, device, tmp_path / "cut", on_steps=steps[1].append)
    whole, cut_short = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    same = {name for name in whole if "timestamp" not in name}
    assert whole.keys() == cut_short.keys()
    assert all(whole[name].equal(cut_short[name]) for name in same)
    first = [pair for part in steps[0] for pair in zip(part.step, part.timestamp_ms, strict=True)]
    again = [pair for part in steps[1] for pair in zip(part.step, part.timestamp_ms, strict=True)]
    assert again[: len(first)] == first
    assert [step for step, _ in again] == list(range(1, result.num_steps + 1))


def test_a_failed_step_fails_again_at_the_same_place(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(
        update={
            "num_epochs": 30,
            "l2": 10.0,
            "optimizer": SgdParams(learning_rate=100, momentum=0),
            "checkpoint_every_seconds": 0.0,
        }
    )
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteError) as caught:
            fit(dataset, splits, MODEL, train, FP32, tmp_path / "run")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
