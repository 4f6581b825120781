import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.ablation.halving import go_on, look_epochs


@pytest.mark.parametrize(
    ("num_epochs", "grace_fraction", "reduction", "num_variants", "looks"),
    [
        (9, 0.3, 2, 17, (3, 4, 5, 6, 7, 9)),
        (9, 0.3, 3, 17, (3, 4, 6, 9)),
        (9, 0.3, 2, 2, (3, 9)),
        (9, 0.3, 2, 1, (9,)),
        (9, 0.1, 3, 9, (1, 3, 9)),
        (6, 0.3, 2, 3, (2, 3, 6)),
        (100, 0.3, 3, 40, (30, 41, 55, 74, 100)),
        (10, 0.3, 2, 2, (3, 10)),
        (10, 1.0, 2, 8, (10,)),
        (1, 0.3, 3, 20, (1,)),
    ],
)
def test_looks_lie_a_factor_apart(
    num_epochs: int, grace_fraction: float, reduction: int, num_variants: int, looks: tuple[int, ...]
) -> None:
    assert look_epochs(num_epochs, grace_fraction, reduction, num_variants) == looks


@given(st.integers(1, 300), st.floats(0.01, 1), st.integers(2, 6), st.integers(1, 200))
def test_looks_rise_to_the_end(num_epochs: int, grace_fraction: float, reduction: int, num_variants: int) -> None:
    looks = look_epochs(num_epochs, grace_fraction, reduction, num_variants)
    assert looks[-1] == num_epochs
    assert list(looks) == sorted(set(looks))
    assert looks[0] >= min(num_epochs, grace_fraction * num_epochs) - 1e-6


@given(st.dictionaries(st.text(min_size=1), st.floats(-1, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_nobody_who_stays_is_worse_than_one_who_goes(scores: dict[str, float], reduction: int) -> None:
    kept = go_on(scores, reduction)
    assert len(kept) == -(-len(scores) // reduction)
    gone = set(scores) - set(kept)
    assert all(scores[name] >= scores[other] for name in kept for other in gone)
    assert list(kept) == [name for name in scores if name in kept]


def test_at_equal_scores_the_earlier_one_stays() -> None:
    assert go_on({"b": 0.5, "a": 0.5, "c": 0.5}, 3) == ("b",)
