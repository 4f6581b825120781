"""A wrong request: one paragraph that names the place, exit code 2, nothing changed."""

import socket
from pathlib import Path

import pytest

from tests.copies import Copy


def files_of(copy: Copy) -> dict[str, bytes]:
    """Everything in the project but the state folder."""
    paths = [
        p for p in copy.root.rglob("*") if p.is_file() and ".assay" not in p.parts and "__pycache__" not in p.parts
    ]
    return {str(path.relative_to(copy.root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.dropout_prob=1.4", "train.dropout_prob=1.4 on the command line: must be in [0, 0.999]. Lower it."),
        ("train.dropuot_prob=0.1", "Did you mean train.dropout_prob?"),
        ("device.kind=cuda", "cuda"),
        ("model.channels=[8,8,8,8]", "too small"),
    ],
)
def test_a_wrong_parameter(served: Copy, override: str, sentence: str) -> None:
    before = files_of(served)
    done = served.assay("run", override)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert files_of(served) == before


def test_no_project_here(tmp_path: Path, project: Copy) -> None:
    done = Copy(tmp_path, project.environment).assay("run")
    assert done.returncode == 2
    assert "no params.yaml here or in any folder above" in done.stderr


def test_a_params_file_that_is_not_there(project: Copy) -> None:
    done = project.assay("run", "--params", "none.yaml")
    assert done.returncode == 2
    assert "none.yaml: cannot be read" in done.stderr


def test_a_flipped_data_byte_is_found_before_anything_runs(project: Copy) -> None:
    shard = next((project.root / "data").glob("*.parquet"))
    shard.chmod(0o644)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(damaged)
    before = files_of(project)
    done = project.assay("run")
    assert done.returncode == 2
    assert shard.name in done.stderr
    assert "assay data" in done.stderr
    assert files_of(project) == before


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"])
@pytest.mark.parametrize("listening", [True, False])
def test_a_named_server_that_is_not_there(project: Copy, variable: str, listening: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # takes the connection and never answers
            server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = project.assay("run", **{variable: url})
    assert done.returncode == 2
    assert f"{variable}={url}" in done.stderr


def test_a_state_folder_that_cannot_be_made(fresh_project: Copy) -> None:
    (fresh_project.root / ".assay").write_text("in the way")
    done = fresh_project.assay("run")
    assert done.returncode == 2
    assert ".assay: cannot create the state folder" in done.stderr


def test_a_missing_flow_is_named(project: Copy) -> None:
    (project.root / "flows" / "pipeline.py").unlink()
    done = project.assay("run")
    assert done.returncode == 2
    assert "flows/pipeline.py" in done.stderr
