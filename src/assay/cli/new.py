"""``assay new``: a project of one's own."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

PRESETS = ("mnist5k", "image", "text", "sequence", "tabular")


def register(commands: Any) -> None:
    """Add the command ``new``."""
    new = commands.add_parser(
        "new",
        help="make a project of one's own in a folder",
        description="Make a project: params.yaml, the flows, and what git, DVC and MLflow want to know. The folder "
        "must be empty or not there yet.",
    )
    new.add_argument("folder", metavar="DIR", type=Path, help="folder of the project")
    new.add_argument("--params", choices=PRESETS, default="mnist5k", help="params to begin with (default: mnist5k)")
    new.add_argument("--json", action="store_true", help="one JSON record on stdout, human text on stderr")
    new.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do ``assay new``."""
    from assay.new_project import example_source, make_project

    project = make_project(args.folder, args.params)
    to_there = "" if project.root == Path.cwd().resolve() else f"cd {args.folder} && "
    out = sys.stderr if args.json else sys.stdout
    out.write(
        f"Made a project in {project.root}; its choices are in params.yaml. No data is pinned yet:\n"
        f"  {to_there}assay data import {example_source(args.params)}   (your own: assay data import --help)\n"
        "  assay run\n"
    )
    if args.json:
        sys.stdout.write(json.dumps({"root": str(project.root), "params": args.params}) + "\n")
    return 0
