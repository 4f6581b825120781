from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from assay.data.loading import Dataset
from assay.data.splits import SplitIndices, find_units, load_split, make_splits, resample_val, split_digest
from assay.errors import DataError, ParamsError
from assay.params import SplitParams
from assay.records import Splits
from tests.data.made import make_dataset

PARAMS = SplitParams()
quick = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """Small data sets with copies, groups and given splits, or without."""
    count = draw(st.integers(12, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(2, 4)), count)
    copies_of = np.where(rng.random(count) < draw(st.sampled_from([0, 0.1, 0.3])), rng.integers(0, count, count), -1)
    groups = rng.integers(0, draw(st.integers(10, 60)), count)
    groups[rng.random(count) < draw(st.sampled_from([0, 0.5, 1]))] = -1
    given_split = rng.choice(draw(st.sampled_from([[-1], [0, 2], [0, 1, 2], [0, 0, 1], [-1, 0, 2]])), count)
    rows = np.arange(count)
    return make_dataset(labels, None, given_split, groups, np.where(copies_of < 0, rows, copies_of))


def split_or_assume(dataset: Dataset, params: SplitParams, folder: Path) -> tuple[Splits, SplitIndices]:
    try:
        splits = make_splits(dataset, params, folder)
    except DataError as error:
        assume("gets no example in" not in str(error))
        raise
    return splits, load_split(splits)


@quick
@given(datasets(), st.integers(0, 5))
def test_nothing_is_in_two_splits_and_nothing_is_lost(tmp_path: Path, dataset: Dataset, seed: int) -> None:
    splits, indices = split_or_assume(dataset, SplitParams(seed=seed), tmp_path)
    rows = np.concatenate([indices.train, indices.val, indices.test])
    assert len(np.unique(rows)) == len(rows) == len(dataset.labels) - splits.num_dropped
    assert (splits.num_train, splits.num_val, splits.num_test) == tuple(map(len, vars(indices).values()))
    for part in vars(indices).values():
        assert part.dtype == np.int64
        assert np.array_equal(part, np.sort(part))


@quick
@given(datasets())
def test_no_copy_and_no_group_crosses_a_split(tmp_path: Path, dataset: Dataset) -> None:
    _, indices = split_or_assume(dataset, PARAMS, tmp_path)
    parts = list(vars(indices).values())
    for place, part in enumerate(parts):
        for other in parts[place + 1 :]:
            groups = set(dataset.groups[part]) & set(dataset.groups[other]) - {-1}
            copies = set(dataset.content_hash[part]) & set(dataset.content_hash[other])
            # Given splits are kept as they are: only what they share between themselves is dropped from the lesser.
            assert not groups and not copies


@quick
@given(datasets())
def test_a_given_test_split_is_kept_whole(tmp_path: Path, dataset: Dataset) -> None:
    _, indices = split_or_assume(dataset, PARAMS, tmp_path)
    if (dataset.given_split == 2).any():
        assert np.array_equal(indices.test, np.flatnonzero(dataset.given_split == 2))
    if (dataset.given_split == 1).any():
        assert set(indices.val) <= set(np.flatnonzero(dataset.given_split == 1))
    assert not set(indices.train) & set(np.flatnonzero(dataset.given_split > 0))


