"""Starting from a registered version: found with its digest, part of the run key, and taken along to a reproduction."""

import hashlib
from pathlib import Path

import pytest

from assay.devices import Compute
from assay.errors import ModelFileError
from assay.params import HuggingFaceStart, MaskedLanguageStart, Params, ScratchStart, VersionStart, flatten
from assay.records import StartRef
from assay.registry.starts import give_start, with_absolute_start
from assay.tracking.lineage import START_TAG, lineage_tags
from assay.tracking.run_key import assemble_key, explain_difference
from assay.tracking.runs import Tracker
from assay.tracking.starts import find_start, kept_folder
from assay.training.start import read_start
from tests.models.test_huggingface import write_encoder
from tests.registry.test_load import register_one
from tests.tracking.parts import make_data, make_key, make_project

COMPUTE = Compute("cpu", "fp32", 1)


def params_of(**start: object) -> Params:
    return Params.model_validate({"train": {"start": start}})


def test_a_version_is_found_where_its_files_are_and_by_any_store(tracker: Tracker) -> None:
    ref = register_one(tracker)
    params = VersionStart(version=f"{ref.name}@{ref.version}")
    found = find_start(tracker.project, params, Params().registry)
    assert found is not None
    assert (found.kind, found.name, found.digest) == ("version", f"{ref.name}@{ref.version}", ref.manifest_sha256)
    assert read_start(found, params).spec.class_names == ("0", "1", "2")
    short = find_start(
        tracker.project,
        VersionStart(version=str(ref.version)),
        Params().registry.model_copy(update={"model_name": ref.name}),
    )
    assert short == found


def test_what_starts_from_no_files_has_none(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    for params in (ScratchStart(), MaskedLanguageStart()):
        assert find_start(project, params, Params().registry) is None


def test_a_version_that_is_not_there_is_named(sqlite_tracker: Tracker) -> None:
    register_one(sqlite_tracker)
    with pytest.raises(ModelFileError, match=r"train.start.version=other@7: not registered in .* assay models list"):
        find_start(sqlite_tracker.project, VersionStart(version="other@7"), Params().registry)


def test_an_encoder_s_folder_counts_from_the_project_s(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    write_encoder(tmp_path / "minilm")
    found = find_start(project, HuggingFaceStart(path="minilm"), Params().registry)
    assert found is not None and Path(found.folder) == tmp_path / "minilm"
    elsewhere = find_start(project, HuggingFaceStart(path=str(tmp_path / "minilm")), Params().registry)
    assert elsewhere is not None and elsewhere.digest == found.digest


def test_the_key_counts_the_content_of_a_start_and_not_its_name() -> None:
    def key(params: Params, digest: str) -> object:
        return assemble_key(flatten(params.of_run()), "0" * 32, COMPUTE, {}, {}, digest)

    one, moved = params_of(kind="huggingface", path="a"), params_of(kind="huggingface", path="b")
    assert key(one, "1" * 64) == key(moved, "1" * 64)
    old, new = key(one, "1" * 64), key(one, "2" * 64)
    assert explain_difference(old, new) == ("start 11111111 -> 22222222",)  # type: ignore[arg-type]
    scratch = key(Params(), "")
    assert "start none -> 22222222" in explain_difference(scratch, new)  # type: ignore[arg-type]
    other_model = Params.model_validate({**one.model_dump(), "model": {"kind": "mlp"}})
    assert key(other_model, "1" * 64) == old  # the model is that of the files
    assert key(Params.model_validate({"model": {"kind": "mlp"}}), "") != scratch


def test_lineage_says_what_a_run_started_from(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    cases = {
        "version mnist5k-cnn@3": params_of(kind="version", version="3"),
        "version other@3": params_of(kind="version", version="other@3"),
        "huggingface some/folder": params_of(kind="huggingface", path="some/folder"),
        "masked-language": params_of(kind="masked-language"),
    }
    for words, params in cases.items():
        assert lineage_tags(project, make_key(), params, make_data(tmp_path))[START_TAG] == words
    assert START_TAG not in lineage_tags(project, make_key(), Params(), make_data(tmp_path))


def test_a_version_is_taken_along_to_a_project_without_it(tracker: Tracker, tmp_path: Path) -> None:
    ref = register_one(tracker)
    empty = make_project(tmp_path / "empty")
    params = params_of(kind="version", version=f"{ref.name}@{ref.version}").model_dump(mode="json")
    give_start(tracker, params, empty)
    folder = kept_folder(empty, ref.name, ref.version)
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert digest == ref.manifest_sha256
    start = VersionStart(version=f"{ref.name}@{ref.version}")
    if tracker.store.database is not None:
        found = find_start(empty, start, Params().registry)
        assert found == StartRef("version", f"{ref.name}@{ref.version}", str(folder), ref.manifest_sha256)


def test_params_of_a_time_without_starts_and_absolute_paths_stay(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    assert with_absolute_start({"train": {"seed": 1}}, project) == {"train": {"seed": 1}}
    given = params_of(kind="huggingface", path="a").model_dump(mode="json")
    assert with_absolute_start(given, project)["train"]["start"]["path"] == str(tmp_path / "a")
    given = params_of(kind="huggingface", path="/a").model_dump(mode="json")
    assert with_absolute_start(given, project) == given
