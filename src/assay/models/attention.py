"""Multi-head self-attention, in the form that is fastest on the device at hand."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.models.dropout import dropout

MASKED = -1e9
"""Added to the scores of padding: far below any score, and finite, so that no row is 0 / 0."""


class SelfAttention(nn.Module):
    """Each token gathers from all tokens, weighted by how well its query fits their keys.

    With ``x`` the tokens' vectors, each head computes, at a width of ``d = dim / num_heads``::

        q, k, v = Q x + a, K x + b, V x + c
        weights = softmax over keys of (q . k / sqrt(d) + bias)
        head    = sum over keys of dropout(weights) v

    and the heads side by side go through a linear layer.

    Args:
        dim: Width of a token's vector.
        num_heads: Heads, a divisor of `dim`.
        drop_prob: Probability of dropping an attention weight while training.

    Source:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.
    """

    def __init__(self, dim: int, num_heads: int, drop_prob: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.drop_prob = drop_prob
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, states: Float[Tensor, "batch token dim"], bias: Float[Tensor, "batch 1 1 token"] | None
    ) -> Float[Tensor, "batch token dim"]:
        """Return what each token gathered.

        Args:
            states: A vector for each token.
            bias: Added to the scores: 0, or `MASKED` where a key is padding; None where there is no padding.
        """
        drop_prob = self.drop_prob if self.training else 0.0
        values = self._heads(self.value(states))
        if states.device.type == "cpu":
            # torch's fused attention is three times slower backward in bfloat16 here.
            gathered = dropout(self.weights(states, bias), drop_prob, self.training) @ values
        else:
            query, key = self._heads(self.query(states)), self._heads(self.key(states))
            bias = None if bias is None else bias.to(query.dtype)
            gathered = F.scaled_dot_product_attention(query, key, values, attn_mask=bias, dropout_p=drop_prob)
        result: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return result

    def weights(
        self, states: Float[Tensor, "batch token dim"], bias: Float[Tensor, "batch 1 1 token"] | None
    ) -> Float[Tensor, "batch head token token"]:
        """Return the attention weights ``[batch, head, query, key]``, without dropout; they sum to 1 over keys."""
        query = self._heads(self.query(states))
        key = self._heads(self.key(states))
        scores = (query * (1 / math.sqrt(query.shape[3]))) @ key.transpose(2, 3)
        return torch.softmax(scores if bias is None else scores + bias.to(scores.dtype), dim=3)

    def _heads(self, states: Tensor) -> Tensor:
        batch, length, dim = states.shape
        return states.view(batch, length, self.num_heads, dim // self.num_heads).transpose(1, 2)
