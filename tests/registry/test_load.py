from pathlib import Path

import pytest
import torch

from assay.errors import ModelFileError
from assay.models.files import load_model, write_manifest
from assay.records import ModelRef
from assay.registry.load import list_versions, load_version
from assay.registry.register import register
from assay.tracking.runs import Tracker
from tests.registry.parts import SPEC, make_images, make_trained, start_run
from tests.tracking.parts import default_params, make_evaluation


def register_one(tracker: Tracker) -> ModelRef:
    root = tracker.project.root
    run = start_run(tracker)
    ref = register(
        tracker, run.run_id, make_trained(root / "run"), make_evaluation(root / "e"), default_params(), make_images(2)
    )
    tracker.finish(run.run_id)
    return ref


@pytest.fixture
def registered(sqlite_tracker: Tracker) -> tuple[Tracker, ModelRef, Path]:
    """A tracker, a version in it, and the folder of the version's files."""
    ref = register_one(sqlite_tracker)
    uri = sqlite_tracker.client.get_run(ref.run_id).info.artifact_uri
    return sqlite_tracker, ref, Path(uri.removeprefix("file://"), "model")


def test_a_version_comes_back_as_it_was_trained(tracker: Tracker) -> None:
    ref = register_one(tracker)
    trained, _ = load_model(tracker.project.root / "run" / "model")
    model, spec = load_version(tracker, ref.name, ref.version)
    assert spec == SPEC
    assert not model.training
    images = torch.from_numpy(make_images(4)).float()
    with torch.no_grad():
        assert torch.equal(model(images), trained(images))


def test_versions_are_listed_latest_first(sqlite_tracker: Tracker) -> None:
    assert list_versions(sqlite_tracker) == ()
    first, second = register_one(sqlite_tracker), register_one(sqlite_tracker)
    sqlite_tracker.client.set_registered_model_alias(first.name, "champion", "1")
    listed = list_versions(sqlite_tracker, first.name)
    assert [info.ref for info in listed] == [second, first]
    assert [info.aliases for info in listed] == [(), ("champion",)]
    assert listed[0].tags["assay.key"] == "a" * 64
    assert list_versions(sqlite_tracker, "another") == ()


NAMES = ("weights.safetensors", "model.json", "manifest.json", "data/model.pt2", "MLmodel", "input_example.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "empty"])
def test_a_tampered_file_is_named(registered: tuple[Tracker, ModelRef, Path], name: str, how: str) -> None:
    tracker, ref, folder = registered
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-1]), "empty": b""}[how])
    with pytest.raises(ModelFileError) as raised:
        load_version(tracker, ref.name, ref.version)
    assert str(file) in str(raised.value)


def test_an_extra_file_is_named(registered: tuple[Tracker, ModelRef, Path]) -> None:
    tracker, ref, folder = registered
    (folder / "data" / "model.pth").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ModelFileError, match=r"model\.pth"):
        load_version(tracker, ref.name, ref.version)


def test_a_swapped_model_with_a_manifest_of_its_own_is_refused(registered: tuple[Tracker, ModelRef, Path]) -> None:
    tracker, ref, folder = registered
    other = make_trained(tracker.project.root / "other", seed=1)
    (folder / "weights.safetensors").write_bytes(Path(other.model_dir, "weights.safetensors").read_bytes())
    write_manifest(folder)
    with pytest.raises(ModelFileError, match=r"manifest\.json: SHA-256 .*, expected .* The model was changed"):
        load_version(tracker, ref.name, ref.version)


def test_a_model_swapped_between_two_looks_at_its_manifest_is_refused(
    registered: tuple[Tracker, ModelRef, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, ref, folder = registered
    other = make_trained(tracker.project.root / "other", seed=1)
    read_bytes = Path.read_bytes

    def read_then_swap(path: Path) -> bytes:
        content = read_bytes(path)
        if path == folder / "manifest.json":
            (folder / "weights.safetensors").write_bytes(read_bytes(Path(other.model_dir, "weights.safetensors")))
            write_manifest(folder)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_swap)
    with pytest.raises(ModelFileError, match=r"weights\.safetensors: is changed"):
        load_version(tracker, ref.name, ref.version)


def test_a_folder_that_is_gone_is_named(registered: tuple[Tracker, ModelRef, Path]) -> None:
    tracker, ref, folder = registered
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ModelFileError, match=r"the files of models:/digits-cnn/1 are gone"):
        load_version(tracker, ref.name, ref.version)


def test_an_unknown_version_names_the_known_ones(registered: tuple[Tracker, ModelRef, Path]) -> None:
    tracker, ref, _ = registered
    with pytest.raises(ModelFileError, match="Versions of digits-cnn: 1"):
        load_version(tracker, ref.name, 7)
    with pytest.raises(ModelFileError, match="Versions of nothing: none"):
        load_version(tracker, "nothing", 1)


def test_a_version_of_somebody_else_is_refused(registered: tuple[Tracker, ModelRef, Path]) -> None:
    tracker, ref, _ = registered
    tracker.client.delete_model_version_tag(ref.name, "1", "assay.manifest.sha256")
    with pytest.raises(ModelFileError, match="cannot be checked"):
        load_version(tracker, ref.name, 1)
