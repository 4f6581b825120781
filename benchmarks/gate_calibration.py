"""Whether the gate keeps what it promises, on champions and challengers whose truth is known.

    python benchmarks/gate_calibration.py              # all questions, about 40 minutes on one core
    python benchmarks/gate_calibration.py --num 200    # a fifth of the replications
    python benchmarks/gate_calibration.py --only power # real, false, sequence, power, slices, metrics or tango

A simulated model is right on an example where ``ability - difficulty + luck > 0``. Difficulty, N(0, 1), belongs to the
example and is shared by all models; luck, N(0, `LUCK`^2), is the model's own on that example: with `LUCK` = 0.3 two
models of accuracy 0.96 differ on 2.8% of the examples, as the classic CNN does between two seeds. The ability sets
the true accuracy over all examples there could be; where seeds matter it varies from training to training, so that the
true accuracy does with the standard deviation `SEED_SD`. Ten classes; a wrong answer is any other class.
Rates come with their Monte-Carlo standard error.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special, stats

from assay.params import GateParams
from assay.records import PROMOTED, REFUSED, Interval, Look
from assay.registry.budget import spend
from assay.registry.gate import Candidate, TestSet, conclude, judge
from assay.registry.paired import Counts, compare, count, mcnemar, tango_high, tango_low
from assay.registry.slices import Slice, class_slices, quantile_slices

ANSWERS = Path(__file__).resolve().parents[1] / ".assay" / "verdict_calibration.npz"
NUM_CLASSES = 10
NAMES = tuple(f"class {label}" for label in range(NUM_CLASSES))
LUCK = 0.3
SEED_SD = 0.005
MAX_LOOKS = 20
ALPHA = 0.05


@dataclass
class World:
    """Test examples: how hard each is, its label, and the slices of both."""

    difficulty: np.ndarray
    labels: np.ndarray
    rng: np.random.Generator

    @classmethod
    def draw(cls, num_examples: int, rng: np.random.Generator, shares: np.ndarray | None = None) -> "World":
        labels = rng.choice(NUM_CLASSES, num_examples, p=shares)
        return cls(rng.normal(size=num_examples), labels, rng)

    def train(self, accuracy: float, seed_sd: float = 0.0) -> tuple[np.ndarray, float]:
        """Answers of a new model, int64 ``[example]``, and its true accuracy."""
        true = float(np.clip(accuracy + seed_sd * self.rng.normal(), 0.01, 0.999))
        return self.answer(np.full(len(self.labels), true)), true

    def answer(self, accuracy: np.ndarray) -> np.ndarray:
        """Answers of a new model whose true accuracy is given example by example, float64 ``[example]``."""
        ability = special.ndtri(accuracy) * np.hypot(1.0, LUCK)
        right = ability - self.difficulty + LUCK * self.rng.normal(size=len(self.labels)) > 0
        wrong = (self.labels + self.rng.integers(1, NUM_CLASSES, len(self.labels))) % NUM_CLASSES
        return np.where(right, self.labels, wrong)

    def test_set(self, *, sliced: bool) -> TestSet:
        slices: tuple[Slice, ...] = ()
        if sliced:  # Darkness has nothing to do with difficulty here, as in most data.
            darkness = np.arange(len(self.labels)) % 251
            slices = (*class_slices(self.labels, NAMES), *quantile_slices(darkness, 4, "brightness"))
        return TestSet(self.labels, NAMES, slices)


def candidate(answers: np.ndarray, labels: np.ndarray) -> Candidate:
    """A sound candidate with these answers."""
    probabilities = np.full((len(answers), NUM_CLASSES), 0.1 / (NUM_CLASSES - 1))
    probabilities[np.arange(len(answers)), answers] = 0.9
    accuracy = float(np.mean(answers == labels))
    half = 1.96 * (accuracy * (1.0 - accuracy) / len(labels)) ** 0.5
    metrics = {
        "accuracy": Interval(accuracy, accuracy - half, accuracy + half),
        "expected_calibration_error": Interval(0.02, 0.01, 0.03),
    }
    baselines = {"majority_class": {"accuracy": 0.11}, "logistic_regression": {"accuracy": 0.5}}
    return Candidate(probabilities, NAMES, metrics, baselines, size_bytes=10**6)


def look_of(number: int) -> Look:
    return Look("test", number, MAX_LOOKS, spend(number, MAX_LOOKS, ALPHA))


def decide(
    world: World, challenger: np.ndarray, champion: np.ndarray, number: int, seed_sd: float, *, sliced: bool = False
) -> tuple[str, str]:
    """The gate's outcome and reason. Without slices, what McNemar refuses is not computed any further."""
    look = look_of(number)
    if not sliced and mcnemar(count(challenger == world.labels, champion == world.labels)) >= look.alpha:
        return "kept champion", "McNemar"
    sides = candidate(challenger, world.labels), candidate(champion, world.labels)
    return conclude(judge(*sides, world.test_set(sliced=sliced), GateParams(), look, seed_sd), True)


