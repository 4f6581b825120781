"""``assay ablate``: which level helps, by how much, and how sure."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from assay.ablation import pool
from assay.ablation.design import set_apart
from assay.ablation.request import Request, explain, find_done, num_workers, request, require_consent
from assay.cli.ablation_display import show_ablation, show_plan
from assay.cli.display import drawing
from assay.cli.in_process import flow_ready, prefect_of
from assay.cli.services import follow
from assay.files import replace_file
from assay.params import Params, load_params
from assay.params_edit import edit_params
from assay.progress import Stopwatch
from assay.project import Project, find_project
from assay.records import AblationRecord
from assay.services.forms import sections_of
from assay.services.local_prefect import LocalPrefect
from assay.tracking.ablations import compare_page

_DASHBOARD = "http://127.0.0.1:5000"
"""Where ``assay ui`` puts MLflow's dashboard."""
_NAMED_PATHS = 4


def ablate(args: argparse.Namespace) -> int:
    """Do ``assay ablate``.

    Args:
        args: What the command line said.

    Returns:
        Exit code 0, or that of an ablation in a pool; whatever goes wrong here is raised.
    """
    begun = time.perf_counter()
    project = find_project()
    file = args.params or project.params_file
    params = load_params(file, overrides_of(args))
    if args.pool is not None:
        return follow(project, "ablate", args.pool, params, detach=args.detach, as_json=args.json)
    project.make_home()
    console = Console(stderr=args.json)
    with ExitStack() as stack:
        with drawing(console):
            wanted, found, prefect = _look_back(project, params, None if args.plan else stack)
        if found is None:
            from assay.ablation.ablate import open_ablation  # here, because SciPy takes a third of a second

            plan = open_ablation(wanted).plan()
            show_plan(console, plan)
            if args.plan:
                if args.json:
                    sys.stdout.write(json.dumps(plan.to_json(), ensure_ascii=False) + "\n")
                return 0
            require_consent(plan, params.ablation)
            with drawing(console):
                found = _train(project, params, prefect or _start(project, wanted, stack))
    record = replace(found, seconds=round(time.perf_counter() - begun, 3))
    show_ablation(console, record, _next_commands(project, record, is_applied=args.apply))
    if args.apply:
        _apply(console, file, record, params)
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0


def overrides_of(args: argparse.Namespace) -> Sequence[str]:
    """Return the overrides that the options stand for, and those that were given."""
    options: list[str] = []
    if args.detect is not None:
        options.append(f"ablation.detect={args.detect}")
    if args.seeds is not None:
        options.append(f"ablation.num_seeds={args.seeds}")
    if args.prune is not None:
        options.append(f"ablation.prune={str(args.prune).lower()}")
    if args.yes:
        options.append("ablation.max_trials=1000000")
    return [*options, *args.overrides]


def _look_back(
    project: Project, params: Params, stack: ExitStack | None
) -> tuple[Request, AblationRecord | None, LocalPrefect | None]:
    """Find the ablation if it is done; else start what is slow to start, where nobody has to be asked whether to."""
    watch = Stopwatch()
    with watch.stage("plan", "hashing data, params, code and packages") as words:
        wanted = request(project, params.of_run())
        found, prefect = find_done(wanted), None
        num_trials = len(wanted.design.variants) * len(wanted.design.seeds)
        if found is None and stack is not None and num_trials <= params.ablation.max_trials:
            prefect = _start(project, wanted, stack)
        reasons = explain(wanted, found)
        words.append(f"{'done before: reusing it' if found else 'not done before'}; {'; '.join(reasons)}")
    return wanted, found, prefect


def _start(project: Project, wanted: Request, stack: ExitStack) -> LocalPrefect:
    """Start Prefect and the processes that train, and wait for neither; both end with the stack."""
    if wanted.params.ablation.runner == "processes":
        stack.callback(pool.stop_early)
        device = wanted.compute.device
        pool.start_early(pool.environments(device, num_workers(wanted.params, device)))
    return stack.enter_context(prefect_of(project))


def _train(project: Project, params: Params, prefect: LocalPrefect) -> AblationRecord:
    """Run the flow."""
    text = "starting processes and Prefect"
    with flow_ready(project, "ablate", "ablate", Stopwatch(), text, lambda words: None, prefect) as flow:
        record: AblationRecord = flow(**sections_of("ablate", params.of_run()), project_dir=project.root)
    return record


def _next_commands(project: Project, record: AblationRecord, *, is_applied: bool) -> dict[str, str]:
    from assay.services.paths import ServicePaths
    from assay.services.settings import read_settings

    up = read_settings(ServicePaths(project))
    base = up.mlflow_url if up else _DASHBOARD
    runs = [summary.run_id for summary in record.summaries if summary.run_id]
    commands = {}
    if record.winners and not is_applied:
        commands["take over"] = "assay ablate --apply"
    if record.report_path:
        path = Path(record.report_path)
        commands["report"] = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    if not up:
        commands["dashboard"] = "assay ui"
    return commands | {"compare": compare_page(base, record.experiment_id, runs)}


def _apply(console: Console, file: Path, record: AblationRecord, params: Params) -> None:
    """Write the levels that won into the params file, after showing what changes and where it was found."""
    if not record.winners:
        console.print("\nNo level helps, so params.yaml stays as it is.", highlight=False)
        return
    text, diff = edit_params(file, record.winners)
    if not diff:
        console.print(f"\n{file} has these levels already.", highlight=False)
        return
    console.print()
    console.print(Syntax(diff, "diff", background_color="default") if console.is_terminal else diff)
    replace_file(file, text.encode())
    console.print(f"Written to {file}.", highlight=False)
    apart = set_apart(params.of_run(), load_params(file).of_run())
    if apart:
        first = ", ".join(
            f"{path}={there} instead of {here}" for path, (there, here) in list(apart.items())[:_NAMED_PATHS]
        )
        rest = f" and {len(apart) - _NAMED_PATHS} more" if len(apart) > _NAMED_PATHS else ""
        console.print(
            f"The trials had {first}{rest}. Whether the levels help with the file's own values, "
            "only an ablation with these can say.",
            highlight=False,
        )
