import numpy as np
import pytest

from assay.data.drawing import to_png
from assay.evaluation.mistakes import (
    image_mistakes,
    mistakes_figure,
    series_mistakes,
    table_mistakes,
    text_mistakes,
    unlikeness,
)
from tests.data.kinds import series_dataset, table_dataset, text_dataset

LABELS = np.arange(20) % 2
WRONG = np.eye(2)[1 - LABELS] * 0.8 + 0.1


def words_of(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_drawn(channels):
    images = np.full((40, 6, 9, channels), 100, np.uint8)
    labels = np.arange(40) % 4
    probabilities = np.eye(4)[(labels + 1) % 4]
    assert len(image_mistakes(images[:7], labels[:7], probabilities[:7], "abcd").axes[0].images) == 7


def test_texts_stand_beside_class_answer_and_probability():
    texts = ["A short one.", "word " * 500, " \n", "日本語 $x$"]
    found = words_of(text_mistakes(texts, LABELS[:4], WRONG[:4], ("cat", "dog")))
    assert found[:3] == ["cat", "→ dog (0.90)", "A short one."]
    assert found[5].count("\n") == 2 and found[5].endswith("…")
    assert found[8] == "(nothing but white space)" and found[11].endswith("$x$")


def test_values_most_unlike_the_true_class_come_first():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 1, (200, 7))
    values[0, 4], values[0, 2] = 109, np.nan
    dataset = table_dataset(np.arange(200) % 2, values)
    figure = table_mistakes(dataset, np.array([0]), np.array([0]), np.array([[0.2, 0.8]]), ("cat", "dog"))
    shown = words_of(figure)[2].replace("\n", " ")
    assert shown.startswith("column 4 109 (z +") and shown.count("(z ") == 5 and "1 missing" in shown


def test_unlikeness_is_the_distance_in_the_classes_own_deviations():
    values = np.random.default_rng(0).normal(3, 2, (100, 2)).astype(np.float32)
    values[5, 1] = np.nan
    dataset = table_dataset(np.arange(100) % 2, values)
    own = values[1::2].astype(float)
    expected = (values[[3, 5]] - np.nanmean(own, axis=0)) / np.nanstd(own, axis=0)
    np.testing.assert_allclose(unlikeness(dataset, np.array([3, 5]), np.array([1, 1])), expected, rtol=1e-9)
    constant = table_dataset([0, 1] * 3, np.ones((6, 1)))
    assert np.isnan(unlikeness(constant, np.array([0]), np.array([0]))).all()


def test_each_series_has_its_lines_and_channels_are_named_once():
    dataset = series_dataset(LABELS)
    series = [dataset.series.row(row) for row in range(6)]
    figure = series_mistakes(series, LABELS[:6], WRONG[:6], ("cat", "dog"), ("left", "right"))
    assert [len(axes.lines) for axes in figure.axes] == [2] * 6
    np.testing.assert_array_equal(figure.axes[4].lines[1].get_ydata(), series[4][:, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["left", "right"]
    assert figure.axes[0].get_title() == "cat" and figure.axes[0].texts[0].get_text() == "→ dog (0.90)"


@pytest.mark.parametrize("make", [text_dataset, series_dataset, table_dataset])
def test_no_mistake_and_one_mistake_are_drawn(make):
    dataset = make(LABELS)
    assert words_of(mistakes_figure(dataset, LABELS[:0], LABELS[:0], WRONG[:0], "ab")) == ["No mistake on test."]
    one = mistakes_figure(dataset, np.array([3]), LABELS[3:4], WRONG[3:4], "ab")
    assert to_png(one) == to_png(mistakes_figure(dataset, np.array([3]), LABELS[3:4], WRONG[3:4], "ab"))
