"""What computes a training on a CPU beside torch, where the training gains by it."""

import torch
from torch import nn
from torch.optim import Optimizer

from assay.devices import Compute
from assay.models.cnn import Cnn
from assay.params import TrainParams
from assay.training.fused_adam import fused_adam
from assay.training.layers import LayerRates
from assay.training.master import MasterWeights
from assay.training.penalty import penalty_loop
from assay.training.update import TorchUpdate, Update

_LAYERS = "assay.models.pooled_conv 3"
_PENALTY = "assay.training.penalty 1"
_UPDATE = "assay.training.fused_adam 1"


def prepare_module(module: nn.Module, num_examples: int, compute: Compute) -> bool:
    """Have a module's layers computed by what is quickest in a training.

    Args:
        module: What is trained, or answers while it is.
        num_examples: Examples that all epochs of the training read together, at most.
        compute: Where it computes.

    Returns:
        Whether any layer does without torch, which rounds otherwise.
    """
    if compute.device != "cpu" or not isinstance(module, Cnn):
        return False
    kind = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    return module.prepare_training(num_examples, compute.num_threads, kind)


def prepare(
    master: MasterWeights,
    optimizer: Optimizer,
    params: TrainParams,
    compute: Compute,
    num_examples: int,
    rates: LayerRates | None,
) -> tuple[Update, dict[str, str]]:
    """Have a training computed by what is quickest.

    Args:
        master: Its weights and its module.
        optimizer: Optimizer of the master weights.
        params: How it is trained.
        compute: Where it computes.
        num_examples: Examples of train.
        rates: What makes lower layers learn more slowly; None where all learn alike.

    Returns:
        What updates the weights; and what rounds otherwise than torch does, by name, for the run's fingerprint.
    """
    if compute.device != "cpu":
        return TorchUpdate(master, optimizer, params, rates), {}
    own = {}
    if prepare_module(master.module, num_examples * params.num_epochs, compute):
        own["layers"] = _LAYERS
    num_steps = params.num_epochs * -(-num_examples // params.batch_size)
    fused = fused_adam(master, optimizer, params, num_steps, compute.num_threads)
    if fused is not None:
        return fused, own | {"update": _UPDATE}
    penalty = penalty_loop(master.weights.numel(), num_steps, params, compute.num_threads)
    if penalty is not None:
        own["penalty"] = _PENALTY
    return TorchUpdate(master, optimizer, params, rates, penalty), own
