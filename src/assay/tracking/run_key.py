"""The run key: a hash over everything that a run's result depends on.

Equal keys mean equal results, so a finished run with the same key is reused. Every part keeps what it was
hashed from, so that a miss can say which part changed and how.

Left out on purpose, because they do not change the result: `UNKEYED_PARAMS` (how often to checkpoint, which
experiment shows the run), the ``gate`` section (it judges what is there) and the ``data`` and ``device`` sections (the
bytes, device, precision and thread count that they came to are parts of their own).
"""

import ast
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import assay
from assay.errors import ProjectError
from assay.params import RunParams, flatten
from assay.project import Project
from assay.records import RunKey

if TYPE_CHECKING:
    from grimp import ImportGraph

    from assay.devices import Compute

UNKEYED_PARAMS = frozenset(
    {"train.checkpoint_every_seconds", "train.start.path", "train.start.version", "registry.experiment"}
)
"""Parameters that change no result: of what a run starts from, the content counts and not the name."""

SEED_PARAMS = ("split.seed", "train.seed")
"""Parameters that form the key's ``seed`` part."""

PACKAGE_FILE_SUFFIXES = frozenset({".css", ".html", ".j2", ".js"})
"""Files beside a module that shape its output as its source does, e.g. a report's template."""

MAX_NAMED_CHANGES = 8
"""Changes of one part that are spelt out; the rest are counted."""


def compute_run_key(
    project: Project,
    params: RunParams,
    data_md5: str,
    compute: "Compute",
    flow_file: Path | None = None,
    start: str = "",
) -> RunKey:
    """Hash what a run's result depends on.

    Args:
        project: Where ``constraints.txt``, the flow and the cache are.
        params: All parameters of the run.
        data_md5: DVC's hash of the pinned data.
        compute: The device, precision and threads that the run would use.
        flow_file: The flow whose imports count; the project's ``flows/pipeline.py`` by default.
        start: Digest of the files that training starts from; empty without any.

    Returns:
        The key, with the details of every part.

    Raises:
        ProjectError: The flow is missing or is no Python.
    """
    source = source_hashes(flow_file or project.root / "flows" / "pipeline.py", project.cache_dir)
    values = flatten(params)
    if not params.ablation.in_run or not params.ablation.choose:
        values = {name: value for name, value in values.items() if not name.startswith("ablation.")}
    return assemble_key(values, data_md5, compute, source, package_versions(constraints_file(project)), start)


def assemble_key(
    values: Mapping[str, Any],
    data_md5: str,
    compute: "Compute",
    source: Mapping[str, str],
    packages: Mapping[str, str],
    start: str = "",
) -> RunKey:
    """Hash what is known already; many keys that share their source and packages cost little each.

    Args:
        values: Dotted param -> value; those that change no result are left out here.
        data_md5: DVC's hash of the pinned data.
        compute: The device, precision and threads that the run would use.
        source: As `source_hashes` gives it.
        packages: As `package_versions` gives it.
        start: Digest of the files that training starts from; the model is theirs then, and the model section of no
            effect. Empty without any.
    """
    leaves = {
        name: json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if not (start and name.startswith("model."))
    }
    details = {
        "data": {"data md5": data_md5},
        "params": {name: value for name, value in leaves.items() if _is_keyed(name)},
        "seed": {name: leaves[name] for name in SEED_PARAMS},
        "source": dict(source),
        "packages": dict(packages),
        "python": {"python": platform.python_version()},
        "device": {"device": compute.device},
        "precision": {"precision": compute.precision},
        "threads": {"threads": str(compute.num_threads)},
    }
    if start:
        details["start"] = {"start": start}
    parts = {part: _digest(values) if len(values) > 1 else _only(values) for part, values in details.items()}
    return RunKey(digest=_digest(parts), parts=parts, details=details)


def _is_keyed(name: str) -> bool:
    return name not in UNKEYED_PARAMS and name not in SEED_PARAMS and not name.startswith(("data.", "device.", "gate."))


def _only(values: Mapping[str, str]) -> str:
    """The one value of a part that needs no hash, or the hash of nothing."""
    return next(iter(values.values()), _digest({}))


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def source_hashes(flow_file: Path, cache_dir: Path) -> dict[str, str]:
    """Hash the flow and every module of ours that it imports, directly or through others.

    Imports inside functions count; imports for type checkers do not. A package's ``__init__.py`` runs whenever one
    of its modules is imported, so it counts too.

    Args:
        flow_file: A flow; the files beside it that it imports are followed.
        cache_dir: The import graph's own cache lives below it; it is created when missing.

    Returns:
        File name (``assay/models/cnn.py``, ``flows/pipeline.py``) -> SHA-256 (hex) of its bytes.

    Raises:
        ProjectError: The flow, or a file beside it, is missing or is no Python.
    """
    flow_files = _follow_flow(flow_file)
    hashes = module_hashes((name for tree in flow_files.values() for name in _imported_names(tree)), cache_dir)
    hashes |= {f"{file.parent.name}/{file.name}": _file_sha256(file) for file in flow_files}
    return dict(sorted(hashes.items()))


