import base64
import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest

from assay.ablation.report import write_report
from assay.ablation.wording import (
    WORDS,
    by_factor,
    duration,
    extra_seconds,
    generalization_gap,
    headline,
    levels_by_factor,
    plan_facts,
    probability,
    signed,
    signed_seconds,
    what_decides,
)
from assay.records import Trial, Variant
from tests.ablation.made import make_record, make_verdict

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen, self.links, self.open, self.rows, self.text = set(), [], [], 0, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.rows += tag == "tr"
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def render(tmp_path):
    def render(record, lineage=None, figures=None):
        path = write_report(record, figures or {}, lineage or {}, tmp_path / "new" / "report.html")
        return path.read_text(encoding="utf-8")

    return render


def with_verdicts(*verdicts, **values):
    return dataclasses.replace(make_record(num_variants=4), verdicts=verdicts, **values)


@pytest.mark.parametrize("kind", [{}, {"mode": "factorial"}, {"metric": "log_loss"}, {"num_variants": 1}])
def test_page_is_whole_and_loads_nothing(render, tmp_path, kind):
    png = tmp_path / "forest.png"
    png.write_bytes(b"\x89PNG")
    tags = Tags(render(make_record(**kind), figures={"forest": str(png)}))
    assert tags.open == []
    assert tags.seen.isdisjoint({"script", "link", "iframe", "object"})
    assert tags.links == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]


def test_page_says_what_came_out(render):
    record = make_record(num_variants=9)
    record = dataclasses.replace(record, notes=(*record.plan.notes, *record.notes))
    page = render(record, lineage={"git commit": "abc123"})
    words = Tags(page).words
    assert headline(record) in words
    for verdict in record.verdicts:
        assert verdict.name in words
        assert verdict.reason in words
        assert f'{verdict.verdict.replace(" ", "-")}">{verdict.verdict}' in page
        if verdict.verdict not in ("incomplete",):
            assert f"{signed(verdict.difference)} {signed(verdict.low)} to {signed(verdict.high)}" in words
            assert probability(verdict.p_holm) in words
            assert f"{round(100 * verdict.seed_share)}% + {round(100 * verdict.examples_share)}%" in words
    for summary in record.summaries:
        assert f"{summary.mean:.4f} " in words
        assert f"{summary.sd:.4f} " in words
    for note in (*record.notes, *record.plan.notes):
        assert words.count(note) == 1
    for text in ("abc123", "The test examples were not touched"):
        assert text in words
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_verdict_word_is_explained_and_coloured(render):
    page = render(with_verdicts(*(make_verdict(f"x={word}", word) for word in WORDS)))
    for word in WORDS:
        css = word.replace(" ", "-")
        assert re.search(rf"\.{css}[ ,].*color: var", page), word
        meaning = re.search(rf'<dt class="verdict {css}">{word}</dt><dd>(.*?)</dd>', page)
        assert meaning[1].count(". ") == 1, word


@pytest.mark.parametrize(
    "place", ["verdict", "reason", "factor", "variant", "note", "plan note", "trial", "winner", "lineage"]
)
def test_hostile_text_is_escaped(render, place):
    record = make_record(num_variants=4)
    verdict, summary, trial = record.verdicts[0], record.summaries[1], record.trials[0]
    changed = {
        "verdict": {"verdicts": (dataclasses.replace(verdict, name=HOSTILE),)},
        "reason": {"verdicts": (dataclasses.replace(verdict, reason=HOSTILE),)},
        "factor": {"verdicts": (dataclasses.replace(verdict, factors=(HOSTILE,)),)},
        "variant": {"summaries": (record.baseline, dataclasses.replace(summary, variant=Variant(HOSTILE, {"a": "1"})))},
        "note": {"notes": (HOSTILE,)},
        "plan note": {"plan": dataclasses.replace(record.plan, notes=(HOSTILE,))},
        "trial": {
            "trials": (dataclasses.replace(trial, variant=HOSTILE, state=HOSTILE, message=HOSTILE, key=HOSTILE),)
        },
        "winner": {"winners": {HOSTILE: HOSTILE}},
        "lineage": {},
    }[place]
    page = render(dataclasses.replace(record, **changed), lineage={HOSTILE: HOSTILE} if place == "lineage" else {})
    tags = Tags(page)
    assert "script" not in tags.seen
    assert tags.links == []
    assert "&lt;script&gt;" in page


