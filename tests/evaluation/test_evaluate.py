import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data.splits import load_split
from assay.errors import DataError, ModelFileError, StorageError
from assay.evaluation.evaluate import evaluate
from assay.evaluation.metrics import METRIC_NAMES
from assay.evaluation.predictions import read_predictions
from assay.params import DeviceParams, EvaluationParams
from assay.progress import listening
from assay.records import Evaluation

PARAMS = EvaluationParams(num_bootstrap=200)
DEVICE = DeviceParams(kind="cpu", precision="fp32", num_threads=1)


def test_evaluation_is_whole(make_case, tmp_path):
    dataset, splits, trained = make_case(num_examples=300)
    found = evaluate(dataset, splits, trained, PARAMS, DEVICE, tmp_path / "out", lineage={"git commit": "abc"})
    assert tuple(found.metrics) == METRIC_NAMES
    assert tuple(found.baselines) == ("majority_class", "logistic_regression")
    assert all(tuple(values) == METRIC_NAMES for values in found.baselines.values())
    assert found.baselines["logistic_regression"]["accuracy"] > found.baselines["majority_class"]["accuracy"]
    assert np.sum(found.confusion) == found.num_test == splits.num_test
    assert Path(found.report_path).read_text().count("data:image/png;base64,") == 6
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in found.figures.values())
    for metrics in found.per_class.values():
        assert metrics.intervals["f1"].low <= metrics.f1 <= metrics.intervals["f1"].high
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_predictions_are_of_the_test_rows_and_of_nothing_else(make_case, tmp_path):
    dataset, splits, trained = make_case()
    found = evaluate(dataset, splits, trained, PARAMS, DEVICE, tmp_path)
    predictions = read_predictions(Path(found.predictions_path))
    assert predictions.rows.tolist() == load_split(splits).test.tolist()
    assert predictions.labels.tolist() == dataset.labels[predictions.rows].tolist()
    assert np.mean(predictions.predicted == predictions.labels) == found.metrics["accuracy"].value


def test_same_input_gives_the_same_files_and_numbers(make_case, tmp_path):
    case = make_case()
    first, second = (evaluate(*case, PARAMS, DEVICE, tmp_path / name) for name in "ab")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert first.metrics == second.metrics
    assert first.baselines == second.baselines


def test_hostile_class_names_end_in_an_escaped_report(make_case, tmp_path):
    case = make_case(class_names=("<script>alert(1)</script>", "日本語", "$x^$"))
    page = Path(evaluate(*case, PARAMS, DEVICE, tmp_path).report_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "日本語" in page


def test_a_class_without_test_examples_is_said(make_case, tmp_path):
    dataset, splits, trained = make_case()
    rows = load_split(splits)
    absent = dataset.labels == 1
    labels = np.where(absent & np.isin(np.arange(200), rows.test), 0, dataset.labels)
    found = evaluate(dataclasses.replace(dataset, labels=labels), splits, trained, PARAMS, DEVICE, tmp_path)
    assert found.notes == ("Not in test, so without metrics of their own: dog.",)
    assert found.notes[0] in Path(found.report_path).read_text()
    assert found.per_class["dog"].support == 0
    assert found.per_class["dog"].intervals == {}
    json.dumps(found.to_json(), allow_nan=False)


def test_steps_are_told(make_case, tmp_path):
    case, told, events = make_case(), [], []
    evaluate(*case, PARAMS, DEVICE, tmp_path / "a", on_progress=told.append)
    with listening(events.append):
        evaluate(*case, PARAMS, DEVICE, tmp_path / "b")
    assert [event.text for event in events if event.stage == "evaluate"] == told
    assert len(told) == 5


def test_threads_of_torch_are_put_back(make_case, tmp_path):
    case = make_case()
    evaluate(*case, PARAMS, DeviceParams(kind="cpu", precision="fp32", num_threads=2), tmp_path)
    assert torch.get_num_threads() == 1


def test_a_model_of_other_classes_is_refused(make_case, tmp_path):
    dataset, splits, trained = make_case()
    ref = dataclasses.replace(dataset.ref, class_names=("cat", "dog", "cow"))
    with pytest.raises(DataError, match="or other names"):
        evaluate(dataclasses.replace(dataset, ref=ref), splits, trained, PARAMS, DEVICE, tmp_path)


def test_changed_weights_are_refused_before_anything_is_written(make_case, tmp_path):
    dataset, splits, trained = make_case()
    weights = Path(trained.model_dir) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelFileError, match=r"weights\.safetensors"):
        evaluate(dataset, splits, trained, PARAMS, DEVICE, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_is_named(make_case, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        evaluate(*make_case(), PARAMS, DEVICE, tmp_path / "file")
