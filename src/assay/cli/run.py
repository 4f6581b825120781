"""``assay run``: the whole chain in this process, or the finished run of the same key."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from assay.cli.display import drawing, show_result
from assay.cli.in_process import flow_ready
from assay.cli.models import EXIT_NO
from assay.cli.services import follow
from assay.params import RunParams, load_params
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
    project = find_project()
    all_params = load_params(args.params or project.params_file, args.overrides)
    if args.pool is not None:
        return follow(project, "pipeline", args.pool, all_params, detach=args.detach, as_json=args.json)
    params = all_params.of_run()
    project.make_home()
    console = Console(stderr=args.json)
    with drawing(console):
        record = _reuse(project, params) or _train(project, params)
    record = replace(record, seconds=round(time.perf_counter() - begun, 3))
    show_result(console, record, _next_commands(record, params))
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0 if record.decision is None or record.decision.moves_champion else EXIT_NO


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
    from assay.ablation.request import look_back, request

    return look_back(request(project, params))[0] is not None


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
