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

if TYPE_CHECKING:
    from torch import nn

SERVED_PACKAGES = ("mlflow", "numpy", "torch")
"""What MLflow's own tools need to load the model."""

_EXAMPLE_ROWS = 2  # torch.export freezes a batch of one


def save_mlflow_model(model: "nn.Module", spec: ModelSpec, example_images: np.ndarray, folder: Path) -> None:
    """Write the model for MLflow.

    Args:
        model: Module in eval mode on the CPU; its weights are laid out row by row, in place.
        spec: Its shapes.
        example_images: Input example, uint8 or float32 ``[n, channel, height, width]``, raw pixel values 0 to 255,
            n >= 1; the first two are kept.
        folder: Where to; made when missing.

    Raises:
        OSError: The folder cannot be written.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    example = _two_rows(example_images)
    _export(model, example, folder / "data" / "model.pt2")
    _write_json(folder / "input_example.json", example.tolist())
    _write_json(folder / "serving_input_example.json", {"inputs": example.tolist()})
    _write_environment(folder)
    _describe(spec, folder)


def _two_rows(images: np.ndarray) -> np.ndarray:
    """Two images of float32; a single one is repeated."""
    return np.ascontiguousarray(np.resize(images, (_EXAMPLE_ROWS, *images.shape[1:])), dtype=np.float32)


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

    height, width, channels = spec.image_shape
    float32 = np.dtype("float32")
    model = Model(
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, channels, height, width))]),
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
