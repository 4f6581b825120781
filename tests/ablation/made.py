"""Made-up ablations that look like real ones: seed noise, examples noise, levels that help, hurt or do nothing."""

import itertools
import json
import math

import numpy as np
from scipy import stats

from assay.ablation.values import shown
from assay.records import (
    BASELINE,
    AblationPlan,
    AblationRecord,
    EpochRecord,
    Trial,
    Variant,
    VariantSummary,
    Verdict,
)

FACTORS = {
    "train.dropout_prob": ("0.0", "0.1", "0.5"),
    "train.l2": ("0.0001", "0.001"),
    "train.l1": ("1e-06", "1e-05"),
    "train.label_smoothing": ("0.05", "0.1"),
    "train.optimizer": (
        '{"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": true}',
        '{"kind": "adam"}',
    ),
    "train.augmentation": ('{"kind": "none"}',),
    "model.channels": ("[16, 32]", "[32, 64, 128]"),
    "model.hidden_units": ("64", "256", "512"),
    "train.batch_size": tuple(str(8 * number) for number in range(1, 60)),
}
EFFECTS = (-0.031, 0.003, 0.013, 0.0, -0.006, 0.001, -0.012, 0.004, -0.001, 0.007, -0.003)
MARGIN, CONFIDENCE = 0.005, 0.95


