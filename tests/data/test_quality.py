import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.loading import Dataset
from assay.data.profile import summarise
from assay.data.quality import check_quality, column_codes, voted_accuracy
from assay.data.shards import inspect_shards
from assay.data.splits import SplitIndices
from assay.errors import DataError
from assay.records.night import DataProfile, Finding, QualityLimits
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset, pictures

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def _no_shards_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made data sets name the folder ``data``, which the project's own folder has."""
    monkeypatch.chdir(tmp_path)


def thirds(dataset: Dataset) -> SplitIndices:
    rows = np.arange(len(dataset.labels))
    return SplitIndices(rows[rows % 3 == 0], rows[rows % 3 == 1], rows[rows % 3 == 2])


def profile(dataset: Dataset, **changes: object) -> DataProfile:
    return dataclasses.replace(summarise(dataset, np.arange(len(dataset.labels))), **changes)


def check(
    dataset: Dataset, old: DataProfile | None = None, limits: QualityLimits | None = None, **changes: object
) -> dict[str, Finding]:
    found = check_quality(old, profile(dataset, **changes), dataset, thirds(dataset), limits or QualityLimits())
    return {finding.name: finding for finding in found}


def with_columns(dataset: Dataset, **columns: Sequence[object] | pa.Array) -> Dataset:
    """The same data set with shards that have more columns, in two files."""
    image = pa.array([{"bytes": b"12", "path": None}] * len(dataset.labels), IMAGE)
    table = pa.table({"image": image, "label": dataset.labels, **columns})
    half = len(dataset.labels) // 2
    Path("shards").mkdir(exist_ok=True)
    pq.write_table(table[:half], "shards/a.parquet")
    pq.write_table(table[half:], "shards/b.parquet")
    return dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, path="shards"))


LABELS = np.arange(300) % 3


def test_sound_data_has_no_findings() -> None:
    dataset = make_dataset(LABELS)
    assert check(dataset) == {} and check(dataset, profile(dataset)) == {}


def test_new_and_vanished_classes_stop_or_warn_as_set() -> None:
    dataset = make_dataset(LABELS)
    old = profile(dataset, class_counts={"class 0": 50, "class 1": 60, "class 9": 70})
    found = check(dataset, old)
    assert found.keys() == {"new class: class 2", "vanished class: class 9"}
    assert all(finding.stops for finding in found.values())
    assert "it had 70 examples" in found["vanished class: class 9"].reason
    warned = check(dataset, old, QualityLimits(changed_classes="warns"))
    assert warned.keys() == found.keys() and not any(finding.stops for finding in warned.values())
    empty = profile(dataset, class_counts={"class 0": 50, "class 1": 60, "class 2": 0})
    assert check(dataset, empty)["new class: class 2"].values == {"count": 100}


def test_another_shape_and_far_fewer_examples_stop() -> None:
    dataset = make_dataset(LABELS)
    found = check(dataset, profile(dataset, shape=(8, 8, 3), num_examples=601))
    assert found.keys() == {"image shape", "fewer examples"} and all(finding.stops for finding in found.values())
    assert "were 8 x 8 x 3 and are 4 x 4 x 1 now" in found["image shape"].reason
    assert check(dataset, profile(dataset, num_examples=600)) == {}


def test_a_class_share_that_changed_is_named_unless_it_is_chance() -> None:
    dataset = make_dataset([0] * 100 + [1] * 100 + [2] * 30)
    old = profile(dataset, class_counts={"class 0": 100, "class 1": 100, "class 2": 100})
    found = check(dataset, old)
    assert found.keys() == {"class share: class 2"} and not found["class share: class 2"].stops
    assert "was 33.3% of the examples and is 13.0% now" in found["class share: class 2"].reason
    small = make_dataset([0] * 10 + [1] * 10 + [2] * 4)
    assert check(small, profile(small, class_counts={"class 0": 10, "class 1": 10, "class 2": 10})) == {}


