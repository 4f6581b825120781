"""Seconds that a whole ablation grid takes: the loop that people write, Optuna, Ray Tune and `assay ablate`.

    python benchmarks/ablation_speed.py --out ablation_speed.json
    python benchmarks/ablation_speed.py --only loop ray --cells 2 --epochs 1 --out /tmp/try.json  # does it work at all?

The grid is dropout {0, 0.25, 0.5} x L2 {0, 1e-4, 1e-2} x L1 {0, 1e-5}, 18 cells with 3 seeds each, of the classic CNN
on mnist5k (3,500 train, 500 val: the project's own data and splits). The competitors take turns, each in a process of
its own; the clock runs from the start of that process, imports included, until it says which cell won by its mean val
macro F1 over the seeds. All but Assay train with the same function, `train`, on arrays that are decoded beforehand:

- loop: one training after another with torch's default threads.
- optuna: GridSampler, no pruner, and two processes of one thread each on one JournalStorage.
- optuna-threads: the same with n_jobs=2, which is two threads of one process, each with torch's default threads. They
  share torch's random numbers, so its F1 is not the same twice. The quicker of the two stands for Optuna.
- ray: Ray Tune, grid_search, two CPUs, one CPU and one thread a trial, processes reused from trial to trial.
- assay, assay-full: `assay ablate` with and without pruning, in a project that was used before; all of the command.
- ray-asha: the same under ASHAScheduler (grace period 1, reduction factor 3).

GridSampler may train the last one twice; the first counts. Under ASHA a cell's mean is of the seeds that were trained
to the end; cells with more of them go first.
Needs the extra: pip install -c constraints.txt -e '.[benchmarks]'.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import multiprocessing
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NUM_SEEDS = 3
BATCH_SIZE = 64
SETTLE_SECONDS = 5.0
"""After a command Prefect's private server writes what it still holds and ends; that is no part of the next one."""
LEARNING_RATE = 0.002
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux, too: without it 127.0.0.1 becomes the machine's address
}
ASSAY = ("assay", "assay-full")
DEFAULT = ("loop", "optuna", "optuna-threads", "ray", "ray-asha", *ASSAY)


@dataclass(frozen=True)
class Cell:
    """One combination of the grid's factors."""

    dropout_prob: float
    l2: float
    l1: float

    def __str__(self) -> str:
        return f"dropout={self.dropout_prob:g} l2={self.l2:g} l1={self.l1:g}"


GRID = [Cell(*values) for values in itertools.product((0.0, 0.25, 0.5), (0.0, 1e-4, 1e-2), (0.0, 1e-5))]


@dataclass(frozen=True)
class Job:
    """What a competitor is asked to do.

    Attributes:
        arrays: `.npz` file of train_images, train_labels, val_images and val_labels, in a folder of this job alone.
        num_cells: How many cells of `GRID`, from the first.
        num_epochs: Epochs of each training.
    """

    arrays: str
    num_cells: int
    num_epochs: int


@dataclass(frozen=True)
class Trained:
    """One training: its cell (a number in `GRID`) and seed, the epochs that it got and the last val macro F1."""

    cell: int
    seed: int
    num_epochs: int
    f1: float


class PlainCnn(nn.Module):
    """The classic CNN as a tutorial writes it."""

    def __init__(self, dropout_prob: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 7 * 7, 128)
        self.dropout = nn.Dropout(dropout_prob)
        self.output = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        return self.output(self.dropout(F.relu(self.hidden(features.flatten(1)))))


