import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data import shards
from assay.data.shards import inspect_shards, read_batches, write_shards
from assay.data.sources import Example
from assay.errors import DataError

NAMES = ("cat", "dog")


def some(rng: np.random.Generator, count: int, size_bytes: int = 50, split: str | None = None) -> list[Example]:
    return [Example(f"{row}.png", rng.bytes(size_bytes), row % 2, split, b"") for row in range(count)]


def folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_what_is_read_is_what_was_written(tmp_path: Path, rng: np.random.Generator) -> None:
    examples = some(rng, 2345, split="val")
    files = write_shards(tmp_path, iter(examples), NAMES, has_splits=True)
    info = inspect_shards(tmp_path)
    batches = list(read_batches(info))
    assert [path.name for path in files] == ["examples-00000-of-00001.parquet"]
    assert (info.num_examples, info.class_names, info.has_split, info.has_group) == (2345, NAMES, True, False)
    assert max(len(batch.contents) for batch in batches) <= 500
    assert [data for batch in batches for data in batch.contents] == [example.content for example in examples]
    assert [label for batch in batches for label in batch.labels] == [example.label for example in examples]
    assert {split for batch in batches for split in batch.splits} == {"val"}
    assert batches[1].names[0] == "examples-00000-of-00001.parquet, row 500 (500.png)"


def test_the_same_examples_give_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    examples = some(rng, 1500)
    first, second = (
        write_shards(folder(tmp_path, name), examples, NAMES, has_splits=False)[0].read_bytes() for name in "ab"
    )
    assert first == second


def test_shards_close_before_they_are_too_large(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 100_000)
    examples = some(rng, 100, 9_000)
    files = write_shards(tmp_path, examples, NAMES, has_splits=False)
    assert [path.name for path in files] == [f"examples-{n:05d}-of-00010.parquet" for n in range(10)]
    assert max(path.stat().st_size for path in files) < 107_000
    batches = read_batches(inspect_shards(tmp_path))
    assert [data for batch in batches for data in batch.contents] == [example.content for example in examples]


def test_row_groups_are_bounded(tmp_path: Path, rng: np.random.Generator) -> None:
    write_shards(tmp_path, some(rng, 30, 1_000_000), NAMES, has_splits=False)
    with pq.ParquetFile(inspect_shards(tmp_path).files[0]) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert max(group.total_byte_size for group in groups) < 6 * 2**20


def test_the_schema_is_what_hugging_face_datasets_reads(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_shards(tmp_path, some(rng, 4, split="train"), NAMES, has_splits=True)[0]
    schema = pq.read_schema(path)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"] == {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "split": {"dtype": "string", "_type": "Value"},
    }


def table(**changes: object) -> pa.Table:
    columns = {"image": [{"bytes": b"x", "path": "a.png"}], "label": [0]} | changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


BAD_TABLES = {
    "no image": (table(image=None), r"column image is None, not struct<bytes: binary, path: string>"),
    "image is text": (table(image=["x"]), "column image is string"),
    "image bytes are text": (table(image=[{"bytes": "x"}]), "column image is struct"),
    "no label": (table(label=None), "column label is None, not int64"),
    "label is text": (table(label=["cat"]), "column label is string, not int64"),
    "split is a number": (table(split=[1]), "column split is int64, not string"),
    "group is a number": (table(group=[1]), "column group is int64, not string"),
    "null image": (table(image=[{"bytes": None, "path": "a.png"}]), "column image is struct"),
    "no class names": (table().replace_schema_metadata({"huggingface": "{}"}), "names no classes"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path, case: str) -> None:
    columns, message = BAD_TABLES[case]
    pq.write_table(columns, tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=message) as caught:
        inspect_shards(tmp_path)
    assert "mine.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": [{"bytes": b"x"}, {"bytes": None}], "label": [0, 1]}, "row 1: has no image bytes"),
        ({"image": [{"bytes": b"x"}, None], "label": [0, 1]}, "row 1: has no image bytes"),
        ({"image": [{"bytes": b"x"}, {"bytes": b"x"}], "label": [0, None]}, "row 1: has no label"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, rows: dict, message: str) -> None:
    pq.write_table(pa.table(rows), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=message):
        list(read_batches(inspect_shards(tmp_path)))


@pytest.mark.parametrize("keep", [0, 3, 200, -10])
def test_a_broken_off_shard_is_named(tmp_path: Path, rng: np.random.Generator, keep: int) -> None:
    path = write_shards(tmp_path, some(rng, 10), NAMES, has_splits=False)[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"examples-00000-of-00001\.parquet: cannot be read as Parquet"):
        inspect_shards(tmp_path)


def test_damage_inside_a_shard_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_shards(tmp_path, some(rng, 1000), NAMES, has_splits=False)[0]
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read beyond row 0"):
        list(read_batches(inspect_shards(tmp_path)))


def test_shards_of_other_classes_do_not_mix(tmp_path: Path, rng: np.random.Generator) -> None:
    write_shards(tmp_path, some(rng, 4), NAMES, has_splits=False)[0].rename(tmp_path / "a.parquet")
    write_shards(tmp_path, some(rng, 4), ("cat", "cow"), has_splits=False)
    with pytest.raises(DataError, match=r"examples-00000-of-00001\.parquet: names other classes than a\.parquet"):
        inspect_shards(tmp_path)


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.parquet"):
        inspect_shards(tmp_path)


def test_groups_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(table(group=["a"]), buffer)
    (tmp_path / "x.parquet").write_bytes(buffer.getvalue())
    info = inspect_shards(tmp_path)
    assert info.has_group and next(read_batches(info)).groups == ["a"]
