"""A project of one's own: its files, and its first data with params that fit it.

The files are those of the repository: a wheel carries them beside the package, a checkout has them above it.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

import assay
from assay.data.importing import ImportReport, import_data
from assay.data.run_data import named_source
from assay.data.versioning import make_dvc_files, read_pin
from assay.errors import DataError, ProjectError
from assay.files import replace_file
from assay.infer import Choice, infer_params
from assay.params import DataParams, load_params
from assay.params_edit import edit_params
from assay.project import Project, find_project, project_at
from assay.records import IMAGE, SERIES, TABLE, TEXT

PRESETS = {
    "mnist5k": "params.yaml",
    "image": "params/image.yaml",
    "text": "params/text.yaml",
    "sequence": "params/sequence.yaml",
    "tabular": "params/tabular.yaml",
}
"""Name of a preset -> its params file."""

_PRESET_OF_KIND = {IMAGE: "image", TEXT: "text", SERIES: "sequence", TABLE: "tabular"}
_SHIPPED = "project_files"
_FOLDERS = {"flows": "*.py", "mlflow": "*"}
_FILES = (".gitignore",)
_README = "new_project.md"


@dataclass(frozen=True)
class Beginning:
    """A project and the data that it begins with.

    Attributes:
        project: The project.
        is_new: Whether it was made just now.
        report: What the import did; None where the same data was pinned already.
        choices: What was written into its params.
    """

    project: Project
    is_new: bool
    report: ImportReport | None
    choices: tuple[Choice, ...]


def make_project(folder: Path, preset: str = "mnist5k") -> Project:
    """Make a project in a folder that is empty or not there yet.

    Args:
        folder: The folder.
        preset: One of `PRESETS`.

    Returns:
        The project; no data is pinned in it.

    Raises:
        ProjectError: The folder holds something, or cannot be written; nothing was changed.
    """
    root = folder.absolute()
    _require_empty(root, advice="Name a folder that is not there yet.")
    with _undone_on_failure(root):
        write_files(root, preset)
        _write_params(root, preset_text(preset, model_name(root.name)))
    return project_at(root.resolve())


def begin(folder: Path, wanted: DataParams) -> Beginning:
    """Bring data into the project at or above a folder, or into a new one in that folder.

    Params that nobody has touched yet are chosen to fit the data.

    Args:
        folder: Where the person is.
        wanted: The data; paths count from `folder`.

    Raises:
        ProjectError: There is no project and the folder holds something.
        DataError: The data cannot be had, or other data is pinned; nothing was changed.
    """
    try:
        project = find_project(folder)
    except ProjectError:
        return _begin_new(folder, wanted)
    if project.pin_file.exists():
        _require_same(project, folder, wanted)
        return Beginning(project, False, None, ())
    source, path, options = named_source(folder, wanted)
    report = import_data(project, source, path, options=options)
    choices: tuple[Choice, ...] = ()
    if is_untouched(project):
        choices = _write_choices(project, report, _name_of(source, path))
    return Beginning(project, False, report, choices)


def _begin_new(folder: Path, wanted: DataParams) -> Beginning:
    """Import first: what cannot be imported leaves no project behind."""
    root = folder.resolve()
    source, path, options = named_source(root, wanted)
    _require_room_beside(root, path)
    with _undone_on_failure(root):
        project = project_at(root)
        project.make_home()
        report = import_data(project, source, path, options=options)
        preset = _PRESET_OF_KIND[report.data.kind]
        write_files(root, preset)
        choices = _write_choices(project, report, _name_of(source, path))
    return Beginning(project, True, report, choices)


def _write_choices(project: Project, report: ImportReport, name: str) -> tuple[Choice, ...]:
    """Write a preset of the data's kind into params.yaml, with what was chosen for this data."""
    choices = infer_params(report.data, name)
    values = {path: value for choice in choices for path, value in choice.values.items()}
    _write_params(project.root, preset_text(_PRESET_OF_KIND[report.data.kind], name, values))
    return choices


def _require_same(project: Project, folder: Path, wanted: DataParams) -> None:
    """Import the data aside and compare: only its bytes say whether it is what is pinned."""
    pin = read_pin(project)
    source, path, options = named_source(folder, wanted)
    project.make_home()
    aside = project.dataset(".compared")
    shutil.rmtree(aside.root, ignore_errors=True)
    aside.root.mkdir(mode=0o700, parents=True)
    try:
        found = import_data(aside, source, path, options=options).data
    finally:
        shutil.rmtree(aside.root, ignore_errors=True)
    if found.md5 == pin.md5:
        return
    where = "" if path is None else f" {path}"
    raise DataError(
        f"{project.pin_file}: pins {pin.source} ({pin.num_examples:,} examples, md5 {pin.md5[:8]}), and --data names "
        f"other data ({found.num_examples:,} examples, md5 {found.md5[:8]}). Nothing was changed. Replace what is "
        f"pinned with: assay data import {source}{where}; or begin another project in an empty folder."
    )


