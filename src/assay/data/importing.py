"""Import: a source in, validated and pinned shards out, or nothing changed."""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.data.images import bombs_refused
from assay.data.loading import decode_shards, probe_shards
from assay.data.shards import inspect_shards, write_shards
from assay.data.sources import PACKAGE_SOURCES, Example, Source, SourceOptions, open_source
from assay.data.staging import check_space, replace_data, replace_data_and_pin, settle, staging_folder, storage_errors
from assay.data.validation import SPLIT_NAMES, check_examples
from assay.data.versioning import (
    DataPin,
    PinnedFile,
    check_folder,
    data_lock,
    fetch_from_dvc,
    folder_md5,
    has_data,
    hash_folder,
    read_pin,
    write_pin,
)
from assay.errors import DataError, PinMismatchError, SourceError
from assay.progress import announce
from assay.project import Project
from assay.records import DataRef, DataReport, Record

ADDED = "added"
"""Source of data that was pinned as it lay in ``data/``."""

_NO_OPTIONS = SourceOptions()


@dataclass(frozen=True)
class ImportReport(Record):
    """What an import did.

    Attributes:
        data: The pinned data.
        changed: Whether the pin changed.
        report: What validation saw.
        num_files: Shards.
        size_bytes: Size of all shards.
        notes: Sentences about what was resized, converted or left out.
        bad_examples: Files left out because they cannot be decoded, with the reason.
        seconds: Wall time.
    """

    data: DataRef
    changed: bool
    report: DataReport
    num_files: int
    size_bytes: int
    notes: tuple[str, ...]
    bad_examples: tuple[str, ...]
    seconds: float


def import_data(
    project: Project,
    source: str,
    path: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    options: SourceOptions = _NO_OPTIONS,
) -> ImportReport:
    """Import a source into ``data/`` and pin it in ``data.dvc``.

    Args:
        project: The project.
        source: One of `assay.data.sources.SOURCES`.
        path: The file or folder, for those that read one.
        size: Height and width to resize to, for ``image-folder``.
        skip_bad: Leave out and list what cannot be read, of a file or folder.
        options: What is in which column of a table.

    Returns:
        What was done. Importing the same again changes nothing.

    Raises:
        DataError: Something about the source or its examples; nothing was changed.
        StorageError: No space, or a folder that cannot be written; nothing was changed.
    """
    started = time.monotonic()
    with storage_errors(project.root), data_lock(project), bombs_refused():
        settle(project)
        _check_nothing_unpinned(project)
        opened = open_source(
            source, path, size=size, skip_bad=skip_bad, options=options, download_dir=_downloads(project)
        )
        check_space(project.root, 2 * opened.size_bytes)  # The shards, and DVC's copy of them.
        with staging_folder(project) as staging:
            pin, report = _build(opened, staging / "data")
            changed = _commit(project, staging, pin)
    notes, bad = tuple(opened.notes), tuple(opened.bad_examples)
    return _import_report(project, pin, changed, report, started, notes, bad)


def add_data(project: Project) -> ImportReport:
    """Pin the shards that lie in ``data/`` now, once they pass validation.

    Args:
        project: The project.

    Raises:
        DataError: The shards or examples in them are not sound; the pin was not changed.
        StorageError: No space, or a folder that cannot be written; the pin was not changed.
    """
    started = time.monotonic()
    with storage_errors(project.root), data_lock(project), bombs_refused():
        settle(project)
        files = _shards_in(project.data_dir)
        facts, report = _inspect(project.data_dir)
        pin = _keep_source(project, dataclasses.replace(facts, md5=folder_md5(files), files=files))
        check_space(project.root, pin.size_bytes)
        with staging_folder(project) as staging:
            _link(project.data_dir, staging / "data", files)
            changed = _commit(project, staging, pin, always_cache=True)
    return _import_report(project, pin, changed, report, started)


