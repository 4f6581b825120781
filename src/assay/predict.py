"""Batch scoring: images, texts, series or table rows in, one Parquet row each with a registered version's answer.

The version's every byte is checked before it is used. Input is read, answered and written in a stream, so that memory
does not grow with it. The same input, version and device settings give the same bytes.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

import assay
from assay.data.images import bombs_refused
from assay.data.input_batches import NOUNS, InputBatch, Inputs, Tally, Wanted
from assay.data.inputs import open_inputs, require_path
from assay.data.staging import check_space, storage_errors
from assay.devices import Compute, resolve
from assay.errors import DataError, ModelFileError, NonFiniteError, ParamsError, StorageError
from assay.evaluation.answers import AnswerFile
from assay.params import RunParams
from assay.progress import announce
from assay.project import Project
from assay.records import ModelRef, Record
from assay.registry.aliases import CHAMPION
from assay.registry.load import list_versions, load_version
from assay.tracking.runs import Tracker

if TYPE_CHECKING:
    import torch
    from torch import nn

    from assay.models.spec import ModelSpec

BATCH_SIZE = 256
"""Examples that are answered at once, as in evaluation."""

MAX_BATCH_SIZE = 65_536


@dataclass(frozen=True)
class PredictReport(Record):
    """What scoring came to.

    Attributes:
        path: The Parquet file.
        model: The version that answered.
        num_examples: Rows written.
        num_skipped: Examples left out because they cannot be read.
        skipped: The first thousand of them, with the reason.
        class_counts: Class name -> rows with that prediction.
        data_sha256: SHA-256 (hex) over the bytes of the input, in the order of reading.
        device: Device, precision and threads, e.g. ``cpu bf16 x2``.
        notes: Sentences about what was converted, cut or left out.
        seconds: Wall time, reading the version included.
        examples_per_second: Throughput, reading the version excluded.
    """

    path: str
    model: ModelRef
    num_examples: int
    num_skipped: int
    skipped: tuple[str, ...]
    class_counts: dict[str, int]
    data_sha256: str
    device: str
    notes: tuple[str, ...]
    seconds: float
    examples_per_second: float


def predict(
    project: Project,
    params: RunParams,
    source: Path,
    *,
    model: str | None = None,
    out: Path | None = None,
    batch_size: int = BATCH_SIZE,
    skip_bad: bool = False,
    force: bool = False,
    text_column: str | None = None,
) -> PredictReport:
    """Score an input with a registered version and write one Parquet file.

    Columns: ``path`` of a file in a folder, ``row`` of an array, a table or lines of text, both of an image in a shard
    (rows count from 0, lines of a file from 1); ``prediction`` (class name),
    ``probability`` of it, ``probabilities`` (list of float64 in the order of the classes), ``model_name`` and
    ``model_version``. The schema's metadata says what answered what: ``assay.model.name``, ``assay.model.version``,
    ``assay.manifest.sha256``, ``assay.data.sha256``, ``assay.class_names`` (JSON), ``assay.compute``,
    ``assay.num_skipped`` and ``assay.version``.

    Args:
        project: The project.
        params: Its device section says where to compute, its registry section which model is meant.
        source: What `assay.data.inputs.open_inputs` takes.
        model: ``VERSION``, ``ALIAS``, ``NAME@VERSION`` or ``NAME@ALIAS``; the champion by default. The name is
            ``registry.model_name`` where none is given.
        out: The file to write; by default one below ``.assay/predictions/``, which is replaced.
        batch_size: Examples that are answered at once. Probabilities may differ in the last bits between sizes.
        skip_bad: Leave out and list examples that cannot be read.
        force: Replace `out` if it is there.
        text_column: Column of texts in a table, where it is not to be inferred.

    Returns:
        Where the answers are, and what was met.

    Raises:
        ParamsError: `model`, `batch_size` or `text_column` cannot be understood.
        DataError: The input is missing, empty, nothing that the version takes, or an example in it cannot be read.
        ModelFileError: There is no such version, or its files are not what was registered.
        StorageError: The output cannot be written, or is there already.
        DeviceError: The device or precision is not there.
        NonFiniteError: A logit is NaN or infinite.
    """
    begun = time.perf_counter()
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ParamsError(f"--batch-size {batch_size}: must be in 1..{MAX_BATCH_SIZE}. Change it.")
    if out is not None:
        _check_out(out, source, force)
    require_path(source)
    compute = resolve(params.device)
    announce("load", "checking every byte of the registered version")
    tracker = Tracker.open(project, params.registry.experiment)
    ref = find_version(tracker, model, params.registry.model_name)
    module, spec = load_version(tracker, ref.name, ref.version)
    announce("load", f"{ref.name} version {ref.version}", finished=True)
    wanted = Wanted(f"{ref.name} version {ref.version}", spec.kind, spec.shape, spec.columns, spec.tokenizer)
    inputs = open_inputs(source, wanted, text_column)
    folder = out.parent if out is not None else _default_folder(project, ref)
    check_space(folder, (inputs.num_examples or 0) * 8 * (spec.num_classes + 1))

    started, tally, compute_words = time.perf_counter(), Tally(), _describe(compute)
    constants: dict[str, str | int] = {"model_name": ref.name, "model_version": ref.version}
    with storage_errors(folder), bombs_refused(), _draft(folder) as (file, draft):
        with AnswerFile(file, spec.class_names, inputs.id_columns, constants) as answers:
            batches = inputs.read(batch_size, skip_bad, tally)
            score(module, _one_ahead(batches), compute, _telling(answers.add, inputs, started))
            if not answers.num_rows:
                raise DataError(
                    f"{source}: none of its {tally.num_bad:,} {NOUNS[spec.kind][1]} can be read. Is it the right one?"
                )
            sha256 = tally.sha256.hexdigest()
            answers.finish(_metadata(ref, spec, compute_words, sha256, tally.num_bad))
        target = out if out is not None else folder / f"{_safe(source.resolve().stem)}-{sha256[:12]}.parquet"
        _put_in_place(file, draft, target)
    now = time.perf_counter()
    rate = answers.num_rows / (now - started)
    announce("predict", f"{answers.num_rows:,} examples, {rate:,.0f}/s", finished=True)
    return PredictReport(
        path=str(target),
        model=ref,
        num_examples=answers.num_rows,
        num_skipped=tally.num_bad,
        skipped=tuple(tally.bad_examples),
        class_counts={name: answers.counts[name] for name in spec.class_names},
        data_sha256=sha256,
        device=compute_words,
        notes=(*inputs.notes, *tally.notes(wanted)),
        seconds=now - begun,
        examples_per_second=rate,
    )


def find_version(tracker: Tracker, text: str | None, model_name: str) -> ModelRef:
    """Find the version that is meant.

    Args:
        tracker: The open store.
        text: ``VERSION``, ``ALIAS``, ``NAME@VERSION`` or ``NAME@ALIAS``; the champion by default.
        model_name: The model that is meant where no name is given.

    Raises:
        ParamsError: The text is none of these.
        ModelFileError: There is no such version.
    """
    name, at, which = text.rpartition("@") if text is not None else (model_name, "@", CHAMPION)
    if not which or (at and not name):
        raise ParamsError(f"{text!r} is no version. Write 3, {CHAMPION}, {model_name}@3 or {model_name}@{CHAMPION}.")
    name = name or model_name
    versions = () if tracker.store.is_new else list_versions(tracker, name)
    for info in versions:
        if which in (str(info.ref.version), *info.aliases):
            return info.ref
    known = ", ".join(str(info.ref.version) for info in versions)
    if not versions:
        raise ModelFileError(
            f"models:/{name}: not registered in {tracker.store.shown_uri}. Train and register a version: assay run."
        )
    if which.isdecimal():
        raise ModelFileError(f"models:/{name}/{which}: not registered. Versions of {name}: {known}.")
    raise ModelFileError(
        f"models:/{name}@{which}: no version of {name} is the {which} yet. The gate names a champion when a run passes "
        f"it (assay run); name one yourself with assay models promote {versions[0].ref.version}, or score with a "
        f"version: --model {versions[0].ref.version}. Versions of {name}: {known}."
    )


def score(
    model: "nn.Module",
    batches: Iterator[InputBatch],
    compute: Compute,
    keep: Callable[[InputBatch, np.ndarray], None],
) -> None:
    """Let a model answer batch by batch; the softmax is taken in float64, as evaluation does.

    Every batch is a full one, the last one too: how many examples there are changes no bit of an answer.

    Args:
        model: Maps what its spec says to logits ``[batch, class]``; it is put into eval mode and moved to the device.
        batches: Examples.
        compute: Device, precision and threads.
        keep: Takes each batch and its probabilities, float64 ``[example, class]``.

    Raises:
        NonFiniteError: A logit is NaN or infinite; names the example.
    """
    import torch

    from assay.devices import torch_device
    from assay.training.batches import to_model_input
    from assay.training.session import compute_session

    device = torch_device(compute)
    model = model.to(device).eval()
    bf16 = torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute.precision == "bf16")
    with compute_session(compute), torch.inference_mode():
        for batch in batches:
            inputs = torch.from_numpy(batch.inputs)
            if device.type == "cuda":
                inputs = inputs.pin_memory()
            with bf16:
                logits = model(to_model_input(inputs.to(device, non_blocking=True)))
            logits = logits[: len(batch)].to("cpu", torch.float64)
            _check_finite(logits, batch)
            keep(batch, torch.softmax(logits, dim=1).numpy())


def _check_finite(logits: "torch.Tensor", batch: InputBatch) -> None:
    bad = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"{batch.name(bad[0])}: the model's logits are {logits[bad[0]].tolist()[:8]} ({len(bad)} of {len(batch)} "
            "examples of its batch are not finite). Nothing was written. Score with another version."
        )


def _one_ahead(batches: Iterator[InputBatch]) -> Iterator[InputBatch]:
    """Read one batch while another one is answered, and no more."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _telling(
    keep: Callable[[InputBatch, np.ndarray], None], inputs: Inputs, started: float
) -> Callable[[InputBatch, np.ndarray], None]:
    """Announce progress after each batch that is kept."""
    num_done = 0

    def keep_and_tell(batch: InputBatch, probabilities: np.ndarray) -> None:
        keep(batch, probabilities)
        nonlocal num_done
        num_done += len(batch)
        total = inputs.num_examples or 0
        rate = num_done / (time.perf_counter() - started)
        of_total = f" of {total:,}" if total else ""
        announce("predict", f"{num_done:,}{of_total} examples, {rate:,.0f}/s", done=num_done, total=total)

    return keep_and_tell


