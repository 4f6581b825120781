"""What a run will depend on, found out before anything heavy starts.

A plan costs tenths of a second and imports neither torch nor prefect, so asking "has this been done already?"
is cheap. The answer always comes with its reason.
"""

from dataclasses import dataclass
from functools import lru_cache

from assay.data.run_data import data_of_run
from assay.devices import Compute, resolve
from assay.params import RunParams
from assay.project import Project
from assay.records import DataRef, RunKey, StartRef
from assay.tracking.run_key import compute_run_key, explain_difference
from assay.tracking.runs import FinishedRun, Tracker
from assay.tracking.starts import find_start


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's result.

    Attributes:
        data: Verified data, every byte hashed.
        compute: Device, precision and threads.
        key: The run key over all of it.
        start: The files that training starts from; None without any.
    """

    data: DataRef
    compute: Compute
    key: RunKey
    start: StartRef | None = None


@lru_cache(maxsize=8)
def make_plan(project: Project, params: RunParams) -> Plan:
    """Verify the data (bringing it here if it is missing) and compute the run key; once a process.

    Raises:
        DataError: The data cannot be had, or is not what is pinned.
        DeviceError: The device or precision is not there.
        ModelFileError: What training is to start from is not there.
    """
    data = data_of_run(project, params.data)
    compute = resolve(params.device)
    start = find_start(project, params.train.start, params.registry)
    digest = start.digest if start else ""
    key = compute_run_key(project, params, data.md5, compute, project.flow_file, digest)
    return Plan(data, compute, key, start)


@lru_cache(maxsize=8)
def open_tracker(project: Project, experiment: str) -> Tracker:
    """Open the project's store, once a process: making MLflow's client takes a second."""
    return Tracker.open(project, experiment)


def look_back(tracker: Tracker, key: RunKey) -> tuple[FinishedRun | None, tuple[str, ...]]:
    """Find the finished run of this key, and say why it can be reused or why there is none.

    Returns:
        The finished run, or None; and the reasons, in sentences.
    """
    finished = tracker.find_finished(key)
    return finished, why_reused(finished) if finished else why_not_reused(tracker, key)


def why_reused(finished: FinishedRun) -> tuple[str, ...]:
    """Say why a finished run stands for a new one."""
    return (f"data, params, code and packages are those of run {finished.run_id}",)


def why_not_reused(tracker: Tracker, key: RunKey) -> tuple[str, ...]:
    """Say in which parts a key differs from that of the nearest finished run."""
    nearest = tracker.nearest(key)
    if nearest is None:
        return (f"there is no finished run in experiment {tracker.experiment!r} yet",)
    if nearest.digest == key.digest:
        return ("the finished run of this key has no registered version",)
    return explain_difference(nearest, key)
