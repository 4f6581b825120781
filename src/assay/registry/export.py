"""A registered version as an ONNX file, checked against the model that it was made of."""

import importlib.metadata
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import assay
from assay.errors import ModelFileError, StorageError
from assay.files import replace_file
from assay.models.files import TOKENIZER_FILE
from assay.records import IMAGE, SERIES, TABLE, TEXT, ModelRef, Record
from assay.registry.load import find_version, load_version
from assay.tracking.runs import Tracker

if TYPE_CHECKING:
    from torch import Tensor, nn

    from assay.models.spec import ModelSpec

TOLERANCE = 1e-4
"""Largest difference of a logit between the ONNX file and the model that is let pass."""

INPUT, OUTPUT = "input", "logits"
"""Names of the graph's input and output; their first axis is ``batch``."""

_BATCHES = (1, 2, 7)
_EXTRA = ("onnx", "onnxscript")
_WHAT_IT_TAKES = {
    IMAGE: "float32 [batch, channel, height, width], raw pixel values 0..255",
    TEXT: "int64 [batch, token], token numbers of tokenizer.json, 0 is padding and stands at the end",
    SERIES: "float32 [batch, step, channel], raw values, padding stands at the end and is NaN in all channels",
    TABLE: "float32 [batch, column], raw values, NaN where one is missing",
}


@dataclass(frozen=True)
class ExportReport(Record):
    """What an export came to.

    Attributes:
        path: The ONNX file.
        model: The version.
        kind: Kind of data that it takes.
        input_shape: Of the graph's input, without the batch.
        size_bytes: Size of the file.
        opset: Version of ONNX's own operators.
        tokenizer: The tokenizer beside it; empty where there is no text.
        num_checked: Examples whose logits were compared; 0 where ONNX Runtime is not installed.
        max_difference: Largest difference of a logit; None where nothing was compared.
        runtime: Version of ONNX Runtime that answered; empty where it is not installed.
    """

    path: str
    model: ModelRef
    kind: str
    input_shape: tuple[int, ...]
    size_bytes: int
    opset: int
    tokenizer: str
    num_checked: int
    max_difference: float | None
    runtime: str


def export_onnx(tracker: Tracker, name: str, version: int, out: Path, *, force: bool = False) -> ExportReport:
    """Write a registered version as ONNX with a batch of any size, and for text its ``tokenizer.json`` beside it.

    The file's metadata say what it is: ``assay.model.name``, ``assay.model.version``, ``assay.manifest.sha256``,
    ``assay.kind``, ``assay.class_names`` and ``assay.columns`` (JSON), ``assay.input`` and ``assay.version``.

    Args:
        tracker: The open store.
        name: The model's name.
        version: Its version.
        out: The file to write.
        force: Replace files that are there.

    Returns:
        Where it is, and how far its answers are from the model's.

    Raises:
        ModelFileError: There is no such version, the extra ``onnx`` is not installed, or the file's answers differ from
            the model's by more than `TOLERANCE`; nothing was written.
        StorageError: A file cannot be written, or is there already.
    """
    require_onnx()
    import torch

    ref = find_version(tracker, name, version).ref
    module, spec = load_version(tracker, name, version)
    files = [out, *([out.with_name(TOKENIZER_FILE)] if spec.kind == TEXT else [])]
    for file in files:
        _check_out(file, force)
    torch.manual_seed(0)  # Examples are drawn by a generator of their own; the export draws nothing.
    content, opset = to_onnx(module, spec, _metadata(ref, spec))
    num_checked, difference, runtime = compare(module, spec, content)
    if difference is not None and not difference <= TOLERANCE:
        raise ModelFileError(
            f"models:/{name}/{version}: a logit of the ONNX file differs from the model's by {difference:.2g}, more "
            f"than {TOLERANCE:.0e} (ONNX Runtime {runtime}, {num_checked} examples). Nothing was written."
        )
    try:
        if spec.kind == TEXT:
            replace_file(files[1], spec.tokenizer.encode())
        replace_file(out, content)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}). Free some space, or name another.") from error
    return ExportReport(
        path=str(out),
        model=ref,
        kind=spec.kind,
        input_shape=tuple(example_inputs(spec, 1).shape[1:]),
        size_bytes=len(content),
        opset=opset,
        tokenizer=str(files[1]) if spec.kind == TEXT else "",
        num_checked=num_checked,
        max_difference=difference,
        runtime=runtime,
    )


