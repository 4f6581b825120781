"""Everything that changes while a run trains, and how it goes into a checkpoint and comes back."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from assay.records import EpochRecord, StepRecords
from assay.training.average import WeightAverage
from assay.training.layers import LayerRates
from assay.training.master import MasterWeights


@dataclass
class StepLog:
    """What every optimizer step said, in columns; the same columns as `StepRecords`."""

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    timestamp_ms: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)

    def append(self, loss: float, learning_rate: float, grad_norm: float, timestamp_ms: int) -> None:
        """Add one step."""
        self.loss.append(loss)
        self.learning_rate.append(learning_rate)
        self.grad_norm.append(grad_norm)
        self.timestamp_ms.append(timestamp_ms)

    def since(self, first: int) -> StepRecords:
        """Return the steps after the first `first` ones."""
        return StepRecords(
            step=tuple(range(first + 1, len(self) + 1)),
            loss=tuple(self.loss[first:]),
            learning_rate=tuple(self.learning_rate[first:]),
            grad_norm=tuple(self.grad_norm[first:]),
            timestamp_ms=tuple(self.timestamp_ms[first:]),
        )


@dataclass
class TrainState:
    """The moving parts of a run.

    Attributes:
        module: The module being trained, in float32 on its device.
        master: Its parameters and gradients, and the module that computes.
        optimizer: The optimizer of the master weights.
        augmentation: Source of randomness of augmentation.
        average: Moving average of the weights, where there is one.
        rates: What makes lower layers learn more slowly, where they do.
        epoch: Epochs finished.
        position: Batches of the current epoch done.
        order: Visiting order of the current epoch, int64 ``[example]``; empty before the first batch.
        epoch_loss: Sum over the current epoch's examples of their batch's loss.
        epoch_correct: Correct answers in the current epoch.
        epoch_seconds: Seconds spent in the current epoch.
        train_seconds: Seconds spent training in all, val included.
        best: The kept weights and buffers, by name; empty before the first epoch's end.
        best_epoch: Epoch whose weights were kept, 1 for the first.
        best_metric: What early stopping watched in that epoch.
        stopped_early: Whether early stopping ended the run.
        epochs: Finished epochs.
        steps: Finished steps.
    """

    module: nn.Module
    master: MasterWeights
    optimizer: Optimizer
    augmentation: torch.Generator
    average: WeightAverage | None = None
    rates: LayerRates | None = None
    epoch: int = 0
    position: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_metric: float = 0.0
    stopped_early: bool = False
    epochs: list[EpochRecord] = field(default_factory=list)
    steps: StepLog = field(default_factory=StepLog)

    def averaged(self) -> AbstractContextManager[None]:
        """Have the module hold the weights that are the model: their average, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()


_VALUES = (
    "epoch",
    "position",
    "epoch_loss",
    "epoch_correct",
    "epoch_seconds",
    "train_seconds",
    "best_epoch",
    "best_metric",
    "stopped_early",
)


def pack(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state as tensors by name and JSON values; `unpack` is its inverse."""
    tensors = {f"module.{name}": tensor for name, tensor in state.module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    if state.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in state.average.tensors().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    tensors["random.augmentation"] = state.augmentation.get_state()
    device = _device_of(state.module)
    if device.type != "cpu":
        tensors["random.device"] = getattr(torch, device.type).get_rng_state()
    tensors["order"] = state.order
    tensors["steps.loss"] = torch.tensor(state.steps.loss, dtype=torch.float64)
    tensors["steps.learning_rate"] = torch.tensor(state.steps.learning_rate, dtype=torch.float64)
    tensors["steps.grad_norm"] = torch.tensor(state.steps.grad_norm, dtype=torch.float64)
    tensors["steps.timestamp_ms"] = torch.tensor(state.steps.timestamp_ms, dtype=torch.int64)
    values = {name: getattr(state, name) for name in _VALUES}
    values["epochs"] = [record.to_json() for record in state.epochs]
    return tensors, values


def unpack(state: TrainState, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put a checkpoint's content into a freshly built state, torch's random state included."""
    state.module.load_state_dict(_below("module.", tensors))
    device = _device_of(state.module)
    state.best = {name: tensor.to(device) for name, tensor in _below("best.", tensors).items()}
    _restore_optimizer(state.optimizer, _below("optimizer.", tensors))
    if state.average is not None:
        state.average.restore(_below("average.", tensors))
    torch.set_rng_state(tensors["random.cpu"])
    state.augmentation.set_state(tensors["random.augmentation"])
    if device.type != "cpu":
        getattr(torch, device.type).set_rng_state(tensors["random.device"])
    state.order = tensors["order"]
    state.steps = StepLog(**{name: column.tolist() for name, column in _below("steps.", tensors).items()})
    for name in _VALUES:
        setattr(state, name, values[name])
    state.epochs = [EpochRecord.from_json(record) for record in values["epochs"]]


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Tensor]) -> None:
    """Give each parameter its saved moments, in the parameter's own memory layout: fused kernels rely on it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in saved.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        same_shape = tensor.shape == parameter.shape
        place = torch.empty_like(parameter) if same_shape else tensor.to(parameter.device).clone()
        optimizer.state[parameter][name] = place.detach().copy_(tensor)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
