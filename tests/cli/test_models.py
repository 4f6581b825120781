"""What ``assay models`` prints of versions, and which version a person means."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from assay.cli.main import main
from assay.cli.models_display import (
    gate_line,
    show_decision,
    show_list,
    show_promotion,
    show_reproduction,
    show_story,
    show_summary,
)
from assay.plan import open_tracker
from assay.project import Project
from assay.records import FIRST, KEPT, OUTCOMES, REFUSED, Decision, Look, Promotion, Rule
from assay.registry.ledger import Ledger
from assay.registry.promotions import Promotions
from assay.registry.reproduce import Reproduction
from assay.registry.story import Story, VersionLine, VersionList
from tests.ablation.made import make_record as make_ablation
from tests.scoring import make_scoring_project
from tests.tracking.parts import make_record

MS = 1_760_000_000_000
WIDTHS = (80, 120)
RULES = (
    Rule("integrity: files", "passed", "every file is what its manifest says", REFUSED),
    Rule("class: [b] fox", "failed", "recall -0.1200 against the champion's [/b], at least -0.2000", REFUSED),
    Rule("latency", "not asked", "one answer takes 0.2 ms; no bound is set", REFUSED),
)
DECISION = Decision(
    REFUSED, "class: [b] fox: recall -0.1200 against the champion's [/b].", "[red]pets", 12, 9, RULES,
    Look("d", 3, 20, 0.001), "d" * 32, 1234, MS,
)  # fmt: skip
FORCED = dataclasses.replace(DECISION, forced_reason="[/b] the fair is tomorrow :dog:")
PROMOTION = Promotion("[red]pets", 2, 12, 9, "forced", "[/b] the fair is tomorrow :dog:", MS)
LINE = VersionLine(
    "[red]pets", 12, MS, ("champion", "[/old]"), "abcdef0123456789.dir", "0123456789abcdef",
    "Test (1000 examples, 95% intervals): accuracy 0.9812 [0.9720, 0.9891], f1_macro 0.9800 [0.9700, 0.9880]. Data.",
    "first champion", "why",
)  # fmt: skip
STORY = Story(
    model_name="[red]pets",
    version=12,
    created_ms=MS,
    is_champion=False,
    run=dataclasses.replace(
        make_record("7"),
        source="[/b] folder",
        reasons=("train.l2 0.1 -> 0.2", "[/b] changed"),
        intervals={"accuracy": (0.85, 0.95)},
    ),
    origin={"git.commit": "0123456789abcdef", "git.dirty": "true", "constraints.sha256": "f" * 64},
    params={"train.seed": "3", "model.channels": "[8, 16]", "gate.alpha": "0.05", "train.note": "[/b]"},
    ablation=make_ablation(),
    decisions=(DECISION, dataclasses.replace(DECISION, outcome=KEPT, reason="superiority: no.")),
    promotions=(PROMOTION,),
    champion=9,
    page="http://127.0.0.1:4200/runs/flow-run/7",
)
REPRODUCTION = Reproduction(
    "different", "the weights differ; first [/b] (accuracy on test 0.9 then, 0.8 now).", "[red]pets", 12, "a" * 64,
    "b" * 64, ("train.seed 0 -> 1", "[/b] changed"), "accuracy", 0.9, 0.8, 0.01, "commit [/b]", 12.34,
)  # fmt: skip


def shown(show: Callable[..., None], *args: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, *args)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()), text
    assert "…" not in text
    return str(text)


def flat(text: str) -> str:
    """Without line breaks, and without the columns beside a folded cell."""
    return " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_fits_and_names_everything(width: int) -> None:
    other = dataclasses.replace(LINE, version=7, aliases=(), outcome="", description="by hand", data_md5="", commit="")
    lines = (LINE, other, dataclasses.replace(LINE, version=6, aliases=("previous", "challenger"), outcome=KEPT))
    text = shown(show_list, "[red]pets", VersionList(lines, (PROMOTION,)), width=width)
    first = next(line for line in text.splitlines() if line.split()[:1] == ["12"] or " 12 " in line)
    for word in ("12", "champion", "0.981 (0.972 to 0.989)", "first champion"):
        assert word in first
    assert {"[/old]", "previous", "challenger"} <= set(text.split())
    second = next(line for line in text.splitlines() if "not asked" in line)
    assert "7" in second and " - " in second
    assert "[red]pets" in text and "version 12 forced after version 9: [/b] the fair is tomorrow :dog:" in flat(text)


def test_an_empty_list_says_what_to_do() -> None:
    assert shown(show_list, "[red]pets", VersionList(())) == (
        "[red]pets: no version is registered yet. Make one: assay run\n"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_decision_is_shown_rule_by_rule(width: int) -> None:
    text = shown(show_decision, DECISION, width=width)
    assert "The gate: [red]pets version 12 against champion 9, 1,234 test examples" in flat(text)
    for mark, rule in zip("✓✗-", RULES, strict=True):
        row = next(line for line in text.splitlines() if rule.name in line)
        assert row.split()[0] == mark
        assert set(rule.reason.split()) <= set(text.split())
    assert f"refused {DECISION.reason}" in flat(text)
    assert "A person" not in text


def test_a_forced_decision_says_who_and_why_in_their_own_words() -> None:
    text = flat(shown(show_decision, FORCED))
    assert f"forced {DECISION.reason}" in text
    assert "A person made it champion: [/b] the fair is tomorrow :dog:" in text
    assert gate_line(FORCED).plain == "forced  [/b] the fair is tomorrow :dog:"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_has_a_line(outcome: str) -> None:
    assert gate_line(dataclasses.replace(DECISION, outcome=outcome)).plain == f"{outcome}  {DECISION.reason}"
    shown(show_decision, dataclasses.replace(DECISION, outcome=outcome, champion=None))


def test_a_promotion_is_one_line() -> None:
    assert "version 12 forced after version 9: [/b] the fair" in shown(show_promotion, PROMOTION, width=120)
    first = dataclasses.replace(PROMOTION, previous=None, action=FIRST)
    assert "version 12 first champion: [/b]" in shown(show_promotion, first, width=120)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_story_tells_everything(width: int) -> None:
    text = flat(shown(show_story, STORY, width=width))
    for words in (
        "[red]pets version 12",
        "champion is version 9",
        "70 train, 10 val, 20 test",
        "0123456789abcdef, with uncommitted changes",
        "constraints sha256 ffffffffffff",
        "http://127.0.0.1:4200/runs/flow-run/7",
        "model.channels=[8, 16]",
        "train.note=[/b]",
        "because train.l2 0.1 -> 0.2",
        "because [/b] changed",
        "0.8500 to 0.9500",
        "before that: kept champion superiority: no.",
        "version 12 forced after version 9",
        "Its ablation: ",
    ):
        assert words in text
    assert "gate.alpha" not in text, "what does not decide the weights is left out"
    assert all(verdict.verdict in text for verdict in make_ablation().verdicts)


def test_a_story_before_the_gate_says_what_to_do() -> None:
    text = flat(shown(show_story, dataclasses.replace(STORY, decisions=(), champion=None, ablation=None)))
    assert "no champion yet" in text and "It has not met the gate: assay models promote" in text


def test_a_summary_leads_to_the_story() -> None:
    text = flat(shown(show_summary, STORY))
    assert "[red]pets version 12" in text and "refused class: [b] fox" in text
    assert text.endswith("the whole story assay models why 12")


def test_a_reproduction_shows_both_hashes_and_what_differs() -> None:
    text = flat(shown(show_reproduction, REPRODUCTION))
    for words in ("different the weights differ; first [/b]", "a" * 50, "b" * 50, "train.seed 0 -> 1", "12.3 s"):
        assert words in text
    assert "source commit [/b]" in text and "[/b] changed" in text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """``pets`` versions 1 and 2, ``other`` version 1; nobody is champion in the ledger."""
    return make_scoring_project(tmp_path_factory.mktemp("models") / "project")


@pytest.fixture
def promotions(template: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Promotions]:
    """The ledger, with version 2 of ``pets`` as champion."""
    monkeypatch.chdir(template.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ledger = Ledger(template)
    found = Promotions(ledger, open_tracker(template, "unit").store.shown_uri)
    if found.champion("pets") is None:
        found.promote(dataclasses.replace(DECISION, outcome=FIRST, model_name="pets", version=2, champion=None), 0)
    yield found
    ledger.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["models", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", ("pets", 1)),
        ("champion", ("pets", 2)),
        ("latest", ("pets", 2)),
        ("pets@1", ("pets", 1)),
        ("other@1", ("other", 1)),
        ("other@latest", ("other", 1)),
        ("pets@champion", ("pets", 2)),
        ("old", ("pets", 1)),
        ("pets@old", ("pets", 1)),
    ],
)
def test_which_version_is_meant(
    promotions: Promotions, template: Project, text: str, expected: tuple[str, int]
) -> None:
    from assay.cli.models import _named

    assert _named(text, "pets", open_tracker(template, "unit"), promotions) == expected


@pytest.mark.usefixtures("promotions")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7", "models:/pets/7: not registered. Versions of pets: 2, 1."),
        ("other@champion", "other: has no champion yet."),
        ("nobody@1", "models:/nobody: not registered"),
        ("nobody@latest", "nobody: has no version in"),
        ("seven", "pets"),
        ("@7", "'@7' is no version"),
        ("@champion", "'@champion' is no version"),
        ("@latest", "'@latest' is no version"),
        ("pets@", "'pets@' is no version"),
    ],
)
def test_nonsense_is_one_paragraph(capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    code, out, err = run(capsys, "why", text)
    assert (code, out) == (2, "") and words in err
    assert err.startswith("assay: ") and err.count("\n") == 1 and not err.startswith("assay: :")


@pytest.mark.usefixtures("promotions")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "2", "--force"], "--force: say why with --reason"),
        (["promote", "2", "--force", "--reason", "  "], "--force: say why with --reason"),
        (["promote", "2", "--reason", "it is nice"], "--reason: the gate gives its own reasons"),
        (["promote", "gate.alpa=0.1"], "gate.alpa"),
        (["rollback", "--to", "1"], "models:/pets/1: has never been champion"),
        (["rollback"], "models:/pets/2: no champion came before it"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2 and words in err


@pytest.mark.usefixtures("promotions")
def test_the_list_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list", "--json")
    values = json.loads(out)
    assert code == 0 and "pets" in err
    assert [(line["version"], line["aliases"]) for line in values["versions"]] == [(2, ["champion"]), (1, ["old"])]
    assert [line["version"] for line in values["history"]] == [2]
    assert run(capsys, "list")[1].splitlines()[0].strip() == "pets"
    assert Path(".assay").is_dir()
