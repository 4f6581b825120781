"""The whole story of a version: data, code, params, ablation, test results, gate, and who was champion when."""

from contextlib import suppress
from dataclasses import dataclass, field

from assay.errors import ModelFileError, ServiceError
from assay.records import AblationRecord, Decision, Promotion, Record, RunRecord
from assay.registry.load import VersionInfo, find_version
from assay.registry.promotions import Promotions
from assay.tracking.ablations import AblationRuns
from assay.tracking.lineage import ABLATION_TAG
from assay.tracking.runs import RECORD_FILE, Tracker


@dataclass(frozen=True)
class Story(Record):
    """What is known of a version.

    Attributes:
        model_name: Registered model.
        version: Its version.
        created_ms: When it was registered; Unix time in ms.
        is_champion: Whether it is the champion now.
        run: What its run came to.
        origin: Name -> value of what it came from: data, commit, run key, hashes.
        params: Dotted param -> value as text.
        ablation: The ablation that its run began with; None without one.
        decisions: What the gate said of it, the latest first.
        promotions: The lines of the model's history that it came or went with.
        champion: The champion now; None where there is none.
        page: The Prefect flow run that made it; empty where no server was up.
    """

    model_name: str
    version: int
    created_ms: int
    is_champion: bool
    run: RunRecord
    origin: dict[str, str]
    params: dict[str, str]
    ablation: AblationRecord | None
    decisions: tuple[Decision, ...]
    promotions: tuple[Promotion, ...]
    champion: int | None
    page: str = ""


@dataclass(frozen=True)
class VersionLine(Record):
    """A version in a list.

    Attributes:
        model_name: Registered model.
        version: Its version.
        created_ms: When it was registered; Unix time in ms.
        aliases: Names that point at it.
        data_md5: DVC's hash of its data.
        commit: Git commit; empty outside git.
        description: Its test results in one line.
        outcome: What the gate said last; empty where it was not asked.
        reason: Why.
    """

    model_name: str
    version: int
    created_ms: int
    aliases: tuple[str, ...]
    data_md5: str
    commit: str
    description: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class VersionList(Record):
    """The versions of a model, the latest first.

    Attributes:
        versions: A line for each.
        history: Who was champion, the first one first.
    """

    versions: tuple[VersionLine, ...]
    history: tuple[Promotion, ...] = field(default=())


def list_lines(infos: tuple[VersionInfo, ...], promotions: Promotions) -> VersionList:
    """Put what the registry and the ledger know side by side.

    Args:
        infos: Versions of one model.
        promotions: The ledger's lines of the store.
    """
    if not infos:
        return VersionList(())
    name = infos[0].ref.name
    latest: dict[int, Decision] = {}
    for _, decision in promotions.decisions(name):
        latest.setdefault(decision.version, decision)
    return VersionList(tuple(_line(info, latest.get(info.ref.version)) for info in infos), promotions.history(name))


def _line(info: VersionInfo, decision: Decision | None) -> VersionLine:
    outcome = "" if decision is None else "forced" if decision.forced_reason else decision.outcome
    return VersionLine(
        model_name=info.ref.name,
        version=info.ref.version,
        created_ms=info.created_ms,
        aliases=info.aliases,
        data_md5=info.tags.get("assay.data.md5", ""),
        commit=info.tags.get("assay.git.commit", ""),
        description=info.description,
        outcome=outcome,
        reason="" if decision is None else decision.forced_reason or decision.reason,
    )


def tell(tracker: Tracker, promotions: Promotions, name: str, version: int) -> Story:
    """Gather the story of a version.

    Args:
        tracker: The open store.
        promotions: The ledger's lines of the store.
        name: Registered model.
        version: Its version.

    Raises:
        ModelFileError: There is no such version, or its run was killed after it registered it.
        ServiceError: The store or the ledger fails.
    """
    info = find_version(tracker, name, version)
    run_id = info.ref.run_id
    if RECORD_FILE not in tracker.file_names(run_id):
        raise ModelFileError(
            f"{info.ref.uri}: its run {run_id} did not come to an end, so nobody wrote down what it came to. Run it "
            "again with the same params: it goes on with this version."
        )
    tags = tracker.tags(run_id)
    history = promotions.history(name)
    ablation = None
    if ABLATION_TAG in tags:
        with suppress(ServiceError):  # somebody deleted it; the rest can be told all the same
            ablation = AblationRuns(tracker.project, tracker.experiment).load(tags[ABLATION_TAG])
    return Story(
        model_name=name,
        version=version,
        created_ms=info.created_ms,
        is_champion=bool(history) and history[-1].version == version,
        run=tracker.load_record(run_id),
        origin=tracker.lineage(run_id),
        params=tracker.param_texts(run_id),
        ablation=ablation,
        decisions=tuple(decision for _, decision in promotions.decisions(name, version)),
        promotions=tuple(line for line in history if version in (line.version, line.previous)),
        champion=history[-1].version if history else None,
        page=tags.get("assay.prefect.flow_run", ""),
    )
