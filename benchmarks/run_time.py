"""`assay run` against the plain script: whole commands, in turn, with where each second goes.

    python benchmarks/run_time.py --runs 5

Each `assay run` gets a state folder without a finished run (so it trains); the second call in the same folder shows
reuse. Prints the median, the spread and the ratio pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    plain, trained, reused, timings = [], [], [], []
    for number in range(args.runs):
        plain.append(timed(plain_script(args.epochs))[0])
        with tempfile.TemporaryDirectory() as home:
            first, record = timed(assay_run(args.epochs), home)
            again, second = timed(assay_run(args.epochs), home)
        assert not record["reused"] and second["reused"]
        trained.append(first)
        reused.append(again)
        timings.append(record["timings"])
        print(f"{number + 1}: plain {plain[-1]:.1f} s, assay run {first:.1f} s, again {again:.1f} s", flush=True)
    report("plain script", plain)
    report("assay run", trained)
    report("assay run again", reused)
    ratios = [ours / theirs for ours, theirs in zip(trained, plain, strict=True)]
    report("ratio assay run / plain script", ratios, unit="")
    print("where assay run's seconds go (medians):")
    for part in timings[0]:
        print(f"  {part:<22} {statistics.median(t[part] for t in timings):6.2f} s")


def plain_script(epochs: int) -> list[str]:
    return [sys.executable, "benchmarks/plain_script.py", "data", "--epochs", str(epochs)]


def assay_run(epochs: int) -> list[str]:
    return [sys.executable, "-m", "assay.cli.main", "run", "--json", f"train.num_epochs={epochs}"]


def timed(command: list[str], home: str | None = None) -> tuple[float, dict]:
    environment = os.environ | ({"ASSAY_HOME": home} if home else {})
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - begun
    return seconds, json.loads(done.stdout) if home else {}


def report(name: str, values: list[float], unit: str = " s") -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{name}: median {middle:.2f}{unit} (min {low:.2f}, max {high:.2f}, n {len(values)})")


if __name__ == "__main__":
    main()
