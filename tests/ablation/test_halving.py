import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.ablation.halving import go_on, look_epochs


@pytest.mark.parametrize(
    ("num_epochs", "shares", "reduction", "num_variants", "looks"),
    [
        (9, (0.2, 0.3), 2, 17, (2, 3, 9)),
        (15, (0.2, 0.3), 2, 17, (3, 5, 15)),
        (100, (0.3, 0.2), 2, 17, (20, 30, 100)),
        (9, (0.2, 0.3), 2, 2, (3, 9)),  # one look comes from two to one: the later
        (9, (0.2, 0.3), 3, 3, (3, 9)),
        (9, (0.2, 0.3), 3, 4, (2, 3, 9)),
        (9, (0.2, 0.3), 2, 1, (9,)),
        (6, (0.2, 0.3), 2, 3, (2, 6)),
        (9, (), 2, 17, (9,)),
        (10, (0.3, 1.0), 2, 8, (3, 10)),
        (1, (0.2, 0.3), 3, 20, (1,)),
    ],
)
def test_looks_are_after_shares_of_the_epochs(
    num_epochs: int, shares: tuple[float, ...], reduction: int, num_variants: int, looks: tuple[int, ...]
) -> None:
    assert look_epochs(num_epochs, shares, reduction, num_variants) == looks


@given(st.integers(1, 300), st.lists(st.floats(0.001, 1), max_size=5), st.integers(2, 6), st.integers(1, 200))
def test_looks_rise_to_the_end(num_epochs: int, shares: list[float], reduction: int, num_variants: int) -> None:
    looks = look_epochs(num_epochs, shares, reduction, num_variants)
    assert looks[-1] == num_epochs
    assert list(looks) == sorted(set(looks))
    assert looks[0] >= min([1.0, *shares]) * num_epochs - 1e-6
    assert len(looks) <= len(shares) + 1


@given(st.dictionaries(st.text(min_size=1), st.floats(-1, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_nobody_who_stays_is_worse_than_one_who_goes(scores: dict[str, float], reduction: int) -> None:
    kept = go_on(scores, reduction)
    assert len(kept) == -(-len(scores) // reduction)
    gone = set(scores) - set(kept)
    assert all(scores[name] >= scores[other] for name in kept for other in gone)
    assert list(kept) == [name for name in scores if name in kept]


def test_at_equal_scores_the_earlier_one_stays() -> None:
    assert go_on({"b": 0.5, "a": 0.5, "c": 0.5}, 3) == ("b",)
