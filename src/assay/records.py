"""What the stages hand to each other: small, frozen, typed and JSON-able.

Tasks exchange these records and the paths in them, never tensors or modules.
"""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Record:
    """Base of the hand-over types: a round trip through plain JSON values."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values (dict, list, str, int, float, bool, None)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a record from what `to_json` gave (tuples may have become lists)."""
        hints = get_type_hints(cls)
        return cls(**{name: _restore(hints[name], value) for name, value in values.items()})


def _restore(hint: Any, value: Any) -> Any:
    """Give `value`, as JSON knows it, the type that `hint` asks for."""
    origin, args = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin is types.UnionType:
        return _restore(next(arg for arg in args if arg is not types.NoneType), value)
    if origin is tuple:
        inner = args[:1] * len(value) if args[1:] == (...,) else args
        return tuple(_restore(arg, item) for arg, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _restore(args[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    return value


@dataclass(frozen=True)
class DataRef(Record):
    """Pinned data on disk.

    Attributes:
        path: Folder of Parquet shards.
        md5: DVC's hash of the folder (ends in ``.dir``).
        source: What the data was imported from, e.g. ``mnist5k`` or ``image-folder``.
        num_examples: Number of examples.
        class_names: Class names; an example's label is an index into them.
        image_shape: Height, width, channels of every image.
    """

    path: str
    md5: str
    source: str
    num_examples: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]


@dataclass(frozen=True)
class DataReport(Record):
    """What validation saw.

    Attributes:
        num_examples: Number of examples.
        class_counts: Examples of each class, by class name.
        num_duplicates: Examples whose decoded content equals that of an earlier example.
        num_conflicting: Duplicates that carry a different label from the earlier example.
        warnings: Sentences for people; empty if nothing is odd.
    """

    num_examples: int
    class_counts: dict[str, int]
    num_duplicates: int
    num_conflicting: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits(Record):
    """A frozen division into train, val and test.

    Attributes:
        path: An ``.npz`` file with int64 arrays ``train``, ``val`` and ``test`` of row numbers.
        digest: SHA-256 (hex) over the three index arrays.
        data_md5: Hash of the data that was divided.
        num_train: Examples in train.
        num_val: Examples in val.
        num_test: Examples in test.
        num_dropped: Examples left out because a copy of them sits in another given split.
    """

    path: str
    digest: str
    data_md5: str
    num_train: int
    num_val: int
    num_test: int
    num_dropped: int = 0

    def describe(self) -> str:
        """Return the sizes in a few words."""
        dropped = f", {self.num_dropped:,} copies across given splits left out" if self.num_dropped else ""
        return f"{self.num_train:,} train, {self.num_val:,} val, {self.num_test:,} test{dropped}"


@dataclass(frozen=True)
class EpochRecord(Record):
    """One epoch of training.

    Attributes:
        epoch: 1 for the first.
        step: Optimizer steps done at the end of the epoch.
        train_loss: Mean loss (regularization terms included) over the epoch's batches.
        train_accuracy: Accuracy over the epoch's batches, as they were trained on.
        val_loss: Mean cross-entropy on val.
        val_accuracy: Accuracy on val.
        learning_rate: Rate at the end of the epoch.
        seconds: Wall time of the epoch.
        timestamp_ms: Unix time in ms at the epoch's end; a resumed run keeps it, so logging twice is logging
            once.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    timestamp_ms: int


@dataclass(frozen=True)
class StepRecords(Record):
    """Consecutive optimizer steps of training, in columns of equal length.

    Attributes:
        step: Step numbers, 1 for the first.
        loss: Loss that was minimised in the step, regularization terms included.
        learning_rate: Rate that the step used.
        grad_norm: Global gradient norm, before clipping.
        timestamp_ms: Unix time in ms at the step's end; a resumed run keeps it.
    """

    step: tuple[int, ...]
    loss: tuple[float, ...]
    learning_rate: tuple[float, ...]
    grad_norm: tuple[float, ...]
    timestamp_ms: tuple[int, ...]


@dataclass(frozen=True)
class TrainResult(Record):
    """A trained model on disk.

    Attributes:
        model_dir: Folder with ``weights.safetensors`` and ``model.json`` (see `assay.models.files`).
        weights_sha256: SHA-256 (hex) of the weights file.
        history: One record an epoch.
        best_epoch: Epoch whose weights were kept.
        stopped_early: Whether early stopping ended the run.
        resumed_from_step: Step of the checkpoint that the run went on from, 0 for a fresh start.
        num_steps: Optimizer steps in all.
        num_parameters: Trainable scalars.
        samples_per_second: Training throughput of this process, val excluded.
        seconds: Wall time of training, val included.
        device: Device type, e.g. ``cpu`` or ``cuda``.
        precision: ``bf16`` or ``fp32``.
        num_threads: CPU threads that were used.
    """

    model_dir: str
    weights_sha256: str
    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from_step: int
    num_steps: int
    num_parameters: int
    samples_per_second: float
    seconds: float
    device: str
    precision: str
    num_threads: int

    def describe(self) -> str:
        """Return what training came to in a few words."""
        best = next(record for record in self.history if record.epoch == self.best_epoch)
        early = ", stopped early" if self.stopped_early else ""
        resumed = f", resumed at step {self.resumed_from_step}" if self.resumed_from_step else ""
        return (
            f"{len(self.history)} epochs{early}{resumed}, best {best.epoch}: val accuracy {best.val_accuracy:.4f}, "
            f"{self.samples_per_second:,.0f} samples/s"
        )

    def describe_device(self) -> str:
        """Return device, precision and threads, e.g. ``cpu bf16 x2``."""
        return f"{self.device} {self.precision}" + (f" x{self.num_threads}" if self.device == "cpu" else "")


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


@dataclass(frozen=True)
class RunKey(Record):
    """What a result depends on.

    Attributes:
        digest: SHA-256 (hex) over all parts.
        parts: Part name (``data``, ``params``, ``source``, ``packages``, ...) -> its SHA-256 (hex) or short
            value.
        details: Part name -> what it was hashed from (dotted param -> JSON text, file -> hash, package ->
            version), so that a difference can be named.
    """

    digest: str
    parts: dict[str, str]
    details: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelRef(Record):
    """A registered model version.

    Attributes:
        name: Registered model name.
        version: Version number.
        run_id: MLflow run that made it.
        uri: ``models:/NAME/VERSION``.
        manifest_sha256: SHA-256 (hex) of its manifest.
    """

    name: str
    version: int
    run_id: str
    uri: str
    manifest_sha256: str


@dataclass(frozen=True)
class RunRecord(Record):
    """What a run came to: the last line of every log, and what ``--json`` prints.

    Attributes:
        run_id: MLflow run.
        model_name: Registered model name.
        model_version: Version that the run registered, or that was found again.
        data_md5: DVC's hash of the data.
        run_key: Digest of all that the result depends on.
        reused: Whether a finished run with the same key was found, so that nothing was trained.
        reasons: Why it was reused or trained, in sentences.
        metrics: Test metric -> value.
        intervals: Test metric -> lower and upper end of its confidence interval.
        confidence: Level of the intervals, e.g. 0.95.
        baselines: Baseline -> test metric -> value.
        seconds: Wall time of this command.
        timings: Part of this command -> its wall time in seconds.
        report_path: One-page HTML report; empty where the store keeps it elsewhere.
        source: What the data was imported from.
        num_examples: Examples in train, val and test.
        num_epochs: Epochs trained.
        device: Device, precision and threads, e.g. ``cpu bf16 x2``.
    """

    run_id: str
    model_name: str
    model_version: int
    data_md5: str
    run_key: str
    reused: bool
    reasons: tuple[str, ...]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    baselines: dict[str, dict[str, float]]
    seconds: float
    timings: dict[str, float]
    report_path: str
    source: str
    num_examples: tuple[int, int, int]
    num_epochs: int
    device: str

    @classmethod
    def of(
        cls,
        key: RunKey,
        data: DataRef,
        splits: Splits,
        trained: TrainResult,
        evaluation: Evaluation,
        model: ModelRef,
        reasons: tuple[str, ...],
        timings: Mapping[str, float],
    ) -> Self:
        """Gather what the stages handed over."""
        return cls(
            run_id=model.run_id,
            model_name=model.name,
            model_version=model.version,
            data_md5=data.md5,
            run_key=key.digest,
            reused=False,
            reasons=reasons,
            metrics={name: interval.value for name, interval in evaluation.metrics.items()},
            intervals={name: (interval.low, interval.high) for name, interval in evaluation.metrics.items()},
            confidence=evaluation.confidence,
            baselines=evaluation.baselines,
            seconds=sum(timings.values()),
            timings=dict(timings),
            report_path=evaluation.report_path,
            source=data.source,
            num_examples=(splits.num_train, splits.num_val, splits.num_test),
            num_epochs=len(trained.history),
            device=trained.describe_device(),
        )

    def again(self, reasons: tuple[str, ...], timings: Mapping[str, float]) -> Self:
        """Return the record as that of a command that found this run instead of training.

        Args:
            reasons: Why it could be reused.
            timings: Where that command's own seconds went.
        """
        return dataclasses.replace(
            self, reused=True, reasons=reasons, seconds=sum(timings.values()), timings=dict(timings)
        )
