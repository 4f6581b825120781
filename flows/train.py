"""Training alone: the chain up to the choice on val. Test is not looked at and nothing is registered."""

from pathlib import Path

from prefect import flow

from assay import progress
from assay.params import (
    CnnParams,
    DataParams,
    DeviceParams,
    ModelParams,
    RegistryParams,
    RunParams,
    SplitParams,
    TrainParams,
    load_params,
)
from assay.plan import look_back, open_tracker
from assay.project import find_project, only_one
from assay.records import TrainResult
from flows import page
from flows.pipeline import check_and_train, open_job


@flow(name="train", persist_result=False)
def train(
    data: DataParams = DataParams(),
    split: SplitParams = SplitParams(),
    model: ModelParams = CnnParams(),
    train: TrainParams = TrainParams(),
    device: DeviceParams = DeviceParams(),
    registry: RegistryParams = RegistryParams(),
    project_dir: Path | None = None,
) -> TrainResult | None:
    """Train and choose on val. A whole run with the same params later goes on from here.

    Args:
        data: Which data, where it is not what data.dvc pins.
        split: How the data is divided.
        model: Which model.
        train: How to train it.
        device: Where to compute.
        registry: Which MLflow experiment shows the run.
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        What training came to; None where a whole run with these params stands already.
    """
    project = find_project(project_dir)
    evaluation = load_params(project.params_file).evaluation
    params = RunParams(
        data=data, split=split, model=model, train=train, evaluation=evaluation, device=device, registry=registry
    )
    watch = progress.Stopwatch()
    with page.progress_shown():
        job = open_job(project, params, watch)
        tracker = open_tracker(project, registry.experiment)
        with only_one(job.run_dir / "lock", on_wait=lambda: None):
            finished, reasons = look_back(tracker, job.plan.key)
            if finished is not None:
                page.show_result(tracker.load_record(finished.run_id).again(reasons, {}), finished.experiment_id)
                return None
            run, _, trained = check_and_train(job, watch)
            tracker.finish_training(run.run_id)
    page.show_training(trained, run.experiment_id, run.run_id)
    return page.completed(trained, f"{trained.describe()}.")
