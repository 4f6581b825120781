"""A lock says who holds it, and dies with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from assay.services.locks import hold, holder

HOLD_FOR_EVER = """
import sys, time
from pathlib import Path
from assay.services.locks import hold
with hold(Path(sys.argv[1]), {"flow_run_id": "abc"}, wait=True):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_nobody_holds_a_lock_that_was_never_made(tmp_path: Path) -> None:
    assert holder(tmp_path / "none.lock") is None


def test_the_holder_says_what_it_is_and_nobody_else_gets_in(tmp_path: Path) -> None:
    file = tmp_path / "device.lock"
    with hold(file, {"flow_run_id": "abc"}, wait=False) as is_ours:
        assert is_ours
        assert holder(file) == {"pid": os.getpid(), "flow_run_id": "abc"}
        with hold(file, {"flow_run_id": "other"}, wait=False) as second:
            assert not second
        assert holder(file) == {"pid": os.getpid(), "flow_run_id": "abc"}
    assert holder(file) is None
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "device.lock"
    command = [sys.executable, "-c", HOLD_FOR_EVER, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert holder(file) == {"pid": process.pid, "flow_run_id": "abc"}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(file) is None
    with hold(file, {}, wait=False) as is_ours:
        assert is_ours


def test_looking_does_not_keep_anybody_out(tmp_path: Path) -> None:
    file = tmp_path / "device.lock"
    file.touch()
    assert holder(file) is None
    with hold(file, {}, wait=False) as is_ours:
        assert is_ours
