"""The training loop: one, visible, for every model and device."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.augmentation import augment, mixup
from assay.data.loading import Dataset
from assay.data.splits import load_split
from assay.data.tokenizer import UNKNOWN_ID, TextEncoder
from assay.devices import Compute, resolve, torch_device
from assay.errors import StorageError
from assay.models.fitting import require_augmentation, takes_any_length
from assay.models.spec import ModelSpec
from assay.params import (
    CropFlipAugmentation,
    DeviceParams,
    EarlyStoppingParams,
    MaskedLanguageStart,
    ModelParams,
    TrainParams,
)
from assay.records import TEXT, EpochRecord, Splits, StartRef, StepRecords
from assay.training.average import WeightAverage
from assay.training.batches import Batches, to_model_input
from assay.training.checkpoints import (
    UnusableCheckpointError,
    fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from assay.training.finite import non_finite_error
from assay.training.health import examine, examined_positions, gradient_norms, is_examined
from assay.training.interruption import Interruption, deferred
from assay.training.layers import LayerRates, freeze
from assay.training.losses import balanced_class_weights, training_loss
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer
from assay.training.own_code import prepare
from assay.training.pretrain import CHECKPOINT_FILE as PRETRAINING_FILE
from assay.training.pretrain import OnPretraining, pretrain
from assay.training.schedules import learning_rate
from assay.training.session import (
    AUGMENTATION_STREAM,
    NOISE_STREAM,
    balanced_order,
    batch_order,
    compute_session,
    stream_seed,
)
from assay.training.specify import dropout_probs, specify
from assay.training.start import Start, fresh_module, read_start, require_start
from assay.training.state import TrainState, pack, unpack
from assay.training.update import Update

CHECKPOINT_FILE = "checkpoint.safetensors"
_VAL_BATCH_SIZE, _VAL_BATCH_VALUES = 512, 1 << 23

_log = logging.getLogger(__name__)

OnEpoch = Callable[[EpochRecord], None]
OnSteps = Callable[[StepRecords], None]


@dataclass(frozen=True)
class _Job:
    """What a call of `fit_weights` is asked for: how to train, where to keep it and whom to tell."""

    spec: ModelSpec
    params: TrainParams
    compute: Compute
    update: Update
    checkpoint: Path
    owner: str
    last_epoch: int
    every_epoch_saved: bool
    has_health: bool
    on_epoch: OnEpoch | None
    on_steps: OnSteps | None

    def save(self, state: TrainState) -> None:
        """Write a complete checkpoint."""
        write_checkpoint(self.checkpoint, *pack(state), self.owner, is_synced=self.every_epoch_saved)

    def tell_steps(self, state: TrainState, told: int) -> int:
        """Hand over the steps after the first `told` ones, if there are any; return how many are told then."""
        if self.on_steps is not None and told < len(state.steps):
            self.on_steps(state.steps.since(told))
        return len(state.steps)

    def tell_epoch(self, record: EpochRecord) -> None:
        """Hand over an epoch that is over."""
        if self.on_epoch is not None:
            self.on_epoch(record)

    def tell_again(self, state: TrainState) -> None:
        """Hand over what a checkpoint holds."""
        self.tell_steps(state, 0)
        for record in state.epochs:
            self.tell_epoch(record)


@dataclass(frozen=True)
class Trained:
    """What training came to, of which nothing but the checkpoint is on disk.

    Attributes:
        spec: What the model is apart from its weights.
        compute: Where it was trained.
        owner: Fingerprint of the run.
        state: The run where it ended or paused; its module has the kept weights.
        resumed_from_step: Step of the checkpoint that training went on from; 0 without one.
        is_as_found: Whether the checkpoint was as far as training was to go.
        samples_per_second: Speed of this call, val excluded; 0 where it trained nothing.
    """

    spec: ModelSpec
    compute: Compute
    owner: str
    state: TrainState
    resumed_from_step: int
    is_as_found: bool
    samples_per_second: float


def fit_weights(
    dataset: Dataset,
    splits: Splits,
    model: ModelParams,
    train: TrainParams,
    device: DeviceParams,
    run_dir: Path,
    *,
    start: StartRef | None = None,
    until_epoch: int | None = None,
    every_epoch_saved: bool = True,
    has_health: bool = True,
    on_epoch: OnEpoch | None = None,
    on_steps: OnSteps | None = None,
    on_pretraining: OnPretraining | None = None,
) -> Trained:
    """Train a model's weights on the train split, choosing on val; test is not read.

    The same arguments give the same weight bytes, whether the run is unbroken or was killed and called again with
    the same `run_dir`. With early stopping the best epoch's weights are kept, without it the last epoch's. SIGTERM and
    SIGINT wait for the end of the step and a checkpoint; then they do what they usually do.

    Args:
        dataset: All examples.
        splits: Which of them are train and val.
        model: Which model; of no effect where training starts from another one's files.
        train: How to train it.
        device: Where and how precisely to compute.
        run_dir: Folder of this run alone: gets ``checkpoint.safetensors``, and where it pretrains
            ``pretraining.safetensors``.
        start: The files that `train.start` names, where it names any.
        until_epoch: Pause after this epoch, with a checkpoint; called again, training goes on as if it had never
            paused. None trains to the end. A checkpoint that is farther is not gone back from.
        every_epoch_saved: Whether each epoch ends with a checkpoint. Without, there is one where training pauses and
            every ``checkpoint_every_seconds``, which suits short runs that nobody watches and whose result the caller
            keeps: after a kill, epochs since the last checkpoint are trained and told again, and after a power cut,
            which may damage a checkpoint that nobody waited for, all of them.
        has_health: Whether the records of epochs say how layers do, which is of no effect on the weights.
        on_epoch: Called after each epoch, when its checkpoint is on disk. A run that goes on calls it again for
            the epochs that its checkpoint holds, with their old timestamps.
        on_steps: The same for the steps since the last call.
        on_pretraining: The same for each epoch of pretraining, where there is any.

    Returns:
        The kept weights and how they came about.

    Raises:
        DataError: The data is too small for the model.
        ModelFileError: The files to start from are not what they were when the run was planned.
        ParamsError: The model does not take data of this kind, or cannot start so.
        DeviceError: The device or precision is not there.
        NonFiniteError: A loss or gradient became NaN or infinite; nothing was updated with it.
        StorageError: `run_dir` cannot be written.
    """
    compute = resolve(device)
    owner = fingerprint(
        data=dataset.ref.md5,
        splits=splits.digest,
        model=model.model_dump(mode="json"),
        train=train.model_dump(mode="json", exclude={"checkpoint_every_seconds": True, "start": {"path", "version"}}),
        compute=compute.to_json(),
        **({"start": start.digest} if start is not None else {}),
    )
    indices = load_split(splits)
    require_start(train.start, model, dataset.ref.kind)
    begin = read_start(start, train.start) if start is not None else None
    if begin is None:
        spec = specify(dataset, indices.train, model, train)
    else:
        require_augmentation(train.augmentation, dataset.ref.kind)
        spec = begin.spec_for(dataset.ref, dropout_probs(train))
    _make_folder(run_dir)
    with compute_session(compute):
        where = torch_device(compute)
        is_trimmed = takes_any_length(spec)
        train_batches = Batches(dataset, indices.train, where, spec, is_trimmed=is_trimmed)
        if isinstance(train.start, MaskedLanguageStart):
            begin = pretrain(
                train_batches,
                spec,
                train.start,
                train.seed,
                compute,
                run_dir / PRETRAINING_FILE,
                owner,
                train.checkpoint_every_seconds,
                on_pretraining,
            )
        state = _fresh_state(spec, train, compute, begin)
        update, own = prepare(state.master, state.optimizer, train, compute, len(train_batches), state.rates)
        if own:
            owner = fingerprint(run=owner, **own)
        job = _Job(
            spec=spec,
            params=train,
            compute=compute,
            update=update,
            checkpoint=run_dir / CHECKPOINT_FILE,
            owner=owner,
            last_epoch=min(until_epoch or train.num_epochs, train.num_epochs),
            every_epoch_saved=every_epoch_saved,
            has_health=has_health,
            on_epoch=on_epoch,
            on_steps=on_steps,
        )
        resumed_from_step = _go_on(state, job)
        job.tell_again(state)
        is_as_found = resumed_from_step > 0 and (state.stopped_early or state.epoch >= job.last_epoch)
        speed = 0.0
        if not is_as_found:
            val_batches = Batches(dataset, indices.val, where, spec, is_trimmed=is_trimmed)
            labels = torch.from_numpy(dataset.labels[indices.train])
            with deferred() as asked:
                speed = _train(job, state, train_batches, val_batches, labels, asked)
            if asked.is_asked_for:  # and what the signal usually does has not ended the process
                raise KeyboardInterrupt
        state.module.load_state_dict(state.best)
    return Trained(spec, compute, owner, state, resumed_from_step, is_as_found, speed)


def _train(
    job: _Job,
    state: TrainState,
    train_batches: Batches,
    val_batches: Batches,
    train_labels: Tensor,
    asked: Interruption,
) -> float:
    """Train from where the state is to the end; return the samples per second of this process, val excluded.

    A process that is asked to end writes a checkpoint after the step and leaves; the signal does the rest.
    """
    spec, params, compute = job.spec, job.params, job.compute
    master, update = state.master, job.update
    module = master.module
    num_examples, batch_size = len(train_batches), params.batch_size
    steps_per_epoch = -(-num_examples // batch_size)
    num_steps = params.num_epochs * steps_per_epoch
    class_weights = (
        balanced_class_weights(train_labels, spec.num_classes).to(master.values.device)
        if params.class_weights == "balanced"
        else None
    )
    varied = partial(
        augment,
        params=params.augmentation,
        generator=state.augmentation,
        mean=spec.mean,
        std=spec.std,
        unknown_id=TextEncoder(spec.tokenizer).unknown_id if spec.kind == TEXT else UNKNOWN_ID,
    )
    mixup_alpha = params.augmentation.mixup_alpha if isinstance(params.augmentation, CropFlipAugmentation) else 0.0
    samples, seconds, told = 0, 0.0, len(state.steps)
    saved_at = time.monotonic()

    while state.epoch < job.last_epoch and not state.stopped_early:
        module.train()
        if state.position == 0:
            state.order = (
                batch_order(num_examples, params.seed, state.epoch)
                if params.sampling == "shuffled"
                else balanced_order(train_labels, params.seed, state.epoch)
            )
        while state.position < steps_per_epoch:
            started = time.perf_counter()
            step = len(state.steps)
            start = state.position * batch_size
            positions = state.order[start : start + batch_size]
            examples, labels = train_batches.take(positions)
            train_batches.expect(state.order[start + batch_size : start + 2 * batch_size])
            inputs, mixed = to_model_input(varied(examples)), None
            if mixup_alpha > 0:
                inputs, other_labels, share = mixup(inputs, labels, mixup_alpha, state.augmentation)
                mixed = other_labels, share

            # forward and backward
            master.refresh()
            with _autocast(compute):
                logits = module(inputs)
            loss = training_loss(logits, labels, params, class_weights, mixed)
            loss.backward()  # type: ignore[no-untyped-call]

            # is it a number? one look a step, before anything is updated with it
            measured = update.measure()
            correct = (logits.detach().argmax(dim=1) == labels).sum()
            seen = torch.cat((measured, torch.stack((loss.detach(), correct.float()))))
            penalty, norm_value, loss_value, num_correct = seen.tolist()
            loss_value += penalty
            if not _is_finite(loss_value, norm_value):
                rows = train_batches.rows[positions.numpy()].tolist()
                raise non_finite_error(
                    module, partial(_forward, module, inputs, compute), step + 1, state.epoch + 1, loss_value, rows
                )

            # step
            rate = learning_rate(
                params.schedule,
                params.optimizer.learning_rate,
                step,
                num_steps=num_steps,
                steps_per_epoch=steps_per_epoch,
            )
            update.apply(rate, measured)
            if state.average is not None:
                state.average.update(step)

            # log, save
            state.position += 1
            state.steps.append(loss_value, rate, norm_value, time.time_ns() // 1_000_000)
            state.epoch_loss += loss_value * len(positions)
            state.epoch_correct += int(num_correct)
            elapsed = time.perf_counter() - started
            state.epoch_seconds += elapsed
            samples, seconds = samples + len(positions), seconds + elapsed
            due = asked.is_asked_for or time.monotonic() - saved_at >= params.checkpoint_every_seconds
            if due and state.position < steps_per_epoch:
                job.save(state)
                saved_at = time.monotonic()
                told = job.tell_steps(state, told)
                if asked.is_asked_for:
                    return 0.0

        # the epoch is over: validate, stop?, save, tell
        started = time.perf_counter()
        examined = job.has_health and is_examined(state.epoch + 1, params.num_epochs, steps_per_epoch)
        gradients = gradient_norms(module) if examined else {}
        with state.averaged():
            master.refresh()
            val_loss, val_accuracy = _validate(module, val_batches, compute)
            health = examine(module, gradients, partial(_answer_some, module, val_batches, compute)) if examined else ()
        state.epoch_seconds += time.perf_counter() - started
        record = EpochRecord(
            epoch=state.epoch + 1,
            step=len(state.steps),
            train_loss=state.epoch_loss / num_examples,
            train_accuracy=state.epoch_correct / num_examples,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=state.steps.learning_rate[-1],
            seconds=state.epoch_seconds,
            timestamp_ms=time.time_ns() // 1_000_000,
            health=health,
        )
        _keep_best(state, record, params.early_stopping)
        state.epochs.append(record)
        state.train_seconds += state.epoch_seconds
        state.epoch, state.position = state.epoch + 1, 0
        state.epoch_loss, state.epoch_correct, state.epoch_seconds = 0.0, 0, 0.0
        is_over = state.stopped_early or state.epoch >= params.num_epochs
        pauses = asked.is_asked_for or (state.epoch >= job.last_epoch and not is_over)
        if job.every_epoch_saved or pauses or time.monotonic() - saved_at >= params.checkpoint_every_seconds:
            job.save(state)
            saved_at = time.monotonic()
        told = job.tell_steps(state, told)
        job.tell_epoch(record)
        if asked.is_asked_for:
            return 0.0
    return samples / seconds if seconds > 0 else 0.0


def _fresh_state(spec: ModelSpec, params: TrainParams, compute: Compute, begin: Start | None) -> TrainState:
    """Start a run: weights, dropout masks and augmentation each have a seed of their own."""
    module = fresh_module(spec, params.seed, begin).to(torch_device(compute))
    freeze(module, params.freeze_layers)
    master = MasterWeights(module, torch.bfloat16 if compute.precision == "bf16" else torch.float32)
    torch.manual_seed(stream_seed(params.seed, NOISE_STREAM))
    augmentation = torch.Generator().manual_seed(stream_seed(params.seed, AUGMENTATION_STREAM))
    optimizer = build_optimizer(master.weights, master.rest, params.optimizer)
    average = WeightAverage(master, module, params.ema_decay) if params.ema_decay is not None else None
    rates = LayerRates(master, module, params.layer_decay) if params.layer_decay < 1 else None
    return TrainState(module, master, optimizer, augmentation, average, rates)


def _go_on(state: TrainState, job: _Job) -> int:
    """Bring the state to where the checkpoint is, if there is one to use; return its step, or 0."""
    try:
        content = read_checkpoint(job.checkpoint, job.owner)
    except UnusableCheckpointError as error:
        _log.warning("%s. It is not used; training starts from the beginning.", error)
        return 0
    if content is None:
        return 0
    unpack(state, *content)
    return len(state.steps)


def _autocast(compute: Compute) -> torch.autocast:
    """Matrix products and convolutions in bfloat16 where the run says so; weights stay in float32."""
    return torch.autocast(compute.device, dtype=torch.bfloat16, enabled=compute.precision == "bf16")


def _forward(module: nn.Module, inputs: Tensor, compute: Compute) -> Tensor:
    with _autocast(compute):
        logits: Tensor = module(inputs)
    return logits.float()


def _is_finite(loss: float, norm: float) -> bool:
    return math.isfinite(loss) and math.isfinite(norm)


def _validate(module: nn.Module, batches: Batches, compute: Compute) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy over all of val."""
    module.eval()
    loss, correct = 0.0, 0
    batch_size = max(1, min(_VAL_BATCH_SIZE, _VAL_BATCH_VALUES // batches.values_per_example))
    with torch.no_grad():
        for positions in torch.arange(len(batches)).split(batch_size):  # type: ignore[no-untyped-call]
            examples, labels = batches.take(positions)
            logits = _forward(module, to_model_input(examples), compute)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(batches), correct / len(batches)


def _answer_some(module: nn.Module, batches: Batches, compute: Compute) -> Tensor:
    """Return the logits of a few examples, the same ones every time."""
    examples, _ = batches.take(examined_positions(len(batches)))
    return _forward(module, to_model_input(examples), compute)


def _keep_best(state: TrainState, record: EpochRecord, stopping: EarlyStoppingParams | None) -> None:
    """Keep this epoch's weights if it is the best so far; stop if there has been none for too long."""
    if stopping is None:
        metric, better = 0.0, True
    else:
        metric = record.val_loss if stopping.metric == "val_loss" else -record.val_accuracy
        better = state.best_epoch == 0 or metric < state.best_metric - stopping.min_delta
    if better:
        with state.averaged():
            state.best = {name: tensor.detach().clone() for name, tensor in state.module.state_dict().items()}
        state.best_epoch, state.best_metric = record.epoch, metric
    state.stopped_early = stopping is not None and record.epoch - state.best_epoch >= stopping.patience_epochs


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}). Make the folder above it writable, or set ASSAY_HOME."
        ) from error