def rate(hits: int, num: int) -> str:
    share = hits / num
    return f"{share:7.2%} +- {(share * (1 - share) / num) ** 0.5:.2%}"


def false_promotions(num: int, rng: np.random.Generator) -> None:
    """One look each at fresh test sets: challengers that are equal to the champion up to seed noise."""
    print(f"\nOne look each, {5 * num:,} fresh test sets, superiority; look 1 may spend {look_of(1).alpha:.4f}")
    print("| n | accuracy | seeds | gate is told | promoted | promoted though truly not better | binomial p above |")
    for num_examples, accuracy in ((1000, 0.97), (5000, 0.90), (5000, 0.97)):
        for seed_sd, told in ((0.0, 0.0), (SEED_SD, SEED_SD), (SEED_SD, 0.0)):
            promoted = false = 0
            for _ in range(5 * num):
                world = World.draw(num_examples, rng)
                champion, of_champion = world.train(accuracy, seed_sd)
                challenger, of_challenger = world.train(accuracy, seed_sd)
                moved = decide(world, challenger, champion, 1, told)[0] == PROMOTED
                promoted += moved
                false += moved and of_challenger <= of_champion
            counted = false if told < seed_sd else promoted
            above = stats.binomtest(counted, 5 * num, look_of(1).alpha, alternative="greater").pvalue
            print(
                f"| {num_examples} | {accuracy} | {seed_sd} | {told} | {rate(promoted, 5 * num)} "
                f"| {rate(false, 5 * num)} | {above:.2f} |",
                flush=True,
            )


def sequences(num: int, rng: np.random.Generator) -> None:
    """Twenty looks at one test set: how often is any of twenty equal challengers promoted."""
    print(f"\n{MAX_LOOKS} looks at one test set, {num:,} test sets, at least one promotion; alpha {ALPHA}")
    print("| challengers | n | accuracy | seeds | gate is told | any promoted | any promoted though truly not better |")
    kinds: dict[str, Callable[[World, float, float], list[tuple[np.ndarray, float]]]] = {
        "fresh": fresh,
        "climber": climb,
    }
    for kind, make in kinds.items():
        for num_examples, accuracy in ((1000, 0.97), (5000, 0.90)):
            for seed_sd, told in ((0.0, 0.0), (SEED_SD, SEED_SD), (SEED_SD, 0.0)):
                if kind == "climber" and seed_sd:
                    continue
                promoted = false = 0
                for _ in range(num):
                    world = World.draw(num_examples, rng)
                    models = make(world, accuracy, seed_sd)
                    champion, of_champion = models[0]
                    moved = [
                        (number, true)
                        for number, (answers, true) in enumerate(models[1:], start=1)
                        if decide(world, answers, champion, number, told)[0] == PROMOTED
                    ]
                    promoted += bool(moved)
                    false += any(true <= of_champion for _, true in moved)
                print(
                    f"| {kind} | {num_examples} | {accuracy} | {seed_sd} | {told} | {rate(promoted, num)} "
                    f"| {rate(false, num)} |",
                    flush=True,
                )


def fresh(world: World, accuracy: float, seed_sd: float) -> list[tuple[np.ndarray, float]]:
    """The champion and challengers that know nothing of the test set."""
    return [world.train(accuracy, seed_sd) for _ in range(MAX_LOOKS + 1)]


