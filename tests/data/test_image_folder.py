import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.data.image_folder import open_image_folder
from assay.data.images import bombs_refused, decode_image, encode_png
from assay.errors import AssayError, BadExampleError, SourceError
from tests.data.made import pictures

WriteFolder = Callable[..., Path]


def test_classes_are_folders_and_examples_come_sorted(two_classes: Path) -> None:
    source = open_image_folder(two_classes)
    examples = list(source.examples())
    assert source.class_names == ("cat", "dog")
    assert [example.path for example in examples] == sorted(
        f"{name}/{number:03d}.png" for name in ("cat", "dog") for number in range(6)
    )
    assert [example.label for example in examples] == [0] * 6 + [1] * 6
    assert all(example.split is None for example in examples)
    assert examples[7].content == (two_classes / "dog/001.png").read_bytes()
    assert not source.notes


def test_folders_named_by_numbers_are_counted_not_spelled(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    folder = write_folder({str(number): list(pictures(rng, 1)) for number in (10, 2, 0)})
    assert open_image_folder(folder).class_names == ("0", "2", "10")


def test_splits_above_the_classes_are_kept(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    places = {f"{split}/{name}": list(pictures(rng, 2)) for split in ("train", "valid", "Test") for name in ("a", "b")}
    source = open_image_folder(write_folder(places))
    splits = {example.path.split("/")[0]: example.split for example in source.examples()}
    assert source.has_splits
    assert splits == {"train": "train", "valid": "val", "Test": "test"}


def test_a_class_may_be_called_train(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    folder = write_folder({name: list(pictures(rng, 2)) for name in ("train", "car")})
    assert open_image_folder(folder).class_names == ("car", "train")


def test_mixed_sizes_take_the_most_common_and_say_so(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    mixed = [*pictures(rng, 2, (8, 10, 3)), *pictures(rng, 1, (30, 30, 3))]
    source = open_image_folder(write_folder({"a": mixed, "b": list(pictures(rng, 1, (4, 4, 3)))}))
    examples = list(source.examples())
    assert source.shape == (8, 10, 3)
    assert all(decode_image(example.content, (8, 10, 3), example.path).shape for example in examples)
    assert source.notes == [
        "Resized 2 of 4 images to 8x10 (height x width, bicubic, sides scaled apart where the proportions differ); "
        "found 8x10, 30x30, 4x4."
    ]


def test_large_images_come_down_to_224(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    folder = write_folder({name: list(pictures(rng, 2, (300, 600, 3))) for name in "ab"})
    assert open_image_folder(folder).shape == (112, 224, 3)
    assert open_image_folder(folder, size=(300, 500)).shape == (300, 500, 3)


def test_grey_stays_grey_unless_one_is_in_colour(rng: np.random.Generator, write_folder: WriteFolder) -> None:
    grey = {name: list(pictures(rng, 2, (6, 5))) for name in "ab"}
    assert open_image_folder(write_folder(grey, "grey")).shape == (6, 5, 1)
    source = open_image_folder(write_folder(grey | {"c": list(pictures(rng, 1))}, "mixed"))
    assert source.shape == (6, 5, 3)
    assert source.notes == ["Stored 4 grey images as RGB, since others are in colour."]
    for example in source.examples():
        with Image.open(io.BytesIO(example.content)) as image:
            assert image.mode == "RGB"


def test_what_is_no_image_is_left_out_and_counted(two_classes: Path) -> None:
    (two_classes / "README.md").touch()
    (two_classes / ".git").mkdir()
    (two_classes / "cat" / ".DS_Store").touch()
    (two_classes / "cat" / "notes.txt").touch()
    (two_classes / "dog" / "x.webp").touch()
    os.mkfifo(two_classes / "dog" / "pipe.png")
    source = open_image_folder(two_classes)
    assert source.num_examples == 12
    assert source.notes == [
        f"Left out 1 x file outside any class folder, in {two_classes}.",
        "Left out 1 x file that is no JPEG or PNG (.png).",
        "Left out 1 x file that is no JPEG or PNG (.txt).",
        "Left out 1 x file that is no JPEG or PNG (.webp).",
        "Left out 2 x hidden file or folder.",
    ]


def test_images_deeper_down_belong_to_their_class(two_classes: Path) -> None:
    (two_classes / "cat" / "more").mkdir()
    (two_classes / "cat" / "000.png").rename(two_classes / "cat" / "more" / "x.PNG")
    assert [example.path for example in open_image_folder(two_classes).examples()][5] == "cat/more/x.PNG"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def lie(path: Path) -> None:
    path.write_bytes(b"GIF89a, in truth")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "cannot be decoded"), (lie, "is no JPEG or PNG"), (dangle, "cannot be read"), (Path.touch, None)],
)
def test_a_bad_image_is_named_or_left_out(
    two_classes: Path, damage: Callable[[Path], None], reason: str | None
) -> None:
    damage(two_classes / "cat" / "002.png")
    if reason is None:
        assert len(list(open_image_folder(two_classes).examples())) == 12
        return
    with pytest.raises(BadExampleError, match=rf"^cat/002\.png: {reason}.*--skip-bad\.$"):
        list(open_image_folder(two_classes).examples())
    source = open_image_folder(two_classes, skip_bad=True)
    assert [example.path for example in source.examples()].count("cat/002.png") == 0
    assert len(source.bad_examples) == 1
    assert source.bad_examples[0].startswith(f"cat/002.png: {reason}")


def only_files(folder: Path) -> None:
    shutil.rmtree(folder / "cat")
    shutil.rmtree(folder / "dog")
    (folder / "a.png").touch()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "dog")


def empty_class(folder: Path) -> None:
    (folder / "emu").mkdir()
    (folder / "emu" / "x.txt").touch()


def all_bad(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        lie(path)


def splits_beside_classes(folder: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(folder / "cat", folder / name)


def no_train(folder: Path) -> None:
    (folder / "cat").rename(folder / "val")
    (folder / "dog").rename(folder / "test")


def two_vals(folder: Path) -> None:
    (folder / "cat").rename(folder / "val")
    (folder / "dog").rename(folder / "valid")
    shutil.copytree(folder / "val", folder / "train")


def class_not_in_train(folder: Path) -> None:
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "emu"))):
        for name in names:
            shutil.copytree(folder / "cat", folder / split / name)
    shutil.rmtree(folder / "cat")
    shutil.rmtree(folder / "dog")


