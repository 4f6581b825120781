"""bf16 on any machine, as torch rounds in software where the CPU has no such arithmetic; processes to be killed."""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from assay import devices

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bf16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)


@pytest.fixture(scope="session")
def killable() -> ForkServerContext:
    """Starts processes that a test can kill, each forked from one that has imported torch and runs one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "tests.training.train_until_killed", "tests.training.pretrain_until_killed"]
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'src'}")
        forkserver.ensure_running()
    return context
