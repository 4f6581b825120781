"""``assay up | status | down`` and ``assay train``."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.params import Params
    from assay.project import Project
    from assay.services.status import Status

_POOLS = ("cpu", "gpu", "tpu")
_GATE_SAID_NO = ("Kept", "Refused", "Stopped")
"""Names of the states of a flow run whose version did not become champion, or whose data nobody should train on."""


def register(commands: Any) -> None:
    """Add the commands to the parser."""
    start = commands.add_parser(
        "up",
        help="start MLflow, Prefect and the workers; prints two addresses",
        description="Start the servers, pools, workers and deployments of this project, or repair what is missing. "
        "A second call changes nothing else.",
    )
    add_params(start, "services.mlflow_port=5001")
    start.add_argument(
        "--host", help="address to listen on (default: 127.0.0.1); others need ASSAY_AUTH and allowed hosts"
    )
    start.set_defaults(run=up)
    look = commands.add_parser("status", help="what is up, what runs, what comes next")
    look.add_argument("--json", action="store_true", help="one JSON record on stdout")
    look.set_defaults(run=status)
    stop = commands.add_parser(
        "down",
        help="end all of it; running trainings write a checkpoint first",
        description="End the services of this project. Trainings that are under way write a checkpoint first and go on "
        "with the next assay up.",
    )
    stop.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    stop.set_defaults(run=down)
    train = commands.add_parser(
        "train",
        help="train in a pool and choose on val; test is not looked at",
        description="Send a training to a pool of `assay up` and follow it; nothing is registered.",
    )
    add_params(train, "train.num_epochs=3")
    add_pool(train, default="cpu")
    train.set_defaults(run=submit_train)


def add_pool(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add ``--pool`` and ``--detach``."""
    words = f" (default: {default})" if default else " instead of in this process"
    parser.add_argument("--pool", choices=_POOLS, default=default, help=f"send it to a pool of `assay up`{words}")
    parser.add_argument("--detach", action="store_true", help="with a pool: do not wait for its end")


def add_params(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--params``, ``--json`` and overrides."""
    parser.add_argument("--params", type=Path, metavar="FILE", help="params file (default: the project's params.yaml)")
    parser.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"e.g. {example}")


def up(args: argparse.Namespace) -> int:
    """Do ``assay up``."""
    from assay.services.up import up as start

    project, params = _load(args)
    settings = start(project, params, _say)
    if args.json:
        sys.stdout.write(json.dumps(settings.to_json()) + "\n")
        return 0
    sys.stdout.write(
        f"\nPrefect  {settings.prefect_url}   Deployments > run-cpu > Run > Custom run: the form of a run\n"
        f"MLflow   {settings.mlflow_url}   Experiments > {params.registry.experiment}: select runs, then Compare\n\n"
        f"{len(settings.slots)} workers: {', '.join(settings.slots)}. See them: assay status. End it all: assay down.\n"
    )
    return 0


def down(args: argparse.Namespace) -> int:
    """Do ``assay down``."""
    from assay.services.up import down as stop

    project = _project()
    was_up = stop(project, _say)
    _say("Everything is down." if was_up else "Nothing was up.")
    if args.json:
        sys.stdout.write(json.dumps({"was_up": was_up}) + "\n")
    return 0


def status(args: argparse.Namespace) -> int:
    """Do ``assay status``."""
    from assay.services.status import read_status

    found = read_status(_project())
    if args.json:
        sys.stdout.write(json.dumps(found.to_json()) + "\n")
    else:
        _show(found)
    return 0


def submit_train(args: argparse.Namespace) -> int:
    """Do ``assay train``."""
    project, params = _load(args)
    return follow(project, "train", args.pool, params, detach=args.detach, as_json=args.json)


def follow(project: "Project", flow: str, pool: str | None, params: "Params", *, detach: bool, as_json: bool) -> int:
    """Send a run to a pool and tell its states until it ends.

    Returns:
        0 when it completed (or with `detach`), 1 when it did not, 3 when the gate said no.
    """
    from assay.services.submit import submit, watch
    from assay.services.words import no_worker_words

    sent = submit(project, flow, pool, params)
    _say(f"Sent {sent.flow} {sent.name} to pool {sent.pool}: {sent.url}")
    if not sent.num_workers:
        _say(no_worker_words(sent.pool))
    state: Any = {"type": "SCHEDULED", "name": "Scheduled", "message": None}
    if not detach:
        for state in watch(project, sent.flow_run_id):
            _say(f"{state['name']:<12} {state['message'] or ''}".rstrip())
    if as_json:
        end = {"state": state["name"], "message": state["message"]}
        sys.stdout.write(json.dumps(sent.to_json() | end) + "\n")
    if detach:
        return 0
    return 1 if state["type"] != "COMPLETED" else 3 if state["name"] in _GATE_SAID_NO else 0


def _load(args: argparse.Namespace) -> "tuple[Project, Params]":
    from assay.params import load_params

    project = _project()
    overrides = [*args.overrides, *([f"services.host={args.host}"] if getattr(args, "host", None) else [])]
    return project, load_params(args.params or project.params_file, overrides)


def _project() -> "Project":
    from assay.project import find_project

    return find_project()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _show(found: "Status") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not found.is_up:
        console.print("Nothing is up here. Start it with: assay up", highlight=False)
        return
    services = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("service", "state", "since", "memory", "where"):
        services.add_column(title, justify="right" if title == "memory" else "left", overflow="fold")
    for name, info in found.services.items():
        state = info["state"] if info.get("healthy", True) else f"{info['state']}, no answer"
        where = info.get("url") or (f"process {info['pid']}" if info["pid"] else info["message"])
        services.add_row(name, state, _duration(info["uptime_seconds"]), f"{info['memory_mb']:.0f} MB", where)
    console.print(services)
    pools = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("pool", "type", "workers", "running", "waiting"):
        pools.add_column(title, justify="right" if title in ("running", "waiting") else "left")
    for name, info in found.pools.items():
        workers = ", ".join(info["workers"]) or "none: runs wait"
        pools.add_row(name, info["type"], workers, str(info["running"]), str(info["waiting"]))
    console.print(pools)
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    free = [slot for slot, holder in found.devices.items() if holder is None]
    busy = [f"{slot} has flow run {holder}" for slot, holder in found.devices.items() if holder is not None]
    facts.add_row("devices", "; ".join([*([f"{', '.join(free)} free"] if free else []), *busy]))
    facts.add_row("next night", found.next_night or "none planned")
    for number, run in enumerate(found.last_runs):
        words = f"{run['flow']} {run['name']}: {run['state']}"
        facts.add_row("" if number else "last runs", words + (f" ({run['message']})" if run["message"] else ""))
    facts.add_row("disk", f"{found.disk['state_mb']:.0f} MB of state, {found.disk['free_gb']:.0f} GB free")
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    console.print(facts, highlight=False)


def _duration(seconds: float) -> str:
    minutes, hours = seconds // 60, seconds // 3600
    return f"{hours:.0f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
