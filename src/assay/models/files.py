"""A model on disk: ``weights.safetensors``, ``model.json``, for text ``tokenizer.json``, and a SHA-256 manifest.

Nothing here unpickles. The manifest's hashes are checked on the very bytes that are loaded: a file is read once,
hashed, and parsed from memory.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from assay.errors import ModelFileError, StorageError
from assay.files import replace_file
from assay.models.build import build_model
from assay.models.spec import ModelSpec

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "model.json"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
MODEL_FILES = (WEIGHTS_FILE, SPEC_FILE, TOKENIZER_FILE)
"""What a model consists of; the last one only where it takes text."""

_BLOCK_BYTES = 1 << 20


def save_model(model: nn.Module, spec: ModelSpec, folder: Path) -> str:
    """Write a model's weights, spec and manifest; the same model gives the same bytes.

    Args:
        model: Module whose parameters and buffers are written.
        spec: What it takes to build the module again.
        folder: Where to; made when missing. Its other files are left alone and enter the manifest.

    Returns:
        SHA-256 (hex) of the weights file.

    Raises:
        StorageError: The folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / WEIGHTS_FILE, weights)
        replace_file(folder / SPEC_FILE, _json_bytes(spec.to_json()))
        if spec.tokenizer:
            replace_file(folder / TOKENIZER_FILE, spec.tokenizer.encode())
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write the model ({error.strerror}). Free some space or make the folder writable."
        ) from error
    write_manifest(folder)
    return hashlib.sha256(weights).hexdigest()


def load_model(folder: Path, expected_manifest_sha256: str | None = None) -> tuple[nn.Module, ModelSpec]:
    """Read a model after checking it against its manifest.

    Args:
        folder: A folder that `save_model` wrote.
        expected_manifest_sha256: What the manifest itself must hash to (hex), where somebody keeps that.

    Returns:
        The module in eval mode on the CPU, and its spec.

    Raises:
        ModelFileError: A file is missing, extra, truncated or changed, the manifest is another one, or the weights do
            not fit the spec.
    """
    files = _read_manifest(folder, expected_manifest_sha256)
    for needed in (WEIGHTS_FILE, SPEC_FILE):
        if needed not in files:
            raise ModelFileError(f"{folder / MANIFEST_FILE}: does not list {needed}. Export the model again.")
    _check_names(folder, files)
    kept = [name for name in MODEL_FILES if name in files]
    loaded = {name: _check_file(folder, name, files[name]) for name in kept}
    for name in files.keys() - loaded.keys():
        _check_file(folder, name, files[name], keep=False)
    try:
        spec = ModelSpec.from_json(json.loads(loaded[SPEC_FILE]), loaded.get(TOKENIZER_FILE, b"").decode())
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{folder / SPEC_FILE}: does not describe a model ({error}).") from error
    module = build_model(spec, seed=0)
    try:
        module.load_state_dict(safetensors.torch.load(loaded[WEIGHTS_FILE]))
    except (SafetensorError, RuntimeError) as error:
        raise ModelFileError(
            f"{folder / WEIGHTS_FILE}: the weights do not fit {SPEC_FILE} ({error}). Both must come from one model."
        ) from error
    return module.eval(), spec


def write_manifest(folder: Path) -> str:
    """Write ``manifest.json``: SHA-256 and size of every other file in the folder and below.

    Args:
        folder: The folder; links are followed as the files they point to.

    Returns:
        SHA-256 (hex) of the manifest itself.

    Raises:
        StorageError: A file cannot be read or the manifest cannot be written.
    """
    try:
        files = {name: _describe(folder / name) for name in _file_names(folder)}
        content = _json_bytes({"files": files})
        replace_file(folder / MANIFEST_FILE, content)
    except OSError as error:
        raise StorageError(f"{folder}: cannot write its manifest ({error.strerror}).") from error
    return hashlib.sha256(content).hexdigest()


def check_manifest(folder: Path) -> None:
    """Hash every file of a model folder against its manifest.

    Args:
        folder: A folder that `write_manifest` closed.

    Raises:
        ModelFileError: Names the file that is missing, extra, truncated or changed.
    """
    files = _read_manifest(folder)
    _check_names(folder, files)
    for name, entry in files.items():
        _check_file(folder, name, entry, keep=False)


def _json_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _file_names(folder: Path) -> list[str]:
    """Relative names of all files but the manifest and half-written ones, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST_FILE and not name.endswith(".tmp"))


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size_bytes": path.stat().st_size}


def _read_manifest(folder: Path, expected_sha256: str | None = None) -> dict[str, dict[str, Any]]:
    """Read the manifest once: the bytes that are hashed are those that are parsed."""
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}). Export the model again.") from error
    found = hashlib.sha256(content).hexdigest()
    if expected_sha256 not in (None, found):
        raise ModelFileError(
            f"{path}: SHA-256 {found}, expected {expected_sha256}. The model was changed: restore its files, or train "
            "and register again."
        )
    try:
        files = json.loads(content)["files"]
        return {
            str(name): {"sha256": str(e["sha256"]), "size_bytes": int(e["size_bytes"])} for name, e in files.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{path}: is not a manifest. Export the model again.") from error


def _check_names(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    found = set(_file_names(folder))
    for name in sorted(files.keys() - found):
        raise ModelFileError(f"{folder / name}: is missing, though the manifest lists it. Fetch the model again.")
    for name in sorted(found - files.keys()):
        raise ModelFileError(f"{folder / name}: is extra, the manifest does not list it. Remove it.")


def _check_file(folder: Path, name: str, entry: dict[str, Any], keep: bool = True) -> bytes:
    """Hash one file; return its bytes, or nothing where they need not be kept."""
    path = folder / name
    digest, size, kept = hashlib.sha256(), 0, []
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                if keep:
                    kept.append(block)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}). Fetch the model again.") from error
    if size != entry["size_bytes"]:
        how = "is truncated" if size < entry["size_bytes"] else "has grown"
        raise ModelFileError(
            f"{path}: {how}: {size} bytes, the manifest says {entry['size_bytes']}. Fetch the model again."
        )
    if digest.hexdigest() != entry["sha256"]:
        raise ModelFileError(
            f"{path}: is changed: SHA-256 {digest.hexdigest()}, the manifest says {entry['sha256']}. "
            "Fetch the model again."
        )
    return b"".join(kept)
