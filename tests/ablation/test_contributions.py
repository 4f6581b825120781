import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from assay.ablation.contributions import METRICS, contributions, is_lower_better, orientation
from assay.evaluation.log_loss import true_class_loss

NUM_CLASSES = 5
SKLEARN = {
    "accuracy": lambda labels, predictions, weights: accuracy_score(labels, predictions, sample_weight=weights),
    "f1_macro": lambda labels, predictions, weights: f1_score(
        labels, predictions, average="macro", sample_weight=weights, zero_division=0.0
    ),
    "recall_macro": lambda labels, predictions, weights: recall_score(
        labels, predictions, average="macro", sample_weight=weights, zero_division=0.0
    ),
}


def answers(seed: int, num_examples: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of classes 0 to 3; class 4 is only predicted, and class 3 is rare."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, num_examples, p=[0.5, 0.3, 0.15, 0.05])
    predictions = np.where(rng.random(num_examples) < 0.7, labels, rng.integers(NUM_CLASSES, size=num_examples))
    return labels, predictions, rng.exponential(size=num_examples)


@pytest.mark.parametrize("metric", sorted(SKLEARN))
@pytest.mark.parametrize("seed", range(5))
def test_the_mean_is_the_metric(metric, seed):
    labels, predictions, log_losses = answers(seed)
    values = contributions(metric, labels, predictions, log_losses, NUM_CLASSES)
    assert values.dtype == np.float64
    assert values.mean() == pytest.approx(SKLEARN[metric](labels, predictions, None), abs=1e-12)


def test_log_loss_is_the_mean_of_the_losses_as_sklearn_has_it():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(NUM_CLASSES), 40), rng.integers(NUM_CLASSES, size=40)
    losses = true_class_loss(labels, probabilities)
    values = contributions("log_loss", labels, probabilities.argmax(axis=1), losses, NUM_CLASSES)
    assert values.mean() == pytest.approx(log_loss(labels, probabilities, labels=np.arange(NUM_CLASSES)))


@pytest.mark.parametrize("metric", sorted(SKLEARN))
def test_influence_is_the_derivative_by_an_examples_weight(metric):
    labels, predictions, log_losses = answers(0)
    values = contributions(metric, labels, predictions, log_losses, NUM_CLASSES)
    step = 1e-5
    for example in range(len(labels)):
        more, less = np.ones(len(labels)), np.ones(len(labels))
        more[example] += step
        less[example] -= step
        score = SKLEARN[metric]
        derivative = (score(labels, predictions, more) - score(labels, predictions, less)) / (2 * step)
        assert values[example] - values.mean() == pytest.approx(len(labels) * derivative, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_small_integers_do_not_overflow(metric):
    labels, predictions, log_losses = answers(1, num_examples=2000)
    wide = contributions(metric, labels, predictions, log_losses.astype(np.float16), NUM_CLASSES)
    narrow = contributions(
        metric, labels.astype(np.uint8), predictions.astype(np.uint8), log_losses.astype(np.float16), NUM_CLASSES
    )
    assert narrow.tobytes() == wide.tobytes()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", [0, 1])
def test_one_class_and_one_example_give_numbers(metric, prediction):
    for num_examples in (1, 3):
        labels, predictions = np.zeros(num_examples, np.int64), np.full(num_examples, prediction)
        values = contributions(metric, labels, predictions, np.full(num_examples, 0.5), 2)
        expected = 0.5 if metric == "log_loss" else float(prediction == 0)
        assert values.mean() == pytest.approx(expected)
        assert np.isfinite(values).all()


def test_only_log_loss_is_better_when_lower():
    assert [metric for metric in METRICS if is_lower_better(metric)] == ["log_loss"]
    assert [orientation(metric) for metric in METRICS] == [1.0, 1.0, 1.0, -1.0]


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="'f1': must be one of accuracy"):
        contributions("f1", np.zeros(1, int), np.zeros(1, int), np.zeros(1), 1)
