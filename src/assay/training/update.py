"""What is done with the gradients that a backward pass left: penalty terms, their norm, the optimizer's step."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from assay.params import TrainParams
from assay.training.layers import LayerRates
from assay.training.losses import penalize
from assay.training.master import MasterWeights
from assay.training.optimizers import set_learning_rate
from assay.training.penalty import PenaltyLoop


class Update(Protocol):
    """One update of the weights, in two parts: between them the caller sees whether it is fit to be done."""

    def measure(self) -> Float[Tensor, "2"]:
        """Return the value of the L1 and L2 terms, and the norm of the gradient with theirs, float32."""

    def apply(self, rate: float, measured: Float[Tensor, "2"]) -> None:
        """Clip the gradient where the run says so, and step.

        Args:
            rate: Learning rate.
            measured: What `measure` said.
        """


class TorchUpdate:
    """The update by torch's operations, for every optimizer and device.

    Args:
        master: The weights and their module.
        optimizer: Optimizer of the master weights.
        params: Terms and clipping.
        rates: What makes lower layers learn more slowly; None where all learn alike.
        penalty: Machine code for the terms; None for torch's operations.
    """

    def __init__(
        self,
        master: MasterWeights,
        optimizer: Optimizer,
        params: TrainParams,
        rates: LayerRates | None = None,
        penalty: PenaltyLoop | None = None,
    ) -> None:
        self._master, self._optimizer, self._params = master, optimizer, params
        self._rates, self._penalty = rates, penalty

    def measure(self) -> Float[Tensor, "2"]:
        """See `Update`."""
        return torch.stack(penalize(self._master.weights, self._master.collect(), self._params, self._penalty))

    def apply(self, rate: float, measured: Float[Tensor, "2"]) -> None:
        """See `Update`."""
        master, optimizer = self._master, self._optimizer
        if self._params.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_([master.weights, master.rest], self._params.max_grad_norm, measured[1])
        set_learning_rate(optimizer, rate)
        optimizer.step() if self._rates is None else self._rates.step(optimizer)
