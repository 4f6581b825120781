"""What tracking costs training: `fit` with and without it, in turn, on images of MNIST's size.

    python benchmarks/tracking_cost.py [--pairs 6] [--epochs 10] [--server http://127.0.0.1:5000]

Timed is `fit` alone, with its callbacks; what the stream still holds when training ends is written afterwards and
timed by itself. Prints each pair and last ``geometric mean ratio N`` (1.01 is one percent).
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from assay.data.loading import ImageDataset
from assay.data.splits import make_splits
from assay.params import Params
from assay.project import Project
from assay.records import DataRef, RunKey, Splits
from assay.tracking.runs import Tracker
from assay.training.fit import fit

NUM_EXAMPLES = 5000
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10


def synthetic(folder: Path) -> tuple[ImageDataset, Splits]:
    generator = np.random.default_rng(0)
    labels = np.arange(NUM_EXAMPLES, dtype=np.int64) % NUM_CLASSES
    images = generator.integers(0, 120, (NUM_EXAMPLES, *IMAGE_SHAPE), dtype=np.uint8)
    for label in range(NUM_CLASSES):
        images[labels == label, 2 * label : 2 * label + 3] += 100
    names = tuple(map(str, range(NUM_CLASSES)))
    ref = DataRef(str(folder), "0" * 32 + ".dir", "synthetic", NUM_EXAMPLES, names, IMAGE_SHAPE)
    none = np.full(NUM_EXAMPLES, -1)
    hashes = np.array([f"{index:016d}" for index in range(NUM_EXAMPLES)], dtype="S16")
    dataset = ImageDataset(ref, images, labels, none.astype(np.int8), none.astype(np.int64), hashes)
    return dataset, make_splits(dataset, Params().split, folder / "splits")


def train(dataset: ImageDataset, splits: Splits, params: Params, run_dir: Path, **callbacks: object) -> float:
    started = time.perf_counter()
    fit(dataset, splits, params.model, params.train, params.device, run_dir, **callbacks)
    return time.perf_counter() - started


def tracked(
    tracker: Tracker, dataset: ImageDataset, splits: Splits, params: Params, run_dir: Path
) -> tuple[float, float, float]:
    """Seconds of training, the writer's CPU seconds meanwhile, seconds to write the rest."""
    key = RunKey(run_dir.name.ljust(64, "0"), {"run": run_dir.name})
    run = tracker.open_run(key, params, dataset.ref, splits, name=run_dir.name)
    with tracker.metrics(run) as stream:
        seconds = train(dataset, splits, params, run_dir, on_epoch=stream.log_epoch, on_steps=stream.log_steps)
        writer_seconds = stream.cpu_seconds
        started = time.perf_counter()
    tail_seconds = time.perf_counter() - started
    tracker.finish(run.run_id)
    return seconds, writer_seconds, tail_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--server", help="an MLflow server; SQLite without it")
    options = parser.parse_args()
    if options.server:
        os.environ["MLFLOW_TRACKING_URI"] = options.server
    params = Params.model_validate({"train": {"num_epochs": options.epochs, "early_stopping": None}})
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tracker = Tracker.open(Project(root, root / ".assay"), "tracking-cost")
        dataset, splits = synthetic(root)
        train(dataset, splits, params, root / "warm-up")
        plain_seconds, tracked_seconds = [], []
        for pair in range(options.pairs):
            for kind in ("plain", "tracked") if pair % 2 == 0 else ("tracked", "plain"):
                if kind == "plain":
                    plain_seconds.append(train(dataset, splits, params, root / f"plain-{pair}"))
                else:
                    seconds, writer, tail = tracked(tracker, dataset, splits, params, root / f"tracked-{pair}")
                    tracked_seconds.append(seconds)
            print(
                f"pair {pair}: plain {plain_seconds[-1]:.3f} s, tracked {tracked_seconds[-1]:.3f} s, the writer's CPU "
                f"{writer / seconds:.2%} of it, the rest written in {tail:.3f} s"
            )
    ratios = np.array(tracked_seconds) / np.array(plain_seconds)
    print(f"best against best {min(tracked_seconds) / min(plain_seconds):.4f}")
    print(f"geometric mean ratio {math.exp(np.mean(np.log(ratios))):.4f}")


if __name__ == "__main__":
    main()
