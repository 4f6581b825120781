"""What a night sees before it trains, and whether it trains at all.

The champion's run tells what it was made of: its run key, and a summary of its data. A night with the same key has
nothing to train. A night with other data looks at it first: findings that stop it, and drift of inputs, labels and
the champion's own predictions.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from assay.data.drift import detect_drift, drifted
from assay.data.loading import Dataset
from assay.data.profile import summarise
from assay.data.quality import check_quality
from assay.data.splits import load_split
from assay.devices import resolve
from assay.errors import DataError, ModelFileError, NonFiniteError
from assay.evaluation.predictions import predict_probabilities
from assay.models.fitting import mismatch
from assay.params import NightlyParams, RunParams
from assay.plan import Plan
from assay.records import DataProfile, Drift, Finding, RunKey, RunRecord, Splits
from assay.registry.contest import seen_by
from assay.registry.load import VersionInfo, find_version, load_version
from assay.registry.promotions import Promotions
from assay.tracking.run_key import explain_difference
from assay.tracking.runs import Tracker

PROFILE_FILE = "profile.json"
MAX_PREDICTED = 10_000
"""Examples that the champion answers for the drift of its predictions."""


@dataclass(frozen=True)
class Champion:
    """What a night is compared with.

    Attributes:
        info: The version.
        key: Run key of its run.
        record: What its run came to.
        profile: Summary of its data; None where its run kept none.
    """

    info: VersionInfo
    key: RunKey
    record: RunRecord
    profile: DataProfile | None


@dataclass(frozen=True)
class Sight:
    """What a night saw.

    Attributes:
        trains: Whether it trains.
        reason: Why, or why not; one sentence.
        stopped: Whether the data itself stops it.
        changes: What differs from the champion's run key, in words.
        findings: What is odd about the data.
        drifts: Every comparison with the champion's data.
    """

    trains: bool
    reason: str
    stopped: bool = False
    changes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    drifts: tuple[Drift, ...] = ()


def find_champion(tracker: Tracker, promotions: Promotions, name: str) -> Champion | None:
    """Find what a night is compared with; None where no version is champion.

    Raises:
        ModelFileError: The champion is gone from the registry.
        ServiceError: The store or the ledger fails.
    """
    head = promotions.champion(name)
    if head is None:
        return None
    info = find_version(tracker, name, head.version)
    run_id = info.ref.run_id
    profile = None
    if PROFILE_FILE in tracker.file_names(run_id):
        with tracker.artifact(run_id, PROFILE_FILE) as path, suppress(ValueError, KeyError, TypeError, AttributeError):
            profile = DataProfile.from_json(json.loads(path.read_text()))
    return Champion(info, tracker.load_key(run_id), tracker.load_record(run_id), profile)


def first_sight(plan: Plan, champion: Champion | None) -> Sight:
    """Compare run keys, which needs no example to be looked at.

    Args:
        plan: What a run of this night would depend on.
        champion: What it is compared with.
    """
    if champion is None:
        return Sight(True, "there is no champion yet")
    version = champion.info.ref.version
    if plan.key.digest == champion.key.digest:
        return Sight(False, f"data, params, code and packages are those of champion {version}")
    changes = explain_difference(champion.key, plan.key)
    return Sight(True, f"changed since champion {version}: {'; '.join(changes)}", changes=changes)


def seen_before(tracker: Tracker, plan: Plan, sight: Sight) -> Sight:
    """Do not train what an earlier night or run trained and the gate did not let through.

    A version that has not met the gate yet is not trained again either: the chain finds it and has it meet the gate.
    """
    finished = tracker.find_finished(plan.key) if sight.trains else None
    if finished is None:
        return sight
    decision = tracker.load_record(finished.run_id).decision
    made = f"version {finished.model.version} was made of the same data, params, code and packages"
    if decision is None:
        return replace(sight, reason=f"{made}, and has not met the gate")
    return replace(sight, trains=False, reason=f"{made}, and the gate said {decision.outcome}")


def look_at_data(
    tracker: Tracker,
    champion: Champion,
    dataset: Dataset,
    splits: Splits,
    params: RunParams,
    schedule: NightlyParams,
    sight: Sight,
) -> Sight:
    """Look at data that is not the champion's.

    Args:
        tracker: The open store.
        champion: What it is compared with.
        dataset: The data of this night.
        splits: Its division.
        params: What a run of this night would be made of.
        schedule: How much a change has to be.
        sight: What the run keys said.

    Returns:
        The same with findings and drift; it may train no longer.

    Raises:
        DataError: The shards cannot be read.
    """
    profile = _profile_with_champion(tracker, champion, dataset, params)
    findings = check_quality(champion.profile, profile, dataset, load_split(splits))
    drifts = () if champion.profile is None else detect_drift(champion.profile, profile, schedule.drift_alpha)
    sight = replace(sight, findings=findings, drifts=drifts)
    stops = [finding for finding in findings if finding.stops]
    if stops:
        return replace(sight, trains=False, stopped=True, reason=f"{stops[0].name}: {stops[0].reason}")
    moved = drifted(drifts)
    if moved:
        return replace(sight, reason=f"{sight.reason}; {len(moved)} of {len(drifts)} drifted: {moved[0].reason}")
    if schedule.train_when == "drifted" and all(change.startswith("data ") for change in sight.changes):
        if not drifts:
            unknown = f"the run of champion {champion.info.ref.version} kept no summary of its data to compare with"
            return replace(sight, reason=f"{sight.reason}; {unknown}")
        return replace(
            sight,
            trains=False,
            reason=f"the data is another, and nothing in it has drifted ({len(drifts)} comparisons); "
            "schedule.train_when asks for drift",
        )
    return sight


def _profile_with_champion(tracker: Tracker, champion: Champion, dataset: Dataset, params: RunParams) -> DataProfile:
    """Summarise the night's data, with the champion's predictions of what it has not seen, where it can answer."""
    rows = np.arange(dataset.ref.num_examples)
    try:
        seen = seen_by(tracker, champion.info)
        model, spec = load_version(tracker, champion.info.ref.name, champion.info.ref.version)
        if mismatch(spec, dataset.ref) is not None:
            return summarise(dataset, rows)
        unseen = np.flatnonzero(~np.isin(np.asarray(dataset.content_hash), seen))
        chosen = unseen[:: max(1, len(unseen) // MAX_PREDICTED)][:MAX_PREDICTED]
        if not len(chosen):
            return summarise(dataset, rows)
        answers = predict_probabilities(model, spec, dataset, chosen, resolve(params.device))
    except (ModelFileError, DataError, NonFiniteError):
        return summarise(dataset, rows)
    return profile_with_answers(dataset, chosen, answers)


def profile_with_answers(dataset: Dataset, rows: np.ndarray, answers: np.ndarray) -> DataProfile:
    """Summarise all data, with a model's answers to some of it that it was not trained on.

    Args:
        dataset: The data.
        rows: The rows that it answered, int64 ``[example]``.
        answers: Probabilities of these, float64 ``[example, class]``.
    """
    contents = np.asarray(dataset.content_hash)
    order = np.argsort(contents[rows], kind="stable")
    answered = contents[rows][order]
    place = np.minimum(np.searchsorted(answered, contents), len(answered) - 1)
    is_answered = answered[place] == contents
    probabilities = np.full((len(contents), answers.shape[1]), 1.0 / answers.shape[1])
    probabilities[is_answered] = answers[order[place[is_answered]]]
    others = np.unique(contents[~is_answered])
    return summarise(dataset, np.arange(len(contents)), probabilities, seen=others)
