import json
from pathlib import Path

import pytest
import torch

from assay.errors import ModelFileError, StorageError
from assay.models.build import build_model
from assay.models.files import check_manifest, load_model, save_model, write_manifest
from tests.models.test_cnn import IMAGES, SPEC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build_model(SPEC, 0), SPEC, tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    module, spec = load_model(folder)
    assert spec == SPEC and not module.training
    with torch.no_grad():
        assert torch.equal(module(IMAGES), build_model(SPEC, 0).eval()(IMAGES))


def test_the_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    digest = save_model(build_model(SPEC, 0), SPEC, tmp_path / "again")
    assert digest == json.loads((folder / "manifest.json").read_text())["files"]["weights.safetensors"]["sha256"]
    for name in ("weights.safetensors", "model.json", "manifest.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_manifest_covers_folders_below(folder: Path) -> None:
    (folder / "export").mkdir()
    (folder / "export" / "model.pt2").write_bytes(b"abc")
    digest = write_manifest(folder)
    assert digest == write_manifest(folder)
    check_manifest(folder)
    load_model(folder)
    (folder / "export" / "model.pt2").write_bytes(b"abd")
    for check in (check_manifest, load_model):
        with pytest.raises(ModelFileError, match=r"export/model\.pt2: is changed"):
            check(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = build_model(SPEC, 1)
    save_model(other, SPEC, path.parent.parent / "other")
    path.write_bytes((path.parent.parent / "other" / path.name).read_bytes())


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
@pytest.mark.parametrize(
    ("damage", "word"), [(truncate, "truncated"), (grow, "grown"), (flip, "changed"), (Path.unlink, "missing")]
)
def test_damage_is_found_and_named(folder: Path, name: str, damage, word: str) -> None:
    damage(folder / name)
    for check in (check_manifest, load_model):
        with pytest.raises(ModelFileError, match=word) as caught:
            check(folder)
        assert str(folder / name) in str(caught.value)


def test_swapped_weights_are_found(folder: Path) -> None:
    swap(folder / "weights.safetensors")
    with pytest.raises(ModelFileError, match="changed"):
        load_model(folder)


def test_an_extra_file_is_found(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    for check in (check_manifest, load_model):
        with pytest.raises(ModelFileError, match=r"notes\.txt: is extra"):
            check(folder)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"files": 3}', b'{"files": {}}'])
def test_a_bad_manifest_is_said(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"manifest\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"class_names": ["a"]}, {"image_shape": [8, 8, 3]}, {"model": {"kind": "cnn", "x": 1}}]
)
def test_a_spec_that_does_not_fit_is_said(folder: Path, change: dict) -> None:
    spec = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**spec, **change}))
    write_manifest(folder)
    with pytest.raises(ModelFileError, match=r"does not describe a model|do not fit"):
        load_model(folder)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the model"):
        save_model(build_model(SPEC, 0), SPEC, tmp_path / "file" / "model")
