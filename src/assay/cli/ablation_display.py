"""What a person sees of an ablation on the terminal: the plan before it, the verdicts after it."""

import json

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.ablation.values import shown
from assay.ablation.wording import (
    NOTHING,
    duration,
    extra_seconds,
    headline,
    is_measured,
    levels_by_factor,
    metric_label,
    plan_facts,
    probability,
    signed,
    signed_seconds,
)
from assay.headlines import LOWER_IS_BETTER
from assay.records import AblationPlan, AblationRecord, Verdict

_STYLES = {
    "helps": "bold green",
    "hurts": "bold red",
    "no difference": "cyan",
    "undetermined": "yellow",
    "stopped": "dim",
    "incomplete": "dim",
}
_WIDE_COLUMNS = 80
_WIDEST_VALUES = 160


def show_plan(console: Console, plan: AblationPlan) -> None:
    """Print what an ablation will train, how long it will take and what it can see.

    Args:
        console: Where to print.
        plan: The plan.
    """
    table = _two_columns()
    for name, value in plan_facts(plan):
        table.add_row(name, Text(value))
    console.print(table)
    levels = levels_by_factor(plan)
    if levels:
        factors = Table(box=SIMPLE_HEAD, pad_edge=False)
        factors.add_column("factor", overflow="fold")
        factors.add_column("levels besides the baseline's", overflow="fold")
        for path, values in levels.items():
            factors.add_row(Text(path), Text(_shortened(values)))
        console.print(factors)
    _show_notes(console, plan.notes)


def show_ablation(console: Console, record: AblationRecord, next_commands: dict[str, str]) -> None:
    """Print the verdicts, what they come to in words, and where to look next.

    Args:
        console: Where to print.
        record: The ablation.
        next_commands: What it is for -> command or path to look at next.
    """
    console.print()
    console.print(_facts(record))
    if record.verdicts:
        console.print()
        longest = max(len(verdict.name) for verdict in record.verdicts)
        console.print(_verdicts(record, is_wide=console.width >= _WIDE_COLUMNS + longest))
    console.print(Text(headline(record), style="bold"))
    _show_notes(console, record.notes)
    trained = (
        "nothing trained, all was found again" if record.reused else f"{_count(record.num_trained, 'trial')} trained"
    )
    console.print()
    console.print(Text(f"{duration(record.seconds)} in all, {trained}", style="dim"))
    console.print()
    width = max(map(len, next_commands), default=0)
    for purpose, command in next_commands.items():
        line = Text.assemble((f"{purpose:<{width}}  ", "dim"), (command, "bold"))
        console.print(line, soft_wrap=True, highlight=False)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _two_columns() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _facts(record: AblationRecord) -> Table:
    base, metric = record.baseline, metric_label(record.plan.metric)
    table = _two_columns()
    seeds = _count(base.num_seeds, "seed")
    examples = f"{record.num_val:,} val examples"
    table.add_row("baseline", Text(f"{metric} {base.mean:.4f}  {base.low:.4f} to {base.high:.4f}  {seeds}, {examples}"))
    table.add_row("a trial", Text(f"{_count(base.num_epochs, 'epoch')}, {duration(base.seconds)}"))
    if record.run_id:
        table.add_row("run", Text(f"{record.run_id}  key {record.ablation_key[:12]}"))
    for number, (path, level) in enumerate(record.winners.items()):
        table.add_row("" if number else "winner", Text(f"{path} = {level}"))
    return table


def _verdicts(record: AblationRecord, is_wide: bool) -> Table:
    """The table of verdicts; a narrow one has the interval below the difference and p below the verdict."""
    better = "lower is better, above 0 still helps" if record.plan.metric in LOWER_IS_BETTER else "above 0 is better"
    title = f"Difference from the baseline in {metric_label(record.plan.metric)} on val ({better})"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    table.add_column("comparison", overflow="fold", min_width=16)
    interval = f"{100 * record.confidence:.4g}% interval"
    if is_wide:
        table.add_column("difference", justify="right", no_wrap=True)
        table.add_column(interval, justify="right", no_wrap=True)
        table.add_column("Holm p", justify="right", no_wrap=True)
    else:
        table.add_column(f"difference\n{interval}", justify="right", no_wrap=True)
    table.add_column("verdict" if is_wide else "verdict\nHolm p", no_wrap=True)
    table.add_column("needs", no_wrap=True)
    table.add_column("extra s", justify="right", no_wrap=True)
    for verdict in record.verdicts:
        table.add_row(*_cells(record, verdict, is_wide))
    return table


def _cells(record: AblationRecord, verdict: Verdict, is_wide: bool) -> list[Text]:
    measured = is_measured(verdict)
    difference = Text(signed(verdict.difference) if measured else NOTHING)
    interval = Text(f"{signed(verdict.low)} to {signed(verdict.high)}" if measured else "", style="dim")
    p = Text(probability(verdict.p_holm) if measured else NOTHING)
    word = Text(verdict.verdict, style=_STYLES.get(verdict.verdict, ""))
    cost = Text(signed_seconds(extra_seconds(record, verdict)), style="dim")
    name = Text(verdict.name)
    if verdict.num_diverged:
        name.append(f" ({verdict.num_diverged:,} diverged)", style="dim")
    if is_wide:
        return [name, difference, interval, p, word, _needs(verdict), cost]
    lines = ("\n", interval) if measured else ()
    word = Text.assemble(word, ("\np ", "dim"), (p.plain, "dim")) if measured else word
    return [name, Text.assemble(difference, *lines), word, _needs(verdict), cost]


def _needs(verdict: Verdict) -> Text:
    """What would decide it, or why it has no verdict, in at most 12 characters."""
    if verdict.verdict == "undetermined" and verdict.seeds_needed is not None:
        return Text(f"{verdict.seeds_needed:,} seeds")
    if verdict.verdict == "undetermined":
        return Text(f"{verdict.examples_needed:,} val" if verdict.examples_needed else "out of reach")
    words = {"stopped": "fell behind", "incomplete": "failed trial"}
    return Text(words.get(verdict.verdict, ""), style="dim")


def _shortened(values: list[str]) -> str:
    """Write levels one after the other, as many as fit into about two lines."""
    text = ""
    for number, value in enumerate(shown(json.loads(value)) for value in values):
        longer = f"{text}, {value}" if text else value
        if text and len(longer) > _WIDEST_VALUES:
            return f"{text} and {len(values) - number:,} more"
        text = longer
    return text


def _show_notes(console: Console, notes: tuple[str, ...]) -> None:
    table = _two_columns()
    for note in notes:
        table.add_row("note", Text(note))
    if notes:
        console.print(table)
