import dataclasses
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from assay.ablation.curves import gap_figure, highlighted, learning_figure
from assay.ablation.figures import VERDICT_COLOURS, draw_ablation, forest_figure, interaction_figure
from assay.evaluation.figures import STYLE
from assay.records import BASELINE, Trial, Variant
from tests.ablation.made import make_record, make_verdict

CASES = {
    "two variants, one seed": {"num_variants": 2, "num_seeds": 1, "num_epochs": 1},
    "some": {"num_variants": 9},
    "many": {"num_variants": 60, "num_seeds": 20, "num_epochs": 4, "num_diverged": 3},
    "log-loss": {"metric": "log_loss", "num_diverged": 2},
    "factorial": {"mode": "factorial"},
}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(STYLE):
        yield


def with_verdicts(*verdicts, **values):
    return dataclasses.replace(make_record(num_variants=4), verdicts=verdicts, **values)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def intervals(figure):
    """Both ends of each horizontal interval that was drawn."""
    axes = figure.axes[0]
    spanning = (line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_transform() == axes.transData)
    return [tuple(map(float, line.get_xdata())) for line in spanning]


def inside(figure):
    """Assert that every text and every axes' decoration lies on the page."""
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    boxes += [("axes", axes.get_tightbbox(renderer)) for axes in figure.axes]
    boxes += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    for what, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, what


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_a_picture(case, tmp_path):
    record = make_record(**CASES[case])
    figures = draw_ablation(record, tmp_path / "new" / "folder")
    wanted = ["forest", "interaction", "learning_curves", "generalization_gap"]
    assert list(figures) == [name for name in wanted if name != "interaction" or case == "factorial"]
    for name, path in figures.items():
        with Image.open(path) as picture:
            assert 500 < picture.width < 2600, name
            low, high = picture.convert("L").getextrema()
            assert low < 100 < 250 < high, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", [forest_figure, interaction_figure, learning_figure, gap_figure])
def test_nothing_is_cut_off(draw, case):
    figure = draw(make_record(**CASES[case]))
    if figure is None:
        assert draw is interaction_figure
    else:
        inside(figure)


def test_columns_of_the_forest_do_not_overlap():
    figure = forest_figure(make_record(num_variants=15, num_diverged=2))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    boxes.append(figure.axes[0].get_window_extent(renderer))
    inner = figure.axes[0].get_window_extent(renderer)
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            assert width <= 1 or height <= 1 or inner in (one, other), (one, other)


def test_same_record_gives_the_same_pictures_and_no_setting_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    once = draw_ablation(make_record(), tmp_path / "one")
    again = draw_ablation(make_record(), tmp_path / "two")
    assert dict(matplotlib.rcParams) == before
    for name in once:
        assert Path(once[name]).read_bytes() == Path(again[name]).read_bytes()


def test_the_forest_shows_each_difference_with_its_interval_verdict_and_cost():
    record = with_verdicts(
        make_verdict("dropout_prob=0.5", "helps", difference=0.02, low=0.01, high=0.03),
        make_verdict("dropout_prob=0.0", "hurts", difference=-0.02, low=-0.03, high=-0.01),
    )
    figure = forest_figure(record)
    drawn = intervals(figure)
    assert (0.01, 0.03) in drawn
    assert (-0.03, -0.01) in drawn
    points = {
        float(line.get_xdata()[0]): to_hex(line.get_color())
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    }
    assert points == {0.02: VERDICT_COLOURS["helps"].lower(), -0.02: VERDICT_COLOURS["hurts"].lower()}
    shown = texts(figure)
    assert {"+0.0200", "-0.0200", "helps", "hurts", "train.dropout_prob"} <= set(shown)
    seconds = {summary.variant.name: summary.seconds for summary in record.summaries}
    assert f"{seconds['dropout_prob=0.5'] - seconds[BASELINE]:+.1f}" in shown


def test_the_margin_is_the_band():
    record = make_record()
    (band,) = forest_figure(record).axes[0].patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (-record.plan.margin, record.plan.margin)