@pytest.mark.parametrize(
    ("changes", "before", "name", "words"),
    [
        ({"missing_shares": {"site": 0.3}}, {"missing_shares": {"site": 0.1}}, "missing: site", "30.0% of the values"),
        ({"missing_shares": {}}, {"missing_shares": {"site": 0.1}}, "", ""),
        ({"missing_shares": {"site": 0.3}}, {"missing_shares": {"site": 0.295}}, "", ""),
        ({"num_unreadable": 30}, {}, "unreadable", "9.1% of the files cannot be decoded, it was 0.0%"),
        ({"blank_share": 0.05}, {"blank_share": 0.01}, "blank", "5.0% of the images are of one colour, it was 1.0%"),
        ({"num_duplicates": 60}, {"num_duplicates": 30}, "duplicates", "20.0% of the examples repeat"),
        ({"num_duplicates": 60}, {"num_duplicates": 50}, "", ""),
    ],
)
def test_what_rose_is_said(changes: dict[str, object], before: dict[str, object], name: str, words: str) -> None:
    dataset = make_dataset(LABELS)
    found = check(dataset, profile(dataset, **before), **changes)
    assert found.keys() == ({name} if name else set())
    assert all(words in finding.reason and not finding.stops for finding in found.values())


def test_a_column_that_is_gone_is_said_and_nothing_is_where_no_shards_are() -> None:
    dataset = make_dataset(LABELS)
    old = profile(dataset, missing_shares={"site": 0.0})
    assert check(dataset, old) == {}
    assert check(with_columns(dataset), old)["missing: site"].values == {"old": 0.0, "new": 1.0}


def test_contradictory_labels_stop_where_they_are_many() -> None:
    dataset = make_dataset(LABELS)
    assert not check(dataset, num_conflicting=3)["contradictory labels"].stops
    assert check(dataset, num_conflicting=4)["contradictory labels"].stops


def test_contents_and_groups_that_splits_share_stop() -> None:
    copies = np.arange(300)
    copies[[2, 5, 7]] = [0, 1, 3]
    groups = np.full(300, -1)
    groups[[20, 21, 22, 24]] = [4, 4, 5, 5]
    dataset = make_dataset(LABELS, copies_of=copies, groups=groups)
    found = check(dataset)
    assert {name: finding.values["count"] for name, finding in found.items()} == {
        "test in train": 1,
        "test in val": 1,
        "val in train": 1,
        "groups across test and train": 1,
        "groups across val and train": 1,
        "contradictory labels": 3,
    }
    del found["contradictory labels"]
    assert all(finding.stops for finding in found.values())


def test_columns_that_give_the_label_away_are_named_and_honest_ones_not() -> None:
    rng = np.random.default_rng(0)
    names = np.array(["cat", "dog", "elk"])
    nearly = np.where(rng.random(300) < 0.02, names[(LABELS + 1) % 3], names[LABELS])
    dataset = with_columns(
        make_dataset(LABELS),
        species=names[LABELS],
        nearly=nearly,
        code=LABELS + 100,
        is_first=LABELS == 0,
        grade=LABELS + rng.normal(0, 0.05, 300),
        pair=[f"{label} {number // 6}" for number, label in enumerate(LABELS)],
        compressed=pa.array(names[LABELS]).dictionary_encode(),
        id=[f"id {number}" for number in range(300)],
        number=rng.permutation(300),
        weight=rng.normal(size=300),
        site=rng.integers(0, 5, 300),
        empty=pa.nulls(300, pa.string()),
        nested=[[1, 2]] * 300,
    )
    found = check(dataset, limits=QualityLimits(max_missing=1))
    expected = ("species", "nearly", "code", "grade", "pair", "compressed")
    assert found.keys() == {f"label copy: {name}" for name in expected}
    assert found["label copy: species"].values == pytest.approx(
        {"accuracy": 1, "majority": 1 / 3, "column_from_label": 1}
    )
    assert not found["label copy: code"].stops
    stopped = check(dataset, limits=QualityLimits(label_copy="stops", max_missing=1))
    assert all(finding.stops for finding in stopped.values())


