import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from assay.corrections import holm
from assay.data.drift import detect_drift, drifted
from assay.data.profile import summarise
from assay.records.night import DRIFT_KINDS, DataProfile, Drift
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset

ALPHA = 0.01
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@pytest.fixture(autouse=True)
def _no_shards_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made data sets name the folder ``data``, which the project's own folder has."""
    monkeypatch.chdir(tmp_path)


def profile(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None = None) -> DataProfile:
    dataset = make_dataset(labels, images)
    return summarise(dataset, np.arange(len(labels)), probabilities)


def textures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Pictures of 8 x 8 grey pixels with a brightness and a contrast of their own."""
    level, spread = rng.uniform(80, 150, (count, 1, 1, 1)), rng.uniform(5, 30, (count, 1, 1, 1))
    return np.clip(rng.normal(level, spread, (count, 8, 8, 1)), 0, 255).astype(np.uint8)


def synthetic(rng: np.random.Generator, count: int) -> DataProfile:
    """A profile of fresh data, 5 features, 10 classes and a champion's answers, all independent."""
    return DataProfile(
        data_md5="",
        num_examples=count,
        shape=(8, 8, 1),
        class_counts={str(label): int(n) for label, n in enumerate(rng.multinomial(count, np.full(10, 0.1)))},
        num_duplicates=0,
        num_conflicting=0,
        num_unreadable=0,
        blank_share=0.0,
        missing_shares={},
        features={name: tuple(np.sort(rng.normal(size=min(count, 2000))).tolist()) for name in "abcde"},
        predicted_counts={str(label): int(n) for label, n in enumerate(rng.multinomial(count, np.full(10, 0.1)))},
        top_probabilities=tuple(np.sort(rng.beta(8, 1, min(count, 2000))).tolist()),
        num_predicted=count,
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images[..., None] * (255 / 16)).astype(np.uint8), data.target


def named(drifts: tuple[Drift, ...], name: str) -> Drift:
    return next(drift for drift in drifts if drift.name == name)


def test_the_same_data_has_not_drifted() -> None:
    images, labels = digits()
    same = profile(images, labels)
    drifts = detect_drift(same, same, ALPHA)
    assert {drift.p_holm for drift in drifts} == {1.0} and {drift.effect for drift in drifts} == {0.0}
    assert not drifted(drifts)


@pytest.mark.parametrize(("count", "num"), [(40, 30), (400, 200)])
def test_false_alarms_stay_below_alpha(count: int, num: int) -> None:
    rng = np.random.default_rng(0)
    alpha = 0.1
    alarms = sum(
        bool(drifted(detect_drift(synthetic(rng, count), synthetic(rng, count), alpha, min_distance=0, min_shift=0)))
        for _ in range(num)
    )
    # A rate of alpha stays within this in 995 cases of 1,000.
    assert alarms <= stats.binom.ppf(0.995, num, alpha)


def test_without_correction_alarms_would_be_many() -> None:
    rng = np.random.default_rng(0)
    pairs = [detect_drift(synthetic(rng, 200), synthetic(rng, 200), 0.1) for _ in range(50)]
    assert sum(min(drift.p for drift in drifts) <= 0.1 for drifts in pairs) > 15


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda images, rng: np.clip(images * 1.15, 0, 255), "brightness"),
        (lambda images, rng: np.clip(images + rng.normal(0, 30, images.shape), 0, 255), "sharpness"),
        (lambda images, rng: np.rot90(images, axes=(1, 2)), "edge direction"),
        (lambda images, rng: np.roll(images, 1, axis=2), "centre across"),
    ],
    ids=["brighter", "noisier", "rotated", "moved"],
)
def test_planted_drift_of_inputs_is_found(change: Change, name: str) -> None:
    images, labels = digits()
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = order[:900], order[900:]
    changed = change(images[second].astype(float), np.random.default_rng(1)).astype(np.uint8)
    drifts = detect_drift(profile(images[first], labels[first]), profile(changed, labels[second]), ALPHA)
    assert named(drifts, name).drifted
    assert not named(drifts, "classes").drifted


