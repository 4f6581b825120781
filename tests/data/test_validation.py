import numpy as np
import pytest

from assay.data.validation import validate
from assay.errors import DataError
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset


def test_counts_are_what_is_there() -> None:
    report = validate(make_dataset([0, 1, 1, 0, 1, 1, 0]))
    assert report.class_counts == {"class 0": 3, "class 1": 4}
    assert (report.num_examples, report.num_duplicates, report.num_conflicting, report.warnings) == (7, 0, 0, ())


def test_copies_are_counted_and_conflicts_among_them() -> None:
    report = validate(make_dataset([0, 0, 0, 1, 1, 1, 1], copies_of=[0, 0, 0, 3, 4, 0, 4]))
    assert (report.num_duplicates, report.num_conflicting) == (4, 1)
    assert "4 examples repeat an earlier one" in report.warnings[0]
    assert "1 of these copies carry another label" in report.warnings[1]


def test_copies_of_test_examples_in_train_are_said() -> None:
    report = validate(make_dataset([0, 0, 0, 0, 1, 1, 1, 1], given_split=[0, 0, 0, 2] * 2, copies_of=[*range(7), 4]))
    assert "1 test examples are in train or val, too" in " ".join(report.warnings)


def test_a_class_that_test_lacks_is_said() -> None:
    report = validate(make_dataset([0, 0, 0, 0, 1, 1, 1], given_split=[0, 0, 0, 2, 0, 0, 0]))
    assert report.warnings == ("The given test split has no example of class 'class 1'.",)


def test_uneven_classes_are_said() -> None:
    assert "uneven" in validate(make_dataset([0] * 40 + [1] * 3)).warnings[0]


@pytest.mark.parametrize(
    ("labels", "given_split", "message"),
    [
        ([0, 0, 0], None, "All 3 examples are of one class, 'class 0'"),
        ([], None, "holds no examples"),
        ([0, 0, 0, 1, 1], None, "Class 'class 1' has 2 examples for train and val and test"),
        ([0, 0, 0, 2, 2, 2], None, "Class 'class 1' has 0 examples"),
        ([0, 0, 0, 1, 1, 1], [0, 0, 2, 0, 2, 2], "Class 'class 1' has 1 examples for train and val, which"),
        ([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 2], "Class 'class 1' has 0 examples for train, which"),
    ],
)
def test_data_that_no_run_can_use_is_refused(labels: list[int], given_split: list[int] | None, message: str) -> None:
    with pytest.raises(DataError) as caught:
        validate(make_dataset(labels, given_split=given_split))
    assert message in str(caught.value)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label: int) -> None:
    dataset = make_dataset([0, 0, 0, 1, 1, 1])
    labels = dataset.labels.copy()
    labels[4] = label
    with pytest.raises(DataError, match=f"Example 4 has label {label}, and there are 2 classes"):
        validate(type(dataset)(**(vars(dataset) | {"labels": np.asarray(labels)})))


def test_copies_are_said_in_words_of_their_kind() -> None:
    labels = [0, 0, 0, 1, 1, 1, 1]
    row = np.arange(12.0).reshape(6, 2)
    for dataset, words in (
        (make_dataset(labels, copies_of=[0, 0, 2, 3, 4, 5, 6]), "pixel for pixel"),
        (text_dataset(labels, ["same", "same", *"abcde"]), "letter for letter"),
        (series_dataset(labels, [row, row, *(row + k for k in range(1, 6))]), "value for value"),
        (table_dataset(labels, np.array([0, 0, 1, 2, 3, 4, 5])[:, None]), "value for value"),
    ):
        assert validate(dataset).warnings == (f"1 examples repeat an earlier one {words}; copies share a split.",)
