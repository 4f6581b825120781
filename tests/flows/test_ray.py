"""Trials on a Ray of this machine's own, for real."""

import importlib.util
import json

import pytest

from tests.copies import Copy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("prefect_ray") is None, reason="Ray is not installed: extra ray"),
]


def test_trials_run_on_ray_with_one_setting(project: Copy) -> None:
    done = project.assay(
        "ablate", "--json", "model.channels=[8]", "train.num_epochs=2", "train.augmentation.kind=none",
        "ablation.factors={train.l2: [0.5]}", "ablation.baseline={}", "ablation.num_seeds=2",
        "ablation.runner=ray", "ablation.num_workers=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["num_trained"] == 4
    assert {trial["state"] for trial in record["trials"]} == {"finished"}
    assert [verdict["name"] for verdict in record["verdicts"]] == ["l2=0.5"]
