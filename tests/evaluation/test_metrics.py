import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from assay.errors import NonFiniteError
from assay.evaluation.log_loss import true_class_loss
from assay.evaluation.metrics import (
    METRIC_NAMES,
    brier_score,
    confidence_bins,
    expected_calibration_error,
    score,
    score_classes,
)


def test_score_equals_sklearn_where_it_has_the_metric(simulate):
    labels, probabilities = simulate()
    values = score(labels, probabilities, 15)
    predictions = probabilities.argmax(axis=1)
    assert list(values) == list(METRIC_NAMES)
    assert values["accuracy"] == accuracy_score(labels, predictions)
    assert values["f1_macro"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert values["roc_auc_macro"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert values["log_loss"] == pytest.approx(true_class_loss(labels, probabilities).mean())


def test_calibration_error_by_hand():
    # Bins of width 1/2. Confidences 0.6 (right), 0.8 (wrong), 0.9 (right) fall into the upper bin,
    # 0.5 (right) into the lower one, whose upper end belongs to it.
    probabilities = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 0])
    expected = 3 / 4 * abs(2 / 3 - 2.3 / 3) + 1 / 4 * abs(1.0 - 0.5)
    assert expected_calibration_error(labels, probabilities, 2) == pytest.approx(expected, abs=1e-12)


def test_bins_are_open_below_and_closed_above():
    assert confidence_bins(np.array([0.0, 0.1, 0.5, 0.51, 1.0]), 2).tolist() == [0, 0, 0, 1, 1]


def test_brier_score_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    labels = np.array([0, 2])
    expected = (0.3**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.6**2 + 0.7**2) / 2
    assert brier_score(labels, probabilities) == pytest.approx(expected, abs=1e-12)


def test_brier_score_of_two_classes_is_on_the_same_scale():
    assert brier_score(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])) == 2.0


def test_perfect_predictor():
    labels = np.array([0, 1, 2, 2])
    values = score(labels, np.eye(3)[labels], 15)
    for name in METRIC_NAMES[:9]:
        assert values[name] == 1.0, name
    assert values["log_loss"] == pytest.approx(0.0, abs=1e-12)
    assert values["brier"] == values["expected_calibration_error"] == 0.0


def test_constant_predictor():
    labels = np.array([0, 0, 0, 1])
    values = score(labels, np.tile([0.75, 0.25], (4, 1)), 15)
    assert values["accuracy"] == 0.75
    assert values["roc_auc_macro"] == 0.5
    assert values["average_precision_macro"] == 0.5
    assert values["recall_macro"] == 0.5
    assert values["f1_macro"] == pytest.approx((2 * 0.75 / 1.75 + 0.0) / 2)
    assert values["log_loss"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert values["expected_calibration_error"] == pytest.approx(0.0)


def test_one_wrong_answer():
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.eye(2)[[0, 1, 1, 1, 1]]
    per_class, confusion = score_classes(labels, probabilities, ("a", "b"))
    assert confusion.tolist() == [[1, 1], [0, 3]]
    assert (per_class["a"].precision, per_class["a"].recall, per_class["a"].support) == (1.0, 0.5, 2)
    assert (per_class["b"].precision, per_class["b"].recall, per_class["b"].support) == (0.75, 1.0, 3)
    assert np.isfinite(score(labels, probabilities, 15)["log_loss"])


def test_class_absent_from_test_is_finite_and_left_out_of_the_ranks(simulate):
    labels, probabilities = simulate(num_classes=4)
    keep = labels != 2
    labels, probabilities = labels[keep], probabilities[keep]
    values = score(labels, probabilities, 15)
    aucs = [roc_auc_score(labels == k, probabilities[:, k]) for k in (0, 1, 3)]
    assert values["roc_auc_macro"] == pytest.approx(np.mean(aucs))
    assert all(np.isfinite(value) for value in values.values())
    per_class, confusion = score_classes(labels, probabilities, ("a", "b", "c", "d"))
    assert per_class["c"].support == 0
    assert per_class["c"].recall == per_class["c"].f1 == 0.0
    assert confusion.shape == (4, 4)


def test_ranks_of_a_single_class_are_left_out():
    values = score(np.zeros(3, np.int64), np.tile([0.6, 0.4], (3, 1)), 15)
    assert "roc_auc_macro" not in values
    assert "average_precision_macro" not in values
    assert values["accuracy"] == 1.0


@pytest.mark.parametrize("row", [[np.nan, 1.0], [np.inf, 0.0], [-0.1, 1.1], [0.5, 0.6]])
def test_what_is_no_probability_is_refused(row):
    with pytest.raises(NonFiniteError, match="test example 1"):
        score(np.array([0, 1]), np.array([[0.5, 0.5], row]), 15)
