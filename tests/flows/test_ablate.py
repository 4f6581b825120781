"""`assay ablate` as a person runs it: plan, train, judge, find again, go on after SIGKILL, take over."""

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.copies import ROOT, Copy

pytestmark = pytest.mark.slow

SMALL = (
    "train.num_epochs=3",
    "train.augmentation.kind=none",
    "model.channels=[8,16]",
    "device.num_threads=1",
    "ablation.num_seeds=2",
    "ablation.baseline={}",
)
FACTORS = "ablation.factors={train.dropout_prob: [0.0, 0.6], train.l2: [0.001]}"


def ablate(copy: Copy, *arguments: str, **variables: str) -> dict[str, Any]:
    done = copy.assay("ablate", "--json", *SMALL, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def rows(copy: Copy, query: str, *values: str, database: str = "mlflow.db") -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(copy.home / database)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def runs_of(copy: Copy, kind: str) -> dict[str, dict[str, str]]:
    """Tags of each run of a kind."""
    query = "select run_uuid from tags where key = 'assay.kind' and value = ?"
    found = {}
    for (run_id,) in rows(copy, query, kind):
        found[run_id] = dict(rows(copy, "select key, value from tags where run_uuid = ?", run_id))
    return found


def names(runs: dict[str, dict[str, str]]) -> list[str]:
    return sorted(tags["mlflow.runName"] for tags in runs.values())


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What an ablation came to, apart from when, how fast and where it was written."""
    verdicts = record["verdicts"]
    means = {summary["variant"]["name"]: (summary["mean"], summary["sd"]) for summary in record["summaries"]}
    answers = {(t["variant"], t["seed"]): (t["state"], t["num_epochs"], t["metrics"]) for t in record["trials"]}
    return {"verdicts": verdicts, "means": means, "answers": answers, "key": record["ablation_key"]}


def test_an_ablation_from_plan_to_verdicts(project: Copy) -> None:
    planned = project.assay("ablate", "--plan", "--json", *SMALL, FACTORS, "ablation.prune=false")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["num_trials"], plan["num_done"], plan["num_epochs"]) == (8, 0, 24)
    assert plan["detectable"] is None, "nobody knows the noise yet"
    assert runs_of(project, "trial") == {}

    first = ablate(project, FACTORS, "ablation.prune=false")
    assert first["reused"] is False
    assert first["num_trained"] == 8
    assert [v["name"] for v in first["verdicts"]] == ["dropout_prob=0.0", "dropout_prob=0.6", "l2=0.001"]
    words = {"helps", "hurts", "no difference", "undetermined"}
    for verdict in first["verdicts"]:
        assert verdict["verdict"] in words
        assert verdict["low"] <= verdict["difference"] <= verdict["high"]
        assert verdict["num_seeds"] == 2
        assert verdict["reason"]
    assert first["plan"]["detectable"] > 0

    # MLflow: the ablation, in it the variants, in these the trials
    (parent,) = runs_of(project, "ablation")
    variants, trials = runs_of(project, "variant"), runs_of(project, "trial")
    assert {tags["mlflow.parentRunId"] for tags in variants.values()} == {parent}
    assert Counter(tags["mlflow.parentRunId"] for tags in trials.values()) == dict.fromkeys(variants, 2)
    assert names(variants) == ["baseline", "dropout_prob=0.0", "dropout_prob=0.6", "l2=0.001"]
    assert "dropout_prob=0.6, seed 1" in names(trials)
    verdict_tags = {tags["assay.variant"]: tags["assay.verdict"] for tags in variants.values()}
    assert verdict_tags == {"baseline": "baseline"} | {v["name"]: v["verdict"] for v in first["verdicts"]}
    means = {s["variant"]["name"]: s["mean"] for s in first["summaries"]}
    for run_id, tags in variants.items():
        query = "select value from latest_metrics where run_uuid = ? and key = 'val_f1_macro'"
        assert rows(project, query, run_id) == [(pytest.approx(means[tags["assay.variant"]]),)]
    statuses = rows(project, "select status, count(*) from runs group by status")
    assert statuses == [("FINISHED", 1 + 4 + 8)]
    report = Path(first["report_path"])
    assert "dropout_prob=0.6" in report.read_text()
    figures = {file.name for file in (report.parent / "figures").iterdir()}
    assert {"forest.png", "learning_curves.png", "generalization_gap.png"} <= figures
    assert not list((project.home / "trials").iterdir()), "checkpoints are gone: all is in MLflow"

    # again: nothing is trained, and no orchestrator is started
    shutil.rmtree(project.home / "prefect")
    again = ablate(project, FACTORS, "ablation.prune=false")
    assert (again["reused"], again["num_trained"], again["run_id"]) == (True, 0, first["run_id"])
    assert without_times(again) == without_times(first)
    assert not (project.home / "prefect").exists()

    # one level more: only its trials are trained, and the new ablation is whole by itself
    more = ablate(project, "ablation.factors={train.dropout_prob: [0.0, 0.6], train.l2: [0.001, 0.01]}", "--no-prune")
    assert more["num_trained"] == 2
    assert len(more["trials"]) == 10
    new = {run_id for run_id, tags in runs_of(project, "trial").items() if tags["assay.ablation"] == more["run_id"]}
    assert len(new) == 10
    assert without_times(more)["answers"].items() >= without_times(first)["answers"].items()
    assert more["plan"]["seconds"] > 0
    assert more["plan"]["num_done"] == 8
    assert 0 < more["plan"]["detectable"] < 1, "the baseline is known, so the plan says what it can see"


def test_an_ablation_killed_anywhere_goes_on(project: Copy, tmp_path: Path) -> None:
    factors = "ablation.factors={train.dropout_prob: [0.6]}"
    arguments = (factors, "train.num_epochs=5", "train.checkpoint_every_seconds=0")
    whole = ablate(project, *arguments, ASSAY_HOME=str(tmp_path / "whole"))
    command = project.command("ablate", "--json", *SMALL, *arguments)
    for killed in range(2):
        with subprocess.Popen(
            command, cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            seen = len(checkpoints(project))
            until(lambda seen=seen: len(checkpoints(project)) > seen or process.poll() is not None)
            victims = [process] if killed == 0 else trainers(process.pid)[:1]
            for victim in victims:
                victim.send_signal(signal.SIGKILL)
            process.wait()
    after = ablate(project, *arguments)
    assert without_times(after) == without_times(whole)
    statuses = rows(project, "select status, count(*) from runs group by status")
    assert statuses == [("FINISHED", 1 + 2 + 4)], "nothing is lost and nothing is there twice"
    assert names(runs_of(project, "trial")) == sorted(set(names(runs_of(project, "trial"))))


def test_a_store_that_refuses_the_run_ends_the_ablation_at_once(project: Copy) -> None:
    factors = "ablation.factors={train.dropout_prob: [0.6]}"
    connection = sqlite3.connect(project.home / "mlflow.db")
    connection.executescript("create trigger full before insert on runs begin select raise(abort, 'full'); end")
    refused = project.assay("ablate", *SMALL, factors, "train.num_epochs=2000")  # nobody waits for these
    assert refused.returncode == 2
    (told,) = [line for line in refused.stderr.splitlines() if line.startswith("assay:")]
    assert f"assay: sqlite:///{project.home}/mlflow.db: " in told
    assert checkpoints(project) == set(), "no trial was trained to its end"
    connection.executescript("drop trigger full")
    connection.close()
    assert ablate(project, factors)["num_trained"] == 4
    assert rows(project, "select status, count(*) from runs group by status") == [("FINISHED", 1 + 2 + 4)]


def checkpoints(copy: Copy) -> set[str]:
    return {str(file) for file in (copy.home / "trials").glob("*/trial.json")}


def trainers(pid: int) -> list[psutil.Process]:
    """The processes that train: those that have torch loaded, of an `assay ablate`."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def until(condition: Any, seconds: float = 120.0) -> None:
    """Wait for something that happens; the limit only keeps a broken test from hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_levels_that_help_are_taken_over_with_their_diff(served: Copy) -> None:
    """A baseline that can learn nothing: a hundred times the learning rate helps, whatever the noise."""
    shutil.copy(ROOT / "params.yaml", served.root)
    before = (served.root / "params.yaml").read_text()
    tiny = "ablation.baseline={train.optimizer.learning_rate: 1.0e-6}"
    arguments = (tiny, "ablation.factors={train.optimizer.learning_rate: [0.01]}", "--detect=0.1")
    done = served.assay("ablate", "--apply", *SMALL, *arguments)
    assert done.returncode == 0, done.stderr
    assert "helps" in done.stdout
    assert "+  optimizer: {kind: adamw, learning_rate: 0.01, weight_decay: 0.01}" in done.stdout
    after = (served.root / "params.yaml").read_text()
    assert after == before.replace("learning_rate: 0.002", "learning_rate: 0.01")
    told = " ".join(done.stdout.split())
    assert "The trials had model.channels=[8, 16] instead of [32, 64], train.num_epochs=3 instead of 15" in told
    link = done.stdout.split("compare", 1)[1].split()[0]
    query = parse_qs(urlsplit(link).fragment.partition("?")[2])
    assert set(json.loads(query["runs"][0])) == set(runs_of(served, "variant"))


def test_a_run_can_ablate_first_and_go_on_with_what_helped(served: Copy) -> None:
    record = served.run(
        "ablation.in_run=true",
        "ablation.choose=true",
        "ablation.baseline={}",
        "ablation.num_seeds=3",
        "train.optimizer.learning_rate=1.0e-6",
        "ablation.factors={}",
        "ablation.recipes={fast: {train.optimizer.learning_rate: 0.01, train.batch_size: 32}}",
    )
    assert record["metrics"]["accuracy"] > 0.5, "with the baseline's rate it would be a tenth"
    query = "select value from params where run_uuid = ? and key in (?, ?) order by key"
    keys = ("train.batch_size", "train.optimizer.learning_rate")
    assert rows(served, query, record["run_id"], *keys) == [("32",), ("0.01",)]
    assert names(runs_of(served, "variant")) == ["baseline", "fast"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to compare"),
        (("ablation.factors={train.dropout: [0.1]}",), "Did you mean train.dropout_prob?"),
        (("ablate=droput",), "must be 'regularization' or 'dropout'"),
        ((FACTORS, "--seeds=80"), "320 trials"),
        (("ablation.factors=[1]",), "ablation.factors"),
    ],
)
def test_bad_requests_change_nothing(project: Copy, arguments: tuple[str, ...], words: str) -> None:
    (project.root / "params.yaml").write_text("{}\n")
    done = project.assay("ablate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert runs_of(project, "ablation") == {}
