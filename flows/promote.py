"""The gate as a flow: a registered version meets the champion, and MLflow's alias follows what is decided."""

from contextlib import closing
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from assay import progress
from assay.data.loading import load_dataset
from assay.data.splits import make_splits
from assay.params import (
    DataParams,
    DeviceParams,
    EvaluationParams,
    GateParams,
    RegistryParams,
    RunParams,
    SplitParams,
    load_params,
)
from assay.plan import make_plan, open_tracker
from assay.project import Project, find_project
from assay.records import Decision
from assay.registry.contest import TestBench
from assay.registry.ledger import Ledger
from assay.registry.load import latest_version
from assay.registry.promote import meet_gate
from assay.registry.promotions import Promotions
from flows import page


@task(name="Ask the gate", cache_policy=NO_CACHE)
def ask_gate(bench: TestBench, name: str, version: int, forced_reason: str = "") -> Decision:
    """Compare a version with the champion on test, decide, and move the champion if it is to move."""
    with closing(Ledger(bench.tracker.project)) as ledger:
        promotions = Promotions(ledger, bench.tracker.store.shown_uri)
        decision = meet_gate(
            bench, promotions, name, version, forced_reason=forced_reason, flow_run_id=page.own_id() or ""
        )
    page.show_decision(decision)
    return decision


@flow(name="promote", persist_result=False)
def promote(
    version: int | None = None,
    forced_reason: str = "",
    data: DataParams = DataParams(),
    split: SplitParams = SplitParams(),
    evaluation: EvaluationParams = EvaluationParams(),
    device: DeviceParams = DeviceParams(),
    registry: RegistryParams = RegistryParams(),
    gate: GateParams = GateParams(),
    project_dir: Path | None = None,
) -> Decision:
    """Have a registered version meet the gate.

    Args:
        version: Which version; the latest by default.
        forced_reason: Why it is to be champion whatever the gate finds; empty leaves it to the gate.
        data: Which data, where it is not what data.dvc pins.
        split: How the data of today is divided; both versions answer its test.
        evaluation: How the test results are computed.
        device: Where to compute.
        registry: Which model.
        gate: What the version has to show.
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        The decision.
    """
    project = find_project(project_dir)
    params = load_params(project.params_file).of_run()
    params = params.model_copy(
        update={
            "data": data,
            "split": split,
            "evaluation": evaluation,
            "device": device,
            "registry": registry,
            "gate": gate,
        }
    )
    with page.progress_shown():
        decision = run_gate(project, params, version, forced_reason, progress.Stopwatch())
    return page.completed(decision, page.describe_decision(decision), page.outcome_of(decision))


def run_gate(
    project: Project, params: RunParams, version: int | None, forced_reason: str, watch: progress.Stopwatch
) -> Decision:
    """Lay out the test examples of today and ask; to be called within a flow."""
    name = params.registry.model_name
    with watch.stage("data", "hashing every pinned byte"):
        data = make_plan(project, params).data
        dataset = load_dataset(data, project.cache_dir)
        splits = make_splits(dataset, params.split, project.home / "gate")
    with watch.stage("gate", "loading the version from the registry") as words:
        tracker = open_tracker(project, params.registry.experiment)
        number = latest_version(tracker, name) if version is None else version
        decision = ask_gate(TestBench(tracker, dataset, splits, params), name, number, forced_reason)
        words.append(page.describe_decision(decision))
    return decision
