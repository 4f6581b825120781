import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from assay.evaluation import baselines
from assay.evaluation.baselines import logistic_regression, majority_class, stratified_sample
from tests.data.kinds import series_dataset, table_dataset, text_dataset


def test_majority_class_equals_sklearns_prior():
    labels = np.array([2, 2, 2, 0, 1])
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((5, 1)), labels)
    found = majority_class(labels, 7, ("a", "b", "c"))
    np.testing.assert_array_equal(found.probabilities, dummy.predict_proba(np.zeros((7, 1))))
    assert "'c', 60.0% of train" in found.note


@pytest.mark.parametrize("class_names", [("a", "b"), ("a", "b", "c", "d")])
def test_logistic_regression_equals_sklearns_pipeline(make_dataset, class_names):
    dataset = make_dataset(class_names=class_names, noise=200.0)
    train, test = np.arange(0, 140), np.arange(140, 200)
    found = logistic_regression(dataset, train, test)
    pixels = dataset.images.reshape(200, -1).astype(np.float32)
    scaler = StandardScaler().fit(pixels[train])
    model = LogisticRegression(C=0.1, max_iter=100).fit(scaler.transform(pixels[train]), dataset.labels[train])
    np.testing.assert_allclose(found.probabilities, model.predict_proba(scaler.transform(pixels[test])), atol=2e-3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert "all 140 train examples" in found.note
    assert "converged after" in found.note


def test_a_constant_pixel_does_no_harm(make_dataset):
    dataset = make_dataset()
    images = dataset.images.copy()
    images[:, 0] = 7
    object.__setattr__(dataset, "inputs", images)
    assert np.isfinite(logistic_regression(dataset, np.arange(150), np.arange(150, 200)).probabilities).all()


def test_a_class_without_train_examples_gets_no_probability(make_dataset):
    dataset = make_dataset()
    train = np.flatnonzero(dataset.labels != 1)
    found = logistic_regression(dataset, train, np.arange(20))
    assert (found.probabilities[:, 1] == 0.0).all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)


def test_a_single_class_cannot_be_fitted(make_dataset):
    dataset = make_dataset()
    assert logistic_regression(dataset, np.flatnonzero(dataset.labels == 0), np.arange(20)) is None


def test_limits_are_kept_and_said(make_dataset, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TRAIN_EXAMPLES", 60)
    monkeypatch.setattr(baselines, "MAX_ITERATIONS", 2)
    dataset = make_dataset(shape=(70, 33, 3))
    note = logistic_regression(dataset, np.arange(150), np.arange(150, 200)).note
    assert "60 of 150 train examples" in note
    assert f"{24 * 17 * 3:,} standardised pixel values, images averaged down from 70x33" in note
    assert "stopped at its limit of 2 iterations" in note


def test_images_are_averaged_over_tiles():
    images = np.zeros((1, 33, 32, 1), np.uint8)
    images[0, :2] = 10
    images[0, 32] = 4
    pixels = baselines._shrink(images)
    assert pixels.shape == (1, 17, 32, 1)
    assert pixels[0, [0, 1, 16], 0, 0].tolist() == [10.0, 0.0, 4.0]


def test_sample_keeps_every_class_and_its_share():
    labels = np.repeat([0, 1, 2], [600, 399, 1])
    rows = np.arange(1000) + 5
    chosen = stratified_sample(rows, labels, 100)
    assert np.bincount(labels[chosen - 5]).tolist() == [60, 39, 1]
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.array_equal(chosen, stratified_sample(rows, labels, 100))
    assert stratified_sample(rows, labels, 1000) is rows


LABELS = np.arange(240) % 3
TRAIN, TEST = np.arange(160), np.arange(160, 240)


def test_texts_are_answered_as_sklearns_pipeline_does():
    dataset = text_dataset(LABELS)
    found = logistic_regression(dataset, TRAIN, TEST)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    terms = vectorizer.fit_transform(dataset.texts(TRAIN))
    model = LogisticRegression(C=10.0, max_iter=100).fit(terms, LABELS[TRAIN])
    expected = model.predict_proba(vectorizer.transform(dataset.texts(TEST)))
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-9)
    assert f"TF-IDF of {terms.shape[1]:,} words and pairs of words" in found.note


def test_series_are_answered_from_their_numbers():
    found = logistic_regression(series_dataset(LABELS), TRAIN, TEST)
    assert (found.probabilities.argmax(axis=1) == LABELS[TEST]).mean() > 0.95
    assert "all 160 train examples, 17 standardised numbers (mean, sd," in found.note


def test_a_missing_value_counts_as_the_mean_of_train():
    dataset = table_dataset(LABELS)
    filled = np.where(np.isnan(dataset.table), np.nanmean(dataset.table[TRAIN], axis=0, dtype=float), dataset.table)
    found = logistic_regression(dataset, TRAIN, TEST)
    # The mean fills up what is missing only after the deviation was taken of what is there.
    mean, std = filled[TRAIN].mean(axis=0), np.nanstd(dataset.table[TRAIN].astype(float), axis=0)
    model = LogisticRegression(C=1.0, max_iter=100).fit((filled[TRAIN] - mean) / std, LABELS[TRAIN])
    np.testing.assert_allclose(found.probabilities, model.predict_proba((filled[TEST] - mean) / std), atol=1e-6)
    assert "5 standardised values, what is missing taken as the mean" in found.note


@pytest.mark.parametrize("make", [text_dataset, series_dataset, table_dataset])
def test_every_kind_is_answered_the_same_again_and_in_blocks(make, monkeypatch):
    dataset = make(LABELS)
    found = logistic_regression(dataset, TRAIN, TEST)
    assert found.probabilities.tobytes() == logistic_regression(dataset, TRAIN, TEST).probabilities.tobytes()
    monkeypatch.setattr(baselines, "_BLOCK", 7)
    np.testing.assert_allclose(logistic_regression(dataset, TRAIN, TEST).probabilities, found.probabilities, atol=1e-12)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
    some = logistic_regression(dataset, TRAIN[LABELS[TRAIN] != 1], TEST)
    assert (some.probabilities[:, 1] == 0.0).all()
    assert logistic_regression(dataset, TRAIN[LABELS[TRAIN] == 1], TEST) is None


def test_a_wide_table_is_cut_to_what_tells_classes_apart(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_FEATURES", 2)
    found = logistic_regression(table_dataset(LABELS), TRAIN, TEST)
    assert "2 standardised values of 5, those that tell classes apart best" in found.note
    assert (found.probabilities.argmax(axis=1) == LABELS[TEST]).mean() > 0.7


def test_texts_without_a_letter_and_columns_without_a_value_do_no_harm():
    assert logistic_regression(text_dataset(LABELS, ["?!"] * 240), TRAIN, TEST) is None
    values = np.random.default_rng(0).normal(size=(240, 3))
    values[:, 1], values[:, 2] = np.nan, 3e38
    assert np.isfinite(logistic_regression(table_dataset(LABELS, values), TRAIN, TEST).probabilities).all()
