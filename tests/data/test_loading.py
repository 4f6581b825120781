import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.images import encode_png
from assay.data.loading import Dataset, load_dataset
from assay.data.sources import content_hash
from assay.errors import BadExampleError, DataError, StorageError
from assay.records import DataRef
from tests.data.made import pictures


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return pictures(rng, 1100)


@pytest.fixture
def ref(tmp_path: Path, images: np.ndarray) -> DataRef:
    """Two shards with labels, splits and groups."""
    (tmp_path / "data").mkdir()
    for number, rows in enumerate((range(700), range(700, 1100))):
        columns = {
            "image": [{"bytes": encode_png(images[row]), "path": f"{row}.png"} for row in rows],
            "label": [row % 3 for row in rows],
            "split": [(None, "train", "val", "validation", "test")[row % 5] for row in rows],
            "group": [(None, "anna", "ben")[row % 3] for row in rows],
        }
        pq.write_table(pa.table(columns), tmp_path / "data" / f"{number}.parquet")
    return DataRef(str(tmp_path / "data"), "ab" * 16 + ".dir", "made", 1100, ("a", "b", "c"), (6, 5, 3))


def test_arrays_are_the_examples_in_order(tmp_path: Path, ref: DataRef, images: np.ndarray) -> None:
    dataset = load_dataset(ref, tmp_path / "cache")
    rows = np.arange(1100)
    assert np.array_equal(dataset.images, images)
    assert np.array_equal(dataset.labels, rows % 3)
    assert np.array_equal(dataset.given_split, np.array([-1, 0, 1, 1, 2])[rows % 5])
    assert np.array_equal(dataset.groups, np.array([-1, 0, 1])[rows % 3])
    assert dataset.content_hash.tolist() == [content_hash(image).rstrip(b"\0") for image in images]


def test_arrays_are_mapped_read_only_and_of_the_promised_types(tmp_path: Path, ref: DataRef) -> None:
    dataset = load_dataset(ref, tmp_path / "cache")
    arrays = {name: array for name, array in vars(dataset).items() if name != "ref"}
    assert {name: array.dtype.str for name, array in arrays.items()} == {
        "inputs": "|u1",
        "labels": "<i8",
        "given_split": "|i1",
        "groups": "<i8",
        "content_hash": "|S16",
    }
    for array in arrays.values():
        assert isinstance(array, np.memmap) and not array.flags.writeable and array.flags.c_contiguous


def test_the_second_time_reads_no_shard(tmp_path: Path, ref: DataRef) -> None:
    first = load_dataset(ref, tmp_path / "cache")
    shutil.rmtree(tmp_path / "data")
    assert np.array_equal(load_dataset(ref, tmp_path / "cache").images, first.images)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forget(path: Path) -> None:
    meta = json.loads(path.with_name("meta.json").read_text())
    del meta["files"][path.name]
    path.with_name("meta.json").write_text(json.dumps(meta))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["images", "labels", "given_split", "groups", "content_hash"])
@pytest.mark.parametrize("damage", [flip, cut, forget, Path.unlink])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, ref: DataRef, images: np.ndarray, name: str, damage: Callable[[Path], None]
) -> None:
    load_dataset(ref, tmp_path / "cache")
    folder = tmp_path / "cache" / ("ab" * 16)
    damage(folder / f"{name}.npy")
    dataset = load_dataset(ref, tmp_path / "cache")
    assert np.array_equal(dataset.images, images)
    assert np.array_equal(dataset.labels, np.arange(1100) % 3)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_cache_of_other_facts_is_not_used(tmp_path: Path, ref: DataRef) -> None:
    load_dataset(ref, tmp_path / "cache")
    with pytest.raises(BadExampleError, match=r"0\.parquet, row 0 \(0\.png\): is 6x5 pixels"):
        load_dataset(replace(ref, shape=(5, 6, 3)), tmp_path / "cache")
    with pytest.raises(DataError, match="holds 1100 examples of"):
        load_dataset(replace(ref, num_examples=1000), tmp_path / "cache")


def _load(ref: DataRef, cache_dir: Path) -> int:
    return int(load_dataset(ref, cache_dir).images.sum())


def test_two_processes_at_once_both_succeed(tmp_path: Path, ref: DataRef, images: np.ndarray) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        sums = pool.starmap(_load, [(ref, tmp_path / "cache")] * 3)
        pool.close()
        pool.join()
    assert sums == [int(images.sum())] * 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ab" * 16]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "image",
            [{"bytes": encode_png(np.zeros((6, 5, 3), np.uint8))[:40], "path": "a.png"}],
            "row 0 .a.png.: is no JPEG or PNG",
        ),
        ("split", ["train?"], "its split is 'train\\?', not one of train, val, test"),
    ],
)
def test_a_bad_row_is_named_and_leaves_no_cache(
    tmp_path: Path, ref: DataRef, column: str, values: list[object], message: str
) -> None:
    columns = {"image": [{"bytes": encode_png(np.zeros((6, 5, 3), np.uint8)), "path": "a.png"}], "label": [0]}
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns | {column: values}), tmp_path / "data" / "0.parquet")
    with pytest.raises(DataError, match=message):
        load_dataset(replace(ref, num_examples=1), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, ref: DataRef) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(StorageError, match="cannot write the decoded examples"):
        load_dataset(ref, tmp_path / "cache")


def test_hashes_that_end_in_zero_bytes_still_tell_examples_apart() -> None:
    hashes = np.array([b"a" * 15 + b"\0", b"a" * 15 + b"\1", b"a" * 15 + b"\0"], "S16")
    assert len(np.unique(hashes)) == 2
    assert Dataset.__dataclass_params__.frozen
