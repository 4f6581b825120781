"""Scoring texts, series and tables: the bits of evaluation, whatever file the same examples come in."""

import csv
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data import input_batches, rows, text_lines
from assay.data.input_batches import Tally, Wanted
from assay.data.inputs import open_inputs
from assay.data.loading import Dataset, load_dataset
from assay.data.shards import write_shards
from assay.data.sources import Example
from assay.devices import Compute
from assay.errors import BadExampleError, DataError, ParamsError
from assay.evaluation import predictions as evaluated
from assay.params import load_params
from assay.predict import PredictReport, predict
from assay.project import Project
from assay.records import SERIES, TABLE, TEXT, DataRef
from assay.registry.load import load_version
from assay.tracking.runs import Tracker
from tests.bf16 import need_bf16
from tests.scoring import COLUMNS, MODELS, make_data, make_images, make_kinds_project

Score = Callable[..., PredictReport]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield make_kinds_project(tmp_path_factory.mktemp("scoring") / "project")


@pytest.fixture
def ask(project: Project, tmp_path: Path) -> Score:
    (tmp_path / "out").mkdir()

    def ask(name: str, source: Path, *overrides: str, **choices: object) -> PredictReport:
        params = load_params(project.params_file, overrides)
        out = tmp_path / "out" / "predictions.parquet"
        return predict(project, params, source, **{"model": f"{name}@1", "out": out, "force": True, **choices})

    return ask


def probabilities(report: PredictReport) -> np.ndarray:
    return np.array(pq.read_table(report.path)["probabilities"].to_pylist())


def rows_of(report: PredictReport) -> list[int]:
    return pq.read_table(report.path)["row"].to_pylist()


def contents(dataset: Dataset) -> list[str | np.ndarray]:
    count = len(dataset.labels)
    if dataset.ref.kind == TEXT:
        return list(dataset.texts(np.arange(count)))
    return [dataset.series.row(row) if dataset.ref.kind == SERIES else dataset.table[row] for row in range(count)]


def write_data(folder: Path, dataset: Dataset) -> Path:
    folder.mkdir()
    write_shards(
        folder,
        (
            Example(str(row), content, int(dataset.labels[row]), None, b"")
            for row, content in enumerate(contents(dataset))
        ),
        dataset.ref.class_names,
        has_splits=False,
        kind=dataset.ref.kind,
        columns=dataset.ref.columns,
    )
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_for_shards_are_those_of_evaluation_to_the_last_bit(
    project: Project, ask: Score, tmp_path: Path, name: str, precision: str
) -> None:
    if precision == "bf16":
        need_bf16()
    made = make_data(MODELS[name][1], 300)
    folder = write_data(tmp_path / "data", made)
    ref = DataRef(
        str(folder),
        "0" * 32 + ".dir",
        "made",
        300,
        made.ref.class_names,
        made.ref.shape,
        made.ref.kind,
        made.ref.columns,
    )
    rows = np.arange(300)  # in this order: where in a batch an example stands may change its last bits
    model, spec = load_version(Tracker.open(project, "unit"), name, 1)
    dataset = load_dataset(ref, tmp_path / "cache")
    expected = evaluated.predict(model, spec, dataset, rows, Compute("cpu", precision, 1))
    report = ask(name, folder, f"device.precision={precision}")
    assert rows_of(report) == list(range(300))
    assert probabilities(report).tobytes() == expected.probabilities.tobytes()
    assert len(np.unique(expected.probabilities[:, 0])) > 50
    files = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    assert report.data_sha256 == hashlib.sha256(files).hexdigest()


def test_texts_answer_alike_in_every_file(ask: Score, tmp_path: Path) -> None:
    dataset = make_data(TEXT)
    texts = contents(dataset)
    expected = probabilities(ask("reviews", write_data(tmp_path / "data", dataset)))
    (tmp_path / "a.txt").write_text("\n\n".join(map(str, texts)))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "what"], *enumerate(texts)])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"words": texts, "number": range(len(texts))}), tmp_path / "a.parquet")
    (tmp_path / "files" / "b").mkdir(parents=True)
    for row, text in enumerate(texts):
        (tmp_path / "files" / "b" / f"{row:03d}.txt").write_text(str(text))
    count = len(texts)
    found = {
        "a.txt": list(range(1, 2 * count, 2)),
        "a.csv": list(range(2, count + 2)),
        "a.jsonl": list(range(1, count + 1)),
        "a.parquet": list(range(count)),
    }
    for name, places in found.items():
        report = ask("reviews", tmp_path / name)
        assert probabilities(report).tobytes() == expected.tobytes()
        assert rows_of(report) == places
        assert report.data_sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert any(note.startswith("Cut ") and "12 tokens" in note for note in report.notes)
    report = ask("reviews", tmp_path / "files")
    assert probabilities(report).tobytes() == expected.tobytes()
    assert pq.read_table(report.path)["path"].to_pylist() == [f"b/{row:03d}.txt" for row in range(count)]
    assert "Passed over 69 empty lines." in ask("reviews", tmp_path / "a.txt").notes


