"""What a series is like as a whole: statistics of each channel and of each pair of channels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_LAGS = (1, 2, 4, 8, 16, 32)
_EPS = 1e-6  # 1e-8 is 0 to the exporter to ONNX
_MOST_CORRELATED = 64
"""Channels up to which pairs are looked at: so many have 2,016, and their number grows with the square."""


def num_statistics(num_channels: int) -> int:
    """Return how many numbers `SeriesStatistics` makes of a series."""
    num_pairs = num_channels * (num_channels - 1) // 2 if num_channels <= _MOST_CORRELATED else 0
    return (3 + len(_QUANTILES) + len(_LAGS)) * num_channels + num_pairs


class SeriesStatistics(nn.Module):
    """Statistics over time: how a series moves, whenever it does so and however long it is.

    With ``x_1 .. x_T`` the values of one channel and ``y_1 .. y_T`` those of another::

        mean                      m_x = 1/T sum_t x_t
        standard deviation        s_x = sqrt(1/T sum_t (x_t - m_x)^2 + eps)
        quantiles                 0, 1/4, 1/2, 3/4 and 1, linear between the sorted values
        mean absolute difference  of x_t and x_{t+k}, for each lag k = 1, 2, 4, 8, 16 and 32
        mean crossing rate        share of neighbours x_t and x_{t+1} of which just one is above m_x
        correlation               1/T sum_t (x_t - m_x) (y_t - m_y) / (s_x s_y), for each pair of channels, where
                                  there are 64 channels or fewer

    Padding and missing values have no part in any of it: two values count where both are there. ``eps`` (1e-6) has a
    constant channel correlate with none. Without any value the deviation is ``sqrt(eps)``, the rest 0.

    Args:
        num_channels: Channels of a series.

    Attributes:
        pairs: Each pair that is looked at, the first channel of which is ``pairs // num_channels``; int64 ``[pair]``.

    Source:
        Bao and Intille, "Activity recognition from user-annotated acceleration data", PERVASIVE 2004 (mean,
        correlation); Figo et al., "Preprocessing techniques for context recognition from accelerometer data",
        Personal and Ubiquitous Computing 14(7), 2010 (the others). Quantiles: Hyndman and Fan, "Sample quantiles in
        statistical packages", The American Statistician 50(4), 1996, definition 7.
    """

    pairs: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        num_paired = num_channels if num_channels <= _MOST_CORRELATED else 0
        first, second = torch.triu_indices(num_paired, num_paired, 1)
        self.register_buffer("pairs", first * num_channels + second, persistent=False)

    def forward(
        self, values: Float[Tensor, "batch step channel"], is_there: Bool[Tensor, "batch step channel"]
    ) -> Float[Tensor, "batch statistic"]:
        """Return the statistics of each series.

        Args:
            values: Normalised values, finite.
            is_there: False where one is missing or padding.

        Returns:
            `num_statistics` numbers: each of a channel's in turn for all channels, then the correlations.
        """
        values, is_there = values.transpose(1, 2), is_there.transpose(1, 2)
        count = is_there.sum(2)
        mean = _mean(values, is_there)
        centred = (values - mean.unsqueeze(2)).masked_fill(~is_there, 0.0)
        deviation = (_mean(centred.square(), is_there) + _EPS).sqrt()
        is_above = centred > 0
        crossings = (is_above[:, :, 1:] ^ is_above[:, :, :-1]).to(values.dtype)
        of_channels = (
            mean,
            deviation,
            *_quantiles(values, is_there, count),
            *(_mean_absolute_difference(values, is_there, lag) for lag in _LAGS),
            _mean(crossings, is_there[:, :, 1:] & is_there[:, :, :-1]),
        )
        if len(self.pairs) == 0:
            return torch.cat(of_channels, 1)
        correlations = self._correlations(centred / deviation.unsqueeze(2), is_there.to(values.dtype))
        return torch.cat((*of_channels, correlations), 1)

    def _correlations(self, scores: Tensor, there: Tensor) -> Tensor:
        """Mean product of two channels' standard scores ``[batch channel step]``, 0 where one is missing."""
        both = torch.bmm(there, there.transpose(1, 2)).clamp(min=1)
        products = torch.bmm(scores, scores.transpose(1, 2)) / both
        return products.flatten(1).index_select(1, self.pairs)


def _mean(values: Tensor, is_there: Tensor) -> Tensor:
    """Mean over the last axis of what is there; 0 of nothing."""
    return values.masked_fill(~is_there, 0.0).sum(2) / is_there.sum(2).clamp(min=1)


def _mean_absolute_difference(values: Tensor, is_there: Tensor, lag: int) -> Tensor:
    """Of values `lag` steps apart, over the last axis; 0 where a series is no longer than that."""
    if values.shape[2] <= lag:
        return torch.zeros_like(values[:, :, 0])
    return _mean((values[:, :, lag:] - values[:, :, :-lag]).abs(), is_there[:, :, lag:] & is_there[:, :, :-lag])


def _quantiles(values: Tensor, is_there: Tensor, count: Tensor) -> list[Tensor]:
    """Quantiles over the last axis, a tensor ``[batch channel]`` for each."""
    ascending = values.masked_fill(~is_there, torch.finfo(values.dtype).max).sort(dim=2).values
    last = (count - 1).clamp(min=0)
    found = []
    for share in _QUANTILES:
        place = share * last
        below = place.floor()
        lower, upper = (ascending.gather(2, at.long().unsqueeze(2)).squeeze(2) for at in (below, place.ceil()))
        found.append((lower + (upper - lower) * (place - below)).masked_fill(count == 0, 0.0))
    return found