def _metadata(ref: ModelRef, spec: "ModelSpec", compute: str, sha256: str, num_skipped: int) -> dict[str, str]:
    return {
        "assay.model.name": ref.name,
        "assay.model.version": str(ref.version),
        "assay.manifest.sha256": ref.manifest_sha256,
        "assay.data.sha256": sha256,
        "assay.class_names": json.dumps(spec.class_names, ensure_ascii=False),
        "assay.compute": compute,
        "assay.num_skipped": str(num_skipped),
        "assay.version": assay.__version__,
    }


def _describe(compute: Compute) -> str:
    return f"{compute.device} {compute.precision}" + (f" x{compute.num_threads}" if compute.device == "cpu" else "")


def _check_out(out: Path, source: Path, force: bool) -> None:
    """Refuse an output that would harm something, before anything is read."""
    place, folder = out.resolve(), source.resolve()
    if place == folder or (source.is_dir() and folder in place.parents):
        raise StorageError(f"{out}: lies in the input {source}. Name a file elsewhere, or leave --out away.")
    if out.is_dir():
        raise StorageError(f"{out}: is a folder. Name a file in it: --out {out / 'predictions.parquet'}.")
    if not out.parent.is_dir():
        raise StorageError(f"{out}: there is no folder {out.parent}. Make it first.")
    if out.exists() and not force:
        raise StorageError(f"{out}: is there already. Name another file, or replace it with --force.")


def _default_folder(project: Project, ref: ModelRef) -> Path:
    folder = project.make_home() / "predictions" / f"{_safe(ref.name)}-{ref.version}"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _safe(name: str) -> str:
    return re.sub(r"[^\w .-]", "_", name)


@contextmanager
def _draft(folder: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a file of another name, which is removed unless it was put in place."""
    draft = folder / f".predictions.{os.getpid()}.tmp"
    try:
        with draft.open("wb") as file:
            yield file, draft
    finally:
        draft.unlink(missing_ok=True)


def _put_in_place(file: IO[bytes], draft: Path, target: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(draft, target)
