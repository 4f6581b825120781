"""The command line: arguments in, one call, result out.

Nothing heavy is imported here, so that ``assay --help`` stays quick; each command imports what it needs.
"""

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import assay
from assay.errors import AssayError, StorageError
from assay.garbage import collect_rarely

Command = Callable[[argparse.Namespace], int]

_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class _Parser(argparse.ArgumentParser):
    """An argument parser that says what to do, in the house's form."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"assay: {message}. Run '{self.prog} --help' for what it takes.\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets ``run`` to the function that does it."""
    from assay.cli import data, models, new, nightly, predict, services

    parser = _Parser(
        prog="assay",
        description="A training line that tests every PyTorch classifier before MLflow stamps it.",
        epilog="Exit codes: 0 done, 1 the run failed, 2 the request was wrong, 3 the gate said no.",
    )
    parser.add_argument("--version", action="version", version=f"assay {assay.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new.register(commands)
    _add_run(commands)
    _add_ablate(commands)
    data.register(commands)
    models.register(commands)
    predict.register(commands)
    _add_ui(commands)
    services.register(commands)
    nightly.register(commands)
    return parser


def _add_run(commands: Any) -> None:
    from assay.cli import services

    run = commands.add_parser(
        "run",
        help="the whole chain in this process: data, train, evaluate, register",
        description="Run the whole chain in this process; no server has to be started first. A run whose data, "
        "params, code and packages are those of a finished one is not trained again.",
    )
    services.add_params(run, "train.num_epochs=3")
    services.add_pool(run, default=None)
    bring = run.add_argument_group(
        "data of your own", "in an empty folder this makes a project, its params chosen to fit"
    )
    bring.add_argument("--data", metavar="PATH", help="a table, a folder with a folder of images or texts a class, ...")
    bring.add_argument("--source", metavar="NAME", help="what PATH is, where that is not to be inferred")
    for column, what in (("label", "with the classes"), ("text", "with the texts")):
        bring.add_argument(f"--{column}-column", metavar="NAME", help=f"of a table: the column {what}")
    bring.add_argument("--split-column", metavar="NAME", help="of a table: the column that says train, val or test")
    bring.add_argument("--group-column", metavar="NAME", help="of a table: what must stay on one side, e.g. a person")
    for verb in ("keep", "drop"):
        bring.add_argument(
            f"--{verb}-column", metavar="NAME", action="append", dest=f"{verb}_columns", help=f"of a table: {verb} it"
        )
    bring.add_argument("--encoding", help="of a table or of texts (default: UTF-8)")
    bring.add_argument("--separator", help="of a csv file (default: found out)")
    run.set_defaults(run=_run)


def _add_ablate(commands: Any) -> None:
    from assay.cli import services

    ablate = commands.add_parser(
        "ablate",
        help="which level of dropout, L2, ... helps, by how much, and how sure",
        description="Train every level of the ablation's factors with several seeds and give each a verdict: helps, "
        "hurts, no difference, or undetermined and what it would take. Test data is not looked at. Trials that are "
        "done are found again.",
        epilog="Presets: assay ablate ablate=regularization, assay ablate ablate=dropout.",
    )
    services.add_params(ablate, "ablation.num_seeds=5 or ablate=dropout")
    ablate.add_argument("--plan", action="store_true", help="say what it would train and detect, and train nothing")
    ablate.add_argument("--detect", type=float, metavar="D", help="take as many seeds as find a difference of D")
    ablate.add_argument("--seeds", type=int, metavar="N", help="seeds of every variant")
    ablate.add_argument("--prune", action=argparse.BooleanOptionalAction, help="stop levels early that fall behind")
    ablate.add_argument("--apply", action="store_true", help="write the levels that help into params.yaml")
    ablate.add_argument("--yes", action="store_true", help="train however many trials there are")
    services.add_pool(ablate, default=None)
    ablate.set_defaults(run=_ablate)


def _add_ui(commands: Any) -> None:
    ui = commands.add_parser(
        "ui",
        help="open the MLflow dashboard of this project",
        description="Serve the MLflow dashboard of this project on 127.0.0.1 until Ctrl+C.",
    )
    ui.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    ui.set_defaults(run=_ui)


def _run(args: argparse.Namespace) -> int:
    from assay.cli import run

    return run.run(args)


def _ablate(args: argparse.Namespace) -> int:
    from assay.cli import ablate

    return ablate.ablate(args)


def _ui(args: argparse.Namespace) -> int:
    from assay.cli import ui

    return ui.serve(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; the process's own by default.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request was wrong, 3 the gate said no, 130 interrupted.
    """
    collect_rarely()
    _set_environment()
    args = _parse(argv)
    command: Command = args.run
    try:
        return command(args)
    except AssayError as error:
        return _fail(error, json=getattr(args, "json", False))
    except KeyboardInterrupt:
        sys.stderr.write("assay: interrupted. What was finished is kept; the same command goes on from there.\n")
        return 130
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS:
            raise
        return _fail(_storage_error(error), json=getattr(args, "json", False))
    finally:
        gc.freeze()  # the interpreter's last collections would walk millions of objects of torch and MLflow


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with overrides anywhere among the options: argparse takes them in one place only."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in text and text[0] != "-" for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _set_environment() -> None:
    """Settings that libraries read when they are imported."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # docs/adr/0011: quick on free cores, kind on shared ones


def _fail(error: AssayError, json: bool) -> int:
    sys.stderr.write(f"assay: {error}\n")
    if json:
        from json import dumps

        record = {"error": {"kind": type(error).__name__, "message": str(error)}}
        sys.stdout.write(dumps(record, ensure_ascii=False) + "\n")
    return error.exit_code


def _storage_error(error: OSError) -> AssayError:
    where = error.filename or "a file of this run"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{where}: no space left on the device. Free some; nothing that was finished is lost.")
    return StorageError(f"{where}: {error.strerror}. Make it writable, or set ASSAY_HOME to a folder that is.")


if __name__ == "__main__":
    sys.exit(main())
