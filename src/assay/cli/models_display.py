"""What a person sees of registered versions on the terminal."""

import re
from datetime import datetime
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.headlines import BASELINES, HEADLINES
from assay.records import FIRST, KEPT, PROMOTED, REFUSED, AblationRecord, Decision, Promotion, RunRecord

if TYPE_CHECKING:
    from assay.registry.reproduce import Reproduction
    from assay.registry.story import Story, VersionList

_STYLES = {PROMOTED: "green", FIRST: "green", "forced": "yellow", KEPT: "yellow", REFUSED: "red"}
_ALIAS_STYLES = {"champion": "bold green"}
_STATES = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "not asked": ("-", "dim")}
_VERDICT_STYLES = {"identical": "bold green", "within noise": "bold yellow", "different": "bold red"}


def show_list(console: Console, name: str, found: "VersionList") -> None:
    """Print the versions of a model, the latest first, and its champions."""
    if not found.versions:
        console.print(Text(f"{name}: no version is registered yet. Make one: assay run"))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(name), title_justify="left", title_style="bold")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for title in ("when", "test accuracy", "gate"):
        table.add_column(title, no_wrap=True)
    for line in found.versions:
        aliases = Text.assemble(*_joined([(alias, _ALIAS_STYLES.get(alias, "dim")) for alias in line.aliases]))
        gate = Text(line.outcome or "not asked", style=_STYLES.get(line.outcome, "dim"))
        moment = datetime.fromtimestamp(line.created_ms / 1000).strftime("%d %b %H:%M")
        table.add_row(str(line.version), aliases, moment, _accuracy(line.description), gate)
    console.print(table)
    for promotion in found.history:
        show_promotion(console, promotion)


def _joined(words: list[tuple[str, str]]) -> list[str | tuple[str, str]]:
    return [part for word in words for part in (" ", word)][1:]


def _accuracy(description: str) -> str:
    """Read the accuracy out of a version's description, e.g. ``0.981 (0.972 to 0.989)``."""
    found = re.search(r"accuracy ([\d.]+) \[([\d.]+), ([\d.]+)\]", description)
    if found is None:
        return "-"
    value, low, high = (f"{float(text):.3f}" for text in found.groups())
    return f"{value} ({low} to {high})"


def show_promotion(console: Console, line: Promotion) -> None:
    """Print one line of a model's history."""
    before = f" after version {line.previous}" if line.previous is not None else ""
    console.print(
        Text.assemble(
            (f"{_when(line.decided_ms)}  ", "dim"),
            (f"version {line.version} {line.action}", "bold"),
            f"{before}: {line.reason}",
        ),
        highlight=False,
    )


