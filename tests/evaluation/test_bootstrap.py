import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from assay.evaluation import bootstrap
from assay.evaluation.bootstrap import draw_weights, interval, resample, weigh
from assay.evaluation.metrics import METRIC_NAMES, expected_calibration_error, score


def materialise(column):
    return np.repeat(np.arange(len(column)), column.astype(np.int64))


@pytest.mark.parametrize("case", ["plain", "ties", "a class that resamples may miss"])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_weights_equal_sklearn_on_drawn_out_resamples(simulate, num_classes, case):
    labels, probabilities = simulate(120, num_classes, ties=case == "ties")
    if case.startswith("a class") and num_classes > 2:
        is_rare = labels == num_classes - 1
        keep = ~is_rare | (np.cumsum(is_rare) == 1)
        labels, probabilities = labels[keep], probabilities[keep]
        probabilities[labels != num_classes - 1, -1] = 1e-9
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    (weights,) = draw_weights(len(labels), 12)
    result = weigh(labels, probabilities, weights, 10)
    for number in range(12):
        rows = materialise(weights[:, number])
        true, scores = labels[rows], probabilities[rows]
        predicted, ranked = scores.argmax(axis=1), np.unique(true)
        expected = {"accuracy": np.mean(predicted == true)}
        for average in ("macro", "weighted"):
            values = precision_recall_fscore_support(true, predicted, average=average, zero_division=0.0)
            expected |= {f"{name}_{average}": v for name, v in zip(("precision", "recall", "f1"), values, strict=False)}
        expected["roc_auc_macro"] = np.mean([roc_auc_score(true == k, scores[:, k]) for k in ranked])
        expected["average_precision_macro"] = np.mean(
            [average_precision_score(true == k, scores[:, k]) for k in ranked]
        )
        expected["log_loss"] = log_loss(true, scores, labels=range(num_classes))
        expected["brier"] = brier_score_loss(true, scores, labels=range(num_classes), scale_by_half=False)
        expected["expected_calibration_error"] = expected_calibration_error(true, scores, 10)
        assert set(expected) == set(METRIC_NAMES)
        for name, value in expected.items():
            assert result.metrics[name][number] == pytest.approx(value, abs=1e-12), name
        columns = precision_recall_fscore_support(true, predicted, labels=range(num_classes), zero_division=0.0)
        for name, value in zip(("precision", "recall", "f1"), columns, strict=False):
            np.testing.assert_allclose(result.per_class[name][:, number], value, atol=1e-12)


def test_weight_one_is_the_estimate(simulate):
    labels, probabilities = simulate(500, 10, ties=True)
    result = weigh(labels, probabilities, np.ones((500, 1), np.float32), 15)
    for name, value in score(labels, probabilities, 15).items():
        assert result.metrics[name][0] == pytest.approx(value, abs=1e-12), name


def test_resamples_hold_as_many_examples_as_test(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 500)
    blocks = list(draw_weights(100, 12))
    assert [block.shape for block in blocks] == [(100, 5), (100, 5), (100, 2)]
    assert all((block.sum(axis=0) == 100).all() for block in blocks)
    assert not np.array_equal(blocks[0], blocks[1])


def test_same_input_gives_the_same_numbers(simulate):
    labels, probabilities = simulate()
    first, second = (resample(labels, probabilities, 150, 15) for _ in range(2))
    for name in METRIC_NAMES:
        assert first.metrics[name].tobytes() == second.metrics[name].tobytes()


def test_a_class_that_misses_from_some_resamples_leaves_every_interval_finite():
    labels = np.array([0] * 20 + [1] * 20 + [2])
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], size=41)
    result = resample(labels, probabilities, 200, 15)
    assert all(np.isfinite(result.metrics[name]).all() for name in METRIC_NAMES)


def test_resamples_of_one_class_leave_ranks_undefined_and_the_interval_defined():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.5, 0.5]])
    values = resample(labels, probabilities, 200, 15).metrics["roc_auc_macro"]
    assert 0 < np.isnan(values).sum() < 200
    found = interval(2 / 3, values, 0.95)
    assert np.isfinite([found.low, found.high]).all()


def test_interval_takes_the_quantiles():
    found = interval(5.0, np.arange(101.0), 0.9)
    assert (found.value, found.low, found.high) == (5.0, pytest.approx(5.0), pytest.approx(95.0))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 300 simulated test splits, the 95% intervals hold the true value in 92 to 98 of 100."""
    rng = np.random.default_rng(5)
    accuracy, num_covered = 0.8, {"accuracy": 0, "log_loss": 0}
    true_loss = -(accuracy * np.log(0.8) + (1 - accuracy) * np.log(0.2))
    for _ in range(300):
        labels = rng.integers(2, size=200)
        answers = np.where(rng.random(200) < accuracy, labels, 1 - labels)
        probabilities = np.where(np.eye(2, dtype=bool)[answers], 0.8, 0.2)
        result = resample(labels, probabilities, 400, 15)
        for name, truth in (("accuracy", accuracy), ("log_loss", true_loss)):
            found = interval(0.0, result.metrics[name], 0.95)
            num_covered[name] += found.low - 1e-9 <= truth <= found.high + 1e-9
    assert all(0.92 <= count / 300 <= 0.98 for count in num_covered.values()), num_covered
