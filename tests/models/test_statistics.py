import itertools

import numpy as np
import torch

from assay.models.statistics import SeriesStatistics, num_statistics

LENGTHS = (40, 4, 1)


def batch() -> torch.Tensor:
    """Return series of three channels, the second of which lacks a value and is constant in the second series."""
    values = torch.randn(3, LENGTHS[0], 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1.0, -2.0])
    values[..., 2] += 2 * values[..., 0]
    values[0, 3, 1] = float("nan")
    values[1, :, 1] = 7.0
    for row, length in enumerate(LENGTHS):
        values[row, length:] = float("nan")
    return values


def statistics(values: torch.Tensor) -> torch.Tensor:
    return SeriesStatistics(values.shape[2])(values.nan_to_num(0.0), ~values.isnan())


def mean_of(values: np.ndarray) -> np.ndarray:
    return np.nansum(values, 0) / np.maximum((~np.isnan(values)).sum(0), 1)


def by_numpy(series: np.ndarray) -> np.ndarray:
    """The statistics of ``[step, channel]``, written as in a textbook."""
    mean, deviation = np.nanmean(series, 0), np.sqrt(np.nanvar(series, 0) + 1e-6)
    found = [mean, deviation, *np.nanquantile(series, (0, 0.25, 0.5, 0.75, 1), axis=0)]
    for lag in (1, 2, 4, 8, 16, 32):
        found.append(mean_of(np.abs(series[lag:] - series[:-lag])))
    crossings = np.where(np.isnan(np.diff(series, axis=0)), np.nan, (series[1:] > mean) != (series[:-1] > mean))
    found.append(mean_of(crossings))
    scores = (series - mean) / deviation
    pairs = itertools.combinations(range(series.shape[1]), 2)
    return np.concatenate([*found, [np.nanmean(scores[:, one] * scores[:, other]) for one, other in pairs]])


def test_they_are_what_numpy_finds_in_the_steps_that_are_there() -> None:
    values = batch()
    expected = [by_numpy(row[:length].double().numpy()) for row, length in zip(values, LENGTHS, strict=True)]
    found = statistics(values)
    assert found.shape == (3, num_statistics(3))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)
    assert found[0, -2] > 0.5  # the first channel is in the third


def test_correlation_is_pearsons_and_0_with_a_constant_channel() -> None:
    values = batch()
    first, second, third = statistics(values)[:2, -3:].T
    expected = np.corrcoef(values[0, :, ::2].T)[0, 1]
    np.testing.assert_allclose(second[0], expected, rtol=1e-4)
    assert first[1].abs() < 1e-6 and third[1].abs() < 1e-6


def test_a_series_of_no_steps_has_finite_statistics_and_gradients() -> None:
    values = torch.zeros(2, 4, 2, requires_grad=True)
    is_there = torch.zeros(2, 4, 2, dtype=torch.bool)
    found = SeriesStatistics(2)(values, is_there)
    found.sum().backward()
    assert torch.equal(found, torch.where(found == found[0, 2], 1e-3, 0.0)) and not values.grad.any()


def test_many_channels_are_not_looked_at_in_pairs() -> None:
    assert (num_statistics(64), num_statistics(65)) == (14 * 64 + 64 * 63 // 2, 14 * 65)
    values = torch.randn(2, 10, 65, generator=torch.Generator().manual_seed(0))
    found = statistics(values)
    assert found.shape == (2, num_statistics(65))
    of_some = statistics(values[..., :64])[:, : 14 * 64]
    torch.testing.assert_close(found.view(2, 14, 65)[..., :64].flatten(1), of_some)
