import numpy as np

from assay.data.ragged import from_rows

ROWS = [np.arange(6.0).reshape(3, 2), np.full((1, 2), 9.0), np.zeros((5, 2))]


def test_rows_come_back_as_they_were() -> None:
    array = from_rows(ROWS)
    assert len(array) == 3
    assert all(np.array_equal(array.row(number), row) for number, row in enumerate(ROWS))
    assert array.lengths(np.array([2, 0])).tolist() == [5, 3]


def test_padding_stands_at_the_end_and_what_is_longer_is_cut_there() -> None:
    padded = from_rows(ROWS).padded(np.array([1, 0, 2]), 4, np.nan)
    assert padded.shape == (3, 4, 2)
    assert np.array_equal(padded[0, :1], ROWS[1]) and np.isnan(padded[0, 1:]).all()
    assert np.array_equal(padded[1, :3], ROWS[0]) and np.isnan(padded[1, 3:]).all()
    assert np.array_equal(padded[2], ROWS[2][:4])


def test_an_empty_row_is_all_padding() -> None:
    array = from_rows([np.array([1, 2], np.int32), np.empty(0, np.int32)])
    assert array.padded(np.array([1, 0]), 2, 0).tolist() == [[0, 0], [1, 2]]
