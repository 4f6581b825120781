"""How each layer of a training model is doing, and what to do where it is not well.

An epoch's gradients are those that its last step left at the module, before penalty terms and clipping. Activations are
those of a few val examples, spread evenly, the same ones every time, in eval mode. Neither draws a random number nor
changes one that training uses.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assay.records import EpochRecord, LayerHealth

MAX_LAYERS = 40
"""Layers that are told apart; of a deeper model, neighbours are taken together."""

MAX_EXAMPLES = 64
"""Examples whose activations are looked at."""

_STEPS_BETWEEN = 100
"""One look costs half a step of a convolutional network and up to two of a small MLP, so it is worth one in so many."""

_SAME = 1e-5
"""A unit is constant if its values spread less than so much, relative to the largest of them."""

_FEWEST_VALUES = 16
_SATURATED = 0.99
_LARGEST = torch.finfo(torch.float32).max

_EXPLODING = 100.0
_GROWN = 20.0
_HUGE = 1000.0
_VANISHING = 1e-3
_NUM_VANISHING_LOOKS = 3
_MOST = 0.5
_TABLE = "Embedding"
_TINY = 1e-30

_STEADY = "Set train.max_grad_norm=1, or lower train.optimizer.learning_rate"
_REVIVE = (
    "Lower train.optimizer.learning_rate, give train.schedule a warm-up, or set model.batch_norm=true where the model "
    "has it"
)
_REACH = "Use fewer layers, or set model.batch_norm=true or model.residual_blocks where the model has them"
_CALM = "Lower train.optimizer.learning_rate, or set train.l2=0.0001"


def is_examined(epoch: int, num_epochs: int, steps_per_epoch: int) -> bool:
    """Whether to look at the layers after an epoch: the last one, and as often before as stays cheap.

    Args:
        epoch: 1 for the first.
        num_epochs: Epochs to train, at most.
        steps_per_epoch: Optimizer steps of an epoch.
    """
    return epoch == num_epochs or epoch % -(-_STEPS_BETWEEN // steps_per_epoch) == 0


def examined_positions(num_examples: int) -> Tensor:
    """Return which of so many examples to look at, int64 ``[example]``: at most `MAX_EXAMPLES`, spread evenly."""
    count = min(num_examples, MAX_EXAMPLES)
    return torch.arange(count) * num_examples // max(count, 1)


def gradient_norms(module: nn.Module) -> dict[str, Tensor]:
    """Return the norm of the gradient that a backward pass left in each layer, float32 scalars by layer name."""
    return {
        name: _norm([parameter.grad for parameter in layer.parameters(recurse=False) if parameter.grad is not None])
        for name, layer in _layers(module)
    }


@torch.no_grad()
def examine(module: nn.Module, gradients: dict[str, Tensor], forward: Callable[[], object]) -> tuple[LayerHealth, ...]:
    """Look at every layer: each module that has weights of its own, and each whose output a ReLU takes.

    A module says in ``rectified`` which of the modules below it those are, by name. Of such a layer a unit (channel,
    component) that is never positive is dead; of any layer, one that is the same for all examples and places.

    Args:
        module: The module, in eval mode.
        gradients: What `gradient_norms` gave after the epoch's last step.
        forward: Runs the module on the examples to look at.

    Returns:
        The layers in the module's order, those of a deep one taken together so that there are at most `MAX_LAYERS`.
        Values beyond float32 are its largest.

    Source:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
        sections 3 and 4: activations and gradients by layer; dead units: Maas, Hannun, Ng, "Rectifier nonlinearities
        improve neural network acoustic models", ICML workshop 2013, section 2.
    """
    layers = _layers(module)
    with _watched(layers, _rectified(module)) as seen:
        forward()
    unseen = torch.full((4,), torch.nan, device=next(module.parameters()).device)
    # One transfer from the device for all layers.
    table = torch.stack(
        [
            torch.cat(
                (
                    gradients[name].to(unseen).view(1),
                    _norm(list(layer.parameters(recurse=False))).view(1),
                    seen.get(name, unseen),
                )
            )
            for name, layer in layers
        ]
    )
    rows = table.clamp(-_LARGEST, _LARGEST).tolist()
    return _pooled([_record(name, layer, row) for (name, layer), row in zip(layers, rows, strict=True)])


def find_warnings(history: Sequence[EpochRecord]) -> tuple[str, ...]:
    """Say what is wrong with a training and what helps: at most one sentence of a kind, none for a healthy one.

    - A layer explodes: its gradient's norm is over 100 times the median of its earlier ones and over twice the largest,
      its weights' norm is over 20 times the first, or its activations' standard deviation is over 1000.
    - Units are dead: over half of a layer's, in the last two looks.
    - Gradients vanish: relative to the weights, the first layer's is below 0.001 of the last layer's, in the last three
      looks. Tables of token vectors do not count: only the tokens of a batch get a gradient. Nor do gradients of 0:
      dead units behind the layer are the reason then.
    - Activations are saturated: over half of a layer's are at the ends of tanh, in the last two looks.

    Args:
        history: Epochs of a training.
    """
    looks = [record for record in history if record.health]
    if not looks:
        return ()
    found = (_exploding(looks), _dead(looks), _vanishing(looks), _saturated(looks))
    return tuple(warning for warning in found if warning is not None)


def _exploding(looks: Sequence[EpochRecord]) -> str | None:
    for number, look in enumerate(looks):
        for index, layer in enumerate(look.health):
            before = [earlier.health[index] for earlier in looks[:number]]
            norms = [earlier.grad_norm for earlier in before]
            where = f"Epoch {look.epoch}: {layer.name} explodes"
            if norms and layer.grad_norm > max(_EXPLODING * statistics.median(norms), 2 * max(norms)) > 0:
                times = layer.grad_norm / statistics.median(norms) if statistics.median(norms) else float("inf")
                return (
                    f"{where}, its gradient's norm is {layer.grad_norm:.3g}, {times:,.0f} times the usual. {_STEADY}."
                )
            if before and layer.weight_norm > _GROWN * before[0].weight_norm > 0:
                times = layer.weight_norm / before[0].weight_norm
                return f"{where}, its weights' norm grew {times:,.0f} times to {layer.weight_norm:.3g}. {_STEADY}."
            if layer.activation_std is not None and layer.activation_std > _HUGE:
                return f"{where}, its activations' standard deviation is {layer.activation_std:.3g}. {_STEADY}."
    return None


def _dead(looks: Sequence[EpochRecord]) -> str | None:
    return _mostly(looks, "dead_share", "{share:.0%} of the units of {name} are dead", _REVIVE)


def _saturated(looks: Sequence[EpochRecord]) -> str | None:
    return _mostly(looks, "saturated_share", "{share:.0%} of the activations of {name} are saturated", _CALM)


def _mostly(looks: Sequence[EpochRecord], field: str, words: str, remedy: str) -> str | None:
    """Name the layer with the largest share of something, if it is over half in the last two looks."""
    last = looks[-1]
    least = [min(getattr(look.health[index], field) or 0.0 for look in looks[-2:]) for index in range(len(last.health))]
    sick = [index for index, share in enumerate(least) if share > _MOST]
    if not sick:
        return None
    worst = max(sick, key=lambda index: getattr(last.health[index], field))
    others = f", and over half in {len(sick) - 1} more" if len(sick) > 1 else ""
    what = words.format(share=getattr(last.health[worst], field), name=last.health[worst].name)
    return f"Epoch {last.epoch}: {what}{others}. {remedy}."


def _vanishing(looks: Sequence[EpochRecord]) -> str | None:
    recent = looks[-_NUM_VANISHING_LOOKS:]
    kept = [index for index, layer in enumerate(recent[-1].health) if layer.kind != _TABLE]
    if len(recent) < _NUM_VANISHING_LOOKS or len(kept) < 2:
        return None
    ratios = [_relative(look.health[kept[0]]) / max(_relative(look.health[kept[-1]]), _TINY) for look in recent]
    if min(ratios) == 0 or max(ratios) >= _VANISHING:
        return None
    first, last = (recent[-1].health[index].name for index in (kept[0], kept[-1]))
    return (
        f"Epoch {recent[-1].epoch}: gradients vanish on the way to {first}, where they are {ratios[-1]:.1g} of "
        f"those of {last}, relative to the weights. {_REACH}."
    )


def _relative(layer: LayerHealth) -> float:
    return layer.grad_norm / max(layer.weight_norm, _TINY)


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that are looked at, with their names, in the module's order."""
    rectified = _rectified(module)
    layers = []
    for name, layer in module.named_modules():
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if own and (name in rectified or any(parameter.ndim >= 2 for parameter in own)):
            layers.append((name, layer))
    return layers


