"""Complete, atomic checkpoints: one safetensors file, its bookkeeping as JSON in the header, no pickle.

The header carries a SHA-256 over all tensors and the bookkeeping, so a damaged file is noticed, and a fingerprint of
what the run depends on, so another run's file is not taken for one's own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from assay.errors import StorageError
from assay.files import replace_file

FORMAT = "assay-checkpoint-2"
_HEADER_LENGTH_BYTES = 8


class UnusableCheckpointError(Exception):
    """A checkpoint that is damaged or another run's; the message says which."""


def fingerprint(**parts: Any) -> str:
    """Return a SHA-256 (hex) over JSON-able parts."""
    text = json.dumps({"format": FORMAT, "torch": torch.__version__, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], values: dict[str, Any], owner: str, *, is_synced: bool = True
) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one, whole.

    Args:
        path: Where to.
        tensors: Tensors by name, on any device, in any layout.
        values: Everything else, JSON-able.
        owner: Fingerprint of the run.
        is_synced: Whether to wait until it is on disk; see `replace_file`.

    Raises:
        StorageError: The folder cannot be written or is full; the old checkpoint stays as it was.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = json.dumps(values, sort_keys=True)
    header = {"format": FORMAT, "owner": owner, "digest": _digest(plain, body, owner), "values": body}
    try:
        content = safetensors.torch.save(plain, {"assay": json.dumps(header, sort_keys=True)})
        replace_file(path, content, is_synced=is_synced)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write the checkpoint ({error.strerror}). Free some space or make the folder writable, "
            "then run the same command again: it goes on from the last checkpoint."
        ) from error


def read_checkpoint(path: Path, owner: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a checkpoint back.

    Args:
        path: Where from.
        owner: Fingerprint of the run that wants to go on.

    Returns:
        The tensors, on the CPU and contiguous, and the other values; None where there is no checkpoint.

    Raises:
        UnusableCheckpointError: The file is damaged, or another run wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableCheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        header = _header(content)
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnusableCheckpointError(f"{path}: is no whole checkpoint ({error})") from error
    if header["digest"] != _digest(tensors, header["values"], header["owner"]):
        raise UnusableCheckpointError(f"{path}: is damaged, its content does not match its SHA-256")
    if header["owner"] != owner:
        raise UnusableCheckpointError(
            f"{path}: belongs to another run: its data, params, device, threads or torch version differ"
        )
    return tensors, json.loads(header["values"])


def _header(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    metadata = json.loads(content[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length])["__metadata__"]
    header = json.loads(metadata["assay"])
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, expected {FORMAT!r}")
    return {name: str(header[name]) for name in ("owner", "digest", "values")}


def _digest(tensors: dict[str, Tensor], body: str, owner: str) -> str:
    digest = hashlib.sha256(f"{owner}\n{len(body)}\n{body}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
