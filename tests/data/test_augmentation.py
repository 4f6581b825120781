import pytest
import torch

from assay.data.augmentation import augment
from assay.params import CropFlipAugmentation, NoAugmentation

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
