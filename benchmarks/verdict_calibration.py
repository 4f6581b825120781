"""Whether verdicts keep what they promise, on ablations made of the answers of real runs.

    python benchmarks/verdict_calibration.py                 # all four questions; trains the runs first if need be
    python benchmarks/verdict_calibration.py --num 100       # fewer simulated ablations
    python benchmarks/verdict_calibration.py --only power    # false-claims, power, coverage or promises

Real are the answers: many seeds of a few small configurations of the CNN on mnist5k and digits, with a large val split;
kept in the .npz file ``--answers``. An ablation is drawn from them: seeds with replacement for every variant, val
examples with replacement for all. Variants drawn from one configuration do not differ, whatever the draw, and every
``helps`` or ``hurts`` between them is false. Rates come with their Monte-Carlo standard error.
"""

import argparse
import dataclasses
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from assay.ablation.contributions import contributions
from assay.ablation.power import Noise, detectable
from assay.ablation.variance import MeanSquares, mean_squares, variance_of
from assay.ablation.verdicts import Rules, combine, holm, judge
from assay.records.ablation import BASELINE, Contrast, Verdict

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 10
NUM_RUNS = 48
CONFIGS: dict[str, dict[str, object]] = {
    "base": {"num_epochs": 4},
    "dropout": {"num_epochs": 4, "dropout_prob": 0.6},
    "fast": {"num_epochs": 4, "optimizer": {"kind": "adamw", "learning_rate": 0.03}},
    "long": {"num_epochs": 12},
}
DESIGNS = [(num_seeds, num_levels) for num_seeds in (3, 5, 10) for num_levels in (2, 6, 17)]
METHODS = ("chosen", "own seeds", "t over seeds", "t over examples")


@dataclasses.dataclass(frozen=True)
class Runs:
    """What the seeds of one configuration answered: labels ``[example]``, the others ``[run, example]``."""

    labels: np.ndarray
    predictions: np.ndarray
    log_losses: np.ndarray

    def take(self, runs: np.ndarray, examples: np.ndarray) -> "Runs":
        chosen = np.ix_(runs, examples)
        return Runs(self.labels[examples], self.predictions[chosen], self.log_losses[chosen])

    def draw(self, num_seeds: int, examples: np.ndarray, rng: np.random.Generator) -> "Runs":
        return self.take(rng.integers(len(self.predictions), size=num_seeds), examples)

    def spoil(self, is_spoilt: np.ndarray) -> "Runs":
        """Answer some examples wrong, bool ``[example]``, in every run."""
        wrong = (self.labels + 1) % NUM_CLASSES
        return Runs(self.labels, np.where(is_spoilt, wrong, self.predictions).astype(np.uint8), self.log_losses)

    def contributions(self, metric: str) -> np.ndarray:
        pairs = zip(self.predictions, self.log_losses, strict=True)
        return np.array([contributions(metric, self.labels, one, losses, NUM_CLASSES) for one, losses in pairs])

    @property
    def num_examples(self) -> int:
        return len(self.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, default=ROOT / ".assay" / "verdict_calibration.npz")
    parser.add_argument("--num", type=int, default=1000, help="simulated ablations of a design")
    questions = {"false-claims": false_claims, "power": power, "coverage": coverage, "promises": promises}
    parser.add_argument("--only", choices=list(questions))
    arguments = parser.parse_args()
    if not arguments.answers.exists():
        arguments.answers.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(arguments.answers, **train())
    pools = read(arguments.answers)
    describe(pools)
    for name, ask in questions.items():
        if arguments.only in (None, name):
            started = time.perf_counter()
            ask(pools, arguments.num)
            print(f"({name}: {time.perf_counter() - started:.0f} s)\n", flush=True)


