import io

from PIL import Image

from assay.evaluation.figures import to_png
from assay.evaluation.health_figure import HEALTH_COLUMNS, health_figure, health_rows
from assay.records import EpochRecord, LayerHealth


def history(num_layers: int, num_epochs: int = 4) -> list[EpochRecord]:
    return [EpochRecord(e, e, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 0, layers(num_layers, e)) for e in range(1, num_epochs + 1)]


def layers(count: int, epoch: int) -> tuple[LayerHealth, ...]:
    return tuple(
        LayerHealth(f"$l_{k}^", "Linear", 1.0 / epoch, 2.0, 0.25, k + 1.0, 0.1 * epoch, 0.0) for k in range(count)
    )


def test_every_layer_is_a_line_and_ten_are_named() -> None:
    figure = health_figure(history(24))
    assert [len(axes.lines) for axes in figure.axes] == [24, 24, 24]
    assert len(figure.legends[0].get_texts()) == 10
    assert figure.axes[0].lines[3].get_ydata().tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4]


def test_zeros_and_missing_values_are_drawn() -> None:
    records = history(1, 1)
    blank = LayerHealth("positions", "Embedding", 0.0, 1.0)
    whole = EpochRecord(2, 2, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 0, (*records[0].health, blank))
    assert Image.open(io.BytesIO(to_png(health_figure([whole])))).width > 200
    assert Image.open(io.BytesIO(to_png(health_figure([])))).width > 200


def test_the_table_is_that_of_the_last_look() -> None:
    rows = health_rows([*history(2), EpochRecord(5, 5, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 0)])
    assert rows[1] == ("$l_1^", "0.25", "2", "0.25 ± 2", "40%")
    assert {len(row) for row in rows} == {len(HEALTH_COLUMNS)}
    assert health_rows([]) == []
