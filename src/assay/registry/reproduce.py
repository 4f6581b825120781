"""Train a registered version again from what the registry knows of it, and compare the bytes.

The commit is checked out into a folder of its own, the pinned data restored there, and the whole chain run with the
recorded params, seed, precision and threads, in a process and a store of its own. Equal weights are the proof; where
they differ, the run key of then and of now say what differs first.
"""

import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from assay.errors import AssayError, ModelFileError, RunFailedError
from assay.models.files import WEIGHTS_FILE
from assay.progress import announce
from assay.records import Record, RunKey, RunRecord
from assay.registry.load import VersionInfo, find_version, load_version
from assay.registry.register import ARTIFACT_FOLDER, WEIGHTS_TAG
from assay.registry.starts import give_start, with_absolute_start
from assay.registry.workspace import PARAMS_FILE, Workspace, restored
from assay.tracking import lookup
from assay.tracking.run_key import explain_difference
from assay.tracking.runs import LINEAGE_FILE, PIN_FILE, Tracker
from assay.tracking.runs import PARAMS_FILE as RUN_PARAMS_FILE

IDENTICAL, WITHIN_NOISE, DIFFERENT = "identical", "within noise", "different"
_NORMAL_95 = 1.959964
_STAGE = "reproduce"


@dataclass(frozen=True)
class Reproduction(Record):
    """What training a version again came to.

    Attributes:
        verdict: ``identical``: the same bytes of weights. ``within noise``: nothing that the run key counts differs,
            and the test metric is as near as two seeds are. ``different``: anything else.
        reason: One sentence.
        model_name: Registered model.
        version: Its version.
        weights_sha256: SHA-256 (hex) of the registered weights.
        found_sha256: SHA-256 (hex) of those that came out now; empty where nothing was trained.
        differences: What the run key of now counts differently, the first part first.
        metric: Test metric that is compared.
        recorded: Its value then.
        found: Its value now; None where nothing was trained.
        tolerance: Largest difference that two seeds explain (95%); None where no ablation measured the seeds.
        source: Where the source files came from.
        seconds: Wall time.
        metrics: All test metrics of now.
    """

    verdict: str
    reason: str
    model_name: str
    version: int
    weights_sha256: str
    found_sha256: str
    differences: tuple[str, ...]
    metric: str
    recorded: float
    found: float | None
    tolerance: float | None
    source: str
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


def reproduce(tracker: Tracker, name: str, version: int, seed_sd: float | None) -> Reproduction:
    """Train a version again and compare it with the registered one.

    Args:
        tracker: The open store.
        name: Registered model.
        version: Its version.
        seed_sd: Standard deviation of the test metric between seeds; None where it is not known.

    Returns:
        The verdict, and what it rests on.

    Raises:
        ModelFileError: There is no such version, its files are not what they were, or the run in the workspace refused
            what it was given, e.g. because the data is nowhere to be had.
        ProjectError: Its commit is not here.
        RunFailedError: The run in the workspace failed.
    """
    begun = time.perf_counter()
    announce(_STAGE, f"reading what {name} version {version} came from")
    info = find_version(tracker, name, version)
    load_version(tracker, name, version)  # a version whose own bytes are gone cannot be compared with
    key = _load_key(tracker, info)
    params: dict[str, Any] = json.loads(_read(tracker, info, RUN_PARAMS_FILE))
    pin = _read(tracker, info, PIN_FILE)
    recorded = tracker.load_record(info.ref.run_id)
    commit = info.tags.get("mlflow.source.git.commit") or tracker.tags(info.ref.run_id).get("mlflow.source.git.commit")
    params = with_absolute_start(params, tracker.project)
    with restored(tracker.project, commit, pin, _trained_params(params)) as workspace:
        give_start(tracker, params, workspace.project)
        announce(_STAGE, f"training it again from {workspace.note}")
        record = _run(workspace, key)
        artifacts = lookup.find_artifacts(workspace.project.home / "mlflow.db", record.run_id)
        found = hashlib.sha256((artifacts / ARTIFACT_FOLDER / WEIGHTS_FILE).read_bytes()).hexdigest()
        again = RunKey.from_json(json.loads((artifacts / LINEAGE_FILE).read_text()))
    announce(_STAGE, "compared", finished=True)
    return _conclude(info, recorded, record, found, _differences(key, again), params, seed_sd, workspace.note, begun)


def _load_key(tracker: Tracker, info: VersionInfo) -> RunKey:
    """Read a version's run key, whose details say on what it was trained.

    Raises:
        ModelFileError: They are gone.
    """
    key = tracker.load_key(info.ref.run_id)
    if not {"device", "precision", "threads"} <= key.details.keys():
        raise ModelFileError(
            f"{info.ref.uri}: its run {info.ref.run_id} does not say on what device it was trained; {LINEAGE_FILE} is "
            "gone from its files, so it cannot be trained again in the same way. Restore that file."
        )
    return key


