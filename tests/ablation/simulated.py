"""Trials that are not trained but drawn: answers on val whose accuracy rises with the epochs as a curve says."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.ablation.analysis import Analysis
from assay.ablation.design import make_design
from assay.ablation.engine import Engine, Setup
from assay.ablation.outcomes import Outcomes, write_outcomes
from assay.ablation.trial_job import TrialJob
from assay.params import RunParams
from assay.records import DataRef, Splits, Trial

NUM_CLASSES = 4
DATA = DataRef("data", "0123456789abcdef0123456789abcdef.dir", "drawn", 1000, ("a", "b", "c", "d"), (8, 8, 1))


class Done:
    """A future that is over."""

    def __init__(self, outcome: list[Trial] | Exception) -> None:
        self._outcome = outcome

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    def result(self) -> list[Trial]:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@dataclass
class World:
    """Where trials come from.

    Attributes:
        folder: Where their answers go.
        accuracy: Variant -> accuracy after many epochs.
        num_val: Val examples.
        seed_sd: Standard deviation of the accuracy over seeds.
        number: Which world; another one has other chances.
        faults: Variant and seed -> what its trial does, once for each entry: an exception to raise, a state, or
            nothing unusual where it is empty.
        jobs: Every job that was handed over.
    """

    folder: Path
    accuracy: Mapping[str, float]
    num_val: int = 400
    seed_sd: float = 0.005
    number: int = 0
    faults: dict[tuple[str, int], list[Exception | str]] = field(default_factory=dict)
    jobs: list[TrialJob] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, jobs: Sequence[TrialJob]) -> Done:
        with self.lock:
            self.jobs += jobs
        try:
            return Done([self.train(job) for job in jobs])
        except Exception as error:
            return Done(error)

    def train(self, job: TrialJob) -> Trial:
        fault = self.faults.get((job.variant, job.seed), [])
        what = fault.pop(0) if fault else None
        if isinstance(what, Exception):
            raise what
        if what == "failed":
            return Trial(job.variant, job.seed, job.key, "failed", message="ValueError: no")
        labels = np.random.default_rng(1).integers(0, NUM_CLASSES, self.num_val)
        outcomes = Outcomes.none(labels)
        for epoch in job.looks:
            predictions = self.answers(job.variant, job.seed, epoch, labels)
            outcomes = outcomes.with_look(epoch, predictions, np.where(predictions == labels, 0.1, 2.0))
        path = self.folder / f"{job.key}.npz"
        write_outcomes(path, outcomes)
        state = "finished" if job.looks[-1] == job.params["train"]["num_epochs"] else "stopped"
        right = float(np.mean(predictions == labels))
        values = dict.fromkeys(("f1_macro", "accuracy", "recall_macro", "log_loss"), right)
        return Trial(
            job.variant, job.seed, job.key, what or state, job.looks[-1], values, values,
            outcomes_path=str(path), seconds=0.5 * job.looks[-1],
        )  # fmt: skip

    def answers(self, variant: str, seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
        """Each example has a difficulty that all share, and each trial a luck of its own."""
        names = sorted(self.accuracy)
        chance = np.random.default_rng([self.number, seed, names.index(variant)])
        level = self.accuracy[variant] + self.seed_sd * chance.standard_normal() - 0.3 * np.exp(-epoch / 2)
        difficulty = np.random.default_rng([self.number, 99]).random(len(labels))
        luck = chance.random(len(labels))
        right = 0.7 * difficulty + 0.3 * luck < np.quantile(0.7 * difficulty + 0.3 * luck, np.clip(level, 0, 1))
        return np.where(right, labels, (labels + 1) % NUM_CLASSES)


class AnyOrder:
    """Trains what a world is given in an order of its own, as processes do.

    Args:
        world: Where trials come from.
        choose: Picks the chunk that is over next, from those that are under way.
    """

    def __init__(self, world: World, choose: Callable[[list[list[TrialJob]]], int]) -> None:
        self._world = world
        self._choose = choose
        self._under_way: list[tuple[list[TrialJob], Future[list[Trial]]]] = []

    def submit(self, jobs: list[TrialJob]) -> Future[list[Trial]]:
        future: Future[list[Trial]] = Future()
        self._under_way.append((jobs, future))
        return future

    def end_one(self) -> None:
        """End a chunk; called when whoever hands them over waits."""
        jobs, future = self._under_way.pop(self._choose([jobs for jobs, _ in self._under_way]))
        done = self._world.submit(jobs)
        try:
            future.set_result(done.result())
        except Exception as error:
            future.set_exception(error)


class Waits(queue.Queue[Any]):
    """A queue that has a chunk end when somebody waits for one: a thread's chances are not the same twice."""

    def __init__(self, trains: AnyOrder) -> None:
        super().__init__()
        self._trains = trains

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self.empty():
            self._trains.end_one()
        return super().get(block=False)


def engine_of(world: World, params: RunParams, num_workers: int = 2) -> tuple[Engine, Analysis, list[Trial]]:
    """Return an engine over simulated trials, its analysis, and the list that gets every trial that is over."""
    design = make_design(params)
    splits = Splits("splits", "0" * 64, DATA.md5, 700, world.num_val, 100)
    keys = {(v.name, seed): f"{v.name}/{seed}".encode().hex() for v in design.variants for seed in design.seeds}
    setup = Setup(
        design, params.ablation, DATA, dict.fromkeys(design.seeds, splits), keys, world.folder, world.folder, 1
    )
    over: list[Trial] = []

    def keep(trial: Trial) -> Trial:
        over.append(trial)
        return trial

    analysis = Analysis(design, params.ablation, splits.num_train)
    return Engine(setup, analysis, world.submit, num_workers, keep), analysis, over


def ten_levels(**ablation: Any) -> RunParams:
    """Params with ten levels of one factor, named l2=0.001 to l2=0.01, nine epochs, and looks after 3, 4, 5 and 7."""
    levels = tuple(round(0.001 * number, 3) for number in range(1, 11))
    given = {
        "factors": {"train.l2": levels},
        "baseline": {"train.num_epochs": 9},
        "num_seeds": 4,
        "looks": (0.3, 0.4, 0.5, 0.7),
        "reduction": 2,
    }
    given |= ablation
    return RunParams.model_validate({"ablation": given})
