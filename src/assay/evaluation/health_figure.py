"""How the layers did while a model was trained: a figure over the epochs, and a table of the last look."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from assay.records import EpochRecord, LayerHealth

HEALTH_COLUMNS = ("layer", "gradient norm", "weight norm", "activations", "dead units")
"""Headings of `health_rows`."""

_FAINT = "#e4e7eb"
_DPI = 110
_MAX_NAMED = 10
_NOTHING = "-"


def health_figure(history: Sequence[EpochRecord]) -> Figure:
    """Draw each layer's gradient norm, spread of activations and share of dead units over the epochs.

    Colours go from the first layer (dark) to the last (light); of many layers, ten evenly spread ones are named.

    Args:
        history: Epochs of the training; those in which nobody looked at the layers are left out.
    """
    looks = [record for record in history if record.health]
    figure = Figure(figsize=(8.4, 2.9), dpi=_DPI)
    if not looks:
        figure.text(0.5, 0.5, "No layer was looked at.", ha="center", va="center", fontsize=11)
        return figure
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.07, right=0.76, top=0.9, bottom=0.17, wspace=0.36)
    names = [layer.name for layer in looks[-1].health]
    colours = colormaps["viridis"](np.linspace(0.0, 0.88, len(names)))
    named = set(np.linspace(0, len(names) - 1, min(len(names), _MAX_NAMED)).round().astype(int).tolist())
    epochs = [look.epoch for look in looks]
    for axes, field, title in zip(
        panels,
        ("grad_norm", "activation_std", "dead_share"),
        ("gradient norm", "deviation of activations", "share of dead units"),
        strict=True,
    ):
        for index, name in enumerate(names):
            values = [_value(look.health[index], field) for look in looks]
            label = _shortened(name) if index in named else "_hidden"
            axes.plot(
                epochs, values, color=colours[index], marker="o" if len(epochs) <= 30 else "", ms=2.5, label=label
            )
        axes.set_title(title, fontsize=9)
        axes.set(xlim=(0.5, max(epochs) + 0.5), xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(axis="y", color=_FAINT, lw=0.7)
        axes.set_axisbelow(True)
        if field == "dead_share":
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(LogFormatter())
            axes.tick_params(axis="y", which="both", labelsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.765, 0.53), frameon=False, fontsize=7)
    return figure


def health_rows(history: Sequence[EpochRecord]) -> list[tuple[str, ...]]:
    """Return the cells of a table of the last look at the layers, a row each; see `HEALTH_COLUMNS`."""
    look = next((record for record in reversed(history) if record.health), None)
    return [_row(layer) for layer in look.health] if look is not None else []


def _row(layer: LayerHealth) -> tuple[str, ...]:
    mean, deviation, dead = layer.activation_mean, layer.activation_std, layer.dead_share
    return (
        layer.name,
        f"{layer.grad_norm:.3g}",
        f"{layer.weight_norm:.3g}",
        _NOTHING if mean is None or deviation is None else f"{mean:.3g} ± {deviation:.3g}",
        _NOTHING if dead is None else f"{dead:.0%}",
    )


def _value(layer: LayerHealth, field: str) -> float:
    """Return a value to draw: nothing where there is none, or where a logarithm has none."""
    value = getattr(layer, field)
    return float("nan") if value is None or (value <= 0 and field != "dead_share") else float(value)


def _shortened(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
