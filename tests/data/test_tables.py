import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data import rows
from assay.data.sources import Example, SourceOptions
from assay.data.tables import open_table
from assay.errors import SourceError

HEADER = ("text", "label", "split", "speaker")
ROWS = [
    ('He said "no",\nand left', "neg", "train", "p1"),
    ("  spaces   stay  ", "pos", "dev", "p2"),
    ("cafe\u0301", "pos", "test", "p3"),
    ("plain", "neg", "train", "p1"),
]


def write_as(suffix: str, folder: Path) -> Path:
    path = folder / f"t{suffix}"
    match suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in ROWS))
        case ".parquet":
            columns = dict(zip(HEADER, map(list, zip(*ROWS, strict=True)), strict=True))
            pq.write_table(pa.table(columns | {"label": pa.array(columns["label"]).dictionary_encode()}), path)
        case _:
            with open(path, "w", newline="") as file:
                csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",").writerows([HEADER, *ROWS])
    return path


def facts(example: Example) -> tuple[object, ...]:
    return example.content, example.label, example.split, example.group, example.content_hash


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    source = open_table(write_as(suffix, tmp_path))
    examples = list(source.examples())
    assert (source.kind, source.class_names, source.has_splits, source.has_groups) == (
        "text",
        ("neg", "pos"),
        True,
        True,
    )
    assert [example.content for example in examples] == [ROWS[0][0], ROWS[1][0], "café", "plain"]
    assert [(e.label, e.split, e.group) for e in examples] == [
        (0, "train", "p1"), (1, "val", "p2"), (1, "test", "p3"), (0, "train", "p1")
    ]  # fmt: skip
    assert max(len(example.content.encode()) for example in examples) <= source.shape[0]


def test_examples_name_their_line(tmp_path: Path) -> None:
    names = [example.path for example in open_table(write_as(".csv", tmp_path)).examples()]
    assert names == [f"t.csv, line {line}" for line in (2, 4, 5, 6)]


def test_numbers_come_as_float32_with_nan_for_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,colour,label\n1.5,red,1\n,blue,0\n-0,,1\n0.1,red,0\n")
    source = open_table(path)
    values = np.stack([example.content for example in source.examples()])
    assert (source.kind, source.columns, source.shape) == ("table", ("a", "colour=blue", "colour=red"), (3,))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array([[1.5, 0, 1], [np.nan, 1, 0], [0, 0, 0], [0.1, 0, 1]], np.float32))
    assert not np.signbit(values[2, 0])


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,label\n" + "".join(f"{n * 7 % 13}.5,{'ab'[n % 2]}\n" for n in range(100)) + "bad,a\n1,2,3\n")
    source = open_table(path, skip_bad=True)
    first = [(*facts(example)[1:], example.path) for example in source.examples()]
    bad = list(source.bad_examples)
    assert [(*facts(example)[1:], example.path) for example in source.examples()] == first
    assert source.bad_examples == bad
    assert (len(first), len(bad)) == (100, 2)


def test_how_a_file_is_cut_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    cells = [{"label": n % 2, "x": n * 7 % 13 / 2} | ({"late": n % 3} if n > 50 else {}) for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in cells))
    whole = open_table(path)
    expected = [facts(example)[1:] for example in whole.examples()]
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 7)
    pieces = open_table(path)
    assert [facts(example)[1:] for example in pieces.examples()] == expected
    assert pieces.notes == whole.notes
    assert "Missing values: 51 of 100 in 'late'." in whole.notes


def test_columns_that_give_the_label_away_can_be_kept_or_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("code,x,label\n" + "".join(f"{n % 2 + 5},{n * 7 % 13}.5,{'ab'[n % 2]}\n" for n in range(40)))
    with pytest.raises(SourceError, match=r"'code' gives the label 'label' away: each of its 2 values .* '5' with 'a'"):
        open_table(path)
    assert open_table(path, SourceOptions(keep_columns=("code",))).columns == ("code", "x")
    assert open_table(path, SourceOptions(drop_columns=("code",))).columns == ("x",)
    path.write_text(path.read_text() + "5,1.5,b\n")
    assert open_table(path).columns == ("code", "x")


def test_a_text_is_no_suspect(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,name,label\n" + "".join(f"some text {n},{'ab'[n % 2]},{n % 2}\n" for n in range(40)))
    assert open_table(path).kind == "text"


def test_details_say_what_was_read_and_how(tmp_path: Path) -> None:
    path = write_as(".csv", tmp_path)
    details = open_table(path, SourceOptions(text_column="text", encoding="utf-8"), skip_bad=True).details
    assert details.pop("sha256")
    assert details == {
        "file": "t.csv", "label_column": "label", "text_column": "text", "split_column": "split",
        "group_column": "speaker", "encoding": "utf-8", "skip_bad": "yes",
    }  # fmt: skip


def test_rows_without_a_split_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "x,label,split\n" + "".join(f"{n * 7 % 13}.5,{'ab'[n % 2]},{'train' if n < 30 else ''}\n" for n in range(40))
    )
    source = open_table(path)
    assert [example.split for example in source.examples()] == ["train"] * 30 + [None] * 10
    assert "10 rows say no split; they are divided like data without splits." in source.notes


def test_the_limit_of_the_csv_module_is_put_back(tmp_path: Path) -> None:
    before = 131_072
    csv.field_size_limit(before)
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + f"{'long ' * 40_000},a\n" + "short,b\n")
    assert [len(example.content) for example in open_table(path).examples()] == [200_000, 5]
    assert csv.field_size_limit() == before


_MEASURE = """
import sys, time
from pathlib import Path
import pyarrow.compute
from assay.data.tables import open_table
started = time.process_time()
count = sum(1 for _ in open_table(Path(sys.argv[1])).examples())
seconds = time.process_time() - started
# Not ru_maxrss, which remembers the process that this one was started from.
print(count, next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), seconds)
"""


def measured(path: Path) -> tuple[int, int, float]:
    """Examples, most memory held in KiB, and CPU seconds of a process that reads a table."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    count, kib, seconds = done.stdout.split()
    return int(count), int(kib), float(seconds)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    words = "the film was long and the story thin but its music carried me through it all the same"
    block = "".join(f'"{words} {words}, {number}",{number % 3}\n' for number in range(5000))
    counts, kib, seconds = {}, {}, {}
    for name, count in (("small.csv", 5), ("large.csv", 60)):
        with open(tmp_path / name, "w") as file:
            file.write("text,label\n")
            file.writelines(block for _ in range(count))
        counts[name], kib[name], seconds[name] = measured(tmp_path / name)
    assert (tmp_path / "large.csv").stat().st_size > 54e6
    assert (counts["small.csv"], counts["large.csv"]) == (25_000, 300_000)
    assert kib["large.csv"] < kib["small.csv"] + 10 * 1024
    assert seconds["large.csv"] < 20 * seconds["small.csv"]  # 12 times the rows; their square is 144
    (tmp_path / "large.csv").unlink()
