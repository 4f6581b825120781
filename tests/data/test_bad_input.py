"""Bad input, case by case: a sentence that names file, place and what to do, or a repair that is said."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from assay.data.images import bombs_refused
from assay.data.sources import Source, SourceOptions, open_source
from assay.errors import AssayError

Make = Callable[[Path], Path]


def write(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


def csv(body: str, header: str = "x,label") -> Make:
    return write("t.csv", f"{header}\n{body}")


def rows(count: int = 40, *, row: Callable[[int], str] | None = None) -> str:
    """Rows of a number and a label."""
    make = row or (lambda number: f"{number * 7 % 11}.5,{'ab'[number % 2]}")
    return "".join(f"{make(number)}\n" for number in range(count))


def parquet(**columns: Any) -> Make:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "t.parquet")
        return folder / "t.parquet"

    return make


def npz(**arrays: Any) -> Make:
    def make(folder: Path) -> Path:
        np.savez(folder / "s.npz", **arrays)
        return folder / "s.npz"

    return make


def npy(array: np.ndarray, labels: np.ndarray | None = None, labels_name: str = "s_labels.npy") -> Make:
    def make(folder: Path) -> Path:
        np.save(folder / "s.npy", array, allow_pickle=True)
        if labels is not None:
            np.save(folder / labels_name, labels)
        return folder / "s.npy"

    return make


def tree(files: dict[str, str | bytes]) -> Make:
    def make(folder: Path) -> Path:
        for name, content in files.items():
            (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "in" / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / "in"

    return make


def texts(bad: str | bytes, name: str = "a/2.txt") -> Make:
    return tree({"a/1.txt": "good one", "b/1.txt": "bad one", name: bad})


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 6), form: str = "PNG", **options: Any) -> bytes:
    rng = np.random.default_rng(len(mode))
    file = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, size[::-1], np.uint16))
    else:
        depth = len(Image.new(mode, (1, 1)).getbands())
        pixels = rng.integers(0, 256, (size[1], size[0], depth), np.uint8)
        image = Image.frombytes(mode, size, pixels.tobytes())
    image.save(file, form, **options)
    return file.getvalue()


def images(bad: bytes, name: str = "a/2.png") -> Make:
    return tree({"a/1.png": picture(), "b/1.png": picture(size=(8, 6)), name: bad})


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(size=(6, 8), form="JPEG", exif=exif)


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped() -> bytes:
    data = bytearray(picture())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    return bytes(data)


TEXTS = "".join(f"a text of some length with the number {n},{'ab'[n % 2]}\n" for n in range(12))
SERIES = np.arange(48, dtype=np.float32).reshape(4, 6, 2)
LABELS = np.array([0, 1, 0, 1])


def hurt(values: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    copy = values.copy()
    copy[place] = value
    return copy


def ragged_objects() -> np.ndarray:
    array = np.empty(2, object)
    array[:] = [np.zeros((3, 2)), np.zeros((4, 2))]
    return array


def option(**values: Any) -> SourceOptions:
    return SourceOptions(**values)


@dataclass(frozen=True)
class Case:
    """One bad input: how it is made, and what the error must say."""

    source: str
    make: Make
    says: tuple[str, ...]
    options: SourceOptions = SourceOptions()  # noqa: RUF009 - frozen
    skip_bad: bool = False


REFUSED = {
    # Files
    "no such file": Case("table", lambda folder: folder / "t.csv", ("t.csv", "does not exist", "Name a file")),
    "a folder as csv": Case("table", lambda f: (f / "t.csv").mkdir() or f / "t.csv", ("t.csv", "Name the file")),
    "empty file": Case("table", write("t.csv", ""), ("t.csv", "is empty (0 bytes)", "written to its end")),
    "empty parquet": Case("table", write("t.parquet", ""), ("t.parquet", "cannot be read as Parquet", "Replace it")),
    "header only": Case("table", csv(""), ("t.csv", "holds no rows beside its header")),
    "blank lines only": Case("table", write("t.csv", "\n\n\n"), ("t.csv", "holds no rows")),
    "unknown suffix": Case("table", write("t.xlsx", "x"), ("t.xlsx", "suffix '.xlsx'", "save it as")),
    "excel called csv": Case("table", write("t.csv", b"PK\x03\x04" + b"x" * 50), ("t.csv", "zip or Excel", "export")),
    "gzip called csv": Case("table", write("t.csv", b"\x1f\x8b\x08" + b"x" * 50), ("t.csv", "is gzip", "Unpack")),
    "parquet called csv": Case("table", write("t.csv", b"PAR1" + b"x" * 50), ("t.csv", "is Parquet", "right suffix")),
    "csv called parquet": Case("table", write("t.parquet", rows()), ("t.parquet", "cannot be read as Parquet")),
    "truncated parquet": Case(
        "table",
        lambda f: write("t.parquet", parquet(x=[1.5, 2.5] * 9)(f).read_bytes()[:-9])(f),
        ("t.parquet", "cannot be read as Parquet", "Replace it"),
    ),
    # Encoding
    "latin-1": Case(
        "table",
        write("t.csv", b"text,label\nfine,a\n" + "café,b\n".encode("latin-1")),
        ("t.csv", "byte offset 21, line 3", "0xe9 is not UTF-8", "option encoding", "iconv -f WINDOWS-1252 -t UTF-8"),
    ),
    "cut within a letter": Case(
        "table", write("t.csv", "x,label\n1,a\n2,é".encode()[:-1]), ("t.csv", "offset 14, line 3")
    ),
    "utf-16 without mark": Case(
        "table",
        write("t.csv", f"x,label\n{rows()}".encode("utf-16-le")),
        ("t.csv", "are NUL", "option encoding, utf-16-le"),
    ),
    "wrong encoding given": Case("table", csv("é,a\nb,b\n"), ("t.csv", "is not ASCII"), option(encoding="ascii")),
    "no such encoding": Case("table", csv(rows()), ("encoding=utf-99", "Write e.g. utf-8"), option(encoding="utf-99")),
    "no encoding of text": Case(
        "table", csv(rows()), ("encoding=base64", "no encoding of text"), option(encoding="base64")
    ),
    # Rows
    "too few fields": Case(
        "table", csv(rows() + "5\n"), ("t.csv, line 42", "1 fields, the header has 2", "--skip-bad")
    ),
    "too many fields": Case(
        "table", csv("1,2,a\n" + rows()), ("t.csv, line 2", "3 fields, the header has 2", "--skip-bad")
    ),
    "ragged after a quoted line break": Case(
        "table", csv('"two\nlines",a\n1,b,c\n'), ("t.csv, line 4", "3 fields, the header has 2")
    ),
    "open quote": Case(
        "table", csv(rows(3) + '"open,a\n' + rows(5)), ("t.csv, line 5", "column 'x'", "quote is opened", "Close it")
    ),
    "letters after a quote": Case("table", csv(rows(3) + '"a"b,a\n'), ("t.csv, line 5: cannot be read", "--skip-bad")),
    "huge cell": Case(
        "table", csv("1,a\n" + "x" * (17 << 20) + ",b\n"), ("t.csv, line 3", "column 'x'", "larger than 16 MiB")
    ),
    "huge quoted cell": Case(
        "table",
        csv("1,a\n2," + '"' + "word word\n" * (2 << 20) + '"\n'),
        ("t.csv, line 3", "column 'label'", "larger than 16 MiB"),
    ),
    "huge json cell": Case(
        "table",
        write("t.jsonl", '{"y": 1, "note": "' + "x" * (17 << 20) + '"}\n'),
        ("t.jsonl, line 1", "'note'", "16 MiB"),
    ),
    "huge parquet cell": Case(
        "table", parquet(text=["a", "b" * (17 << 20)], label=["a", "b"]), ("t.parquet, row 2", "'text'", "16 MiB")
    ),
    # Names
    "a name twice": Case("table", csv("1,2,a\n", "x,x,label"), ("t.csv", "2 columns named 'x'", "name of its own")),
    "no header": Case(
        "table", csv("3,0\n4,1\n", "1.5,0"), ("t.csv", "first line holds numbers (1.5, 0)", "Add a line")
    ),
    "a name with an escape": Case("table", csv("1,a\n", "x\x1b[31m,label"), ("t.csv", "cannot be stored", "Rename it")),
    "one column": Case("table", csv("a\nb\n" * 5, "label"), ("t.csv", "there is only the label", "text_column")),
    # Labels
    "no label to be seen": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{n * 3}.25"), "x,z"),
        ("t.csv", "'x', 'z'", "data.options.label_column=z"),
    ),
    "two columns named like a label": Case(
        "table",
        csv(rows(row=lambda n: f"{n % 2},{n % 3}"), "label,target"),
        ("'label', 'target'", "label_column=target"),
    ),
    "two columns of few values": Case(
        "table", csv(rows(row=lambda n: f"{n % 2},{n % 3},{n}.5"), "sex,kind,x"), ("'sex', 'kind'", "label_column=kind")
    ),
    "mistyped label column": Case(
        "table",
        csv(rows()),
        ("label_column=labell", "t.csv has no such column", "Did you mean 'label'"),
        option(label_column="labell"),
    ),
    "one column twice": Case(
        "table",
        csv(rows()),
        ("data.options.label_column=x and data.options.text_column=x", "both name 'x'"),
        option(label_column="x", text_column="x"),
    ),
    "measurements as labels": Case(
        "table",
        csv(rows(row=lambda n: f"{n % 5},{n / 8}")),
        ("t.csv, column 'label'", "looks like regression", "another column as label"),
    ),
    "missing labels": Case(
        "table", csv(rows() + "3,\n4,NA\n"), ("t.csv, column 'label'", "2 of 42 rows", "lines 42, 43", "--skip-bad")
    ),
    "null labels": Case(
        "table", parquet(x=[1.5, 2.5, 3.5], label=["a", None, "b"]), ("t.parquet, column 'label'", "1 of 3", "rows 2")
    ),
    "one class": Case(
        "table", csv("1,a\n2,a\n"), ("t.csv, column 'label'", "all 2 rows are of class 'a'", "two classes")
    ),
    "no labels at all": Case("table", csv("1,\n2,\n"), ("no row has a label", "two classes"), skip_bad=True),
    "10,000 classes": Case(
        "table",
        csv(rows(10_000, row=lambda n: f"{n % 7},c{n}")),
        ("more than 1,000 different values", "id or free text"),
    ),
    "labels of lists": Case(
        "table", write("t.jsonl", '{"x": 1, "label": [1]}\n' * 3), ("t.jsonl", "label", "label_column=")
    ),
    # Columns
    "no number among numbers": Case(
        "table", csv(rows() + "oops,a\n"), ("t.csv, line 42, column 'x'", "'oops' is no number", "drop_columns=[x]")
    ),
    "infinity": Case(
        "table", csv(rows() + "inf,a\n"), ("t.csv, line 42, column 'x'", "'inf' is not finite", "--skip-bad")
    ),
    "beyond float32": Case(
        "table", csv(rows() + "-1e39,a\n"), ("line 42, column 'x'", "'-1e39' is not finite in float32")
    ),
    "thousands or decimals": Case(
        "table",
        csv(rows(row=lambda n: f'"{n + 1},{n + 100}",{"ab"[n % 2]}')),
        ("t.csv, line 2, column 'x'", "without comma"),
    ),
    "gives the label away": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{n % 2 + 7},{'ab'[n % 2]}"), "x,code,label"),
        ("t.csv", "column 'code' gives the label 'label' away", "drop_columns=[code]", "keep_columns=[code]"),
    ),
    "gives the label away by what is missing": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{'yes' if n % 2 else ''},{'ab'[n % 2]}"), "x,refunded,label"),
        ("column 'refunded' gives the label 'label' away", "drop_columns=[refunded]"),
    ),
    "nothing but ids": Case(
        "table", csv(rows(row=lambda n: f"{n},{'ab'[n % 2]}"), "id,label"), ("t.csv", "'id': row ids", "keep_columns")
    ),
    "empty texts": Case(
        "table",
        csv(TEXTS + " ,a\n", "text,label"),
        ("t.csv, column 'text'", "1 of 13 texts are empty (lines 14)", "--skip-bad"),
    ),
    "no such split": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{'ab'[n % 2]},fold{n % 3}"), "x,label,split"),
        ("t.csv, column 'split'", "'fold0', 'fold1', 'fold2'", "drop_columns=[split]"),
    ),
    "no train split": Case(
        "table", csv(rows(row=lambda n: f"{n}.5,{'ab'[n % 2]},test"), "x,label,split"), ("no row is of split train",)
    ),
    "two groups": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{'ab'[n % 2]},{n % 2},{n % 5}"), "x,label,group,user_id"),
        ("t.csv", "'group', 'user_id'", "data.options.group_column=group"),
    ),
    "a group of two values": Case(
        "table",
        csv(rows(row=lambda n: f"{n}.5,{'ab'[n % 2]},{n % 2}"), "x,label,group"),
        ("only 2 different", "keep_columns=[group]"),
    ),
    "separator of two letters": Case("table", csv(rows()), ("separator=';;'", "one character"), option(separator=";;")),
    "separator for parquet": Case(
        "table", parquet(x=[1.5], label=["a"]), ("separator", "does not go with a .parquet"), option(separator=";")
    ),
    "shards as table": Case(
        "table", parquet(image=[{"bytes": b"x", "path": "p"}], label=[0]), ("t.parquet", "is a shard", "assay data add")
    ),
    # JSON lines
    "broken json": Case(
        "table",
        write("t.jsonl", '{"x": 1, "label": "a"}\n{"x": 2,\n'),
        ("t.jsonl, line 2", "no JSON object", "--skip-bad"),
    ),
    "a json array": Case(
        "table", write("t.jsonl", '[{"x": 1}]'), ("t.jsonl", "is one JSON array", "one object a line")
    ),
    "a json number": Case(
        "table", write("t.jsonl", '{"x": 1, "label": "a"}\n7\n'), ("t.jsonl, line 2", "no JSON object but '7'")
    ),
    "half a surrogate pair": Case(
        "table", write("t.jsonl", '{"x": "\\ud800", "label": "a"}\n'), ("t.jsonl, line 1", "--skip-bad")
    ),
    "nested too deep": Case(
        "table", write("t.jsonl", '{"x": ' + "[" * 100_000 + "\n"), ("t.jsonl, line 1", "no JSON object")
    ),
    # Text folders
    "empty text file": Case("text-folder", texts(""), ("a/2.txt", "is empty", "--skip-bad")),
    "white space only": Case("text-folder", texts(" \n\t"), ("a/2.txt", "nothing but white space", "--skip-bad")),
    "latin-1 text file": Case(
        "text-folder", texts("line\ncafé".encode("latin-1")), ("a/2.txt", "byte offset 8, line 2", "0xe9", "iconv")
    ),
    "pdf called txt": Case("text-folder", texts(b"PK\x03\x04" + b"\0" * 50), ("a/2.txt", "zip or Excel", "--skip-bad")),
    "huge text file": Case("text-folder", texts("x" * ((16 << 20) + 1)), ("a/2.txt", "16,777,217 bytes", "--skip-bad")),
    "class without texts": Case("text-folder", texts("x", "c/1.md"), ("c: holds no .txt text", "remove the folder")),
    "one class of texts": Case(
        "text-folder", tree({"a/1.txt": "x"}), ("only one class folder, 'a'", "folder of its own")
    ),
    "loose texts": Case("text-folder", tree({"1.txt": "x"}), ("holds no class folders", "folder of its own")),
    "class in test only": Case(
        "text-folder",
        tree({f"{place}/1.txt": "x" for place in ("train/a", "train/b", "test/c")}),
        ("'c' is in test and not in train",),
    ),
    "no readable text": Case(
        "text-folder", tree({"a/1.txt": "", "b/1.txt": ""}), ("None of the 2 texts",), skip_bad=True
    ),
    # Series
    "object array": Case(
        "series", npz(X=ragged_objects(), y=[0, 1]), ("s.npz", "'X' is an object array", "pickle", "lengths")
    ),
    "object npy": Case("series", npy(ragged_objects(), np.array([0, 1])), ("s.npy", "is an object array", "lengths")),
    "npy without labels": Case("series", npy(SERIES), ("s.npy", "neither s_labels.npy nor labels.npy", "npz")),
    "npz without labels": Case("series", npz(X=SERIES), ("s.npz", "no array named as the labels", "name them one of")),
    "npz with two values": Case("series", npz(X=SERIES, data=SERIES, y=LABELS), ("s.npz", "X and data", "unclear")),
    "nan inside": Case(
        "series",
        npz(X=hurt(SERIES, (1, 2, 1), np.nan), y=LABELS),
        ("s.npz, row 1", "nan in step 2, channel 1", "--skip-bad"),
    ),
    "infinity inside": Case(
        "series", npz(X=hurt(SERIES, (2, 0, 0), np.inf), y=LABELS), ("s.npz, row 2", "inf in step 0, channel 0")
    ),
    "nan only": Case(
        "series", npz(X=hurt(SERIES, (3,), np.nan), y=LABELS), ("s.npz, row 3", "nothing but NaN", "--skip-bad")
    ),
    "too few labels": Case(
        "series", npz(X=SERIES, y=LABELS[:3]), ("s.npz", "labels have shape [3]", "4 examples", "one each")
    ),
    "lengths that do not fit": Case(
        "series", npz(X=SERIES[0], y=[0, 1], lengths=[3, 4]), ("s.npz", "add up to 7", "6 steps")
    ),
    "no steps": Case("series", npz(X=SERIES[0], y=[0, 1], lengths=[6, 0]), ("s.npz, row 1", "has no steps")),
    "labels with decimals": Case("series", npz(X=SERIES, y=[0.0, 1.5, 0, 1]), ("s.npz, row 1", "1.5", "regression")),
    "nan label": Case("series", npz(X=SERIES, y=[0.0, np.nan, 0, 1]), ("s.npz, row 1", "label nan is missing")),
    "one class of series": Case("series", npz(X=SERIES, y=[1, 1, 1, 1]), ("s.npz", "of class '1'", "two")),
    "texts as values": Case(
        "series", npz(X=np.array([["a"], ["b"]]), y=[0, 1]), ("s.npz", "of type <U1", "Save numbers")
    ),
    "values of five axes": Case(
        "series", npz(X=np.zeros((2, 1, 1, 1, 1)), y=[0, 1]), ("s.npz", "shape [2, 1, 1, 1, 1]")
    ),
    "channels that do not fit": Case("series", npz(X=SERIES, y=LABELS, channels=["x"]), ("names 1 channels", "have 2")),
    "no such split of series": Case(
        "series", npz(X=SERIES, y=LABELS, split=["train", "x"] * 2), ("row 1", "'x' is no split")
    ),
    "damaged npz": Case("series", write("s.npz", b"PK\x03\x04 no more"), ("s.npz", "cannot be read", "Replace it")),
    "npz called npy": Case(
        "series", lambda f: npz(X=SERIES)(f).rename(f / "labels.npy") and npy(SERIES)(f), ("labels.npy", ".npz")
    ),
    "npy called npz": Case("series", lambda f: npy(SERIES)(f).rename(f / "s.npz"), ("s.npz", "is one array", ".npy")),
    "text called npy": Case(
        "series", lambda f: write("labels.npy", "x")(f) and write("s.npy", "x")(f), ("s.npy", "Replace it")
    ),
    "no series": Case("series", npz(X=SERIES[:0], y=LABELS[:0]), ("s.npz", "holds no examples")),
    # Images
    "zero bytes": Case("image-folder", images(b""), ("a/2.png", "is no JPEG or PNG", "--skip-bad")),
    "truncated png": Case("image-folder", images(picture()[:-40]), ("a/2.png", "cannot be decoded", "--skip-bad")),
    "truncated jpeg": Case(
        "image-folder", images(picture(form="JPEG")[:-200], "a/2.jpg"), ("a/2.jpg", "cannot be decoded")
    ),
    "damaged png": Case("image-folder", images(flipped()), ("a/2.png", "cannot be decoded", "--skip-bad")),
    "text called png": Case("image-folder", images(b"hello"), ("a/2.png", "is no JPEG or PNG", "Replace or remove")),
    "gif called png": Case("image-folder", images(picture("P", form="GIF")), ("a/2.png", "is no JPEG or PNG")),
    "bomb": Case("image-folder", images(bomb()), ("a/2.png", "more pixels than is safe", "--skip-bad")),
    "all images bad": Case(
        "image-folder", tree({"a/1.png": "x", "b/1.png": "y"}), ("none of its 2 images",), skip_bad=True
    ),
}

REPAIRED = {
    "byte order mark": Case("table", write("t.csv", b"\xef\xbb\xbfx,label\n" + rows().encode()), ()),
    "utf-16": Case("table", write("t.csv", f"x,label\n{rows()}".encode("utf-16")), ("Read the file as UTF-16.",)),
    "windows-1252": Case(
        "table",
        write("t.csv", ("x,label\n" + rows() + "1,é\n" * 2).encode("cp1252")),
        ("Read the file as CP1252.",),
        option(encoding="windows-1252"),
    ),
    "semicolons": Case("table", csv(rows().replace(",", ";"), "x;label"), ("Read the semicolon as separator.",)),
    "tabs in a csv": Case("table", csv(rows().replace(",", "\t"), "x\tlabel"), ("Read the tab as separator.",)),
    "bars": Case("table", csv(rows().replace(",", "|"), "x|label"), ("Read the bar as separator.",)),
    "decimal commas": Case(
        "table",
        csv(rows().replace(",", ";").replace(".", ","), "x;label"),
        ("Read the semicolon as separator.", "Read the comma in 'x' as decimal comma."),
    ),
    "old line ends": Case("table", write("t.csv", f"x,label\n{rows()}".replace("\n", "\r")), ()),
    "nul characters": Case("table", csv(rows() + "5\x00,a\n"), ("Removed 1 NUL characters.",)),
    "labels like 1.0": Case(
        "table", csv(rows(row=lambda n: f"{n * 7 % 11}.5,{n % 2}.0")), ("Read the labels in 'label' as whole numbers",)
    ),
    "missing values": Case("table", csv(rows() + ",a\nNA,b\nnan,a\n"), ("Missing values: 3 of 43 in 'x'.",)),
    "words as features": Case(
        "table",
        csv(rows(row=lambda n: f"{('red', 'blue', 'green')[n % 3]},{'ab'[n % 2]}")),
        ("Made 3 features of 'x'",),
    ),
    "left out, with the reason": Case(
        "table",
        csv(
            rows(row=lambda n: f"{n},7,2024-01-{n % 28 + 1:02d},n{n},,{n * 3 % 11}.5,{'ab'[n % 2]}"),
            "id,same,day,name,none,x,label",
        ),
        ("'id' (row ids)", "'same' (constant)", "'day' (dates)", "'name' (text with more than 20", "'none' (empty)"),
    ),
    "no name for the first column": Case(
        "table", csv(rows(row=lambda n: f"{n},{n * 3 % 11}.5,{'ab'[n % 2]}"), ",x,label"), ("'row number' (row ids)",)
    ),
    "lists in json": Case(
        "table",
        write(
            "t.jsonl", "".join(json.dumps({"x": n * 3 % 11 / 2, "tags": [n], "label": n % 2}) + "\n" for n in range(30))
        ),
        ("'tags' (lists, objects or bytes)",),
    ),
    "a column named group as feature": Case(
        "table",
        csv(rows(row=lambda n: f"{n % 3 % 2},{'ab'[n % 2]}"), "group,label"),
        ("Called the feature 'group' 'group_'",),
        option(keep_columns=("group",)),
    ),
    "classes that differ in case": Case("table", csv(rows() + "1,A\n2,A\n"), ("differ in upper and lower case only",)),
    "bad rows left out": Case(
        "table",
        csv(rows() + "oops,a\n1,\n1,2,3\ninf,a\n"),
        (
            "bad: t.csv, line 42: 'oops'",
            "bad: t.csv, line 43: has no label",
            "bad: t.csv, line 44: has 3 fields",
            "bad: t.csv, line 45: 'inf'",
        ),
        skip_bad=True,
    ),
    "bad json left out": Case(
        "table",
        write("t.jsonl", "".join(f'{{"x": {n * 3 % 7}.5, "label": {n % 2}}}\n{{\n' for n in range(20))),
        ("bad: t.jsonl, line 2: is no JSON object",),
        skip_bad=True,
    ),
    "empty texts left out": Case(
        "table", csv(TEXTS + " ,a\n", "text,label"), ("bad: t.csv, line 14: has an empty text",), skip_bad=True
    ),
    "text files left out": Case(
        "text-folder", texts("caf\xe9".encode("latin-1")), ("bad: a/2.txt: byte offset 3",), skip_bad=True
    ),
    "text folder beside others": Case(
        "text-folder", texts("x", "a/x.md"), ("Left out 1 x file that is no .txt (.md).",)
    ),
    "series left out": Case(
        "series", npz(X=hurt(SERIES, (1, 2, 1), np.nan), y=LABELS), ("s.npz, row 1: is nan in step 2",), skip_bad=True
    ),
    "padding": Case(
        "series",
        npz(X=hurt(SERIES, (1, slice(4, None)), np.nan), y=LABELS),
        ("Cut padding (steps of NaN only) off the end of 1",),
    ),
    "bytes as images": Case(
        "series", npz(X=np.zeros((4, 5, 6), np.uint8), y=LABELS), ("Read 4 images of 5x6, since the array is uint8.",)
    ),
    "alpha": Case("image-folder", images(picture("RGBA")), ("Laid 1 images with transparency over white.",)),
    "CMYK": Case("image-folder", images(picture("CMYK", form="JPEG"), "a/2.jpg"), ("Converted 1 CMYK images to RGB",)),
    "16 bit": Case(
        "image-folder", images(picture("I;16")), ("Rounded 1 images from 16 to 8 bits.", "Stored 1 grey images")
    ),
    "turned": Case(
        "image-folder", images(turned(), "a/2.jpg"), ("Turned 1 images upright as their EXIF orientation says.",)
    ),
    "another size": Case("image-folder", images(picture(size=(20, 20))), ("Resized 1 of 3 images to 6x8",)),
    "jpeg called png": Case("image-folder", images(picture(form="JPEG")), ()),
    "wrong suffix": Case("image-folder", images(picture(form="BMP"), "a/2.bmp"), ("no JPEG or PNG (.bmp)",)),
    "images left out": Case(
        "image-folder", images(picture()[:-40]), ("bad: a/2.png: cannot be decoded",), skip_bad=True
    ),
}


def read(case: Case, folder: Path) -> Source:
    path = case.make(folder)
    with bombs_refused():
        source = open_source(
            case.source, path, skip_bad=case.skip_bad, options=case.options, download_dir=folder / "downloads"
        )
        assert list(source.examples())
    return source


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_place_and_advice(tmp_path: Path, name: str) -> None:
    case = REFUSED[name]
    with pytest.raises(AssayError) as caught:
        read(case, tmp_path)
    for part in case.says:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", REPAIRED)
def test_what_is_repaired_or_left_out_is_said(tmp_path: Path, name: str) -> None:
    case = REPAIRED[name]
    source = read(case, tmp_path)
    said = [*source.notes, *(f"bad: {bad}" for bad in source.bad_examples)]
    for part in case.says:
        assert any(part in sentence for sentence in said), said
    if not case.says:
        assert not [sentence for sentence in said if not sentence.startswith("Took column")]