def write_files(root: Path, preset: str) -> None:
    """Write all of a project's files but ``params.yaml``, which makes a folder a project.

    Args:
        root: Its folder; made when missing.
        preset: The preset, for the README.
    """
    sources = _sources()
    root.mkdir(parents=True, exist_ok=True)
    for name, pattern in _FOLDERS.items():
        (root / name).mkdir(exist_ok=True)
        for file in sorted((sources / name).glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, root / name / file.name)
    for name in _FILES:
        shutil.copyfile(sources / name, root / name)
    make_dvc_files(root)
    (root / "README.md").write_text(_readme(root.name, preset), encoding="utf-8")


def preset_text(preset: str, name: str, values: Mapping[str, object] | None = None) -> str:
    """Return the text of a new project's ``params.yaml``: a preset, on the data that the project will pin.

    Args:
        preset: One of `PRESETS`.
        name: Name of the registered model.
        values: More params to set, dotted path -> value.
    """
    file = _sources() / PRESETS[preset]
    own = {} if load_params(file).data.is_pinned else {"data.source": None}
    changed = {**own, "registry.model_name": name, **(values or {})}
    return edit_params(file, {path: json.dumps(value) for path, value in changed.items()})[0]


def example_source(preset: str) -> str:
    """Return the source whose data a preset was made for."""
    return load_params(_sources() / PRESETS[preset]).data.source or "mnist5k"


def is_untouched(project: Project) -> bool:
    """Whether ``params.yaml`` is as `make_project` wrote it."""
    text = project.params_file.read_bytes().decode("utf-8", errors="replace")
    name = model_name(project.root.name)
    return any(text == preset_text(preset, name) for preset in PRESETS)


def model_name(text: str) -> str:
    """Turn the name of a file or folder into that of a registered model."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _name_of(source: str, path: Path | None) -> str:
    return model_name(source if path is None else path.resolve().stem if path.is_file() else path.resolve().name)


def _sources() -> Path:
    """Where the files of a project lie: in the wheel beside the package, in a checkout above it."""
    package = Path(assay.__file__).parent
    shipped = package / _SHIPPED
    return shipped if shipped.is_dir() else package.parents[1]


def _readme(name: str, preset: str) -> str:
    template = (Path(assay.__file__).parent / _README).read_text(encoding="utf-8")
    return Template(template).substitute(name=name, source=example_source(preset))


def _write_params(root: Path, text: str) -> None:
    replace_file(root / "params.yaml", text.encode("utf-8"))


def _require_empty(root: Path, advice: str) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise ProjectError(f"{root}: is a file, and a project is a folder. {advice}")
    held = sorted(entry.name for entry in root.iterdir())
    if held:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise ProjectError(f"{root}: is not empty ({', '.join(held[:3])}{more}); nothing was changed. {advice}")


def _require_room_beside(root: Path, path: Path | None) -> None:
    """Refuse a folder that holds anything but the data itself."""
    own = path.resolve() if path is not None else None
    part = own.relative_to(root).parts[:1] if own is not None and own.is_relative_to(root) else ()
    held = sorted(entry.name for entry in root.iterdir() if entry.name not in part)
    if part and part[0] in ("data", *_FOLDERS):
        raise ProjectError(f"{root / part[0]}: is where a project keeps its own files. Move the data elsewhere first.")
    if held or (own is not None and own == root):
        raise ProjectError(
            f"{root}: there is no project here or above, and the folder holds {', '.join(held[:3])}; a new project "
            "wants an empty one. Make one and call from there, e.g. mkdir first && cd first."
        )


@contextmanager
def _undone_on_failure(root: Path) -> Iterator[None]:
    """Remove what the block adds to a folder where it fails; what was there before stays."""
    was_there = root.exists()
    before = {entry.name for entry in root.iterdir()} if was_there else set()
    try:
        yield
    except BaseException as error:
        if root.exists():
            for entry in [entry for entry in root.iterdir() if entry.name not in before]:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if not was_there:
                root.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise ProjectError(
                f"{error.filename or root}: cannot be written ({reason}). Nothing was changed. Choose another folder."
            ) from error
        raise
