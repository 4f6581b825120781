"""What training hands over: steps, epochs, a model on disk."""

from dataclasses import dataclass

from assay.records.base import Record


@dataclass(frozen=True)
class LayerHealth(Record):
    """How one layer does at an epoch's end.

    Attributes:
        name: Its name in the module; of a deep model two names, the first and the last of what is taken together.
        kind: Its class, e.g. ``Conv2d``; empty where different ones are taken together.
        grad_norm: Norm of the loss's gradient in the epoch's last step, without penalty terms, before clipping.
        weight_norm: Norm of its parameters.
        activation_mean: Mean of its outputs; this and all that follow are None where the layer puts out nothing.
        activation_std: Their standard deviation.
        dead_share: Share of its units that are the same for all examples or that a ReLU never lets pass; None also
            where there are too few examples to tell.
        saturated_share: Share of its outputs beyond 0.99 of what tanh can give; 0 for other nonlinearities.
    """

    name: str
    kind: str
    grad_norm: float
    weight_norm: float
    activation_mean: float | None = None
    activation_std: float | None = None
    dead_share: float | None = None
    saturated_share: float | None = None


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
        health: How each layer does; empty where nobody looked, which is after some of many short epochs.
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
    health: tuple[LayerHealth, ...] = ()


@dataclass(frozen=True)
class PretrainingRecord(Record):
    """One epoch of guessing hidden tokens, before training.

    Attributes:
        epoch: 1 for the first.
        step: Optimizer steps of pretraining at the end of the epoch.
        loss: Mean cross-entropy of the hidden tokens, in nats.
        accuracy: Share of them that was guessed.
        learning_rate: Rate at the end of the epoch.
        seconds: Wall time of the epoch.
        timestamp_ms: Unix time in ms at the epoch's end; a resumed run keeps it.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    timestamp_ms: int


@dataclass(frozen=True)
class StartRef(Record):
    """Files whose weights training starts from.

    Attributes:
        kind: ``version`` or ``huggingface``, as in the params.
        name: ``NAME@3``, or the folder as it is given in the params.
        folder: Where the files are on this machine.
        digest: SHA-256 (hex) over them: a version's is that of its manifest.
    """

    kind: str
    name: str
    folder: str
    digest: str


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
        warnings: What was wrong with the training and what helps, a sentence each; none for a healthy one.
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
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what training came to in a few words."""
        best = next(record for record in self.history if record.epoch == self.best_epoch)
        early = ", stopped early" if self.stopped_early else ""
        resumed = f", resumed at step {self.resumed_from_step}" if self.resumed_from_step else ""
        count = len(self.warnings)
        warned = f", {count} warning{'s' if count > 1 else ''}" if count else ""
        return (
            f"{len(self.history)} epochs{early}{resumed}, best {best.epoch}: val accuracy {best.val_accuracy:.4f}, "
            f"{self.samples_per_second:,.0f} samples/s{warned}"
        )

    def describe_device(self) -> str:
        """Return device, precision and threads, e.g. ``cpu bf16 x2``."""
        return f"{self.device} {self.precision}" + (f" x{self.num_threads}" if self.device == "cpu" else "")