def test_what_has_no_difference_gets_none_and_is_grey():
    empty = {"difference": 0.0, "low": 0.0, "high": 0.0}
    figure = forest_figure(
        with_verdicts(make_verdict("dropout_prob=0.0", "stopped", **empty), make_verdict("x", "incomplete", **empty))
    )
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert colours["stopped"] == colours["incomplete"] == VERDICT_COLOURS["stopped"]


def test_one_wild_interval_does_not_squash_the_others():
    usual = [make_verdict(f"l2={k}", "undetermined", difference=0.0, low=-0.01, high=0.01) for k in range(5)]
    wild = make_verdict("l1=1", "hurts", difference=-0.9, low=-0.95, high=-0.85)
    endless = make_verdict("l1=2", "undetermined", difference=0.0, low=-math.inf, high=math.inf)
    axes = forest_figure(with_verdicts(*usual, wild, endless)).axes[0]
    assert -0.06 < axes.get_xlim()[0] < -0.01
    assert [line.get_marker() for line in axes.lines].count("<") == 2
    assert [line.get_marker() for line in axes.lines].count(">") == 1


@pytest.mark.parametrize("name", ["$x^$", "_hidden", "日本語", "a\nb", "", "x" * 300, "sgd(" + "momentum=0.9, " * 20])
def test_names_that_matplotlib_trips_over_are_drawn(name, tmp_path):
    record = make_record(num_variants=3)
    odd = record.summaries[1].variant.name

    def rename(item, field="name"):
        return dataclasses.replace(item, **{field: name}) if getattr(item, field) == odd else item

    summaries = [dataclasses.replace(s, variant=rename(s.variant)) for s in record.summaries]
    renamed = dataclasses.replace(
        record,
        summaries=tuple(summaries),
        verdicts=tuple(map(rename, record.verdicts)),
        trials=tuple(rename(trial, "variant") for trial in record.trials),
    )
    assert len(draw_ablation(renamed, tmp_path)) == 3
    for draw in (forest_figure, learning_figure, gap_figure):
        inside(draw(renamed))


def test_the_heat_map_shows_the_mean_of_every_cell():
    record = make_record(mode="factorial")
    figure = interaction_figure(record)
    (axes,) = figure.axes
    shown = {text.get_text() for text in axes.texts}
    assert {f"{summary.mean:.4f}" for summary in record.summaries} <= shown
    assert BASELINE in shown
    colours = axes.images[0].get_array()
    assert colours.shape == (4, 3, 3)
    best = max(record.summaries, key=lambda summary: summary.mean)
    worst = min(record.summaries, key=lambda summary: summary.mean)
    where = {
        (summary.variant.changes.get("train.dropout_prob"), summary.variant.changes.get("train.l2")): summary
        for summary in record.summaries
    }
    cells = {
        where[one, two].variant.name: colours[row, column]
        for row, one in enumerate((None, "0.0", "0.1", "0.5"))
        for column, two in enumerate((None, "0.0001", "0.001"))
    }
    np.testing.assert_allclose(cells[BASELINE], [1, 1, 1])
    assert cells[best.variant.name][2] > cells[best.variant.name][0]
    assert cells[worst.variant.name][0] > cells[worst.variant.name][2]


def test_the_heat_map_is_of_the_factors_that_interact_most():
    record = make_record(mode="factorial")
    strong = make_verdict(
        "b x c", kind="interaction", factors=("train.l2", "train.l1"), difference=-0.5, low=-0.6, high=-0.4
    )
    third = dataclasses.replace(
        record.summaries[1], variant=Variant("l1=0.1", {"train.l1": "0.1"}), mean=0.5, num_seeds=5
    )
    variants = (*record.plan.variants, third.variant)
    wider = dataclasses.replace(
        record,
        plan=dataclasses.replace(record.plan, variants=variants),
        verdicts=(*record.verdicts, strong),
        summaries=(*record.summaries, third),
    )
    axes = interaction_figure(wider).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("train.l2", "train.l1")
    assert "0.5000" in {text.get_text() for text in axes.texts}


