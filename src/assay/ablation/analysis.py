"""From trials to verdicts, summaries and winners."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from assay.ablation.contributions import contributions, orientation
from assay.ablation.design import Design, Factor
from assay.ablation.outcomes import Outcomes, read_outcomes
from assay.ablation.power import Noise, noise_of
from assay.ablation.values import overlap, short_names, shown
from assay.ablation.verdicts import Rules, combine, judge, mean_interval
from assay.errors import DataError
from assay.params import AblationParams
from assay.records import BASELINE, VARIANT_KINDS, Contrast, Trial, Variant, VariantSummary, Verdict

STOPPED, INCOMPLETE = "stopped", "incomplete"


def rules_of(params: AblationParams) -> Rules:
    """Return what a verdict has to meet."""
    return Rules(
        metric=params.metric,
        alpha=params.alpha,
        confidence=1.0 - params.alpha,
        margin=params.margin,
        power=params.power,
    )


@dataclass(frozen=True)
class Answers:
    """What one trial answered, read once.

    Attributes:
        trial: The trial.
        outcomes: Its answers.
        num_classes: Number of classes.
    """

    trial: Trial
    outcomes: Outcomes
    num_classes: int

    @classmethod
    def of(cls, trial: Trial, num_classes: int) -> "Answers":
        """Read a trial's answers.

        Raises:
            DataError: The file is missing or damaged.
        """
        return cls(trial, read_outcomes(Path(trial.outcomes_path)), num_classes)

    def contributions(self, metric: str, epoch: int) -> np.ndarray:
        """Return the contributions to a metric at the last look up to an epoch, float64 ``[example]``."""
        predictions, log_losses = self.outcomes.at(epoch)
        values: np.ndarray = contributions(metric, self.outcomes.labels, predictions, log_losses, self.num_classes)
        return values

    @cached_property
    def _looks(self) -> frozenset[int]:
        return frozenset(self.outcomes.epochs.tolist())

    def was_asked_at(self, epoch: int) -> bool:
        """Whether there is a look after just this epoch, or the run had ended by then."""
        ended = self.trial.state in ("finished", "diverged") and self.trial.num_epochs <= epoch
        return epoch in self._looks or ended


class Analysis:
    """All answers of an ablation, and what follows from them.

    Args:
        design: The design.
        params: The ablation's params.
        num_train: Training examples.
    """

    def __init__(self, design: Design, params: AblationParams, num_train: int) -> None:
        self.design = design
        self.rules = rules_of(params)
        self.is_crossed = not params.resample_splits
        self._num_train = num_train
        self._answers: dict[tuple[str, int], Answers] = {}

    def add(self, trial: Trial, num_classes: int) -> None:
        """Take a trial's answers in, instead of what it answered before."""
        if trial.outcomes_path:
            self._answers[(trial.variant, trial.seed)] = Answers.of(trial, num_classes)

    def table(self, variant: str, epoch: int) -> np.ndarray:
        """Return a variant's contributions at a look, float64 ``[seed, example]``, seeds in the design's order.

        With `resample_splits` the seeds' val examples differ, and their numbers may differ by a few: the first ones
        that all have are taken.
        """
        rows = [self._answers[(variant, seed)].contributions(self.rules.metric, epoch) for seed in self.design.seeds]
        if self.is_crossed:
            return np.stack(rows)
        means = np.array([row.mean() for row in rows])
        shortest = min(len(row) for row in rows)
        table: np.ndarray = np.stack([row[:shortest] - row[:shortest].mean() for row in rows]) + means[:, None]
        return table

    def is_complete(self, variant: str) -> bool:
        """Whether all seeds of a variant are trained to the end, or diverged on the way."""
        return all(
            (variant, seed) in self._answers and self._answers[(variant, seed)].trial.state in ("finished", "diverged")
            for seed in self.design.seeds
        )

    def was_asked_at(self, variant: str, epoch: int) -> bool:
        """Whether all seeds of a variant have a look after this epoch."""
        return all(
            (variant, seed) in self._answers and self._answers[(variant, seed)].was_asked_at(epoch)
            for seed in self.design.seeds
        )

    def score(self, variant: str, epoch: int) -> float:
        """Return a variant's mean at a look, oriented so that higher is better."""
        return orientation(self.rules.metric) * float(self.table(variant, epoch).mean())

    def noise(self) -> Noise | None:
        """Return the noise of a difference, from the baseline's seeds; None for one seed or while they are not done."""
        if not self.is_complete(BASELINE) or len(self.design.seeds) < 2:
            return None
        flip = 0.0 if self.rules.metric == "log_loss" else 1.0
        return noise_of(self.table(BASELINE, _LAST), flip=flip)

    def verdicts(self, fates: Mapping[str, tuple[str, str]]) -> tuple[Verdict, ...]:
        """Judge all contrasts as one family.

        Args:
            fates: Variant -> ``stopped`` or ``incomplete``, and why, for variants without all trials.
        """
        whole = [variant.name for variant in self.design.variants if variant.name not in fates]
        unjudged = {}
        for contrast in self.design.contrasts:
            fate = next((fates[name] for name in contrast.weights if name in fates), None)
            if fate is not None:
                unjudged[contrast.name] = fate
        tables = {name: self.table(name, _LAST) for name in whole}
        stopped = [name for name, (fate, _) in fates.items() if fate == STOPPED]
        return judge(
            self.design.contrasts,
            tables,
            self.rules,
            unjudged=unjudged,
            early={
                contrast.name: table
                for contrast in self.design.contrasts
                if any(name in stopped for name in contrast.weights) and (table := self._early(contrast)) is not None
            },
            crossed=self.is_crossed,
            num_train=self._num_train,
        )

    def _early(self, contrast: Contrast) -> np.ndarray | None:
        """Return the differences of a contrast at its last common look; None where there is none."""
        epoch = min(
            self._answers[(name, seed)].trial.num_epochs
            for name in contrast.weights
            for seed in self.design.seeds
            if (name, seed) in self._answers
        )
        try:
            return combine(contrast, {name: self.table(name, epoch) for name in contrast.weights}, self.rules.metric)
        except (KeyError, DataError):
            return None

    def summary(self, variant: Variant, fate: str, trials: Sequence[Trial]) -> VariantSummary:
        """Sum one variant up over its seeds.

        Args:
            variant: The variant.
            fate: ``finished``, ``stopped`` or ``incomplete``.
            trials: Its trials.
        """
        metric = self.rules.metric
        usable = [trial for trial in trials if trial.state != "failed"]
        if not usable:
            return VariantSummary(variant, 0, 0, fate, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        values = np.array([trial.metrics[metric] for trial in usable])
        mean = low = high = float(values.mean())
        if len(usable) == len(self.design.seeds):
            mean, low, high = mean_interval(self.table(variant.name, _LAST), self.rules.confidence)
        return VariantSummary(
            variant=variant,
            num_seeds=len(usable),
            num_epochs=max(trial.num_epochs for trial in usable),
            state=fate,
            mean=mean,
            sd=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            low=low,
            high=high,
            train_mean=float(np.mean([trial.train_metrics[metric] for trial in usable])),
            seconds=float(np.mean([trial.seconds for trial in usable])),
            num_diverged=sum(trial.state == "diverged" for trial in usable),
        )


_LAST = 2**31 - 1


def winners(design: Design, verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Return the levels that won: of each factor the one that helps most; of a factorial that pruned, the best cell.

    A recipe wins as a whole. Of two that change the same, the one that helps more wins.

    Args:
        design: The design.
        verdicts: All verdicts.

    Returns:
        Params path -> JSON text of the level. Only verdicts of ``helps`` win anything.
    """
    won: dict[str, str] = {}
    for verdict, levels in _helping(design, verdicts):
        alone = len(levels) == 1 or verdict.kind == "recipe" or not won
        if alone and not any(overlap(path, other) for path in levels for other in won):
            won |= levels
    return won


def passed_over(design: Design, verdicts: Iterable[Verdict], won: Mapping[str, str]) -> list[str]:
    """Return the names of what helps and is not among what won: what won in its place helps more.

    Args:
        design: The design.
        verdicts: All verdicts.
        won: What `winners` made of them.
    """
    return [verdict.name for verdict, levels in _helping(design, verdicts) if not levels.items() <= won.items()]


def _helping(design: Design, verdicts: Iterable[Verdict]) -> list[tuple[Verdict, dict[str, str]]]:
    """What helps and the levels that it is about, the one that helps most first."""
    helping = [verdict for verdict in verdicts if verdict.verdict == "helps" and verdict.kind != "interaction"]
    helping.sort(key=lambda verdict: -verdict.difference)
    changes = {variant.name: variant.changes for variant in design.variants}
    return [
        (verdict, changes[verdict.name] if verdict.kind in VARIANT_KINDS else _level_of(design.factors, verdict))
        for verdict in helping
    ]


def _level_of(factors: Sequence[Factor], verdict: Verdict) -> dict[str, str]:
    """The level that a main effect is about; a cell of that one change has its name."""
    names = short_names([factor.path for factor in factors])
    for factor in factors:
        for level in factor.levels:
            if factor.path in verdict.factors and f"{names[factor.path]}={shown(level)}" == verdict.name:
                return {factor.path: json.dumps(level, sort_keys=True)}
    return {}
