"""A version before the gate: examined, compared with the champion, decided and written down."""

import math
import statistics
import time
from dataclasses import replace

import numpy as np

from assay.errors import ModelFileError
from assay.params import RunParams
from assay.progress import announce
from assay.project import Project
from assay.records import BASELINE, IMAGE, SERIES, TEXT, Decision, Promotion
from assay.registry.aliases import sync_aliases
from assay.registry.contest import Examined, TestBench, common_rows, examine, metrics_on, params_digest, require_enough
from assay.registry.gate import Candidate, TestSet, conclude, judge
from assay.registry.load import VersionInfo, find_version
from assay.registry.promotions import FORCED, Promotions, StaleDecisionError
from assay.registry.slices import Slice, make_slices
from assay.tracking.ablations import AblationRuns
from assay.tracking.runs import service_errors

OUTCOME_TAG, REASON_TAG = "assay.gate.outcome", "assay.gate.reason"
DECISION_FILE = "decision.json"
_STAGE = "gate"


def meet_gate(
    bench: TestBench,
    promotions: Promotions,
    name: str,
    version: int,
    *,
    forced_reason: str = "",
    flow_run_id: str = "",
) -> Decision:
    """Have a version meet the gate; the champion, MLflow's aliases and the version's tags follow the decision.

    Doing it again with the same champion, data and rules gives the decision that was made, and takes no further look
    at the test set.

    Args:
        bench: The test examples of today.
        promotions: The ledger's lines of the store.
        name: Registered model.
        version: The challenger.
        forced_reason: Why it is to be champion whatever the gate finds; empty leaves it to the gate.
        flow_run_id: Flow run that asks.

    Returns:
        The decision.

    Raises:
        ModelFileError: There is no such version, or the champion's files are gone.
        DataError: Too few test examples are fair to both versions.
        ServiceError: The store or the ledger fails.
    """
    challenger: Examined | None = None
    while True:
        head = promotions.champion(name)
        decision = None if forced_reason else _decided_before(bench, promotions, name, version, head)
        if decision is None:
            challenger = challenger or examine(bench, find_version(bench.tracker, name, version))
            decision = _decide(bench, promotions, challenger, head, is_forced=bool(forced_reason))
            decision = replace(decision, forced_reason=forced_reason, flow_run_id=flow_run_id)
            try:
                _write_down(promotions, decision, head)
            except StaleDecisionError:
                announce(_STAGE, "another version became champion meanwhile: comparing with that one")
                continue
        sync_aliases(bench.tracker, promotions, name)
        _tag(bench, decision)
        return decision


def _decided_before(
    bench: TestBench, promotions: Promotions, name: str, version: int, head: Promotion | None
) -> Decision | None:
    """What the gate said of this version, if nothing that it depends on has changed since."""
    made = promotions.decisions(name, version)
    if not made:
        return None
    if head is not None and head.version == version:
        return next((decision for _, decision in made if decision.moves_champion), None)
    _, decision = made[0]
    same = (decision.champion, decision.data_md5, decision.params_sha256) == (
        None if head is None else head.version,
        bench.test_set,
        params_digest(bench.params),
    )
    return decision if same and not decision.moves_champion else None


def _decide(
    bench: TestBench, promotions: Promotions, challenger: Examined, head: Promotion | None, *, is_forced: bool
) -> Decision:
    """Compare and conclude; one look at the test set is counted before anything of the comparison is seen.

    A version that is promoted by hand is compared as far as it can be: a champion that is gone, or that was trained on
    today's test examples, stops nobody then.
    """
    begun = time.perf_counter()
    gate, ref = bench.params.gate, challenger.info.ref
    has_champion = head is not None and head.version != ref.version
    champion = None
    if head is not None and has_champion:
        announce(_STAGE, f"version {ref.version} against champion {head.version}")
        champion = _examine_champion(bench, head, is_forced=is_forced)
    fair, look = _fair_rows(bench, challenger, champion, is_forced=is_forced), None
    if champion is not None and challenger.probabilities is not None:
        look = promotions.take_look(
            bench.test_set, ref.name, ref.version, champion.info.ref.version, gate.max_looks, gate.alpha
        )
    seed_sd = find_seed_sd(bench.tracker.project, bench.params)
    labels = np.asarray(bench.dataset.labels)[bench.rows]
    rules = judge(
        _candidate(bench, challenger, fair),
        None if champion is None else _candidate(bench, champion, fair),
        TestSet(labels[fair], tuple(bench.dataset.ref.class_names), _slices(bench, fair)),
        gate,
        look,
        seed_sd or 0.0,
    )
    outcome, reason = conclude(rules, has_champion)
    return Decision(
        outcome=outcome,
        reason=f"{reason}.",
        model_name=ref.name,
        version=ref.version,
        champion=None if head is None else head.version,
        rules=rules,
        look=look,
        data_md5=bench.test_set,
        num_test=int(fair.sum()),
        decided_ms=int(time.time() * 1000),
        seconds=round(time.perf_counter() - begun, 3),
        params_sha256=params_digest(bench.params),
    )


