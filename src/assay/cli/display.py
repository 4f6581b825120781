"""What a person sees on the terminal: progress while it works, a table at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from assay import progress
from assay.cli.models_display import gate_line
from assay.headlines import BASELINES, HEADLINES, LOWER_IS_BETTER
from assay.records import RunRecord


@contextmanager
def drawing(console: Console) -> Iterator[None]:
    """Draw progress while the block runs: bars on a terminal, one plain line a finished stage elsewhere.

    Args:
        console: Where to draw.
    """
    if console.is_terminal:
        columns = (
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("[bold]{task.fields[stage]:<9}", table_column=Column(no_wrap=True, min_width=9)),
            BarColumn(bar_width=24, table_column=Column(min_width=24)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            # Only the words give way where the terminal is narrow.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        with Progress(*columns, console=console, expand=True) as bars, progress.listening(_Bars(bars)):
            yield
    else:
        with progress.listening(_Lines(console)):
            yield


class _Bars:
    """One bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: progress.Progress) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task("", total=None, stage=event.stage)
        total = event.total or None
        done = event.done
        if event.finished:
            total = done = event.total or 1
        description = Text(event.text).markup if event.text else ""
        self._bars.update(self._tasks[event.stage], total=total, completed=done, description=description)


class _Lines:
    """One line when a stage is over, and one every few seconds while it works."""

    EVERY_SECONDS = 5.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}
        self._last = 0.0

    def __call__(self, event: progress.Progress) -> None:
        now = time.monotonic()
        begun = self._started.setdefault(event.stage, now)
        if not event.finished and (not event.text or now - max(self._last, begun) < self.EVERY_SECONDS):
            return
        self._last = now
        mark = "done" if event.finished else f"{event.done}/{event.total}" if event.total else "..."
        line = f"{event.stage:<9} {mark:<7} {now - begun:6.1f} s  {event.text}"
        self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def show_result(console: Console, record: RunRecord, next_commands: dict[str, str]) -> None:
    """Print the end of a run: data, model, metrics beside the baselines, where to look next.

    Args:
        console: Where to print.
        record: The run.
        next_commands: What it is for -> command or path to look at next.
    """
    console.print()
    console.print(_facts(record))
    console.print()
    console.print(_metrics(record))
    console.print(Text(f"{record.seconds:.1f} s in all", style="dim"))
    console.print()
    width = max(map(len, next_commands), default=0)
    for purpose, command in next_commands.items():
        console.print(
            Text.assemble((f"{purpose:<{width}}  ", "dim"), (command, "bold")),
            soft_wrap=True,
            highlight=False,
        )


def _facts(record: RunRecord) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    train, val, test = record.num_examples
    table.add_row("data", f"{record.source}  {train:,} train, {val:,} val, {test:,} test  md5 {record.data_md5[:8]}")
    version = f"{record.model_name} version {record.model_version}"
    table.add_row("model", f"{version}  {record.num_epochs} epochs on {record.device}")
    table.add_row("run", f"{record.run_id}  key {record.run_key[:12]}")
    verb = "reused" if record.reused else "trained"
    for number, reason in enumerate(record.reasons):
        table.add_row("" if number else verb, f"because {reason}")
    if record.decision is not None:
        table.add_row("gate", gate_line(record.decision))
    return table


def _metrics(record: RunRecord) -> Table:
    table = Table(
        title="On the test examples", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("model", justify="right", style="bold", no_wrap=True)
    table.add_column(f"{record.confidence:.0%} interval", justify="right", no_wrap=True)
    baselines = [name for name in BASELINES if name in record.baselines]
    for name in baselines:
        table.add_column(BASELINES[name].replace(" ", "\n"), justify="right", style="dim")
    for metric, label in HEADLINES.items():
        if metric not in record.metrics:
            continue
        low, high = record.intervals[metric]
        others = [_number(record.baselines[name].get(metric)) for name in baselines]
        lower = " ↓" if metric in LOWER_IS_BETTER else ""
        table.add_row(label + lower, _number(record.metrics[metric]), f"{low:.4f} to {high:.4f}", *others)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
