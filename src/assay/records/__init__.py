"""What the stages hand to each other: small, frozen, typed and JSON-able.

Tasks exchange these records and the paths in them, never tensors or modules.
"""

from assay.records.ablation import (
    BASELINE,
    VARIANT_KINDS,
    AblationPlan,
    AblationRecord,
    Contrast,
    Trial,
    Variant,
    VariantSummary,
    Verdict,
)
from assay.records.base import Record
from assay.records.data import IMAGE, KINDS, SERIES, TABLE, TEXT, DataRef, DataReport, Splits, with_shape
from assay.records.evaluation import ClassMetrics, Evaluation, Interval
from assay.records.gate import FIRST, KEPT, OUTCOMES, PROMOTED, REFUSED, Decision, Look, Promotion, Rule
from assay.records.night import DataProfile, Drift, Finding, NightRecord, QualityLimits
from assay.records.runs import ModelRef, RunKey, RunRecord
from assay.records.training import EpochRecord, LayerHealth, PretrainingRecord, StartRef, StepRecords, TrainResult

__all__ = [
    "BASELINE",
    "FIRST",
    "IMAGE",
    "KEPT",
    "KINDS",
    "OUTCOMES",
    "PROMOTED",
    "REFUSED",
    "SERIES",
    "TABLE",
    "TEXT",
    "VARIANT_KINDS",
    "AblationPlan",
    "AblationRecord",
    "ClassMetrics",
    "Contrast",
    "DataProfile",
    "DataRef",
    "DataReport",
    "Decision",
    "Drift",
    "EpochRecord",
    "Evaluation",
    "Finding",
    "Interval",
    "LayerHealth",
    "Look",
    "ModelRef",
    "NightRecord",
    "PretrainingRecord",
    "Promotion",
    "QualityLimits",
    "Record",
    "Rule",
    "RunKey",
    "RunRecord",
    "Splits",
    "StartRef",
    "StepRecords",
    "TrainResult",
    "Trial",
    "Variant",
    "VariantSummary",
    "Verdict",
    "with_shape",
]
