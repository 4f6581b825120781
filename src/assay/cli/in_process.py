"""One of the project's flows, run in this process."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from assay.errors import ProjectError
from assay.progress import Stopwatch
from assay.project import Project
from assay.services.local_prefect import LocalPrefect
from assay.services.paths import ServicePaths
from assay.services.settings import read_settings, server_environment


@contextmanager
def flow_ready(
    project: Project,
    module: str,
    name: str,
    watch: Stopwatch,
    text: str,
    meanwhile: Callable[[list[str]], None],
    started: LocalPrefect | None = None,
) -> Iterator[Callable[..., Any]]:
    """Import a flow while Prefect starts; whatever is slow to start, starts side by side.

    Args:
        project: The project.
        module: File of the flow below ``flows/``, without its suffix.
        name: Name of the flow in it.
        watch: Times the start, as stage ``start``.
        text: What a person reads meanwhile.
        meanwhile: Called when Prefect has been started and is not ready yet, with the stage's words.
        started: What `prefect_of` gave, where it was entered before.

    Yields:
        The flow.

    Raises:
        ProjectError: The project has no such flow.
        ServiceError: Prefect does not start.
    """
    with nullcontext(started) if started else prefect_of(project) as prefect:
        with watch.stage("start", text) as words:
            gc.disable()  # nothing that an import makes is garbage, and looking for it takes a second
            meanwhile(words)
            flow = _load_flow(project, module, name)
            prefect.ready()
            gc.freeze()
            gc.enable()
        yield flow


def prefect_of(project: Project) -> LocalPrefect:
    """Return the Prefect API that a flow of this process talks to; entering it starts it and does not wait for it."""
    up = read_settings(ServicePaths(project))
    of_up = server_environment(up.prefect_url, up.mlflow_url) if up else None
    return LocalPrefect(project.home / "prefect", of_up)


def _load_flow(project: Project, module: str, name: str) -> Callable[..., Any]:
    """Import a flow from the project's own files."""
    file = project.flow_file.with_name(f"{module}.py")
    if not file.is_file():
        raise ProjectError(f"{file}: there is no such file. A project brings its flows; restore it.")
    sys.path.insert(0, str(project.root))
    flow = getattr(importlib.import_module(f"flows.{module}"), name, None)
    if flow is None:
        raise ProjectError(f"{file}: defines no flow named '{name}'. Name it '{name}'.")
    return flow  # type: ignore[no-any-return]
