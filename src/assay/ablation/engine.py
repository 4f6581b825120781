"""Trains the trials of an ablation: which one next, which variants go on, what to do when one fails.

It knows nothing of processes or orchestrators: trials are handed to a callable that returns a future. What is done is
kept in each trial's own folder, so an engine that is killed and started again trains only what is missing and decides
as it would have decided.
"""

import math
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from assay.ablation.analysis import INCOMPLETE, STOPPED, Analysis
from assay.ablation.design import Design
from assay.ablation.halving import go_on, look_epochs
from assay.ablation.trial_job import TrialJob
from assay.params import AblationParams
from assay.progress import announce
from assay.records import BASELINE, DataRef, Splits, StartRef, Trial, Variant

CHUNK_SECONDS = 2.0
"""Trials that are shorter are handed over several at a time."""

MAX_ATTEMPTS = 2
"""How often a trial is tried before its level is incomplete."""


class TrialFuture(Protocol):
    """Trials that are under way."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back when they are over, whatever came of them."""

    def result(self) -> list[Trial]:
        """Return the trials, or raise what went wrong."""


Submit = Callable[[list[TrialJob]], TrialFuture]
OnTrial = Callable[[Trial], Trial]
_Unit = tuple[str, int]


@dataclass(frozen=True)
class Setup:
    """All that the trials of an ablation have in common.

    Attributes:
        design: What is trained and compared.
        params: The ablation's params.
        data: The verified data.
        splits: Seed -> its division; the same one for all unless splits are resampled.
        keys: Variant name and seed -> digest of the trial's run key.
        trials_dir: Folder in which each trial has a folder of its own.
        cache_dir: Folder of decoded data.
        num_threads: Threads of a trial.
        starts: Variant name -> the files that its trials start from; only those that start from any.
    """

    design: Design
    params: AblationParams
    data: DataRef
    splits: Mapping[int, Splits]
    keys: Mapping[_Unit, str]
    trials_dir: Path
    cache_dir: Path
    num_threads: int
    starts: Mapping[str, StartRef] = field(default_factory=dict)

    @cached_property
    def looks(self) -> Mapping[str, tuple[int, ...]]:
        """Variant -> the epochs after which it is looked at; only the last where nothing is pruned.

        A variant that trains for another number of epochs is looked at after the same shares of them.
        """
        return {variant.name: self._looks_of(variant) for variant in self.design.variants}

    def _looks_of(self, variant: Variant) -> tuple[int, ...]:
        own = self.design.params_of(variant, self.design.seeds[0]).train.num_epochs
        if not self.design.prunes:
            return (own,)
        base = self.design.baseline.train.num_epochs
        looks = look_epochs(base, self.params.looks, self.params.reduction, len(self.design.variants) - 1)
        return tuple(max(1, round(own * look / base)) for look in looks)

    @cached_property
    def num_epochs(self) -> int:
        """Epochs of all trials together; where variants are stopped early, as many as halving leaves."""
        baseline, *others = self.looks.values()
        epochs, alive = float(baseline[-1]), len(others)
        for look in range(len(baseline)):
            mean = sum(looks[look] - (looks[look - 1] if look else 0) for looks in others) / len(others)
            epochs += alive * mean
            alive = math.ceil(alive / self.params.reduction)
        return math.ceil(epochs * len(self.design.seeds))

    def job(self, variant: Variant, seed: int, looks: Sequence[int]) -> TrialJob:
        """Return the job that trains one variant with one seed up to the last of some looks."""
        params = self.design.params_of(variant, seed)
        device = params.device.model_copy(update={"num_threads": self.num_threads})
        key = self.keys[(variant.name, seed)]
        return TrialJob(
            variant=variant.name,
            seed=seed,
            key=key,
            params=params.model_copy(update={"device": device}).model_dump(mode="json"),
            data=self.data,
            splits=self.splits[seed],
            cache_dir=str(self.cache_dir),
            run_dir=str(self.trials_dir / key[:16]),
            looks=tuple(dict.fromkeys(looks)),
            start=self.starts.get(variant.name),
        )


