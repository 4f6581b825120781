"""``assay run``: the whole chain in this process, or the finished run of the same key."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rich.console import Console

from assay.cli.display import drawing, show_result
from assay.cli.in_process import flow_ready
from assay.cli.models import EXIT_NO
from assay.cli.services import follow
from assay.errors import ParamsError, SourceError
from assay.params import DataParams, RunParams, load_params
from assay.params.stages import SourceOption
from assay.plan import look_back, make_plan, open_tracker, why_reused
from assay.progress import Stopwatch
from assay.project import Project, find_project
from assay.records import RunRecord
from assay.tracking.store import find_store


def run(args: argparse.Namespace) -> int:
    """Do ``assay run``.

    Args:
        args: what the command line said.

    Returns:
        Exit code 0, 3 where the gate kept the new version from being champion, or that of a run in a pool; whatever
        goes wrong here is raised.
    """
    begun = time.perf_counter()
    console = Console(stderr=args.json)
    project = find_project() if not _names_data(args) else _bring_data(console, args)
    all_params = load_params(args.params or project.params_file, args.overrides)
    if args.pool is not None:
        return follow(project, "pipeline", args.pool, all_params, detach=args.detach, as_json=args.json)
    params = all_params.of_run()
    project.make_home()
    with drawing(console):
        record = _reuse(project, params) or _train(project, params)
    record = replace(record, seconds=round(time.perf_counter() - begun, 3))
    show_result(console, record, _next_commands(record, params))
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0 if record.decision is None or record.decision.moves_champion else EXIT_NO


_DATA_OPTIONS = get_args(SourceOption)


def _names_data(args: argparse.Namespace) -> bool:
    """Whether the command brings data; its options mean nothing without."""
    if args.data is not None:
        return True
    given = [name for name in ("source", *_DATA_OPTIONS) if getattr(args, name) is not None]
    if given:
        raise ParamsError(f"--{given[0].replace('_', '-')}: goes with --data PATH. Name the data, or leave it out.")
    return False


def _bring_data(console: Console, args: argparse.Namespace) -> Project:
    """Import the data that the command names, into a new project where there is none, and say what was chosen."""
    from assay.data.sources import SOURCES
    from assay.new_project import begin

    if args.params is not None:
        raise ParamsError("--params: with --data the params are the project's own. Leave one of the two out.")
    if not args.data or (args.source is not None and args.source not in SOURCES):
        raise SourceError(f"--data {args.data!r}: name a file or folder; --source is one of {', '.join(SOURCES)}.")
    options = {name: value for name in _DATA_OPTIONS if (value := getattr(args, name)) is not None}
    wanted = DataParams(source=args.source, path=args.data, options=options)
    with drawing(console):
        begun = begin(Path.cwd(), wanted)
    if begun.is_new:
        _say(console, f"Made a project in {begun.project.root}.")
    if begun.report is None:
        _say(console, "This data is pinned already.")
    else:
        data = begun.report.data
        kinds = {"image": "images", "text": "texts", "series": "series", "table": "rows of a table"}
        _say(
            console,
            f"Imported {data.num_examples:,} {kinds[data.kind]} in {len(data.class_names)} classes from {data.source}.",
        )
        for sentence in (*begun.report.notes, *begun.report.report.warnings):
            _say(console, f"- {sentence}")
    if begun.choices:
        _say(console, "Chosen for this data and written to params.yaml:")
        for choice in begun.choices:
            _say(console, f"  {choice.describe()}")
    elif begun.report is not None:
        _say(console, "params.yaml was changed by hand before, so it stays as it is.")
    return begun.project


def _say(console: Console, text: str) -> None:
    """Print a line as it is: names may hold brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _reuse(project: Project, params: RunParams) -> RunRecord | None:
    """The finished run of the same key, looked for before torch, MLflow and an orchestrator are started."""
    watch = Stopwatch()
    with watch.stage("plan", "hashing data, params, code and packages") as words:
        plan = make_plan(project, params)
        tracker = open_tracker(project, params.registry.experiment)
        finished = None if find_store(project).is_new else tracker.find_finished(plan.key)
        if params.ablation.in_run and finished is not None and not _is_ablated(project, params):
            finished = None
        record = None if finished is None else tracker.load_record(finished.run_id)
        if record is not None and record.decision is None and params.gate.in_run:
            record = None
            words.append("done before; it has still to meet the gate")
        else:
            words.append("done before: reusing it" if finished else "not done before")
    return None if record is None or finished is None else record.again(why_reused(finished), watch.seconds)


def _is_ablated(project: Project, params: RunParams) -> bool:
    """Whether the ablation that a run starts with stands already."""
    from assay.ablation.request import find_done, request

    return find_done(request(project, params)) is not None


def _train(project: Project, params: RunParams) -> RunRecord:
    """Run the flow; whatever is slow to start, starts while Prefect does."""
    watch = Stopwatch()

    def find_reasons(words: list[str]) -> None:
        plan, tracker = make_plan(project, params), open_tracker(project, params.registry.experiment)
        words.append("; ".join(look_back(tracker, plan.key)[1]))

    text = "importing torch while Prefect starts"
    with flow_ready(project, "pipeline", "pipeline", watch, text, find_reasons) as pipeline:
        record: RunRecord = pipeline(**params.sections(), project_dir=project.root)
    return replace(record, timings=watch.seconds | record.timings)


def _next_commands(record: RunRecord, params: RunParams) -> dict[str, str]:
    commands = {"verdicts": "assay ablate"} if params.ablation.in_run else {}
    if record.decision is not None:
        commands["gate"] = f"assay models why {record.model_version}"
    commands["dashboard"] = "assay ui"
    if record.report_path:
        commands = {"report": _short(Path(record.report_path))} | commands
    return commands


def _short(path: Path) -> str:
    """The path from here, where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
