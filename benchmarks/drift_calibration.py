"""Whether drift detection keeps its alpha, and which drifts it finds.

    python benchmarks/drift_calibration.py                 # all five questions
    python benchmarks/drift_calibration.py --num 100       # fewer pairs
    python benchmarks/drift_calibration.py --only planted  # false-alarms, grown, champion, planted or speed

A pair is two samples of the same data without an example in common: digits from scikit-learn, the project's own
``data/`` where it is there (mnist5k after ``make run``), and pictures drawn for the purpose, which never run out.
Predictions are of a linear discriminant fitted on examples of neither sample. Rates come with their Monte-Carlo
standard error.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier

from assay.data.drift import detect_drift, drifted
from assay.data.loading import Dataset, decode_shards
from assay.data.profile import summarise
from assay.data.shards import inspect_shards
from assay.data.sources import content_hash
from assay.records import DataRef
from assay.records.night import DataProfile, Drift

ROOT = Path(__file__).resolve().parents[1]
ALPHAS = (0.05, 0.01)
ALPHA = 0.01
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Data that pairs are drawn from, `num_each` examples a sample; None draws fresh data for each pair."""

    name: str
    images: np.ndarray | None
    labels: np.ndarray | None
    num_each: int
    num_fit: int

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of two samples, one after the other, and of the champion's training data."""
        total = 2 * self.num_each + self.num_fit
        if self.images is None or self.labels is None:
            return textures(total, rng)
        order = rng.permutation(len(self.labels))[:total]
        return self.images[order], self.labels[order]


