"""Our optimizers step as torch's do, and do not bring torch's compiler into the process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.params import AdamParams, AdamWParams, OptimizerParams, RmspropParams, SgdParams
from assay.training.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[2]

_TRAIN = """
import sys, tempfile
from pathlib import Path
from assay.params import AdamParams, AdamWParams, RmspropParams, SgdParams
from assay.training.fit import fit
from tests.training.tiny import FP32, MODEL, TRAIN, tiny_dataset

with tempfile.TemporaryDirectory() as scratch:
    dataset, splits = tiny_dataset(Path(scratch))
    for optimizer in (SgdParams(), AdamParams(), AdamWParams(), RmspropParams()):
        train = TRAIN.model_copy(update={"optimizer": optimizer, "num_epochs": 2, "layer_decay": 0.9})
        fit(dataset, splits, MODEL, train, FP32, Path(scratch) / optimizer.kind)
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_training_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", _TRAIN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("params", "usual"),
    [
        (
            SgdParams(momentum=0.9, nesterov=True, learning_rate=0.1),
            lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True),
        ),
        (AdamParams(learning_rate=0.01), lambda groups: torch.optim.Adam(groups, lr=0.01, fused=True)),
        (
            AdamWParams(learning_rate=0.01, weight_decay=0.1),
            lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
        ),
        (
            RmspropParams(learning_rate=0.01, smoothing=0.9, momentum=0.5),
            lambda groups: torch.optim.RMSprop(groups, lr=0.01, alpha=0.9, momentum=0.5, foreach=False),
        ),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_steps_are_those_of_torch(params: OptimizerParams, usual: type) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator) for size in (40, 7)]
    gradients = [[torch.randn(size, generator=generator) for size in (40, 7)] for _ in range(5)]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in start] for _ in range(2))
    decay = params.weight_decay if isinstance(params, AdamWParams) else 0.0
    optimizer = build_optimizer(ours[0], ours[1], params)
    expected = usual([{"params": [theirs[0]], "weight_decay": decay}, {"params": [theirs[1]], "weight_decay": 0.0}])
    for step in gradients:
        for tensors, updating in ((ours, optimizer), (theirs, expected)):
            for tensor, gradient in zip(tensors, step, strict=True):
                tensor.grad = gradient.clone()
            updating.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert str(optimizer.state_dict()["state"]) == str(expected.state_dict()["state"])
    assert not torch.equal(ours[0], start[0])