def false_claims(pools: dict[str, Runs], num: int) -> None:
    """Print how often equal variants get at least one helps or hurts, by the chosen method and by others."""
    print(f"False claims, f1_macro, alpha 5%: ablations of equal variants with at least one, of {num}")
    print(f"| runs | val | seeds | levels | {' | '.join(METHODS)} | called no difference |")
    print("|---|---|---|---|" + "---|" * (len(METHODS) + 1))
    for name in ("mnist5k-base", "mnist5k-long", "digits-base"):
        for num_seeds, num_levels in DESIGNS:
            print_false_claims([pools[name]] * (num_levels + 1), name, num_seeds, 500, num)
    for num_examples in (200, 2000, 5000):
        print_false_claims([pools["mnist5k-base"]] * 7, "mnist5k-base", 5, num_examples, num)
    # Equal means, unequal noise: what pooling assumes does not hold.
    noisy, quiet = level_means([pools["digits-dropout"], pools["digits-fast"]])
    for num_seeds in (3, 5, 10):
        print_false_claims([quiet] * 6 + [noisy], "one level noisier", num_seeds, 500, num)
        print_false_claims([noisy, *[quiet] * 6], "baseline noisier", num_seeds, 500, num)
    print_bootstrap(pools["mnist5k-base"], num // 4)


def print_false_claims(
    variants: list[Runs] | list[np.ndarray], name: str, num_seeds: int, num_examples: int, num: int
) -> None:
    rng = np.random.default_rng(0)
    contrasts = levels(len(variants) - 1)
    num_false, num_equal = dict.fromkeys(METHODS, 0), 0
    for _ in range(num):
        tables = draw_tables(variants, num_seeds, num_examples, rng, "f1_macro")
        verdicts = judge(contrasts, tables, Rules())
        num_false["chosen"] += any(is_claim(verdict) for verdict in verdicts)
        num_equal += sum(verdict.verdict == "no difference" for verdict in verdicts)
        for method, ps in other_methods(contrasts, tables, "f1_macro").items():
            num_false[method] += min(ps) <= 0.05
    cells = " | ".join(rate(num_false[method], num) for method in METHODS)
    equal = f"{num_equal / num / len(contrasts):.0%}"
    print(f"| {name} | {num_examples} | {num_seeds} | {len(contrasts)} | {cells} | {equal} |", flush=True)


def other_methods(contrasts: list[Contrast], tables: dict[str, np.ndarray], metric: str) -> dict[str, list[float]]:
    """The Holm p of what was not chosen: no pooling, a paired t over seeds, a paired t over examples."""
    ps: dict[str, list[float]] = {method: [] for method in METHODS[1:]}
    for contrast in contrasts:
        table = combine(contrast, tables, metric)
        num_seeds, num_examples = table.shape
        squares = mean_squares(table)
        own = variance_of(squares, num_seeds, num_examples, flip=1.0)
        size = num_seeds * num_examples
        for method, variance, df in (
            ("own seeds", own.of_mean(num_seeds, num_examples), own.df(num_seeds, num_examples)),
            ("t over seeds", squares.seed / size, num_seeds - 1),
            ("t over examples", squares.example / size, num_examples - 1),
        ):
            error = float(variance) ** 0.5
            ps[method].append(2 * stats.t.sf(abs(table.mean()) / error, float(df)) if error else 1.0)
    return {method: holm(values) for method, values in ps.items()}


def print_bootstrap(runs: Runs, num: int, num_resamples: int = 2000) -> None:
    """Print the same for a bootstrap of seeds and examples at once (pigeonhole), percentile interval at 5% / levels."""
    rng = np.random.default_rng(0)
    contrasts = levels(6)
    for num_seeds in (3, 5, 10):
        num_false = 0
        for _ in range(num):
            tables = draw_tables([runs] * 7, num_seeds, 500, rng, "f1_macro")
            seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples) / num_seeds
            examples = rng.multinomial(500, np.full(500, 1 / 500), num_resamples) / 500
            num_false += any(
                bootstrap_excludes_0(combine(contrast, tables, "f1_macro"), seeds, examples, 0.05 / 6)
                for contrast in contrasts
            )
        print(f"two-way bootstrap, mnist5k-base, 500 val, {num_seeds} seeds, 6 levels: {rate(num_false, num)}")


