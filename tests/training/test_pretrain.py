"""Guessing hidden tokens: what is hidden, that it is learned, and that a kill changes nothing."""

import dataclasses
import math
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assay.data.ragged import from_rows
from assay.data.splits import load_split
from assay.data.tokenizer import TextEncoder
from assay.errors import ParamsError
from assay.params import CnnParams, LstmParams, MaskedLanguageStart, TrainParams
from assay.records import PretrainingRecord
from assay.training.fit import fit
from assay.training.pretrain import CHECKPOINT_FILE, hide_tokens
from assay.training.specify import specify
from tests.training.pretrain_until_killed import KILLED_TRAIN, MODEL, TRAIN, text_run
from tests.training.pretrain_until_killed import main as pretrain_until_killed
from tests.training.tiny import BF16, FP32


def pretrained(epochs: int = 2, **values: object) -> TrainParams:
    start = MaskedLanguageStart(num_epochs=epochs, batch_size=16, **values)  # type: ignore[arg-type]
    return TRAIN.model_copy(update={"start": start})


def test_eight_of_ten_chosen_tokens_become_the_mask(tmp_path: Path) -> None:
    dataset, splits = text_run(tmp_path)
    encoder = TextEncoder(specify(dataset, load_split(splits).train, MODEL, TRAIN).tokenizer)
    tokens = torch.randint(3, encoder.num_tokens, (200, 50), generator=torch.Generator().manual_seed(1))
    tokens[:, 40:] = 0
    tokens[:, 0] = encoder.unknown_id
    hidden, places = hide_tokens(tokens, 0.15, encoder, torch.Generator().manual_seed(2))
    was, now = tokens.flatten()[places], hidden.flatten()[places]
    assert len(places) / (200 * 39) == pytest.approx(0.15, abs=0.02)
    assert (was >= 3).all()  # no padding, no unknown
    assert (now == encoder.mask_id).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (now == was).float().mean() == pytest.approx(0.1, abs=0.03)
    others = now[(now != was) & (now != encoder.mask_id)]
    assert len(others) > 50 and (others >= 3).all()
    untouched = torch.ones(tokens.numel(), dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(hidden.flatten()[untouched], tokens.flatten()[untouched])


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_it_learns_to_guess_and_every_epoch_is_told(tmp_path: Path, device: object) -> None:
    dataset, splits = text_run(tmp_path)
    told: list[PretrainingRecord] = []
    train = pretrained(12, learning_rate=0.01)
    fit(dataset, splits, MODEL, train, device, tmp_path / "run", on_pretraining=told.append)  # type: ignore[arg-type]
    num_tokens = TextEncoder(specify(dataset, load_split(splits).train, MODEL, TRAIN).tokenizer).num_tokens
    assert [record.epoch for record in told] == list(range(1, 13))
    assert told[0].loss < 1.1 * math.log(num_tokens)
    assert told[-1].loss < 0.85 * told[0].loss
    again: list[PretrainingRecord] = []
    fit(dataset, splits, MODEL, train, device, tmp_path / "run", on_pretraining=again.append)  # type: ignore[arg-type]
    assert again == told


def test_training_goes_on_from_what_was_learned_and_scratch_is_another_run(tmp_path: Path) -> None:
    dataset, splits = text_run(tmp_path)
    still = {"optimizer": {"kind": "sgd", "learning_rate": 1e-8, "momentum": 0.0}, "num_epochs": 1}
    train = TrainParams.model_validate({**pretrained().model_dump(), **still})
    fit(dataset, splits, MODEL, train, FP32, tmp_path / "a")
    learned = load_file(tmp_path / "a" / CHECKPOINT_FILE)
    model = load_file(tmp_path / "a" / "model" / "weights.safetensors")
    for name, tensor in model.items():
        if not name.startswith(("output.", "pooling.")):
            assert torch.allclose(tensor, learned[f"module.encoder.{name}"], atol=1e-5), name
    scratch = TrainParams.model_validate({**TRAIN.model_dump(), **still})
    fit(dataset, splits, MODEL, scratch, FP32, tmp_path / "b")
    other = load_file(tmp_path / "b" / "model" / "weights.safetensors")
    assert not torch.allclose(other["tokens.weight"], model["tokens.weight"], atol=1e-3)
    assert torch.allclose(other["output.weight"], model["output.weight"], atol=1e-5)  # the head starts as ever


def test_only_texts_of_train_are_read_and_no_label(tmp_path: Path) -> None:
    dataset, splits = text_run(tmp_path)
    train_rows = set(load_split(splits).train.tolist())
    kept = [
        dataset.inputs.row(row) if row in train_rows else np.frombuffer(b"other words here", np.uint8)  # type: ignore
        for row in range(len(dataset.labels))
    ]
    other = dataclasses.replace(dataset, inputs=from_rows(kept), labels=1 - dataset.labels)
    weights = []
    for name, data in (("a", dataset), ("b", other)):
        fit(data, splits, MODEL, pretrained(), FP32, tmp_path / name)
        weights.append(load_file(tmp_path / name / CHECKPOINT_FILE))
    for name in weights[0]:
        if "timestamp" not in name:
            assert torch.equal(weights[0][name], weights[1][name]), name


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_cut_short_between_epochs_it_ends_in_the_same_bytes(tmp_path: Path, device: object) -> None:
    dataset, splits = text_run(tmp_path)
    train = pretrained(3)
    whole = fit(dataset, splits, MODEL, train, device, tmp_path / "whole")  # type: ignore[arg-type]

    def cut(record: PretrainingRecord) -> None:
        if record.epoch == 2:
            raise _PowerCutError

    with pytest.raises(_PowerCutError):
        fit(dataset, splits, MODEL, train, device, tmp_path / "cut", on_pretraining=cut)  # type: ignore[arg-type]
    told: list[PretrainingRecord] = []
    parts = fit(dataset, splits, MODEL, train, device, tmp_path / "cut", on_pretraining=told.append)  # type: ignore
    assert [record.epoch for record in told] == [1, 2, 3]
    assert parts.weights_sha256 == whole.weights_sha256


@pytest.mark.slow
def test_killed_while_pretraining_it_ends_in_the_same_bytes(tmp_path: Path, killable: ForkServerContext) -> None:
    dataset, splits = text_run(tmp_path / "whole")
    unbroken = fit(dataset, splits, MODEL, KILLED_TRAIN, FP32, tmp_path / "whole" / "run")
    checkpoint = tmp_path / "broken" / "run" / CHECKPOINT_FILE
    kills, seen = 0, 0.0
    while kills < 3:
        process = killable.Process(target=pretrain_until_killed, args=(tmp_path / "broken",))
        process.start()
        while process.is_alive() and (not checkpoint.exists() or checkpoint.stat().st_mtime <= seen):
            time.sleep(0.002)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "broken" / "run" / "checkpoint.safetensors").exists()
        kills, seen = kills + 1, checkpoint.stat().st_mtime
    assert kills >= 2, "pretraining was over before it could be killed"
    dataset, splits = text_run(tmp_path / "broken")
    resumed = fit(dataset, splits, MODEL, KILLED_TRAIN, FP32, tmp_path / "broken" / "run")
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_a_damaged_checkpoint_is_said_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, splits = text_run(tmp_path)
    whole = fit(dataset, splits, MODEL, pretrained(), FP32, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    assert fit(dataset, splits, MODEL, pretrained(), FP32, tmp_path / "run").weights_sha256 == whole.weights_sha256
    assert "pretraining starts from the beginning" in caplog.text


@pytest.mark.parametrize("model", [LstmParams(), CnnParams()], ids=["lstm", "cnn"])
def test_other_models_say_that_they_cannot(tmp_path: Path, model: object) -> None:
    dataset, splits = text_run(tmp_path)
    with pytest.raises(ParamsError, match="masked-language: trains a transformer on texts"):
        fit(dataset, splits, model, pretrained(), FP32, tmp_path / "run")  # type: ignore[arg-type]