def test_a_group_with_one_label_is_no_copy_but_a_group_for_each_class_is() -> None:
    patients = [f"patient {label} {number // 30}" for number, label in enumerate(LABELS)]
    assert check(with_columns(make_dataset(LABELS), group=patients)) == {}
    classes = [f"folder {label}" for label in LABELS]
    assert check(with_columns(make_dataset(LABELS), group=classes)).keys() == {"label copy: group"}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_vote_of_the_others_is_what_counting_says(pairs: list[tuple[int, int]]) -> None:
    def is_hit(place: int) -> bool:
        value, label = pairs[place]
        votes = [other for row, (same, other) in enumerate(pairs) if same == value and row != place]
        return votes.count(label) > max((votes.count(other) for other in range(4) if other != label), default=0)

    values, labels = np.array(pairs).T
    expected = np.mean([is_hit(place) for place in range(len(pairs))])
    assert voted_accuracy(values, labels) == pytest.approx(expected)


def test_codes_are_equal_for_equal_values_across_shards() -> None:
    words = ["a", "b", None, "", "c", "a", "b", "d"]
    dataset = with_columns(make_dataset([0, 1] * 4), word=words, number=[1.0, 2, np.nan, 3, 1, 2, 3, 1])
    info = inspect_shards(Path("shards"))
    assert len(dataset.labels) == info.num_examples
    codes = column_codes(info, "word")
    assert codes[0] == codes[5] and codes[1] == codes[6] and codes[2] == codes[3] == 0
    assert len(np.unique(codes)) == 5
    numbers = column_codes(info, "number")
    assert numbers[2] == 0 and numbers[0] == numbers[4] == numbers[7] and len(np.unique(numbers)) == 4
    Path("shards/b.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read"):
        column_codes(info, "word")


def test_what_stops_comes_first_and_survives_json() -> None:
    images = pictures(np.random.default_rng(0), 300, (4, 4, 1))
    images[:30] = 7
    dataset = make_dataset(LABELS, images)
    found = [*check(dataset).values()]
    levels = [finding.level for finding in found]
    assert levels == sorted(levels) and {"stops", "warns"} == set(levels)
    assert [Finding.from_json(finding.to_json()) for finding in found] == found
    assert QualityLimits.from_json(QualityLimits().to_json()) == QualityLimits()


def test_other_channels_columns_or_kinds_stop_and_longer_examples_do_not() -> None:
    labels = np.arange(60) % 3
    texts, series, table = text_dataset(labels), series_dataset(labels), table_dataset(labels)
    assert check(texts, profile(texts, shape=(5,))) == {}
    assert check(series, profile(series, shape=(5, 2))) == {}
    other = check(series, profile(series, shape=(5, 3), columns=("left", "right", "top")))
    assert other.keys() == {"channels"} and other["channels"].stops and "gone: 'top'" in other["channels"].reason
    columns = check(table, profile(table, columns=("age", "dose", "weight", "height of stem", "noise")))
    assert "new: 'ash'; gone: 'weight'" in columns["columns"].reason
    turned = check(table, profile(table, columns=table.ref.columns[::-1]))
    assert "the same ones in another order" in turned["columns"].reason
    kind = check(table, profile(texts))
    assert kind["kind of data"].stops and "was of kind text and is of kind table now" in kind["kind of data"].reason


def test_what_is_blank_or_repeated_is_said_in_words_of_its_kind() -> None:
    labels = np.arange(60) % 2
    texts = text_dataset(labels, [" " * (row + 1) if row < 6 else f"text {row % 59}" for row in range(60)])
    found = check(texts)
    assert "10.0% of the texts hold nothing but white space" in found["blank"].reason
    copied = text_dataset(labels, [f"text {row // 2}" for row in range(60)])
    assert "too, letter for letter" in check(copied)["test in val"].reason


def test_a_column_of_a_table_that_is_the_label_is_named() -> None:
    labels = np.arange(300) % 3
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    values[:, 1] = labels * 7
    Path("shards").mkdir()
    table = pa.table({"size": values[:, 0], "code": values[:, 1], "label": labels})
    pq.write_table(table, "shards/a.parquet")
    dataset = table_dataset(labels, values, ("size", "code"))
    dataset = dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, path="shards"))
    found = check(dataset)
    assert found.keys() == {"label copy: code"} and "leave it out of the import" in found["label copy: code"].reason
