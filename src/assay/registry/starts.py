"""What a run started from, taken along to where it is trained again."""

import shutil
from collections.abc import Mapping
from typing import Any

from assay.errors import StorageError
from assay.params import RegistryParams, VersionStart
from assay.project import Project
from assay.registry.load import local_version
from assay.tracking.runs import Tracker
from assay.tracking.starts import kept_folder, named_version


def with_absolute_start(params: Mapping[str, Any], project: Project) -> dict[str, Any]:
    """Return a run's params with a path to start from that means the same in another folder.

    Args:
        params: All params as JSON values, maybe of a time when none started from anything.
        project: The project that a relative path counts from.
    """
    train = params.get("train", {})
    path = train.get("start", {}).get("path")
    if path is None:
        return dict(params)
    return {**params, "train": {**train, "start": {**train["start"], "path": str(project.root / path)}}}


def give_start(tracker: Tracker, params: Mapping[str, Any], project: Project) -> None:
    """Copy the version that a run started from, if it did, to a project whose own registry is empty.

    Args:
        tracker: The open store that has it.
        params: All params of the run as JSON values.
        project: The project to give it to.

    Raises:
        ModelFileError: The version, or its files, are gone.
        StorageError: The folder cannot be written.
    """
    start = params.get("train", {}).get("start", {})
    if start.get("kind") != "version":
        return
    name, number = named_version(VersionStart.model_validate(start), RegistryParams(**params["registry"]))
    target = kept_folder(project, name, number)
    with local_version(tracker, name, number) as folder:
        try:
            shutil.copytree(folder, target)
        except OSError as error:
            raise StorageError(f"{target}: cannot be written ({error.strerror}). Free some space.") from error