def _examine_champion(bench: TestBench, head: Promotion, *, is_forced: bool) -> Examined | None:
    """The champion on the bench; None where it is gone and the challenger becomes champion by hand.

    Raises:
        ModelFileError: It is gone, or its files are not what was registered.
    """
    try:
        champion = examine(bench, find_version(bench.tracker, head.model_name, head.version))
    except ModelFileError as error:
        problem = str(error)
    else:
        if not champion.load_error:
            return champion
        problem = champion.load_error
    if is_forced:
        return None
    raise ModelFileError(
        f"{problem} It is the champion, so nothing can be compared with it and nothing was moved. "
        "Restore its files, go back to another version (assay models rollback), or promote this one by hand "
        "(assay models promote V --force --reason TEXT)."
    )


def _fair_rows(bench: TestBench, challenger: Examined, champion: Examined | None, *, is_forced: bool) -> np.ndarray:
    """The test examples that count, bool ``[example]``.

    What a version of other data was trained on is left out for both. A version of today's data has no business with
    its test examples: they stay in, and the gate refuses it. Where a person decides and too few are left, all count,
    and the rules say how many of them were seen.
    """
    of_today = challenger.info.tags.get("assay.data.md5") == bench.dataset.ref.md5
    fair = common_rows(replace(challenger, was_seen=None) if of_today else challenger, champion, len(bench.rows))
    least = bench.params.gate.min_slice_examples
    if is_forced and fair.sum() < least:
        return np.ones_like(fair)
    require_enough(fair, least, champion or challenger)
    return fair


def _candidate(bench: TestBench, examined: Examined, fair: np.ndarray) -> Candidate:
    """Give the gate what it judges by; a version that cannot answer brings what is wrong with it instead."""
    names = tuple(bench.dataset.ref.class_names)
    seen = 0 if examined.was_seen is None else int((examined.was_seen & fair).sum())
    if examined.probabilities is None:
        knows = names if examined.spec is None else examined.spec.class_names
        is_other = set(knows) != set(names)
        is_named = bool(examined.load_error) or is_other  # else its numbers are at fault: answers of NaN say so
        return Candidate(
            np.full((int(fair.sum()), len(knows)), 1.0 / len(knows) if is_named else np.nan),
            knows,
            is_finite=examined.is_finite,
            manifest_error=examined.load_error
            or (examined.answer_error if examined.is_finite and not is_other else ""),
            num_seen=seen,
        )
    return Candidate(
        examined.probabilities[fair],
        names,
        metrics=metrics_on(bench, examined, fair),
        baselines={} if examined.evaluation is None else examined.evaluation.baselines,
        size_bytes=examined.size_bytes,
        latency_ms=examined.latency_ms,
        is_finite=examined.is_finite,
        reload_error=examined.reload_error,
        num_seen=seen,
    )


def _slices(bench: TestBench, fair: np.ndarray) -> tuple[Slice, ...]:
    gate, dataset, rows = bench.params.gate, bench.dataset, bench.rows[fair]
    lengths = None
    if dataset.ref.kind == TEXT:
        lengths = np.array([len(text) for text in dataset.texts(rows)], np.int64)
    elif dataset.ref.kind == SERIES:
        lengths = dataset.series.lengths(rows)
    return make_slices(
        gate.slices,
        np.asarray(dataset.labels)[rows],
        dataset.ref.class_names,
        groups=np.asarray(dataset.groups)[rows],
        images=dataset.images[rows] if dataset.ref.kind == IMAGE else None,
        lengths=lengths,
        num_quantiles=gate.num_quantiles,
    )


def _write_down(promotions: Promotions, decision: Decision, head: Promotion | None) -> None:
    if decision.moves_champion:
        promotions.promote(decision, 0 if head is None else head.fence)
    else:
        promotions.record_decision(decision)


def _tag(bench: TestBench, decision: Decision) -> None:
    """Say the outcome where people look in MLflow: on the version, and whole in its run's files."""
    tracker = bench.tracker
    info: VersionInfo = find_version(tracker, decision.model_name, decision.version)
    outcome = FORCED if decision.forced_reason else decision.outcome
    reason = decision.forced_reason or decision.reason
    if info.tags.get(REASON_TAG) == reason and info.tags.get(OUTCOME_TAG) == outcome:
        return
    tracker.log_json(info.ref.run_id, decision.to_json(), DECISION_FILE)
    with service_errors(tracker.store):
        for tag, value in ((OUTCOME_TAG, outcome), (REASON_TAG, reason)):
            tracker.client.set_tag(info.ref.run_id, tag, value)
            tracker.client.set_model_version_tag(decision.model_name, str(decision.version), tag, value)


def find_seed_sd(project: Project, params: RunParams) -> float | None:
    """How much the gate's metric varies between seeds.

    Args:
        project: The project.
        params: ``gate.seed_sd`` if it is set; else the latest ablation of the experiment is asked.

    Returns:
        The standard deviation over the seeds of that ablation's baseline, on val; None where nobody measured it.
    """
    gate = params.gate
    if gate.seed_sd is not None:
        return gate.seed_sd
    record = AblationRuns(project, params.registry.experiment).latest()
    if record is None:
        return None
    values = [
        trial.metrics[gate.metric]
        for trial in record.trials
        if trial.variant == BASELINE and trial.state == "finished" and gate.metric in trial.metrics
    ]
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return sd if math.isfinite(sd) else None