def textures(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colour pictures of 8 x 8 pixels whose brightness, contrast and tint vary, with a class's own tint."""
    labels = rng.integers(0, 10, count)
    level, spread = rng.uniform(70, 150, (count, 1, 1, 1)), rng.uniform(5, 30, (count, 1, 1, 1))
    tint = rng.normal(0, 8, (count, 1, 1, 3)) + 4 * (labels % 3)[:, None, None, None]
    pixels = level + tint + spread * rng.normal(size=(count, 8, 8, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def pools() -> list[Pool]:
    digits = load_digits()
    images = (digits.images[..., None] * (255 / 16)).astype(np.uint8)
    found = [
        Pool("digits", images, digits.target, 600, 597),
        Pool("synthetic 300", None, None, 300, 500),
        Pool("synthetic 3000", None, None, 3000, 500),
    ]
    if any((ROOT / "data").glob("*.parquet")):
        parts = list(decode_shards(inspect_shards(ROOT / "data"), (28, 28, 1)))
        arrays = [np.concatenate([part[name] for part in parts]) for name in ("images", "labels")]
        found.insert(1, Pool("mnist5k", arrays[0], arrays[1], 2000, 1000))
    return found


def to_dataset(images: np.ndarray, labels: np.ndarray) -> Dataset:
    count, names = len(labels), tuple(str(number) for number in range(10))
    hashes = np.array([content_hash(image) for image in images], "S16")
    ref = DataRef("nowhere", "", "made", count, names, images.shape[1:])
    return Dataset(ref, images, labels, np.full(count, -1, np.int8), np.full(count, -1), hashes)


def profile(images: np.ndarray, labels: np.ndarray, champion: LinearDiscriminantAnalysis) -> DataProfile:
    dataset = to_dataset(images, labels)
    return summarise(dataset, np.arange(len(labels)), answers(champion, images))


def answers(champion: LinearDiscriminantAnalysis, images: np.ndarray) -> np.ndarray:
    found = np.zeros((len(images), 10))
    found[:, champion.classes_] = champion.predict_proba(flat(images))
    return found


def flat(images: np.ndarray) -> np.ndarray:
    """Pixels in 8 x 8 blocks or so, in 0..1: enough for a linear champion."""
    step = max(1, images.shape[1] // 8)
    return images[:, ::step, ::step].reshape(len(images), -1) / 255


def fit(images: np.ndarray, labels: np.ndarray) -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(flat(images), labels)


def pairs(pool: Pool, num: int, change: Change | None = None) -> Iterator[tuple[DataProfile, DataProfile]]:
    rng = np.random.default_rng(0)
    for _ in range(num):
        images, labels = pool.draw(rng)
        one, two = slice(0, pool.num_each), slice(pool.num_each, 2 * pool.num_each)
        champion = fit(images[2 * pool.num_each :], labels[2 * pool.num_each :])
        new_images, new_labels = (images[two], labels[two])
        if change:
            new_images, new_labels = change(new_images, new_labels, rng)
        yield profile(images[one], labels[one], champion), profile(new_images, new_labels, champion)


def false_alarms(num: int) -> None:
    """Print how often nothing drifted and something is said to have."""
    print(f"False alarms of the family, of {num} pairs of samples of the same data")
    print("| data | examples | tests | alpha | Holm, no least effect | uncorrected | as shipped |")
    print("|---|---|---|---|---|---|---|")
    for pool in pools():
        found = [detect_drift(old, new, ALPHA) for old, new in pairs(pool, num)]
        for alpha in ALPHAS:
            holm = [any(drift.p_holm <= alpha for drift in drifts) for drifts in found]
            plain = [any(drift.p <= alpha for drift in drifts) for drifts in found]
            shipped = [
                any(drift.p_holm <= alpha and drift.effect >= drift.min_effect for drift in drifts) for drifts in found
            ]
            cells = " | ".join(rate(sum(hits), num) for hits in (holm, plain, shipped))
            print(f"| {pool.name} | 2 x {pool.num_each} | {len(found[0])} | {alpha} | {cells} |", flush=True)
        print(f"  largest effects by chance: {largest_effects(found)}")


def largest_effects(found: list[tuple[Drift, ...]]) -> str:
    """The 99th percentile of the largest KS distance, and of the largest total variation, of a pair."""
    values = []
    for is_wanted in (lambda drift: "Kolm" in drift.test, lambda drift: "chi" in drift.test):
        largest = [max(drift.effect for drift in drifts if is_wanted(drift)) for drifts in found]
        values.append(float(np.quantile(largest, 0.99)))
    return f"KS {values[0]:.3f}, total variation {values[1]:.3f} (99th percentile)"


def grown(num: int) -> None:
    """Print the rate where the new data is the old data and a tenth more."""
    pool = pools()[0]
    rng, num_alarms = np.random.default_rng(0), 0
    for _ in range(num):
        images, labels = pool.draw(rng)
        champion = fit(images[1200:], labels[1200:])
        old, new = (profile(images[:size], labels[:size], champion) for size in (600, 660))
        num_alarms += any(drift.p_holm <= 0.05 for drift in detect_drift(old, new, 0.05))
    print(f"New data is the old data and a tenth more, digits, alpha 0.05, no least effect: {rate(num_alarms, num)}")


def champion(num: int) -> None:
    """Print what happens when the champion's answers on what it was trained on are taken for its answers."""
    num = max(10, num // 5)
    pool = pools()[0]
    rng, alarms = np.random.default_rng(0), {"all answers": 0, "unseen only": 0}
    for _ in range(num):
        images, labels = pool.draw(rng)
        data = [to_dataset(images[:900], labels[:900]), to_dataset(images[900:], labels[900:])]
        model = RandomForestClassifier(20, random_state=0).fit(flat(images[:600]), labels[:600])
        for name, seen in (("all answers", None), ("unseen only", data[0].content_hash[:600])):
            old, new = (
                summarise(one, np.arange(len(one.labels)), model.predict_proba(flat(one.images)), seen=seen)
                for one in data
            )
            drifts = drifted(detect_drift(old, new, ALPHA))
            alarms[name] += any(drift.kind == "predictions" for drift in drifts)
    print(f"False alarms of predictions as shipped, digits, alpha {ALPHA}: a random forest trained on 600 of the 900")
    print(f"old examples, 897 new ones, {num} times")
    for name, count in alarms.items():
        print(f"  {name}: {rate(count, num)}")


def brighter(factor: float) -> Change:
    return lambda images, labels, rng: (to_bytes(images * factor), labels)


def noisier(sd: float) -> Change:
    return lambda images, labels, rng: (to_bytes(images + rng.normal(0, sd, images.shape)), labels)


def rotated(degrees: float) -> Change:
    return lambda images, labels, rng: (
        to_bytes(ndimage.rotate(images.astype(float), degrees, axes=(1, 2), reshape=False, order=1)),
        labels,
    )


def moved(share: float) -> Change:
    return lambda images, labels, rng: (np.roll(images, round(share * images.shape[2]), axis=2), labels)


def halved(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    is_kept = (labels != 3) | (rng.random(len(labels)) < 0.5)
    return images[is_kept], labels[is_kept]


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


PLANTED: dict[str, Change] = {
    "brightness x 1.05": brighter(1.05),
    "brightness x 1.15": brighter(1.15),
    "noise, sd 5": noisier(5),
    "noise, sd 15": noisier(15),
    "rotated 10 degrees": rotated(10),
    "rotated 20 degrees": rotated(20),
    "rotated 90 degrees": rotated(90),
    "rotated 180 degrees": rotated(180),
    "moved by 1/8 of the width": moved(1 / 8),
    "one class halved": halved,
}


def planted(num: int) -> None:
    """Print how often planted drifts are found, and by what; a tenth of the pairs suffices."""
    num = max(10, num // 10)
    print(f"Planted drifts found as shipped, alpha {ALPHA}, of {num} pairs")
    print(
        "| drift | data | found | by inputs alone | by labels alone | by predictions alone | largest effect, median |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, change in PLANTED.items():
        for pool in pools():
            if pool.images is None and change is not halved and "bright" not in name and "noise" not in name:
                continue  # These pictures look the same from all sides.
            found = [drifted(detect_drift(old, new, ALPHA)) for old, new in pairs(pool, num, change)]
            kinds = [
                f"{np.mean([any(drift.kind == kind for drift in drifts) for drifts in found]):.0%}"
                for kind in ("inputs", "labels", "predictions")
            ]
            by_name = [drifts[0].name for drifts in found if drifts]
            most = max(set(by_name), key=by_name.count) if by_name else ""
            effect = np.median([drifts[0].effect if drifts else 0 for drifts in found])
            hits = rate(sum(bool(drifts) for drifts in found), num)
            print(f"| {name} | {pool.name} | {hits} | {' | '.join(kinds)} | {most} {effect:.2f} |", flush=True)


def speed(num: int) -> None:
    """Print what a summary of 60,000 colour images costs on one core, best of 5."""
    os.sched_setaffinity(0, {next(iter(os.sched_getaffinity(0)))})
    rng, count, shape = np.random.default_rng(0), 60_000, (32, 32, 3)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", rng.integers(0, 256, (count, *shape), np.uint8))
        images = np.load(Path(folder) / "images.npy", mmap_mode="r")
        labels, hashes = rng.integers(0, 10, count), np.frombuffer(rng.bytes(16 * count), "S16")
        ref = DataRef("nowhere", "", "made", count, tuple("0123456789"), shape)
        dataset = Dataset(ref, images, labels, np.full(count, -1, np.int8), np.full(count, -1), hashes)
        probabilities = rng.dirichlet(np.ones(10), count)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            found = summarise(dataset, np.arange(count), probabilities)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        num_tests = len(detect_drift(found, found, ALPHA))
        seconds = time.perf_counter() - started
    size_bytes = len(json.dumps(found.to_json()))
    print(f"60,000 images of 32 x 32 x 3: summary {min(times):.2f} to {max(times):.2f} s, {size_bytes:,} bytes of JSON")
    print(f"{num_tests} comparisons: {seconds:.3f} s")


def rate(count: int, num: int) -> str:
    share = count / num
    return f"{share:.1%} +- {(share * (1 - share) / num) ** 0.5:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000, help="pairs of samples")
    questions = {
        "false-alarms": false_alarms,
        "grown": grown,
        "champion": champion,
        "planted": planted,
        "speed": speed,
    }
    parser.add_argument("--only", choices=list(questions))
    arguments = parser.parse_args()
    for name, ask in questions.items():
        if arguments.only in (None, name):
            started = time.perf_counter()
            ask(arguments.num)
            print(f"({name}: {time.perf_counter() - started:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
