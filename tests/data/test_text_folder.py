from pathlib import Path

import pytest

from assay.data.text_folder import open_text_folder
from assay.errors import SourceError


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_classes_are_folders_and_texts_come_sorted(tmp_path: Path) -> None:
    files = {"neg/b.txt": b"two", "neg/a.txt": b"one", "pos/c.txt": b" three\n"}
    source = open_text_folder(fill(tmp_path, files))
    examples = list(source.examples())
    assert (source.kind, source.class_names, source.num_examples) == ("text", ("neg", "pos"), 3)
    assert [(e.path, e.content, e.label) for e in examples] == [
        ("neg/a.txt", "one", 0), ("neg/b.txt", "two", 0), ("pos/c.txt", " three\n", 1)
    ]  # fmt: skip
    assert max(len(e.content.encode()) for e in examples) <= source.shape[0]
    assert not source.notes


def test_splits_above_the_classes_are_kept(tmp_path: Path) -> None:
    files = {f"{split}/{name}/1.txt": b"x" for split in ("train", "dev_", "test") for name in "ab"}
    with pytest.raises(SourceError, match="lie beside other folders"):
        open_text_folder(fill(tmp_path / "no", files))
    files = {f"{split}/{name}/1.txt": b"x" for split in ("train", "valid", "test") for name in "ab"}
    source = open_text_folder(fill(tmp_path / "yes", files))
    assert source.has_splits
    assert {e.path.split("/")[0]: e.split for e in source.examples()} == {
        "train": "train",
        "valid": "val",
        "test": "test",
    }


def test_encodings_give_the_same_text(tmp_path: Path) -> None:
    texts = {
        "a/1.txt": "e\u0301t\u00e9".encode(),
        "a/2.txt": "été".encode("utf-8-sig"),
        "b/3.txt": "été".encode("utf-16"),
    }
    contents = [e.content for e in open_text_folder(fill(tmp_path, texts)).examples()]
    assert contents == ["été"] * 3
    latin = fill(tmp_path / "latin", {"a/1.txt": "été".encode("latin-1"), "b/1.txt": b"x"})
    assert next(open_text_folder(latin, encoding="latin-1").examples()).content == "été"


def test_equal_texts_have_equal_hashes_whatever_their_file(tmp_path: Path) -> None:
    source = open_text_folder(fill(tmp_path, {"a/1.txt": b"same", "a/2.txt": b"other", "b/1.txt": b"\xef\xbb\xbfsame"}))
    first, second, third = (e.content_hash for e in source.examples())
    assert first == third != second


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    source = open_text_folder(fill(tmp_path, {"a/1.txt": b"", "a/2.txt": b"x", "b/1.txt": b"y"}), skip_bad=True)
    assert list(source.examples()) == list(source.examples())
    assert len(source.bad_examples) == 1
