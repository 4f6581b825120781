"""What an ablation is made of and what it came to: variants, trials, verdicts."""

from dataclasses import dataclass, field

from assay.records.base import Record
from assay.records.training import EpochRecord

BASELINE = "baseline"
"""Name of the variant that all others are compared with."""

VARIANT_KINDS = ("level", "recipe")
"""Kinds of contrast that compare one variant, whose name they have, with the baseline."""


@dataclass(frozen=True)
class Variant(Record):
    """One set of params that is trained with every seed.

    Attributes:
        name: ``baseline``, or what differs from it: ``dropout_prob=0.5``, ``dropout_prob=0.5, l2=0.001``.
        changes: Params path -> value as JSON text, where the variant differs from the baseline.
    """

    name: str
    changes: dict[str, str] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether all others are compared with it."""
        return not self.changes


@dataclass(frozen=True)
class Contrast(Record):
    """A difference of means that gets a verdict: a level or recipe against the baseline, a main effect, an interaction.

    Attributes:
        name: What people read, e.g. ``dropout_prob=0.5`` or ``dropout_prob=0.5 x l2=0.001``.
        kind: ``level``, ``recipe``, ``main effect`` or ``interaction``.
        factors: Params paths that it is about; one, or two for an interaction.
        weights: Variant name -> weight in the sum; weights add up to 0.
    """

    name: str
    kind: str
    factors: tuple[str, ...]
    weights: dict[str, float]


@dataclass(frozen=True)
class Trial(Record):
    """One variant trained with one seed.

    Attributes:
        variant: Name of the variant.
        seed: Value of ``train.seed``.
        key: Digest of the trial's run key.
        state: ``finished``; ``stopped`` (early, because its level fell behind); ``diverged`` (counts as a
            model that always answers the most frequent class); ``failed`` (even when it was tried again).
        num_epochs: Epochs trained.
        metrics: Metric on val after the last epoch -> value.
        train_metrics: The same on as many examples of train, without dropout or augmentation.
        history: One record an epoch.
        outcomes_path: ``.npz`` file with what the model answered on val, see `assay.ablation.outcomes`; empty where
            it failed.
        seconds: Wall time of its training and evaluation.
        run_id: MLflow run; empty before it is logged.
        message: Why it diverged or failed.
    """

    variant: str
    seed: int
    key: str
    state: str
    num_epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    train_metrics: dict[str, float] = field(default_factory=dict)
    history: tuple[EpochRecord, ...] = ()
    outcomes_path: str = ""
    seconds: float = 0.0
    run_id: str = ""
    message: str = ""


@dataclass(frozen=True)
class Verdict(Record):
    """What the trials say about one contrast.

    Attributes:
        name: Name of the contrast.
        kind: Its kind.
        factors: Params paths that it is about.
        verdict: ``helps``, ``hurts``, ``no difference``, ``undetermined``; ``stopped`` where it was stopped early and
            ``incomplete`` where a trial failed.
        reason: One sentence for people: what the verdict rests on, or what it would take.
        num_seeds: Seeds behind it.
        difference: Mean difference of the metric on val, oriented so that above 0 is better; 0 where there is none.
        low: Lower end of its confidence interval.
        high: Upper end.
        p: Two-sided p of no difference.
        p_holm: The same, corrected by Holm over all contrasts of the ablation.
        p_equivalence: p of a difference of at least the margin (two one-sided tests), corrected by Holm.
        seed_share: Share of the difference's variance that more seeds would lower, 0 to 1.
        examples_share: Share that only more val examples would lower, 0 to 1.
        seeds_needed: Seeds in all with which it would probably be decided; None where no number would do.
        examples_needed: Val examples with which it would probably be decided, where seeds would not do.
        num_diverged: Trials that diverged, counted in.
    """

    name: str
    kind: str
    factors: tuple[str, ...]
    verdict: str
    reason: str
    num_seeds: int
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0
    p_holm: float = 1.0
    p_equivalence: float = 1.0
    seed_share: float = 0.0
    examples_share: float = 0.0
    seeds_needed: int | None = None
    examples_needed: int | None = None
    num_diverged: int = 0


@dataclass(frozen=True)
class VariantSummary(Record):
    """One variant over its seeds.

    Attributes:
        variant: The variant.
        num_seeds: Trials behind the numbers; all of the same length.
        num_epochs: Epochs of each.
        state: ``finished``, ``stopped``, ``incomplete``.
        mean: Mean of the metric on val.
        sd: Standard deviation over seeds; 0 for one seed.
        low: Lower end of the mean's confidence interval, over seeds and examples.
        high: Upper end.
        train_mean: Mean of the metric on train; minus `mean` it is the generalization gap.
        seconds: Mean wall time of a trial.
        num_diverged: Trials that diverged, counted in.
        run_id: MLflow run of the variant.
    """

    variant: Variant
    num_seeds: int
    num_epochs: int
    state: str
    mean: float
    sd: float
    low: float
    high: float
    train_mean: float
    seconds: float
    num_diverged: int = 0
    run_id: str = ""


@dataclass(frozen=True)
class AblationPlan(Record):
    """What an ablation will cost and what it can see, before it is done.

    Attributes:
        mode: ``one-at-a-time``, ``leave-one-out`` or ``factorial``.
        metric: Primary metric, on val.
        variants: All variants, the baseline first.
        seeds: Values of ``train.seed``.
        num_trials: Trials in all.
        num_done: Trials that are done already and are found again.
        num_epochs: Epochs to train, at most, without those that are done.
        seconds: Estimated wall time; None while no trial of this kind has been timed.
        detectable: Smallest difference that these seeds detect with the stated power; None while the noise is unknown.
        power: That power, e.g. 0.8.
        margin: Differences within plus and minus this count as none.
        prunes: Whether levels that fall behind stop early.
        baseline: Params path that a variant changes -> JSON text of the baseline's level.
        alpha: Highest chance of a false ``helps`` or ``hurts`` in the family.
        resamples_splits: Whether each seed has its own train and val.
        notes: Sentences for people, e.g. a level that equals the baseline and was left out.
        recipes: Names of the variants whose changes are only made together.
    """

    mode: str
    metric: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    num_trials: int
    num_done: int
    num_epochs: int
    seconds: float | None
    detectable: float | None
    power: float
    margin: float
    prunes: bool
    baseline: dict[str, str] = field(default_factory=dict)
    alpha: float = 0.05
    resamples_splits: bool = False
    notes: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblationRecord(Record):
    """What an ablation came to; what ``assay ablate --json`` prints.

    Attributes:
        run_id: MLflow parent run.
        experiment_id: MLflow experiment.
        ablation_key: Digest of all that the result depends on.
        reused: Whether a finished ablation of the same key was found, so that nothing was trained.
        data_md5: DVC's hash of the data.
        plan: What was planned.
        num_val: Val examples behind every number.
        confidence: Level of the intervals, e.g. 0.95.
        summaries: Each variant over its seeds, the baseline first.
        verdicts: One for each contrast.
        trials: Every trial.
        winners: Params path -> JSON text of the level that won its factor; only levels whose verdict is ``helps``.
        report_path: Self-contained HTML report; empty where the store keeps it elsewhere.
        seconds: Wall time of this command.
        num_trained: Trials that this command trained.
        notes: Sentences for people about what limits the verdicts.
    """

    run_id: str
    experiment_id: str
    ablation_key: str
    reused: bool
    data_md5: str
    plan: AblationPlan
    num_val: int
    confidence: float
    summaries: tuple[VariantSummary, ...]
    verdicts: tuple[Verdict, ...]
    trials: tuple[Trial, ...]
    winners: dict[str, str]
    report_path: str
    seconds: float
    num_trained: int
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> VariantSummary:
        """The variant that all others are compared with."""
        return next(summary for summary in self.summaries if summary.variant.is_baseline)