def test_all_of_a_thousand_trials_are_listed(render):
    record = make_record(num_variants=2)
    few = Tags(render(record))
    trials = tuple(
        dataclasses.replace(record.trials[k % 10], seed=k, key=f"{k:012d}", message=f"message {k}") for k in range(1000)
    )
    page = render(dataclasses.replace(record, trials=trials))
    many = Tags(page)
    assert many.rows - few.rows == 1000 - len(record.trials)
    assert "All 1,000 trials" in many.words
    assert all(f"{k:012d}" in page and f"message {k}<" in page for k in range(1000))
    assert page.index("<details>") < page.index("message 0<") < page.index("</details>")


def test_names_of_any_script_are_kept(render):
    assert "日本語" in render(with_verdicts(make_verdict("日本語")))


def test_what_was_not_measured_is_not_shown_as_a_number(render):
    empty = {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0}
    words = Tags(render(with_verdicts(make_verdict("dropout_prob=0.0", "stopped", **empty)))).words
    assert "+0.0000" not in words
    assert "0.0000 to" not in words
    assert "stopped fell behind" in words
    endless = make_verdict(difference=0.01, low=-math.inf, high=math.inf, num_seeds=1)
    assert "+0.0100 -∞ to +∞" in Tags(render(with_verdicts(endless))).words
    failed = Trial("baseline", 0, "k", "failed", message="out of memory")
    page = render(dataclasses.replace(make_record(num_variants=2), trials=(failed,)))
    assert "out of memory" in page
    assert "nan" not in Tags(page).words


def named(word, count, **values):
    return [make_verdict(f"{word[0]}={k}", word, difference=0.01 * (k + 1), **values) for k in range(count)]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "Only the baseline was trained: there is nothing to compare it with."),
        (named("helps", 1), "h=0 helps (by 0.0100 in macro F1)."),
        (named("helps", 2), "Of 2 levels, h=1 (by 0.0200) and h=0 (by 0.0100) help macro F1."),
        (
            [*named("helps", 3), *named("hurts", 2)],
            "Of 5 levels, 3 help, most of all h=2 (by 0.0300 in macro F1) and 2 hurt.",
        ),
        (
            [*named("no difference", 2), *named("undetermined", 1, seeds_needed=9)],
            "Of 3 levels, 2 make no difference and u=0 is undetermined: 9 seeds would probably decide it.",
        ),
        (
            [
                *named("hurts", 1),
                *named("undetermined", 2, seeds_needed=9),
                make_verdict("x", seeds_needed=12),
                *named("stopped", 1),
                *named("incomplete", 2),
            ],
            "Of 7 levels, h=0 hurts, s=0 was stopped early, 2 are incomplete and 3 are undetermined: 12 seeds would "
            "probably decide them.",
        ),
        (
            [*named("undetermined", 2, seeds_needed=9), *named("undetermined", 1, examples_needed=12_000)],
            "Of 3 levels, 3 are undetermined: 9 seeds would probably decide 2 of them, 12,000 val examples 1.",
        ),
        (named("undetermined", 1), "u=0 is undetermined: no number of seeds would decide it."),
        (
            [make_verdict("a", "hurts", kind="main effect"), make_verdict("a x b", "helps", kind="interaction")],
            "a hurts. a x b helps (by 0.0123 in macro F1).",
        ),
    ],
)
def test_headline(verdicts, said):
    assert headline(with_verdicts(*verdicts)) == said


def test_verdicts_are_grouped_by_factor_with_interactions_last():
    one, other = make_verdict("a", factors=("train.l1",)), make_verdict("b", factors=("train.l2",))
    both = make_verdict("a x b", kind="interaction", factors=("train.l1", "train.l2"))
    again = make_verdict("c", factors=("train.l1",))
    recipe = make_verdict("long sgd", kind="recipe", factors=("train.num_epochs", "train.optimizer"))
    groups = by_factor([both, one, recipe, other, again])
    assert list(groups) == ["train.l1", "recipes", "train.l2", "interactions"]
    assert groups["train.l1"] == [one, again]