def require_onnx() -> None:
    """Make sure that the extra ``onnx`` is installed.

    Raises:
        ModelFileError: It is not.
    """
    from importlib.util import find_spec

    missing = [package for package in _EXTRA if find_spec(package) is None]
    if missing:
        raise ModelFileError(
            f"--format onnx: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. Install the "
            "extra: pip install 'assay[onnx]' -c constraints.txt."
        )


def to_onnx(module: "nn.Module", spec: "ModelSpec", metadata: dict[str, str]) -> tuple[bytes, int]:
    """Translate a model.

    Args:
        module: In eval mode on the CPU.
        spec: Its spec.
        metadata: What to say of it in the file.

    Returns:
        The file's bytes and its opset.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own parts.
        program = torch.onnx.export(
            module,
            (example_inputs(spec, 3),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    for node in model.graph.node:
        del node.metadata_props[:]  # Paths of the machine that exported.
        node.doc_string = ""
    opset = next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model.SerializeToString(deterministic=True), opset


def compare(module: "nn.Module", spec: "ModelSpec", content: bytes) -> tuple[int, float | None, str]:
    """Let ONNX Runtime and the model answer the same made-up examples, in batches of several sizes.

    Args:
        module: In eval mode on the CPU.
        spec: Its spec.
        content: The ONNX file.

    Returns:
        Number of examples, the largest difference of a logit, and the runtime's version; 0, None and nothing where the
        runtime is not installed.
    """
    import torch

    try:
        import onnxruntime
    except ImportError:
        return 0, None, ""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for size in _BATCHES:
        inputs = example_inputs(spec, size)
        with torch.inference_mode():
            expected = module(inputs).numpy()
        (found,) = session.run([OUTPUT], {INPUT: inputs.numpy()})
        difference = np.abs(np.asarray(found) - expected).max()
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return sum(_BATCHES), worst, str(onnxruntime.__version__)


def example_inputs(spec: "ModelSpec", num_rows: int) -> "Tensor":
    """Make inputs that look like data: values spread as in training, with padding and missing values.

    Args:
        spec: The model's spec.
        num_rows: How many.

    Returns:
        What the model takes, see `assay.models.spec.ModelSpec`; the same ones each time.
    """
    import torch

    rng = np.random.default_rng(num_rows)
    if spec.kind == IMAGE:
        height, width, channels = spec.image_shape
        return torch.from_numpy(rng.integers(0, 256, (num_rows, channels, height, width)).astype(np.float32))
    lengths = rng.integers(1, spec.shape[0] + 1, num_rows)
    lengths[-1] = spec.shape[0]
    is_padding = np.arange(spec.shape[0]) >= lengths[:, None]
    if spec.kind == TEXT:
        tokens = rng.integers(1, spec.num_tokens, (num_rows, spec.shape[0]))
        return torch.from_numpy(np.where(is_padding, 0, tokens))
    spread = rng.normal(size=(num_rows, *spec.shape))
    values = np.array(spec.mean) + np.array(spec.std) * spread
    gaps = is_padding[..., None] if spec.kind == SERIES else rng.random(values.shape) < 0.1
    return torch.from_numpy(np.where(gaps, np.nan, values).astype(np.float32))


def _metadata(ref: ModelRef, spec: "ModelSpec") -> dict[str, str]:
    values: dict[str, Any] = {
        "assay.model.name": ref.name,
        "assay.model.version": str(ref.version),
        "assay.manifest.sha256": ref.manifest_sha256,
        "assay.kind": spec.kind,
        "assay.class_names": json.dumps(spec.class_names, ensure_ascii=False),
        "assay.columns": json.dumps(spec.columns, ensure_ascii=False),
        "assay.input": _WHAT_IT_TAKES[spec.kind],
        "assay.version": assay.__version__,
        "torch.version": importlib.metadata.version("torch"),
    }
    return values


def _check_out(file: Path, force: bool) -> None:
    if file.is_dir():
        raise StorageError(f"{file}: is a folder. Name a file in it: --out {file / 'model.onnx'}.")
    if not file.parent.is_dir():
        raise StorageError(f"{file}: there is no folder {file.parent}. Make it first.")
    if file.exists() and not force:
        raise StorageError(f"{file}: is there already. Name another file, or replace it with --force.")
