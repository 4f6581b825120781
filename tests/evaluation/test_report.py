import re
from html.parser import HTMLParser

import pytest

from assay.devices import Compute
from assay.evaluation.report import ReportContext, render_report
from assay.records import ClassMetrics, DataRef, EpochRecord, Evaluation, Interval, Splits, TrainResult

HOSTILE = "<script>alert(1)</script>"


def make_evaluation(names):
    metrics = {
        name: Interval(0.99997, 0.9, 1.0) for name in ("accuracy", "f1_macro", "log_loss", "expected_calibration_error")
    }
    return Evaluation(
        metrics=metrics,
        per_class={names[0]: ClassMetrics(0.9, 0.8, 0.85, 5, {"f1": Interval(0.85, 0.7, 0.9)})}
        | {name: ClassMetrics(0.0, 0.0, 0.0, 0) for name in names[1:]},
        confusion=((3, 2), (0, 0)),
        baselines={"majority_class": {"accuracy": 0.5, "f1_macro": 0.3}},
        num_test=5,
        confidence=0.95,
        predictions_path="p",
        figures={},
        report_path="r",
        seconds=1.0,
    )


def render(names=("cat", "dog"), source="made", lineage=None, notes=(), kind="image", shape=(8, 8, 1)):
    epoch = EpochRecord(1, 9, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 0)
    context = ReportContext(
        data=DataRef("data", "a1b2.dir", source, 10, tuple(names), shape, kind),
        splits=Splits("s", "d", "a1b2.dir", 3, 2, 5),
        trained=TrainResult("m", "w", (epoch,), 1, True, 0, 9, 421642, 100.0, 1.0, "cpu", "bf16", 2),
        model={"model.kind": "cnn"},
        baseline_notes={"majority_class": f"always answers {names[0]!r}"},
        notes=notes,
        num_bootstrap=1000,
        num_bins=15,
        device=Compute("cpu", "fp32", 1),
        lineage=lineage or {},
    )
    return render_report(make_evaluation(names), context, {"worst_mistakes": b"\x89PNG"})


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen, self.links, self.open = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing():
    tags = Tags(render())
    assert tags.open == []
    assert tags.seen.isdisjoint({"script", "link", "iframe", "object"})
    assert tags.links == ["data:image/png;base64,iVBORw=="]


def test_page_says_what_was_measured():
    page = render(lineage={"git commit": "abc123"}, notes=["Not in test: dog."])
    for text in ("a1b2.dir", "421,642", "cpu, bf16, 2 threads", "cpu, fp32, 1 thread<", "abc123", "Not in test: dog."):
        assert text in page
    assert "1,000 bootstrap resamples" in page
    assert "0.9000 to 1.0000" in page
    assert "0.7000 to 0.9000" in page
    assert "cat</bdi> → <bdi>dog</bdi> (2 of 5)" in page
    assert "prefers-color-scheme: dark" in page


def test_an_imperfect_score_never_reads_as_a_perfect_one():
    assert re.search(r"<td>accuracy</td><td><b>0\.9999</b>", render())


def test_what_is_undefined_is_not_shown_as_a_number():
    page = render()
    assert "undefined on this test split" in page
    assert "not in test" in page


@pytest.mark.parametrize("place", ["class", "source", "lineage", "note"])
def test_hostile_text_is_escaped(place):
    page = {
        "class": lambda: render(names=(HOSTILE, '"><img src=x onerror=alert(1)>')),
        "source": lambda: render(source=HOSTILE),
        "lineage": lambda: render(lineage={HOSTILE: HOSTILE}),
        "note": lambda: render(notes=[HOSTILE]),
    }[place]()
    tags = Tags(page)
    assert "script" not in tags.seen
    assert len(tags.links) == 1
    assert "&lt;script&gt;" in page


def test_names_of_any_script_are_kept():
    assert "日本語" in render(names=("日本語", "Größe"))


@pytest.mark.parametrize(
    ("kind", "shape", "texts"),
    [
        ("image", (8, 6, 1), ("8 x 6 pixels, 1 channel<", "the answer and its probability.<")),
        ("text", (1234,), ("at most 1,234 bytes of UTF-8", "the beginning of the text")),
        ("series", (60, 2), ("at most 60 steps, 2 channels", "One line for each of the first channels")),
        ("table", (1,), ("1 column<", "standard deviations (z)")),
    ],
)
def test_an_example_is_said_in_words_of_its_kind(kind, shape, texts):
    page = render(kind=kind, shape=shape)
    assert all(text in page for text in texts)