def test_a_halved_class_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 10_000)
    images = textures(rng, 10_000)
    halved = np.flatnonzero((labels != 7) | (rng.random(len(labels)) < 0.5))
    drifts = detect_drift(
        profile(images[:5000], labels[:5000]), profile(images[halved[5000:]], labels[halved[5000:]]), ALPHA
    )
    assert [drift.name for drift in drifted(drifts)] == ["classes"]
    assert "Classes shifted: 'class 7' 9.3% -> 4.8%, total variation" in named(drifts, "classes").reason


def test_a_champion_that_answers_otherwise_is_found() -> None:
    images, labels = digits()
    flat = images.reshape(len(images), -1) / 255
    champion = LogisticRegression(max_iter=100).fit(flat[:600], labels[:600])
    old = profile(images[600:1200], labels[600:1200], champion.predict_proba(flat[600:1200]))
    new = profile(images[1200:], labels[1200:], champion.predict_proba(flat[1200:] * 0.5))
    found = drifted(detect_drift(old, new, ALPHA))
    assert {drift.kind for drift in found} == {"predictions"} and found[0].name == "top probability"


def test_what_the_champion_was_trained_on_does_not_count_as_its_predictions() -> None:
    images, labels = digits()
    dataset = make_dataset(labels, images)
    sure = np.where(np.arange(10) == labels[:, None], 0.999, 0.001 / 9)
    unsure = np.full((len(labels), 10), 0.1)
    rows, is_seen = np.arange(len(labels)), np.arange(len(labels)) < 1000
    probabilities = np.where(is_seen[:, None], sure, unsure)
    seen = np.unique(dataset.content_hash[is_seen])
    found = summarise(dataset, rows, probabilities, seen=seen)
    assert found.num_predicted == 797 and sum(found.predicted_counts.values()) == 797
    assert set(found.top_probabilities) == {0.1}
    assert len(summarise(dataset, rows, probabilities).top_probabilities) == 1797
    all_seen = summarise(dataset, rows, probabilities, seen=dataset.content_hash)
    assert (all_seen.num_predicted, all_seen.predicted_counts, all_seen.top_probabilities) == (0, {}, ())
    assert {drift.kind for drift in detect_drift(found, all_seen, ALPHA)} == {"inputs", "labels"}


def test_a_certain_but_small_effect_is_no_drift() -> None:
    rng = np.random.default_rng(0)
    old, new = synthetic(rng, 2000), synthetic(rng, 2000)
    moved = DataProfile(**(vars(new) | {"features": {"a": tuple(value + 0.15 for value in new.features["a"])}}))
    found = named(detect_drift(old, moved, ALPHA), "a")
    assert found.p_holm <= ALPHA and 0.05 < found.effect < 0.1 and not found.drifted
    assert "too little to count as drift" in found.reason
    assert named(detect_drift(old, moved, ALPHA, min_distance=0.05), "a").drifted


def test_the_family_is_corrected_as_holm_says_and_survives_json() -> None:
    rng = np.random.default_rng(3)
    old, new = synthetic(rng, 100), synthetic(rng, 100)
    drifts = detect_drift(DataProfile.from_json(json.loads(json.dumps(old.to_json()))), new, ALPHA)
    assert [drift.p_holm for drift in drifts] == holm([drift.p for drift in drifts])
    assert [*dict.fromkeys(drift.kind for drift in drifts)] == list(DRIFT_KINDS)
    assert [Drift.from_json(json.loads(json.dumps(drift.to_json()))) for drift in drifts] == list(drifts)


