"""What a model did on test."""

from dataclasses import dataclass, field

from assay.records.base import Record


@dataclass(frozen=True)
class Interval(Record):
    """An estimate with its bootstrap confidence interval.

    Attributes:
        value: The estimate on all test examples.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassMetrics(Record):
    """Test metrics of one class against the rest.

    Attributes:
        precision: Right answers among the answers that name the class; 0 if there are none.
        recall: Right answers among the class's examples; 0 if there are none.
        f1: Harmonic mean of both.
        support: Test examples of the class.
        intervals: ``precision``, ``recall`` and ``f1`` -> estimate with interval; empty where nobody resampled.
    """

    precision: float
    recall: float
    f1: float
    support: int
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Record):
    """What a model did on test, once.

    Attributes:
        metrics: Name -> estimate with interval, e.g. ``accuracy``, ``f1_macro``, ``log_loss``.
        per_class: Class name -> its metrics.
        confusion: Counts, true class by row, predicted class by column.
        baselines: Baseline name -> metric name -> value, for ``majority_class`` and ``logistic_regression``.
        num_test: Number of test examples.
        confidence: Level of the intervals, e.g. 0.95.
        predictions_path: Parquet file with one row a test example: index, label, prediction, probabilities.
        figures: Figure name -> PNG path.
        report_path: One-page HTML report.
        seconds: Wall time.
        notes: Sentences for people about what is undefined or odd, e.g. a class without test examples.
    """

    metrics: dict[str, Interval]
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    baselines: dict[str, dict[str, float]]
    num_test: int
    confidence: float
    predictions_path: str
    figures: dict[str, str]
    report_path: str
    seconds: float
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the headline in a few words."""
        accuracy = self.metrics["accuracy"]
        return f"accuracy {accuracy.value:.4f} ({accuracy.low:.4f} to {accuracy.high:.4f}) on {self.num_test:,} test"
