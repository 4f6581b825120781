"""The only reader of ``params.yaml``: file plus overrides in, one frozen `Params` out.

A stage gets its own section (`TrainParams`), never the whole. A choice between kinds is a tagged union on
``kind``. Every field says its unit in its name and its limits in its type, so a form can be drawn from it.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from assay.errors import ParamsError
from assay.params_messages import explain
from assay.params_yaml import assign, parse_override, read_mapping


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no NaN or infinity, no silent conversion from text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SplitParams(Section):
    """How examples are divided. A split that the data brings (``train/ test/``) is kept."""

    val_fraction: float = Field(0.1, ge=0.01, le=0.5)
    """Share of the examples for choices: early stopping, ablations."""
    test_fraction: float = Field(0.2, ge=0.01, le=0.5)
    """Share of the examples that only evaluation sees; ignored where the data brings a test split."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of the division."""


class CnnParams(Section):
    """The classic CNN: conv3x3 and pool for each entry of `channels`, one hidden layer, one output layer."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((32, 64), min_length=1, max_length=8)
    """Output channels of each convolution; each is followed by a 2x2 max-pool."""
    hidden_units: int = Field(128, ge=1, le=65536)
    """Width of the fully connected hidden layer."""
    batch_norm: bool = False
    """Normalise each convolution's output over the batch before it is pooled."""


ModelParams = CnnParams
"""Every kind of model; a tagged union on ``kind`` once there is a second."""


class SgdParams(Section):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.05, ge=1e-8, le=100)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, le=0.9999)
    """Momentum coefficient; 0 is plain SGD."""
    nesterov: bool = False
    """Nesterov's variant of momentum."""


class AdamParams(Section):
    """Adam (Kingma and Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(0.001, ge=1e-8, le=100)
    """Peak learning rate."""
    beta1: float = Field(0.9, ge=0, le=0.9999)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, le=0.99999)
    """Decay of the second moment."""


class AdamWParams(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(0.002, ge=1e-8, le=100)
    """Peak learning rate."""
    beta1: float = Field(0.9, ge=0, le=0.9999)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, le=0.99999)
    """Decay of the second moment."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """Decoupled decay of weights; biases and norms are left alone."""


OptimizerParams = Annotated[SgdParams | AdamParams | AdamWParams, Field(discriminator="kind")]


class ConstantSchedule(Section):
    """The peak learning rate throughout."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Section):
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, 2017, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    warmup_fraction: float = Field(0.05, ge=0, le=0.9)
    """Share of all steps spent warming up."""


class OneCycleSchedule(Section):
    """Up to the peak and down again over the whole run (Smith and Topin, 2018)."""

    kind: Literal["one-cycle"] = "one-cycle"
    rise_fraction: float = Field(0.3, ge=0.01, le=0.9)
    """Share of all steps before the peak."""


class StepSchedule(Section):
    """Multiply the learning rate by `factor` every `every_epochs` epochs."""

    kind: Literal["step"] = "step"
    every_epochs: int = Field(10, ge=1)
    """Epochs between two drops."""
    factor: float = Field(0.1, ge=0.0001, le=1)
    """What the learning rate is multiplied by."""


ScheduleParams = Annotated[
    ConstantSchedule | CosineSchedule | OneCycleSchedule | StepSchedule, Field(discriminator="kind")
]


class NoAugmentation(Section):
    """Train on the images as they are."""

    kind: Literal["none"] = "none"


class CropFlipAugmentation(Section):
    """Random shift by a zero-padded crop, and a mirror image half of the time."""

    kind: Literal["crop-flip"] = "crop-flip"
    padding_pixels: int = Field(4, ge=0, le=64)
    """Largest shift in each direction."""
    horizontal_flip: bool = True
    """Mirror left to right with probability 0.5; wrong for digits and letters."""


AugmentationParams = Annotated[NoAugmentation | CropFlipAugmentation, Field(discriminator="kind")]


class EarlyStoppingParams(Section):
    """Stop when val has not improved for a while; the best epoch's weights are kept."""

    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    """What has to improve."""
    patience_epochs: int = Field(5, ge=1)
    """Epochs without improvement before training stops."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest change that counts as an improvement."""


class TrainParams(Section):
    """Everything that decides how weights come about, apart from data and model."""

    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of initial weights, batch order, dropout masks and augmentation."""
    num_epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training examples, at most."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Examples in one optimizer step."""
    optimizer: OptimizerParams = AdamWParams()
    """Which optimizer, and its own settings."""
    schedule: ScheduleParams = OneCycleSchedule()
    """How the learning rate changes over the run."""
    dropout_prob: float = Field(0.25, ge=0, le=0.999)
    """Probability of dropping a hidden activation."""
    l1: float = Field(0.0, ge=0, le=10)
    """Factor of the L1 term, the sum of absolute weights; biases and norms are left alone."""
    l2: float = Field(0.0, ge=0, le=10)
    """Factor of the L2 term, half the sum of squared weights; biases and norms are left alone."""
    label_smoothing: float = Field(0.0, ge=0, le=0.999)
    """Share of the target spread evenly over all classes."""
    max_grad_norm: float | None = Field(None, ge=1e-8)
    """Clip the gradient to this global norm; null leaves it alone."""
    early_stopping: EarlyStoppingParams | None = EarlyStoppingParams()
    """When to stop before the last epoch; null never does."""
    augmentation: AugmentationParams = NoAugmentation()
    """How training images are varied."""
    checkpoint_every_seconds: float = Field(30.0, ge=0)
    """Least time between two checkpoints within an epoch; there is always one at an epoch's end."""


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