def restore(project: Project, pin: DataPin) -> None:
    """Put the pinned bytes into an empty ``data/``: from DVC if it has them, otherwise from their source.

    The caller holds the data lock.

    Raises:
        PinMismatchError: The source gives other bytes than the pin says.
        SourceError: The data is nowhere and its source cannot be read.
        StorageError: No space, or a folder that cannot be written.
    """
    with storage_errors(project.root), bombs_refused(), staging_folder(project) as staging:
        check_space(project.root, pin.size_bytes)
        folder = staging / "data"
        if problems := fetch_from_dvc(project, pin, folder):
            shutil.rmtree(folder, ignore_errors=True)
            _rebuild(project, pin, folder, problems)
        replace_data(project, staging)


def _downloads(project: Project) -> Path:
    return project.cache_dir / "downloads"


def _check_nothing_unpinned(project: Project) -> None:
    """An import replaces ``data/``: what lies there must be pinned, so that nobody's work is lost."""
    if not has_data(project):
        return
    if not project.pin_file.exists():
        raise PinMismatchError(
            f"{project.data_dir}: holds files that no data.dvc pins, and an import would replace them. Pin them with: "
            "assay data add, or move them away."
        )
    check_folder(project.data_dir, read_pin(project))


def _build(opened: Source, folder: Path) -> tuple[DataPin, DataReport]:
    """Write the shards, validate what went into them, and work out the pin."""
    import pyarrow

    folder.mkdir()
    tally = _Tally()
    write_shards(
        folder,
        tally.count(opened.examples()),
        opened.class_names,
        has_splits=opened.has_splits,
        has_groups=opened.has_groups,
        kind=opened.kind,
        columns=opened.columns,
    )
    report = tally.check(opened.class_names, opened.kind)
    files = hash_folder(folder)
    pin = DataPin(
        md5=folder_md5(files),
        source=opened.name,
        source_details=opened.details,
        num_examples=report.num_examples,
        class_names=opened.class_names,
        shape=tally.shape or opened.shape,
        files=files,
        written_with=f"pyarrow {pyarrow.__version__}",
        kind=opened.kind,
        columns=opened.columns,
    )
    return pin, report