def climb(world: World, accuracy: float, seed_sd: float) -> list[tuple[np.ndarray, float]]:
    """Challengers of somebody who reads each look's difference, and changes a tenth of the best one's answers."""
    models = [world.train(accuracy)]
    best = models[0][0]
    for _ in range(MAX_LOOKS):
        other = world.train(accuracy)[0]
        changed = np.where(world.rng.random(len(best)) < 0.1, other, best)
        models.append((changed, accuracy))
        if np.mean(changed == world.labels) > np.mean(best == world.labels):
            best = changed
    return models


def power(num: int, rng: np.random.Generator) -> None:
    """Challengers two points better, with all slices asked."""
    num //= 2
    print(f"\nPower, all slices asked, {num:,} test sets each")
    print("| n | champion | challenger | seeds | look | promoted | refused by a slice |")
    for num_examples, first, second in (
        (5000, 0.90, 0.92),
        (5000, 0.95, 0.97),
        (1000, 0.95, 0.97),
        (10000, 0.90, 0.91),
    ):
        for seed_sd, number in ((0.0, 1), (0.0, 20), (SEED_SD, 1)):
            outcomes = []
            for _ in range(num):
                world = World.draw(num_examples, rng)
                champion, challenger = world.train(first, seed_sd)[0], world.train(second, seed_sd)[0]
                outcomes.append(decide(world, challenger, champion, number, seed_sd, sliced=True)[0])
            print(
                f"| {num_examples} | {first} | {second} | {seed_sd} | {number} | {rate(outcomes.count(PROMOTED), num)} "
                f"| {rate(outcomes.count(REFUSED), num)} |",
                flush=True,
            )


def slices(num: int, rng: np.random.Generator) -> None:
    """A class planted worse under a better whole, and how often a sound challenger is refused by a slice."""
    print(f"\nSlices (10 classes, 4 quarters of a number, margin 0.05), {num:,} test sets each")
    print("| n | champion | others | class 7 | refused | naming class 7 | promoted | a loss is shown |")
    for num_examples in (1000, 5000):
        for accuracy, others, planted in (
            (0.90, 0.92, -0.10),
            (0.90, 0.92, -0.05),
            (0.90, 0.92, 0.02),
            (0.90, 0.90, 0.0),
            (0.97, 0.97, 0.0),
        ):
            refused = named = promoted = shown = 0
            for _ in range(num):
                world = World.draw(num_examples, rng)
                champion = world.train(accuracy)[0]
                wanted = np.where(world.labels == 7, accuracy + planted, others)
                answers = world.answer(wanted)
                outcome, reason = decide(world, answers, champion, 1, 0.0, sliced=True)
                refused += outcome == REFUSED
                named += outcome == REFUSED and "class: class 7" in reason
                promoted += outcome == PROMOTED
                shown += loss_is_shown(world, answers, champion)
            print(
                f"| {num_examples} | {accuracy} | {others} | {planted:+.2f} | {rate(refused, num)} "
                f"| {rate(named, num)} | {rate(promoted, num)} | {rate(shown, num)} |",
                flush=True,
            )


def loss_is_shown(world: World, challenger: np.ndarray, champion: np.ndarray) -> bool:
    """A rule the gate does not have: a slice counts only if worse beyond doubt, 5% over all slices together."""
    parts = world.test_set(sliced=True).slices
    rights = challenger == world.labels, champion == world.labels
    return any(tango_high(count(rights[0][p.mask], rights[1][p.mask]), 0.05 / len(parts)) < 0.0 for p in parts)


