"""What a run starts from: found, and its digest known, before anything heavy starts."""

import hashlib
import sqlite3
import urllib.parse
import urllib.request
from pathlib import Path

from assay.errors import ModelFileError
from assay.params import HuggingFaceStart, RegistryParams, StartParams, VersionStart
from assay.project import Project
from assay.records import StartRef
from assay.tracking import lookup
from assay.tracking.lineage import MANIFEST_TAG
from assay.tracking.runs import service_errors
from assay.tracking.store import find_store, open_client

MANIFEST_FILE = "manifest.json"
"""The file of a model folder that lists the hashes of all others, see `assay.models.files`."""


def find_start(project: Project, params: StartParams, registry: RegistryParams) -> StartRef | None:
    """Find the files that a run starts from; of a version that lies elsewhere, bring them here.

    Args:
        project: The project.
        params: The run's choice of a start.
        registry: The model that a version number alone is of.

    Returns:
        Where they are and what they hash to; None where a run starts from no files. That a version's files are what
        its manifest says is checked when they are read.

    Raises:
        ModelFileError: There is no such version, it was not registered by Assay, or a file is not there.
        ServiceError: The store fails.
    """
    match params:
        case VersionStart():
            name, number = named_version(params, registry)
            return _find_version(project, name, number)
        case HuggingFaceStart():
            from assay.models.huggingface_files import read_folder

            folder = project.root / Path(params.path).expanduser()
            return StartRef(params.kind, params.path, str(folder), read_folder(folder)[1])
        case _:
            return None


def named_version(params: VersionStart, registry: RegistryParams) -> tuple[str, int]:
    """Return the registered model and the version that a start names."""
    name, _, number = params.version.rpartition("@")
    return name or registry.model_name, int(number)


def kept_folder(project: Project, name: str, number: int) -> Path:
    """Return where a copy of a version is kept that is not registered in this project's own files."""
    return project.home / "starts" / f"{name}@{number}"


def _find_version(project: Project, name: str, number: int) -> StartRef:
    shown, kept = f"{name}@{number}", kept_folder(project, name, number)
    store = find_store(project)
    found: tuple[str, str] | None = None
    if not store.is_new:
        try:
            if store.database is None:
                raise lookup.SlowLookupError
            found = lookup.find_version_files(store.database, name, number)
        except (lookup.SlowLookupError, sqlite3.Error):
            found = _ask_for_version(project, name, number)
    if found is None:
        if (kept / MANIFEST_FILE).is_file():
            digest = hashlib.sha256((kept / MANIFEST_FILE).read_bytes()).hexdigest()
            return StartRef("version", shown, str(kept), digest)
        raise ModelFileError(
            f"train.start.version={shown}: not registered in {store.shown_uri}. Name one that is: assay models list."
        )
    source, digest = found
    if not digest:
        raise ModelFileError(
            f"train.start.version={shown}: has no {MANIFEST_TAG} tag, so its files cannot be checked. Start from a "
            "version that Assay registered."
        )
    parts = urllib.parse.urlsplit(source)
    if parts.scheme in ("", "file"):
        folder = Path(urllib.request.url2pathname(parts.path)) if parts.scheme else Path(source)
        return StartRef("version", shown, str(folder), digest)
    if not _is_kept(kept, digest):
        _fetch(project, source, kept)
    return StartRef("version", shown, str(kept), digest)


def _ask_for_version(project: Project, name: str, number: int) -> tuple[str, str] | None:
    from mlflow.exceptions import MlflowException

    store = find_store(project)
    with service_errors(store):
        try:
            version = open_client(project, store).get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    return version.source or "", version.tags.get(MANIFEST_TAG, "")


def _is_kept(folder: Path, digest: str) -> bool:
    manifest = folder / MANIFEST_FILE
    return manifest.is_file() and hashlib.sha256(manifest.read_bytes()).hexdigest() == digest


def _fetch(project: Project, source: str, folder: Path) -> None:
    """Bring a version's files here; the manifest comes last, so that a folder with one is whole."""
    import shutil
    import tempfile

    from mlflow.artifacts import download_artifacts

    store = find_store(project)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as target:
        with service_errors(store):
            fetched = download_artifacts(artifact_uri=source, dst_path=target, tracking_uri=store.uri)
        shutil.rmtree(folder, ignore_errors=True)
        Path(fetched).rename(folder)
