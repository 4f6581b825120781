"""Training speed of `assay.training.fit` against the loop that people write, on the same model, data and batches.

    python benchmarks/train_speed.py             # speed: four cases, best of 6 epochs each, in turn
    python benchmarks/train_speed.py --accuracy  # also: final test accuracy of both, 5 seeds each

The plain loop is the textbook's: a DataLoader over a TensorDataset, NCHW, float32, max_pool(relu(x)), torch's default
threads, AdamW as it comes and loss.item() in every step. The two take turns epoch by epoch, each in a process of its
own, so that other load on the machine hits both; the best epoch of each counts. The last line is the geometric mean
of the ratios.
"""

import argparse
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from assay.data.loading import Dataset
from assay.data.splits import load_split, make_splits
from assay.devices import resolve
from assay.models.files import load_model
from assay.params import CnnParams, ConstantSchedule, DeviceParams, SplitParams, TrainParams
from assay.records import DataRef, Splits, StepRecords
from assay.training.fit import fit

CASES = [(28, 28, 1, 64), (28, 28, 1, 128), (32, 32, 3, 64), (32, 32, 3, 128)]
STEPS_PER_EPOCH = 32
NUM_EPOCHS = 6


class PlainCnn(nn.Module):
    """The classic CNN as a tutorial writes it."""

    def __init__(self, height: int, width: int, channels: int, num_classes: int, dropout_prob: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.dropout = nn.Dropout(dropout_prob)
        self.output = nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        return self.output(self.dropout(F.relu(self.hidden(features.flatten(1)))))


class PlainLoop:
    """The loop that people write; `epoch` trains once over the train split and returns its samples per second."""

    def __init__(self, dataset: Dataset, rows: np.ndarray, params: TrainParams) -> None:
        images = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2).float()
        self.mean, self.std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
        images = ((images - self.mean) / self.std).contiguous()
        labels = torch.from_numpy(dataset.labels[rows])
        torch.manual_seed(params.seed)
        self.loader = DataLoader(TensorDataset(images, labels), batch_size=params.batch_size, shuffle=True)
        height, width, channels = dataset.ref.image_shape
        self.model = PlainCnn(height, width, channels, len(dataset.ref.class_names), params.dropout_prob)
        rate = params.optimizer.learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        if not isinstance(params.schedule, ConstantSchedule):
            steps = params.num_epochs * len(self.loader)
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps, cycle_momentum=False)

    def epoch(self) -> float:
        self.model.train()
        seen, started = 0, time.perf_counter()
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            loss.item()
            seen += len(labels)
        return seen / (time.perf_counter() - started)

    def accuracy(self, dataset: Dataset, rows: np.ndarray) -> float:
        self.model.eval()
        images = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            predicted = self.model((images - self.mean) / self.std).argmax(1)
        return float((predicted == torch.from_numpy(dataset.labels[rows])).float().mean())


def measure(case: tuple[int, int, int, int], folder: Path) -> tuple[list[float], list[float]]:
    """Return the samples per second of each epoch, of the plain loop and of fit."""
    height, width, channels, batch_size = case
    dataset, splits = synthetic(height, width, channels, STEPS_PER_EPOCH * batch_size, folder)
    params = TrainParams(
        num_epochs=NUM_EPOCHS + 1, batch_size=batch_size, early_stopping=None, schedule=ConstantSchedule()
    )
    plain_speeds: list[float] = []
    fit_speeds: list[float] = []

    def on_steps(steps: StepRecords) -> None:
        milliseconds = steps.timestamp_ms[-1] - steps.timestamp_ms[0]
        fit_speeds.append((len(steps.step) - 1) * batch_size / milliseconds * 1000)
        plain_speeds.append(plain.epoch())

    with PlainProcess(case) as plain:
        fit(dataset, splits, CnnParams(), params, DeviceParams(), folder / "run", on_steps=on_steps)
    return plain_speeds[1:], fit_speeds[1:]  # the first epoch warms both up


