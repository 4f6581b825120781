"""What two simple predictors reach on the same test examples, so that a result has something to stand beside."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from assay.data.loading import Dataset
from assay.data.measuring import SERIES_NUMBERS, measure_series, most_separating
from assay.records import IMAGE, SERIES, TABLE, TEXT

MAX_TRAIN_EXAMPLES = 10_000
MAX_SIDE_PIXELS = 32
MAX_ITERATIONS = 100
MAX_TERMS = 50_000
MAX_FEATURES = 2_000
MAX_LETTERS = 20_000
_INVERSE_L2 = 0.1
_INVERSE_L2_OF = {TEXT: 10.0, SERIES: 1.0, TABLE: 1.0}
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


def logistic_regression(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> Baseline | None:
    """Fit multinomial logistic regression on simple features of train and answer test.

    Images are standardised pixels, averaged down to at most `MAX_SIDE_PIXELS` a side. Texts are TF-IDF of words and
    pairs of words (sublinear, the `MAX_TERMS` most frequent ones). Series are numbers of each channel (see
    `assay.data.measuring.SERIES_NUMBERS`) and the number of steps, tables their columns; both are standardised, and
    what is missing is the mean.

    It minimises ``0.5 ||w||^2 + C sum_i -ln p_i(y_i)`` by L-BFGS within `MAX_ITERATIONS` iterations, on at most
    `MAX_TRAIN_EXAMPLES` examples (drawn class by class in proportion), with C = 0.1 of images (in float32), 10 of texts
    and 1 of series and tables; the note says which limit was met.

    Args:
        dataset: All examples.
        train: Row numbers of train, int64 ``[example]``.
        test: Row numbers of test, int64 ``[example]``.

    Returns:
        The baseline; None where train holds a single class, which scikit-learn cannot fit, or texts without a letter.
    """
    rows = stratified_sample(train, dataset.labels[train], MAX_TRAIN_EXAMPLES)
    if len(np.unique(dataset.labels[rows])) < 2:
        return None
    if dataset.ref.kind == IMAGE:
        return _on_pixels(dataset, train, rows, test)
    if dataset.ref.kind == TEXT:
        return _on_terms(dataset, train, rows, test)
    return _on_numbers(dataset, train, rows, test)


def _on_pixels(dataset: Dataset, train: np.ndarray, rows: np.ndarray, test: np.ndarray) -> Baseline:
    num_classes = len(dataset.ref.class_names)
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
    height, width, _ = dataset.ref.image_shape
    shrunk = f", images averaged down from {height}x{width}" if max(height, width) > MAX_SIDE_PIXELS else ""
    what = f"{pixels.shape[1]:,} standardised pixel values{shrunk}"
    return Baseline(probabilities, _describe(train, rows, what, model))


def _on_terms(dataset: Dataset, train: np.ndarray, rows: np.ndarray, test: np.ndarray) -> Baseline | None:
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_TERMS, token_pattern=r"(?u)\b\w+\b", dtype=np.float64
    )
    try:
        terms = vectorizer.fit_transform(_texts(dataset, rows))
    except ValueError:  # scikit-learn's "empty vocabulary": there is no letter and no digit.
        return None
    what = f"TF-IDF of {terms.shape[1]:,} words and pairs of words"
    blocks = (vectorizer.transform(_texts(dataset, test[start : start + _BLOCK])) for start in _starts(test))
    return _fitted(dataset, train, rows, terms, blocks, what)


def _texts(dataset: Dataset, rows: np.ndarray) -> list[str]:
    return [text[:MAX_LETTERS] for text in dataset.texts(rows)]


def _on_numbers(dataset: Dataset, train: np.ndarray, rows: np.ndarray, test: np.ndarray) -> Baseline:
    """Fit on what is measured of series, or on the columns of a table."""
    values = _numbers(dataset, rows)
    num_all = values.shape[1]
    chosen = np.arange(num_all)
    if num_all > MAX_FEATURES:
        chosen = np.sort(most_separating(values, dataset.labels[rows], MAX_FEATURES))
    values = values[:, chosen]
    is_there = ~np.isnan(values)
    count = np.maximum(is_there.sum(axis=0), 1)
    mean = np.where(is_there, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(is_there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    std[std == 0.0] = 1.0

    def standardised(numbers: np.ndarray) -> np.ndarray:
        return np.asarray(np.nan_to_num((numbers - mean) / std, nan=0.0))

    cut = f" of {num_all:,}, those that tell classes apart best" if num_all > MAX_FEATURES else ""
    missing = "" if is_there.all() else ", what is missing taken as the mean"
    numbers = "values" if dataset.ref.kind == TABLE else f"numbers ({', '.join(SERIES_NUMBERS)} of each channel; steps)"
    what = f"{len(chosen):,} standardised {numbers}{cut}{missing}"
    blocks = (standardised(_numbers(dataset, test[start : start + _BLOCK])[:, chosen]) for start in _starts(test))
    return _fitted(dataset, train, rows, standardised(values), blocks, what)


def _numbers(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """What is measured of series, or a table's columns; float64 ``[example, feature]``, NaN where one is missing."""
    if dataset.ref.kind == TABLE:
        return np.asarray(dataset.table[rows], np.float64)
    measured = measure_series(dataset.series, rows).reshape(len(rows), -1)
    return np.concatenate([measured, dataset.series.lengths(rows)[:, None]], axis=1)


def _starts(rows: np.ndarray) -> range:
    return range(0, len(rows), _BLOCK)


def _fitted(
    dataset: Dataset,
    train: np.ndarray,
    rows: np.ndarray,
    features: np.ndarray | sparse.csr_matrix,
    blocks: Iterator[np.ndarray | sparse.csr_matrix],
    what: str,
) -> Baseline:
    """Fit on features ``[train example, feature]`` and answer test, which comes in blocks of the same."""
    model = LogisticRegression(C=_INVERSE_L2_OF[dataset.ref.kind], max_iter=MAX_ITERATIONS)
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, dataset.labels[rows])
        answers = [_softmax(model.decision_function(block)) for block in blocks]
    probabilities = np.zeros((sum(map(len, answers)), len(dataset.ref.class_names)))
    probabilities[:, model.classes_] = np.concatenate(answers)
    return Baseline(probabilities, _describe(train, rows, what, model))


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


def _features(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
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


def _describe(train: np.ndarray, rows: np.ndarray, what: str, model: LogisticRegression) -> str:
    used = f"all {len(rows):,}" if len(rows) == len(train) else f"{len(rows):,} of {len(train):,}"
    num_iterations = int(model.n_iter_.max())
    end = "stopped at its limit of" if num_iterations >= MAX_ITERATIONS else "converged after"
    return f"scikit-learn on {used} train examples, {what}; {end} {num_iterations} iterations."
