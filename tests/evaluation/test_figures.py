import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from assay.evaluation.figures import (
    display_name,
    draw_figures,
    mistakes_figure,
    reliability_figure,
    worst_mistakes,
)
from assay.evaluation.metrics import score_classes
from assay.records import EpochRecord

NAMES = (
    "confusion_matrix",
    "roc_curves",
    "precision_recall_curves",
    "reliability",
    "learning_curves",
    "worst_mistakes",
)


def draw(labels, probabilities, class_names, shape=(8, 8, 1), num_epochs=3):
    history = [EpochRecord(e, e, 1 / e, 0.5, 1 / e, 0.5, 0.1, 1.0, 0) for e in range(1, num_epochs + 1)]
    rng = np.random.default_rng(0)
    confusion = score_classes(labels, probabilities, [str(k) for k in range(len(class_names))])[1]
    return draw_figures(
        labels,
        probabilities,
        lambda positions: rng.integers(0, 256, (len(positions), *shape)).astype(np.uint8),
        class_names,
        history,
        1,
        confusion,
        15,
    )


@pytest.mark.parametrize("num_classes", [2, 10, pytest.param(100, marks=pytest.mark.slow)])
def test_every_figure_is_a_picture(simulate, num_classes):
    labels, probabilities = simulate(400, num_classes)
    figures = draw(labels, probabilities, [f"class number {k}" for k in range(num_classes)], (8, 5, 3))
    assert tuple(figures) == NAMES
    for name, png in figures.items():
        picture = Image.open(io.BytesIO(png))
        picture.load()
        assert 200 < picture.width < 1200, name
        low, high = picture.convert("L").getextrema()
        assert low < 100 < 250 < high, name


def test_same_input_gives_the_same_pictures_and_no_setting_changes(simulate):
    labels, probabilities = simulate()
    before = dict(matplotlib.rcParams)
    assert draw(labels, probabilities, "abcd") == draw(labels, probabilities, "abcd")
    assert dict(matplotlib.rcParams) == before


def test_names_that_matplotlib_trips_over_are_drawn(simulate):
    labels, probabilities = simulate()
    draw(labels, probabilities, ["$x^$", "_hidden", "日本語", r"\frac{"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_mistakes_of_any_number_of_channels_are_drawn(simulate, channels):
    labels, probabilities = simulate(40)
    images = np.full((40, 6, 9, channels), 100, np.uint8)
    assert len(mistakes_figure(images[:7], labels[:7], probabilities[:7], "abcd").axes[0].images) == 7


def test_a_perfect_predictor_and_one_class_are_drawn():
    labels = np.array([0, 1, 1])
    draw(labels, np.eye(2)[labels], ["a", "b"], num_epochs=1)
    draw(np.zeros(3, np.int64), np.eye(2)[[0, 0, 1]], ["a", "b"])


def test_worst_mistakes_are_the_least_probable_truths_first():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert worst_mistakes(np.array([1, 1, 1, 0]), probabilities, 5).tolist() == [1, 0]
    assert worst_mistakes(np.array([1, 1, 1, 0]), probabilities, 1).tolist() == [1]


def test_reliability_shows_the_share_of_right_answers_in_each_bin():
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.6, 0.4]] * 2)
    figure = reliability_figure(np.array([0, 0, 0, 1, 0, 1]), probabilities, 10)
    points = figure.axes[0].lines[1]
    np.testing.assert_allclose(points.get_xdata(), [0.6, 0.95])
    np.testing.assert_allclose(points.get_ydata(), [0.5, 0.75])
    assert [bar.get_height() for bar in figure.axes[1].patches] == [2, 4]


def test_display_names():
    assert display_name("müller $x$", 0) == "müller $x$"
    assert display_name("日本", 3) == "class 3"
    assert display_name(" \n ", 4) == "class 4"
    assert display_name("a\nb", 0) == "a b"
    long = display_name("category number 57", 0)
    assert len(long) == 13
    assert (long[:4], long[-3:]) == ("cate", " 57")
