"""What two simple predictors reach on the same test examples, so that a result has something to stand beside."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from assay.data.loading import ImageDataset

MAX_TRAIN_EXAMPLES = 10_000
MAX_SIDE_PIXELS = 32
MAX_ITERATIONS = 100
_INVERSE_L2 = 0.1
_SEED = 0
_BLOCK = 1024


@dataclass(frozen=True)
class Baseline:
    """The answers of a simple predictor.

    Attributes:
        probabilities: float64 ``[example, class]``.
        note: One sentence for people: how it was made.
    """

    probabilities: np.ndarray
    note: str


def majority_class(train_labels: np.ndarray, num_test: int, class_names: tuple[str, ...]) -> Baseline:
    """Answer every example with the most frequent class of train.

    Its probabilities are the class shares of train, so log-loss, Brier score and calibration mean something too.

    Args:
        train_labels: int64 ``[example]``.
        num_test: Examples to answer.
        class_names: Names of the classes.
    """
    shares = np.bincount(train_labels, minlength=len(class_names)) / len(train_labels)
    most = int(shares.argmax())
    note = f"always answers {class_names[most]!r}, {shares[most]:.1%} of train, with the class shares of train."
    return Baseline(np.tile(shares, (num_test, 1)), note)


def logistic_regression(dataset: ImageDataset, train: np.ndarray, test: np.ndarray) -> Baseline | None:
    """Fit multinomial logistic regression on standardised pixels of train and answer test.

    It minimises ``0.5 ||w||^2 + C sum_i -ln p_i(y_i)`` with C = 0.1 by L-BFGS in float32, within `MAX_ITERATIONS`
    iterations, on at most `MAX_TRAIN_EXAMPLES` examples (drawn class by class in proportion) and images averaged
    down to at most `MAX_SIDE_PIXELS` pixels a side; the note says which limit was met.

    Args:
        dataset: All examples.
        train: Row numbers of train, int64 ``[example]``.
        test: Row numbers of test, int64 ``[example]``.

    Returns:
        The baseline; None where train holds a single class, which scikit-learn cannot fit.
    """
    num_classes = len(dataset.ref.class_names)
    rows = stratified_sample(train, dataset.labels[train], MAX_TRAIN_EXAMPLES)
    if len(np.unique(dataset.labels[rows])) < 2:
        return None
    pixels = _features(dataset, rows)
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    std[std == 0.0] = 1.0
    pixels -= mean
    pixels /= std
    model = LogisticRegression(C=_INVERSE_L2, max_iter=MAX_ITERATIONS)
    # One BLAS thread: as fast at this size, and the same bits whatever the number of cores.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # Said in the note instead, where the reader of the result sees it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(pixels, dataset.labels[rows])
        probabilities = np.zeros((len(test), num_classes))
        for start in range(0, len(test), _BLOCK):
            block = (_features(dataset, test[start : start + _BLOCK]) - mean) / std
            logits = model.decision_function(block).astype(np.float64)
            probabilities[start : start + _BLOCK, model.classes_] = _softmax(logits)
    return Baseline(probabilities, _describe(dataset, train, rows, int(model.n_iter_.max()), pixels.shape[1]))


def stratified_sample(rows: np.ndarray, labels: np.ndarray, limit: int) -> np.ndarray:
    """Draw at most `limit` rows, from each class in proportion and at least one; the same input, the same rows.

    Args:
        rows: Row numbers, int64 ``[example]``.
        labels: Their classes, int64 ``[example]``.
        limit: The most to return, unless there are more classes than that.

    Returns:
        Sorted row numbers, int64.
    """
    if len(rows) <= limit:
        return rows
    rng = np.random.default_rng(_SEED)
    kept = []
    for label in np.unique(labels):
        members = rows[labels == label]
        kept.append(rng.choice(members, max(1, len(members) * limit // len(rows)), replace=False))
    return np.sort(np.concatenate(kept))


def _features(dataset: ImageDataset, rows: np.ndarray) -> np.ndarray:
    """Pixels as float32 ``[example, feature]``, images averaged down where they are large."""
    blocks = [_shrink(dataset.images[rows[start : start + _BLOCK]]) for start in range(0, len(rows), _BLOCK)]
    return np.concatenate(blocks).reshape(len(rows), -1)


def _shrink(images: np.ndarray) -> np.ndarray:
    """Average uint8 ``[example, height, width, channel]`` over tiles until no side is above the limit."""
    pixels: np.ndarray = images.astype(np.float32)
    for axis in (1, 2):
        tile = -(-pixels.shape[axis] // MAX_SIDE_PIXELS)
        if tile > 1:
            starts = np.arange(0, pixels.shape[axis], tile)
            sizes = np.diff([*starts, pixels.shape[axis]]).astype(np.float32)
            shape = [1, 1, 1, 1]
            shape[axis] = len(sizes)
            pixels = np.add.reduceat(pixels, starts, axis=axis) / sizes.reshape(shape)
    return pixels


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes; scikit-learn gives two classes one logit, that of the second."""
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _describe(
    dataset: ImageDataset, train: np.ndarray, rows: np.ndarray, num_iterations: int, num_features: int
) -> str:
    used = f"all {len(rows):,}" if len(rows) == len(train) else f"{len(rows):,} of {len(train):,}"
    height, width, _ = dataset.ref.image_shape
    shrunk = f", images averaged down from {height}x{width}" if max(height, width) > MAX_SIDE_PIXELS else ""
    end = "stopped at its limit of" if num_iterations >= MAX_ITERATIONS else "converged after"
    return (
        f"scikit-learn on {used} train examples, {num_features:,} standardised pixel values{shrunk}; "
        f"{end} {num_iterations} iterations."
    )