class AblationParams(Section):
    """Which levels to compare with the baseline, over how many seeds, and what a difference has to be."""

    in_run: bool = False
    """Whether a whole run ablates before it trains; ``assay ablate`` does it by itself."""
    preset: Literal["regularization", "dropout"] | None = None
    """Factors that come with Assay, instead of `factors`."""
    factors: dict[str, tuple[JsonValue, ...]] = Field(default_factory=dict)
    """Params path -> levels, e.g. ``train.dropout_prob: [0.0, 0.5]``; any path of model, train and split."""
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
    """Stop levels early that cannot win any more; null does, but for factorial, where every cell counts."""
    reduction: int = Field(3, ge=2, le=10)
    """With pruning, one in so many variants goes on at each look; the looks lie as many times farther apart."""
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
    slices: tuple[Literal["class", "group", "brightness"], ...] = ("class", "brightness")
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


class NightlyParams(Section):
    """When the nightly run starts."""

    enabled: bool = True
    """Whether it starts by itself at all."""
    cron: str = "0 2 * * *"
    """Minute, hour, day of month, month, day of week; ``0 2 * * *`` is every night at two."""
    timezone: str = "UTC"
    """IANA time zone that the times are in, e.g. ``Europe/Berlin``."""
    train_when: Literal["changed", "drifted"] = "changed"
    """Train when data, params, code or packages are not the champion's; or on other data only if it drifted."""
    drift_alpha: float = Field(0.01, ge=0.00001, le=0.5)
    """Highest chance that data like the champion's is said to have drifted."""
    import_from: str | None = Field(None, min_length=1)
    """Folder of images, one folder a class, that is imported again first; null takes the data that is pinned."""
    notify: str | None = Field(None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """Notification block of Prefect to send to, as TYPE/NAME, e.g. ``slack-webhook/team``; null sends nothing."""
    notify_on: tuple[
        Literal["promoted", "first champion", "kept champion", "refused", "skipped", "stopped", "failed"], ...
    ] = ("promoted", "refused", "stopped", "failed")
    """Outcomes of a night that are worth a message."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError

        try:
            CronSim(value, datetime(2000, 1, 1))
        except CronSimError as error:
            raise ValueError(
                f"is no cron expression of five fields ({error}); every night at two is '0 2 * * *'"
            ) from error
        return value

    @field_validator("timezone")
    @classmethod
    def _is_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("is no IANA time zone; one looks like Europe/Berlin or UTC") from error
        return value


Port = Annotated[int, Field(ge=1, le=65535)]


class ServicesParams(Section):
    """The servers, pools and workers of ``assay up``."""

    host: str = Field("127.0.0.1", min_length=1, max_length=253)
    """Address that both servers listen on; another than loopback needs ASSAY_AUTH and `allowed_hosts`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which browsers may reach the servers, besides the loopback ones, e.g. ``train.example.org``."""
    mlflow_port: Port = 5000
    """Port of MLflow."""
    prefect_port: Port = 4200
    """Port of Prefect."""
    cpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool cpu, one thread each; null is one for each core."""
    gpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool gpu; null is one for each GPU that is found."""
    tpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool tpu; null is one for each TPU chip that is found."""
    max_retries: int = Field(3, ge=0, le=100)
    """How often a run that crashed is started again; it goes on from its checkpoint."""


class RunParams(Section):
    """What one run is made of: the sections of ``params.yaml`` that its form shows."""

    split: SplitParams = SplitParams()
    """How the data is divided into train, val and test."""
    model: ModelParams = CnnParams()
    """The model and its size."""
    train: TrainParams = TrainParams()
    """How the weights come about."""
    evaluation: EvaluationParams = EvaluationParams()
    """How the test results are computed."""
    device: DeviceParams = DeviceParams()
    """Where and how precisely to compute."""
    registry: RegistryParams = RegistryParams()
    """Where results go."""
    ablation: AblationParams = AblationParams()
    """Which levels to compare, and how sure to be."""
    gate: GateParams = GateParams()
    """What a version has to show to become champion."""

    def sections(self) -> dict[str, Section]:
        """Return each section under its name, as a flow takes them."""
        return {name: getattr(self, name) for name in RunParams.model_fields}


class Params(RunParams):
    """All of ``params.yaml``: what a run is made of, and the training line around it."""

    schedule: NightlyParams = NightlyParams()
    """When the nightly run starts."""
    services: ServicesParams = ServicesParams()
    """The servers, pools and workers of ``assay up``."""

    def of_run(self) -> RunParams:
        """Return what one run is made of, without the services around it."""
        return RunParams.model_validate(self.sections())


def load_params(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read a params file and apply overrides.

    Args:
        path: A YAML file; keys that it leaves out keep their defaults.
        overrides: ``section.key=value`` in YAML's spelling, applied in order.

    Returns:
        The validated parameters.

    Raises:
        ParamsError: The file is missing or no YAML mapping, a key is unknown or given twice, or a value has the
            wrong type or is out of range.
    """
    values = read_mapping(path)
    origin: dict[str, str] = {}
    for override in overrides:
        dotted, value = parse_override(override)
        assign(values, dotted, value)
        origin[dotted] = "on the command line"
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        sentences = [explain(problem, Params, path, origin) for problem in error.errors()]
        raise ParamsError("\n".join(sentences)) from error


def flatten(section: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return leaf values by dotted path, e.g. ``{"train.optimizer.kind": "adamw", ...}``.

    Args:
        section: A section, or what its ``model_dump(mode="json")`` gave.
        prefix: Path in front of every key, with its dot.
    """
    values = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
