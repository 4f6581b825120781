from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.data.describe import describe, pixel_statistics
from assay.data.loading import Dataset
from assay.data.sheets import draw_contact_sheet, series_figure, table_figure, text_figure, thinned
from assay.errors import StorageError
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset, pictures


def test_numbers_are_what_is_there(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 1, 1]
    given_split = [0, 0, 2, 0, 0, 0, 2]
    dataset = make_dataset(labels, None, given_split, [0, 0, 3, -1, -1, 5, 5], [0, 1, 2, 3, 4, 2, 6])
    description = describe(dataset, tmp_path / "reports")
    assert description.report.class_counts == {"class 0": 3, "class 1": 4}
    assert description.given_split_counts == {"train": 5, "test": 2}
    assert (description.num_groups, description.num_test_copies, description.report.num_duplicates) == (3, 1, 1)
    with Image.open(description.figure) as image:
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


def test_pixels_are_described_by_colour(tmp_path: Path) -> None:
    images = pictures(np.random.default_rng(0), 12, (5, 4, 3))
    found = describe(make_dataset([0, 1] * 6, images), tmp_path)
    assert list(found.numbers) == ["red", "green", "blue"]
    assert found.numbers["blue"]["sd"] == pytest.approx(images[..., 2].std())


def test_texts_are_counted_and_shown(tmp_path: Path) -> None:
    texts = ["One two two", "Three", "one", "  ONE, two two!", "four " * 50, "日本 \x00 $x$"]
    found = describe(text_dataset([0, 1, 0, 1, 0, 1], texts, ("a", "b")), tmp_path)
    assert found.numbers["words"]["maximum"] == 50 and found.numbers["characters"]["minimum"] == 3
    vocabulary = {word for text in texts for word in text.lower().split()}
    assert found.numbers["vocabulary"]["words"] == len(vocabulary)
    assert found.examples["a"] == ("One two two", "one", f"{('four ' * 50)[:159]}…")
    assert found.near_duplicates is not None and found.near_duplicates.pairs == ((0, 3),)
    with Image.open(found.figure) as image:
        assert image.width > 500
    assert type(found).from_json(found.to_json()) == found


def test_channels_and_columns_are_measured_without_what_is_missing(tmp_path: Path) -> None:
    series = series_dataset(np.arange(12) % 2)
    found = describe(series, tmp_path).numbers
    assert list(found) == ["steps", "left", "right"] and found["steps"]["maximum"] == series.ref.shape[0]
    assert found["right"]["mean"] == pytest.approx(series.series.values[:, 1].mean(), abs=1e-6)
    values = np.random.default_rng(0).normal(5, 2, (40, 3)).astype(np.float32)
    values[::4, 1] = np.nan
    values[:, 2] = np.nan
    table = table_dataset(np.arange(40) % 2, values, ("full", "holes", "empty"))
    described = describe(table, tmp_path)
    assert described.numbers["holes"] == pytest.approx(
        {
            "mean": np.nanmean(values[:, 1], dtype=float),
            "sd": np.nanstd(values[:, 1], dtype=float),
            "minimum": np.nanmin(values[:, 1]),
            "maximum": np.nanmax(values[:, 1]),
            "missing": 0.25,
        }
    )
    assert described.numbers["empty"] == {"missing": 1.0} and described.near_duplicates is None


def test_the_columns_that_tell_classes_apart_come_first() -> None:
    figure = table_figure(table_dataset(np.arange(300) % 2), "made")
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == 5 and titles[:2] == ["dose (47%)", "height of stem (23%)"]
    wide = np.random.default_rng(0).normal(size=(60, 40))
    assert len(table_figure(table_dataset(np.arange(60) % 3, wide), "wide").axes) == 12


def test_each_class_and_channel_has_a_panel_and_each_class_a_few_texts() -> None:
    figure = series_figure(series_dataset(np.arange(30) % 3), "made")
    assert len(figure.axes) == 6 and {len(axes.lines) for axes in figure.axes} == {3}
    many = series_dataset(np.arange(60) % 20, columns=tuple("abcdefghi"))
    assert len(series_figure(many, "made").axes) == 7 * 6
    shown = [text.get_text() for text in text_figure(text_dataset([0, 1] * 10), "made").texts]
    assert shown.count("class 0") == shown.count("class 1") == 2


@pytest.mark.parametrize(
    "dataset",
    [
        text_dataset([0, 1] * 3, ["   ", "\u200b", "日本" * 999, "$a_b$", "مرحبا", "\x07 x"]),
        text_dataset(np.arange(400) % 100, [f"text {number}" for number in range(400)]),
        series_dataset([0, 1] * 3, [np.full((1, 1), np.float32(k)) for k in range(6)], ()),
        table_dataset([0, 1] * 4, np.full((8, 2), np.nan)),
        table_dataset([0, 1] * 4, np.full((8, 1), 3e38)),
        table_dataset(np.arange(400) % 100, np.arange(800.0).reshape(400, 2), ("日本", "$x$")),
    ],
    ids=["odd texts", "100 classes", "one step", "nothing there", "no variance", "odd names"],
)
def test_whatever_data_holds_is_drawn(dataset: Dataset, tmp_path: Path) -> None:
    with Image.open(describe(dataset, tmp_path, "made $x_").figure) as image:
        image.load()
        assert 300 < image.width < 2000 and image.height < 2000


def test_a_long_series_keeps_its_ends_of_the_scale() -> None:
    values = np.random.default_rng(0).normal(size=10_001)
    values[4321], values[777] = 99.0, -99.0
    steps, kept = thinned(values, 100)
    assert len(steps) <= 100 and kept.max() == 99.0 and kept.min() == -99.0
    assert np.array_equal(values[steps], kept) and (np.diff(steps) >= 0).all()
