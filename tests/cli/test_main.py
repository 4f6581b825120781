"""The command line: quick to start, one paragraph on a wrong request, the right exit code."""

import errno
import json
import subprocess
import sys

import pytest

from assay.cli import main as cli
from assay.errors import AssayError, NonFiniteError, ParamsError

HEAVY = ("torch", "mlflow", "prefect", "dvc", "sklearn", "pandas", "numpy", "matplotlib", "pyarrow", "pydantic", "rich")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from assay.cli.main import build_parser; build_parser().format_help(); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "--help"], ["data", "import", "--help"]])
def test_help_exits_zero(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert "usage: assay" in capsys.readouterr().out


def test_an_unknown_command_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["fly"])
    assert caught.value.code == 2
    assert "fly" in capsys.readouterr().err


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    return cli.main(["run", *arguments])


@pytest.mark.parametrize(
    ("error", "code"), [(ParamsError("a: b. c."), 2), (NonFiniteError("x"), 1), (AssayError("y"), 2)]
)
def test_an_error_is_one_paragraph_and_its_exit_code(
    error: AssayError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error, monkeypatch) == code
    captured = capsys.readouterr()
    assert captured.err == f"assay: {error}\n"
    assert captured.out == ""


def test_json_gets_the_error_as_a_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(ParamsError("a: b. c."), monkeypatch, "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"error": {"kind": "ParamsError", "message": "a: b. c."}}


def test_a_full_disk_is_a_paragraph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(OSError(errno.ENOSPC, "No space left on device", "/data/x"), monkeypatch) == 2
    assert "/data/x: no space left" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(KeyboardInterrupt(), monkeypatch) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError(), monkeypatch)