def test_a_cell_that_was_stopped_has_no_value():
    record = make_record(mode="factorial")
    stopped = dataclasses.replace(record.summaries[-1], num_epochs=2, state="stopped")
    shown = interaction_figure(dataclasses.replace(record, summaries=(*record.summaries[:-1], stopped))).axes[0].texts
    assert f"{stopped.mean:.4f}" not in {text.get_text() for text in shown}


def trial(variant, seed, values, state="finished"):
    history = make_record(num_variants=2, num_seeds=1).trials[0].history[: len(values)]
    epochs = tuple(dataclasses.replace(r, val_accuracy=v) for r, v in zip(history, values, strict=True))
    return Trial(variant, seed, "k", state, len(values), {"f1_macro": values[-1]}, {"f1_macro": 1.0}, epochs)


def test_learning_curves_are_means_over_seeds():
    record = make_record(num_variants=2, num_seeds=2)
    name = record.summaries[1].variant.name
    trials = (
        trial(BASELINE, 0, [0.1, 0.5, 0.7, 0.8]),
        trial(BASELINE, 1, [0.3, 0.5, 0.9]),
        trial(name, 0, [0.2, 0.6, 0.6, 0.9]),
        trial(name, 1, [0.9, 0.9], "diverged"),
    )
    axes = learning_figure(dataclasses.replace(record, trials=trials)).axes[0]
    curves = [list(line.get_ydata()) for line in axes.lines]
    assert any(np.allclose(curve, [0.2, 0.5, 0.8]) for curve in curves if len(curve) == 3)
    assert any(np.allclose(curve, [0.8, 0.8]) for curve in curves if len(curve) == 2)  # dashed: one seed went on
    assert [0.2, 0.6, 0.6, 0.9] in curves  # without the seed that diverged
    (cross,) = (line for line in axes.lines if line.get_marker() == "x")
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([2], [0.9])


def test_learning_curves_of_log_loss_are_losses():
    assert learning_figure(make_record(metric="log_loss")).axes[0].get_ylabel() == "val loss"
    assert learning_figure(make_record(metric="accuracy")).axes[0].get_ylabel() == "val accuracy"


def test_no_history_draws_no_curves(tmp_path):
    record = make_record(num_variants=3)
    bare = tuple(dataclasses.replace(trial, history=()) for trial in record.trials)
    assert "learning_curves" not in draw_ablation(dataclasses.replace(record, trials=bare), tmp_path)


def test_of_many_variants_the_baseline_the_best_and_the_most_different_are_named():
    record = make_record(num_variants=40)
    named = highlighted(record)
    assert len(named) == len(set(named)) == 8
    assert named[0] == BASELINE
    measured = [v for v in record.verdicts if v.verdict not in ("stopped", "incomplete")]
    helping = sorted((v for v in measured if v.verdict == "helps"), key=lambda v: -v.difference)
    assert named[1 : 1 + len(helping[:4])] == [v.name for v in helping[:4]]
    assert max(measured, key=lambda v: abs(v.difference)).name in named
    assert highlighted(make_record(num_variants=8)) == [v.name for v in make_record(num_variants=8).plan.variants]


@pytest.mark.parametrize("metric", ["f1_macro", "log_loss"])
def test_the_gap_is_above_0_where_train_is_better_than_val(metric):
    record = make_record(num_variants=3, metric=metric)
    axes = gap_figure(record).axes[0]
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(drawn, sorted(abs(s.train_mean - s.mean) for s in record.summaries))
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(abs(record.baseline.train_mean - record.baseline.mean))


def test_variants_without_a_trial_are_left_out_of_the_gap():
    record = make_record(num_variants=3)
    failed = dataclasses.replace(record.summaries[1], num_seeds=0, mean=math.nan, train_mean=math.nan)
    shown = texts(gap_figure(dataclasses.replace(record, summaries=(record.summaries[0], failed))))
    assert failed.variant.name not in shown
    assert BASELINE in shown
