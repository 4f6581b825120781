"""How often an ablation that stops levels early ends with the best cell of one that trains all of them to the end.

    python benchmarks/pruning.py                    # both grids; trains them first if need be: an hour on two cores
    python benchmarks/pruning.py --only levels
    python benchmarks/pruning.py --seeds 3 --epochs 3 --answers /tmp/try   # does it work at all?

Each grid is trained with many seeds and asked on val after every epoch; scores are kept in the folder ``--answers``.
An ablation is three of those seeds. The code that ablations use decides on its scores who is stopped when. Of what is
left the cell with the best mean at the end wins, as in the whole grid:

- agree: how often it is the cell that wins the whole grid with these seeds, or one with the same mean.
- behind: how far its mean is behind that cell's, on average.
- in truth: the same with the means over all seeds: what choosing it instead costs with seeds that nobody has seen.

The last line of a grid is not about pruning: two whole grids with three other seeds each, and whether they agree.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from assay.ablation.contributions import contributions
from assay.ablation.design import make_design
from assay.ablation.halving import go_on, look_epochs
from assay.ablation.outcomes import read_outcomes
from assay.ablation.trial import run_trial
from assay.ablation.trial_job import TrialJob
from assay.data.loading import load_dataset
from assay.data.splits import make_splits
from assay.data.versioning import materialize
from assay.params import load_params
from assay.project import find_project

ROOT = Path(__file__).resolve().parents[1]
NUM_SEEDS = 3
NUM_ABLATIONS = 4000


@dataclass(frozen=True)
class Grid:
    """What is trained.

    Attributes:
        overrides: Params that are not the project's.
        num_seeds: Seeds.
    """

    overrides: tuple[str, ...]
    num_seeds: int


_PLAIN = ("train.early_stopping=null", "ablation.baseline={}")
GRIDS = {
    "factorial": Grid(
        (
            *_PLAIN,
            "train.augmentation={kind: none}",
            "train.num_epochs=9",
            "ablation.mode=factorial",
            "ablation.factors={train.dropout_prob: [0.0, 0.5], train.l2: [1.0e-4, 1.0e-2], train.l1: [1.0e-5]}",
        ),
        30,
    ),
    "levels": Grid(
        (
            *_PLAIN,
            "train.num_epochs=15",
            "ablation.factors={train.dropout_prob: [0.0, 0.1, 0.5, 0.7], train.l1: [1.0e-5, 1.0e-4], "
            "train.l2: [1.0e-4, 1.0e-3, 1.0e-2], train.label_smoothing: [0.1, 0.2], model.hidden_units: [32, 256], "
            "model.channels: [[16, 32]], model.batch_norm: [true], train.augmentation: [{kind: none}], "
            "train.optimizer.weight_decay: [0.1], train.optimizer.learning_rate: [0.001, 0.004]}",
        ),
        12,
    ),
}


@dataclass(frozen=True)
class Rule:
    """Who goes on when: one in `reduction` after each of these shares of the epochs."""

    shares: tuple[float, ...]
    reduction: int

    def __str__(self) -> str:
        return f"{', '.join(f'{share:g}' for share in self.shares)}; one in {self.reduction}"


RULES = [
    Rule((0.3,), 3),
    Rule((0.3,), 2),
    Rule((0.2, 0.3), 2),
    Rule((0.2,), 3),
    Rule((0.1, 0.2), 2),
    Rule((0.2, 0.4), 2),
    Rule((0.3, 0.5), 2),
    Rule((0.3, 0.6), 2),
    Rule((0.3, 0.4, 0.5, 0.65, 0.75), 2),
    Rule((0.1, 0.3), 3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(GRIDS), nargs="+", default=list(GRIDS))
    parser.add_argument("--answers", type=Path, default=ROOT / ".assay" / "pruning", help="folder of the scores")
    parser.add_argument("--seeds", type=int, help="seeds of each grid")
    parser.add_argument("--epochs", type=int, help="epochs of each training")
    arguments = parser.parse_args()
    arguments.answers.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        path = arguments.answers / f"{name}.npz"
        if not path.exists():
            extra = [f"train.num_epochs={arguments.epochs}"] if arguments.epochs else []
            np.savez(path, scores=train(GRIDS[name], arguments.seeds or GRIDS[name].num_seeds, extra))
        with np.load(path) as arrays:
            report(name, arrays["scores"])


def train(grid: Grid, num_seeds: int, extra: Sequence[str] = ()) -> np.ndarray:
    """Train a grid; return the macro F1 on val, float64 ``[variant, seed, epoch]``, the baseline first."""
    project = find_project(ROOT)
    overrides = [*grid.overrides, f"ablation.num_seeds={num_seeds}", *extra]
    params = load_params(project.params_file, overrides).of_run()
    design = make_design(params)
    data = materialize(project)
    dataset = load_dataset(data, project.cache_dir)
    num_epochs = design.baseline.train.num_epochs
    with tempfile.TemporaryDirectory() as folder:
        splits = make_splits(dataset, params.split, Path(folder))
        jobs = []
        for variant in design.variants:
            for seed in design.seeds:
                values = design.params_of(variant, seed)
                device = values.device.model_copy(update={"num_threads": 1})
                jobs.append(
                    TrialJob(
                        variant=variant.name,
                        seed=seed,
                        key=f"{variant.name} {seed}",
                        params=values.model_copy(update={"device": device}).model_dump(mode="json"),
                        data=data,
                        splits=splits,
                        cache_dir=str(project.cache_dir),
                        run_dir=str(Path(folder) / str(len(jobs))),
                        looks=tuple(range(1, num_epochs + 1)),
                    )
                )
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
            scores = list(pool.map(scores_of, jobs))
    return np.array(scores).reshape(len(design.variants), num_seeds, num_epochs)


def scores_of(job: TrialJob) -> list[float]:
    """Train one trial; return its macro F1 after each epoch."""
    outcomes = read_outcomes(Path(run_trial(job).outcomes_path))
    num_classes = len(job.data.class_names)
    return [
        float(contributions("f1_macro", outcomes.labels, *outcomes.at(epoch), num_classes).mean())
        for epoch in job.looks
    ]


def report(name: str, scores: np.ndarray) -> None:
    """Print what rules would have come to, on scores ``[variant, seed, epoch]``."""
    num_variants, num_seeds, num_epochs = scores.shape
    rng = np.random.default_rng(0)
    ablations = [rng.choice(num_seeds, NUM_SEEDS, replace=False) for _ in range(NUM_ABLATIONS)]
    whole = num_variants * num_epochs * NUM_SEEDS
    print(f"\n{name}: {num_variants} variants, {num_epochs} epochs; {NUM_SEEDS} of {num_seeds} seeds, {whole} epochs")
    correlations = [
        rank_correlation(scores[:, :, epoch], scores[:, :, -1], ablations[:400]) for epoch in range(num_epochs)
    ]
    print("ranks after each epoch with those at the end:", " ".join(f"{value:.2f}" for value in correlations))
    truth = scores[:, :, -1].mean(1)
    print("| looks after | epochs | agree | behind | in truth |\n|---|---|---|---|---|")
    for rule in RULES:
        found = [outcome(rule, scores[:, seeds], truth) for seeds in ablations]
        epochs, agree, behind, in_truth = np.mean(found, axis=0)
        print(f"| {rule} | {epochs:.0f} | {agree:.1%} | {behind:.5f} | {in_truth:+.5f} |", flush=True)
    if num_seeds < 2 * NUM_SEEDS:
        return
    agree = np.mean([agrees_with_itself(scores[:, :, -1], rng) for _ in range(NUM_ABLATIONS)])
    print(f"two whole grids with other seeds: {agree:.1%} agree")


def rank_correlation(then: np.ndarray, at_the_end: np.ndarray, ablations: Iterable[np.ndarray]) -> float:
    """Spearman's correlation of the variants' means ``[variant, seed]``, averaged over ablations."""
    return float(
        np.mean([np.corrcoef(ranks(then[:, s].mean(1)), ranks(at_the_end[:, s].mean(1)))[0, 1] for s in ablations])
    )


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


def outcome(rule: Rule, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    """Prune one ablation; return its epochs, whether it agrees, and how far behind it is, by its seeds and in truth."""
    num_variants, num_seeds, num_epochs = scores.shape
    alive, trained, before = [str(number) for number in range(1, num_variants)], num_epochs, 0
    for epoch in look_epochs(num_epochs, rule.shares, rule.reduction, num_variants - 1):
        trained += len(alive) * (epoch - before)
        before = epoch
        if epoch < num_epochs:
            means = {name: float(scores[int(name), :, epoch - 1].mean()) for name in alive}
            alive = list(go_on(means, rule.reduction))
    final = scores[:, :, -1].mean(1).round(9)
    best = int(final.argmax())
    winner = max([0, *map(int, alive)], key=lambda number: final[number])
    behind = final[best] - final[winner]
    return trained * num_seeds, float(behind == 0), behind, truth[best] - truth[winner]


def agrees_with_itself(final: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether two whole grids with other seeds have the same winner, on scores ``[variant, seed]``."""
    order = rng.permutation(final.shape[1])
    halves = order[:NUM_SEEDS], order[NUM_SEEDS : 2 * NUM_SEEDS]
    first, second = (int(final[:, seeds].mean(1).argmax()) for seeds in halves)
    return first == second


if __name__ == "__main__":
    main()
