import pytest
import torch
from scipy import stats

from assay.data.augmentation import augment, mixup
from assay.params import CropFlipAugmentation, NoAugmentation, SeriesAugmentation, TokenDropoutAugmentation

IMAGES = torch.randint(1, 256, (200, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def varied(params: CropFlipAugmentation, seed: int = 0, images: torch.Tensor = IMAGES) -> torch.Tensor:
    return augment(images, params, torch.Generator().manual_seed(seed))


def candidates(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    height, width, channels = image.shape
    padded = torch.zeros(height + 2 * pad, width + 2 * pad, channels, dtype=torch.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    windows = [
        padded[top : top + height, left : left + width] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]
    return windows + [window.flip(1) for window in windows] if flip else windows


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True), (9, True)])
def test_every_image_is_a_window_of_itself_and_all_windows_occur(pad: int, flip: bool) -> None:
    result = varied(CropFlipAugmentation(padding_pixels=pad, horizontal_flip=flip))
    assert result.shape == IMAGES.shape and result.dtype == torch.uint8
    seen = set()
    for image, new in zip(IMAGES, result, strict=True):
        matches = [index for index, window in enumerate(candidates(image, pad, flip)) if torch.equal(window, new)]
        assert matches
        seen.add(matches[0])
    assert pad > 2 or len(seen) == (2 * pad + 1) ** 2 * (2 if flip else 1)


def test_flip_mirrors_half_of_the_images() -> None:
    result = varied(CropFlipAugmentation(padding_pixels=0))
    mirrored = (result == IMAGES.flip(2)).all(dim=(1)).all(dim=1).all(dim=1)
    kept = (result == IMAGES).all(dim=1).all(dim=1).all(dim=1)
    assert bool((mirrored | kept).all())
    assert 70 < int(mirrored.sum()) < 130


def test_the_generator_decides() -> None:
    params = CropFlipAugmentation(padding_pixels=2)
    assert torch.equal(varied(params, 3), varied(params, 3))
    assert not torch.equal(varied(params, 3), varied(params, 4))


def test_none_returns_the_images_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(IMAGES, NoAugmentation(), generator) is IMAGES
    assert torch.equal(generator.get_state(), before)


def test_cutout_gives_one_square_of_each_image_the_mean_colour() -> None:
    images = torch.full((400, 9, 7, 2), 200, dtype=torch.uint8)
    params = CropFlipAugmentation(padding_pixels=0, horizontal_flip=False, cutout_pixels=3)
    result = augment(images, params, torch.Generator().manual_seed(2), mean=(10.4, 99.6))
    cut = (result != images).any(dim=3)
    assert torch.equal(result[cut], torch.tensor([10, 100], dtype=torch.uint8).expand(int(cut.sum()), 2))
    rows, columns = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert torch.equal(cut.sum(dim=(1, 2)), rows * columns)
    assert set(rows.tolist()) == {2, 3} and set(columns.tolist()) == {2, 3}
    assert cut.any(dim=0).all()


def test_mixup_mixes_inputs_as_it_mixes_labels() -> None:
    labels = torch.arange(64) % 4
    inputs = torch.nn.functional.one_hot(labels, 4).float()
    mixed, other, share = mixup(inputs, labels, 0.4, torch.Generator().manual_seed(3))
    expected = share * inputs + (1 - share) * torch.nn.functional.one_hot(other, 4)
    assert torch.allclose(mixed, expected)
    assert sorted(other.tolist()) == sorted(labels.tolist()) and other.tolist() != labels.tolist()


def test_mixups_share_is_beta_distributed() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = [mixup(torch.zeros(2, 1), torch.tensor([0, 1]), 0.5, generator)[2] for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(0.5, 0.5).cdf).pvalue > 0.01


def test_dropped_tokens_become_the_unknown_one_and_padding_stays() -> None:
    tokens = torch.randint(5, 50, (300, 40), generator=torch.Generator().manual_seed(1))
    tokens[:, 30:] = 0
    result = augment(tokens, TokenDropoutAugmentation(prob=0.2), torch.Generator().manual_seed(4), unknown_id=7)
    changed = result != tokens
    assert not changed[:, 30:].any() and set(result[changed].tolist()) == {7}
    assert 0.18 < changed[:, :30].float().mean() < 0.22


def test_series_are_scaled_and_jittered_around_their_channel_and_padding_stays() -> None:
    series = torch.full((2000, 10, 2), 5.0)
    series[:, :, 1] = 30.0
    series[::2, 8:] = torch.nan
    params = SeriesAugmentation(jitter_std=0.5, scale_std=0.0, time_mask_fraction=0.0)
    result = augment(series, params, torch.Generator().manual_seed(0), mean=(5.0, 30.0), std=(1.0, 4.0))
    assert torch.equal(result.isnan(), series.isnan())
    noise = (result - series)[1::2]
    assert noise.std(dim=(0, 1)).tolist() == pytest.approx([0.5, 2.0], rel=0.02)
    params = SeriesAugmentation(jitter_std=0.0, scale_std=0.2, time_mask_fraction=0.0)
    scaled = augment(series, params, torch.Generator().manual_seed(0), mean=(0.0, 30.0), std=(1.0, 4.0))
    assert torch.equal(scaled[1, :, 0], scaled[1, :1, 0].expand(10))
    assert scaled[1::2, 0, 0].std().item() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(scaled[1::2, :, 1], series[1::2, :, 1])


def test_a_masked_stretch_lies_within_the_series() -> None:
    series = torch.full((3000, 12, 1), 7.0)
    series[::3, 6:] = torch.nan
    params = SeriesAugmentation(jitter_std=0.0, scale_std=0.0, time_mask_fraction=0.5)
    result = augment(series, params, torch.Generator().manual_seed(0), mean=(1.0,), std=(1.0,))
    masked = (result == 1.0)[..., 0]
    assert torch.equal(result.isnan(), series.isnan())
    assert set(masked[::3].sum(dim=1).tolist()) == {0, 1, 2, 3} and set(masked[1::3].sum(dim=1).tolist()) == set(
        range(7)
    )
    starts = masked.int().diff(dim=1, prepend=torch.zeros(3000, 1, dtype=torch.int32))
    assert (starts == 1).sum(dim=1).max() == 1
    assert masked[1::3].any(dim=0).all() and masked[::3, :6].any(dim=0).all()
