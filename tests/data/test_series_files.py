from pathlib import Path

import numpy as np
import pytest

from assay.data.images import decode_image
from assay.data.series_files import open_series
from assay.errors import DataError

LABELS = np.array([7, 3, 7, 3])


def save(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "s.npz", **arrays)  # type: ignore[arg-type]
    return folder / "s.npz"


def test_three_axes_are_example_step_channel(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(4, 6, 2))
    source = open_series(save(tmp_path, X=values, y=LABELS, channels=["x", "y"]))
    examples = list(source.examples())
    assert (source.kind, source.shape, source.columns, source.class_names) == ("series", (6, 2), ("x", "y"), ("3", "7"))
    assert [example.label for example in examples] == [1, 0, 1, 0]
    assert examples[0].content.dtype == np.float32
    np.testing.assert_array_equal(np.stack([e.content for e in examples]), values.astype(np.float32))
    assert sum(example.content.nbytes for example in examples) <= source.size_bytes


def test_two_axes_are_one_channel(tmp_path: Path) -> None:
    examples = list(open_series(save(tmp_path, data=np.arange(12).reshape(4, 3), labels=LABELS)).examples())
    assert examples[1].content.tolist() == [[3.0], [4.0], [5.0]]


def test_lengths_divide_what_is_put_together(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    source = open_series(save(tmp_path, X=values, y=LABELS, lengths=[1, 4, 2, 3]))
    examples = list(source.examples())
    assert (source.shape, [len(example.content) for example in examples]) == ((4, 2), [1, 4, 2, 3])
    np.testing.assert_array_equal(np.concatenate([example.content for example in examples]), values)


def test_padding_goes_and_zeros_stay(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 2))
    values[0, 3:], values[1, 1:] = np.nan, np.nan
    source = open_series(save(tmp_path, X=values, y=LABELS))
    assert [len(example.content) for example in source.examples()] == [3, 1, 5, 5]
    assert source.notes == ["Cut padding (steps of NaN only) off the end of 2 series."]


def test_groups_and_splits_go_along(tmp_path: Path) -> None:
    path = save(
        tmp_path, X=np.ones((4, 2, 1)), y=LABELS, subject=[1, 1, 2, 2], split=["train", "valid", "test", "train"]
    )
    source = open_series(path)
    assert source.has_groups
    assert source.has_splits
    assert [(e.group, e.split) for e in source.examples()] == [
        ("1", "train"),
        ("1", "val"),
        ("2", "test"),
        ("2", "train"),
    ]


@pytest.mark.parametrize("labels_name", ["s_labels.npy", "labels.npy"])
def test_a_npy_file_has_its_labels_beside_it(tmp_path: Path, labels_name: str) -> None:
    np.save(tmp_path / "s.npy", np.ones((4, 3, 1)))
    np.save(tmp_path / labels_name, np.array(["b", "a", "b", "a"]))
    source = open_series(tmp_path / "s.npy")
    assert source.class_names == ("a", "b")
    assert [example.label for example in source.examples()] == [1, 0, 1, 0]


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1), (4, 5, 6, 3)])
def test_bytes_of_three_or_four_axes_are_images(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    images = rng.integers(0, 256, shape, np.uint8)
    source = open_series(save(tmp_path, images=images, y=LABELS))
    assert (source.kind, source.shape) == ("image", (5, 6, shape[3] if len(shape) == 4 else 1))
    pixels = np.stack([decode_image(e.content, source.shape, e.path) for e in source.examples()])
    np.testing.assert_array_equal(pixels.reshape(shape), images)


def test_class_names_count_from_0(tmp_path: Path) -> None:
    path = save(tmp_path, X=np.ones((4, 2)), y=[2, 0, 2, 0], class_names=["a", "b", "c"])
    assert [e.label for e in open_series(path).examples()] == [2, 0, 2, 0]
    assert open_series(path).class_names == ("a", "b", "c")
    with pytest.raises(DataError, match=r"labels are in 3\.\.7, and class_names has 2"):
        open_series(save(tmp_path, X=np.ones((4, 2)), y=LABELS, class_names=["a", "b"]))


def test_reading_twice_gives_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    source = open_series(save(tmp_path, X=rng.normal(size=(4, 6, 2)), y=LABELS))
    assert [e.content_hash for e in source.examples()] == [e.content_hash for e in source.examples()]
    assert len({e.content_hash for e in source.examples()}) == 4
