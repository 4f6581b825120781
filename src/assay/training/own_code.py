"""What computes a training on a CPU beside torch, where the training gains by it."""

import torch
from torch import nn

from assay.devices import Compute
from assay.models.cnn import Cnn
from assay.params import TrainParams
from assay.training.master import MasterWeights
from assay.training.penalty import PenaltyLoop, penalty_loop

_LAYERS = "assay.models.pooled_conv 3"


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
    master: MasterWeights, params: TrainParams, compute: Compute, num_examples: int
) -> tuple[str | None, PenaltyLoop | None]:
    """Have a training computed by what is quickest.

    Args:
        master: Its weights and its module.
        params: How it is trained.
        compute: Where it computes.
        num_examples: Examples of train.

    Returns:
        What computes layers, None for torch alone; and the loop of the L1 and L2 terms, None for torch's operations.
        Both round otherwise than torch.
    """
    if compute.device != "cpu":
        return None, None
    layers = _LAYERS if prepare_module(master.module, num_examples * params.num_epochs, compute) else None
    num_steps = params.num_epochs * -(-num_examples // params.batch_size)
    return layers, penalty_loop(master.weights.numel(), num_steps, params, compute.num_threads)