@quick
@given(
    st.lists(st.integers(3, 60), min_size=2, max_size=5),
    st.floats(0.01, 0.45),
    st.floats(0.01, 0.45),
)
def test_every_class_is_divided_in_proportion(
    tmp_path: Path, counts: list[int], val_fraction: float, test_fraction: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    params = SplitParams(val_fraction=val_fraction, test_fraction=test_fraction)
    indices = load_split(make_splits(make_dataset(labels), params, tmp_path))
    for fraction, part in ((val_fraction, indices.val), (test_fraction, indices.test)):
        for label, count in enumerate(counts):
            found = int((labels[part] == label).sum())
            assert found >= 1
            assert abs(found - count * fraction) <= 1


def test_groups_are_divided_in_proportion(tmp_path: Path) -> None:
    labels = np.tile(np.arange(5), 200)
    groups = np.arange(1000) // 20
    indices = load_split(make_splits(make_dataset(labels, groups=groups), PARAMS, tmp_path))
    assert (len(indices.val), len(indices.test)) == (100, 200)
    assert np.bincount(labels[indices.val]).tolist() == [20] * 5


def test_the_same_data_seed_and_fractions_give_the_same_bytes(tmp_path: Path) -> None:
    dataset = make_dataset(np.arange(100) % 4)
    first = make_splits(dataset, PARAMS, tmp_path / "a")
    second = make_splits(dataset, PARAMS, tmp_path / "b")
    assert first.digest == second.digest
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    assert make_splits(dataset, SplitParams(seed=1), tmp_path).digest != first.digest
    other = replace(dataset, ref=replace(dataset.ref, md5="1" * 32 + ".dir"))
    assert make_splits(other, PARAMS, tmp_path).digest != first.digest


def test_the_division_is_the_same_on_every_machine_and_version(tmp_path: Path) -> None:
    indices = load_split(make_splits(make_dataset(np.arange(20) % 2), PARAMS, tmp_path))
    assert indices.val.tolist() == [8, 9]
    assert indices.test.tolist() == [4, 5, 14, 17]


def test_copies_of_test_examples_are_dropped_from_train_and_counted(tmp_path: Path) -> None:
    labels = [0, 1] * 10
    given_split = [0] * 14 + [2] * 6
    copies_of = [*range(4), 14, 15, *range(6, 20)]
    splits = make_splits(make_dataset(labels, None, given_split, None, copies_of), PARAMS, tmp_path)
    assert (splits.num_dropped, splits.num_test) == (2, 6)
    assert not {4, 5} & set(load_split(splits).train) and not {4, 5} & set(load_split(splits).val)


def test_units_chain_copies_and_groups() -> None:
    hashes = np.array([b"a", b"b", b"a", b"c", b"d", b"d"])
    groups = np.array([-1, 7, 7, -1, -1, 9])
    assert find_units(hashes, groups).tolist() == [0, 0, 0, 3, 4, 4]


def test_fractions_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    params = SplitParams(val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ParamsError, match=r"val_fraction=0\.5 and split\.test_fraction=0\.5"):
        make_splits(make_dataset([0, 1] * 10), params, tmp_path)


def test_a_class_of_copies_only_cannot_be_divided(tmp_path: Path) -> None:
    dataset = make_dataset([0, 1] * 10, copies_of=[row if row % 2 else 0 for row in range(20)])
    with pytest.raises(DataError, match=r"Class 'class 0' gets no example in (val|train)"):
        make_splits(dataset, PARAMS, tmp_path)


def flip(path: Path) -> None:
    rows = dict(np.load(path))
    rows["val"][0] += 1
    np.savez(path, **rows)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, flip, lambda path: path.write_bytes(path.read_bytes()[:-40]), lambda path: path.write_text("")],
)
def test_a_changed_file_is_found(tmp_path: Path, damage) -> None:
    splits = make_splits(make_dataset([0, 1] * 20), PARAMS, tmp_path)
    damage(Path(splits.path))
    with pytest.raises(DataError, match=r"\.npz: .*made anew"):
        load_split(splits)


def test_the_digest_tells_the_splits_apart() -> None:
    rows = [np.array([1, 2]), np.array([3]), np.array([4])]
    assert split_digest(SplitIndices(*rows)) != split_digest(SplitIndices(rows[0], rows[2], rows[1]))
    assert split_digest(SplitIndices(np.array([1]), np.array([2, 3]), rows[2])) != split_digest(SplitIndices(*rows))


@quick
@given(datasets(), st.integers(0, 3))
def test_train_and_val_drawn_anew_leave_test_alone(tmp_path: Path, dataset: Dataset, seed: int) -> None:
    splits, before = split_or_assume(dataset, PARAMS, tmp_path)
    assume(len(before.val))
    try:
        after = load_split(resample_val(dataset, splits, PARAMS, seed, tmp_path / "again"))
    except DataError as error:
        assume("gets no example in" not in str(error))
        raise
    assert np.array_equal(after.test, before.test)
    assert np.array_equal(
        np.sort(np.concatenate([after.train, after.val])), np.sort(np.concatenate([before.train, before.val]))
    )
    units = find_units(dataset.content_hash, dataset.groups)
    assert not set(units[after.train]) & set(units[after.val])


def test_each_seed_draws_another_val_of_about_the_same_size(tmp_path: Path) -> None:
    dataset = make_dataset(np.arange(400) % 4)
    splits = make_splits(dataset, PARAMS, tmp_path)
    drawn = [load_split(resample_val(dataset, splits, PARAMS, seed, tmp_path)).val for seed in (0, 1, 0)]
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])
    assert all(abs(len(val) - splits.num_val) <= 4 for val in drawn)


def test_the_seed_decides_which_groups_of_unequal_size_are_test(tmp_path: Path) -> None:
    groups = np.repeat(np.arange(10), [50, 53, 57, 60, 61, 44, 47, 58, 49, 52])
    labels = np.arange(len(groups)) % 2
    dataset = make_dataset(labels, groups=groups)
    held_out = set()
    for seed in range(5):
        rows = load_split(make_splits(dataset, SplitParams(seed=seed), tmp_path / str(seed)))
        assert 0.12 < len(rows.test) / len(groups) < 0.28
        held_out.add(tuple(sorted(set(groups[rows.test].tolist()))))
    assert len(held_out) >= 4
