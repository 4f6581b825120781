"""What is compared, and how sure to be: ablations, and the gate before the registry's champion."""

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from assay.params.base import Section

_RECIPE_NAME = re.compile(r"[^\W_][\w -]{0,39}")


class AblationParams(Section):
    """Which levels to compare with the baseline, over how many seeds, and what a difference has to be."""

    in_run: bool = False
    """Whether a whole run ablates before it trains; ``assay ablate`` does it by itself."""
    preset: Literal["regularization", "dropout"] | None = None
    """Factors that come with Assay, instead of `factors`."""
    factors: dict[str, tuple[JsonValue, ...]] = Field(default_factory=dict)
    """Params path -> levels, e.g. ``train.dropout_prob: [0.0, 0.5]``; any path of model, train and device."""
    recipes: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Name -> params path -> value: changes that are only made together, compared with the baseline as one level."""
    baseline: dict[str, JsonValue] = Field(default_factory=dict)
    """Params path -> value for every trial, where it is to differ from the project's, e.g. ``train.num_epochs: 5``."""
    mode: Literal["one-at-a-time", "leave-one-out", "factorial"] = "one-at-a-time"
    """Change one factor at a time, put all on and take one away, or cross all levels."""
    num_seeds: int = Field(3, ge=1, le=1000)
    """Seeds that every variant is trained with, from `train.seed` on."""
    detect: float | None = Field(None, gt=0, le=1)
    """Difference that is to be found; the number of seeds follows from it and from the noise of the baseline."""
    metric: Literal["f1_macro", "accuracy", "recall_macro", "log_loss"] = "f1_macro"
    """What is compared, on val."""
    margin: float = Field(0.005, gt=0, le=1)
    """Smallest difference that matters; smaller ones count as none."""
    alpha: float = Field(0.05, ge=0.0001, le=0.5)
    """Highest chance that a family without any difference gets a ``helps`` or ``hurts``."""
    power: float = Field(0.8, ge=0.5, le=0.99)
    """Chance of finding the difference that the plan calls detectable."""
    prune: bool | None = None
    """Stop levels early that fall behind; null does, but for factorial, where every cell counts."""
    looks: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.3,)
    """With pruning, shares of the epochs after which levels are stopped; what goes on from the last goes to the end."""
    reduction: int = Field(3, ge=2, le=10)
    """With pruning, one in so many variants goes on at each look."""
    resample_splits: bool = False
    """Draw train and val anew for every seed; test stays as it is."""
    max_trials: int = Field(200, ge=1, le=1_000_000)
    """Trials that are started without asking."""
    num_workers: int | None = Field(None, ge=1, le=1024)
    """Trials at a time, one thread each; null is one for each core, or for each GPU."""
    runner: Literal["processes", "ray"] = "processes"
    """What runs the trials: processes of this machine, or Ray (extra ``ray``; RAY_ADDRESS names a cluster)."""
    choose: bool = False
    """In a whole run, train with the levels that won."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @field_validator("recipes")
    @classmethod
    def _are_names(cls, value: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        for name in value:
            if not _RECIPE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a recipe; up to 40 letters, digits, spaces, - and _ are")
        return value


class GateParams(Section):
    """What a challenger has to show before it becomes champion. None of it changes a model's weights."""

    in_run: bool = True
    """Whether a whole run ends at the gate; ``assay models promote`` asks it by itself."""
    metric: Literal["accuracy", "f1_macro", "recall_macro"] = "accuracy"
    """What is compared with the champion, on test."""
    rule: Literal["superiority", "non-inferiority"] = "superiority"
    """Be shown to be better, or only not worse than `margin` (for a cheaper or simpler model)."""
    margin: float = Field(0.005, gt=0, le=1)
    """Largest loss of the metric that non-inferiority allows."""
    alpha: float = Field(0.05, ge=0.0001, le=0.5)
    """Highest chance of one false promotion in all looks at one test set together."""
    max_looks: int = Field(20, ge=1, le=10_000)
    """Comparisons that one test set is good for; then fresh test data is needed."""
    seed_sd: float | None = Field(None, ge=0, le=1)
    """Standard deviation of the metric between seeds, which counts as noise; null takes the latest ablation's."""
    floors: dict[Literal["accuracy", "f1_macro", "recall_macro", "precision_macro", "roc_auc_macro"], float] = Field(
        default_factory=dict
    )
    """Metric -> least value on test, e.g. ``accuracy: 0.9``."""
    baselines: tuple[Literal["majority_class", "logistic_regression"], ...] = ("majority_class", "logistic_regression")
    """Naive models that the challenger has to beat in accuracy."""
    slices: tuple[Literal["class", "group", "brightness", "length"], ...] = ("class", "brightness", "length")
    """Parts of test on each of which the challenger must not be worse than the champion."""
    num_quantiles: int = Field(4, ge=2, le=20)
    """Parts that a number such as brightness is cut into."""
    slice_margin: float = Field(0.05, gt=0, le=1)
    """Largest loss of recall on a class, or of accuracy on another slice, that may not be ruled out."""
    slice_alpha: float = Field(0.05, ge=0.0001, le=0.5)
    """Chance of passing a slice whose loss is `slice_margin`."""
    min_slice_examples: int = Field(30, ge=1)
    """Smaller slices are shown and decide nothing."""
    max_calibration_error: float | None = Field(0.1, gt=0, le=1)
    """Highest expected calibration error on test; null asks for none."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Highest median time to answer one example on one thread, in ms; null only measures it."""
    max_size_mb: float | None = Field(None, gt=0)
    """Largest weights file, in 10^6 bytes; null only says how large it is."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
