import dataclasses
import json
import pickletools
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from assay.errors import ModelFileError
from assay.models.files import check_manifest, load_model
from assay.params import Params
from assay.records import ModelRef
from assay.registry.register import build_model_folder, register
from assay.tracking.runs import Tracker
from tests.registry.parts import SPEC, make_images, make_trained, start_run
from tests.tracking.parts import default_params, make_evaluation

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # about type hints of its own
    import mlflow.pyfunc
    import mlflow.pytorch


@pytest.fixture
def params(request: pytest.FixtureRequest) -> Params:
    values = default_params().model_dump(mode="json")
    values["registry"]["model_name"] = f"digits {request.node.name}".replace("[", " ").replace("]", "")
    return Params.model_validate(values)


def register_run(tracker: Tracker, run_id: str, params: Params) -> ModelRef:
    root = tracker.project.root
    trained = make_trained(root / "run")
    return register(tracker, run_id, trained, make_evaluation(root / "evaluation"), params, make_images(5))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    build_model_folder(make_trained(root), make_images(2), root / "registered")
    return root / "registered"


def test_a_version_leads_back_to_data_code_and_params(tracker: Tracker, params: Params) -> None:
    run = start_run(tracker)
    ref = register_run(tracker, run.run_id, params)
    assert (ref.name, ref.version, ref.run_id) == (params.registry.model_name, 1, run.run_id)
    stored = tracker.client.get_model_version(ref.name, "1")
    trained = make_trained(tracker.project.root / "again")
    assert stored.run_id == run.run_id
    assert stored.tags["assay.key"] == "a" * 64
    assert stored.tags["assay.data.md5"] == "d" * 32 + ".dir"
    assert stored.tags["assay.weights.sha256"] == trained.weights_sha256
    assert stored.tags["assay.manifest.sha256"] == ref.manifest_sha256
    assert len(stored.tags["assay.params.sha256"]) == 64
    assert "not a git repository" in stored.tags["assay.git.commit"]
    assert "accuracy 0.9000 [0.8500, 0.9500]" in stored.description


def test_registering_again_gives_the_same_version(tracker: Tracker, params: Params) -> None:
    run = start_run(tracker)
    first = register_run(tracker, run.run_id, params)
    assert register_run(tracker, run.run_id, params) == first
    assert len(tracker.client.search_model_versions(f"name = '{params.registry.model_name}'")) == 1


@pytest.mark.parametrize("step", ["create_registered_model", "create_model_version"])
def test_a_kill_between_the_steps_is_healed(
    sqlite_tracker: Tracker, params: Params, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = start_run(sqlite_tracker)

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(sqlite_tracker.client, step, die)
        register_run(sqlite_tracker, run.run_id, params)
    assert sqlite_tracker.find_version(run.run_id) is None
    ref = register_run(sqlite_tracker, run.run_id, params)
    assert ref.version == 1
    folder = Path(sqlite_tracker.client.get_run(run.run_id).info.artifact_uri.removeprefix("file://"), "model")
    check_manifest(folder)


def test_mlflows_own_tools_read_a_version(tracker: Tracker, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = register_run(tracker, start_run(tracker).run_id, params)
    ours, _ = load_model(tracker.project.root / "run" / "model")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", tracker.store.uri)
    monkeypatch.setattr(mlflow.tracking._model_registry.utils, "_registry_uri", tracker.store.uri)
    theirs = mlflow.pytorch.load_model(ref.uri)
    served = mlflow.pyfunc.load_model(ref.uri)
    for count in (1, 2, 7):
        images = make_images(count).astype(np.float32)
        with torch.no_grad():
            logits = ours(torch.from_numpy(images))
            torch.testing.assert_close(theirs(torch.from_numpy(images)), logits)
        np.testing.assert_allclose(served.predict(images), logits.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(MlflowException, match="shape"):
        served.predict(np.zeros((2, 1, 9, 9), np.float32))


def test_signature_and_example_say_what_goes_in(model_folder: Path) -> None:
    described = mlflow.models.Model.load(str(model_folder))
    assert described.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert described.signature.outputs.inputs[0].shape == (-1, 3)
    example = described.load_input_example(str(model_folder))
    np.testing.assert_array_equal(example, make_images(2).astype(np.float32))
    requirements = (model_folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "numpy", "torch"]


def test_a_single_example_image_is_enough(tmp_path: Path) -> None:
    build_model_folder(make_trained(tmp_path), make_images(1), tmp_path / "registered")
    exported = mlflow.pytorch.load_model(str(tmp_path / "registered"))
    assert exported(torch.zeros(5, 1, 8, 8)).shape == (5, 3)


def is_pickle(content: bytes) -> bool:
    """Whether bytes are a whole pickle: opcodes up to STOP at the very end."""
    try:
        last = [(opcode.name, position) for opcode, _, position in pickletools.genops(content)][-1]
    except Exception:
        return False
    return last == ("STOP", len(content) - 1)


def test_nothing_in_the_folder_is_a_pickle(model_folder: Path) -> None:
    assert is_pickle(b"\x80\x04K\x01."), "the check itself works"
    contents: dict[str, bytes] = {}
    for file in filter(Path.is_file, model_folder.rglob("*")):
        contents[file.name] = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents |= {f"{file.name}:{name}": archive.read(name) for name in archive.namelist()}
    assert any("model.json" in name for name in contents if name.startswith("model.pt2:"))
    assert [name for name, content in contents.items() if is_pickle(content)] == []
    assert not any(content.startswith(b"PK") for name, content in contents.items() if ":" in name)


def test_the_manifest_covers_every_file(model_folder: Path) -> None:
    listed = json.loads((model_folder / "manifest.json").read_text())["files"]
    found = {file.relative_to(model_folder).as_posix() for file in model_folder.rglob("*") if file.is_file()}
    assert set(listed) == found - {"manifest.json"}
    assert {"weights.safetensors", "model.json", "MLmodel", "data/model.pt2", "input_example.json"} <= found
    model, spec = load_model(model_folder)
    assert spec == SPEC
    assert not model.training


def test_weights_that_training_did_not_hand_over_are_refused(sqlite_tracker: Tracker, params: Params) -> None:
    run = start_run(sqlite_tracker)
    root = sqlite_tracker.project.root
    trained = dataclasses.replace(make_trained(root / "run"), weights_sha256="0" * 64)
    with pytest.raises(ModelFileError, match="training handed over 000000000000"):
        register(sqlite_tracker, run.run_id, trained, make_evaluation(root / "e"), params, make_images(2))
    assert sqlite_tracker.find_version(run.run_id) is None