def show_decision(console: Console, decision: Decision) -> None:
    """Print what the gate decided, rule by rule."""
    met = f" against champion {decision.champion}" if decision.champion is not None else ""
    outcome = "forced" if decision.forced_reason else decision.outcome
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=Text(
            f"The gate: {decision.model_name} version {decision.version}{met}, {decision.num_test:,} test examples"
        ),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("rule", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for rule in decision.rules:
        mark, style = _STATES[rule.state]
        table.add_row(Text(mark, style=style), Text(rule.name), Text(rule.reason, style="dim" if mark == "-" else ""))
    console.print(table)
    console.print(Text.assemble((outcome, f"bold {_STYLES[outcome]}"), f"  {decision.reason}"), highlight=False)
    if decision.forced_reason:
        console.print(Text(f"A person made it champion: {decision.forced_reason}"))


def gate_line(decision: Decision) -> Text:
    """Return a decision in one line."""
    outcome = "forced" if decision.forced_reason else decision.outcome
    return Text.assemble((outcome, _STYLES[outcome]), f"  {decision.forced_reason or decision.reason}")


def show_summary(console: Console, story: "Story") -> None:
    """Print a version's test results and the gate's last word."""
    console.print(_head(story), highlight=False)
    console.print(_metrics(story.run))
    if story.decisions:
        console.print(gate_line(story.decisions[0]), highlight=False)
    console.print(Text.assemble(("the whole story  ", "dim"), (f"assay models why {story.version}", "bold")))


def show_story(console: Console, story: "Story") -> None:
    """Print the whole story of a version."""
    console.print(_head(story), highlight=False)
    facts = _facts()
    run, origin = story.run, story.origin
    train, val, test = run.num_examples
    _add_fact(facts, "data", f"{run.source}  {train:,} train, {val:,} val, {test:,} test  md5 {run.data_md5}")
    dirty = {"true": ", with uncommitted changes", "unknown": ""}.get(origin.get("git.dirty", ""), "")
    _add_fact(facts, "code", f"{origin.get('git.commit', 'no commit')}{dirty}")
    _add_fact(facts, "packages", f"constraints sha256 {origin.get('constraints.sha256', '')[:12]}")
    _add_fact(facts, "run", f"MLflow {run.run_id}  key {run.run_key[:12]}  {run.device}, {run.num_epochs} epochs")
    if story.page:
        _add_fact(facts, "flow run", story.page)
    _add_fact(facts, "params", ", ".join(f"{name}={value}" for name, value in _told_params(story.params)))
    for number, reason in enumerate(run.reasons):
        _add_fact(facts, "" if number else "trained", f"because {reason}")
    console.print(facts)
    if story.ablation is not None:
        _show_ablation(console, story.ablation)
    console.print(_metrics(run))
    for decision in story.decisions[:1]:
        show_decision(console, decision)
    for decision in story.decisions[1:]:
        console.print(Text.assemble((f"{_when(decision.decided_ms)}  before that: ", "dim"), gate_line(decision)))
    if not story.decisions:
        console.print("It has not met the gate: assay models promote", highlight=False)
    for promotion in story.promotions:
        show_promotion(console, promotion)


def show_reproduction(console: Console, found: "Reproduction") -> None:
    """Print what training a version again came to."""
    console.print()
    console.print(Text.assemble((found.verdict, _VERDICT_STYLES[found.verdict]), f"  {found.reason}"), highlight=False)
    facts = _facts()
    _add_fact(facts, "weights then", found.weights_sha256)
    _add_fact(facts, "weights now", found.found_sha256)
    _add_fact(facts, "source", found.source)
    for number, difference in enumerate(found.differences):
        _add_fact(facts, "" if number else "differs", difference)
    _add_fact(facts, "took", f"{found.seconds:.1f} s")
    console.print(facts)


def _facts() -> Table:
    """A table of names and what they are."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts


def _add_fact(facts: Table, name: str, value: str) -> None:
    """Add a line; brackets in what people wrote are no markup."""
    facts.add_row(name, Text(value))


def _head(story: "Story") -> Text:
    now = "the champion" if story.is_champion else f"champion is version {story.champion}"
    return Text.assemble(
        (f"{story.model_name} version {story.version}", "bold"),
        (f"  {_when(story.created_ms)}  {now if story.champion is not None else 'no champion yet'}", "dim"),
    )


def _told_params(params: dict[str, str]) -> list[tuple[str, str]]:
    """What decides the weights, without what only says where results go."""
    apart = ("registry.", "ablation.", "gate.", "evaluation.", "device.")
    return [(name, value) for name, value in sorted(params.items()) if not name.startswith(apart)]


def _show_ablation(console: Console, record: AblationRecord) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"Its ablation: {record.plan.metric} on {record.num_val:,} val examples, {len(record.plan.seeds)} seeds",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("level", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("why", overflow="fold")
    for verdict in record.verdicts:
        table.add_row(*map(Text, (verdict.name, verdict.verdict, verdict.reason)))
    console.print(table)


def _metrics(run: RunRecord) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    baselines = [name for name in BASELINES if name in run.baselines]
    for title in ("on test", "model", f"{run.confidence:.0%} interval", *(BASELINES[name] for name in baselines)):
        table.add_column(title, justify="left" if title == "on test" else "right")
    for name, label in HEADLINES.items():
        if name in run.metrics:
            low, high = run.intervals[name]
            others = [run.baselines[baseline].get(name) for baseline in baselines]
            numbers = ["-" if value is None else f"{value:.4f}" for value in others]
            table.add_row(label, f"{run.metrics[name]:.4f}", f"{low:.4f} to {high:.4f}", *numbers)
    return table


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M")
