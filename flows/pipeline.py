"""The whole chain: version the data, validate, split, train, evaluate on test, register, and meet the gate."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from assay import progress
from assay.ablation.ablate import chosen
from assay.data.loading import Dataset, load_dataset
from assay.data.splits import make_splits
from assay.data.validation import validate
from assay.evaluation.evaluate import evaluate
from assay.evaluation.predictions import read_predictions
from assay.models.build import require_fit
from assay.nightly import PROFILE_FILE, profile_with_answers
from assay.params import (
    AblationParams,
    CnnParams,
    DataParams,
    DeviceParams,
    EvaluationParams,
    GateParams,
    ModelParams,
    RegistryParams,
    RunParams,
    SplitParams,
    TrainParams,
)
from assay.plan import Plan, look_back, make_plan, open_tracker
from assay.project import Project, find_project, only_one
from assay.records import (
    DataRef,
    DataReport,
    Decision,
    EpochRecord,
    Evaluation,
    ModelRef,
    PretrainingRecord,
    RunRecord,
    Splits,
    TrainResult,
)
from assay.registry.contest import TestBench
from assay.registry.register import example_inputs_of, register
from assay.tracking.lineage import ABLATION_TAG, WARNINGS_TAG
from assay.tracking.runs import RECORD_FILE, OpenRun, Tracker
from assay.training.fit import fit
from assay.training.loop import CHECKPOINT_FILE
from assay.training.pretrain import CHECKPOINT_FILE as PRETRAINING_FILE
from assay.training.start import model_of
from flows import page
from flows.ablate import run_ablation
from flows.promote import ask_gate


@dataclass(frozen=True)
class Job:
    """What every stage of one run works on.

    Attributes:
        project: The project.
        params: Every choice of the run.
        plan: The verified data, the device and the run key.
        run_dir: Folder of this run alone.
        ablation_run: MLflow run of the ablation that came first; empty without one.
    """

    project: Project
    params: RunParams
    plan: Plan
    run_dir: Path
    ablation_run: str = ""

    @property
    def data(self) -> DataRef:
        """The verified data."""
        return self.plan.data


@task(name="Hash every pinned byte of the data", cache_policy=NO_CACHE)
def version_data(project: Project, params: RunParams) -> Plan:
    """Verify the data against its pin and find out all that the run depends on."""
    plan = make_plan(project, params)
    page.show_record("data", "The pinned data", plan.data)
    return plan


@task(name="Validate the examples", cache_policy=NO_CACHE)
def validate_data(job: Job) -> DataReport:
    """Refuse data that a run cannot live with, or that its model cannot take."""
    report = validate(_dataset(job))
    require_fit(job.params.model, job.data.kind, job.data.shape)
    page.show_record("validation", "What validation saw", report)
    return report


@task(name="Split into train, val and test", cache_policy=NO_CACHE)
def split_data(job: Job) -> Splits:
    """Divide the examples; no example, duplicate or group crosses a split."""
    splits = make_splits(_dataset(job), job.params.split, job.run_dir)
    page.show_record("splits", "Train, val and test", splits)
    return splits


@task(name="Train the model", cache_policy=NO_CACHE)
def train_model(job: Job, splits: Splits, run: OpenRun) -> TrainResult:
    """Train on train and choose on val; goes on from a checkpoint where there is one."""
    params = job.params

    def log(record: EpochRecord) -> None:
        stream.log_epoch(record)
        _announce_epoch(record, params.train.num_epochs)

    def log_pretraining(record: PretrainingRecord) -> None:
        stream.log_pretraining(record)
        progress.announce("train", f"pretraining, epoch {record.epoch}: loss {record.loss:.4f}")

    with _tracker(job).metrics(run) as stream:
        trained = fit(
            _dataset(job),
            splits,
            params.model,
            params.train,
            params.device,
            job.run_dir,
            start=job.plan.start,
            on_epoch=log,
            on_steps=stream.log_steps,
            on_pretraining=log_pretraining,
        )
        stream.training_done()
    page.show_table("training", "Every epoch of training", [_without_health(record) for record in trained.history])
    if trained.warnings:
        _tracker(job).set_tag(run.run_id, WARNINGS_TAG, "\n".join(trained.warnings))
    return trained


@task(name="Evaluate on test, once", cache_policy=NO_CACHE)
def evaluate_model(job: Job, splits: Splits, trained: TrainResult, run: OpenRun) -> Evaluation:
    """Compute the test metrics with intervals, beside the baselines."""
    tracker = _tracker(job)
    evaluation = evaluate(
        _dataset(job),
        splits,
        trained,
        job.params.evaluation,
        job.params.device,
        job.run_dir,
        lineage=tracker.lineage(run.run_id),
    )
    tracker.log_evaluation(run.run_id, evaluation)
    answers = read_predictions(Path(evaluation.predictions_path))
    profile = profile_with_answers(_dataset(job), answers.rows, answers.probabilities)
    tracker.log_json(run.run_id, profile.to_json(), PROFILE_FILE)
    page.show_table(
        "evaluation",
        f"{evaluation.num_test} test examples, {evaluation.confidence:.0%} intervals",
        [{"metric": name} | interval.to_json() for name, interval in evaluation.metrics.items()],
    )
    return evaluation


@task(name="Register the model", cache_policy=NO_CACHE)
def register_model(job: Job, trained: TrainResult, evaluation: Evaluation, run: OpenRun) -> ModelRef:
    """Add a version to the registry, with its manifest and its way back to data, code and params."""
    examples = example_inputs_of(trained, _dataset(job))
    model = register(_tracker(job), run.run_id, trained, evaluation, job.params, examples)
    page.show_record("model", "The registered version", model)
    return model


@flow(name="pipeline", persist_result=False)
def pipeline(
    data: DataParams = DataParams(),
    split: SplitParams = SplitParams(),
    model: ModelParams = CnnParams(),
    train: TrainParams = TrainParams(),
    evaluation: EvaluationParams = EvaluationParams(),
    device: DeviceParams = DeviceParams(),
    registry: RegistryParams = RegistryParams(),
    ablation: AblationParams = AblationParams(),
    gate: GateParams = GateParams(),
    project_dir: Path | None = None,
) -> RunRecord:
    """Run the whole chain, or find that it has been done.

    Args:
        data: Which data, where it is not what data.dvc pins.
        split: How the data is divided.
        model: Which model.
        train: How to train it.
        evaluation: How to measure it on test.
        device: Where to compute.
        registry: Where results go.
        ablation: Which levels to compare first, where `in_run` asks for it.
        gate: What the version has to show to become champion.
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        What the run came to.
    """
    params = RunParams(
        data=data,
        split=split,
        model=model,
        train=train,
        evaluation=evaluation,
        device=device,
        registry=registry,
        ablation=ablation,
        gate=gate,
    )
    with page.progress_shown():
        record = run_chain(find_project(project_dir), params)
    return page.completed(record, page.describe(record), page.outcome_of(record.decision))


def run_chain(project: Project, params: RunParams) -> RunRecord:
    """Chain the tasks; to be called within a flow."""
    watch = progress.Stopwatch()
    job = open_job(project, params, watch)
    if params.ablation.in_run:
        job = _ablate_first(job, watch)
    with only_one(job.run_dir / "lock", on_wait=_announce_wait):
        tracker = _tracker(job)
        finished, reasons = look_back(tracker, job.plan.key)
        if finished is not None:
            record = tracker.load_record(finished.run_id)
            if params.gate.in_run and record.decision is None:
                record = _meet_gate_late(job, record, finished.model, watch)
            record = record.again(reasons, watch.seconds)
            page.show_result(record, finished.experiment_id)
            return record
        run, splits, trained = check_and_train(job, watch)
        with tracker.failure_noted(run.run_id):
            with watch.stage("evaluate", "on test, once") as words:
                evaluation = evaluate_model(job, splits, trained, run)
                words.append(evaluation.describe())
            with watch.stage("register", "exporting and hashing") as words:
                model = register_model(job, trained, evaluation, run)
                words.append(f"{model.name} version {model.version}")
            decision = _meet_gate(job, splits, model, watch) if job.params.gate.in_run else None
            record = RunRecord.of(
                job.plan.key, job.data, splits, trained, evaluation, model, reasons, watch.seconds, decision
            )
            tracker.finish(run.run_id, record)
    page.show_result(record, run.experiment_id, [Path(file).name for file in evaluation.figures.values()])
    return record


def _meet_gate(job: Job, splits: Splits, model: ModelRef, watch: progress.Stopwatch) -> Decision:
    """Have the new version compared with the champion."""
    with watch.stage("gate", "loading the version from the registry") as words:
        bench = TestBench(_tracker(job), _dataset(job), splits, job.params)
        decision = ask_gate(bench, model.name, model.version)
        words.append(page.describe_decision(decision))
    return decision


def _meet_gate_late(job: Job, record: RunRecord, model: ModelRef, watch: progress.Stopwatch) -> RunRecord:
    """Have a version meet the gate whose run was not asked to; its run's record keeps what was decided."""
    splits = split_data(job)
    record = replace(record, decision=_meet_gate(job, splits, model, watch))
    _tracker(job).log_json(record.run_id, record.to_json(), RECORD_FILE)
    return record


