import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from assay.devices import Compute
from assay.errors import DataError, NonFiniteError, StorageError
from assay.evaluation.predictions import (
    Predictions,
    predict,
    predict_probabilities,
    read_predictions,
    write_predictions,
)
from tests.training.tiny import spec_of

CPU = Compute("cpu", "fp32", 1)


class MeanPixel(nn.Module):
    """Logits: the mean pixel times 0, 1, 2; the number of channels checks the layout."""

    def __init__(self, channels=1):
        super().__init__()
        self.channels = channels

    def forward(self, images):
        assert images.dtype == torch.float32
        assert images.shape[1] == self.channels
        return images.mean(dim=(1, 2, 3))[:, None] / 100 * torch.arange(3.0)


class Broken(MeanPixel):
    def forward(self, images):
        logits = super().forward(images)
        return torch.where(images.amax(dim=(1, 2, 3))[:, None] == 255, torch.nan, logits)


def test_probabilities_are_the_softmax_of_the_chosen_rows(make_dataset):
    dataset = make_dataset(num_examples=600, shape=(8, 6, 3))
    rows = np.arange(599, 0, -2)
    found = predict_probabilities(MeanPixel(3), spec_of(dataset), dataset, rows, CPU)
    logits = dataset.images[rows].mean(axis=(1, 2, 3))[:, None] / 100 * np.arange(3.0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_model_is_put_into_eval_mode(make_dataset):
    model = nn.Sequential(MeanPixel(), nn.Dropout(0.9)).train()
    dataset, rows = make_dataset(), np.arange(50)
    first = predict_probabilities(model, spec_of(dataset), dataset, rows, CPU)
    assert first.tobytes() == predict_probabilities(MeanPixel(), spec_of(dataset), dataset, rows, CPU).tobytes()


def test_bf16_is_close_to_fp32(make_case):
    from pathlib import Path

    from assay.models.files import load_model

    dataset, _, trained = make_case()
    model, _ = load_model(Path(trained.model_dir))
    rows = np.arange(100)
    exact = predict_probabilities(model, spec_of(dataset), dataset, rows, CPU)
    rounded = predict_probabilities(model, spec_of(dataset), dataset, rows, Compute("cpu", "bf16", 1))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.02)


def test_a_logit_that_is_no_number_names_the_row(make_dataset):
    dataset = make_dataset(noise=0.0)
    images = dataset.images.copy()
    images[70] = 255
    object.__setattr__(dataset, "inputs", images)
    with pytest.raises(NonFiniteError, match="example 70"):
        predict_probabilities(Broken(), spec_of(dataset), dataset, np.array([3, 70, 9]), CPU)


def test_file_gives_back_what_was_written_and_the_same_bytes(make_dataset, tmp_path):
    dataset = make_dataset(class_names=("<b>", "日本", 'a"b'))
    predictions = predict(MeanPixel(), spec_of(dataset), dataset, np.array([5, 2, 9]), CPU)
    write_predictions(predictions, tmp_path / "a.parquet")
    write_predictions(predictions, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = read_predictions(tmp_path / "a.parquet")
    assert again.class_names == dataset.ref.class_names
    assert again.data_md5 == dataset.ref.md5
    assert again.rows.tolist() == [5, 2, 9]
    assert again.labels.tolist() == dataset.labels[[5, 2, 9]].tolist()
    assert again.probabilities.tobytes() == predictions.probabilities.tobytes()
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["row", "label", "prediction", "probabilities"]
    assert table["prediction"].to_pylist() == predictions.predicted.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_prediction_is_the_first_class_on_a_tie():
    predictions = Predictions(np.array([0]), np.array([1]), np.array([[0.4, 0.4, 0.2]]), ("a", "b", "c"), "m")
    assert predictions.predicted.tolist() == [0]


def test_files_that_cannot_be_written_or_read_are_named(make_dataset, tmp_path):
    dataset = make_dataset()
    predictions = predict(MeanPixel(), spec_of(dataset), dataset, np.arange(3), CPU)
    with pytest.raises(StorageError, match=r"nowhere/p\.parquet"):
        write_predictions(predictions, tmp_path / "nowhere/p.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=name):
            read_predictions(tmp_path / name)
