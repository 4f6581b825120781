"""Layers that are trained less than others: frozen ones, and rates that fall from the output to the input."""

import torch
from torch import nn
from torch.optim import Optimizer

from assay.errors import ParamsError
from assay.models.depth import layers_of
from assay.training.master import MasterWeights


def freeze(module: nn.Module, num_layers: int) -> None:
    """Have the lowest layers keep their weights.

    Args:
        module: A model, before its `MasterWeights` are made: those leave frozen parameters alone.
        num_layers: How many, see `assay.models.depth.layers_of`.

    Raises:
        ParamsError: Nothing would be left to train.
    """
    layers = layers_of(module)
    if num_layers >= len(layers):
        raise ParamsError(
            f"train.freeze_layers={num_layers}: the model has {len(layers)} layers, and the output layer has to be "
            f"trained. Lower it to {len(layers) - 1} or less."
        )
    for parameter in (parameter for layer in layers[:num_layers] for parameter in layer):
        parameter.requires_grad_(False)


class LayerRates:
    """Optimizer steps whose length falls from layer to layer.

    Layer ``k`` below the output layer goes ``decay ** k`` of the way that the optimizer would go, which for every
    optimizer here is what ``decay ** k`` times the learning rate gives. With one flat tensor of parameters that is one
    interpolation after the step.

    Args:
        master: The weights that are trained.
        module: Their module.
        decay: Factor from a layer to the one below, in (0, 1).

    Source:
        Howard and Ruder, "Universal language model fine-tuning for text classification", ACL 2018, section 3.2.
    """

    def __init__(self, master: MasterWeights, module: nn.Module, decay: float) -> None:
        self._master = master
        factors = {
            id(parameter): decay**depth
            for depth, layer in enumerate(reversed(layers_of(module)))
            for parameter in layer
        }
        parts = [torch.full((parameter.numel(),), factors[id(parameter)]) for parameter in master.parameters]
        self._factors = torch.cat(parts).to(master.values.device)

    @torch.no_grad()
    def step(self, optimizer: Optimizer) -> None:
        """Do one step of the optimizer."""
        values = self._master.values
        before = values.clone()
        optimizer.step()
        torch.lerp(before, values, self._factors, out=values)
