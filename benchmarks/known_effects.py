"""Do the verdicts find effects that are there? One planted, one published; on real training.

    python benchmarks/known_effects.py

Planted: 300 training images of mnist5k, 30% of their labels replaced by a random other class, val as it is. A network
that can learn the noise by heart does, so what holds it back has to help.

Published: Srivastava et al., "Dropout", JMLR 15, 2014, section 7.4 and figure 10: on MNIST dropout does not help with
100 or 500 training examples, and helps with more; the gain grows to a point and declines again. There it is a fully
connected network of three wide layers; here it is this project's CNN with dropout before its output layer.

Each level against no dropout and no L2, macro F1 on 500 val examples, judged as `assay ablate` judges. Trials run in
two processes of one thread.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from assay.ablation.contributions import contributions
from assay.ablation.verdicts import Rules, judge
from assay.data.loading import Dataset, load_dataset
from assay.data.splits import SplitIndices, load_split, make_splits, split_digest
from assay.data.versioning import materialize
from assay.devices import resolve
from assay.evaluation.predictions import predict_probabilities
from assay.models.files import load_model
from assay.params import AdamWParams, CnnParams, DeviceParams, SplitParams, TrainParams
from assay.project import find_project
from assay.records import BASELINE, Contrast, Splits, Verdict
from assay.training.fit import fit

DEVICE = DeviceParams(num_threads=1)
PLANTED = {
    "dropout_prob=0.5": {"dropout_prob": 0.5},
    "dropout_prob=0.8": {"dropout_prob": 0.8},
    "l2=0.01": {"l2": 0.01},
}
PUBLISHED = {"dropout_prob=0.5": {"dropout_prob": 0.5}}
SIZES = {100: 60, 500: 40, 1000: 30, 3500: 12}
"""Training examples -> epochs."""


def data(num_train: int, noise: float, folder: Path) -> tuple[Dataset, Splits]:
    """Take the first `num_train` training images of mnist5k, balanced over the classes, and spoil some labels."""
    project = find_project(Path(__file__).resolve().parent)
    dataset = load_dataset(materialize(project), project.cache_dir)
    rows = load_split(make_splits(dataset, SplitParams(), folder))
    order = np.random.default_rng(0).permutation(rows.train)
    by_class = [order[dataset.labels[order] == label] for label in range(10)]
    shortest = min(map(len, by_class))
    mixed = np.concatenate([np.stack([some[:shortest] for some in by_class], axis=1).ravel(), rows.train])
    train = np.sort(mixed[np.sort(np.unique(mixed, return_index=True)[1])][:num_train])
    labels = np.array(dataset.labels)
    chance = np.random.default_rng(1)
    wrong = train[chance.random(len(train)) < noise]
    labels[wrong] = (labels[wrong] + chance.integers(1, 10, len(wrong))) % 10
    indices = SplitIndices(train, rows.val, rows.test)
    path = folder / "splits.npz"
    np.savez(path, train=train, val=rows.val, test=rows.test)
    splits = Splits(str(path), split_digest(indices), dataset.ref.md5, len(train), len(rows.val), len(rows.test))
    return replace(dataset, labels=labels), splits


def answers(task: tuple[dict[str, float], int], num_train: int, num_epochs: int, noise: float) -> list[float]:
    """Train one level with one seed; return its contributions to macro F1 on val."""
    changes, seed = task
    with tempfile.TemporaryDirectory() as scratch:
        dataset, splits = data(num_train, noise, Path(scratch))
        params = TrainParams(
            seed=seed,
            num_epochs=num_epochs,
            early_stopping=None,
            dropout_prob=0.0,
            optimizer=AdamWParams(weight_decay=0.0),
        ).model_copy(update=changes)
        result = fit(dataset, splits, CnnParams(), params, DEVICE, Path(scratch) / "run", every_epoch_saved=False)
        module, spec = load_model(Path(result.model_dir))
        val = load_split(splits).val
        predictions = predict_probabilities(module, spec, dataset, val, resolve(DEVICE)).argmax(axis=1)
    found = contributions("f1_macro", np.asarray(dataset.labels[val]), predictions, np.zeros(len(val)), 10)
    return [float(value) for value in found]


def verdicts_of(
    pool: ProcessPoolExecutor,
    levels: dict[str, dict[str, float]],
    num_seeds: int,
    num_train: int,
    num_epochs: int,
    noise: float,
) -> tuple[float, tuple[Verdict, ...]]:
    """Train all levels and the baseline with every seed; return the baseline's mean and the verdicts."""
    tasks = [(changes, seed) for changes in ({}, *levels.values()) for seed in range(num_seeds)]
    train = partial(answers, num_train=num_train, num_epochs=num_epochs, noise=noise)
    found = np.array(list(pool.map(train, tasks))).reshape(len(levels) + 1, num_seeds, -1)
    tables = dict(zip((BASELINE, *levels), found, strict=True))
    contrasts = [Contrast(name, "level", ("train",), {name: 1.0, BASELINE: -1.0}) for name in levels]
    return float(tables[BASELINE].mean()), judge(contrasts, tables, Rules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="also write the verdicts here, as JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cases = [("planted: 300 images, 30% wrong labels", PLANTED, 300, 60, 0.3)]
    cases += [(f"published: {size} images", PUBLISHED, size, epochs, 0.0) for size, epochs in SIZES.items()]
    kept = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for title, levels, num_train, num_epochs, noise in cases:
            baseline, verdicts = verdicts_of(pool, levels, arguments.seeds, num_train, num_epochs, noise)
            print(f"{title}, {num_epochs} epochs, {arguments.seeds} seeds: macro F1 without any {baseline:.4f}")
            for verdict in verdicts:
                print(
                    f"  {verdict.name:<18}{verdict.difference:+.4f} ({verdict.low:+.4f} to {verdict.high:+.4f})  "
                    f"Holm p {verdict.p_holm:.4f}  {verdict.verdict}",
                    flush=True,
                )
            kept[title] = [verdict.to_json() for verdict in verdicts]
    if arguments.out:
        arguments.out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
