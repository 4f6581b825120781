"""The learning rate as a pure function of the step."""

import math

from assay.params import ConstantSchedule, CosineSchedule, OneCycleSchedule, ScheduleParams, StepSchedule

_START_DIVISOR = 25.0
_END_DIVISOR = 1e4


def learning_rate(schedule: ScheduleParams, peak: float, step: int, *, num_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimizer step.

    With ``T`` steps in all and ``w`` the warm-up's share of them:

    - constant: ``peak (t + 1) / w`` up to step ``w``, then the peak.
    - cosine: ``peak (t + 1) / w`` up to step ``w``, then ``peak (1 + cos(pi (t - w) / (T - w))) / 2``.
    - one-cycle: half a cosine from ``peak / 25`` up to the peak at step ``w - 1``, another down to
      ``peak / 250_000`` at the last step.
    - step: ``peak * factor ** (epoch // every_epochs)``, times ``(t + 1) / w`` up to step ``w``.

    Args:
        schedule: Which schedule, and its settings.
        peak: Highest learning rate.
        step: Steps done before this one, 0 to ``num_steps - 1``.
        num_steps: Steps of the whole run, should it not stop early.
        steps_per_epoch: Steps of one epoch.

    Returns:
        The learning rate.

    Source:
        Cosine: Loshchilov and Hutter, ICLR 2017, equation 5, without restarts. One-cycle: Smith and Topin,
        arXiv:1708.07120, in the cosine form and with the divisors of ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    match schedule:
        case ConstantSchedule():
            return peak * _warm_up(step, schedule.warmup_fraction, num_steps)
        case CosineSchedule():
            return _cosine(peak, step, num_steps, warmup=round(schedule.warmup_fraction * num_steps))
        case OneCycleSchedule():
            return _one_cycle(peak, step, num_steps, top=schedule.rise_fraction * num_steps - 1)
        case StepSchedule():
            drops = step // steps_per_epoch // schedule.every_epochs
            return peak * schedule.factor**drops * _warm_up(step, schedule.warmup_fraction, num_steps)


def _warm_up(step: int, fraction: float, num_steps: int) -> float:
    """The share of the peak that is reached, 1 after the warm-up."""
    warmup = round(fraction * num_steps)
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _cosine(peak: float, step: int, num_steps: int, warmup: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return _anneal(peak, 0.0, (step - warmup) / max(1, num_steps - warmup))


def _one_cycle(peak: float, step: int, num_steps: int, top: float) -> float:
    start = peak / _START_DIVISOR
    if step < top:
        return _anneal(start, peak, step / top)
    left = num_steps - 1 - max(top, 0.0)
    return _anneal(peak, start / _END_DIVISOR, (step - max(top, 0.0)) / left if left > 0 else 0.0)


def _anneal(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` to `end` as `progress` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
