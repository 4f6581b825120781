import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.loading import Dataset
from assay.data.measuring import TEXT_FEATURES, measure_texts
from assay.data.profile import MAX_VALUES, measure, sample_order, summarise
from assay.errors import DataError, NonFiniteError
from assay.records import DataRef
from assay.records.night import DataProfile
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset, pictures


@pytest.fixture(autouse=True)
def _no_shards_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made data sets name the folder ``data``, which the project's own folder has."""
    monkeypatch.chdir(tmp_path)


def rows_of(dataset: Dataset) -> np.ndarray:
    return np.arange(len(dataset.labels))


def large(rng: np.random.Generator, count: int, num_classes: int, shape: tuple[int, int, int]) -> Dataset:
    """Many examples without the cost of hashing them."""
    names = tuple(f"class number {number}" for number in range(num_classes))
    return Dataset(
        ref=DataRef("nowhere", "0" * 32 + ".dir", "made", count, names, shape),
        inputs=pictures(rng, count, shape),
        labels=rng.integers(0, num_classes, count),
        given_split=np.full(count, -1, np.int8),
        groups=np.full(count, -1),
        content_hash=np.frombuffer(rng.bytes(16 * count), "S16"),
    )


def with_shards(folder: Path, dataset: Dataset, **columns: object) -> Dataset:
    """The same data set, decoded from shards with more columns."""
    image = [{"bytes": bytes(10 + row), "path": None} for row in range(len(dataset.labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), "label": dataset.labels, **columns})
    half = len(dataset.labels) // 2
    pq.write_table(table[:half], folder / "a.parquet")
    pq.write_table(table[half:], folder / "b.parquet")
    ref = DataRef(**(vars(dataset.ref) | {"path": str(folder)}))
    return Dataset(**(vars(dataset) | {"ref": ref}))


def test_counts_are_what_is_there() -> None:
    dataset = make_dataset([0, 0, 0, 1, 1, 1, 1, 3], copies_of=[0, 0, 2, 3, 4, 0, 4, 7])
    found = summarise(dataset, rows_of(dataset), num_unreadable=2)
    assert found.class_counts == {"class 0": 3, "class 1": 4, "class 2": 0, "class 3": 1}
    assert found.class_names == ("class 0", "class 1", "class 3")
    assert (found.num_examples, found.num_duplicates, found.num_conflicting) == (8, 3, 1)
    assert (found.duplicate_share, found.unreadable_share) == (3 / 8, 0.2)
    assert summarise(dataset, np.array([1, 4])).class_counts == {"class 0": 1, "class 1": 1, "class 2": 0, "class 3": 0}
    assert DataProfile.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(("num_classes", "shape"), [(10, (6, 6, 3)), (2000, (6, 6, 3)), (10, (6, 6, 1))])
