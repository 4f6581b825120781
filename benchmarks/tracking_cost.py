"""What tracking costs training: `fit` with and without it, in turn, on images of MNIST's size.

    python benchmarks/tracking_cost.py [--pairs 12] [--epochs 10] [--server http://127.0.0.1:5000]

Wall time decides nothing here: other load moves it by more than the effect. Two figures do, both in CPU seconds (user
and system) and with one computing thread, so that no thread spins while it waits:

- by account: the CPU time of tracking's own code while training runs, which is the callbacks on the training thread and
  the writer's thread, as a share of what the process used, and of the wall time. The writer rations itself by wall
  time, so on a busy machine, where training gets less of it, the first share is the larger.
- by difference: what the whole process used with tracking less what it used without, pair by pair, which would
  also show what the account cannot see (caches, the interpreter's lock), with a 95% interval.

What the stream still holds when training ends is written afterwards, beside the evaluation, and shown by itself.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from assay.data.loading import Dataset
from assay.data.splits import make_splits
from assay.params import Params
from assay.project import Project
from assay.records import DataRef, RunKey, Splits
from assay.tracking.runs import Tracker
from assay.training.fit import fit

NUM_EXAMPLES = 5000
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10


def synthetic(folder: Path) -> tuple[Dataset, Splits]:
    generator = np.random.default_rng(0)
    labels = np.arange(NUM_EXAMPLES, dtype=np.int64) % NUM_CLASSES
    images = generator.integers(0, 120, (NUM_EXAMPLES, *IMAGE_SHAPE), dtype=np.uint8)
    for label in range(NUM_CLASSES):
        images[labels == label, 2 * label : 2 * label + 3] += 100
    names = tuple(map(str, range(NUM_CLASSES)))
    ref = DataRef(str(folder), "0" * 32 + ".dir", "synthetic", NUM_EXAMPLES, names, IMAGE_SHAPE)
    none = np.full(NUM_EXAMPLES, -1)
    hashes = np.array([f"{index:016d}" for index in range(NUM_EXAMPLES)], dtype="S16")
    dataset = Dataset(ref, images, labels, none.astype(np.int8), none.astype(np.int64), hashes)
    return dataset, make_splits(dataset, Params().split, folder / "splits")


@dataclass
class Cost:
    """CPU seconds of one tracked training.

    Attributes:
        process: All of the process while it trained.
        wall: Wall seconds meanwhile.
        callbacks: Of that, the callbacks on the training thread.
        writer: Of that, the writer's thread.
        rest: Used after training, to write what was left.
    """

    process: float
    wall: float
    callbacks: float
    writer: float
    rest: float

    @property
    def share(self) -> float:
        """What tracking used of the training's CPU time."""
        return (self.callbacks + self.writer) / (self.process - self.callbacks - self.writer)

    @property
    def wall_share(self) -> float:
        """The same of the wall time."""
        return (self.callbacks + self.writer) / self.wall


def train(dataset: Dataset, splits: Splits, params: Params, run_dir: Path, **callbacks: Any) -> float:
    """Train; return the CPU seconds of the process."""
    started = time.process_time()
    fit(dataset, splits, params.model, params.train, params.device, run_dir, **callbacks)
    return time.process_time() - started


def track(tracker: Tracker, dataset: Dataset, splits: Splits, params: Params, run_dir: Path) -> Cost:
    key = RunKey(run_dir.name.ljust(64, "0"), {"run": run_dir.name})
    run = tracker.open_run(key, params, dataset.ref, splits, name=run_dir.name)
    spent: list[float] = []

    def counted(callback: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(record: Any) -> None:
            started = time.thread_time()
            callback(record)
            spent.append(time.thread_time() - started)

        return call

    with tracker.metrics(run) as stream:
        began = time.perf_counter()
        process = train(
            dataset, splits, params, run_dir, on_epoch=counted(stream.log_epoch), on_steps=counted(stream.log_steps)
        )
        wall, writer, started = time.perf_counter() - began, stream.cpu_seconds, time.process_time()
    rest = time.process_time() - started
    tracker.finish(run.run_id)
    return Cost(process, wall, sum(spent), writer, rest)


def interval(values: np.ndarray) -> str:
    """Mean and its 95% interval by Student's t, in percent."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"mean {values.mean():.2%}, 95% interval {values.mean() - half:.2%} to {values.mean() + half:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--server", help="an MLflow server; SQLite without it")
    options = parser.parse_args()
    if options.server:
        os.environ["MLFLOW_TRACKING_URI"] = options.server
    train_params = {"num_epochs": options.epochs, "early_stopping": None}
    params = Params.model_validate({"train": train_params, "device": {"num_threads": 1}})
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tracker = Tracker.open(Project(root, root / ".assay"), "tracking-cost")
        dataset, splits = synthetic(root)
        track(tracker, dataset, splits, params, root / "warm-up")
        plain: list[float] = []
        costs: list[Cost] = []
        for pair in range(options.pairs):
            for kind in ("plain", "tracked") if pair % 2 == 0 else ("tracked", "plain"):
                if kind == "plain":
                    plain.append(train(dataset, splits, params, root / f"plain-{pair}"))
                else:
                    costs.append(track(tracker, dataset, splits, params, root / f"tracked-{pair}"))
            cost = costs[-1]
            print(
                f"pair {pair}: CPU plain {plain[-1]:.3f} s, tracked {cost.process:.3f} s, of which callbacks "
                f"{cost.callbacks * 1000:.1f} ms, writer {cost.writer * 1000:.1f} ms ({cost.share:.2%}, of "
                f"{cost.wall:.1f} s wall {cost.wall_share:.2%}); after training {cost.rest * 1000:.0f} ms",
                flush=True,
            )
    shares = np.array([cost.share for cost in costs])
    differences = np.array([cost.process for cost in costs]) / np.array(plain) - 1
    print(f"n {len(shares)} pairs of {options.epochs} epochs")
    print(f"by account: {interval(shares)}, most {shares.max():.2%}")
    print(f"by account, of wall time: {interval(np.array([cost.wall_share for cost in costs]))}")
    print(f"by difference: {interval(differences)}")


if __name__ == "__main__":
    main()
