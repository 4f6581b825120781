import dataclasses
import io

import pytest
from rich.console import Console

from assay.ablation.wording import headline
from assay.cli.ablation_display import show_ablation, show_plan
from tests.ablation.made import make_record, make_verdict

NEXT = {"report": "/somewhere/very/deep/in/a/long/path/that/does/not/fit/on/one/line/of/eighty/columns/report.html"}


def shown(show, *args, width=100, terminal=False):
    colours = "standard" if terminal else None
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=colours)
    show(console, *args)
    return console.file.getvalue()


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("kind", [{}, {"num_variants": 20, "num_diverged": 3}, {"mode": "factorial"}])
def test_everything_fits_and_is_there(width, kind):
    record = make_record(**kind)
    text = shown(show_ablation, record, NEXT, width=width)
    lines = text.splitlines()
    assert all(len(line) <= width or "/somewhere" in line for line in lines)
    assert "\x1b" not in text
    assert "…" not in text
    assert headline(record) in flat(text)
    assert any(line.startswith("report") and NEXT["report"] in line for line in lines)
    assert all(note in flat(text) for note in record.notes)
    for verdict in record.verdicts:
        if verdict.verdict != "incomplete":
            assert f"{verdict.low:+.4f} to {verdict.high:+.4f}" in text
    for word in {verdict.verdict for verdict in record.verdicts}:
        assert word in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_says_difference_p_verdict_and_what_it_needs(width):
    verdict = make_verdict("dropout_prob=0.5", "undetermined", seeds_needed=9, difference=0.01, p_holm=0.234)
    record = dataclasses.replace(make_record(num_variants=4), verdicts=(verdict,))
    seconds = {summary.variant.name: summary.seconds for summary in record.summaries}
    row = next(line for line in shown(show_ablation, record, {}, width=width).splitlines() if "+0.0100" in line)
    cost = f"{seconds['dropout_prob=0.5'] - seconds['baseline']:+.1f}"
    cells = row.split()
    assert cells[:2] == ["dropout_prob=0.5", "+0.0100"]
    assert cells[-4:] == ["undetermined", "9", "seeds", cost]
    assert ("0.2340" in row) == (width == 120)
    assert "0.2340" in shown(show_ablation, record, {}, width=width)


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ({"word": "undetermined", "examples_needed": 12_000}, "12,000 val"),
        ({"word": "undetermined"}, "out of reach"),
        ({"word": "stopped"}, "fell behind"),
        ({"word": "incomplete"}, "failed trial"),
    ],
)
def test_what_is_open_says_why(values, needs):
    record = dataclasses.replace(make_record(num_variants=3), verdicts=(make_verdict(**values),))
    assert needs in shown(show_ablation, record, {}, width=120)


def test_verdicts_are_coloured_on_a_terminal_only():
    verdicts = (make_verdict("a", "helps"), make_verdict("b", "hurts"))
    record = dataclasses.replace(make_record(num_variants=3), verdicts=verdicts)
    text = shown(show_ablation, record, {}, terminal=True)
    assert "\x1b[1;32mhelps" in text
    assert "\x1b[1;31mhurts" in text


def test_markup_in_names_is_printed_as_it_is():
    verdicts = [make_verdict(f"x=[bold]{name}[/bold]", "hurts") for name in "ab"]  # two: the headline names neither
    record = dataclasses.replace(make_record(num_variants=3), verdicts=tuple(verdicts), notes=("[red]note[/red]",))
    text = shown(show_ablation, record, {"[red]next": "assay ablate train.x='[1]'"})
    for written in ("x=[bold]a[/bold]", "[red]note[/red]", "[red]next", "assay ablate train.x='[1]'"):
        assert written in text


def test_nothing_to_compare_shows_no_table():
    text = shown(show_ablation, dataclasses.replace(make_record(num_variants=1), verdicts=()), {})
    assert "Only the baseline was trained" in text
    assert "Holm" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_the_plan_fits_and_says_what_it_costs(width):
    plan = dataclasses.replace(make_record(num_variants=60, num_seeds=3).plan, seconds=7260.0)
    text = shown(show_plan, plan, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    for words in ("60, the baseline among them", "3 each (0 to 2)", "180, 3 of them done", "about 2 h 1 min", "0.0071"):
        assert words in flat(text)
    assert "sgd(learning_rate=0.05, momentum=0.9, nesterov=true)" in flat(text)
    assert " more" in text  # not all of the 40 batch sizes
    assert plan.notes[0] in flat(text)


def test_the_plan_says_what_is_unknown():
    plan = dataclasses.replace(make_record().plan, seconds=None, detectable=None)
    text = flat(shown(show_plan, plan))
    assert "unknown until the baseline's seeds are trained" in text
    assert "unknown until a trial was timed" in text
