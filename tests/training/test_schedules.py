import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from assay.params import ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule
from assay.training.schedules import learning_rate

PEAK, EPOCHS, STEPS_PER_EPOCH = 0.3, 8, 5
NUM_STEPS = EPOCHS * STEPS_PER_EPOCH


def ours(schedule) -> list[float]:
    return [
        learning_rate(schedule, PEAK, step, num_steps=NUM_STEPS, steps_per_epoch=STEPS_PER_EPOCH)
        for step in range(NUM_STEPS)
    ]


def theirs(make) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, rates = make(optimizer), []
    for _ in range(NUM_STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step", category=UserWarning)
            scheduler.step()
    return rates


def test_constant() -> None:
    assert ours(ConstantSchedule()) == [PEAK] * NUM_STEPS


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_one_cycle_equals_torch(fraction: float) -> None:
    expected = theirs(
        lambda o: lr_scheduler.OneCycleLR(o, PEAK, NUM_STEPS + 1, pct_start=fraction, cycle_momentum=False)
    )
    long = [
        learning_rate(OneCycleSchedule(rise_fraction=fraction), PEAK, step, num_steps=NUM_STEPS + 1, steps_per_epoch=5)
        for step in range(NUM_STEPS)
    ]
    assert long == pytest.approx(expected, rel=1e-9)


def test_one_cycle_spans_the_run() -> None:
    rates = ours(OneCycleSchedule(rise_fraction=0.3))
    assert rates[0] == pytest.approx(PEAK / 25)
    assert max(rates) == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(PEAK / 250_000)


def test_cosine_equals_torch() -> None:
    expected = theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, NUM_STEPS))
    assert ours(CosineSchedule(warmup_fraction=0)) == pytest.approx(expected, rel=1e-9)


def test_cosine_with_warm_up_equals_torch() -> None:
    warm = 10

    def make(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, start_factor=1 / warm, total_iters=warm - 1),
            lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS - warm),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[warm])

    assert ours(CosineSchedule(warmup_fraction=warm / NUM_STEPS)) == pytest.approx(theirs(make), rel=1e-9)


def test_step_equals_torch() -> None:
    expected = theirs(lambda o: lr_scheduler.StepLR(o, 3 * STEPS_PER_EPOCH, gamma=0.2))
    assert ours(StepSchedule(every_epochs=3, factor=0.2)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", [ConstantSchedule(), CosineSchedule(), OneCycleSchedule(), StepSchedule()])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_short_runs_have_a_rate(schedule, num_steps: int) -> None:
    for step in range(num_steps):
        assert 0 <= learning_rate(schedule, PEAK, step, num_steps=num_steps, steps_per_epoch=1) <= PEAK


def test_warm_up_rises_in_equal_steps_to_the_schedule_without_it() -> None:
    assert ours(ConstantSchedule(warmup_fraction=0.1)) == pytest.approx([PEAK * t / 4 for t in (1, 2, 3)] + [PEAK] * 37)
    plain, warm = (ours(StepSchedule(every_epochs=1, factor=0.5, warmup_fraction=f)) for f in (0.0, 0.2))
    assert warm[8:] == plain[8:]
    assert warm[:8] == pytest.approx([rate * (step + 1) / 8 for step, rate in enumerate(plain[:8])])
