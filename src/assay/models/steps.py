"""Sequences with padding at their end: where they stop, backwards, and as one vector."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def present_steps(
    inputs: Int[Tensor, "batch step"] | Float[Tensor, "batch step channel"],
) -> Bool[Tensor, "batch step"]:
    """Return True up to the last step that is no padding: token 0, or NaN in all channels."""
    real = inputs != 0 if inputs.ndim == 2 else ~inputs.isnan().all(-1)
    number = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
    return number <= (number * real).amax(1, keepdim=True)


def backward_order(present: Bool[Tensor, "batch step"]) -> Int[Tensor, " row"]:
    """Return the order of rows that has each sequence read backwards and leaves its padding where it is.

    Args:
        present: True where there is no padding.

    Returns:
        Row numbers in ``[step * batch]``, in which row ``t * batch + b`` is step ``t`` of sequence ``b``. The order is
        its own inverse.
    """
    batch, length = present.shape
    steps = torch.arange(length, device=present.device).unsqueeze(1)
    last = present.sum(1) - 1
    turned = torch.where(steps <= last, last - steps, steps)
    return (turned * batch + torch.arange(batch, device=present.device)).flatten()


class MeanPooling(nn.Module):
    """The mean over the steps that are no padding; 0 where there is none."""

    def forward(
        self, states: Float[Tensor, "batch step dim"], present: Bool[Tensor, "batch step"]
    ) -> Float[Tensor, "batch dim"]:
        """Return one vector for each sequence.

        Args:
            states: A vector for each step.
            present: True where there is no padding.
        """
        weights = present.float() / present.sum(1, keepdim=True).clamp(min=1)
        return _weighted(states, weights)


class AttentionPooling(nn.Module):
    """A learned weighting of the steps that are no padding.

    ::

        weight_t = exp(w . h_t) / sum over steps s of exp(w . h_s)
        pooled   = sum over steps t of weight_t h_t

    Args:
        dim: Width of a step's vector ``h_t``.

    Attributes:
        score: ``w``.

    Source:
        Yang et al., "Hierarchical attention networks for document classification", NAACL 2016, equations 6 and 7,
        with the steps' own vectors for their projections.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(
        self, states: Float[Tensor, "batch step dim"], present: Bool[Tensor, "batch step"]
    ) -> Float[Tensor, "batch dim"]:
        """Return one vector for each sequence, 0 for one that is all padding.

        Args:
            states: A vector for each step.
            present: True where there is no padding.
        """
        scores = self.score(states).squeeze(2).float().masked_fill(~present, torch.finfo(torch.float32).min)
        return _weighted(states, torch.softmax(scores, dim=1) * present)


def _weighted(states: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights.to(states.dtype).unsqueeze(1), states).squeeze(1)