def _read(tracker: Tracker, info: VersionInfo, name: str) -> str:
    with tracker.artifact(info.ref.run_id, name) as path:
        return path.read_text()


def _trained_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that a model was trained with: what an ablation chose is in them, so none is run again.

    Its data is pinned in the workspace, wherever it came from. The rest is as it was written: a commit of then does
    not know what has become a param since.
    """
    values = {name: section for name, section in params.items() if name not in ("data", "gate")}
    return values | ({"ablation": values["ablation"] | {"in_run": False}} if "ablation" in values else {})


def _run(workspace: Workspace, key: RunKey) -> RunRecord:
    """Run the whole chain in the workspace, as a command of its own."""
    details = {name: value for part in ("device", "precision", "threads") for name, value in key.details[part].items()}
    overrides = [
        f"device.kind={details['device']}",
        f"device.precision={details['precision']}",
        f"device.num_threads={details['threads']}",
    ]
    command = [sys.executable, "-m", "assay.cli.main", "run", "--json", "--params", PARAMS_FILE, *overrides]
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=workspace.project.root,
        env=dict(workspace.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        teller = threading.Thread(target=_pass_on, args=(process.stderr, said), daemon=True)
        teller.start()
        try:
            out = process.stdout.read() if process.stdout else ""
            process.wait()
            teller.join()
        except BaseException:
            process.kill()
            raise
    return _read_record(out, "".join(said), process.returncode)


def _pass_on(lines: Iterable[str] | None, said: list[str]) -> None:
    """Keep what a command says and show it as progress."""
    for line in lines or ():
        said.append(line)
        if line.strip():
            announce(_STAGE, " ".join(line.split()))


def _read_record(out: str, err: str, code: int) -> RunRecord:
    try:
        values = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        values = {}
    if "run_id" in values:
        known = RunRecord.__dataclass_fields__
        return RunRecord.from_json({name: value for name, value in values.items() if name in known})
    words = values.get("error", {}).get("message") or (err.strip().splitlines() or [f"exit code {code}"])[-1]
    failed: type[AssayError] = RunFailedError if code == 1 else ModelFileError
    raise failed(f"training it again did not come to an end: {words}")


def _differences(then: RunKey, now: RunKey) -> tuple[str, ...]:
    """What the two keys count differently, apart from an ablation that chose params then and is not run again."""
    return tuple(text for text in explain_difference(then, now) if not text.startswith("ablation."))


def _conclude(
    info: VersionInfo,
    recorded: RunRecord,
    record: RunRecord,
    found_sha256: str,
    differences: tuple[str, ...],
    params: Mapping[str, Any],
    seed_sd: float | None,
    source: str,
    begun: float,
) -> Reproduction:
    metric = params.get("gate", {}).get("metric", "accuracy")
    before, now = recorded.metrics[metric], record.metrics[metric]
    weights = info.tags.get(WEIGHTS_TAG, "")
    tolerance = None if seed_sd is None else _NORMAL_95 * math.sqrt(2.0) * seed_sd
    verdict, reason = judge(weights == found_sha256, differences, now - before, tolerance)
    return Reproduction(
        verdict=verdict,
        reason=f"{reason} ({metric} on test {before:.4f} then, {now:.4f} now).",
        model_name=info.ref.name,
        version=info.ref.version,
        weights_sha256=weights,
        found_sha256=found_sha256,
        differences=differences,
        metric=metric,
        recorded=before,
        found=now,
        tolerance=tolerance,
        source=source,
        seconds=round(time.perf_counter() - begun, 3),
        metrics=dict(record.metrics),
    )


def judge(is_same: bool, differences: tuple[str, ...], difference: float, tolerance: float | None) -> tuple[str, str]:
    """Say what a second training shows.

    Args:
        is_same: Whether the weights are the same bytes.
        differences: What the run key counts differently, in words.
        difference: Test metric of now minus that of then.
        tolerance: Largest difference that two seeds explain; None where nobody measured it.

    Returns:
        The verdict and the reason, a clause without its full stop.
    """
    if is_same:
        although = f", although {differences[0]}" if differences else ""
        return IDENTICAL, f"the weights are the same bytes{although}"
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        return DIFFERENT, f"the weights differ; first in what they depend on: {differences[0]}{more}"
    if tolerance is not None and abs(difference) <= tolerance:
        return WITHIN_NOISE, (
            "nothing that the run key counts differs, yet the weights do; two seeds differ by as much "
            f"(up to {tolerance:.4f}). Another processor or library build rounds otherwise"
        )
    measured = (
        "nobody measured the spread of seeds" if tolerance is None else f"more than two seeds do ({tolerance:.4f})"
    )
    return DIFFERENT, f"nothing that the run key counts differs, yet the weights do; {measured}"
