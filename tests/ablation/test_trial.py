"""Real trials, tiny ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assay.ablation import trial as trial_module
from assay.ablation.outcomes import read_outcomes
from assay.ablation.trial import OUTCOMES_FILE, TRIAL_FILE, run_jobs, run_trial
from assay.ablation.trial_job import TrialJob
from assay.data.loading import Dataset
from assay.devices import resolve
from assay.evaluation.metrics import score
from assay.evaluation.predictions import predict_probabilities
from assay.models.files import load_model
from assay.params import RunParams, SgdParams
from assay.training.fit import fit
from assay.training.loop import CHECKPOINT_FILE
from tests.training.tiny import FP32, MODEL, TRAIN, tiny_dataset


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialJob:
    dataset, splits = tiny_dataset(tmp_path)
    monkeypatch.setattr(trial_module, "_open_dataset", lambda data, cache_dir: dataset)
    params = RunParams(model=MODEL, train=TRAIN.model_copy(update={"num_epochs": 4}), device=FP32)
    values = params.model_dump(mode="json")
    return TrialJob(
        "baseline", 0, "a" * 64, values, dataset.ref, splits, str(tmp_path), str(tmp_path / "trial"), (1, 2, 4)
    )


def dataset_of(job: TrialJob) -> Dataset:
    return trial_module._open_dataset(job.data, job.cache_dir)


def test_a_trial_is_what_fit_makes_and_evaluation_says(job: TrialJob, tmp_path: Path) -> None:
    trial = run_trial(job)
    assert (trial.state, trial.num_epochs, trial.key) == ("finished", 4, job.key)
    params = RunParams.model_validate(job.params)
    dataset = dataset_of(job)
    alone = fit(dataset, job.splits, params.model, params.train, params.device, tmp_path / "alone")
    module, spec = load_model(Path(alone.model_dir))
    rows = np.load(job.splits.path)["val"]
    labels = np.asarray(dataset.labels[rows])
    probabilities = predict_probabilities(module, spec, dataset, rows, resolve(FP32))
    expected = score(labels, probabilities, 15)
    assert len(trial.metrics) == 4
    assert trial.metrics == pytest.approx({name: expected[name] for name in trial.metrics})
    outcomes = read_outcomes(Path(trial.outcomes_path))
    assert outcomes.epochs.tolist() == [1, 2, 4]
    assert outcomes.labels.tolist() == labels.tolist()
    assert outcomes.at(4)[0].tolist() == probabilities.argmax(axis=1).tolist()
    assert [record.epoch for record in trial.history] == [1, 2, 3, 4]


def test_a_trial_in_parts_gives_the_same_answers(job: TrialJob, tmp_path: Path) -> None:
    whole = run_trial(job)
    first = run_trial(replace(job, run_dir=str(tmp_path / "parts"), looks=(1,)))
    assert (first.state, first.num_epochs) == ("stopped", 1)
    rest = run_trial(replace(job, run_dir=str(tmp_path / "parts")))
    assert Path(rest.outcomes_path).read_bytes() == Path(whole.outcomes_path).read_bytes()
    assert rest.metrics == whole.metrics
    assert rest.seconds > first.seconds


def test_a_trial_that_is_done_is_found_done(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_trial(job)
    monkeypatch.setattr(trial_module, "fit_weights", None)  # nothing is trained
    assert run_trial(job) == first
    assert run_trial(replace(job, variant="another name")) == replace(first, variant="another name")
    assert run_trial(replace(job, looks=(1, 2))) == first


@pytest.mark.parametrize("name", [CHECKPOINT_FILE, OUTCOMES_FILE, TRIAL_FILE])
@pytest.mark.parametrize("damage", ["gone", "cut off", "zeros", "of an earlier look"])
def test_files_that_a_power_cut_damaged_cost_only_training(
    job: TrialJob, tmp_path: Path, name: str, damage: str
) -> None:
    whole = run_trial(job)
    parts = replace(job, run_dir=str(tmp_path / "parts"))
    file = tmp_path / "parts" / name
    run_trial(replace(parts, looks=(1,)))
    earlier = file.read_bytes()
    run_trial(replace(parts, looks=(1, 2)))
    content = file.read_bytes()
    file.write_bytes(
        {
            "gone": b"",
            "cut off": content[: len(content) // 2],
            "zeros": bytes(len(content)),
            "of an earlier look": earlier,
        }[damage]
    )
    if damage == "gone":
        file.unlink()
    rest = run_trial(parts)
    assert Path(rest.outcomes_path).read_bytes() == Path(whole.outcomes_path).read_bytes()
    assert rest.metrics == whole.metrics
    assert [record.val_loss for record in rest.history] == [record.val_loss for record in whole.history]


def test_a_trial_writes_no_model(job: TrialJob) -> None:
    run_trial(job)
    found = {path.name for path in Path(job.run_dir).iterdir()}
    assert found == {CHECKPOINT_FILE, OUTCOMES_FILE, TRIAL_FILE, "lock"}


def test_another_trials_folder_is_not_taken_for_ones_own(job: TrialJob) -> None:
    first = run_trial(job)
    params = json.loads(json.dumps(job.params))
    params["train"]["seed"] = 1
    other = run_trial(replace(job, key="b" * 64, seed=1, params=params))
    assert other.key == "b" * 64
    assert other.history != first.history


def test_a_trial_that_diverges_answers_the_most_frequent_class(job: TrialJob) -> None:
    params = RunParams.model_validate(job.params)
    wild = params.train.model_copy(update={"optimizer": SgdParams(learning_rate=100, momentum=0), "l2": 10.0})
    values = params.model_copy(update={"train": wild}).model_dump(mode="json")
    trial = run_trial(replace(job, params=values, looks=(4,)))
    assert trial.state == "diverged"
    assert "NaN or infinity" in trial.message
    assert len(set(read_outcomes(Path(trial.outcomes_path)).at(4)[0].tolist())) == 1
    assert 0 < trial.metrics["accuracy"] < 0.5
    assert np.isfinite(list(trial.metrics.values())).all()


def test_one_that_fails_holds_none_of_the_others_up(job: TrialJob, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    bad = replace(job, variant="bad", run_dir=str(blocked / "trial"))
    good = replace(job, looks=(1,))
    failed, done = run_jobs([bad.to_json(), good.to_json()])
    assert (failed.state, failed.variant) == ("failed", "bad")
    assert "blocked" in failed.message
    assert done.num_epochs == 1


def test_a_job_survives_the_way_to_another_process(job: TrialJob) -> None:
    assert TrialJob.from_json(json.loads(json.dumps(job.to_json()))) == job
