"""What the gate asks about a challenger beside the champion: superiority or non-inferiority, and every slice."""

import math

from scipy import special

from assay.params import GateParams
from assay.records import KEPT, REFUSED, Look, Rule
from assay.registry.paired import Counts, Difference, examples_to_tell, mcnemar, tango_high, tango_low
from assay.registry.slices import Slice

_POWER = 0.8
COMPARISONS = ("superiority", "non-inferiority")
_LABELS = {
    "f1_macro": "macro F1",
    "recall_macro": "macro recall",
    "precision_macro": "macro precision",
    "roc_auc_macro": "macro ROC-AUC",
}


def make_rule(name: str, passed: bool | None, reason: str, decides: str = REFUSED, **values: float) -> Rule:
    """Make a rule from what it found.

    Args:
        name: Its name.
        passed: Whether it stands for the challenger; None where it does not apply or cannot tell.
        reason: One sentence.
        decides: What a failure means.
        values: Numbers behind the sentence.
    """
    state = "not asked" if passed is None else "passed" if passed else "failed"
    return Rule(name, state, reason, decides, {key: float(value) for key, value in values.items()})


def label_of(metric: str) -> str:
    """Return what people call a metric, e.g. ``macro F1``."""
    return _LABELS.get(metric, metric)


def superiority(found: Difference, look: Look) -> Rule:
    """Ask whether the challenger is better: the interval has to say so, and of accuracy McNemar's exact test too.

    Args:
        found: Challenger minus champion.
        look: The look at the test set.
    """
    low, p = found.low(look.alpha), mcnemar(found.counts)
    passed = low > 0.0
    reason = _difference(found, low, look)
    if found.metric == "accuracy":
        passed = passed and p < look.alpha
        reason += f"; McNemar p {p:.2g}, needed below {look.alpha:.2g}"
    else:
        reason += f"; p {found.p(0.0):.2g}, needed below {look.alpha:.2g}"
    reason += f" (look {look.number:,} of {look.max_looks:,}){_seeds(found)}"
    return make_rule("superiority", passed, reason, KEPT, p=found.p(0.0), p_mcnemar=p, **_values(found, low, look))


def non_inferiority(found: Difference, look: Look, margin: float) -> Rule:
    """Ask whether the challenger is not worse by `margin`, the interval alone; other arguments as in `superiority`."""
    low = found.low(look.alpha)
    reason = (
        f"{_difference(found, low, look)}, needed above -{margin:g} (look {look.number:,} of {look.max_looks:,})"
        f"{_seeds(found)}"
    )
    values = _values(found, low, look)
    return make_rule("non-inferiority", low > -margin, reason, KEPT, p=found.p(-margin), margin=margin, **values)


def _difference(found: Difference, low: float, look: Look) -> str:
    return (
        f"{label_of(found.metric)} {found.first:.4f} against the champion's {found.second:.4f}: difference "
        f"{found.value:+.4f}, at least {low:+.4f} with {100.0 * (1.0 - look.alpha):.4g}% confidence"
    )


def _values(found: Difference, low: float, look: Look) -> dict[str, float]:
    return {
        "challenger": found.first,
        "champion": found.second,
        "difference": found.value,
        "low": low,
        "alpha": look.alpha,
        "standard_error": found.standard_error,
        "seed_sd": found.seed_sd,
        "only_challenger": found.counts.only_first,
        "only_champion": found.counts.only_second,
    }


def _seeds(found: Difference) -> str:
    return f", seeds differing by a standard deviation of {found.seed_sd:.4f}" if found.seed_sd else ""


def slice_rule(part: Slice, counts: Counts, params: GateParams, num_slices: int) -> Rule:
    """Ask whether a loss of `gate.slice_margin` is ruled out on a slice.

    It passes where the loss is ruled out: Tango's lower end at `gate.slice_alpha` is above the margin. It fails where
    it is not, and a loss is shown (the upper end, at alpha over the number of slices, is below 0), or was seen (the
    estimate itself is at the margin), or the slice is large enough that a model which is no worse anywhere would have
    passed them all with a chance of 80%. What is left cannot tell: it is shown, with the examples that it would take,
    and decides nothing; the whole of test decides then.

    Args:
        part: The slice.
        counts: Who is right where on it, the challenger first.
        params: Margin, alpha and least size.
        num_slices: Slices that are asked in all.
    """
    total, margin, alpha = counts.num_examples, params.slice_margin, params.slice_alpha
    if total < params.min_slice_examples:
        least = f"gate.min_slice_examples={params.min_slice_examples}"
        return make_rule(part.name, None, f"{total:,} test examples are fewer than {least}", num_examples=total)
    needed = examples_to_tell(margin, alpha)
    if total < needed:
        reason = f"{total:,} test examples cannot rule out a loss of {margin:g}, whatever the answers; {needed:,} can"
        return make_rule(part.name, None, reason, num_examples=total)
    low, high = tango_low(counts, alpha), tango_high(counts, alpha / num_slices)
    enough = math.ceil((counts.only_first + counts.only_second) / total * (_reach(alpha, num_slices) / margin) ** 2)
    is_lost = high < 0.0 or counts.difference <= -margin or total >= enough
    passed = True if low > -margin else False if is_lost else None
    what = "recall" if part.kind == "class" else "accuracy"
    found = (
        f"{what} {counts.difference:+.4f}, at least {low:+.4f} (right alone: {counts.only_first:,} it, "
        f"{counts.only_second:,} the champion; of {total:,})"
    )
    verdicts = {
        True: "",
        False: f", not above -{margin:g}: {_why_lost(counts.difference, high, margin)}",
        None: f", which neither shows a loss of {margin:g} nor rules it out; {enough:,} examples would",
    }
    return make_rule(
        part.name,
        passed,
        f"{found}{verdicts[passed]}",
        difference=counts.difference,
        low=low,
        high=high,
        margin=margin,
        alpha=alpha,
        num_examples=total,
    )


def _why_lost(difference: float, high: float, margin: float) -> str:
    if high < 0.0:
        return "it is worse there"
    return "it did lose that much" if difference <= -margin else "a loss that large cannot be ruled out"


def _reach(alpha: float, num_slices: int) -> float:
    """Standard errors between no loss and the margin, for a model that is no worse to pass all slices by `_POWER`."""
    return float(special.ndtri(1.0 - alpha) + special.ndtri(1.0 - (1.0 - _POWER) / num_slices))
