import numpy as np
import pytest

from assay.registry.slices import brightness, class_slices, group_slices, make_slices, quantile_slices

LABELS = np.array([0, 1, 1, 0, 3, 3])
NAMES = ("cat", "dog", "emu", "fox")


def names(slices) -> list[str]:
    return [found.name for found in slices]


def test_a_slice_for_each_class_that_has_examples():
    found = class_slices(LABELS, NAMES)
    assert names(found) == ["class: cat", "class: dog", "class: fox"]
    assert found[2].mask.tolist() == [False, False, False, False, True, True]
    assert {one.kind for one in found} == {"class"}


def test_groups():
    found = group_slices(["b", "", "a", "b", "a", "c"])
    assert names(found) == ["group: a", "group: b", "group: c"]
    assert found[1].mask.tolist() == [True, False, False, True, False, False]
    assert names(group_slices(np.array([-1, 7, 7, 12, 12]))) == ["group: 12", "group: 7"]


@pytest.mark.parametrize(
    "groups", [[], ["", "", ""], [None, None], ["a", "b", "c"], ["a", "a", "a"], np.array([-1, -1]), np.arange(4)]
)
def test_groups_that_say_nothing_give_no_slices(groups):
    assert group_slices(groups) == ()


def test_quarters():
    values = np.array([31.0, 0.0, 255.0, 100.0, 60.0, 12.0, 90.0, 200.0])
    found = quantile_slices(values, 4, "brightness", ("darkest", "brightest"))
    assert names(found) == [
        "brightness: 0 to 12 (darkest quarter)",
        "brightness: 31 to 60 (second quarter)",
        "brightness: 90 to 100 (third quarter)",
        "brightness: 200 to 255 (brightest quarter)",
    ]
    assert found[0].mask.tolist() == [value in (0.0, 12.0) for value in values]


@pytest.mark.parametrize("num_quantiles", [2, 3, 4, 7, 20])
@pytest.mark.parametrize("kind", ["normal", "ties", "few"])
def test_every_example_is_in_one_part(num_quantiles: int, kind: str):
    rng = np.random.default_rng(0)
    values = {"normal": rng.normal(size=501), "ties": rng.poisson(1.0, 501), "few": np.array([3.0, 3.0, 1.0])}[kind]
    masks = [found.mask for found in quantile_slices(values, num_quantiles, "length")]
    assert np.array_equal(np.sum(masks, axis=0), np.ones(len(values)))
    assert all(
        masks[part][values == value].all()
        for value in values
        for part in range(len(masks))
        if masks[part][values == value].any()
    )
    if kind == "normal":
        assert len(masks) == num_quantiles
        assert max(mask.sum() for mask in masks) - min(mask.sum() for mask in masks) <= 2


def test_uneven_parts_are_not_called_quarters():
    found = quantile_slices(np.array([0.0] * 60 + [1.0, 2.0, 3.0, 4.0] * 10), 4, "length", ("shortest", "longest"))
    assert names(found) == ["length: 0 to 0", "length: 1 to 2", "length: 3 to 4"]


def test_a_few_values_below_many_equal_ones_are_still_a_part():
    found = quantile_slices(np.array([1.0] * 2 + [3.0] * 18), 4, "length")
    assert names(found) == ["length: 1 to 1", "length: 3 to 3"]
    assert [one.mask.sum() for one in found] == [2, 18]


def test_nothing_to_cut():
    assert quantile_slices(np.full(10, 7.0), 4, "length") == ()
    assert quantile_slices(np.array([]), 4, "length") == ()
    assert quantile_slices(np.array([np.nan, np.nan]), 4, "length") == ()


def test_numbers_that_are_not_there_are_in_no_part():
    values = np.array([1.0, np.nan, 2.0, np.inf, 3.0, 4.0])
    found = quantile_slices(values, 2, "length")
    assert names(found) == ["length: 1 to 2 (lowest half)", "length: 3 to 4 (highest half)"]
    assert np.sum([one.mask for one in found], axis=0).tolist() == [1, 0, 1, 0, 1, 1]


def test_brightness_is_the_mean_pixel():
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 2), dtype=np.uint8)
    assert brightness(images) == pytest.approx(images.reshape(5000, -1).mean(axis=1))


def test_the_kinds_asked_for():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    found = make_slices(("brightness", "class"), LABELS, NAMES, images=images, num_quantiles=2)
    assert [one.kind for one in found] == ["brightness"] * 2 + ["class"] * 3
    assert make_slices(("group", "brightness"), LABELS, NAMES) == ()
    assert names(make_slices(("group",), LABELS, NAMES, groups=["x", "x", "y", "y", "y", ""])) == [
        "group: x",
        "group: y",
    ]


def test_lengths_are_cut_into_whole_numbers_and_only_where_there_are_any():
    lengths = np.array([1200, 35, 80, 14_000, 36, 500, 90, 7])
    labels = np.zeros(8, np.int64)
    assert names(make_slices(("length", "brightness"), labels, ("cat",), lengths=lengths)) == [
        "length: 7 to 35 (shortest quarter)",
        "length: 36 to 80 (second quarter)",
        "length: 90 to 500 (third quarter)",
        "length: 1,200 to 14,000 (longest quarter)",
    ]
    assert make_slices(("length",), labels, ("cat",), images=np.zeros((8, 2, 2, 1), np.uint8)) == ()