def test_a_summary_stays_small_and_is_the_same_again(num_classes: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    dataset = large(rng, 30_000, num_classes, shape)
    probabilities = rng.dirichlet(np.ones(num_classes), len(dataset.labels)) if num_classes < 100 else None
    found = summarise(dataset, rows_of(dataset), probabilities)
    assert len(json.dumps(found.to_json())) < 200_000
    assert 200 <= len(found.features["brightness"]) <= MAX_VALUES
    assert all(list(values) == sorted(values) for values in found.features.values())
    assert found == summarise(dataset, rows_of(dataset), probabilities)


def test_a_sample_is_of_contents_not_of_places() -> None:
    rng = np.random.default_rng(0)
    hashes = np.frombuffer(rng.bytes(16 * 5000), "S16")
    shuffled = rng.permutation(5000)
    first = hashes[sample_order(hashes)[:1000]]
    assert np.array_equal(first, hashes[shuffled][sample_order(hashes[shuffled])[:1000]])
    grown = np.concatenate([hashes, np.frombuffer(rng.bytes(16 * 500), "S16")])
    assert np.isin(grown[sample_order(grown)[:1000]], first).mean() > 0.85


def test_a_content_has_its_share_of_every_sample() -> None:
    rng = np.random.default_rng(0)
    hashes = np.frombuffer(rng.bytes(16 * 10_000), "S16").copy()
    hashes[rng.permutation(10_000)[:2500]] = hashes[0]
    sample = hashes[sample_order(hashes)[:2000]]
    assert (sample == hashes[0]).mean() == pytest.approx(0.25, abs=0.04)
    assert sorted(sample_order(hashes)) == list(range(10_000))


@pytest.mark.parametrize("shape", [(5, 7, 1), (6, 4, 3), (1, 1, 1)])
def test_features_are_what_they_say_and_blocks_change_nothing(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    images = pictures(rng, 50, shape)
    rows = rng.permutation(50)[:31]
    found = measure(images, rows)
    grey = images[rows].astype(float).mean(axis=3)
    assert np.allclose(found["brightness"], grey.mean(axis=(1, 2)), rtol=1e-5)
    assert np.allclose(found["contrast"], grey.std(axis=(1, 2)), rtol=1e-4, atol=1e-4)
    if shape[2] == 3:
        assert np.allclose(found["blue sd"], images[rows][..., 2].astype(float).std(axis=(1, 2)), rtol=1e-4)
    monkeypatch.setattr("assay.data.profile._BLOCK_PIXELS", 200)
    assert all(np.allclose(values, found[name], rtol=1e-5) for name, values in measure(images, rows).items())


def test_edges_and_centre_are_where_they_are() -> None:
    stripes = np.zeros((2, 8, 8, 1), np.uint8)
    stripes[0, :, 6] = 255
    stripes[1, 0, :] = 255
    found = measure(stripes, np.arange(2))
    assert found["edge direction"].tolist() == [1, 0]
    assert found["centre across"].tolist() == [6.5 / 8, 0.5] and found["centre down"].tolist() == [0.5, 0.5 / 8]
    assert found["sharpness"].tolist() == pytest.approx([255 / 7, 255 / 14], rel=1e-6)
    blank = measure(np.zeros((1, 8, 8, 1), np.uint8), np.arange(1))
    in_shares = ("edge direction", "centre across", "centre down")
    assert {name: values.item() for name, values in blank.items()} == {
        name: 0.5 if name in in_shares else 0 for name in blank
    }


def test_blank_images_are_counted_whatever_their_colour() -> None:
    images = pictures(np.random.default_rng(0), 20, (13, 11, 3))
    images[:5] = np.array([10, 20, 31])  # Their grey value is rounded, and float32 finds a deviation of 2e-6.
    found = summarise(make_dataset([0, 1] * 10, images), np.arange(20))
    assert found.blank_share == 0.25 and found.features["contrast"][:6].count(0) == 5


def test_columns_and_file_sizes_come_from_the_shards(tmp_path: Path) -> None:
    dataset = with_shards(
        tmp_path,
        make_dataset([0, 1] * 5),
        group=["a", None, "", "b", "b", "b", "b", "b", "b", "b"],
        weight=[np.nan, *np.arange(9.0)],
    )
    found = summarise(dataset, rows_of(dataset))
    assert found.missing_shares == pytest.approx({"image": 0, "label": 0, "group": 0.2, "weight": 0.1})
    assert found.features["file bytes"] == tuple(range(10, 20))
    half = summarise(dataset, np.array([0, 1, 8, 9]))
    assert half.missing_shares["group"] == 0.25 and half.features["file bytes"] == (10, 11, 18, 19)
    assert "file bytes" not in summarise(make_dataset([0, 1] * 5), np.arange(10)).features


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset([0, 1, 2] * 4)
    with pytest.raises(DataError, match="none were chosen"):
        summarise(dataset, np.array([], np.int64))
    with pytest.raises(DataError, match=r"shape \[12, 2\], the data has 12 rows and 3 classes"):
        summarise(dataset, rows_of(dataset), np.full((12, 2), 0.5))
    bad = np.full((12, 3), 1 / 3)
    bad[7, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 7"):
        summarise(dataset, rows_of(dataset), bad)
    other = with_shards(tmp_path, make_dataset([0, 1] * 5))
    with pytest.raises(DataError, match="holds 10 examples, 12 were decoded"):
        summarise(Dataset(**(vars(dataset) | {"ref": other.ref})), rows_of(dataset))


def test_a_summary_of_the_time_when_all_data_were_images_is_understood() -> None:
    found = summarise(make_dataset([0, 1] * 5), np.arange(10))
    old = found.to_json() | {"image_shape": [4, 4, 1]}
    for name in ("shape", "kind", "columns"):
        del old[name]
    assert DataProfile.from_json(json.loads(json.dumps(old))) == found


def test_texts_are_measured_as_they_say() -> None:
    found = {name: values.tolist() for name, values in measure_texts(["Ab 12, ab!", "", "日本 x"]).items()}
    assert tuple(found) == TEXT_FEATURES
    assert found["characters"] == [10, 0, 4] and found["words"] == [3, 0, 2]
    assert found["word length"] == pytest.approx([8 / 3, 0, 1.5])
    assert found["letters"] == pytest.approx([0.4, 0, 0.75]) and found["digits"] == pytest.approx([0.2, 0, 0])
    assert found["punctuation"] == pytest.approx([0.2, 0, 0]) and found["upper case"] == pytest.approx([0.25, 0, 0])
    assert found["non-ASCII"] == pytest.approx([0, 0, 0.5])
    assert measure_texts(["a b a b"])["distinct words"].tolist() == [0.5]


def test_blank_texts_series_and_rows_are_counted() -> None:
    texts = text_dataset([0, 1] * 4, ["  ", "\n", *"abcdef"])
    assert summarise(texts, np.arange(8)).blank_share == 0.25
    still = [np.full((5, 2), number, np.float32) for number in range(2)]
    moving = [np.arange(10.0).reshape(5, 2) + number for number in range(6)]
    series = series_dataset([0, 1] * 4, [*still, *moving])
    assert summarise(series, np.arange(8)).blank_share == 0.25
    values = np.ones((8, 2))
    values[0], values[1, 0] = np.nan, np.nan
    found = summarise(table_dataset([0, 1] * 4, values), np.arange(8))
    assert found.blank_share == 0.125
    assert {name: len(sample) for name, sample in found.features.items()} == {"column 0": 6, "column 1": 7}


def test_series_and_tables_are_measured_channel_by_channel_and_column_by_column() -> None:
    series = series_dataset(np.arange(20) % 2, columns=("x", "y"))
    found = summarise(series, np.arange(20))
    assert list(found.features) == ["steps", "x mean", "x sd", "x step", "y mean", "y sd", "y step"]
    own = [series.series.row(row)[:, 1] for row in range(20)]
    assert found.features["y step"] == pytest.approx(sorted(np.abs(np.diff(one)).mean() for one in own), rel=1e-4)
    assert (found.kind, found.shape, found.columns) == ("series", series.ref.shape, ("x", "y"))
    tiny = np.random.default_rng(0).normal(0, 1e-9, (50, 40)).astype(np.float32)
    table = summarise(table_dataset(np.arange(50) % 2, tiny), np.arange(50))
    assert len(table.features) == 32
    assert table.features["column 3"] == pytest.approx(np.sort(tiny[:, 3]).tolist(), rel=1e-4)
    assert DataProfile.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize("kind", ["text", "series", "table"])
def test_summaries_of_every_kind_stay_small(kind: str) -> None:
    labels = np.arange(3000) % 10
    rng = np.random.default_rng(0)
    dataset = {
        "text": lambda: text_dataset(labels),
        "series": lambda: series_dataset(
            labels, list(rng.normal(-1e-7, 1e-8, (3000, 5, 9))), tuple(f"channel number {k}" for k in range(9))
        ),
        "table": lambda: table_dataset(labels, rng.normal(-1e-7, 1e-8, (3000, 300))),
    }[kind]()
    probabilities = rng.dirichlet(np.ones(10), 3000)
    found = summarise(dataset, np.arange(3000), probabilities)
    assert len(json.dumps(found.to_json())) < 200_000
    assert 200 <= len(found.top_probabilities) <= MAX_VALUES
    assert found == summarise(dataset, np.arange(3000), probabilities)