def test_a_recipe_is_shown_with_what_it_changes():
    plan = dataclasses.replace(make_record(num_variants=3).plan, recipes=("long sgd",))
    changes = {"train.num_epochs": "40", "train.optimizer": '{"kind": "sgd", "learning_rate": 0.05}'}
    plan = dataclasses.replace(plan, variants=(*plan.variants, Variant("long sgd", changes)))
    written = "train.num_epochs = 40, train.optimizer = sgd(learning_rate=0.05)"
    assert dict(plan_facts(plan))["recipe long sgd"] == written
    assert levels_by_factor(plan).keys() == {"train.dropout_prob"}, "it is no level of a factor"


def test_extra_seconds_compare_trials_that_went_to_their_end():
    record = make_record(num_variants=6)
    first, stopped = record.verdicts[0], record.verdicts[3]
    assert extra_seconds(record, first) == record.summaries[1].seconds - record.baseline.seconds
    assert stopped.verdict == "stopped"
    assert extra_seconds(record, stopped) is None
    longer = (*record.summaries[:1], dataclasses.replace(record.summaries[1], num_epochs=99), *record.summaries[2:])
    assert extra_seconds(dataclasses.replace(record, summaries=longer), first) is not None
    assert extra_seconds(record, make_verdict("a x b")) is None


def test_the_gap_is_above_0_where_train_is_better():
    summary = dataclasses.replace(make_record(num_variants=2).baseline, mean=0.3, train_mean=0.4)
    assert generalization_gap(summary, "f1_macro") == pytest.approx(0.1)
    assert generalization_gap(summary, "log_loss") == pytest.approx(-0.1)


def test_numbers_as_people_read_them():
    assert [signed(v) for v in (0.01234, -0.5, -0.00001, math.nan)] == ["+0.0123", "-0.5000", "0.0000", "-"]
    assert [signed_seconds(v) for v in (1.44, -0.01, 1234.5, None)] == ["+1.4", "0.0", "+1,234", "-"]
    assert [probability(v) for v in (0.01, 1e-9, math.nan)] == ["0.0100", "<0.0001", "-"]
    assert [duration(v) for v in (1.23, 45.6, 150, 3600, 5000, 100_000)] == [
        "1.2 s",
        "46 s",
        "2 min",
        "1 h",
        "1 h 23 min",
        "28 h",
    ]


def test_what_would_decide_it_in_few_words():
    assert what_decides(make_verdict(seeds_needed=9)) == "9 seeds"
    assert what_decides(make_verdict(examples_needed=12_000)) == "12,000 val examples"
    assert what_decides(make_verdict()) == "no number of seeds"
    assert what_decides(make_verdict(word="helps", seeds_needed=9)) == ""


def test_the_plan_says_what_is_unknown():
    plan = make_record().plan
    facts = dict(plan_facts(plan))
    assert facts["detectable"].startswith("a difference of 0.0071, 80% of the time (more than the margin")
    assert facts["seeds"] == "5 each (0 to 4)"
    unknown = dict(plan_facts(dataclasses.replace(plan, seconds=None, detectable=None, seeds=(7, 1), num_done=0)))
    assert unknown["detectable"] == "unknown until the baseline's seeds are trained"
    assert unknown["time"] == "unknown until a trial was timed"
    assert unknown["seeds"] == "2 each (7, 1)"
    assert "done already" not in unknown["trials"]
    assert "nothing" in dict(plan_facts(dataclasses.replace(plan, detectable=math.inf)))["detectable"]


@pytest.mark.parametrize(
    ("path", "differs"),
    [
        ("train.l2", False),
        ("model", True),
        ("model.channels", True),
        ("train.start.kind", True),
        ("train.starts", False),
    ],
)
def test_the_plan_says_where_its_time_assumes_that_all_epochs_take_as_long(path: str, differs: bool) -> None:
    plan = dataclasses.replace(make_record(num_variants=3).plan, seconds=90.0)
    plan = dataclasses.replace(plan, variants=(*plan.variants, Variant("other", {path: "1"})))
    time = dict(plan_facts(plan))["time"]
    assert time.startswith("about 90 s")
    assert (time != "about 90 s") is differs
    assert dict(plan_facts(dataclasses.replace(plan, seconds=0.0)))["time"] == "about 0.0 s"
