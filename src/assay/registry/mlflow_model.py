"""A model the way MLflow's own tools read it: ``MLmodel`` with signature and input example, ``data/model.pt2``.

The files are those of ``mlflow.pytorch.save_model(serialization_format="pt2")``, written here because that function
pickles the example into the archive, and looks through all installed packages first, which is slow.
"""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from assay.models.spec import ModelSpec
from assay.records import IMAGE, TEXT

if TYPE_CHECKING:
    from torch import nn

SERVED_PACKAGES = ("mlflow", "numpy", "torch")
"""What MLflow's own tools need to load the model."""

_EXAMPLE_ROWS = 2  # torch.export freezes a batch of one


def save_mlflow_model(model: "nn.Module", spec: ModelSpec, example_inputs: np.ndarray, folder: Path) -> None:
    """Write the model for MLflow.

    Args:
        model: Module in eval mode on the CPU; its weights are laid out row by row, in place.
        spec: Its shapes.
        example_inputs: Input example as the model takes it; images may be uint8. n >= 1; the first two are kept.
        folder: Where to; made when missing.

    Raises:
        OSError: The folder cannot be written.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    example = _two_rows(example_inputs, _input_type(spec))
    _export(model, example, folder / "data" / "model.pt2")
    _write_json(folder / "input_example.json", example.tolist())
    _write_json(folder / "serving_input_example.json", {"inputs": example.tolist()})
    _write_environment(folder)
    _describe(spec, folder)


def _two_rows(inputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Two inputs; a single one is repeated. JSON knows no NaN: steps of padding repeat the last real one."""
    example = np.ascontiguousarray(np.resize(inputs, (_EXAMPLE_ROWS, *inputs.shape[1:])), dtype=dtype)
    return _without_gaps(example) if dtype.kind == "f" else example


def _without_gaps(example: np.ndarray) -> np.ndarray:
    """Fill missing values with 0, and the padding of series with their last step."""
    if example.ndim == 3:
        for series in example:
            length = int((~np.isnan(series).all(axis=1)).sum())
            series[length:] = series[max(0, length - 1)]
    filled: np.ndarray = np.nan_to_num(example)
    return filled


def _input_type(spec: ModelSpec) -> np.dtype:
    return np.dtype("int64" if spec.kind == TEXT else "float32")


def _export(model: "nn.Module", example: np.ndarray, file: Path) -> None:
    """Export with a batch of any size, and without the example, which would be pickled."""
    import torch

    for parameter in model.parameters():
        # An archive holds no other layout whole.
        parameter.data = parameter.data.contiguous()
    program = torch.export.export(
        model, (torch.from_numpy(example),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    program.example_inputs = None
    torch.export.save(program, file)


def _write_environment(folder: Path) -> None:
    requirements = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in SERVED_PACKAGES]
    python = platform.python_version()
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    virtualenv = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))
    (folder / "python_env.yaml").write_text(yaml.safe_dump(virtualenv, sort_keys=False))


def _describe(spec: ModelSpec, folder: Path) -> None:
    """Write ``MLmodel``."""
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype("float32")
    shape = spec.shape
    if spec.kind == IMAGE:
        height, width, channels = spec.image_shape
        shape = (channels, height, width)
    model = Model(
        signature=ModelSignature(
            inputs=Schema([TensorSpec(_input_type(spec), (-1, *shape))]),
            outputs=Schema([TensorSpec(float32, (-1, spec.num_classes))]),
        ),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        },
    )
    model.add_flavor("pytorch", model_data="data", pytorch_version=str(torch.__version__), code=None)
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pytorch",
        data="data",
        python_version=platform.python_version(),
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        # The exported graph is bound to the CPU; MLflow would try to move it where there is a GPU.
        config={"device": "cpu"},
    )
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / "MLmodel"))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