def metrics(num: int, rng: np.random.Generator) -> None:
    """Equal models by macro metrics, on balanced and on skewed classes."""
    print(f"\nOther metrics, {num // 2:,} test sets, equal models: low end above 0 at alpha 0.026, asked 2.6%")
    print("| n | classes | smallest share | accuracy | F1, macro | recall, macro |")
    skewed = 0.6 ** np.arange(NUM_CLASSES)
    for name, shares in (("even", np.full(NUM_CLASSES, 1.0)), ("skewed", skewed)):
        for num_examples in (300, 1000, 5000):
            hits = dict.fromkeys(("accuracy", "f1_macro", "recall_macro"), 0)
            for _ in range(num // 2):
                world = World.draw(num_examples, rng, shares / shares.sum())
                first, second = world.train(0.95)[0], world.train(0.95)[0]
                for metric in hits:
                    hits[metric] += compare(world.labels, first, second, metric, alpha=0.02625).low(0.02625) > 0.0
            cells = " | ".join(rate(found, num // 2) for found in hits.values())
            print(f"| {num_examples} | {name} | {shares.min() / shares.sum():.3f} | {cells} |", flush=True)


def tango(num: int, rng: np.random.Generator) -> None:
    """Exact coverage of the lower end over all outcomes, at small numbers."""
    print("\nTango's lower end at one-sided 5%: exact probability that it is above the true difference")
    print("| n | only first | only second | above |")
    for total in (30, 60, 100):
        lows = {(b, c): tango_low(Counts(b, c, total), 0.05) for b in range(total + 1) for c in range(total + 1 - b)}
        pairs = np.array(list(lows))
        counts = np.column_stack([pairs, total - pairs.sum(axis=1)])
        for first, second in ((0.01, 0.06), (0.02, 0.07), (0.05, 0.10), (0.05, 0.05), (0.02, 0.02), (0.10, 0.15)):
            chances = stats.multinomial.pmf(counts, total, [first, second, 1.0 - first - second])
            above = chances[np.array(list(lows.values())) > first - second].sum()
            print(f"| {total} | {first} | {second} | {above:.2%} |", flush=True)


def real(num: int, rng: np.random.Generator) -> None:
    """The same with the answers of real runs: 48 seeds of one configuration, test examples drawn with replacement."""
    if not ANSWERS.exists():
        print(f"\nReal runs: left out, {ANSWERS} is not there; benchmarks/verdict_calibration.py makes it")
        return
    with np.load(ANSWERS) as arrays:
        pools = {name: arrays[f"{name} predictions"].astype(np.int64) for name in ("mnist5k-base", "digits-base")}
        labels = {name: arrays[f"{name.split('-')[0]} labels"].astype(np.int64) for name in pools}
    print(
        f"\nReal runs that differ by the seed, {num:,} test sets: one look, {MAX_LOOKS} looks, and the slices at look 1"
    )
    print("| runs | n | accuracy | its sd | gate is told | look 1 promotes | any look promotes | refused by a slice |")
    for name, answers in pools.items():
        true = (answers == labels[name]).mean(axis=1)
        for num_examples, told in ((1000, float(true.std(ddof=1))), (1000, 0.0), (5000, float(true.std(ddof=1)))):
            first = anywhere = refused = 0
            for _ in range(num):
                rows = rng.integers(len(labels[name]), size=num_examples)
                world = World(np.zeros(num_examples), labels[name][rows], rng)
                seeds = rng.permutation(len(answers))[: MAX_LOOKS + 1]
                champion, *rest = answers[seeds][:, rows]
                moved = [decide(world, one, champion, k, told)[0] == PROMOTED for k, one in enumerate(rest, start=1)]
                first, anywhere = first + moved[0], anywhere + any(moved)
                refused += decide(world, rest[0], champion, 1, told, sliced=True)[0] == REFUSED
            print(
                f"| {name} | {num_examples} | {true.mean():.4f} | {true.std(ddof=1):.4f} | {told:.4f} "
                f"| {rate(first, num)} | {rate(anywhere, num)} | {rate(refused, num)} |",
                flush=True,
            )


QUESTIONS = {
    "real": real,
    "false": false_promotions,
    "sequence": sequences,
    "power": power,
    "slices": slices,
    "metrics": metrics,
    "tango": tango,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=1000, help="replications of a row; some rows take a multiple")
    parser.add_argument("--only", choices=list(QUESTIONS))
    arguments = parser.parse_args()
    for name, ask in QUESTIONS.items():
        if arguments.only in (None, name):
            started = time.perf_counter()
            ask(arguments.num, np.random.default_rng(0))
            print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
