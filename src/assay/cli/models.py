"""``assay models list | show | why | promote | rollback | reproduce | export``."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.params import Params
    from assay.project import Project
    from assay.records import Decision, Record
    from assay.registry.export import ExportReport
    from assay.registry.promotions import Promotions
    from assay.tracking.runs import Tracker

EXIT_NO = 3
"""The gate said no, or a version could not be reproduced."""


def register(commands: Any) -> None:
    """Add the command ``models`` with its own subcommands.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` gave.
    """
    parser = commands.add_parser(
        "models", help="registered versions: list, show, why, promote, rollback, reproduce, export"
    )
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(parts, "list", "every version, what the gate said of it, and who is champion", list_versions)
    show = _add(parts, "show", "a version's test results, with intervals, and the gate's decision", show_version)
    _takes_version(show)
    why = _add(parts, "why", "the whole story of a version: data, code, params, ablation, gate, whom it replaced", why_)
    _takes_version(why)
    promote = _add(parts, "promote", "have a version meet the gate; it becomes champion if it passes", promote_)
    _takes_version(promote)
    promote.add_argument("--force", action="store_true", help="make it champion whatever the gate finds")
    promote.add_argument("--reason", default="", metavar="TEXT", help="with --force: why; it is kept for ever")
    promote.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. gate.rule=non-inferiority")
    back = _add(parts, "rollback", "make the champion before this one champion again", rollback)
    back.add_argument("--to", type=int, metavar="V", help="a version that has been champion")
    back.add_argument("--reason", default="", metavar="TEXT", help="why; it is kept for ever")
    again = _add(parts, "reproduce", "train a version again from its lineage alone, and compare the bytes", reproduce_)
    _takes_version(again)
    export = _add(parts, "export", "write a version as a file that other programs run, and check its answers", export_)
    _takes_version(export)
    export.add_argument("--format", choices=("onnx",), required=True, help="ONNX, for ONNX Runtime and others")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    export.add_argument("--force", action="store_true", help="replace the file that --out names")


def _add(parts: Any, name: str, text: str, work: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parts.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--params", type=Path, metavar="FILE", help="params file (default: the project's params.yaml)")
    parser.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    parser.set_defaults(run=work)
    return parser


def _takes_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "version",
        nargs="?",
        metavar="VERSION",
        help="7, NAME@7, NAME@champion or champion (default: the champion, or the latest version to promote)",
    )


def list_versions(args: argparse.Namespace) -> int:
    """Do ``assay models list``."""
    from assay.cli.models_display import show_list
    from assay.registry import load, story

    project, params = _load(args)
    with _opened(project, params) as (tracker, promotions):
        infos = load.list_versions(tracker, params.registry.model_name)
        found = story.list_lines(infos, promotions)
    show_list(_console(args), params.registry.model_name, found)
    return _end(args, found)


def show_version(args: argparse.Namespace) -> int:
    """Do ``assay models show``."""
    return _tell(args, whole=False)


def why_(args: argparse.Namespace) -> int:
    """Do ``assay models why``."""
    return _tell(args, whole=True)


def _tell(args: argparse.Namespace, *, whole: bool) -> int:
    from assay.cli.models_display import show_story, show_summary
    from assay.registry import story

    project, params = _load(args)
    with _opened(project, params) as (tracker, promotions):
        name, version = _named(args.version or "champion", params.registry.model_name, tracker, promotions)
        found = story.tell(tracker, promotions, name, version)
    (show_story if whole else show_summary)(_console(args), found)
    return _end(args, found)


def promote_(args: argparse.Namespace) -> int:
    """Do ``assay models promote``."""
    from assay.cli.display import drawing
    from assay.cli.in_process import flow_ready
    from assay.cli.models_display import show_decision
    from assay.errors import ParamsError
    from assay.plan import open_tracker
    from assay.progress import Stopwatch
    from assay.services.forms import sections_of

    if args.force and not args.reason.strip():
        raise ParamsError("--force: say why with --reason TEXT; it is kept with the promotion.")
    if args.reason and not args.force:
        raise ParamsError("--reason: the gate gives its own reasons; with --force it is yours that counts.")
    if args.version is not None and "=" in args.version:
        args.overrides, args.version = [args.version, *args.overrides], None
    project, params = _load(args)
    project.make_home()
    name, version = params.registry.model_name, None
    if args.version is not None:
        with _opened(project, params) as (tracker, promotions):
            name, version = _named(args.version, name, tracker, promotions)
    run = params.of_run()
    run = run.model_copy(update={"registry": run.registry.model_copy(update={"model_name": name})})
    console = _console(args)

    def warm(words: list[str]) -> None:
        open_tracker(project, run.registry.experiment)
        words.append("ready")

    with (
        drawing(console),
        flow_ready(project, "promote", "promote", Stopwatch(), "importing torch while Prefect starts", warm) as flow,
    ):
        decision: Decision = flow(
            version=version,
            forced_reason=args.reason.strip(),
            project_dir=project.root,
            **sections_of("promote", run),
        )
    show_decision(console, decision)
    _end(args, decision)
    return 0 if decision.moves_champion else EXIT_NO


def rollback(args: argparse.Namespace) -> int:
    """Do ``assay models rollback``."""
    from assay.cli.models_display import show_promotion
    from assay.registry.aliases import sync_aliases
    from assay.registry.load import version_numbers

    project, params = _load(args)
    name = params.registry.model_name
    with _opened(project, params) as (tracker, promotions):
        line = promotions.rollback(name, args.to, args.reason.strip(), version_numbers(tracker, name))
        sync_aliases(tracker, promotions, name)
    show_promotion(_console(args), line)
    return _end(args, line)


def reproduce_(args: argparse.Namespace) -> int:
    """Do ``assay models reproduce``."""
    from assay.cli.display import drawing
    from assay.cli.models_display import show_reproduction
    from assay.registry.promote import find_seed_sd
    from assay.registry.reproduce import DIFFERENT, reproduce

    project, params = _load(args)
    console = _console(args)
    with drawing(console), _opened(project, params) as (tracker, promotions):
        name, version = _named(args.version or "champion", params.registry.model_name, tracker, promotions)
        found = reproduce(tracker, name, version, find_seed_sd(project, params.of_run()))
    show_reproduction(console, found)
    _end(args, found)
    return EXIT_NO if found.verdict == DIFFERENT else 0


def export_(args: argparse.Namespace) -> int:
    """Do ``assay models export``."""
    from assay.registry.export import export_onnx, require_onnx

    require_onnx()
    project, params = _load(args)
    with _opened(project, params) as (tracker, promotions):
        name, version = _named(args.version or "champion", params.registry.model_name, tracker, promotions)
        found = export_onnx(tracker, name, version, args.out, force=args.force)
    _show_export(_console(args), found)
    return _end(args, found)


def _show_export(console: Any, found: "ExportReport") -> None:
    """Say what was written and how far its answers are from the model's."""
    shape = ", ".join(map(str, ("batch", *found.input_shape)))
    lines = [
        f"{found.model.name} version {found.model.version} as ONNX (opset {found.opset}), input [{shape}]",
        "Unchecked: ONNX Runtime is not installed. Install the extra onnx to have its answers compared."
        if found.max_difference is None
        else f"Checked with ONNX Runtime {found.runtime}: the logits of {found.num_checked} examples differ by at most "
        f"{found.max_difference:.1e}",
        f"Model: {found.path} ({found.size_bytes:,} bytes)",
        *([f"Tokenizer: {found.tokenizer}"] if found.tokenizer else []),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _load(args: argparse.Namespace) -> "tuple[Project, Params]":
    from assay.params import load_params
    from assay.project import find_project

    project = find_project()
    return project, load_params(args.params or project.params_file, getattr(args, "overrides", ()))


@contextmanager
def _opened(project: "Project", params: "Params") -> "Iterator[tuple[Tracker, Promotions]]":
    """The store and the ledger's lines of it."""
    from assay.plan import open_tracker
    from assay.registry.ledger import Ledger
    from assay.registry.promotions import Promotions

    tracker = open_tracker(project, params.registry.experiment)
    ledger = Ledger(project)
    try:
        yield tracker, Promotions(ledger, tracker.store.shown_uri)
    finally:
        ledger.close()


def _named(text: str, model_name: str, tracker: "Tracker", promotions: "Promotions") -> tuple[str, int]:
    """Understand ``7``, ``champion``, ``latest``, and ``NAME@`` before them."""
    from assay.errors import ParamsError
    from assay.predict import find_version
    from assay.registry.load import latest_version

    name, at, which = text.rpartition("@")
    if at and not name:
        raise ParamsError(
            f"{text!r} is no version. Write 3, champion, latest, {model_name}@3 or {model_name}@champion."
        )
    name = name or model_name
    if which == "latest":
        return name, latest_version(tracker, name)
    if which != "champion":
        ref = find_version(tracker, text, model_name)
        return ref.name, ref.version
    champion = promotions.champion(name)
    if champion is None:
        raise ParamsError(
            f"{name}: has no champion yet. Make one: assay run, or assay models promote. To name a version give its "
            "number; assay models list shows them."
        )
    return name, champion.version


def _console(args: argparse.Namespace) -> Any:
    from rich.console import Console

    return Console(stderr=args.json)


def _end(args: argparse.Namespace, record: "Record") -> int:
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0