def test_values_are_scipys_and_sentences_say_the_direction() -> None:
    rng = np.random.default_rng(0)
    images, labels = textures(rng, 600), rng.integers(0, 2, 600)
    brighter = np.clip(images[300:] + 30.0, 0, 255).astype(np.uint8)
    old, new = profile(images[:300], labels[:300]), profile(brighter, labels[300:])
    found = named(detect_drift(old, new, ALPHA), "brightness")
    expected = stats.ks_2samp(old.features["brightness"], new.features["brightness"], method="asymp")
    assert (found.statistic, found.p) == (expected.statistic, expected.pvalue)
    assert found.reason.startswith("Brightness moved up: median 1") and found.reason.endswith(", p < 0.001.")
    few = [profile(images[rows], labels[rows]) for rows in (slice(20), slice(20, 45))]
    samples = [one.features["contrast"] for one in few]
    assert named(detect_drift(*few, ALPHA), "contrast").p == stats.ks_2samp(*samples, method="exact").pvalue
    assert stats.ks_2samp(*samples, method="exact").pvalue != stats.ks_2samp(*samples, method="asymp").pvalue
    back = named(detect_drift(new, old, ALPHA), "brightness")
    assert back.reason.startswith("Brightness moved down")
    classes = named(detect_drift(old, new, ALPHA), "classes")
    table = [list(one.class_counts.values()) for one in (old, new)]
    assert classes.p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)


def test_small_counts_are_drawn_from_the_exact_distribution() -> None:
    rng = np.random.default_rng(0)
    old, new = synthetic(rng, 100), synthetic(rng, 100)
    few = ({"a": 8, "b": 1, "c": 0}, {"a": 2, "b": 9, "c": 0})
    old, new = (
        DataProfile(**(vars(one) | {"class_counts": counts})) for one, counts in zip((old, new), few, strict=True)
    )
    found = named(detect_drift(old, new, ALPHA), "classes")
    exact = stats.fisher_exact([[8, 1], [2, 9]]).pvalue
    assert found.test == "chi-square, Monte Carlo" and found.p == pytest.approx(exact, abs=0.002)
    assert found == named(detect_drift(old, new, ALPHA), "classes")


def test_classes_that_only_one_side_has_count() -> None:
    rng = np.random.default_rng(0)
    old, new = synthetic(rng, 200), synthetic(rng, 200)
    other = DataProfile(**(vars(new) | {"class_counts": {f"new {label}": 20 for label in range(10)}}))
    found = named(detect_drift(old, other, ALPHA), "classes")
    assert found.effect == pytest.approx(1) and found.values["cramers_v"] == pytest.approx(1) and found.drifted


def test_drift_of_texts_series_and_tables_is_found_and_without_it_none() -> None:
    labels = np.arange(600) % 2
    first, second = np.arange(300), np.arange(300, 600)
    texts = text_dataset(labels)
    shouted = text_dataset(labels, [text.upper() for text in texts.texts(np.arange(600))])
    series = series_dataset(labels)
    louder = series_dataset(labels, [1.5 * series.series.row(row) for row in range(600)])
    table = table_dataset(labels)
    moved = table_dataset(labels, table.table + np.array([0, 0, 1, 0, 0]), table.ref.columns)
    for before, after, names in (
        (texts, shouted, {"upper case"}),
        (series, louder, {"left sd", "right sd", "left step", "right step"}),
        (table, moved, {"ash"}),
    ):
        old, same, new = summarise(before, first), summarise(before, second), summarise(after, second)
        assert not drifted(detect_drift(old, same, ALPHA))
        found = {drift.name for drift in drifted(detect_drift(old, new, ALPHA))}
        assert names <= found and "classes" not in found
    assert {
        drift.name for drift in drifted(detect_drift(summarise(table, first), summarise(moved, second), ALPHA))
    } == {"ash"}


def test_a_column_that_lost_its_values_is_not_compared() -> None:
    values = np.random.default_rng(0).normal(size=(60, 2))
    lost = values.copy()
    lost[:, 1] = np.nan
    old, new = (summarise(table_dataset(np.arange(60) % 2, one), np.arange(60)) for one in (values, lost))
    assert [drift.name for drift in detect_drift(old, new, ALPHA)] == ["column 0", "classes"]
