"""Texts, series and tables in shards: written, read by us, by Hugging Face `datasets` and by DuckDB, decoded."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.loading import load_dataset, probe_shards
from assay.data.shards import inspect_shards, read_batches, write_shards
from assay.data.sources import Example, content_hash
from assay.errors import DataError
from assay.records import SERIES, TABLE, TEXT, DataRef

NAMES = ("no", "yes")
COLUMNS = {TEXT: (), SERIES: ("left", "right"), TABLE: ("age", "the dose", "label of jar")}
COUNT = 1300


def contents(kind: str) -> list[str | np.ndarray]:
    rng = np.random.default_rng(5)
    if kind == TEXT:
        return [f'line {row}: {"long " * int(rng.integers(0, 9))}ümlaut\n"quoted"' for row in range(COUNT)]
    if kind == SERIES:
        return [rng.normal(size=(int(rng.integers(1, 9)), 2)).astype(np.float32) for _ in range(COUNT)]
    table = rng.normal(size=(COUNT, 3)).astype(np.float32)
    table[rng.random((COUNT, 3)) < 0.1] = np.nan
    return list(table)


def examples(kind: str) -> Iterator[Example]:
    for row, content in enumerate(contents(kind)):
        split, group = ("train", "test")[row % 5 == 0], f"person {row % 7}"
        yield Example(str(row), content, row % 2, split, content_hash(content), group)


@pytest.fixture(params=[TEXT, SERIES, TABLE])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    write_shards(path, examples(kind), NAMES, has_splits=True, has_groups=True, kind=kind, columns=COLUMNS[kind])
    return path


def same(found: object, expected: object) -> bool:
    return np.array_equal(found, expected, equal_nan=True) if isinstance(expected, np.ndarray) else found == expected


def test_what_is_read_is_what_was_written(kind: str, folder: Path) -> None:
    info = inspect_shards(folder)
    assert (info.kind, info.columns, info.class_names, info.num_examples) == (kind, COLUMNS[kind], NAMES, COUNT)
    assert info.has_split and info.has_group
    batches = list(read_batches(info))
    found = [content for batch in batches for content in batch.contents]
    assert all(same(one, other) for one, other in zip(found, contents(kind), strict=True))
    assert [group for batch in batches for group in batch.groups] == [f"person {row % 7}" for row in range(COUNT)]


def test_the_same_examples_give_the_same_bytes(kind: str, folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_shards(again, examples(kind), NAMES, has_splits=True, has_groups=True, kind=kind, columns=COLUMNS[kind])
    assert [path.read_bytes() for path in again.iterdir()] == [path.read_bytes() for path in folder.iterdir()]


def test_the_arrays_are_the_examples_in_order(kind: str, folder: Path, tmp_path: Path) -> None:
    info = inspect_shards(folder)
    shape = probe_shards(info)
    ref = DataRef(str(folder), "ab" * 16 + ".dir", "made", COUNT, NAMES, shape, kind, COLUMNS[kind])
    for _ in range(2):  # made, and found made
        dataset = load_dataset(ref, tmp_path / "cache")
        rows = np.arange(COUNT)
        if kind == TEXT:
            found = dataset.texts(rows)
        elif kind == SERIES:
            found = [dataset.series.row(row) for row in rows]
        else:
            found = list(dataset.table)
        assert all(same(one, other) for one, other in zip(found, contents(kind), strict=True))
        assert dataset.labels.tolist() == [row % 2 for row in range(COUNT)]
        assert dataset.groups.tolist() == [row % 7 for row in range(COUNT)]
        assert dataset.given_split.tolist() == [2 if row % 5 == 0 else 0 for row in range(COUNT)]
        assert dataset.content_hash.tolist() == [content_hash(one).rstrip(b"\0") for one in contents(kind)]


def test_hugging_face_datasets_reads_them(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    files = [str(path) for path in folder.iterdir()]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert rows.num_rows == COUNT
    assert rows.features["label"].names == list(NAMES)
    expected = contents(kind)[17]
    row = rows[17]
    if kind == TEXT:
        assert row["text"] == expected
    elif kind == SERIES:
        assert np.array_equal(np.array(row["series"], np.float32), expected)
    else:
        values = [np.nan if row[name] is None else row[name] for name in COLUMNS[TABLE]]
        assert np.array_equal(np.array(values, np.float32), expected, equal_nan=True)


def test_duckdb_reads_them(kind: str, folder: Path) -> None:
    column = {TEXT: "text", SERIES: "series", TABLE: '"the dose"'}[kind]
    query = f"SELECT {column}, label, \"group\" FROM read_parquet('{folder}/*.parquet')"
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == COUNT and rows[3][1:] == (1, "person 3")
    expected = contents(kind)[3]
    found = rows[3][0]
    if kind == TABLE:
        assert (np.nan if found is None else np.float32(found)) == pytest.approx(expected[1], nan_ok=True)
    else:
        assert same(np.array(found, np.float32) if kind == SERIES else found, expected)


def rewritten(folder: Path, **columns: object) -> None:
    (path,) = folder.iterdir()
    table = pq.read_table(path)
    for name, values in columns.items():
        field = table.schema.field(name)
        changed = values(table.column(name).to_pylist())  # type: ignore[operator]
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(changed, field.type))
    pq.write_table(table, path)


BAD: dict[str, tuple[str, str, object, str]] = {
    "no text": (TEXT, "text", lambda rows: [None, *rows[1:]], "row 0: has no text"),
    "no series": (SERIES, "series", lambda rows: [*rows[:4], None, *rows[5:]], "row 4: has no series"),
    "no steps": (SERIES, "series", lambda rows: [[], *rows[1:]], "row 0: its series has steps of different"),
    "uneven steps": (
        SERIES, "series", lambda rows: [*rows[:2], [[1.0, 2.0], [3.0]], *rows[3:]], "row 2: its series has steps of",
    ),
    "other channels": (SERIES, "series", lambda rows: [*rows[:6], [[1.0]], *rows[7:]], "row 6: has 1 channels, not 2"),
    "a gap": (
        SERIES, "series", lambda rows: [*rows[:3], [[1.0, float("nan")]], *rows[4:]], "row 3: holds a value that is",
    ),
    "infinite": (TABLE, "age", lambda rows: [float("inf"), *rows[1:]], "row 0: holds a value that is NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, case: str) -> None:
    kind, column, change, message = BAD[case]
    folder = tmp_path / "data"
    folder.mkdir()
    write_shards(folder, examples(kind), NAMES, has_splits=True, has_groups=True, kind=kind, columns=COLUMNS[kind])
    rewritten(folder, **{column: change})
    ref = DataRef(str(folder), "ab" * 16 + ".dir", "made", COUNT, NAMES, (8, 2), kind, COLUMNS[kind])
    ref = ref if kind != TABLE else DataRef(**{**vars(ref), "shape": (3,)})
    with pytest.raises(DataError, match=message):
        load_dataset(ref, tmp_path / "cache")


def test_shards_of_another_kind_than_pinned_are_named(kind: str, folder: Path, tmp_path: Path) -> None:
    other = TEXT if kind == TABLE else TABLE
    ref = DataRef(str(folder), "ab" * 16 + ".dir", "made", COUNT, NAMES, (3,), other, COLUMNS[other])
    with pytest.raises(DataError, match=f"holds {kind} data, the pin says {other}"):
        load_dataset(ref, tmp_path / "cache")


def test_the_schema_says_what_hugging_face_wants(kind: str, folder: Path) -> None:
    (path,) = folder.iterdir()
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert set(features) == {
        *({TEXT: ("text",), SERIES: ("series",)}.get(kind, COLUMNS[kind])),
        "label",
        "split",
        "group",
    }