def _rectified(module: nn.Module) -> set[str]:
    return {
        f"{name}.{below}" if name else below
        for name, layer in module.named_modules()
        for below in getattr(layer, "rectified", ())
    }


@contextmanager
def _watched(layers: Sequence[tuple[str, nn.Module]], rectified: set[str]) -> Iterator[dict[str, Tensor]]:
    """Gather what `_statistics` says about each layer's output, for as long as this lasts."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2:
                seen[name] = _statistics(output, name in rectified)

        return look

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _statistics(output: Tensor, is_rectified: bool) -> Tensor:
    """Return mean, standard deviation, share of dead units and share of saturated values, float32 ``[4]``.

    Args:
        output: ``[batch, channel, height, width]``, or units in the last axis.
        is_rectified: Whether a ReLU takes it.
    """
    last = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
    values = last.reshape(-1, last.shape[-1]).float()
    high, low = values.amax(0), values.amin(0)
    mean = values.mean()
    # Several plain passes: torch's std_mean and aminmax are ten times slower on a CPU.
    deviation = torch.linalg.vector_norm(values - mean) / values.numel() ** 0.5
    reach = torch.maximum(high.abs(), low.abs())
    dead = high - low <= _SAME * reach
    if is_rectified:
        dead |= high <= 0
    share = dead.float().mean() if len(values) >= _FEWEST_VALUES else torch.full_like(mean, torch.nan)
    is_bounded = bool(reach.max() <= 1)
    saturated = (values.abs() > _SATURATED).float().mean() if is_bounded else torch.zeros_like(mean)
    return torch.stack((mean, deviation, share, saturated))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all values of some tensors, a float32 scalar; 0 where there are none."""
    parts = [torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32) for tensor in tensors]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())
    return norm


