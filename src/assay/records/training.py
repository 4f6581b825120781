"""What training hands over: steps, epochs, a model on disk."""

from dataclasses import dataclass

from assay.records.base import Record


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
