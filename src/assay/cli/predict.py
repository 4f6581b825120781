"""``assay predict FILE|DIR``: score images, texts, series or rows of a table with a registered version."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from assay.predict import PredictReport

_NUM_LISTED = 20


def register(commands: Any) -> None:
    """Add the command ``predict``.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` gave.
    """
    from assay.cli.services import add_params

    parser = commands.add_parser(
        "predict",
        help="score images, texts, series or rows of a table with a registered version",
        description="Score what a registered version takes, the champion by default, and write one Parquet row an "
        "example. Images: a file, a folder, or a .npy or .npz array of uint8. Texts: the lines of a .txt file, a "
        "folder of .txt files, or a column of a csv, tsv or jsonl file. Series: a .npy or .npz array. Rows of a "
        "table: a csv, tsv or jsonl file with the columns of training. Parquet files and folders of them for all. "
        "Every byte of the version is checked first. Input may be larger than memory.",
    )
    parser.add_argument("source", metavar="FILE|DIR", type=Path, help="what to score")
    parser.add_argument(
        "--model", metavar="VERSION", help="7, NAME@7, NAME@champion or champion (default: the champion)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="Parquet file (default: below .assay/predictions)")
    parser.add_argument("--force", action="store_true", help="replace the file that --out names")
    parser.add_argument("--batch-size", type=int, metavar="N", help="examples answered at once (default: 256)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out examples that cannot be read")
    parser.add_argument("--text-column", metavar="NAME", help="column of texts (default: text, or the only one)")
    add_params(parser, "device.precision=fp32")
    parser.set_defaults(run=predict)


def predict(args: argparse.Namespace) -> int:
    """Do ``assay predict``."""
    import json
    import sys

    from rich.console import Console

    from assay.cli.display import drawing
    from assay.params import load_params
    from assay.project import find_project

    project = find_project()
    params = load_params(args.params or project.params_file, args.overrides)
    console = Console(stderr=args.json)
    with drawing(console):
        from assay import predict as scoring

        report = scoring.predict(
            project,
            params,
            args.source,
            model=args.model,
            out=args.out,
            batch_size=scoring.BATCH_SIZE if args.batch_size is None else args.batch_size,
            skip_bad=args.skip_bad,
            force=args.force,
            text_column=args.text_column,
        )
    show(report, console)
    if args.json:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    return 0


def show(report: "PredictReport", console: "Console") -> None:
    """Show what was predicted, converted and left out, and where it is."""
    from rich.markup import escape
    from rich.table import Table

    examples = "1 example" if report.num_examples == 1 else f"{report.num_examples:,} examples"
    _say(console, f"{examples} scored with {report.model.name} version {report.model.version} on {report.device}")
    for sentence in report.notes:
        _say(console, f"- {sentence}")
    if report.num_skipped:
        _say(console, f"- Left out {report.num_skipped:,} that cannot be read:")
    for name in report.skipped[:_NUM_LISTED]:
        _say(console, f"    {name}")
    if report.num_skipped > _NUM_LISTED:
        _say(console, f"    and {report.num_skipped - _NUM_LISTED:,} more (the first thousand with --json)")
    table = Table("prediction", "examples", "share", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    by_count = sorted(report.class_counts.items(), key=lambda item: -item[1])
    for name, count in by_count[:_NUM_LISTED]:
        table.add_row(escape(name), f"{count:,}", f"{count / report.num_examples:.1%}")
    console.print(table, highlight=False)
    if len(by_count) > _NUM_LISTED:
        _say(console, f"and {len(by_count) - _NUM_LISTED:,} classes with fewer")
    _say(console, f"{report.seconds:.1f} s in all, {report.examples_per_second:,.0f} examples/s once loaded")
    _say(console, f"Predictions: {report.path}")


def _say(console: "Console", text: str) -> None:
    """Print a line as it is: file names may hold brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
