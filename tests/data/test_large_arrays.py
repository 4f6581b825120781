import os
from pathlib import Path

import numpy as np
import pytest

from assay.data import large_arrays
from assay.data.large_arrays import expect_rows, is_large_file, take_rows


@pytest.mark.parametrize("shape", [(50, 3, 4, 2), (50, 7), (50, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_out_of_the_file_are_those_of_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type
) -> None:
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 99, shape).astype(dtype))
    array = np.load(tmp_path / "array.npy", mmap_mode="r")
    rows = np.array([49, 0, 7, 7, 23])
    mapped = take_rows(array, rows)
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 0)
    read = take_rows(array, rows)
    assert read.dtype == mapped.dtype and np.array_equal(read, mapped)
    assert np.array_equal(take_rows(np.asarray(array).copy(), rows), mapped)


def test_a_file_that_breaks_off_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.zeros((50, 400), np.uint8))
    array = np.load(path, mmap_mode="r")
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 0)
    with path.open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(OSError, match=r"array\.npy breaks off at row 40"):
        take_rows(array, np.array([3, 40]))


def test_a_large_array_does_not_become_memory_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "array.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2000, 100_000)})
        file.truncate(file.tell() + 200_000_000)
    array = np.load(tmp_path / "array.npy", mmap_mode="r")
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 1 << 20)
    before = _resident_file_bytes()
    for start in range(0, 2000, 50):
        take_rows(array, np.arange(start, start + 50))
    assert _resident_file_bytes() - before < 20_000_000
    assert array[:, ::4096].sum() == 0
    assert _resident_file_bytes() - before > 100_000_000  # what reading through the map would have cost


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no hints about files")
def test_the_disk_is_told_which_rows_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "array.npy", np.zeros((50, 400), np.uint8))
    array = np.load(tmp_path / "array.npy", mmap_mode="r")
    assert not is_large_file(array)
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 0)
    assert is_large_file(array) and not is_large_file(array[3:]) and not is_large_file(np.asarray(array).copy())
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: told.append((start, length)))
    expect_rows(array, np.array([7, 0]))
    assert told == [(array.offset + 7 * 400, 400), (array.offset, 400)]


def _resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))
