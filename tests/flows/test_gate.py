"""The gate as a person meets it: first champion, a no with its exit code, by hand, back again, and the same bytes."""

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.copies import Copy

pytestmark = pytest.mark.slow

GOOD = (
    "train.num_epochs=12",
    "train.augmentation.kind=none",
    "train.batch_size=32",
    "model.channels=[8,16]",
    "evaluation.num_bootstrap=100",
    "device.num_threads=1",
    "gate.baselines=[majority_class]",
    "gate.max_calibration_error=null",
)


def meet(project: Copy, *overrides: str) -> tuple[int, dict[str, Any]]:
    """``assay run --json`` with the gate at its end: exit code and record."""
    done = project.assay("run", "--json", *GOOD, *overrides)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def models(project: Copy, *arguments: str, code: int = 0) -> Any:
    done = project.assay("models", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def aliases(project: Copy) -> dict[str, int]:
    connection = sqlite3.connect(project.home / "mlflow.db")
    try:
        return dict(connection.execute("select alias, version from registered_model_aliases").fetchall())
    finally:
        connection.close()


def test_from_the_first_champion_to_a_rollback(served: Copy) -> None:
    assert served.assay("models", "list").returncode == 0
    assert "no champion yet" in served.assay("models", "why").stderr

    code, ungated = meet(served, "gate.in_run=false")
    assert (code, ungated["decision"], aliases(served)) == (0, None, {})
    code, first = meet(served)
    assert (code, first["reused"], first["model_version"]) == (0, True, 1)
    assert first["decision"]["outcome"] == "first champion"
    assert {rule["state"] for rule in first["decision"]["rules"]} <= {"passed", "not asked"}
    assert aliases(served) == {"champion": 1}

    code, again = meet(served)
    assert (code, again["reused"], again["decision"]) == (0, True, first["decision"])

    code, worse = meet(served, "train.num_epochs=1", "train.optimizer.learning_rate=0.00001")
    assert code == 3
    assert worse["decision"]["outcome"] == "refused"
    assert worse["decision"]["champion"] == 1
    assert worse["decision"]["look"]["number"] == 1
    failed = [rule["name"] for rule in worse["decision"]["rules"] if rule["state"] == "failed"]
    assert any(name.startswith("brightness: ") for name in failed)
    assert aliases(served) == {"champion": 1, "challenger": 2}
    code, repeated = meet(served, "train.num_epochs=1", "train.optimizer.learning_rate=0.00001")
    assert (code, repeated["reused"]) == (3, True)

    asked = models(served, "promote", "2", "gate.baselines=[majority_class]", code=3)
    assert asked["look"]["number"] == 1, "the same two versions on the same test set: no second look"
    refused = served.assay("models", "promote", "2", "--force")
    assert refused.returncode == 2
    assert "--reason" in refused.stderr
    forced = models(served, "promote", "2", "--force", "--reason", "a demo wants the small one")
    assert forced["forced_reason"] == "a demo wants the small one"
    assert aliases(served) == {"champion": 2, "previous": 1, "challenger": 1}

    back = models(served, "rollback", "--reason", "the demo is over")
    assert (back["version"], back["previous"], back["action"]) == (1, 2, "rolled back")
    assert aliases(served) == {"champion": 1, "challenger": 2}

    story = models(served, "why", "champion")
    assert (story["version"], story["is_champion"]) == (1, True)
    assert [line["action"] for line in story["promotions"]] == ["first champion", "forced", "rolled back"]
    listed = models(served, "list")
    assert [line["version"] for line in listed["versions"]] == [2, 1]
    assert [line["reason"] for line in listed["history"]][1:] == ["a demo wants the small one", "the demo is over"]
    shown = served.assay("models", "show", "2").stdout
    assert "a demo wants the small one" in shown
    gone = served.assay("models", "why", "7")
    assert (gone.returncode, "not registered" in gone.stderr) == (2, True)
    assert "no version of mnist5k-cnn is the seven yet" in served.assay("models", "show", "seven").stderr


def commit(project: Copy, message: str) -> None:
    git = ["git", "-c", "user.email=a@example.org", "-c", "user.name=a"]
    if not (project.root / ".git").exists():
        subprocess.run([*git, "init", "--quiet"], cwd=project.root, check=True)
        (project.root / ".gitignore").write_text("/.assay/\n/data/\n__pycache__/\n")
    subprocess.run([*git, "add", "--all"], cwd=project.root, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", message], cwd=project.root, check=True)


def artifacts(project: Copy, run_id: str) -> Path:
    return next(project.home.glob(f"artifacts/**/{run_id}/artifacts"))


def commit_of(project: Copy) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=True).stdout.strip()


def test_a_version_is_reproduced_from_its_lineage_alone(served: Copy) -> None:
    commit(served, "first")
    first = commit_of(served)
    _, record = meet(served, "train.num_epochs=2")
    flow = served.root / "flows" / "pipeline.py"
    seed = "            params.train.model_copy(update={'seed': 5}),\n"
    edited = flow.read_text().replace("            params.train,\n", seed)
    assert edited != flow.read_text()
    flow.write_text(edited)
    shutil.rmtree(served.root / "data")
    commit(served, "second")

    same = models(served, "reproduce", "latest")
    assert same["verdict"] == "identical"
    assert same["found_sha256"] == same["weights_sha256"]
    assert first[:12] in same["source"]
    assert same["differences"] == []
    assert not (served.root / "data").exists(), "this checkout is left alone"
    assert list((served.home / "cache" / "reproduce").iterdir()) == []

    params = artifacts(served, record["run_id"]) / "params.json"
    kept = params.read_text()
    params.write_text(kept.replace('"dropout_prob": 0.25', '"dropout_prob": 0.3'))
    other = models(served, "reproduce", "1", code=3)
    assert other["verdict"] == "different"
    assert other["differences"] == ["train.dropout_prob 0.25 -> 0.3"]
    assert "first in what they depend on: train.dropout_prob 0.25 -> 0.3" in other["reason"]
    params.write_text(kept)

    with closing(sqlite3.connect(served.home / "mlflow.db")) as tables, tables:
        new = (commit_of(served), "mlflow.source.git.commit")
        tables.execute("update tags set value = ? where key = ?", new)
    moved = models(served, "reproduce", "1", code=3)
    assert moved["verdict"] == "different"
    assert moved["differences"] == ["flows/pipeline.py changed"]
