"""``assay nightly``: the nightly run now, by `assay up` where it is up, else in this process; and the nights so far."""

import argparse
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.project import Project
    from assay.records import NightRecord

_STYLES = {"promoted": "green", "first champion": "green", "skipped": "dim", "kept champion": "yellow"}


def register(commands: Any) -> None:
    """Add the command ``nightly``."""
    nightly = commands.add_parser(
        "nightly",
        help="see whether there is anything to train, train it, and ask the gate; says why",
        description="Start the nightly run now: by `assay up` where it is up, else in this process. It pulls the data, "
        "compares with the champion, and may decide not to train.",
    )
    nightly.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    nightly.add_argument("--detach", action="store_true", help="with `assay up`: do not wait for its end")
    nightly.add_argument("--list", action="store_true", help="show the decisions of the last nights instead")
    nightly.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do ``assay nightly``."""
    from assay.cli.services import follow
    from assay.params import load_params
    from assay.project import find_project
    from assay.services.paths import ServicePaths
    from assay.services.settings import read_settings

    project = find_project()
    if args.list:
        return _list(project, args)
    params = load_params(project.params_file)
    if read_settings(ServicePaths(project)) is not None:
        return follow(project, "nightly", None, params, detach=args.detach, as_json=args.json)
    record = _in_process(project, args)
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0 if record.outcome in ("skipped", "promoted", "first champion") else 3


def _in_process(project: "Project", args: argparse.Namespace) -> "NightRecord":
    from rich.console import Console

    from assay.cli.display import drawing
    from assay.cli.in_process import flow_ready
    from assay.errors import RunFailedError
    from assay.progress import Stopwatch
    from assay.records import NightRecord

    project.make_home()
    console = Console(stderr=args.json)
    with (
        drawing(console),
        flow_ready(
            project, "nightly", "nightly", Stopwatch(), "importing torch while Prefect starts", _nothing
        ) as flow,
    ):
        record = flow(project_dir=project.root)
    if not isinstance(record, NightRecord):
        raise RunFailedError("the night was taken by another run: assay nightly --list shows what it came to.")
    console.print()
    _show(console, record)
    return record


def _nothing(words: list[str]) -> None:
    words.append("ready")


def _show(console: Any, record: "NightRecord") -> None:
    from rich.text import Text

    style = _STYLES.get(record.outcome, "bold red")
    due = datetime.fromisoformat(record.due).astimezone().strftime("%Y-%m-%d %H:%M")
    line = Text.assemble((f"{due}  ", "dim"), (record.outcome, style), record.describe()[len(record.outcome) :])
    console.print(line, highlight=False)
    for finding in record.findings:
        console.print(Text.assemble((f"  {finding.level:<6} ", "dim"), f"{finding.name}: {finding.reason}"))
    for drift in record.drifts:
        if drift.drifted:
            console.print(Text.assemble(("  drift  ", "dim"), drift.reason))


def _list(project: "Project", args: argparse.Namespace) -> int:
    from contextlib import closing

    from rich.console import Console

    from assay.records import NightRecord
    from assay.registry.ledger import Ledger

    with closing(Ledger(project)) as ledger:
        nights = ledger.nights()
    records = [NightRecord.from_json(json.loads(night.record)) for night in nights if night.record]
    console = Console(stderr=args.json)
    for record in reversed(records):
        _show(console, record)
    if not records:
        console.print("No night has been run yet. Start one: assay nightly", highlight=False)
    if args.json:
        sys.stdout.write(json.dumps([record.to_json() for record in records], ensure_ascii=False) + "\n")
    return 0