class PlainProcess:
    """The plain loop in a process of its own, as people run it: what fit sets in its process does not reach it."""

    def __init__(self, case: tuple[int, int, int, int]) -> None:
        command = [sys.executable, __file__, "--plain", *map(str, case)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def epoch(self) -> float:
        """Have it train for one epoch; return its samples per second."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __enter__(self) -> "PlainProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()


def serve_plain(case: tuple[int, int, int, int]) -> None:
    """Train one epoch for each line on stdin and print its samples per second."""
    height, width, channels, batch_size = case
    params = TrainParams(batch_size=batch_size, schedule=ConstantSchedule())
    with tempfile.TemporaryDirectory() as scratch:
        dataset, splits = synthetic(height, width, channels, STEPS_PER_EPOCH * batch_size, Path(scratch))
        plain = PlainLoop(dataset, load_split(splits).train, params)
        for _ in sys.stdin:
            print(plain.epoch(), flush=True)


def synthetic(height: int, width: int, channels: int, num_train: int, folder: Path) -> tuple[Dataset, Splits]:
    """Make random images, 10 classes, with `num_train` of them in train and 100 in val and test each."""
    generator = np.random.default_rng(0)
    total = num_train + 200
    images = generator.integers(0, 256, (total, height, width, channels), dtype=np.uint8)
    given = np.zeros(total, np.int8)
    given[num_train : num_train + 100], given[num_train + 100 :] = 1, 2
    labels = (np.arange(total) % 10).astype(np.int64)
    return as_dataset(images, labels, given, f"synthetic-{height}x{width}x{channels}-{total}", folder)


def digits(folder: Path) -> tuple[Dataset, Splits]:
    """Load scikit-learn's digits, enlarged to 24x24, split 70/10/20."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.kron(bunch.images * 15.9375, np.ones((1, 3, 3))).astype(np.uint8)[..., None]
    given = np.full(len(images), -1, np.int8)
    return as_dataset(images, bunch.target.astype(np.int64), given, "digits", folder)


def as_dataset(
    images: np.ndarray, labels: np.ndarray, given: np.ndarray, name: str, folder: Path
) -> tuple[Dataset, Splits]:
    shape = tuple(int(size) for size in images.shape[1:])
    ref = DataRef(str(folder), f"{name}.dir", name, len(images), tuple("0123456789"), shape)  # type: ignore[arg-type]
    hashes = np.array([f"{index:016d}" for index in range(len(images))], dtype="S16")
    dataset = Dataset(ref, images, labels, given, np.full(len(images), -1, np.int64), hashes)
    return dataset, make_splits(dataset, SplitParams(), folder / "splits")


def conv_peak(dtype: torch.dtype) -> float:
    """Return the best GFLOP/s of one large convolution: 64 to 64 channels, 3x3, on 32 maps of 56x56."""
    images = torch.randn(32, 64, 56, 56).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    best = math.inf
    with torch.no_grad():
        for _ in range(40):
            started = time.perf_counter()
            F.conv2d(images, weight, padding=1)
            best = min(best, time.perf_counter() - started)
    return 2 * 32 * 56 * 56 * 64 * 64 * 9 / best / 1e9


def flops_per_sample(height: int, width: int, channels: int) -> float:
    """Return the multiply-adds, counted as two, of one training step; conv1 needs no gradient of its input."""
    conv1 = 2 * height * width * 9 * channels * 32
    conv2 = 2 * (height // 2) * (width // 2) * 9 * 32 * 64
    dense = 2 * (64 * (height // 4) * (width // 4) * 128 + 128 * 10)
    return 2 * conv1 + 3 * conv2 + 3 * dense


def compare_accuracy(folder: Path, num_seeds: int = 5, num_epochs: int = 15) -> None:
    """Print the test accuracy of both loops, mean and standard deviation over seeds."""
    dataset, splits = digits(folder)
    indices = load_split(splits)
    found: dict[str, list[float]] = {"plain": [], "fit": []}
    for seed in range(num_seeds):
        params = TrainParams(num_epochs=num_epochs, seed=seed, early_stopping=None)
        plain = PlainLoop(dataset, indices.train, params)
        for _ in range(num_epochs):
            plain.epoch()
        found["plain"].append(plain.accuracy(dataset, indices.test))
        result = fit(dataset, splits, CnnParams(), params, DeviceParams(), folder / f"seed-{seed}")
        module, _ = load_model(Path(result.model_dir))
        images = torch.from_numpy(dataset.images[indices.test]).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            predicted = module(images).argmax(1).numpy()
        found["fit"].append(float((predicted == dataset.labels[indices.test]).mean()))
    for name, values in found.items():
        spread = statistics.stdev(values)
        print(f"digits test accuracy, {name:5s}: mean {statistics.mean(values):.4f}  sd {spread:.4f}  n {num_seeds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--accuracy", action="store_true", help="also compare the final accuracy, 5 seeds each")
    parser.add_argument("--plain", type=int, nargs=4, metavar="N", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        serve_plain(tuple(arguments.plain))
        return
    compute = resolve(DeviceParams())
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    print(f"torch {torch.__version__}, {platform.machine()}, {compute}, plain loop {torch.get_num_threads()} threads")
    peak = conv_peak(dtype)
    print(f"oneDNN conv peak: {compute.precision} {peak:.0f}, fp32 {conv_peak(torch.float32):.0f} GFLOP/s")
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            height, width, channels, batch_size = case
            plain, ours = measure(case, Path(scratch) / "x".join(map(str, case)))
            ratios.append(max(ours) / max(plain))
            reached = max(ours) * flops_per_sample(height, width, channels) / 1e9
            print(
                f"{height}x{width}x{channels} batch {batch_size:3d}: "
                f"plain {max(plain):6.0f}/s  fit {max(ours):6.0f}/s  "
                f"ratio {ratios[-1]:.2f}  (medians {statistics.median(ours) / statistics.median(plain):.2f})  "
                f"{reached:.0f} GFLOP/s = {reached / peak:.0%} of peak"
            )
        if arguments.accuracy:
            compare_accuracy(Path(scratch))
    print(f"geometric mean ratio {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