def train(arrays: dict[str, torch.Tensor], cell: Cell, seed: int, num_epochs: int) -> Iterator[float]:
    """Train as people write it; yield the val macro F1 at the end of each epoch."""
    torch.manual_seed(seed)
    train_set = TensorDataset(arrays["train_images"], arrays["train_labels"])
    loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)
    model = PlainCnn(cell.dropout_prob)
    weights = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    num_steps = num_epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps, cycle_momentum=False)
    for _ in range(num_epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            if cell.l1 > 0:
                loss = loss + cell.l1 * sum(weight.abs().sum() for weight in weights)
            if cell.l2 > 0:
                loss = loss + cell.l2 / 2 * sum(weight.square().sum() for weight in weights)
            loss.backward()
            optimizer.step()
            scheduler.step()
            loss.item()
        yield macro_f1(model, arrays["val_images"], arrays["val_labels"])


def macro_f1(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        predicted = model(images).argmax(1)
    hits = torch.bincount(labels[predicted == labels], minlength=10)
    return float((2 * hits / (torch.bincount(labels, minlength=10) + torch.bincount(predicted, minlength=10))).mean())


def load_arrays(path: str) -> dict[str, torch.Tensor]:
    """Load NCHW float32 images, standardised by the mean and deviation of train, and labels."""
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    images = {name: arrays[name].permute(0, 3, 1, 2).float() for name in ("train_images", "val_images")}
    mean, std = images["train_images"].mean(), images["train_images"].std()
    return arrays | {name: ((pixels - mean) / std).contiguous() for name, pixels in images.items()}


def train_all(arrays: dict[str, torch.Tensor], number: int, seed: int, num_epochs: int) -> Trained:
    scores = list(train(arrays, GRID[number], seed, num_epochs))
    return Trained(number, seed, len(scores), scores[-1])


def loop(job: Job) -> list[Trained]:
    arrays = load_arrays(job.arrays)
    pairs = itertools.product(range(job.num_cells), range(NUM_SEEDS))
    return [train_all(arrays, number, seed, job.num_epochs) for number, seed in pairs]


def optuna_threads(job: Job) -> list[Trained]:
    import optuna

    study = optuna.create_study(direction="maximize", sampler=grid_sampler(job), pruner=optuna.pruners.NopPruner())
    optimize(study, job, n_jobs=2)
    return trained_by(study)


def optuna_processes(job: Job) -> list[Trained]:
    import optuna

    journal = str(Path(job.arrays).with_name("journal.log"))
    study = optuna.create_study(direction="maximize", study_name="grid", storage=storage_in(journal))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=optuna_worker, args=(job, journal)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return trained_by(study)


def optuna_worker(job: Job, journal: str) -> None:
    import optuna

    torch.set_num_threads(1)
    pruner = optuna.pruners.NopPruner()
    study = optuna.load_study(study_name="grid", storage=storage_in(journal), sampler=grid_sampler(job), pruner=pruner)
    optimize(study, job, n_jobs=1)


def storage_in(journal: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(journal))


def grid_sampler(job: Job) -> Any:
    import optuna

    return optuna.samplers.GridSampler({"cell": list(range(job.num_cells)), "seed": list(range(NUM_SEEDS))}, seed=0)


def optimize(study: Any, job: Job, n_jobs: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arrays = load_arrays(job.arrays)

    def objective(trial: Any) -> float:
        number = trial.suggest_categorical("cell", list(range(job.num_cells)))
        seed = trial.suggest_categorical("seed", list(range(NUM_SEEDS)))
        done = train_all(arrays, number, seed, job.num_epochs)
        trial.set_user_attr("trained", asdict(done))
        return done.f1

    study.optimize(objective, n_jobs=n_jobs)


def trained_by(study: Any) -> list[Trained]:
    return [Trained(**trial.user_attrs["trained"]) for trial in study.trials if "trained" in trial.user_attrs]


def ray_grid(job: Job) -> list[Trained]:
    return ray_tune(job, scheduler=None)


def ray_asha(job: Job) -> list[Trained]:
    from ray.tune.schedulers import ASHAScheduler

    return ray_tune(job, ASHAScheduler(max_t=job.num_epochs, grace_period=1, reduction_factor=3))


def ray_tune(job: Job, scheduler: Any) -> list[Trained]:
    import ray
    from ray import tune

    folder = tempfile.mkdtemp(prefix="ray-", dir=Path(job.arrays).parent)
    ray.init(  # ends with this process, after the clock has stopped
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    trainable = tune.with_parameters(ray_trial, arrays=load_arrays(job.arrays), num_epochs=job.num_epochs)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "cell": tune.grid_search(list(range(job.num_cells))),
            "seed": tune.grid_search(list(range(NUM_SEEDS))),
        },
        tune_config=tune.TuneConfig(metric="f1", mode="max", scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(Path(folder) / "results"), verbose=0),
    )
    return [trained_by_ray(result) for result in tuner.fit()]


def ray_trial(config: dict[str, int], arrays: dict[str, torch.Tensor], num_epochs: int) -> None:
    from ray import tune

    torch.set_num_threads(1)
    for f1 in train(arrays, GRID[config["cell"]], config["seed"], num_epochs):
        tune.report({"f1": f1})


def trained_by_ray(result: Any) -> Trained:
    if result.error:
        raise result.error
    metrics = result.metrics
    return Trained(result.config["cell"], result.config["seed"], metrics["training_iteration"], metrics["f1"])


COMPETITORS: dict[str, Callable[[Job], list[Trained]]] = {
    "loop": loop,
    "optuna": optuna_processes,
    "optuna-threads": optuna_threads,
    "ray": ray_grid,
    "ray-asha": ray_asha,
}


def assay(name: str, job: Job) -> dict[str, Any]:
    """Run `assay ablate` on the same grid in a copy of the project; return what `measure` does.

    The copy was used before, so that its databases are there; nothing of the grid is done. The clock stops when the
    process has ended: trials, verdicts, figures and report are in MLflow then.
    """
    factors = {"train.dropout_prob": [0.0, 0.5], "train.l2": [1e-4, 1e-2], "train.l1": [1e-5]}
    cells = f"ablation.factors={json.dumps(factors)}"
    if job.num_cells < len(GRID):
        raise SystemExit("assay: trains the whole grid or nothing; leave --cells out")
    common = ("train.augmentation.kind=none", "train.early_stopping=null", "ablation.mode=factorial")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        copy_project(root)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ASSAY_"))}
        command = [sys.executable, "-m", "assay.cli.main", "ablate", "--json", "--yes", *common]
        warm = [*command, "ablation.baseline={}", "ablation.num_seeds=1", "train.num_epochs=1", "train.seed=99"]
        warm.append("ablation.factors={train.l2: [0.5]}")
        subprocess.run(warm, cwd=root, env=environment, check=True, capture_output=True)
        time.sleep(SETTLE_SECONDS)
        grid = [*command, cells, "ablation.baseline={}", f"ablation.num_seeds={NUM_SEEDS}"]
        grid += [f"train.num_epochs={job.num_epochs}", "--prune" if name == "assay" else "--no-prune"]
        load, begun = os.getloadavg()[0], time.perf_counter()
        done = subprocess.run(grid, cwd=root, env=environment, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
    return {"name": name, "seconds": seconds, "load_before": load} | of_assay(json.loads(done.stdout), job)


def copy_project(root: Path) -> None:
    """Copy what this project is made of, its data included."""
    source = Path(__file__).resolve().parents[1]
    root.mkdir()
    for name in ("params.yaml", "constraints.txt", "data.dvc"):
        shutil.copy(source / name, root)
    for name in ("flows", "data", ".dvc"):
        shutil.copytree(source / name, root / name, symlinks=True)


def of_assay(record: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return the summary of an ablation's record."""
    names = {summary["variant"]["name"]: cell_of(summary["variant"]["changes"]) for summary in record["summaries"]}
    trained = [
        Trained(names[trial["variant"]], trial["seed"], trial["num_epochs"], trial["metrics"]["f1_macro"])
        for trial in record["trials"]
    ]
    words = {str(GRID[names[v["name"]]]): v["verdict"] for v in record["verdicts"] if v["name"] in names}
    return summary(trained, job) | {"verdicts": words, "inner_seconds": record["seconds"]}


def cell_of(changes: dict[str, str]) -> int:
    """Return the number of a variant's cell in the grid."""
    cell = Cell(
        float(changes.get("train.dropout_prob", 0.25)),
        float(changes.get("train.l2", 0.0)),
        float(changes.get("train.l1", 0.0)),
    )
    return GRID.index(cell)


def serve(name: str, job: Job) -> None:
    """Do one competitor's work in this process and print what it came to."""
    print(json.dumps(summary(COMPETITORS[name](job), job)), flush=True)


def summary(trained: Sequence[Trained], job: Job) -> dict[str, Any]:
    """Return the mean F1 of each cell over the seeds that were trained to the end, and which cell won."""
    finished: dict[int, list[float]] = {number: [] for number in range(job.num_cells)}
    for number, seed in itertools.product(range(job.num_cells), range(NUM_SEEDS)):
        scores = [one.f1 for one in trained if (one.cell, one.seed, one.num_epochs) == (number, seed, job.num_epochs)]
        finished[number] += scores[:1]
    means = {number: statistics.mean(scores) for number, scores in finished.items() if scores}
    winner = max(means, key=lambda number: (len(finished[number]), means[number]))
    return {
        "epochs_trained": sum(one.num_epochs for one in trained),
        "num_trainings": len(trained),
        "winner": str(GRID[winner]),
        "winner_f1": means[winner],
        "cells": {str(GRID[number]): {"mean_f1": means.get(number), "f1": finished[number]} for number in finished},
        "trainings": [asdict(one) for one in trained],
    }


def measure(name: str, job: Job) -> dict[str, Any]:
    """Run one competitor in a process of its own; return its summary and the seconds until it was known."""
    if name.startswith("assay"):
        return assay(name, job)
    command = [sys.executable, __file__, "--serve", name, json.dumps(asdict(job))]
    environment = os.environ | RAY_SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answer = next((line for line in process.stdout if line.startswith('{"epochs_trained"')), None)
        seconds = time.perf_counter() - begun
        process.communicate()
    if answer is None:
        raise SystemExit(f"{name}: ended with exit code {process.returncode} and no result")
    return {"name": name, "seconds": seconds, "load_before": load} | json.loads(answer)


def export_arrays(path: Path) -> None:
    """Write the project's train and val, as `assay run` would split them."""
    from assay.data.loading import load_dataset
    from assay.data.splits import load_split, make_splits
    from assay.data.versioning import materialize
    from assay.params import SplitParams
    from assay.project import find_project

    project = find_project(Path(__file__).resolve().parent)
    dataset = load_dataset(materialize(project), project.cache_dir)
    params = SplitParams(seed=0, val_fraction=0.1, test_fraction=0.2)
    indices = load_split(make_splits(dataset, params, path.parent))
    rows = {"train": indices.train, "val": indices.val}
    images = {f"{name}_images": dataset.images[of] for name, of in rows.items()}
    np.savez(path, **images, **{f"{name}_labels": dataset.labels[of] for name, of in rows.items()})


def table(results: Sequence[dict[str, Any]]) -> str:
    base = next((result["seconds"] for result in results if result["name"] == "loop"), None)
    lines = [f"{'':<15}{'seconds':>9}{'speed-up':>10}{'epochs':>8}{'F1':>8}  winner"]
    for result in results:
        ratio = f"{base / result['seconds']:.2f}" if base else "-"
        lines.append(
            f"{result['name']:<15}{result['seconds']:>9.1f}{ratio:>10}{result['epochs_trained']:>8}"
            f"{result['winner_f1']:>8.4f}  {result['winner']}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "optuna", "ray") if name in installed}
    about = {"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    return about | versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=[*COMPETITORS, *ASSAY], default=list(DEFAULT))
    parser.add_argument("--epochs", type=int, default=9, help="epochs of each training")
    parser.add_argument("--cells", type=int, default=len(GRID), help="the first so many cells of the grid")
    parser.add_argument("--out", type=Path, help="JSON file for everything that was measured")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Job(**json.loads(args.serve[1])))
        return
    results: list[dict[str, Any]] = []
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            export_arrays(Path(folder) / "arrays.npz")
            job = Job(str(Path(folder) / "arrays.npz"), args.cells, args.epochs)
            results.append(measure(name, job))
        print(f"{name}: {results[-1]['seconds']:.1f} s", flush=True)
        if args.out:
            found = {"machine": machine(), "cells": args.cells, "epochs": args.epochs, "results": results}
            args.out.write_text(json.dumps(found, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
