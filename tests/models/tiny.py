"""A small model of each family on each kind of data, with a batch that has padding and missing values."""

import torch

from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams, LstmParams, MlpParams, ModelParams, TransformerParams
from assay.records import IMAGE, SERIES, TABLE, TEXT

LENGTHS = (7, 5, 3, 1)
"""Of each text and series in a batch; the longest fills its place."""
LABELS = torch.tensor([0, 1, 2, 1])
NUM_TOKENS = 20
SHAPES = {TEXT: (7,), SERIES: (7, 3), IMAGE: (9, 6, 2), TABLE: (4,)}

CASES: dict[str, tuple[ModelParams, str]] = {
    "lstm-text": (LstmParams(embedding_dim=6, hidden_units=5), TEXT),
    "lstm-series-attention": (LstmParams(hidden_units=5, pooling="attention"), SERIES),
    "lstm-series-mean": (LstmParams(hidden_units=5, pooling="mean", bidirectional=False, num_layers=1), SERIES),
    "transformer-text": (TransformerParams(dim=8, num_heads=2, feedforward_dim=12), TEXT),
    "transformer-text-bert": (
        TransformerParams(dim=8, num_heads=2, feedforward_dim=12, norm="post", pooling="first"),
        TEXT,
    ),
    "transformer-series": (
        TransformerParams(dim=8, positions="sinusoidal", pooling="attention", activation="relu"),
        SERIES,
    ),
    "transformer-image": (TransformerParams(dim=8, patch_size=4, num_layers=1), IMAGE),
    "mlp-table": (MlpParams(hidden_units=(16,)), TABLE),
    "mlp-series": (MlpParams(hidden_units=(16, 8), batch_norm=True), SERIES),
    "mlp-series-statistics": (MlpParams(features="statistics", hidden_units=(16,)), SERIES),
    "mlp-image": (MlpParams(hidden_units=()), IMAGE),
    "cnn-plain": (CnnParams(channels=(4, 8), hidden_units=16), IMAGE),
    "cnn-residual": (CnnParams(channels=(4, 8), batch_norm=True, residual_blocks=1, head="average"), IMAGE),
}


def spec_of(params: ModelParams, kind: str, dropout: DropoutProbs | None = None) -> ModelSpec:
    """Return a spec; channel ``k`` has mean ``k`` and standard deviation ``2 + k``."""
    shape = SHAPES[kind]
    channels = range(0 if kind == TEXT else shape[-1])
    return ModelSpec(
        params,
        shape,
        ("a", "b", "c"),
        dropout or DropoutProbs(),
        tuple(float(k) for k in channels),
        tuple(2.0 + k for k in channels),
        kind,
        NUM_TOKENS if kind == TEXT else 0,
    )


def inputs_of(kind: str) -> torch.Tensor:
    """Return a batch of four, the same each time."""
    generator = torch.Generator().manual_seed(0)
    if kind == TEXT:
        return padded(torch.randint(1, NUM_TOKENS, (4, 7), generator=generator))
    if kind == IMAGE:
        return torch.randint(0, 6, (4, 2, 9, 6), generator=generator).float()
    values = torch.randn(4, *SHAPES[kind], generator=generator) * 3 + 1
    if kind == TABLE:
        values[1, 2] = float("nan")
        return values
    values[0, 2, 1] = float("nan")
    return padded(values)


def padded(values: torch.Tensor) -> torch.Tensor:
    """Put padding behind each sequence's end."""
    for row, length in enumerate(LENGTHS):
        values[row, length:] = float("nan") if values.is_floating_point() else 0
    return values


def with_padding(values: torch.Tensor, extra: int) -> torch.Tensor:
    """Return the batch with `extra` more steps of padding (fewer if negative, none of which may be real)."""
    if extra < 0:
        return values[:, :extra]
    fill = float("nan") if values.is_floating_point() else 0
    return torch.cat((values, torch.full((len(values), extra, *values.shape[2:]), fill, dtype=values.dtype)), 1)
