"""The data of a run: what ``data.dvc`` pins, or what the run's params name, imported once and pinned beside it."""

from pathlib import Path

from assay.data.importing import import_data
from assay.data.sources import PACKAGE_SOURCES, SourceOptions, infer_source
from assay.data.versioning import materialize
from assay.errors import PinMismatchError
from assay.params import DataParams
from assay.project import Project
from assay.records import DataRef


def data_of_run(project: Project, wanted: DataParams) -> DataRef:
    """Make sure that the data of a run is on disk, every byte as it is pinned.

    What data.dvc pins is never replaced: data that params name has a folder, and a pin, of its own.

    Args:
        project: The project.
        wanted: Which data.

    Raises:
        DataError: The data cannot be had, or is not what is pinned.
        StorageError: No space, or a folder that cannot be written.
    """
    if wanted.is_pinned:
        return materialize(project)
    beside = project.dataset(wanted.name)
    if not beside.pin_file.exists():
        project.make_home()
        beside.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        source, path, options = named_source(project.root, wanted)
        return import_data(beside, source, path, options=options).data
    try:
        return materialize(beside)
    except PinMismatchError as error:
        raise PinMismatchError(
            f"{error} (It is data.source={wanted.source} of the params: where {beside.root} is removed, the next run "
            "imports it anew.)"
        ) from error


def named_source(root: Path, wanted: DataParams) -> tuple[str, Path | None, SourceOptions]:
    """Return what to import for params that name their data: source, path and options.

    Args:
        root: Folder that paths count from.
        wanted: Which data; it names a source or a path.

    Raises:
        SourceError: The path is missing, or does not say which source it is.
    """
    lists = ("keep_columns", "drop_columns")
    given = {
        name: (value,) if name in lists and isinstance(value, str) else value for name, value in wanted.options.items()
    }
    options = SourceOptions(**given)  # type: ignore[arg-type]
    if wanted.path is None:
        return wanted.source or "", None, options
    path = root / Path(wanted.path).expanduser()
    if not path.exists() and wanted.source is None and wanted.path in PACKAGE_SOURCES:
        return wanted.path, None, options
    return wanted.source or infer_source(path)[0], path, options
