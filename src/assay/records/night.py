"""What a night looks at before it trains, and what it came to: a summary of data, findings, drift, a decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from assay.records.base import Record
from assay.records.data import IMAGE, with_shape

STOPS = "stops"
WARNS = "warns"
LEVELS = (STOPS, WARNS)
"""The night does not train on such data; it trains and says so."""

INPUTS = "inputs"
LABELS = "labels"
PREDICTIONS = "predictions"
DRIFT_KINDS = (INPUTS, LABELS, PREDICTIONS)


@dataclass(frozen=True)
class DataProfile(Record):
    """A summary of data that is small enough to be kept with a run, and enough to compare later data with.

    Attributes:
        data_md5: DVC's hash of the data.
        num_examples: Examples that were summarised.
        shape: Of one example, as in `DataRef`; of texts and series the largest there was.
        class_counts: Examples of each class, by class name in label order; 0 for a class without any.
        num_duplicates: Examples whose decoded content equals that of an earlier one.
        num_conflicting: Duplicates that carry another label than the first.
        num_unreadable: Files that the import left out because they cannot be decoded; not part of `num_examples`.
        blank_share: Share of the sampled examples that hold nothing: images of one colour, texts of white space, series
            that do not vary, rows of a table without any value.
        missing_shares: Column of the shards -> share of its values that are missing.
        features: Feature -> sample of its values, sorted; see `assay.data.profile` and `assay.data.measuring`.
        predicted_counts: Class name -> examples that the champion takes for it; empty without predictions.
        top_probabilities: Sample of the champion's highest probability of an example, sorted; empty without.
        num_predicted: Examples behind the predictions: those that the champion had not seen in training.
        kind: Kind of data, one of `assay.records.KINDS`.
        columns: Names of a table's columns or of a series' channels.
    """

    data_md5: str
    num_examples: int
    shape: tuple[int, ...]
    class_counts: dict[str, int]
    num_duplicates: int
    num_conflicting: int
    num_unreadable: int
    blank_share: float
    missing_shares: dict[str, float]
    features: dict[str, tuple[float, ...]]
    predicted_counts: dict[str, int] = field(default_factory=dict)
    top_probabilities: tuple[float, ...] = ()
    num_predicted: int = 0
    kind: str = IMAGE
    columns: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a summary; one of the time when all data were images is understood, too."""
        return super().from_json(with_shape(values))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that have an example, in label order."""
        return tuple(name for name, count in self.class_counts.items() if count)

    @property
    def duplicate_share(self) -> float:
        """Share of the examples that repeat an earlier one."""
        return self.num_duplicates / self.num_examples

    @property
    def unreadable_share(self) -> float:
        """Share of the files that cannot be decoded."""
        return self.num_unreadable / (self.num_unreadable + self.num_examples)


@dataclass(frozen=True)
class QualityLimits(Record):
    """From where on data is odd, and how bad that is. A level is ``stops`` or ``warns``.

    Attributes:
        changed_classes: Level of a class that is new or gone.
        min_size_ratio: Fewer examples than this share of the old data stop the night.
        max_missing: Share of a column that may be missing, or of files unreadable, or of examples blank, beyond what
            the old data had.
        max_duplicate_rise: Rise of the share of duplicates.
        max_conflicting: Share of the examples that may be copies with another label; more stops, fewer warns.
        max_class_ratio: Factor by which a class's share may grow or shrink.
        label_copy: Level of a column that gives the label away.
        min_label_copy: Share of what the majority class leaves unexplained that such a column explains.
    """

    changed_classes: Literal["stops", "warns"] = "stops"
    min_size_ratio: float = 0.5
    max_missing: float = 0.01
    max_duplicate_rise: float = 0.05
    max_conflicting: float = 0.01
    max_class_ratio: float = 1.5
    label_copy: Literal["stops", "warns"] = "warns"
    min_label_copy: float = 0.95


@dataclass(frozen=True)
class Finding(Record):
    """Something that is odd about data.

    Attributes:
        name: Short name, e.g. ``new class: seven``, ``test in train``, ``duplicates``.
        level: ``stops`` or ``warns``.
        reason: One sentence for people, with the numbers, and what to do.
        values: Name -> number behind the sentence.
    """

    name: str
    level: str
    reason: str
    values: dict[str, float] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether the night should not train on this data."""
        return self.level == STOPS


@dataclass(frozen=True)
class Drift(Record):
    """One comparison of old and new data.

    Attributes:
        name: What was compared: a feature, ``classes``, ``predicted classes`` or ``top probability``.
        kind: ``inputs``, ``labels`` or ``predictions``.
        test: ``Kolmogorov-Smirnov``, ``chi-square``, or ``chi-square, Monte Carlo`` where counts are small.
        statistic: Value of the test's statistic.
        p: p value of this test alone.
        p_holm: p value corrected for all comparisons of the night.
        effect: Largest distance of the two cumulative distributions, or the total variation distance; 0..1.
        min_effect: Smaller effects are no drift, however certain.
        drifted: Whether the effect is large enough and not chance.
        reason: One sentence for people, with the numbers.
        values: Name -> number behind the sentence, e.g. ``old_median``, ``cramers_v``, ``num_old``.
    """

    name: str
    kind: str
    test: str
    statistic: float
    p: float
    p_holm: float
    effect: float
    min_effect: float
    drifted: bool
    reason: str
    values: dict[str, float] = field(default_factory=dict)


SKIPPED, STOPPED, FAILED = "skipped", "stopped", "failed"
"""Outcomes of a night beside the gate's: nothing to train; data that nobody should train on; an error."""


@dataclass(frozen=True)
class NightRecord(Record):
    """What a night saw, what it decided and why. Every night ends in one.

    Attributes:
        due: When it was due, ISO 8601 with its offset.
        outcome: ``skipped``, ``stopped``, ``failed``, or what the gate said: ``promoted``, ``first champion``,
            ``kept champion``, ``refused``.
        reason: One sentence.
        trained: Whether a model was trained.
        model_name: Registered model.
        version: The version that it made; None without one.
        champion: The champion that it was compared with; None where there was none.
        data_md5: DVC's hash of the night's data; empty where it could not be had.
        changes: What differs from the champion's run key, in words.
        findings: What is odd about the data.
        drifts: Every comparison with the champion's data.
        seconds: Wall time.
        device: Device, precision and threads of the champion or of the new version, e.g. ``cpu bf16 x2``.
        device_minutes_used: Minutes of training.
        device_minutes_saved: Minutes that training took the champion, where the night did not train.
        flow_run_id: Prefect's id.
        run_id: MLflow run of the new version; empty without one.
    """

    due: str
    outcome: str
    reason: str
    trained: bool
    model_name: str
    version: int | None = None
    champion: int | None = None
    data_md5: str = ""
    changes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    drifts: tuple[Drift, ...] = ()
    seconds: float = 0.0
    device: str = ""
    device_minutes_used: float = 0.0
    device_minutes_saved: float = 0.0
    flow_run_id: str = ""
    run_id: str = ""

    def describe(self) -> str:
        """Return the night in one line."""
        made = f" version {self.version}" if self.version is not None else ""
        spent = (
            f"{self.device_minutes_used:.1f} device-minutes used"
            if self.trained
            else f"{self.device_minutes_saved:.1f} device-minutes saved"
        )
        return f"{self.outcome}{made}: {self.reason} ({self.seconds:.0f} s, {spent})"
