"""``assay data import | add | pull | verify | describe``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from assay.data.describe import DataDescription
    from assay.data.importing import ImportReport
    from assay.project import Project
    from assay.records import DataRef, DataReport, Record

_NUM_LISTED = 20


def register(commands: Any) -> None:
    """Add the command ``data`` with its own subcommands.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` gave.
    """
    parser = commands.add_parser("data", help="import, pin, fetch, check and describe the examples")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = _add(parts, "import", "read a source into data/ and pin it in data.dvc", import_source, show_import)
    add.add_argument("source", metavar="SOURCE", help="mnist5k, digits or image-folder")
    add.add_argument("path", metavar="PATH", nargs="?", type=Path, help="image-folder: one folder a class")
    add.add_argument("--size", type=_size, metavar="HxW", help="image-folder: resize to this height and width")
    add.add_argument("--skip-bad", action="store_true", help="image-folder: leave out images that cannot be decoded")
    _add(parts, "add", "pin the shards that lie in data/ now", add_shards, show_import)
    _add(parts, "pull", "get the pinned data from DVC or from its source", pull, show_ref)
    _add(parts, "verify", "hash every byte against data.dvc", verify, show_ref)
    text = "counts, balance, shapes, duplicates and a contact sheet"
    look = _add(parts, "describe", text, describe, show_description)
    look.add_argument("--out", type=Path, metavar="DIR", help="folder for the contact sheet (default: .assay/reports)")


def _add(
    parts: Any, name: str, text: str, work: Callable[..., "Record"], show: Callable[..., None]
) -> argparse.ArgumentParser:
    """Add a subcommand: what does the work, and what shows its record."""
    parser: argparse.ArgumentParser = parts.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    parser.set_defaults(run=run, work=work, show=show)
    return parser


def run(args: argparse.Namespace) -> int:
    """Do one of the subcommands: work with progress, show the record, print it as JSON if asked."""
    import json
    import sys

    from rich.console import Console

    from assay.cli.display import drawing
    from assay.project import find_project

    project = find_project()
    console = Console(stderr=args.json)
    with drawing(console):
        record = args.work(project, args)
    args.show(record, console)
    if args.json:
        sys.stdout.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    return 0


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    try:
        return int(height), int(width if times else height)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 32x32 (height x width)") from error


def import_source(project: "Project", args: argparse.Namespace) -> "ImportReport":
    """Do ``assay data import``."""
    from assay.data.importing import import_data

    return import_data(project, args.source, args.path, size=args.size, skip_bad=args.skip_bad)


def add_shards(project: "Project", args: argparse.Namespace) -> "ImportReport":
    """Do ``assay data add``."""
    from assay.data.importing import add_data

    return add_data(project)


def pull(project: "Project", args: argparse.Namespace) -> "DataRef":
    """Do ``assay data pull``."""
    from assay.data.versioning import materialize

    return materialize(project)


def verify(project: "Project", args: argparse.Namespace) -> "DataRef":
    """Do ``assay data verify``."""
    from assay.data import versioning

    return versioning.verify(project)


def describe(project: "Project", args: argparse.Namespace) -> "DataDescription":
    """Do ``assay data describe``."""
    from assay.data.describe import describe as describe_data
    from assay.data.loading import load_dataset
    from assay.data.versioning import materialize, read_pin

    ref = materialize(project)
    project.make_home()
    title = read_pin(project).source_details.get("folder")
    return describe_data(load_dataset(ref, project.cache_dir), args.out or project.home / "reports", title)


def show_import(report: "ImportReport", console: "Console") -> None:
    """Show what was pinned, changed and left out."""
    show_ref(report.data, console, "Pinned" if report.changed else "Pinned already, nothing changed:")
    files = "1 file" if report.num_files == 1 else f"{report.num_files} files"
    _say(console, f"{files}, {report.size_bytes / 1e6:,.1f} MB, {report.seconds:.1f} s")
    for sentence in (*report.notes, *report.report.warnings):
        _say(console, f"- {sentence}")
    if report.bad_examples:
        _say(console, f"- Left out {len(report.bad_examples)} images that cannot be decoded:")
    for name in report.bad_examples[:_NUM_LISTED]:
        _say(console, f"    {name}")
    if len(report.bad_examples) > _NUM_LISTED:
        _say(console, f"    and {len(report.bad_examples) - _NUM_LISTED} more (all with --json)")


def show_ref(ref: "DataRef", console: "Console", did: str = "Every byte is as pinned:") -> None:
    """Show which data it is, on one line."""
    height, width, num_channels = ref.image_shape
    kind = "grey" if num_channels == 1 else "RGB"
    _say(console, f"{did} {ref.source}, {ref.num_examples:,} images {height}x{width} {kind}, md5 {ref.md5}")


def show_description(description: "DataDescription", console: "Console") -> None:
    """Show the numbers, class by class."""
    show_ref(description.data, console, "Data:")
    _print_balance(description.report, console)
    given = ", ".join(f"{name} {count:,}" for name, count in description.given_split_counts.items())
    _say(console, f"Given splits: {given}" if "none" not in description.given_split_counts else "Given splits: none")
    if description.num_groups:
        _say(console, f"Groups: {description.num_groups:,}")
    _say(console, f"Exact duplicates: {description.report.num_duplicates:,}")
    mean, std = (
        ", ".join(f"{value:.2f}" for value in values) for values in (description.pixel_mean, description.pixel_std)
    )
    _say(console, f"Pixels (0..255): mean {mean}; standard deviation {std}")
    for sentence in description.report.warnings:
        _say(console, f"- {sentence}")
    _say(console, f"Contact sheet: {description.contact_sheet}")


def _print_balance(report: "DataReport", console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", "examples", "share", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, count in report.class_counts.items():
        table.add_row(escape(name), f"{count:,}", f"{count / report.num_examples:.1%}")
    console.print(table, highlight=False)


def _say(console: "Console", text: str) -> None:
    """Print a line as it is: file names may hold brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
