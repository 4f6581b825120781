import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from assay.cli import main as command_line
from assay.cli.predict import register
from assay.project import Project
from tests.scoring import make_images, make_scoring_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield make_scoring_project(tmp_path_factory.mktemp("scoring") / "project")


@pytest.fixture
def folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with a bad one; the current folder is the project, the command line knows ``predict``."""

    def build_parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        register(parser.add_subparsers(required=True))
        return parser

    monkeypatch.setattr(command_line, "build_parser", build_parser)
    monkeypatch.chdir(project.root)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(make_images(5)):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "[bad].png").write_bytes(b"x")
    return tmp_path / "pictures"


def test_a_folder_is_scored_and_the_record_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "p.parquet"
    words = ["predict", str(folder), "--skip-bad", "--model", "pets@old", "--out", str(out), "--json"]
    assert command_line.main([*words, "device.num_threads=2", "--batch-size", "2"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert (record["num_examples"], record["num_skipped"], record["path"]) == (5, 1, str(out))
    assert record["model"]["uri"] == "models:/pets/1"
    assert record["device"] == "cpu fp32 x2"
    assert sum(record["class_counts"].values()) == 5
    assert pq.read_table(out)["path"].to_pylist() == [f"{number}.png" for number in range(5)]
    assert "Converted 5 images from colour to grey" in shown.err


def test_people_read_what_was_predicted_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["predict", str(folder), "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    assert "5 examples scored with pets version 2 on cpu fp32 x1" in shown
    assert "Left out 1 that cannot be read:\n    [bad].png: is no JPEG or PNG image\n" in shown
    assert "日本 [x]" in shown
    path = Path(shown.rpartition("Predictions: ")[2].strip())
    assert pq.read_table(path).num_rows == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npy"], "nowhere.npy: does not exist"),
        (["../../pictures"], "leave such pictures out with --skip-bad"),
        (["x.npy", "--model", "7"], "models:/pets/7: not registered"),
        (["x.npy", "--model", "other@champion"], "no version of other is the champion yet"),
        (["x.npy", "--batch-size", "0"], "--batch-size 0: must be in 1..65536"),
        (["x.npy", "--out", "params.yaml"], "params.yaml: is there already"),
        (["x.npy", "device.precision=fp64"], "device.precision"),
    ],
)
def test_a_wrong_request_is_one_paragraph_and_code_2(
    folder: Path, project: Project, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    np.save(project.root / "x.npy", make_images(2))
    source = str(folder) if words[0].endswith("pictures") else words[0]
    assert command_line.main(["predict", source, *words[1:]]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sum(line.startswith("assay: ") for line in shown.err.splitlines()) == 1


def test_its_help_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from assay.cli.predict import register; "
        "register(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'pyarrow', 'numpy', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