def _record(name: str, layer: nn.Module, row: Sequence[float]) -> LayerHealth:
    grad_norm, weight_norm, *seen = (_short(value) for value in row)
    return LayerHealth(name, type(layer).__name__, grad_norm or 0.0, weight_norm or 0.0, *seen)


def _short(value: float) -> float | None:
    """Return five digits of a value, which are enough and make small files; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.5g}")


def _pooled(layers: Sequence[LayerHealth]) -> tuple[LayerHealth, ...]:
    """Take neighbours together until there are at most `MAX_LAYERS`: norms add up, all else is a mean."""
    if len(layers) <= MAX_LAYERS:
        return tuple(layers)
    ends = [number * len(layers) // MAX_LAYERS for number in range(MAX_LAYERS + 1)]
    return tuple(_together(layers[start:end]) for start, end in itertools.pairwise(ends))


def _together(layers: Sequence[LayerHealth]) -> LayerHealth:
    def mean(field: str) -> float | None:
        values = [value for layer in layers if (value := getattr(layer, field)) is not None]
        return _short(statistics.fmean(values)) if values else None

    first, last = layers[0], layers[-1]
    return LayerHealth(
        name=first.name if first is last else f"{first.name} to {last.name}",
        kind=first.kind if len({layer.kind for layer in layers}) == 1 else "",
        grad_norm=_short(math.hypot(*(layer.grad_norm for layer in layers))) or 0.0,
        weight_norm=_short(math.hypot(*(layer.weight_norm for layer in layers))) or 0.0,
        activation_mean=mean("activation_mean"),
        activation_std=mean("activation_std"),
        dead_share=mean("dead_share"),
        saturated_share=mean("saturated_share"),
    )