def test_only_texts_longer_than_the_model_reads_are_counted_as_cut(ask: Score, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(["the " * 11, "the " * 12, "the " * 13, "the " * 99]))
    assert "Cut 2 texts at the end to the 12 tokens that the model reads." in ask("reviews", tmp_path / "a.txt").notes


def test_series_answer_alike_in_every_file(ask: Score, tmp_path: Path) -> None:
    dataset = make_data(SERIES)
    series = contents(dataset)
    expected = probabilities(ask("waves", write_data(tmp_path / "data", dataset)))
    lengths = np.array([len(one) for one in series])
    padded = np.full((len(series), lengths.max(), 2), np.nan)
    for row, one in enumerate(series):
        padded[row, : len(one)] = one
    np.save(tmp_path / "a.npy", padded)
    np.savez(tmp_path / "padded.npz", x=padded)
    np.savez_compressed(tmp_path / "ragged.npz", lengths=lengths, X=np.concatenate(series), y=lengths)
    for name in ("a.npy", "padded.npz", "ragged.npz"):
        report = ask("waves", tmp_path / name)
        assert probabilities(report).tobytes() == expected.tobytes()
        assert rows_of(report) == list(range(len(series)))
        assert report.data_sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        cut = int((lengths > 12).sum())
        assert f"Cut {cut} series at the end to the 12 steps that the model reads." in report.notes


def table_files(folder: Path) -> tuple[list[list[str]], dict[str, Path]]:
    """The rows of `make_data` as people keep them: one column of colours, others beside, in another order."""
    table = make_data(TABLE).table
    rows = [["label", "id", "colour", "dose", "age"]]
    for number, (age, dose, green, _, label) in enumerate(table.tolist()):
        rows.append(
            [repr(label), str(number), "green" if green else "red", "" if dose != dose else repr(dose), repr(age)]
        )
    files = {suffix: folder / f"t.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet")}
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        with files[suffix].open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows)
    numbers = [
        {
            name: value if name == "colour" else float(value) if value else None
            for name, value in zip(rows[0], row, strict=True)
        }
        for row in rows[1:]
    ]
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in numbers))
    pq.write_table(pa.Table.from_pylist(numbers), files["parquet"])
    return rows, files


def test_rows_of_a_table_answer_alike_in_every_file(ask: Score, tmp_path: Path) -> None:
    expected = probabilities(ask("patients", write_data(tmp_path / "data", make_data(TABLE))))
    _, files = table_files(tmp_path)
    for suffix, path in files.items():
        report = ask("patients", path)
        assert probabilities(report).tobytes() == expected.tobytes()
        assert rows_of(report)[:2] == {"csv": [2, 3], "tsv": [2, 3], "jsonl": [1, 2], "parquet": [0, 1]}[suffix]
        assert "Left out columns: 'id'." in report.notes


