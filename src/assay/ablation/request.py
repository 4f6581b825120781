"""An ablation that somebody wants: its design, what it depends on, and whether it has been done."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from assay.ablation.design import Design, make_design
from assay.data.run_data import data_of_run
from assay.devices import Compute, default_threads, resolve
from assay.errors import ParamsError
from assay.params import AblationParams, RunParams, StartParams, flatten
from assay.project import Project
from assay.records import (
    AblationPlan,
    AblationRecord,
    DataRef,
    RunKey,
    StartRef,
)
from assay.tracking.ablations import AblationRuns
from assay.tracking.run_key import (
    assemble_key,
    constraints_file,
    explain_difference,
    module_hashes,
    package_versions,
    source_hashes,
)
from assay.tracking.starts import find_start

TRIAL_MODULE = "assay.ablation.trial"
"""What a trial's result depends on is this module and all that it imports."""


TRIAL_SECTIONS = ("split", "model", "train")


_UNKEYED = frozenset({"in_run", "choose", "max_trials", "num_workers", "runner"})
"""Params of the ablation that change no verdict."""


@dataclass(frozen=True)
class Request:
    """An ablation that somebody wants, and all that decides what comes of it.

    Attributes:
        project: The project.
        params: All of its params.
        design: What is trained and compared.
        data: The verified data.
        compute: Device, precision and threads of a trial.
        source: Files that a trial depends on -> SHA-256.
        packages: Packages -> version.
        key: The ablation's run key.
    """

    project: Project
    params: RunParams
    design: Design
    data: DataRef
    compute: Compute
    source: Mapping[str, str]
    packages: Mapping[str, str]
    key: RunKey

    @cached_property
    def runs(self) -> AblationRuns:
        """The ablations of the project's store."""
        return AblationRuns(self.project, self.params.registry.experiment)

    @property
    def folder(self) -> Path:
        """Folder of this ablation alone."""
        return self.project.home / "ablations" / self.key.digest[:16]

    def starts(self, design: Design) -> dict[str, StartRef]:
        """Return what the trials of each variant start from; only variants that start from files."""
        return _starts(self.project, design)

    def trial_keys(self, design: Design) -> dict[tuple[str, int], str]:
        """Return the digest of each trial's run key, by variant and seed."""
        keys, starts = {}, self.starts(design)
        for variant in design.variants:
            start = starts.get(variant.name)
            for seed in design.seeds:
                params = design.params_of(variant, seed)
                values = _values(params, TRIAL_SECTIONS)
                if self.params.ablation.resample_splits:
                    values["ablation.resample_splits"] = True
                compute = replace(self.compute, precision=resolve(params.device).precision)
                key = assemble_key(
                    values, self.data.md5, compute, self.source, self.packages, start.digest if start else ""
                )
                keys[(variant.name, seed)] = key.digest
        return keys


def request(project: Project, params: RunParams) -> Request:
    """Lay out an ablation and find out what it depends on; neither torch nor MLflow is imported.

    Raises:
        ParamsError: There is nothing to compare, or a factor or level is not valid.
        DataError: The data cannot be had, or is not what is pinned.
        DeviceError: The device or precision is not there.
    """
    design = make_design(params)
    data = data_of_run(project, params.data)
    compute = trial_compute(params)
    packages = package_versions(constraints_file(project))
    values = _values(design.baseline, TRIAL_SECTIONS) | {
        f"ablation.{name}": value
        for name, value in flatten(params.ablation).items()
        if name.partition(".")[0] not in _UNKEYED
    }
    flow_file = project.flow_file.with_name("ablate.py")
    starts = {start.digest for start in _starts(project, design).values()}
    if starts:
        values["train.start.digest"] = hashlib.sha256(" ".join(sorted(starts)).encode()).hexdigest()
    key = assemble_key(values, data.md5, compute, source_hashes(flow_file, project.cache_dir), packages)
    source = module_hashes([TRIAL_MODULE], project.cache_dir)
    return Request(project, params, design, data, compute, source, packages, key)


def _starts(project: Project, design: Design) -> dict[str, StartRef]:
    """Find what each variant starts from; files that several start from are hashed once.

    Raises:
        ModelFileError: What a variant is to start from is not there.
    """
    found: dict[StartParams, StartRef | None] = {}
    starts = {}
    for variant in design.variants:
        params = design.params_of(variant, design.seeds[0])
        if params.train.start not in found:
            found[params.train.start] = find_start(project, params.train.start, params.registry)
        start = found[params.train.start]
        if start is not None:
            starts[variant.name] = start
    return starts


def trial_compute(params: RunParams) -> Compute:
    """Return where a trial computes: with one thread, so that on a CPU as many run as there are cores."""
    return replace(resolve(params.device), num_threads=1)


def num_workers(params: RunParams, device: str) -> int:
    """Return how many trials are trained at a time: one for each core, GPU or TPU chip that this process may use."""
    if params.ablation.num_workers is not None:
        return params.ablation.num_workers
    if device == "cpu":
        return default_threads()
    import torch

    return max(1, int(getattr(torch, device).device_count()))


def find_done(wanted: Request) -> AblationRecord | None:
    """Find the finished ablation of this key."""
    found = wanted.runs.find_finished(wanted.key)
    return None if found is None else replace(found, reused=True, num_trained=0)


def explain(wanted: Request, found: AblationRecord | None) -> tuple[str, ...]:
    """Say why an ablation that was found can be reused, or why there is none."""
    if found is not None:
        return (f"data, params, code and packages are those of ablation {found.run_id}",)
    nearest = wanted.runs.nearest(wanted.key)
    return explain_difference(nearest, wanted.key) if nearest else ("there is no finished ablation yet",)


def require_consent(plan: AblationPlan, params: AblationParams) -> None:
    """Refuse to start more trials than somebody agreed to.

    Raises:
        ParamsError: Says how many there are and how to agree.
    """
    missing = plan.num_trials - plan.num_done
    if missing > params.max_trials:
        raise ParamsError(
            f"ablation: {len(plan.variants)} variants x {len(plan.seeds)} seeds are {plan.num_trials} trials, "
            f"{missing} of them not done yet; more than ablation.max_trials={params.max_trials} are not started "
            "without asking. Say --yes, raise ablation.max_trials, or give fewer levels or seeds."
        )


def _values(params: RunParams, sections: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in flatten(params).items() if name.partition(".")[0] in sections}
