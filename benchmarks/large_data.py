"""Data larger than memory: import, decode and train, the memory that each takes, and the speed beside data in memory.

    python benchmarks/large_data.py --gigabytes 20 --folder /some/disk     # needs 2.2 times as much space; all removed
    python benchmarks/large_data.py --gigabytes 2                          # does it work at all?

Random images of 256x256x3 are written as shards from a generator, decoded into the cache, and trained on by
`assay.training.fit` with a small CNN: two epochs, so that the second one finds the page cache as warm as the
machine allows. The same model then trains on as many steps of a data set that is an array in memory. Each stage runs in
a process of its own; its peak resident memory is what the kernel says (VmHWM; what torch and Python take by
themselves is in it). How much of the data the page cache can hold is the machine's affair and is printed, too.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 256
IMAGE_BYTES = SIDE * SIDE * 3
BATCH_SIZE = 32
MAX_STEPS = 250
NAMES = ("dark", "bright")


def write(folder: Path, num_images: int) -> dict[str, Any]:
    """Write the shards."""
    from assay.data.images import encode_png
    from assay.data.shards import write_shards
    from assay.data.sources import Example

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 120, (64, SIDE, SIDE, 3), dtype=np.uint8)

    def examples() -> Iterator[Example]:
        for number in range(num_images):
            label = number % 2
            image = np.roll(noise[number % 64], number, axis=1) + np.uint8(100 * label)
            image[0, :4, 0] = list(number.to_bytes(4, "big"))  # no two are copies, which would share a split
            split = ("train", "val", "test")[min(2, number % 100 // 49)] if number % 100 >= 98 else "train"
            content_hash = number.to_bytes(16, "big")
            yield Example(f"{number}.png", encode_png(image), label, split, content_hash)

    (folder / "data").mkdir()
    write_shards(folder / "data", examples(), NAMES, has_splits=True)
    return {"shards_bytes": sum(path.stat().st_size for path in (folder / "data").iterdir())}


def decode(folder: Path, num_images: int) -> dict[str, Any]:
    """Decode them into the cache."""
    from assay.data.loading import load_dataset

    load_dataset(_ref(folder, num_images), folder / "cache")
    shutil.rmtree(folder / "data")  # room for the page cache
    (folder / "data").mkdir()
    return {}


def train(folder: Path, num_images: int, *, in_memory: bool) -> dict[str, Any]:
    """Train two epochs' worth of steps at most; return samples per second of each epoch's steps."""
    from assay.data.loading import load_dataset
    from assay.data.splits import load_split, make_splits
    from assay.params import CnnParams, ConstantSchedule, DeviceParams, SplitParams, TrainParams
    from assay.records import StepRecords
    from assay.training.fit import fit

    dataset = load_dataset(_ref(folder, num_images), folder / "cache")
    if in_memory:
        rows = np.arange(min(num_images, MAX_STEPS * BATCH_SIZE + 200))
        some = {name: np.array(getattr(dataset, name)[rows]) for name in ("inputs", "labels", "groups", "content_hash")}
        given = np.zeros(len(rows), np.int8)
        given[-200:-100], given[-100:] = 1, 2
        ref = replace(dataset.ref, num_examples=len(rows), md5="part.dir")
        dataset = replace(dataset, ref=ref, given_split=given, **some)
    splits = make_splits(dataset, SplitParams(), folder / "splits")
    speeds: list[float] = []

    def on_steps(steps: StepRecords) -> None:
        milliseconds = steps.timestamp_ms[-1] - steps.timestamp_ms[0]
        speeds.append((len(steps.step) - 1) * BATCH_SIZE / milliseconds * 1000)

    params = TrainParams(num_epochs=2, batch_size=BATCH_SIZE, early_stopping=None, schedule=ConstantSchedule())
    model = CnnParams(channels=(8, 16, 16), hidden_units=32)
    with tempfile.TemporaryDirectory() as scratch:
        fit(dataset, splits, model, params, DeviceParams(), Path(scratch), on_steps=on_steps, every_epoch_saved=False)
    return {"speeds": speeds, "num_train": len(load_split(splits).train)}


def _ref(folder: Path, num_images: int) -> Any:
    from assay.records import DataRef

    return DataRef(str(folder / "data"), "large.dir", "synthetic", num_images, NAMES, (SIDE, SIDE, 3))


STAGES = {
    "write": write,
    "decode": decode,
    "train": lambda folder, count: train(folder, count, in_memory=False),
    "train-in-memory": lambda folder, count: train(folder, count, in_memory=True),
}


def run_stage(name: str, folder: Path, num_images: int) -> None:
    started = time.perf_counter()
    found = STAGES[name](folder, num_images)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 2**20 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_gib": peak, **found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the decoded images, in 10^9 bytes")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary folder)")
    parser.add_argument("--stage", nargs=3, metavar=("NAME", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        name, folder, count = arguments.stage
        run_stage(name, Path(folder), int(count))
        return
    num_images = int(arguments.gigabytes * 1e9 / IMAGE_BYTES)
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        found = {}
        for name in STAGES:
            command = [sys.executable, __file__, "--stage", name, scratch, str(num_images)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            facts = ", ".join(
                f"{key} {value}" for key, value in found[name].items() if key not in ("seconds", "peak_gib")
            )
            print(
                f"{name}: {found[name]['seconds']:.0f} s, peak {found[name]['peak_gib']:.2f} GiB; {facts}", flush=True
            )
    late = {name: found[name]["speeds"][len(found[name]["speeds"]) // 2 :] for name in ("train", "train-in-memory")}
    ratio = statistics.median(late["train"]) / statistics.median(late["train-in-memory"])
    print(f"{num_images:,} images; samples/s out of the file over in memory {ratio:.2f}")


if __name__ == "__main__":
    main()
