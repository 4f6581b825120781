"""Run keys, registered versions, and what a run came to."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from assay.records.base import Record
from assay.records.data import DataRef, Splits
from assay.records.evaluation import Evaluation
from assay.records.gate import Decision
from assay.records.training import TrainResult


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
        decision: What the gate decided; None where it was not asked.
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
    decision: Decision | None = None

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
        decision: Decision | None = None,
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
            decision=decision,
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
