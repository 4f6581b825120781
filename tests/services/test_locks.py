"""A lock says who holds it, and dies with its process."""

import os
import signal
import subprocess
import sys
import threading
import time
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


LOOK_FOR_EVER = """
import sys
from pathlib import Path
from assay.services.locks import holder
print("looking", flush=True)
while True:
    holder(Path(sys.argv[1]))
"""


def test_who_looks_stands_in_nobodys_way(tmp_path: Path) -> None:
    file = tmp_path / "run.lock"
    file.touch()
    with subprocess.Popen([sys.executable, "-c", LOOK_FOR_EVER, str(file)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(3000):
                with hold(file, {}, wait=False) as is_ours:
                    assert is_ours
        finally:
            process.kill()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    """Whoever waited for the old file has a lock that nobody can see."""
    file = tmp_path / "run.lock"
    waiting = threading.Event()
    seen: list[dict[str, object] | None] = []

    def wait_and_look() -> None:
        waiting.set()
        with hold(file, {"flow_run_id": "next"}, wait=True):
            seen.append(holder(file))

    thread = threading.Thread(target=wait_and_look)
    with hold(file, {"flow_run_id": "first"}, wait=False):
        thread.start()
        waiting.wait()
        time.sleep(0.1)  # for the other one to have opened the file
        file.unlink()
    thread.join()
    assert seen == [{"pid": os.getpid(), "flow_run_id": "next"}]
