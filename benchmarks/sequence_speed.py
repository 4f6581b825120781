"""Training speed of `assay.training.fit` on texts against the loops that people write, same sizes, tokens and batches.

    python benchmarks/sequence_speed.py

The plain loops are a DataLoader over padded tokens, float32, torch's default threads, AdamW, and nn.TransformerEncoder
with a padding mask, or nn.LSTM on packed sequences (two layers, two directions). They and `fit` take turns epoch by
epoch, so that other load hits both; the best and the median of each count. Texts are random words, 8 to 64 of them.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from assay.data.loading import Dataset
from assay.data.ragged import from_rows
from assay.data.splits import load_split, make_splits
from assay.data.tokenizer import TextEncoder
from assay.params import (
    ConstantSchedule,
    DeviceParams,
    LstmParams,
    ModelParams,
    SplitParams,
    TrainParams,
    TransformerParams,
)
from assay.records import TEXT, DataRef, StepRecords
from assay.training.fit import fit
from assay.training.specify import specify

NUM_TRAIN, BATCH_SIZE, MAX_LENGTH, NUM_EPOCHS = 1024, 64, 64, 5
CASES: dict[str, ModelParams] = {
    "transformer": TransformerParams(dim=128, num_layers=2, num_heads=4, feedforward_dim=256, max_length=MAX_LENGTH),
    "lstm": LstmParams(embedding_dim=100, hidden_units=256, num_layers=2, max_length=MAX_LENGTH),
}


class PlainTransformer(nn.Module):
    def __init__(self, num_tokens: int, params: TransformerParams) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, params.dim, padding_idx=0)
        self.positions = nn.Embedding(MAX_LENGTH, params.dim)
        layer = nn.TransformerEncoderLayer(
            params.dim,
            params.num_heads,
            params.feedforward_dim,
            dropout=0.1,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, params.num_layers, enable_nested_tensor=False)
        self.output = nn.Linear(params.dim, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        is_padding = tokens == 0
        states = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        states = self.encoder(states, src_key_padding_mask=is_padding)
        weights = (~is_padding).float()[..., None]
        return self.output((states * weights).sum(1) / weights.sum(1))


class PlainLstm(nn.Module):
    def __init__(self, num_tokens: int, params: LstmParams) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, params.embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(
            params.embedding_dim,
            params.hidden_units,
            params.num_layers,
            batch_first=True,
            bidirectional=True,
            dropout=0.1,
        )
        self.output = nn.Linear(2 * params.hidden_units, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lengths = (tokens != 0).sum(1)
        packed = pack_padded_sequence(self.tokens(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.output(torch.cat((last[-2], last[-1]), 1))


def make_texts(folder: Path) -> Dataset:
    rng = np.random.default_rng(0)
    count = NUM_TRAIN + 128
    words = np.array([f"w{number:03d}" for number in range(800)])
    texts = [" ".join(rng.choice(words, int(rng.integers(8, MAX_LENGTH + 1)))) for _ in range(count)]
    rows = from_rows([np.frombuffer(text.encode(), np.uint8) for text in texts])
    given = np.zeros(count, np.int8)
    given[NUM_TRAIN : NUM_TRAIN + 64], given[NUM_TRAIN + 64 :] = 1, 2
    hashes = np.array([f"{number:016d}" for number in range(count)], "S16")
    ref = DataRef(str(folder), "texts.dir", "made", count, ("a", "b"), (5 * MAX_LENGTH,), TEXT)
    return Dataset(ref, rows, np.arange(count) % 2, given, np.full(count, -1, np.int64), hashes)


def measure(name: str, params: ModelParams, folder: Path) -> None:
    dataset = make_texts(folder)
    splits = make_splits(dataset, SplitParams(), folder / "splits")
    rows = load_split(splits).train
    train = TrainParams(
        num_epochs=NUM_EPOCHS + 1,
        batch_size=BATCH_SIZE,
        early_stopping=None,
        schedule=ConstantSchedule(),
        dropout_prob=0.1,
    )
    spec = specify(dataset, rows, params, train)
    encoded = TextEncoder(spec.tokenizer).encode(dataset.texts(rows), MAX_LENGTH)
    tokens = torch.from_numpy(encoded.padded(np.arange(len(rows)), MAX_LENGTH, 0).astype(np.int64))
    loader = DataLoader(TensorDataset(tokens, torch.from_numpy(dataset.labels[rows])), BATCH_SIZE, shuffle=True)
    model: nn.Module = (
        PlainTransformer(spec.num_tokens, params)
        if isinstance(params, TransformerParams)
        else PlainLstm(spec.num_tokens, params)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 0.001)
    plain: list[float] = []
    ours: list[float] = []

    def plain_epoch() -> float:
        started = time.perf_counter()
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        return len(rows) / (time.perf_counter() - started)

    def on_steps(steps: StepRecords) -> None:
        milliseconds = steps.timestamp_ms[-1] - steps.timestamp_ms[0]
        ours.append((len(steps.step) - 1) * BATCH_SIZE / milliseconds * 1000)
        determinism = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("default")
        plain.append(plain_epoch())
        torch.set_deterministic_debug_mode(determinism)

    fit(dataset, splits, params, train, DeviceParams(), folder / "run", on_steps=on_steps)
    ratio, middle = max(ours[1:]) / max(plain[1:]), statistics.median(ours[1:]) / statistics.median(plain[1:])
    print(
        f"{name:12s} plain {max(plain[1:]):6.0f}/s  fit {max(ours[1:]):6.0f}/s  ratio {ratio:.2f} "
        f"(medians {middle:.2f}, n {len(ours) - 1} epochs of {NUM_TRAIN // BATCH_SIZE} steps)",
        flush=True,
    )


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, params in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            measure(name, params, Path(folder))


if __name__ == "__main__":
    main()
