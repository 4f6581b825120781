"""An exponential moving average of the weights, which is often the better model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from assay.training.master import MasterWeights

_WARMUP_STEPS = 10.0


class WeightAverage:
    """A moving average of a module's parameters and floating-point buffers.

    After step ``t`` (0 for the first), with ``d_t = min(decay, (1 + t) / (10 + t))``::

        average = d_t * average + (1 - d_t) * weights

    The smaller decay of the first steps forgets the initial weights.

    Args:
        master: The weights that are trained.
        module: The module that they and the buffers belong to.
        decay: Decay, in (0, 1).

    Source:
        Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992, in the exponential form; the first steps as in
        ``tf.train.ExponentialMovingAverage``.
    """

    def __init__(self, master: MasterWeights, module: nn.Module, decay: float) -> None:
        self._decay = decay
        buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self._trained: dict[str, Tensor] = {"values": master.values, **buffers}
        self._average = {name: tensor.detach().clone() for name, tensor in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: Steps done before it.
        """
        decay = min(self._decay, (1.0 + step) / (_WARMUP_STEPS + step))
        for name, average in self._average.items():
            average.lerp_(self._trained[name], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the module hold the average for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._average.items():
            trained = self._trained[name]
            kept = trained.clone()
            trained.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by name, for a checkpoint."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        for name, average in self._average.items():
            average.copy_(tensors[name])
