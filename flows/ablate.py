"""The ablation: order, processes and pages; what is trained and what it means is decided in `assay.ablation`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from assay import progress
from assay.ablation import pool
from assay.ablation.ablate import describe, describe_plan, open_ablation
from assay.ablation.engine import Submit
from assay.ablation.request import find_done, num_workers, request, require_consent
from assay.ablation.trial_job import TrialJob
from assay.params import (
    AblationParams,
    CnnParams,
    DataParams,
    DeviceParams,
    ModelParams,
    RegistryParams,
    RunParams,
    SplitParams,
    TrainParams,
)
from assay.project import Project, find_project
from assay.records import AblationPlan, AblationRecord, Trial
from flows import page

_pools: list[pool.TrialPool] = []


@task(name="Train trials", cache_policy=NO_CACHE)
def train_in_pool(jobs: list[dict[str, Any]]) -> list[Trial]:
    """Have a process of this machine train some trials; the task itself only waits for it."""
    return _pools[-1].run(jobs)


@task(name="Train trials", cache_policy=NO_CACHE)
def train_on_ray(jobs: list[dict[str, Any]], environment: Mapping[str, str]) -> list[Trial]:
    """Train some trials in the process that runs this task."""
    import os

    os.environ.update(environment)
    from assay.ablation.trial import run_jobs

    return run_jobs(jobs)


@contextmanager
def trials_started(params: RunParams, device: str, workers: int) -> Iterator[Submit]:
    """Start what runs the trials: processes of this machine, or a Ray cluster.

    Args:
        params: All params.
        device: ``cpu``, ``cuda`` or ``tpu``.
        workers: Trials at a time.

    Yields:
        What starts some trials.
    """
    if params.ablation.runner == "ray":
        from flows.ray_cluster import ray_runner

        environment = pool.ONE_THREAD if device == "cpu" else {}
        with ray_runner(workers) as runner:
            yield lambda jobs: runner.submit(
                _named(train_on_ray, jobs), {"jobs": _values(jobs), "environment": environment}
            )
        return
    with pool.take(pool.environments(device, workers)) as started, _threads(2 * workers) as runner:
        _pools.append(started)
        try:
            yield lambda jobs: runner.submit(_named(train_in_pool, jobs), {"jobs": _values(jobs)})
        except BaseException:
            started.close()  # first, or leaving the threads would wait for what is being trained
            raise
        finally:
            _pools.remove(started)


def _threads(number: int) -> "ThreadPoolTaskRunner[Any]":
    return ThreadPoolTaskRunner(number)


def _named(trials: Any, jobs: list[TrialJob]) -> Any:
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    name = f"Train {jobs[0].name}{more}"
    return trials.with_options(task_run_name=name.replace("{", "{{").replace("}", "}}"))


def _values(jobs: list[TrialJob]) -> list[dict[str, Any]]:
    return [job.to_json() for job in jobs]


@flow(name="ablate", persist_result=False)
def ablate(
    data: DataParams = DataParams(),
    split: SplitParams = SplitParams(),
    model: ModelParams = CnnParams(),
    train: TrainParams = TrainParams(),
    device: DeviceParams = DeviceParams(),
    registry: RegistryParams = RegistryParams(),
    ablation: AblationParams = AblationParams(),
    project_dir: Path | None = None,
) -> AblationRecord:
    """Train every level with every seed, and say which ones help.

    Args:
        data: Which data, where it is not what data.dvc pins.
        split: How the data is divided.
        model: The baseline's model.
        train: How the baseline is trained.
        device: Where to compute.
        registry: Which MLflow experiment the ablation stands beside.
        ablation: Factors, levels, seeds, and how sure to be.
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        What the ablation came to.
    """
    params = RunParams(
        data=data, split=split, model=model, train=train, device=device, registry=registry, ablation=ablation
    )
    with page.progress_shown():
        record = run_ablation(find_project(project_dir), params, progress.Stopwatch())
    return page.completed(record, describe(record))


def run_ablation(project: Project, params: RunParams, watch: progress.Stopwatch) -> AblationRecord:
    """Ablate, or find that it has been done; to be called within a flow."""
    with watch.stage("ablation", "laying out the trials"):
        wanted = request(project, params)
        found = find_done(wanted)
    if found is not None:
        page.show_ablation(found)
        return found
    workers = num_workers(params, wanted.compute.device)
    with trials_started(params, wanted.compute.device, workers) as submit:
        ablation = open_ablation(wanted)
        require_consent(ablation.plan(), params.ablation)
        with watch.stage("ablate", "training the baseline") as words:
            ablation.choose_seeds(submit)
            _show_plan(ablation.plan())
            record = ablation.run(submit, _show_plan, name=page.own_name() or "ablation", page=page.own_page())
            words.append(describe(record))
    page.show_ablation(record)
    return record


def _show_plan(plan: AblationPlan) -> None:
    page.show_plan(plan, describe_plan(plan))
    progress.announce("plan", describe_plan(plan), finished=True)
