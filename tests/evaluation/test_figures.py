import dataclasses
import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from assay.data.drawing import display_name
from assay.evaluation.figures import (
    draw_figures,
    reliability_figure,
    worst_mistakes,
)
from assay.evaluation.metrics import score_classes
from assay.records import EpochRecord
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.data.made import make_dataset

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
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape)).astype(np.uint8)
    dataset = make_dataset(np.arange(len(labels)) % len(class_names), images)
    dataset = dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, class_names=tuple(class_names)))
    confusion = score_classes(labels, probabilities, [str(k) for k in range(len(class_names))])[1]
    return draw_figures(
        labels,
        probabilities,
        dataset,
        np.arange(len(labels)),
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


@pytest.mark.parametrize("make", [text_dataset, series_dataset, table_dataset])
def test_every_kind_of_data_is_drawn_from_its_test_rows(simulate, make):
    labels, probabilities = simulate(60, 2)
    dataset = make(np.r_[1 - labels, labels], class_names=("cat", "dog"))
    rows = np.arange(60, 120)
    confusion = score_classes(labels, probabilities, ["cat", "dog"])[1]
    pictures = draw_figures(labels, probabilities, dataset, rows, [], 1, confusion, 15)
    others = draw_figures(labels, probabilities, dataset, rows - 60, [], 1, confusion, 15)
    assert tuple(pictures) == NAMES
    assert pictures["worst_mistakes"] != others["worst_mistakes"] and pictures["reliability"] == others["reliability"]


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
