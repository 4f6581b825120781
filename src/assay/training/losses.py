"""What training minimises: cross-entropy plus the L1 and L2 terms."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.params import TrainParams
from assay.training.penalty import PenaltyLoop


def training_loss(
    logits: Float[Tensor, "batch class"],
    labels: Int[Tensor, " batch"],
    params: TrainParams,
    class_weights: Float[Tensor, " class"] | None = None,
    mixed: tuple[Int[Tensor, " batch"], float] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of a batch; what training minimises is this plus `add_penalty`'s value.

    With ``K`` classes, smoothing ``s``, ``log p`` the log-softmax of the logits and ``y`` the label::

        cross-entropy = mean over the batch of sum_k -q_k log p_k
        q_k           = (1 - s) [k = y] + s / K

    With class weights ``c``, each term of the inner sum counts ``c_k`` times, and the mean is over ``sum c_y``.

    Args:
        logits: Logits, in any float type.
        labels: Class indices.
        params: Smoothing.
        class_weights: Weight of each class, float32; None weighs all alike.
        mixed: The labels mixed in and the share of the own ones, from `assay.data.augmentation.mixup`.

    Returns:
        The cross-entropy, a scalar in float32.

    Source:
        Label smoothing: Szegedy et al., CVPR 2016, section 7.
    """
    loss = _cross_entropy(logits, labels, params, class_weights)
    if mixed is not None:
        other, share = mixed
        loss = share * loss + (1.0 - share) * _cross_entropy(logits, other, params, class_weights)
    return loss


@torch.no_grad()
def add_penalty(
    weights: Float[Tensor, " weight"], gradient: Float[Tensor, " weight"], params: TrainParams
) -> Float[Tensor, ""]:
    """Add the gradient of the L1 and L2 terms to a gradient, in place, and return their value.

    ::

        value    = l1 * sum |w|  +  l2 / 2 * sum w^2
        gradient = l1 * sign(w)  +  l2 * w

    The sums run over weights only: no biases, no gains or shifts of normalisation layers. Written out, they are a few
    passes over the weights; through autograd they were up to a tenth of a small model's step. A factor of 0 costs
    no pass.

    Args:
        weights: The weights, see `assay.training.optimizers.weights_of`, end to end.
        gradient: Gradient of the cross-entropy with respect to them.
        params: The factors.

    Returns:
        The terms' value, a scalar in float32.

    Source:
        L1: Tibshirani, JRSS B 58, 1996. L2: Krogh and Hertz, NeurIPS 1991.
    """
    value = weights.new_zeros(())
    if params.l1 > 0:
        value = value + params.l1 * weights.abs().sum()
        gradient.add_(weights.sign(), alpha=params.l1)
    if params.l2 > 0:
        value = value + params.l2 / 2 * weights.dot(weights)
        gradient.add_(weights, alpha=params.l2)
    return value


@torch.no_grad()
def penalize(
    weights: Float[Tensor, " weight"],
    gradient: Float[Tensor, " value"],
    params: TrainParams,
    loop: PenaltyLoop | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Add the gradient of the L1 and L2 terms to a gradient, in place, as `add_penalty` does.

    Args:
        weights: What the terms act on.
        gradient: Gradient of the cross-entropy with respect to these and, after them, all other parameters.
        params: The factors.
        loop: Machine code for it, see `assay.training.penalty.penalty_loop`; the gradient is the same without.

    Returns:
        The terms' value, and the Euclidean norm of the whole gradient, scalars in float32.
    """
    of_weights, of_rest = gradient.tensor_split([weights.numel()])
    if loop is None:
        return add_penalty(weights, of_weights, params), torch.linalg.vector_norm(gradient)
    absolute, squares, norm = loop.add(weights, of_weights, params.l1, params.l2)
    value = params.l1 * absolute + params.l2 / 2 * squares
    return value.float(), (norm + of_rest.dot(of_rest)).sqrt().float()


def balanced_class_weights(labels: Int[Tensor, " example"], num_classes: int) -> Float[Tensor, " class"]:
    """Weigh each class by the inverse of its share: ``n / (K n_k)``, and 0 where there is no example.

    Args:
        labels: Classes of train.
        num_classes: Number of classes, ``K``.

    Source:
        King and Zeng, "Logistic regression in rare events data", Political Analysis 9(2), 2001; as
        ``class_weight="balanced"`` in scikit-learn.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = counts.sum() / (num_classes * counts)
    return torch.where(counts > 0, weights, 0.0).float()


def _cross_entropy(logits: Tensor, labels: Tensor, params: TrainParams, class_weights: Tensor | None) -> Tensor:
    return F.cross_entropy(logits.float(), labels, weight=class_weights, label_smoothing=params.label_smoothing)
