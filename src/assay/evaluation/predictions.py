"""A model's class probabilities on chosen examples, and the Parquet file that keeps them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float64, Int64
from torch import nn

from assay.data.loading import Dataset
from assay.devices import Compute, torch_device
from assay.errors import DataError, NonFiniteError, StorageError
from assay.models.spec import ModelSpec
from assay.training.batches import Batches, to_model_input
from assay.training.session import compute_session

_BATCH_SIZE = 256
_NAMES_KEY, _MD5_KEY = b"assay.class_names", b"assay.data_md5"


@dataclass(frozen=True)
class Predictions:
    """What a model says about some examples of one data set.

    Attributes:
        rows: Row numbers in the data set, int64 ``[example]``.
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``; rows sum to 1.
        class_names: Names of the classes.
        data_md5: Hash of the data set.
    """

    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    data_md5: str

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, int64 ``[example]``; the first one on a tie."""
        answer: np.ndarray = self.probabilities.argmax(axis=1)
        return answer


def predict(model: nn.Module, spec: ModelSpec, dataset: Dataset, rows: np.ndarray, compute: Compute) -> Predictions:
    """Let a model answer some examples of a data set.

    Args:
        model: Maps what its spec says to logits ``[batch, class]``; it is put into eval mode and moved to the device.
        spec: Its spec.
        dataset: All examples.
        rows: Row numbers, int64 ``[example]``.
        compute: Device, precision and threads; the same ones give the same bits.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    probabilities = predict_probabilities(model, spec, dataset, rows, compute)
    names, md5 = dataset.ref.class_names, dataset.ref.md5
    return Predictions(np.asarray(rows, np.int64), np.asarray(dataset.labels[rows]), probabilities, names, md5)


def predict_probabilities(
    model: nn.Module, spec: ModelSpec, dataset: Dataset, rows: Int64[np.ndarray, " example"], compute: Compute
) -> Float64[np.ndarray, "example class"]:
    """Compute class probabilities, batch by batch; the softmax is taken in float64.

    Every batch is of the same size, the last one filled up, as the kernels for a few examples round otherwise: an
    answer does not depend on how many are asked for.

    Args:
        model: As in `predict`.
        spec: Its spec.
        dataset: All examples.
        rows: Row numbers, int64 ``[example]``.
        compute: Device, precision and threads.

    Returns:
        Probabilities, float64 ``[example, class]``.

    Raises:
        NonFiniteError: A logit is NaN or infinite; names the row.
    """
    device = torch_device(compute)
    model = model.to(device).eval()
    if not len(rows):
        return np.empty((0, len(dataset.ref.class_names)))
    batches = Batches(dataset, rows, device, spec)
    parts = []
    bf16 = torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute.precision == "bf16")
    with compute_session(compute), torch.inference_mode(), bf16:
        for positions in torch.arange(len(rows)).split(_BATCH_SIZE):  # type: ignore[no-untyped-call]
            full = positions.new_full((_BATCH_SIZE,), int(positions[-1]))
            full[: len(positions)] = positions
            images, _ = batches.take(full)
            logits = model(to_model_input(images))
            parts.append(logits[: len(positions)].to("cpu", torch.float64))
    logits = torch.cat(parts)
    _check_finite(logits, rows)
    return torch.softmax(logits, dim=1).numpy()


def _check_finite(logits: torch.Tensor, rows: np.ndarray) -> None:
    bad = torch.nonzero(~torch.isfinite(logits).all(dim=1)).flatten()
    if len(bad):
        raise NonFiniteError(
            f"example {rows[int(bad[0])]}: the model's logits are {logits[bad[0]].tolist()[:8]} ({len(bad)} of "
            f"{len(rows)} examples are not finite). Train again with a lower train.optimizer.learning_rate, or with "
            "train.max_grad_norm=1."
        )


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write one Parquet row an example; the same predictions give the same bytes.

    Columns: ``row``, ``label`` and ``prediction`` (int64) and ``probabilities`` (a list of float64, one a class).
    The schema's metadata holds the class names (JSON) and the data's md5.

    Args:
        predictions: What to write.
        path: The file; replaced in one step.

    Raises:
        StorageError: The file cannot be written.
    """
    num_classes = predictions.probabilities.shape[1]
    flat = pa.array(np.ascontiguousarray(predictions.probabilities).ravel())
    columns = {
        "row": pa.array(predictions.rows),
        "label": pa.array(predictions.labels),
        "prediction": pa.array(predictions.predicted),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, num_classes),
    }
    names = json.dumps(predictions.class_names, ensure_ascii=False).encode()
    table = pa.table(columns).replace_schema_metadata({_NAMES_KEY: names, _MD5_KEY: predictions.data_md5.encode()})
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write the predictions ({error.strerror or error}). Free some space or make the folder "
            "writable."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        DataError: The file is missing or is no such file.
    """
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        names = tuple(json.loads(metadata[_NAMES_KEY]))
        flat = table["probabilities"].combine_chunks().flatten().to_numpy()
        return Predictions(
            rows=table["row"].to_numpy(),
            labels=table["label"].to_numpy(),
            probabilities=flat.reshape(-1, len(names)),
            class_names=names,
            data_md5=metadata[_MD5_KEY].decode(),
        )
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is no file of predictions ({error}). Evaluate the model again.") from error