def module_hashes(names: Iterable[str], cache_dir: Path) -> dict[str, str]:
    """Hash the modules of ours behind some imported names, and all that they import.

    Args:
        names: Dotted names, e.g. ``assay.ablation.trial``; those of other packages are passed over.
        cache_dir: The import graph's own cache lives below it; it is created when missing.

    Returns:
        File name (``assay/models/cnn.py``) -> SHA-256 (hex) of its bytes.
    """
    import grimp

    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    graph = grimp.build_graph("assay", cache_dir=str(cache_dir / "imports"), exclude_type_checking_imports=True)
    package_dir = Path(assay.__file__).parent
    files = {_source_file(module, package_dir) for module in _closure(graph, names)}
    files |= {extra for file in files for extra in file.parent.iterdir() if extra.suffix in PACKAGE_FILE_SUFFIXES}
    hashes = {f"assay/{file.relative_to(package_dir).as_posix()}": _file_sha256(file) for file in files}
    return dict(sorted(hashes.items()))


def _follow_flow(flow_file: Path) -> dict[Path, ast.Module]:
    """Parse a flow and, one after another, the files of its folder that it imports."""
    trees: dict[Path, ast.Module] = {}
    waiting = [flow_file.resolve()]
    while waiting:
        file = waiting.pop()
        trees[file] = _parse(file)
        folder = file.parent
        for name in _imported_names(trees[file]):
            parts = name.removeprefix(".").split(".")
            if name.startswith(".") or parts[0] == folder.name:
                parts = parts if name.startswith(".") else parts[1:]
                sibling = folder / f"{parts[0]}.py" if parts else folder / "__init__.py"
                if sibling.is_file() and sibling not in trees:
                    waiting.append(sibling)
    return trees


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise ProjectError(
            f"{file}: the flow cannot be read ({error.strerror}). Every project has a flows/pipeline.py; "
            "restore it, or copy it from a project that `assay new` wrote."
        ) from error
    except (SyntaxError, ValueError) as error:
        raise ProjectError(f"{file}: not valid Python ({error}). Correct it.") from error


def _imported_names(tree: ast.Module) -> Iterator[str]:
    """Every dotted name that a file imports; a relative one starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * min(node.level, 1) + (node.module or "")
            yield from (f"{start}{'' if start.endswith('.') or not start else '.'}{alias.name}" for alias in node.names)


def _closure(graph: "ImportGraph", names: Iterable[str]) -> set[str]:
    """The modules behind `names`, all that they import, and the packages above them."""
    direct = {module for name in names if (module := _module_of(name, graph.modules))}
    found = direct.union(*(graph.find_upstream_modules(module) for module in direct))
    return found | {parent for module in found for parent in _parents(module)}


def _module_of(name: str, modules: set[str]) -> str | None:
    """The module that a dotted name lies in: the name itself, or the longest prefix that is a module."""
    return next((candidate for candidate in (name, *_parents(name)) if candidate in modules), None)


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _source_file(module: str, package_dir: Path) -> Path:
    path = package_dir.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def constraints_file(project: Project) -> Path:
    """The project's ``constraints.txt``, or where it has none the copy that the package brings."""
    own = project.root / "constraints.txt"
    return own if own.is_file() else Path(assay.__file__).parent / "constraints.txt"


def package_versions(constraints: Path) -> dict[str, str]:
    """The installed version of every package that a constraints file names; ``-`` where it is not installed."""
    lines = constraints.read_text().splitlines() if constraints.is_file() else []
    names = sorted({match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))})
    return {name: _installed_version(name) for name in names}


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def explain_difference(old: RunKey, new: RunKey) -> tuple[str, ...]:
    """Say what changed between two keys.

    Returns:
        One short phrase a change, e.g. ``train.dropout_prob 0.3 -> 0.5``, ``assay/models/cnn.py changed``,
        ``numpy 2.4.5 -> 2.4.6``, ``data md5 a1b2c3d4 -> e5f6a7b8``; many changes of one part are counted.
    """
    sentences: list[str] = []
    for part in sorted({*old.parts, *new.parts}, key=_part_order):
        if old.parts.get(part) != new.parts.get(part):
            changes = _changes(part, old.details.get(part, {}), new.details.get(part, {}))
            sentences += _shortened(part, changes or [f"{part} changed"])
    return tuple(sentences)


_PART_ORDER = ("data", "start", "params", "seed", "source", "packages", "python", "device", "precision", "threads")


def _part_order(part: str) -> tuple[int, str]:
    return (_PART_ORDER.index(part) if part in _PART_ORDER else len(_PART_ORDER), part)


def _changes(part: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if part == "source":
        return [f"{name} {_fate(name, old, new)}" for name in names]
    return [f"{name} {_shown(part, old.get(name))} -> {_shown(part, new.get(name))}" for name in names]


def _fate(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if name not in old:
        return "added"
    return "changed" if name in new else "removed"


def _shown(part: str, value: str | None) -> str:
    if value is None:
        return "none"
    if part in ("data", "start"):
        return value[:8]
    if part == "packages" and value == "-":
        return "not installed"
    shown: Any = json.loads(value) if part == "params" else value
    text = shown if isinstance(shown, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shortened(part: str, changes: list[str]) -> list[str]:
    hidden = len(changes) - MAX_NAMED_CHANGES
    if hidden <= 1:
        return changes
    return [*changes[:MAX_NAMED_CHANGES], f"and {hidden} more changes of {part}"]