@dataclass
class Engine:
    """Trains an ablation's trials and keeps what they came to.

    Attributes:
        setup: What the trials have in common.
        analysis: Gets every trial's answers.
        submit: Starts some trials.
        num_workers: Trials at a time.
        on_trial: Called with each trial that is over; returns it as it is to be kept.
        trials: Variant name and seed -> the trial as far as it is trained.
        fates: Variant name -> ``stopped`` or ``incomplete``, and why.
        trained: Trials that were trained here, in whole or in part.
    """

    setup: Setup
    analysis: Analysis
    submit: Submit
    num_workers: int
    on_trial: OnTrial
    trials: dict[_Unit, Trial] = field(default_factory=dict)
    fates: dict[str, tuple[str, str]] = field(default_factory=dict)
    trained: set[_Unit] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._variants = {variant.name: variant for variant in self.setup.design.variants}
        self._looks = self.setup.looks
        self._targets: dict[str, tuple[int, ...]] = {}
        """Variant -> the looks that it is to be trained to, as far as that is known."""
        self._look = 0
        """The look at which it is open who goes on."""
        self._going: list[str] = []
        """The variants that got as far as the open look, or are on their way there."""
        self._scores: dict[str, float] = {}
        """Variant -> score at the open look, even if it became incomplete later."""
        self._over: list[_Unit] = []
        """Trials that are over and not handed on yet."""
        self._done: queue.Queue[tuple[list[_Unit], TrialFuture] | BaseException | None] = queue.Queue()
        self._needed: Future[Any] | None = None
        """What has to be there before a trial can be handed on; puts its error, or None, among what is done."""
        self._attempts: dict[_Unit, int] = {}
        self._ended: set[_Unit] = set()

    def know(self, trials: Mapping[str, Trial]) -> None:
        """Take in trials that were done before.

        Args:
            trials: Digest of the run key -> the trial.
        """
        for unit, key in self.setup.keys.items():
            if key in trials:
                self._take(replace(trials[key], variant=unit[0], seed=unit[1]))

    def depend_on(self, future: Future[Any]) -> None:
        """Say what has to be there before a trial can be handed on; others are trained until it is.

        Args:
            future: Where it fails, training ends at once with its error.
        """
        self._needed = future
        future.add_done_callback(lambda _: self._done.put(future.exception()))

    def train_baseline(self) -> None:
        """Train the baseline's trials to the end."""
        self._targets = {BASELINE: self._looks[BASELINE]}
        self._train()

    def train(self, on_baseline: Callable[[], None] = lambda: None) -> None:
        """Train all variants, stopping those that fall behind.

        The baseline goes first and goes on to the end, because everything is compared with it.

        Args:
            on_baseline: Called when the baseline's trials are done.
        """
        self._going = [name for name in self._variants if name != BASELINE]
        self._targets = {BASELINE: self._looks[BASELINE]} | {name: self._looks[name][:1] for name in self._going}
        self._train(on_baseline)

    def _train(self, on_baseline: Callable[[], None] = lambda: None) -> None:
        """Train variants up to their targets, which move on meanwhile; returns when all of them are there."""
        waiting = [unit for name in self._targets for unit in self._missing(name)]
        under_way, is_told = 0, False
        while True:
            waiting += self._let_go_on()
            while waiting and under_way < 2 * self.num_workers:
                chunk = self._next_chunk(waiting)
                jobs = [self.setup.job(self._variants[name], seed, self._targets[name]) for name, seed in chunk]
                self._follow(chunk, self.submit(jobs))
                under_way += 1
            if not is_told and self.analysis.is_complete(BASELINE):
                is_told = True
                on_baseline()
            while self._over and (not under_way or self._is_idle()):
                self._hand_on(self._over.pop(0))
            if not under_way:
                return
            done = self._done.get()
            if isinstance(done, BaseException):
                raise done
            if done is None:
                continue
            chunk, future = done
            under_way -= 1
            waiting += self._collect(chunk, future)
            self._announce()

    def _missing(self, name: str) -> list[_Unit]:
        """The trials of a variant that are not where they are to be trained to."""
        units = [(name, seed) for seed in self.setup.design.seeds]
        return [unit for unit in units if not self._is_there(unit, self._targets[name])]

    def _let_go_on(self) -> list[_Unit]:
        """Let the best variants of the open look go on; return what there is to train for that.

        A variant that goes on even if all that are still missing get ahead of it does not wait for them. If some of
        those fail instead, fewer go on, but then it is farther ahead by as many.
        """
        found: list[_Unit] = []
        while self._going and self._look + 1 < len(self._looks[BASELINE]):
            missing = self._score_those_there()
            scores = {name: self._scores[name] for name in self._going if name in self._scores}
            kept = go_on(scores | dict.fromkeys(missing, math.inf), self.setup.params.reduction)
            going = [
                name
                for name in self._going
                if name not in self.fates and name not in missing and (name in kept or name not in scores)
            ]
            for name in going:
                if len(self._targets[name]) == self._look + 1:
                    self._targets[name] = self._looks[name][: self._look + 2]
                    found += self._missing(name)
            if missing:
                break
            self._stop(sorted(scores.keys() - set(kept)), scores)
            self._going, self._scores, self._look = going, {}, self._look + 1
        return found

    def _score_those_there(self) -> list[str]:
        """Score the variants that have got to the open look; return those that have not.

        Those that were done before, without being asked at each look, get no score: they cost nothing and go on.
        """
        missing = []
        for name in self._going:
            looks = self._looks[name][: self._look + 1]
            if name in self.fates or name in self._scores:
                continue
            if not all(self._is_there((name, seed), looks) for seed in self.setup.design.seeds):
                missing.append(name)
            elif all(self.analysis.was_asked_at(name, epoch) for epoch in looks):
                self._scores[name] = self.analysis.score(name, looks[-1])
        return missing

    def _stop(self, names: Sequence[str], scores: Mapping[str, float]) -> None:
        """Stop variants at the open look, which all have got to."""
        for name in names:
            best = max(scores, key=lambda other: scores[other])
            epoch, behind = self._looks[name][self._look], scores[best] - scores[name]
            reason = f"Stopped after epoch {epoch}: {behind:.4f} behind {best}, with all its seeds."
            self.fates[name] = (STOPPED, reason)
            for seed in self.setup.design.seeds:
                self._end((name, seed))

    def _follow(self, chunk: list[_Unit], future: TrialFuture) -> None:
        future.add_done_callback(lambda _: self._done.put((chunk, future)))

    def _collect(self, chunk: list[_Unit], future: TrialFuture) -> list[_Unit]:
        """Take in what came of a chunk; return what has to be tried again."""
        try:
            found = {(trial.variant, trial.seed): trial for trial in future.result()}
        except Exception as error:
            found, message = {}, f"{type(error).__name__}: {error}"
        else:
            message = "it came to nothing"
        again = []
        for unit in chunk:
            name, seed = unit
            trial = found.get(unit) or Trial(name, seed, self.setup.keys[unit], "failed", message=message)
            if trial.state == "failed":
                self._attempts[unit] = self._attempts.get(unit, 0) + 1
                if self._attempts[unit] < MAX_ATTEMPTS:
                    again.append(unit)
                    continue
                reason = f"Seed {seed} failed {MAX_ATTEMPTS} times: {trial.message.splitlines()[0][:300]}"
                self.fates[name] = (INCOMPLETE, reason)
            self.trained.add(unit)
            self._take(trial)
        return again

    def _take(self, trial: Trial) -> None:
        unit = (trial.variant, trial.seed)
        self.trials[unit] = trial
        self.analysis.add(trial, len(self.setup.data.class_names))
        if trial.state in ("finished", "diverged", "failed"):
            self._end(unit)

    def _end(self, unit: _Unit) -> None:
        """Note that a trial is over, once; it is handed on when nothing waits for that."""
        if unit not in self._ended:
            self._ended.add(unit)
            self._over.append(unit)

    def _is_idle(self) -> bool:
        """Whether nothing waits for this process, nor it for what trials are handed on to."""
        return self._done.empty() and (self._needed is None or self._needed.done())

    def _hand_on(self, unit: _Unit) -> None:
        self.trials[unit] = self.on_trial(self.trials[unit])

    def _is_there(self, unit: _Unit, looks: Sequence[int]) -> bool:
        """Whether a trial is as far as it is to go, with a look at each epoch that is asked for."""
        trial = self.trials.get(unit)
        if trial is None:
            return False
        return trial.state in ("finished", "diverged", "failed") or trial.num_epochs >= looks[-1]

    def _next_chunk(self, waiting: list[_Unit]) -> list[_Unit]:
        """Take as many trials as last about `CHUNK_SECONDS`, and leave enough for every worker."""
        share = max(1, len(waiting) // (2 * self.num_workers))
        chunk = [waiting.pop(0)]
        per_epoch = seconds_per_epoch(self.trials.values())
        if per_epoch is None or chunk[0][0] == BASELINE:
            return chunk
        seconds = per_epoch * self._epochs_left(chunk[0])
        while waiting and len(chunk) < share and seconds < CHUNK_SECONDS:
            chunk.append(waiting.pop(0))
            seconds += per_epoch * self._epochs_left(chunk[-1])
        return chunk

    def _epochs_left(self, unit: _Unit) -> int:
        trial = self.trials.get(unit)
        return max(0, self._targets[unit[0]][-1] - (trial.num_epochs if trial else 0))

    def _announce(self) -> None:
        done = sum(trial.num_epochs for trial in self.trials.values())
        over = sum(trial.state in ("finished", "diverged", "failed") for trial in self.trials.values())
        stopped = sum(fate == STOPPED for fate, _ in self.fates.values())
        text = f"{over} of {len(self.setup.keys)} trials done"
        text += f", {stopped} variant{'s' if stopped > 1 else ''} stopped early" if stopped else ""
        announce("ablate", text, done=min(done, self.setup.num_epochs), total=self.setup.num_epochs)


def seconds_per_epoch(trials: Iterable[Trial]) -> float | None:
    """Return the mean wall time of an epoch of some trials; None where there is none."""
    timed = [trial for trial in trials if trial.num_epochs and trial.seconds > 0]
    return sum(trial.seconds for trial in timed) / sum(trial.num_epochs for trial in timed) if timed else None
