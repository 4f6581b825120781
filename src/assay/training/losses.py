"""What training minimises: cross-entropy plus the L1 and L2 terms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.params import TrainParams


def training_loss(
    logits: Float[Tensor, "batch class"],
    labels: Int[Tensor, " batch"],
    weights: Sequence[Tensor],
    params: TrainParams,
) -> Float[Tensor, ""]:
    """Return the loss of a batch.

    With ``K`` classes, smoothing ``s``, ``log p`` the log-softmax of the logits and ``y`` the label::

        loss = mean over the batch of sum_k -q_k log p_k  +  l1 * sum |w|  +  l2 / 2 * sum w^2
        q_k  = (1 - s) [k = y] + s / K

    The sums run over weights only: no biases, no gains or shifts of normalisation layers. The terms are computed
    in float32. A factor of 0 costs nothing.

    Args:
        logits: Logits, in any float type.
        labels: Class indices.
        weights: What the L1 and L2 terms act on, see `assay.training.optimizers.weights_of`.
        params: Factors and smoothing.

    Returns:
        The loss, a scalar in float32.

    Source:
        Label smoothing: Szegedy et al., CVPR 2016, section 7. L1: Tibshirani, JRSS B 58, 1996. L2: Krogh and
        Hertz, NeurIPS 1991.
    """
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=params.label_smoothing)
    if params.l1 > 0:
        loss = loss + params.l1 * torch.stack([weight.abs().sum() for weight in weights]).sum()
    if params.l2 > 0:
        loss = loss + params.l2 / 2 * torch.stack([weight.square().sum() for weight in weights]).sum()
    return loss