def bootstrap_excludes_0(table: np.ndarray, seeds: np.ndarray, examples: np.ndarray, alpha: float) -> bool:
    means = np.einsum("rn,rn->r", seeds @ table, examples)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return bool(low > 0 or high < 0)


def power(pools: dict[str, Runs], num: int) -> None:
    """Print how often a difference of the announced detectable size is found, one of the levels having it."""
    print(f"Power: one level's accuracy is lower by what is announced as detectable (80%); found, of {num}")
    print("| runs | val | seeds | levels | detectable | found | own seeds | t over seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("mnist5k-base", "mnist5k-long", "digits-base"):
        for num_seeds, num_levels in DESIGNS:
            runs = pools[name]
            effect = detectable(true_noise(runs, 500), num_seeds, num_levels, 0.05, 0.8)
            accuracy = float((runs.predictions == runs.labels).mean())
            rng, found = np.random.default_rng(1), dict.fromkeys(METHODS, 0)
            contrasts = levels(num_levels)
            for _ in range(num):
                spoilt = runs.spoil(rng.random(runs.num_examples) < effect / accuracy)
                variants = [runs] * num_levels + [spoilt]
                tables = draw_tables(variants, num_seeds, 500, rng, "accuracy")
                found["chosen"] += is_claim(judge(contrasts, tables, Rules("accuracy"))[-1])
                for method, ps in other_methods(contrasts, tables, "accuracy").items():
                    found[method] += ps[-1] <= 0.05
            cells = " | ".join(rate(found[method], num) for method in METHODS[:3])
            print(f"| {name} | 500 | {num_seeds} | {num_levels} | {effect:.4f} | {cells} |", flush=True)


def coverage(pools: dict[str, Runs], num: int) -> None:
    """Print how often the 95% interval holds the true difference between configurations that do differ."""
    print(f"Coverage of the 95% interval, f1_macro, true differences between configurations, of {num}")
    print("| compared with mnist5k-base | true | val | seeds | alone | among 3 levels | t over seeds | seed share |")
    print("|---|---|---|---|---|---|---|---|")
    names = ["mnist5k-base", "mnist5k-dropout", "mnist5k-fast", "mnist5k-long"]
    variants = [pools[name] for name in names]
    truth = [float(runs.contributions("f1_macro").mean()) for runs in variants]
    for num_seeds in (3, 5, 10):
        for num_examples in (500, 2000):
            rng = np.random.default_rng(2)
            alone, among, by_seeds, shares = np.zeros((4, 3))
            for _ in range(num):
                tables = draw_tables(variants, num_seeds, num_examples, rng, "f1_macro")
                for index, verdict in enumerate(judge(levels(3), tables, Rules())):
                    true = truth[index + 1] - truth[0]
                    among[index] += verdict.low <= true <= verdict.high
                    shares[index] += verdict.seed_share
                    (single,) = judge([levels(3)[index]], tables, Rules())
                    alone[index] += single.low <= true <= single.high
                    means = combine(levels(3)[index], tables, "f1_macro").mean(axis=1)
                    low, high = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
                    by_seeds[index] += low <= true <= high
            for index, name in enumerate(names[1:]):
                rates = " | ".join(rate(counts[index], num) for counts in (alone, among, by_seeds))
                cells = f"{rates} | {shares[index] / num:.2f}"
                true = truth[index + 1] - truth[0]
                print(f"| {name} | {true:+.4f} | {num_examples} | {num_seeds} | {cells} |", flush=True)


def promises(pools: dict[str, Runs], num: int, most_seeds: int = 100, most_examples: int = 20_000) -> None:
    """Print how many of the contrasts told "N seeds (or examples) would probably decide" are decided there."""
    print("Promises: 6 levels, accuracy lower by 0 to twice the detectable difference; decided at the promised number")
    print("| runs | val | seeds | margin | promised seeds | decided | promised examples | decided |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("mnist5k-base", "mnist5k-long"):
        for margin in (0.005, 0.02):
            for num_seeds in (3, 5, 10):
                counts = np.zeros(4, np.int64)
                rng = np.random.default_rng(3)
                largest = 2 * detectable(true_noise(pools[name], 500), num_seeds, 6, 0.05, 0.8)
                for _ in range(num // 5):
                    counts += keep_promises(pools[name], num_seeds, largest, margin, most_seeds, most_examples, rng)
                seeds, examples = rate(counts[1], counts[0]), rate(counts[3], counts[2])
                row = f"| {name} | 500 | {num_seeds} | {margin:g} | {counts[0]} | {seeds} | {counts[2]} | {examples} |"
                print(row, flush=True)


def keep_promises(
    runs: Runs,
    num_seeds: int,
    largest: float,
    margin: float,
    most_seeds: int,
    most_examples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Count promises of seeds, those kept, promises of examples, those kept; one ablation."""
    rules = Rules("accuracy", margin=margin)
    shares = [0.0, *rng.uniform(0.0, largest, 6)]
    variants = [runs.spoil(rng.random(runs.num_examples) < share) for share in shares]
    examples = rng.integers(runs.num_examples, size=most_examples)
    seeds = rng.integers(len(runs.predictions), size=(7, most_seeds))

    def ablation(num_seeds: int, num_examples: int) -> tuple[Verdict, ...]:
        pairs = zip(variants, seeds, strict=True)
        drawn = [one.take(chosen[:num_seeds], examples[:num_examples]) for one, chosen in pairs]
        return judge(levels(6), name_tables([one.contributions("accuracy") for one in drawn]), rules)

    counts = np.zeros(4, np.int64)
    for index, verdict in enumerate(ablation(num_seeds, 500)):
        if verdict.seeds_needed is not None and verdict.seeds_needed <= most_seeds:
            counts += [1, ablation(verdict.seeds_needed, 500)[index].verdict != "undetermined", 0, 0]
        elif verdict.examples_needed is not None and verdict.examples_needed <= most_examples:
            besides = re.search(r"with ([\d,]+) seeds would", verdict.reason)
            then_seeds = int(besides[1].replace(",", "")) if besides else num_seeds
            if then_seeds <= most_seeds:
                then = ablation(then_seeds, verdict.examples_needed)[index]
                counts += [0, 0, 1, then.verdict != "undetermined"]
    return counts


def levels(num_levels: int) -> list[Contrast]:
    return [
        Contrast(f"level {index}", "level", ("factor",), {f"level {index}": 1.0, BASELINE: -1.0})
        for index in range(1, num_levels + 1)
    ]


def draw_tables(
    variants: list[Runs] | list[np.ndarray], num_seeds: int, num_examples: int, rng: np.random.Generator, metric: str
) -> dict[str, np.ndarray]:
    """Draw an ablation: variant name -> contributions ``[seed, example]``, the baseline first."""
    first = variants[0]
    size = first.num_examples if isinstance(first, Runs) else first.shape[1]
    examples = rng.integers(size, size=num_examples)
    tables = []
    for variant in variants:
        if isinstance(variant, Runs):
            tables.append(variant.draw(num_seeds, examples, rng).contributions(metric))
        else:
            tables.append(variant[rng.integers(len(variant), size=num_seeds)][:, examples])
    return name_tables(tables)


def name_tables(tables: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {BASELINE if index == 0 else f"level {index}": table for index, table in enumerate(tables)}


def level_means(variants: list[Runs]) -> list[np.ndarray]:
    """Contributions ``[run, example]`` of each, shifted so that all have the first one's mean."""
    tables = [runs.contributions("f1_macro") for runs in variants]
    return [table - table.mean() + tables[0].mean() for table in tables]


def true_noise(runs: Runs, num_examples: int) -> Noise:
    """The noise of a difference in accuracy where these runs and examples are all there are, drawn with replacement."""
    table = runs.contributions("accuracy")
    of_run = float(table.mean(axis=1).var())
    return Noise(2 * of_run, 2 * (float(table.var(axis=0).mean()) - of_run), num_examples)


def is_claim(verdict: Verdict) -> bool:
    return verdict.verdict in ("helps", "hurts")


def rate(count: float, total: float) -> str:
    if not total:
        return "none"
    share = count / total
    return f"{share:.1%} ± {100 * (share * (1 - share) / total) ** 0.5:.1f}"


def describe(pools: dict[str, Runs]) -> None:
    print("| runs | n | val | accuracy | sd over seeds | sd if answers were independent | seed / rest at 500 val |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in pools.items():
        table = runs.contributions("accuracy")
        squares: MeanSquares = mean_squares(table)
        num_runs, num_examples = table.shape
        alone = (squares.rest / num_examples) ** 0.5
        ratio = 1 + 500 / num_examples * max(0.0, squares.seed / squares.rest - 1)
        print(
            f"| {name} | {num_runs} | {num_examples} | {table.mean():.4f} | {table.mean(axis=1).std(ddof=1):.4f} | "
            f"{alone:.4f} | {ratio:.1f} |"
        )
    print(flush=True)


def read(path: Path) -> dict[str, Runs]:
    with np.load(path) as arrays:
        names = [name.removesuffix(" predictions") for name in arrays.files if name.endswith(" predictions")]
        return {
            name: Runs(arrays[f"{name.split('-')[0]} labels"], arrays[f"{name} predictions"], arrays[f"{name} losses"])
            for name in names
        }


def train() -> dict[str, np.ndarray]:
    """Train every configuration with every seed on one thread; answers by name."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from train_speed import digits  # the folder of this file is on the path

    from assay.data.loading import load_dataset
    from assay.data.versioning import verify
    from assay.project import Project

    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        project = Project(ROOT, folder / "home")
        for data, dataset, num_train, num_val in (
            ("mnist5k", load_dataset(verify(project), folder / "cache"), 1500, 3000),
            ("digits", digits(folder)[0], 597, 1000),
        ):
            given = np.full(len(dataset.labels), 2, np.int8)
            order = np.random.default_rng(0).permutation(len(given))
            given[order[:num_train]], given[order[num_train : num_train + num_val]] = 0, 1
            for name in CONFIGS:
                answers = train_config(dataclasses.replace(dataset, given_split=given), name, folder / data / name)
                arrays[f"{data} labels"] = answers.labels
                arrays[f"{data}-{name} predictions"] = answers.predictions
                arrays[f"{data}-{name} losses"] = answers.log_losses
                print(f"{data}-{name}: accuracy {(answers.predictions == answers.labels).mean():.4f}", flush=True)
    return arrays


def train_config(dataset: object, name: str, folder: Path) -> Runs:
    from assay.data.splits import load_split, make_splits
    from assay.devices import resolve
    from assay.evaluation.log_loss import true_class_loss
    from assay.evaluation.predictions import predict_probabilities
    from assay.models.files import load_model
    from assay.params import CnnParams, DeviceParams, SplitParams, TrainParams
    from assay.training.fit import fit

    device = DeviceParams(num_threads=1)
    splits = make_splits(dataset, SplitParams(), folder / "splits")
    rows = load_split(splits).val
    labels = np.asarray(dataset.labels[rows])
    predictions, log_losses = [], []
    for seed in range(NUM_RUNS):
        params = TrainParams.model_validate({"batch_size": 32, "early_stopping": None, "seed": seed, **CONFIGS[name]})
        result = fit(
            dataset, splits, CnnParams(channels=(8, 16), hidden_units=32), params, device, folder / f"seed-{seed}"
        )
        module, spec = load_model(Path(result.model_dir))
        probabilities = predict_probabilities(module, spec, dataset, rows, resolve(device))
        predictions.append(probabilities.argmax(axis=1).astype(np.uint8))
        log_losses.append(true_class_loss(labels, probabilities).astype(np.float16))
    return Runs(labels.astype(np.uint8), np.array(predictions), np.array(log_losses))


if __name__ == "__main__":
    main()
