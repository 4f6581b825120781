"""A process that is asked to end leaves training after a whole step, with a checkpoint, and then ends."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from assay.training.fit import fit
from assay.training.interruption import deferred
from tests.training.tiny import FP32, MODEL, tiny_dataset
from tests.training.train_until_asked import ASKED_TRAIN

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("sigint_not_ignored")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nobody asks to end."""
    folder = tmp_path_factory.mktemp("unbroken")
    fit(*tiny_dataset(folder), MODEL, ASKED_TRAIN, FP32, folder / "run")
    return (folder / "run/model/weights.safetensors").read_bytes()


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    seen: list[str] = []
    usual = signal.signal(signal.SIGTERM, lambda *_: seen.append("handled"))
    try:
        with deferred() as asked:
            assert not asked.is_asked_for
            signal.raise_signal(signal.SIGTERM)
            assert asked.is_asked_for and not seen
        assert seen == ["handled"]
        signal.raise_signal(signal.SIGTERM)
        assert seen == ["handled", "handled"]
    finally:
        signal.signal(signal.SIGTERM, usual)


def test_ctrl_c_twice_does_not_wait() -> None:
    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), deferred():
        press_twice()


def test_an_ignored_signal_stays_ignored() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked.is_asked_for
    finally:
        signal.signal(signal.SIGINT, usual)


def test_another_thread_holds_nothing_back() -> None:
    usual = signal.getsignal(signal.SIGTERM)
    handlers = []

    def look() -> None:
        with deferred():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [usual]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_asked_to_end_goes_on_where_it_was(
    tmp_path: Path, unbroken: bytes, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "tests.training.train_until_asked", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            if line == "epoch 2\n":
                process.send_signal(number)
                process.stdin.close()
    code = process.returncode
    assert code == -number or (number == signal.SIGINT and code == 1)
    assert (tmp_path / "run/checkpoint.safetensors").exists()
    assert not (tmp_path / "run/result.json").exists()
    resumed = fit(*tiny_dataset(tmp_path), MODEL, ASKED_TRAIN, FP32, tmp_path / "run")
    assert 0 < resumed.resumed_from_step < resumed.num_steps
    assert (tmp_path / "run/model/weights.safetensors").read_bytes() == unbroken