def test_columns_that_are_missing_are_named(ask: Score, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Age,dose,label\n1,2,3\n4,5,6\n")
    with pytest.raises(DataError, match=r"lacks 'age', 'colour', and patients version 1 takes.*Did you mean 'Age'"):
        ask("patients", tmp_path / "a.csv")


def test_cells_that_cannot_be_used_are_named_or_left_out(ask: Score, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("age,dose,colour,label\n1,2,red,3\nold,5,red,6\n1,2,purple,3\n1,,,3\n")
    with pytest.raises(BadExampleError, match=r"line 3: 'old' in column 'age' is no number.*--skip-bad"):
        ask("patients", path)
    with path.open("a") as file:
        file.write("7,8\n")
    with pytest.raises(BadExampleError, match="line 6: has 2 fields"):
        ask("patients", path)
    report = ask("patients", path, skip_bad=True)
    assert rows_of(report) == [2, 4, 5]
    assert report.num_skipped == 2
    assert any("'old'" in text for text in report.skipped) and any("has 2 fields" in text for text in report.skipped)
    assert "1 values in 'colour' are none of those in training; no feature stands for them." in report.notes
    assert not np.array_equal(*probabilities(report)[:2])


def test_bad_texts_and_series_are_named_or_left_out(ask: Score, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\ngood,1\n ,2\nfine,3\n")
    with pytest.raises(BadExampleError, match="line 3: has an empty text"):
        ask("reviews", tmp_path / "a.csv")
    assert rows_of(ask("reviews", tmp_path / "a.csv", skip_bad=True)) == [2, 4]
    values = np.zeros((3, 4, 2))
    values[1, 2, 0] = np.inf
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(BadExampleError, match=r"a\.npy, row 1: is inf in step 2, channel 0"):
        ask("waves", tmp_path / "a.npy")
    assert rows_of(ask("waves", tmp_path / "a.npy", skip_bad=True)) == [0, 2]


def test_the_column_of_texts_is_named_where_it_is_unclear(ask: Score, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("title,body\nAh,oh no\nOh,ah yes\n")
    with pytest.raises(DataError, match=r"'title', 'body' all hold text.*--text-column NAME"):
        ask("reviews", path)
    report = ask("reviews", path, text_column="body")
    (tmp_path / "b.txt").write_text("oh no\nah yes\n")
    assert probabilities(report).tobytes() == probabilities(ask("reviews", tmp_path / "b.txt")).tobytes()
    with pytest.raises(DataError, match="has no column 'words'"):
        ask("reviews", path, text_column="words")
    with pytest.raises(ParamsError, match="patients version 1 takes rows of a table, not texts"):
        ask("patients", path, text_column="body")


def wrong_inputs(folder: Path) -> dict[str, Path]:
    np.save(folder / "images.npy", make_images(2))
    np.save(folder / "series.npy", np.zeros((2, 4, 3)))
    (folder / "a.txt").write_text("x")
    (folder / "a.csv").write_text("a,b\n1,2\n")
    (folder / "a.png").write_bytes(b"x")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"x")
    return {path.name: path for path in folder.iterdir()} | {
        "series": write_data(folder / "s", make_data(SERIES)),
        "texts": write_data(folder / "t", make_data(TEXT)),
    }


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("reviews", "images.npy", "is an array, and reviews version 1 takes texts"),
        ("reviews", "a.png", "is an image, and reviews version 1 takes texts"),
        ("reviews", "pictures", r"holds no \.txt file.*\(\.png\).*reviews version 1 takes texts"),
        ("reviews", "series", "holds series, and reviews version 1 takes texts"),
        ("waves", "images.npy", "holds images .*waves version 1 takes series"),
        ("waves", "series.npy", r"3 channels, and waves version 1 takes series of 2 channels \(left, right\)"),
        ("waves", "a.csv", "is a table, and waves version 1 takes series"),
        ("waves", "texts", "column series is missing.*waves version 1 takes series"),
        ("patients", "a.txt", "is a file of texts, and patients version 1 takes rows of a table"),
        ("patients", "series", "holds series, and patients version 1 takes rows of a table"),
        ("patients", "pictures", r"holds no \*\.parquet file, and patients version 1 takes rows of a table"),
        ("pets", "a.csv", "is a table, and pets version 1 takes images"),
        ("pets", "texts", "column image is missing.*pets version 1 takes images"),
    ],
)
def test_input_of_another_kind_is_refused_naming_both(
    ask: Score, tmp_path: Path, name: str, source: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ask(name, wrong_inputs(tmp_path)[source])
    assert list((tmp_path / "out").iterdir()) == []


def test_lengths_that_do_not_fit_are_refused(ask: Score, tmp_path: Path) -> None:
    for lengths, message in (([3, 9], "more than the 10 steps"), ([3, 4], "leave 3 of 10 steps over")):
        np.savez(tmp_path / "a.npz", X=np.zeros((10, 2)), lengths=lengths)
        with pytest.raises(DataError, match=message):
            ask("waves", tmp_path / "a.npz")


def _sizes(project: Project, kind: str, folder: Path, count: int) -> tuple[Path, Wanted]:
    path = folder / f"{kind}-{count}.{'npz' if kind == SERIES else 'csv'}"
    name = next(name for name, (_, found) in MODELS.items() if found == kind)
    _, spec = load_version(Tracker.open(project, "unit"), name, 1)
    if kind == SERIES:
        np.savez(path, X=np.zeros((10 * count, 2)), lengths=np.full(count, 10))
    elif kind == TEXT:
        path.write_text("text,n\n" + "a lovely film with a story and an ending,1\n" * count)
    else:
        path.write_text("age,dose,colour,label\n" + "1.5,2.5,red,3\n" * count)
    return path, Wanted(name, kind, spec.shape, spec.columns, spec.tokenizer)


@pytest.mark.parametrize("kind", [TEXT, SERIES, TABLE])
def test_memory_does_not_grow_with_the_input(
    project: Project, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_batches, "BLOCK_BYTES", 2**13)
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 2**13)
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 200)
    peaks = []
    for count in (100, 2_000, 10_000):  # what is made once is made in the first
        path, wanted = _sizes(project, kind, tmp_path, count)
        tracemalloc.start()
        try:
            assert sum(map(len, open_inputs(path, wanted).read(256, False, Tally()))) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 0.1e6  # 8,000 examples together take 0.5 MB and more


def test_columns_are_kept_with_the_model(project: Project) -> None:
    _, spec = load_version(Tracker.open(project, "unit"), "patients", 1)
    assert spec.columns == COLUMNS
    values = {key: value for key, value in spec.to_json().items() if key != "columns"}
    assert type(spec).from_json(values).columns == ()
