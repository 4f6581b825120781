"""Registered versions: list them, and load one after checking every byte."""

import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assay.errors import ModelFileError, ServiceError
from assay.records import ModelRef
from assay.tracking.alias_table import versions_and_aliases
from assay.tracking.lineage import MANIFEST_TAG
from assay.tracking.lookup import SlowLookupError
from assay.tracking.runs import Tracker, service_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from torch import nn

    from assay.models.spec import ModelSpec


@dataclass(frozen=True)
class VersionInfo:
    """A registered version and where it came from.

    Attributes:
        ref: The version.
        created_ms: Unix time in ms.
        description: Test results in one line.
        aliases: Names that point at it, e.g. ``champion``.
        tags: Lineage: run key, data md5, git commit, hashes.
    """

    ref: ModelRef
    created_ms: int
    description: str
    aliases: tuple[str, ...]
    tags: dict[str, str]


def list_versions(tracker: Tracker, name: str | None = None) -> tuple[VersionInfo, ...]:
    """List registered versions by name, the latest of each first.

    Args:
        tracker: The open store.
        name: Only versions of this model.
    """
    condition = f"name = '{_quoted(name)}'" if name is not None else None
    found: list[ModelVersion] = []
    token: str | None = None
    with service_errors(tracker.store):
        while True:
            page = tracker.client.search_model_versions(condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        aliases = {
            model: tracker.client.get_registered_model(model).aliases for model in {version.name for version in found}
        }
    infos = [_info(version, aliases[version.name]) for version in found]
    return tuple(sorted(infos, key=lambda info: (info.ref.name, -info.ref.version)))


def version_numbers(tracker: Tracker, name: str) -> tuple[int, ...]:
    """Return the numbers of a model's versions, the latest first; of a SQLite file without importing MLflow."""
    if tracker.store.database is not None:
        with suppress(SlowLookupError):
            return versions_and_aliases(tracker.store.database, name)[0]
    return tuple(info.ref.version for info in list_versions(tracker, name))


def latest_version(tracker: Tracker, name: str) -> int:
    """Return the latest version of a model.

    Raises:
        ModelFileError: It has none.
        ServiceError: The store fails.
    """
    found = list_versions(tracker, name)
    if not found:
        raise ModelFileError(f"{name}: has no version in {tracker.store.shown_uri}. Make one: assay run.")
    return found[0].ref.version


def find_version(tracker: Tracker, name: str, version: int) -> VersionInfo:
    """Look one version up.

    Raises:
        ModelFileError: There is no such version; those that there are are named.
        ServiceError: The store fails.
    """
    found = _get_version(tracker, name, version)
    with service_errors(tracker.store):
        aliases = tracker.client.get_registered_model(name).aliases
    return _info(found, aliases)


def load_version(tracker: Tracker, name: str, version: int) -> "tuple[nn.Module, ModelSpec]":
    """Load a registered version from the very bytes that were checked.

    The manifest must hash to what the version's tags say, and every file of the folder to what the manifest says.

    Returns:
        The module in eval mode on the CPU (float32 raw pixels ``[batch, channel, height, width]`` in, logits out),
        and its spec.

    Raises:
        ModelFileError: There is no such version, or one of its files is missing, extra, truncated or changed.
        ServiceError: The store fails.
    """
    from assay.models.files import load_model

    found = _get_version(tracker, name, version)
    expected = found.tags.get(MANIFEST_TAG)
    if not expected:
        raise ModelFileError(
            f"models:/{name}/{version}: has no {MANIFEST_TAG} tag, so its files cannot be checked. "
            "Load a version that Assay registered."
        )
    with _local_folder(tracker, found) as folder:
        return load_model(folder, expected_manifest_sha256=expected)


@contextmanager
def local_version(tracker: Tracker, name: str, version: int) -> Iterator[Path]:
    """Have a registered version's files on this machine for a while; nothing of them is checked yet.

    Yields:
        Their folder.

    Raises:
        ModelFileError: There is no such version, or its files are gone.
        ServiceError: The store fails.
    """
    with _local_folder(tracker, _get_version(tracker, name, version)) as folder:
        yield folder


def _get_version(tracker: Tracker, name: str, version: int) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return tracker.client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise ServiceError(f"{tracker.store.shown_uri}: {str(error).splitlines()[0]}") from error
    known = ", ".join(str(info.ref.version) for info in list_versions(tracker, name)) or "none"
    raise ModelFileError(
        f"models:/{name}/{version}: not registered in {tracker.store.shown_uri}. Versions of {name}: {known}."
    )


@contextmanager
def _local_folder(tracker: Tracker, version: "ModelVersion") -> Iterator[Path]:
    """The version's files on this machine: in place if they are here, else fetched for as long as they are needed."""
    source = version.source or ""
    parts = urllib.parse.urlsplit(source)
    if parts.scheme in ("", "file"):
        folder = Path(urllib.request.url2pathname(parts.path)) if parts.scheme else Path(source)
        if not folder.is_dir():
            raise ModelFileError(f"{folder}: the files of models:/{version.name}/{version.version} are gone.")
        yield folder
        return
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="assay-model-") as target:
        with service_errors(tracker.store):
            fetched = download_artifacts(artifact_uri=source, dst_path=target, tracking_uri=tracker.store.uri)
        yield Path(fetched)


def _info(version: "ModelVersion", aliases: Mapping[str, str]) -> VersionInfo:
    number = int(version.version)
    uri = f"models:/{version.name}/{number}"
    manifest = version.tags.get(MANIFEST_TAG, "")
    return VersionInfo(
        ref=ModelRef(version.name, number, version.run_id or "", uri, manifest),
        created_ms=version.creation_timestamp or 0,
        description=version.description or "",
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == number)),
        tags=dict(version.tags),
    )


def _quoted(name: str) -> str:
    return name.replace("'", "")