def odd_name(folder: Path) -> None:
    os.rename(folder / "cat", os.fsencode(folder) + b"/caf\xe9")


BAD_FOLDERS = {
    "missing": (shutil.rmtree, "does not exist"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.touch()), "is a file"),
    "no folders": (only_files, "holds no class folders"),
    "one class": (one_class, "holds only one class folder, 'cat'"),
    "empty class": (empty_class, "emu: holds no JPEG or PNG image"),
    "all bad": (all_bad, "none of its 12 images can be read"),
    "splits beside classes": (splits_beside_classes, "the splits test, train lie beside other folders (cat, dog)"),
    "no train": (no_train, "there is no train"),
    "two vals": (two_vals, "two of them are the same split"),
    "class not in train": (class_not_in_train, "class 'emu' is in test and not in train"),
    "odd name": (odd_name, "has letters that cannot be stored"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_says_why(two_classes: Path, case: str) -> None:
    damage, message = BAD_FOLDERS[case]
    damage(two_classes)
    with pytest.raises(SourceError) as caught:
        open_image_folder(two_classes, skip_bad=case == "all bad")
    assert str(two_classes) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [(0, 5), (5, 2049), (-1, 3)])
def test_a_size_out_of_range_is_refused(two_classes: Path, size: tuple[int, int]) -> None:
    with pytest.raises(SourceError, match="each side must be in"):
        open_image_folder(two_classes, size=size)


def test_a_decompression_bomb_is_refused(two_classes: Path) -> None:
    (two_classes / "cat" / "bomb.png").write_bytes(encode_png(np.zeros((9500, 9500, 1), np.uint8)))
    with bombs_refused(), pytest.raises(AssayError, match=r"cat/bomb\.png: has more pixels"):
        open_image_folder(two_classes)
