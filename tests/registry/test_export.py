"""ONNX files answer like the model, whatever the size of a batch, and say what they are of."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.cli import main as command_line
from assay.errors import ModelFileError, StorageError
from assay.models.build import build_model
from assay.models.files import load_model
from assay.project import Project
from assay.registry import export
from assay.registry.export import INPUT, OUTPUT, TOLERANCE, ExportReport, example_inputs, export_onnx, to_onnx
from assay.registry.load import load_version
from assay.tracking.runs import Tracker
from tests.models.tiny import CASES, inputs_of, spec_of
from tests.scoring import COLUMNS, NAMES, make_kinds_project

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

REGISTERED = ("pets", "reviews", "tweets", "signals", "patients")
"""Models of every kind of data; an LSTM on series is among `FAMILIES`."""

FAMILIES = [case for case in CASES if case not in ("lstm-text", "transformer-text", "mlp-table")]
"""All but those that ``reviews``, ``tweets`` and ``patients`` are built like; an export takes seconds."""

Exported = Callable[[str], tuple[Path, ExportReport]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield make_kinds_project(tmp_path_factory.mktemp("exporting") / "project")


@pytest.fixture
def tracker(project: Project) -> Tracker:
    return Tracker.open(project, "unit")


@pytest.fixture(scope="module")
def exported(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports version 1 of a model where nobody has yet; the files are to be read only."""

    @cache
    def exported(name: str) -> tuple[Path, ExportReport]:
        out = tmp_path_factory.mktemp(name) / "model.onnx"
        return out, export_onnx(Tracker.open(project, "unit"), name, 1, out)

    return exported


@pytest.mark.parametrize("name", REGISTERED)
def test_the_file_answers_like_the_model_in_batches_of_any_size(
    tracker: Tracker, exported: Exported, name: str
) -> None:
    out, report = exported(name)
    assert report.max_difference is not None and report.max_difference <= TOLERANCE
    assert report.num_checked == 10
    module, spec = load_version(tracker, name, 1)
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    for size in (1, 5, 64):
        inputs = example_inputs(spec, size)
        with torch.inference_mode():
            expected = module(inputs).numpy()
        (found,) = session.run(["logits"], {"input": inputs.numpy()})
        assert found.shape == (size, spec.num_classes)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.ptp(expected, axis=0).max() > 10 * TOLERANCE  # else any answer would do


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES)
def test_a_model_of_each_family_answers_alike(case: str) -> None:
    params, kind = CASES[case]
    spec, inputs = spec_of(params, kind), inputs_of(kind)
    module = build_model(spec, 0).eval()
    content, _ = to_onnx(module, spec, {})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for some in (inputs, inputs[:3], inputs[3:]):
        (logits,) = session.run([OUTPUT], {INPUT: some.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), module(some), rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(exported: Exported) -> None:
    out, report = exported("patients")
    found = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert found["assay.model.name"] == "patients"
    assert found["assay.model.version"] == "1"
    assert found["assay.manifest.sha256"] == report.model.manifest_sha256
    assert found["assay.kind"] == "table"
    assert tuple(json.loads(found["assay.columns"])) == COLUMNS
    assert json.loads(found["assay.class_names"]) == ["class 0", "class 1"]
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]  # no tokenizer
    found = {entry.key: entry.value for entry in onnx.load(exported("pets")[0]).metadata_props}
    assert tuple(json.loads(found["assay.class_names"])) == NAMES


def test_it_holds_no_path_and_the_same_version_gives_the_same_bytes(
    tracker: Tracker, exported: Exported, tmp_path: Path
) -> None:
    export_onnx(tracker, "patients", 1, tmp_path / "again.onnx")
    digests = set()
    for file in (exported("patients")[0], tmp_path / "again.onnx"):
        content = file.read_bytes()
        assert str(Path(export.__file__).parents[1]).encode() not in content
        digests.add(hashlib.sha256(content).hexdigest())
    assert len(digests) == 1


def test_a_tokenizer_lies_beside_a_model_of_text(tracker: Tracker, exported: Exported) -> None:
    out, report = exported("reviews")
    _, spec = load_version(tracker, "reviews", 1)
    assert Path(report.tokenizer) == out.with_name("tokenizer.json")
    assert out.with_name("tokenizer.json").read_text() == spec.tokenizer


def test_nothing_is_replaced_unless_asked(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("precious")
    with pytest.raises(StorageError, match=r"tokenizer\.json: is there already.*--force"):
        export_onnx(tracker, "tweets", 1, tmp_path / "r.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    export_onnx(tracker, "tweets", 1, tmp_path / "r.onnx", force=True)
    assert (tmp_path / "tokenizer.json").read_text() != "precious"
    with pytest.raises(StorageError, match="there is no folder"):
        export_onnx(tracker, "pets", 1, tmp_path / "no" / "r.onnx")


def test_other_answers_are_refused_and_nothing_is_written(
    project: Project, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.to_onnx

    def of_other_weights(module: torch.nn.Module, *rest: object) -> tuple[bytes, int]:
        other, _ = load_model(next((project.root / "models").glob("patients-*")))
        with torch.no_grad():
            next(other.parameters()).add_(0.1)
        return right(other, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "to_onnx", of_other_weights)
    with pytest.raises(ModelFileError, match="differs from the model's by"):
        export_onnx(tracker, "patients", 1, tmp_path / "p.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_EXTRA", ("onnx", "a_package_that_nobody_has"))
    with pytest.raises(ModelFileError, match=r"a_package_that_nobody_has is not installed.*assay\[onnx\]"):
        export_onnx(tracker, "pets", 1, tmp_path / "p.onnx")


def test_without_the_runtime_it_is_unchecked(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = export_onnx(tracker, "patients", 1, tmp_path / "p.onnx")
    assert (report.num_checked, report.max_difference, report.runtime) == (0, None, "")
    onnx.checker.check_model(onnx.load(tmp_path / "p.onnx"))


def test_the_command_line_says_the_numbers(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    out = tmp_path / "p.onnx"
    words = ["models", "export", "patients@1", "--format", "onnx", "--out", str(out)]
    assert command_line.main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record["size_bytes"] == out.stat().st_size
    assert record["max_difference"] <= TOLERANCE
    assert "the logits of 10 examples differ by at most" in shown.err
    assert "input [batch, 5]" in shown.err
    assert command_line.main(words) == 2
    assert "is there already" in capsys.readouterr().err
