"""How weights come about: optimizer, schedule, regularization, augmentation, early stopping."""

from typing import Annotated, Literal

from pydantic import Field

from assay.params.base import Section


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


class RmspropParams(Section):
    """RMSprop (Tieleman and Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    learning_rate: float = Field(0.001, ge=1e-8, le=100)
    """Peak learning rate."""
    smoothing: float = Field(0.99, ge=0, le=0.99999)
    """Decay of the mean squared gradient."""
    momentum: float = Field(0.0, ge=0, le=0.9999)
    """Momentum coefficient."""


OptimizerParams = Annotated[SgdParams | AdamParams | AdamWParams | RmspropParams, Field(discriminator="kind")]


class ConstantSchedule(Section):
    """The peak learning rate throughout, after a linear warm-up where there is one."""

    kind: Literal["constant"] = "constant"
    warmup_fraction: float = Field(0.0, ge=0, le=0.9)
    """Share of all steps spent warming up."""


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
    warmup_fraction: float = Field(0.0, ge=0, le=0.9)
    """Share of all steps spent warming up."""


ScheduleParams = Annotated[
    ConstantSchedule | CosineSchedule | OneCycleSchedule | StepSchedule, Field(discriminator="kind")
]


class NoAugmentation(Section):
    """Train on the examples as they are."""

    kind: Literal["none"] = "none"


class CropFlipAugmentation(Section):
    """Images: random shift by a zero-padded crop, a mirror image half of the time, cutout, mixup."""

    kind: Literal["crop-flip"] = "crop-flip"
    padding_pixels: int = Field(4, ge=0, le=64)
    """Largest shift in each direction."""
    horizontal_flip: bool = True
    """Mirror left to right with probability 0.5; wrong for digits and letters."""
    cutout_pixels: int = Field(0, ge=0, le=1024)
    """Side of a square that is given the mean colour at a random place; 0 leaves images whole."""
    mixup_alpha: float = Field(0.0, ge=0, le=10)
    """Mix pairs of images and their labels in a share drawn from Beta(alpha, alpha); 0 mixes none."""


class TokenDropoutAugmentation(Section):
    """Text: replace random tokens by the unknown one."""

    kind: Literal["token-dropout"] = "token-dropout"
    prob: float = Field(0.1, ge=0, le=0.9)
    """Probability that a token is replaced."""


class SeriesAugmentation(Section):
    """Series: noise on every value, a random scale for each channel, a stretch of time set to the channel's mean."""

    kind: Literal["series"] = "series"
    jitter_std: float = Field(0.05, ge=0, le=10)
    """Standard deviation of the noise, in standard deviations of each channel over train."""
    scale_std: float = Field(0.1, ge=0, le=2)
    """Standard deviation of each channel's random factor around 1."""
    time_mask_fraction: float = Field(0.1, ge=0, le=0.9)
    """Longest stretch that is masked, as a share of the series."""


AugmentationParams = Annotated[
    NoAugmentation | CropFlipAugmentation | TokenDropoutAugmentation | SeriesAugmentation,
    Field(discriminator="kind"),
]


class EarlyStoppingParams(Section):
    """Stop when val has not improved for a while; the best epoch's weights are kept."""

    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    """What has to improve."""
    patience_epochs: int = Field(5, ge=1)
    """Epochs without improvement before training stops."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest change that counts as an improvement."""


class ScratchStart(Section):
    """Start from random weights."""

    kind: Literal["scratch"] = "scratch"


class MaskedLanguageStart(Section):
    """Text, transformer: learn to guess hidden words of train's texts first, without their labels."""

    kind: Literal["masked-language"] = "masked-language"
    num_epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the texts of train."""
    mask_prob: float = Field(0.15, ge=0.01, le=0.9)
    """Probability that a token has to be guessed."""
    learning_rate: float = Field(0.001, ge=1e-8, le=100)
    """Peak learning rate of AdamW, reached after a tenth of the steps; then half a cosine down to 0."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Texts in one optimizer step."""


class VersionStart(Section):
    """Start from a registered version: its architecture, tokenizer and normalisation, and its weights."""

    kind: Literal["version"] = "version"
    version: str = Field("1", max_length=220, pattern=r"^([\w .-]+@)?[1-9][0-9]*$", coerce_numbers_to_str=True)
    """Which one: ``NAME@3``, or ``3`` of the model that the run registers; its output layer is made anew where the
    classes are others."""


class HuggingFaceStart(Section):
    """Start from a BERT encoder in Hugging Face's files, with its own tokenizer; tokens are averaged at the end."""

    kind: Literal["huggingface"] = "huggingface"
    path: str = Field("encoder", min_length=1, max_length=4096)
    """Folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` or ``vocab.txt``; a relative one
    counts from the project's folder."""
    max_length: int = Field(128, ge=3, le=1_000_000)
    """Tokens that are read at most, no more than the encoder knows; what is longer is cut at the end."""


FILE_STARTS = ("version", "huggingface")
"""Kinds of a start whose files bring the architecture: the section `model` is not read."""
StartParams = Annotated[
    ScratchStart | MaskedLanguageStart | VersionStart | HuggingFaceStart, Field(discriminator="kind")
]


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
    input_dropout_prob: float = Field(0.0, ge=0, le=0.999)
    """Probability of dropping an input: a pixel, a feature, or a component of a token's vector."""
    recurrent_dropout_prob: float = Field(0.0, ge=0, le=0.999)
    """Probability of dropping a weight between one step's state and the next; LSTM only."""
    attention_dropout_prob: float = Field(0.0, ge=0, le=0.999)
    """Probability of dropping an attention weight; transformer only."""
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
    """How training examples are varied."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weigh each class's loss alike, or by the inverse of its share of train."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Visit every example once an epoch, or draw as many with each class equally likely."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, which then is the model; null keeps the weights themselves."""
    start: StartParams = ScratchStart()
    """Which weights training starts from."""
    freeze_layers: int = Field(0, ge=0, le=1000)
    """Layers from the input on that keep the weights they start with: a text's token vectors are the first, the output
    layer cannot be one. The means and deviations of batch normalisation follow the data in any case."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer to the one below; the output layer has the full rate."""
    checkpoint_every_seconds: float = Field(30.0, ge=0)
    """Least time between two checkpoints within an epoch; there is always one at an epoch's end."""
