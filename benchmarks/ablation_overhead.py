"""What an ablation costs beside training: writing a trial to MLflow, and listing, judging and reporting 1,000 of them.

    python benchmarks/ablation_overhead.py

100 variants x 10 seeds of made-up answers on 500 val examples, nine epochs of curves each, in a new SQLite store.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from assay.ablation.ablate import describe
from assay.ablation.analysis import Analysis
from assay.ablation.design import make_design
from assay.ablation.figures import draw_ablation
from assay.ablation.outcomes import Outcomes, write_outcomes
from assay.ablation.report import write_report
from assay.params import RunParams
from assay.project import Project
from assay.records import AblationPlan, AblationRecord, DataRef, EpochRecord, RunKey, Splits, Trial
from assay.tracking.ablations import AblationRuns

NUM_VAL = 500
NUM_EPOCHS = 9


def trial_of(folder: Path, variant: str, seed: int, labels: np.ndarray, chance: np.random.Generator) -> Trial:
    predictions = np.where(chance.random(NUM_VAL) < 0.97, labels, (labels + 1) % 10)
    path = folder / f"{abs(hash((variant, seed)))}.npz"
    write_outcomes(path, Outcomes.none(labels).with_look(NUM_EPOCHS, predictions, np.full(NUM_VAL, 0.1)))
    right = float(np.mean(predictions == labels))
    values = dict.fromkeys(("f1_macro", "accuracy", "recall_macro", "log_loss"), right)
    now = time.time_ns() // 1_000_000
    history = tuple(
        EpochRecord(epoch, 55 * epoch, 0.5, 0.9, 0.4, 0.9, 0.001, 0.7, now + epoch)
        for epoch in range(1, NUM_EPOCHS + 1)
    )
    return Trial(
        variant, seed, f"{variant}/{seed}", "finished", NUM_EPOCHS, values, values, history, str(path), seconds=6.0
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{what:<46}{time.perf_counter() - wall:7.2f} s wall {time.process_time() - cpu:7.2f} s CPU", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    levels = [round(0.001 * number, 4) for number in range(1, arguments.variants)]
    params = RunParams.model_validate(
        {"ablation": {"factors": {"train.l2": levels}, "num_seeds": arguments.seeds, "prune": False}}
    )
    design, chance = make_design(params), np.random.default_rng(0)
    labels = chance.integers(0, 10, NUM_VAL)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "params.yaml").write_text("{}\n")
        project = Project(folder, folder / ".assay")
        project.make_home()
        runs = AblationRuns(project, "overhead")
        path = folder / "splits.npz"
        np.savez(path, train=np.arange(10), val=np.arange(10), test=np.arange(10))
        data = DataRef(str(folder), "0" * 32 + ".dir", "made-up", 5000, tuple("0123456789"), (28, 28, 1))
        splits = Splits(str(path), "1" * 64, data.md5, 3500, NUM_VAL, 1000)
        plan = AblationPlan(
            "one-at-a-time", "f1_macro", design.variants, design.seeds, 0, 0, 0, None, None, 0.8, 0.005, False
        )
        with timed("making the store and opening the ablation"):
            opened = runs.open(RunKey("a" * 64, {}), params, data, splits, plan, name="overhead")
        trials = [
            trial_of(folder, variant.name, seed, labels, chance) for variant in design.variants for seed in design.seeds
        ]
        variants = {variant.name: variant for variant in design.variants}
        seconds, begun = [], time.process_time()
        for trial in trials:
            started = time.perf_counter()
            runs.log_trial(opened, trial, variants[trial.variant], {"train.l2": "0.1"})
            seconds.append(time.perf_counter() - started)
        cpu = (time.process_time() - begun) / len(trials)
        print(
            f"writing a trial: median {1000 * statistics.median(seconds):.1f} ms wall "
            f"(95% below {1000 * np.quantile(seconds, 0.95):.1f}), {1000 * cpu:.1f} ms CPU, n {len(trials)}"
        )
        with timed(f"listing {len(trials)} trials"):
            found = AblationRuns(project, "overhead").find_trials([trial.key for trial in trials])
        assert len(found) == len(trials)
        with timed("reading their answers and judging"):
            analysis = Analysis(design, params.ablation, splits.num_train)
            for trial in found.values():
                analysis.add(trial, 10)
            verdicts = analysis.verdicts({})
            summaries = tuple(
                analysis.summary(v, "finished", [found[f"{v.name}/{seed}"] for seed in design.seeds])
                for v in design.variants
            )
        record = AblationRecord(
            opened.run_id, opened.experiment_id, "a" * 64, False, data.md5, plan, NUM_VAL, 0.95, summaries, verdicts,
            tuple(found.values()), {}, "", 1.0, len(found),
        )  # fmt: skip
        with timed("four figures"):
            figures = draw_ablation(record, folder / "figures")
        with timed("the report"):
            report = write_report(record, figures, {}, folder / "report.html")
        with timed("what the variants and the ablation came to"):
            runs.finish(opened, record, figures, report)
        print(
            describe(record),
            f"report {report.stat().st_size / 1e6:.1f} MB, record {len(json.dumps(record.to_json())) / 1e6:.1f} MB",
        )


if __name__ == "__main__":
    main()
