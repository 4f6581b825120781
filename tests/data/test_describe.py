from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.data.describe import describe, draw_contact_sheet, pixel_statistics
from assay.errors import StorageError
from tests.data.made import make_dataset, pictures


def test_numbers_are_what_is_there(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 1, 1]
    given_split = [0, 0, 2, 0, 0, 0, 2]
    dataset = make_dataset(labels, None, given_split, [0, 0, 3, -1, -1, 5, 5], [0, 1, 2, 3, 4, 2, 6])
    description = describe(dataset, tmp_path / "reports")
    assert description.report.class_counts == {"class 0": 3, "class 1": 4}
    assert description.given_split_counts == {"train": 5, "test": 2}
    assert (description.num_groups, description.num_test_copies, description.report.num_duplicates) == (3, 1, 1)
    with Image.open(description.contact_sheet) as image:
        assert image.format == "PNG"
    assert type(description).from_json(description.to_json()) == description


@pytest.mark.parametrize("num_channels", [1, 3])
def test_pixel_statistics_are_numpys(rng: np.random.Generator, num_channels: int) -> None:
    images = pictures(rng, 2345, (5, 4, num_channels))
    mean, std = pixel_statistics(images)
    assert np.allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert np.allclose(std, images.astype(float).std(axis=(0, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 20, 3), (300, 100, 3)])
def test_each_class_has_a_row_of_its_own_pixels(shape: tuple[int, int, int]) -> None:
    shades = np.array([40, 90, 160], np.uint8)
    labels = np.repeat(np.arange(3), 20)
    images = np.broadcast_to(shades[labels][:, None, None, None], (60, *shape)).copy()
    sheet = np.asarray(draw_contact_sheet(make_dataset(labels, images), "made"))
    rows = [np.flatnonzero((sheet == shade).all(axis=2).sum(axis=1) > 100) for shade in shades]
    assert rows[0].max() < rows[1].min() and rows[1].max() < rows[2].min()


def test_many_classes_are_cut_and_long_names_shortened() -> None:
    dataset = make_dataset(np.repeat(np.arange(100), 3))
    sheet = draw_contact_sheet(dataset, "x" * 300)
    assert sheet.height < 2000 and sheet.width < 1200


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Make the folder writable"):
        describe(make_dataset([0, 1] * 4), tmp_path / "file" / "reports")
