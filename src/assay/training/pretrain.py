"""Pretraining on texts without their labels: guess hidden tokens. The same loop as training, shorter."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data.tokenizer import PAD_ID, TextEncoder
from assay.devices import Compute, torch_device
from assay.models.build import build_model
from assay.models.spec import DropoutProbs, ModelSpec
from assay.models.transformer import Transformer
from assay.params import AdamWParams, CosineSchedule, MaskedLanguageStart, TransformerParams
from assay.records import PretrainingRecord
from assay.training.batches import Batches
from assay.training.checkpoints import UnusableCheckpointError, read_checkpoint, write_checkpoint
from assay.training.finite import non_finite_error
from assay.training.interruption import Interruption, deferred
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer, set_learning_rate
from assay.training.schedules import learning_rate
from assay.training.session import PRETRAINING_STREAM, stream_seed
from assay.training.start import Start
from assay.training.state import TrainState, pack, unpack

CHECKPOINT_FILE = "pretraining.safetensors"
_DROPOUT = DropoutProbs(hidden=0.1, attention=0.1)
_MAX_GRAD_NORM = 1.0
_SCHEDULE = CosineSchedule(warmup_fraction=0.1)
_WEIGHTS_SEED, _MASK_SEED, _FIRST_ORDER_SEED = range(3)

_log = logging.getLogger(__name__)

OnPretraining = Callable[[PretrainingRecord], None]


class MaskedLanguageModel(nn.Module):
    """A text transformer and a layer that guesses tokens.

    With ``h`` the encoder's vector of a hidden token and ``E`` the token vectors, which are both ends of the model::

        logits = E norm(gelu(W h + b)) + c

    Args:
        encoder: The transformer; its output layer takes no part.
        dim: Width of a token's vector.
        num_tokens: Tokens that there are.

    Source:
        Devlin et al., "BERT", NAACL 2019, section 3.1, task 1; one matrix for both ends: Press and Wolf, EACL 2017.
    """

    def __init__(self, encoder: Transformer, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.output.requires_grad_(False)
        self.encoder.pooling.requires_grad_(False)
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(num_tokens))

    def forward(
        self, tokens: Int[Tensor, "batch token"], places: Int[Tensor, " hidden"]
    ) -> Float[Tensor, "hidden word"]:
        """Return the logits of hidden tokens.

        Args:
            tokens: Token numbers, some replaced.
            places: Which tokens are to be guessed, as numbers in the flattened batch.
        """
        states = self.encoder.encode(tokens)[:, -tokens.shape[1] :]
        hidden = states.flatten(0, 1).index_select(0, places)
        logits: Tensor = F.linear(self.norm(F.gelu(self.dense(hidden))), self.encoder.tokens.weight, self.bias)
        return logits


def hide_tokens(
    tokens: Int[Tensor, "batch token"], prob: float, encoder: TextEncoder, generator: torch.Generator
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, " hidden"]]:
    """Choose tokens that are to be guessed and hide most of them.

    Of the chosen ones 80% become the mask token, 10% another token, and 10% stay. Padding, unknown and mask tokens are
    not chosen.

    Args:
        tokens: Token numbers, on the CPU.
        prob: Probability of being chosen.
        encoder: The tokenizer.
        generator: Source of randomness.

    Returns:
        The tokens with some replaced, and the places of the chosen ones in the flattened batch; maybe none.

    Source:
        Devlin et al., "BERT", NAACL 2019, section 3.1, task 1.
    """
    special = torch.tensor([PAD_ID, encoder.unknown_id, encoder.mask_id])
    draws = torch.rand((2, *tokens.shape), generator=generator)
    others = torch.randint(int(special.max()) + 1, encoder.num_tokens, tokens.shape, generator=generator)
    chosen = (draws[0] < prob) & ~torch.isin(tokens, special)
    replaced = torch.where(draws[1] < 0.8, encoder.mask_id, torch.where(draws[1] < 0.9, others, tokens))
    return torch.where(chosen, replaced, tokens), chosen.flatten().nonzero().flatten()


def pretrain(
    batches: Batches,
    spec: ModelSpec,
    params: MaskedLanguageStart,
    seed: int,
    compute: Compute,
    checkpoint: Path,
    owner: str,
    checkpoint_every_seconds: float,
    on_epoch: OnPretraining | None = None,
) -> Start:
    """Train a text transformer to guess hidden tokens; to be called within the run's session.

    Dropout is 0.1 whatever the run's own is, gradients are clipped to norm 1, and AdamW's decay is 0.01. Killed and
    called again it ends in the same bytes as unbroken. SIGTERM and SIGINT wait for a step's end and a checkpoint.

    Args:
        batches: The texts of train; their labels are not looked at.
        spec: The run's model.
        params: How to pretrain.
        seed: Seed of the run.
        compute: Device, precision and threads.
        checkpoint: The checkpoint of pretraining alone.
        owner: Fingerprint of the run.
        checkpoint_every_seconds: Least time between two checkpoints within an epoch.
        on_epoch: Called after each epoch; a run that goes on calls it again for the epochs of its checkpoint.

    Returns:
        The weights, without an output layer.

    Raises:
        NonFiniteError: A loss or gradient became NaN or infinite; nothing was updated with it.
        StorageError: The checkpoint cannot be written.
    """
    state = _fresh_state(spec, params, seed, compute)
    records = _go_on(state, checkpoint, owner)
    if on_epoch is not None:
        for record in records:
            on_epoch(record)
    with deferred() as asked:
        _train(
            state,
            records,
            batches,
            spec,
            params,
            seed,
            compute,
            checkpoint,
            owner,
            checkpoint_every_seconds,
            on_epoch,
            asked,
        )
    if asked.is_asked_for:  # and what the signal usually does has not ended the process
        raise KeyboardInterrupt
    assert isinstance(state.module, MaskedLanguageModel)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.module.encoder.state_dict().items()}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(("output.", "pooling."))}
    return Start(replace(spec, class_names=()), weights)


def _train(
    state: TrainState,
    records: list[PretrainingRecord],
    batches: Batches,
    spec: ModelSpec,
    params: MaskedLanguageStart,
    seed: int,
    compute: Compute,
    checkpoint: Path,
    owner: str,
    checkpoint_every_seconds: float,
    on_epoch: OnPretraining | None,
    asked: Interruption,
) -> None:
    """Pretrain from where the state is to the end; `state.epoch_loss` and `epoch_correct` count hidden tokens."""
    master, optimizer = state.master, state.optimizer
    encoder = TextEncoder(spec.tokenizer)
    where = torch_device(compute)
    steps_per_epoch = -(-len(batches) // params.batch_size)
    saved_at = time.monotonic()
    master.module.train()
    while state.epoch < params.num_epochs:
        if state.position == 0:
            generator = torch.Generator().manual_seed(
                stream_seed(seed, PRETRAINING_STREAM, _FIRST_ORDER_SEED + state.epoch)
            )
            state.order = torch.randperm(len(batches), generator=generator)
            state.best = {"hidden": torch.zeros(1, dtype=torch.float64)}
        while state.position < steps_per_epoch:
            started = time.perf_counter()
            step = len(state.steps)
            start = state.position * params.batch_size
            positions = state.order[start : start + params.batch_size]
            tokens = batches.take(positions)[0].cpu()
            inputs, places = hide_tokens(tokens, params.mask_prob, encoder, state.augmentation)
            targets = tokens.flatten()[places].to(where)

            # forward and backward
            master.refresh()
            forward = partial(_forward, master.module, inputs.to(where), places.to(where), compute)
            logits = forward()
            total = F.cross_entropy(logits, targets, reduction="sum")
            (total / max(1, len(places))).backward()  # type: ignore[no-untyped-call]

            # is it a number? one look a step, before anything is updated with it
            norm = torch.linalg.vector_norm(master.collect())
            correct = (logits.detach().argmax(dim=1) == targets).sum()
            total_value, norm_value, num_correct = torch.stack((total.detach(), norm, correct.float())).tolist()
            if not (math.isfinite(total_value) and math.isfinite(norm_value)):
                rows = batches.rows[positions.numpy()].tolist()
                raise non_finite_error(master.module, forward, step + 1, state.epoch + 1, total_value, rows)

            # step
            nn.utils.clip_grads_with_norm_([master.weights, master.rest], _MAX_GRAD_NORM, norm)
            rate = learning_rate(
                _SCHEDULE,
                params.learning_rate,
                step,
                num_steps=params.num_epochs * steps_per_epoch,
                steps_per_epoch=steps_per_epoch,
            )
            set_learning_rate(optimizer, rate)
            optimizer.step()

            # log, save
            state.position += 1
            state.steps.append(total_value / max(1, len(places)), rate, norm_value, time.time_ns() // 1_000_000)
            state.epoch_loss += total_value
            state.epoch_correct += int(num_correct)
            state.best["hidden"] += len(places)
            state.epoch_seconds += time.perf_counter() - started
            due = asked.is_asked_for or time.monotonic() - saved_at >= checkpoint_every_seconds
            if due and state.position < steps_per_epoch:
                _save(state, records, checkpoint, owner)
                saved_at = time.monotonic()
                if asked.is_asked_for:
                    return

        # the epoch is over: save, tell
        num_hidden = max(1.0, float(state.best["hidden"]))
        record = PretrainingRecord(
            epoch=state.epoch + 1,
            step=len(state.steps),
            loss=state.epoch_loss / num_hidden,
            accuracy=state.epoch_correct / num_hidden,
            learning_rate=state.steps.learning_rate[-1],
            seconds=state.epoch_seconds,
            timestamp_ms=time.time_ns() // 1_000_000,
        )
        records.append(record)
        state.epoch, state.position = state.epoch + 1, 0
        state.epoch_loss, state.epoch_correct, state.epoch_seconds = 0.0, 0, 0.0
        _save(state, records, checkpoint, owner)
        saved_at = time.monotonic()
        if on_epoch is not None:
            on_epoch(record)
        if asked.is_asked_for:
            return


def _fresh_state(spec: ModelSpec, params: MaskedLanguageStart, seed: int, compute: Compute) -> TrainState:
    """Start pretraining: the encoder starts as the run's model would, all else has a seed of its own."""
    assert isinstance(spec.model, TransformerParams)
    encoder = build_model(replace(spec, dropout=_DROPOUT), seed)
    assert isinstance(encoder, Transformer)
    torch.manual_seed(stream_seed(seed, PRETRAINING_STREAM, _WEIGHTS_SEED))  # and of dropout from here on
    module = MaskedLanguageModel(encoder, spec.model.dim, spec.num_tokens).to(torch_device(compute))
    master = MasterWeights(module, torch.bfloat16 if compute.precision == "bf16" else torch.float32)
    hidden = torch.Generator().manual_seed(stream_seed(seed, PRETRAINING_STREAM, _MASK_SEED))
    optimizer = build_optimizer(master.weights, master.rest, AdamWParams(learning_rate=params.learning_rate))
    return TrainState(module, master, optimizer, hidden)


def _save(state: TrainState, records: list[PretrainingRecord], checkpoint: Path, owner: str) -> None:
    tensors, values = pack(state)
    values["pretraining"] = [record.to_json() for record in records]
    write_checkpoint(checkpoint, tensors, values, owner)


def _go_on(state: TrainState, checkpoint: Path, owner: str) -> list[PretrainingRecord]:
    """Bring the state to where the checkpoint is, if there is one to use; return the epochs that it holds."""
    try:
        content = read_checkpoint(checkpoint, owner)
    except UnusableCheckpointError as error:
        _log.warning("%s. It is not used; pretraining starts from the beginning.", error)
        return []
    if content is None:
        return []
    tensors, values = content
    unpack(state, tensors, values)
    return [PretrainingRecord.from_json(record) for record in values["pretraining"]]


def _forward(module: nn.Module, inputs: Tensor, places: Tensor, compute: Compute) -> Tensor:
    with torch.autocast(compute.device, dtype=torch.bfloat16, enabled=compute.precision == "bf16"):
        logits: Any = module(inputs, places)
    result: Tensor = logits.float()
    return result