class _Tally:
    """Keeps label, split, group and content hash of the examples that pass by, and how large the largest is.

    Attributes:
        shape: Of one example where they differ, as in `DataRef`; empty for images, whose shape the source knows.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self._labels: list[int] = []
        self._splits: list[int] = []
        self._groups: list[int] = []
        self._group_numbers: dict[str, int] = {}
        self._hashes: list[bytes] = []

    def count(self, examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            self._labels.append(example.label)
            self._splits.append(SPLIT_NAMES.index(example.split) if example.split else -1)
            self._groups.append(self._group_number(example.group))
            self._hashes.append(example.content_hash)
            if isinstance(example.content, str):
                self.shape = (max(len(example.content.encode()), *self.shape, 1),)
            elif isinstance(example.content, np.ndarray):
                size, *rest = example.content.shape
                self.shape = (max(size, self.shape[0] if self.shape else 0), *rest)
            yield example

    def _group_number(self, group: str | None) -> int:
        return -1 if group is None else self._group_numbers.setdefault(group, len(self._group_numbers))

    def check(self, class_names: tuple[str, ...], kind: str) -> DataReport:
        labels, groups = np.array(self._labels, np.int64), np.array(self._groups, np.int64)
        hashes, splits = np.array(self._hashes, "S16"), np.array(self._splits, np.int8)
        return check_examples(labels, hashes, splits, groups, class_names, kind)


def _commit(project: Project, staging: Path, pin: DataPin, *, always_cache: bool = False) -> bool:
    """Pin and put in place what is staged; an unchanged pin is left alone."""
    old = read_pin(project) if project.pin_file.exists() and not always_cache else _readable_pin(project)
    is_same = old is not None and dataclasses.replace(pin, written_with=old.written_with) == old
    if not is_same or always_cache:
        write_pin(project, staging, pin)
    if not is_same:
        replace_data_and_pin(project, staging)
    elif not has_data(project):
        replace_data(project, staging)
    return not is_same


def _readable_pin(project: Project) -> DataPin | None:
    """The pin, or None where there is none that can be read: `add_data` is the way out of that."""
    try:
        return read_pin(project)
    except DataError:
        return None


def _shards_in(folder: Path) -> tuple[PinnedFile, ...]:
    """Hash the files in a folder that is to hold shards and nothing else."""
    files = hash_folder(folder) if folder.is_dir() else ()
    for file in files:
        if "/" in file.name or not file.name.endswith(".parquet"):
            raise DataError(f"{folder / file.name}: only *.parquet shards belong in data/. Move it elsewhere.")
    return files


def _inspect(folder: Path) -> tuple[DataPin, DataReport]:
    """Decode all shards in a folder, validate the examples, and gather the facts for a pin."""
    info = inspect_shards(folder)
    if not info.num_examples:
        raise DataError(f"{folder}: its shards hold no examples. Add some, or import a source.")
    shape = probe_shards(info)
    parts: list[dict[str, np.ndarray]] = []
    num_done = 0
    for part in decode_shards(info, shape):
        num_done += len(part["labels"])
        parts.append({name: part[name] for name in ("labels", "given_split", "groups", "content_hash")})
        announce("import", "decoding examples", done=num_done, total=info.num_examples)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    class_names = info.class_names or tuple(str(label) for label in range(int(columns["labels"].max()) + 1))
    report = check_examples(
        columns["labels"],
        columns["content_hash"],
        columns["given_split"],
        columns["groups"],
        class_names,
        info.kind,
    )
    facts = DataPin("", ADDED, {}, report.num_examples, class_names, shape, (), kind=info.kind, columns=info.columns)
    return facts, report


def _keep_source(project: Project, pin: DataPin) -> DataPin:
    """Where the bytes are those that were pinned, they still come from where they came from."""
    old = _readable_pin(project)
    if old is None or old.md5 != pin.md5:
        return pin
    return dataclasses.replace(pin, source=old.source, source_details=old.source_details, written_with=old.written_with)


def _link(folder: Path, target: Path, files: tuple[PinnedFile, ...]) -> None:
    """Give files a second name without copying them; copy where the file system has no hard links."""
    target.mkdir()
    for file in files:
        try:
            os.link(folder / file.name, target / file.name)
        except OSError:
            shutil.copyfile(folder / file.name, target / file.name)


def _rebuild(project: Project, pin: DataPin, folder: Path, problems: list[str]) -> None:
    """Read the pinned source again and compare with the pin."""
    if pin.source not in PACKAGE_SOURCES:
        origin = pin.source_details.get("folder") or pin.source_details.get("file")
        again = f"assay data import {pin.source} PATH" if origin else "assay data add"
        raise SourceError(
            f"{project.data_dir}: the pinned data ({pin.source}{f' {origin!r}' if origin else ''}) is not there, and "
            f"DVC does not have it: {'; '.join(problems)}. Configure a DVC remote that has it, or bring the data here "
            f"yourself ({again})."
        )
    opened = open_source(pin.source, download_dir=_downloads(project))
    built, _ = _build(opened, folder)
    if built.md5 == pin.md5:
        return
    found = {file.name: file.md5 for file in built.files}
    file = next(file for file in (*pin.files, *built.files) if found.get(file.name) != file.md5)
    raise PinMismatchError(
        f"{project.data_dir / file.name}: {pin.source} gives md5 {found.get(file.name)}, data.dvc pins {file.md5} "
        f"(written with {pin.written_with}, here is {built.written_with}). Install what constraints.txt names, or pin "
        f"today's bytes: assay data import {pin.source}."
    )


def _import_report(
    project: Project,
    pin: DataPin,
    changed: bool,
    report: DataReport,
    started: float,
    notes: tuple[str, ...] = (),
    bad_examples: tuple[str, ...] = (),
) -> ImportReport:
    return ImportReport(
        data=pin.to_ref(project.data_dir),
        changed=changed,
        report=report,
        num_files=len(pin.files),
        size_bytes=pin.size_bytes,
        notes=notes,
        bad_examples=bad_examples,
        seconds=time.monotonic() - started,
    )