def _ablate_first(job: Job, watch: progress.Stopwatch) -> Job:
    """Ablate before test is touched; where the params say so, go on with the levels that won."""
    record = run_ablation(job.project, job.params, watch)
    job = replace(job, ablation_run=record.run_id)
    return replace(job, params=chosen(job.params, record)) if job.params.ablation.choose else job


def open_job(project: Project, params: RunParams, watch: progress.Stopwatch) -> Job:
    """Verify the data and settle on the run key and the folder that belongs to it."""
    with watch.stage("data", "hashing every pinned byte") as words:
        plan = version_data(project, params)
        words.append(f"{plan.data.source}, {plan.data.num_examples:,} examples, md5 {plan.data.md5[:8]}")
    if plan.start is not None:  # its architecture is the run's, whatever the model section says
        params = params.model_copy(update={"model": model_of(plan.start, params.train.start)})
    return Job(project, params, plan, project.runs_dir / plan.key.digest[:16])


def check_and_train(job: Job, watch: progress.Stopwatch) -> tuple[OpenRun, Splits, TrainResult]:
    """Validate, split and train; opens the MLflow run, which stays RUNNING."""
    with watch.stage("check", "validating and splitting") as words:
        report = validate_data(job)
        splits = split_data(job)
        words.append(f"{len(report.class_counts)} classes; {splits.describe()}")
    tracker = _tracker(job)
    resumable = any((job.run_dir / name).exists() for name in (CHECKPOINT_FILE, PRETRAINING_FILE))
    run = tracker.open_run(
        job.plan.key, job.params, job.data, splits, name=page.own_name() or job.params.model.kind, resumable=resumable
    )
    link = page.own_page()
    if link is not None:
        tracker.link_page(run.run_id, link)
    if job.ablation_run:
        tracker.set_tag(run.run_id, ABLATION_TAG, job.ablation_run)
    with tracker.failure_noted(run.run_id), watch.stage("train", "starting") as words:
        trained = train_model(job, splits, run)
        words.append(trained.describe())
    return run, splits, trained


@lru_cache(maxsize=1)
def _open_dataset(data: DataRef, cache_dir: Path) -> Dataset:
    return load_dataset(data, cache_dir)


def _dataset(job: Job) -> Dataset:
    """The decoded examples, opened and checked once a process."""
    return _open_dataset(job.data, job.project.cache_dir)


def _tracker(job: Job) -> Tracker:
    return open_tracker(job.project, job.params.registry.experiment)


def _without_health(record: EpochRecord) -> dict[str, Any]:
    """An epoch's numbers for a table; those of its layers are in MLflow and in the report."""
    return {name: value for name, value in record.to_json().items() if name != "health"}


def _announce_epoch(record: EpochRecord, num_epochs: int) -> None:
    text = f"epoch {record.epoch}: val loss {record.val_loss:.4f}, val accuracy {record.val_accuracy:.4f}"
    progress.announce("train", text, done=record.epoch, total=num_epochs)


def _announce_wait() -> None:
    progress.announce("data", "the same run is under way in another process: waiting for it")
