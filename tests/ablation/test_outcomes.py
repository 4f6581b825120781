from pathlib import Path

import numpy as np
import pytest

from assay.ablation.outcomes import Outcomes, read_outcomes, write_outcomes
from assay.errors import DataError

LABELS = np.array([0, 1, 2, 1])


def answers(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(4, number), np.full(4, number / 2)


def test_answers_are_those_of_the_last_look_until_then() -> None:
    outcomes = Outcomes.none(LABELS).with_look(1, *answers(1)).with_look(3, *answers(3))
    for epoch, number in ((1, 1), (2, 1), (3, 3), (90, 3)):
        predictions, losses = outcomes.at(epoch)
        assert predictions.tolist() == [number] * 4
        assert losses.tolist() == [number / 2] * 4
    with pytest.raises(DataError, match="not asked by epoch 0"):
        outcomes.at(0)


def test_a_look_again_replaces_what_came_after_it() -> None:
    outcomes = Outcomes.none(LABELS).with_look(1, *answers(1)).with_look(3, *answers(3)).with_look(2, *answers(2))
    assert outcomes.epochs.tolist() == [1, 2]
    assert outcomes.at(9)[0].tolist() == [2] * 4


def test_a_file_keeps_all_of_it_in_the_same_bytes(tmp_path: Path) -> None:
    outcomes = Outcomes.none(LABELS).with_look(1, *answers(1)).with_look(3, *answers(3))
    for name in ("one", "two"):
        write_outcomes(tmp_path / name, outcomes)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = read_outcomes(tmp_path / "one")
    for name in ("labels", "epochs", "predictions", "log_losses"):
        assert np.array_equal(getattr(back, name), getattr(outcomes, name))


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "outcomes.npz"
    write_outcomes(file, Outcomes.none(LABELS).with_look(1, *answers(1)))
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        np.savez(file, something=LABELS)
    with pytest.raises(DataError, match=r"outcomes\.npz"):
        read_outcomes(file)
