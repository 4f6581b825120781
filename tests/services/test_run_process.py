"""The process that waits for a run takes it as it is, unless something has changed since it started."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

WAIT = """
import json, os, sys
import assay.services.run_process as run_process
run_process._SLOW_IMPORTS = ("json",)
folder = sys.argv.pop()
sys.path.append(folder)
note = run_process._packages_as_they_are
def noted():
    found = note()
    print("started", flush=True)
    return found
run_process._packages_as_they_are = noted
print(json.dumps(["waited", *run_process.wait_for_run(sys.argv[1])]))
"""


def answer(tmp_path: Path, environment: Mapping[str, str], change: bool = False) -> list[object]:
    """What becomes of a run that is handed to a waiting process."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    # `python -m assay.services.run_process` is what it executes when it starts over: here a stand-in that says so.
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        'print(json.dumps(["over", sys.argv[-1], os.environ.get("FLAVOUR")]))\n'
    )
    stand_in.chmod(0o700)
    program = WAIT.replace("import assay", f"sys.executable = {str(stand_in)!r}\nimport assay", 1)
    own = os.environ | {"FLAVOUR": "plain"}
    with subprocess.Popen(
        [sys.executable, "-c", program, "cpu-0", "1", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=own,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "started\n"
        if change:
            (folder / "another_package").mkdir()
        told = json.dumps({"flow_run_id": "abc", "environment": own | dict(environment)})
        process.stdin.write(told + "\n")
        process.stdin.flush()
        found: list[object] = json.loads(next(line for line in process.stdout if line != "started\n"))
    return found[:2] if found[0] == "waited" else found


def test_a_run_is_taken_as_it_is(tmp_path: Path) -> None:
    assert answer(tmp_path, {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT__FLOW_RUN_ID": "abc"}) == ["waited", "abc"]


def test_another_variable_starts_the_process_over(tmp_path: Path) -> None:
    assert answer(tmp_path, {"FLAVOUR": "salty"}) == ["over", "abc", "salty"]


def test_another_package_starts_the_process_over(tmp_path: Path) -> None:
    assert answer(tmp_path, {}, change=True) == ["over", "abc", "plain"]


@pytest.mark.parametrize("slot", ["cpu-0", "tpu-0"])
def test_without_a_run_it_ends(slot: str) -> None:
    program = (
        "import sys\nimport assay.services.run_process as r\nr._SLOW_IMPORTS = ()\nprint(r.wait_for_run(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program, slot], input="", capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize("preload", [True, False])
def test_what_is_slow_is_imported_ahead_unless_that_is_off(preload: bool) -> None:
    program = (
        "import sys\nimport assay.services.run_process as r\nr._SLOW_IMPORTS = ('wave',)\nr.wait_for_run('cpu-0')\n"
        "print('wave' in sys.modules)"
    )
    own = os.environ | {} if preload else os.environ | {"ASSAY_PRELOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], input="", capture_output=True, text=True, check=True, env=own
    )
    assert done.stdout == f"{preload}\n"