def make_record(
    num_variants=9, num_seeds=5, metric="f1_macro", mode="one-at-a-time", num_epochs=15, num_diverged=0, seed=0
):
    """Make an ablation; the last `num_diverged` variants have a trial that diverged, and some stopped or failed.

    Args:
        num_variants: The baseline among them; ignored for factorial, which crosses the first two factors.
        num_seeds: Seeds of each.
        metric: Primary metric.
        mode: As in `AblationPlan`.
        num_epochs: Epochs of a trial that goes to its end.
        num_diverged: Variants with a diverged trial.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    variants = _crossed() if mode == "factorial" else _one_at_a_time(num_variants)
    states = {v.name: "finished" for v in variants}
    if len(variants) > 5 and mode != "factorial":
        states[variants[4].name], states[variants[5].name] = "stopped", "incomplete"
    diverged = {variant.name for variant in variants[len(variants) - num_diverged :]}
    effects = {v.name: _effect(v, number) for number, v in enumerate(variants)}
    shared = rng.normal(0.0, 0.003, num_seeds)
    trials = [
        _trial(rng, v.name, s, effects[v.name] + shared[s], metric, num_epochs, states[v.name], v.name in diverged)
        for v in variants
        for s in range(num_seeds)
    ]
    summaries = tuple(_summary(v, states[v.name], [t for t in trials if t.variant == v.name], metric) for v in variants)
    verdicts = _verdicts(variants, states, trials, metric, num_seeds)
    if mode == "factorial":
        verdicts += _interactions(variants, rng)
    plan = AblationPlan(
        mode=mode,
        metric=metric,
        variants=variants,
        seeds=tuple(range(num_seeds)),
        num_trials=len(trials),
        num_done=num_seeds,
        num_epochs=len(trials) * num_epochs,
        seconds=12.4 * len(trials),
        detectable=0.0071,
        power=0.8,
        margin=MARGIN,
        prunes=mode != "factorial",
        notes=("train.dropout_prob=0.25 equals the baseline and was left out.",),
    )
    return AblationRecord(
        run_id="6f3c1b2a90de4c7e8f21",
        experiment_id="3",
        ablation_key="c0ffee" * 10,
        reused=False,
        data_md5="0a1b2c3d4e5f.dir",
        plan=plan,
        num_val=1000,
        confidence=CONFIDENCE,
        summaries=summaries,
        verdicts=tuple(verdicts),
        trials=tuple(trials),
        winners={
            v.factors[0]: v.name.partition("=")[2] for v in verdicts if v.verdict == "helps" and v.kind != "interaction"
        },
        report_path="",
        seconds=12.4 * len(trials),
        num_trained=len(trials) - num_seeds,
        notes=("With 1,000 val examples, differences below 0.004 stay undetermined whatever the seeds.",),
    )


def make_verdict(name="dropout_prob=0.5", word="undetermined", **values):
    """Make one verdict by hand."""
    standard = {
        "kind": "level",
        "factors": ("train.dropout_prob",),
        "reason": "made up",
        "num_seeds": 5,
        "difference": 0.0123,
        "low": 0.0041,
        "high": 0.0205,
        "p": 0.002,
        "p_holm": 0.014,
        "seed_share": 0.7,
        "examples_share": 0.3,
    }
    return Verdict(name=name, verdict=word, **(standard | values))


def _one_at_a_time(num_variants):
    levels = [(path, level) for path, levels in FACTORS.items() for level in levels]
    named = [
        Variant(f"{path.rpartition('.')[2]}={shown(json.loads(level))}", {path: level})
        for path, level in levels[: num_variants - 1]
    ]
    return (Variant(BASELINE), *named)


def _crossed():
    (first, firsts), (second, seconds), *_ = FACTORS.items()
    variants = []
    for one, two in itertools.product((None, *firsts), (None, *seconds)):
        changes = {path: level for path, level in ((first, one), (second, two)) if level is not None}
        name = ", ".join(f"{path.rpartition('.')[2]}={level}" for path, level in changes.items())
        variants.append(Variant(name or BASELINE, changes))
    return tuple(variants)


def _effect(variant, number):
    if variant.is_baseline:
        return 0.0
    if len(variant.changes) == 2:
        return 0.018 - 0.008 * (number % 4)
    return EFFECTS[(number - 1) % len(EFFECTS)]


def _trial(rng, name, seed, effect, metric, num_epochs, state, diverged):
    if state == "incomplete" and seed == 0:
        return Trial(name, seed, f"{name}-{seed}", "failed", message="out of memory, twice")
    epochs = max(1, num_epochs // 3) if state == "stopped" else num_epochs
    end = 0.945 + effect + rng.normal(0.0, 0.002)
    diverges = diverged and seed == 0
    history = tuple(
        _epoch(rng, epoch, num_epochs, end, diverges)
        for epoch in range(1, (epochs // 2 + 1 if diverges else epochs) + 1)
    )
    if diverges:
        value, train = (2.303, 2.303) if metric == "log_loss" else (0.0182, 0.0182)
    elif metric == "log_loss":
        value, train = 4.0 * (1.0 - end), 1.6 * (1.0 - end)
    else:
        value, train = end, end + 0.55 * (1.0 - end) + rng.normal(0.0, 0.002)
    return Trial(
        variant=name,
        seed=seed,
        key=f"{abs(hash((name, seed))):016x}",
        state="diverged" if diverges else "stopped" if state == "stopped" else "finished",
        num_epochs=len(history),
        metrics={metric: value},
        train_metrics={metric: train},
        history=history,
        seconds=0.8 * epochs * (1 + 0.04 * (len(name) % 5)) + float(rng.normal(0.0, 0.2)),
        message="loss became NaN at step 412" if diverges else "",
    )


def _epoch(rng, epoch, num_epochs, end, diverges):
    share = epoch / num_epochs
    accuracy = min(0.999, end - 0.5 * math.exp(-5 * share) + float(rng.normal(0.0, 0.006 * (1.05 - min(share, 1)))))
    loss = math.nan if diverges and share > 0.4 else 3.2 * (1 - accuracy)
    train = accuracy + 0.03 * share
    return EpochRecord(epoch, 70 * epoch, 3 * (1 - train), train, loss, accuracy, 0.001, 0.8, 1_700_000_000_000 + epoch)


def _summary(variant, state, trials, metric):
    trials = [trial for trial in trials if trial.state != "failed"]
    values = np.array([trial.metrics[metric] for trial in trials])
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = 2.0 * math.hypot(sd / math.sqrt(max(len(values), 1)), 0.006)
    mean = float(values.mean()) if len(values) else math.nan
    return VariantSummary(
        variant=variant,
        num_seeds=len(values),
        num_epochs=max((trial.num_epochs for trial in trials), default=0),
        state=state,
        mean=mean,
        sd=sd,
        low=mean - half,
        high=mean + half,
        train_mean=float(np.mean([trial.train_metrics[metric] for trial in trials])) if trials else math.nan,
        seconds=float(np.mean([trial.seconds for trial in trials])) if trials else 0.0,
        num_diverged=sum(trial.state == "diverged" for trial in trials),
    )


def _verdicts(variants, states, trials, metric, num_seeds):
    values = {(trial.variant, trial.seed): trial.metrics.get(metric, math.nan) for trial in trials}
    sign = -1.0 if metric == "log_loss" else 1.0
    found = []
    for variant in variants:
        if variant.is_baseline or len(variant.changes) > 1:
            continue
        pairs = np.array([sign * (values[variant.name, s] - values[BASELINE, s]) for s in range(num_seeds)])
        pairs = pairs[np.isfinite(pairs)]
        if not len(pairs) or states[variant.name] == "incomplete":
            found.append(_without(variant, states[variant.name], num_seeds))
            continue
        diverged = sum(t.state == "diverged" for t in trials if t.variant == variant.name)
        kind = "main effect" if any(len(other.changes) > 1 for other in variants) else "level"
        found.append(_judge(variant, states[variant.name], pairs, diverged, len(variants) - 1, kind))
    return found


def _without(variant, state, num_seeds):
    return Verdict(
        variant.name, "level", tuple(variant.changes), state, "A trial failed even when tried again.", num_seeds - 1
    )


def _judge(variant, state, pairs, num_diverged, comparisons, kind):
    mean, count = float(pairs.mean()), len(pairs)
    seed_error = float(pairs.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.004
    error = math.hypot(seed_error, 0.0022)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(count - 1, 4))) * error
    p = float(2 * stats.norm.sf(abs(mean) / error))
    holm = min(1.0, p * comparisons)
    word = "stopped" if state == "stopped" else "undetermined"
    if state == "finished" and holm < 0.05:
        word = "helps" if mean > 0 else "hurts"
    elif state == "finished" and abs(mean) + 0.8 * half < MARGIN:
        word = "no difference"
    open_seeds = word == "undetermined" and abs(mean) > 0.003
    return Verdict(
        name=variant.name,
        kind=kind,
        factors=tuple(variant.changes),
        verdict=word,
        reason=f"The difference of {mean:+.4f} is {abs(mean) / error:.1f} times its standard error over {count} seeds.",
        num_seeds=count,
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        p_holm=holm,
        p_equivalence=min(1.0, 2 * p),
        seed_share=seed_error**2 / error**2,
        examples_share=1 - seed_error**2 / error**2,
        seeds_needed=3 * count if open_seeds else None,
        examples_needed=12_000 if word == "undetermined" and not open_seeds else None,
        num_diverged=num_diverged,
    )


def _interactions(variants, rng):
    return [
        make_verdict(
            name=variant.name.replace(", ", " x "),
            word="undetermined" if number % 2 else "helps",
            kind="interaction",
            factors=tuple(variant.changes),
            difference=0.004 + 0.004 * (number % 3),
            low=-0.003 + 0.004 * (number % 3),
            high=0.011 + 0.004 * (number % 3),
            seeds_needed=11 if number % 2 else None,
        )
        for number, variant in enumerate(variants)
        if len(variant.changes) == 2
    ]
