"""What a run leads back to: the commit, the run key's details, the data set."""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assay.params import HuggingFaceStart, RunParams, VersionStart
from assay.project import Project
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef, RunKey, Splits
from assay.tracking.run_key import constraints_file

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

KEY_TAG = "assay.key"
KIND_TAG = "assay.kind"
"""Tag of runs that are part of an ablation: ``ablation``, ``variant`` or ``trial``."""
ABLATION_TAG = "assay.ablation.run"
"""Tag of a whole run: MLflow run of the ablation that it began with."""
WARNINGS_TAG = "assay.warnings"
"""Tag of a run: what training health warned of, a sentence a line."""
MANIFEST_TAG = "assay.manifest.sha256"
START_TAG = "assay.start"
"""What training started from, where not from random weights; the digest of files is the run key's part ``start``."""
GIT_TIMEOUT_SECONDS = 10.0
_DTYPES = {IMAGE: "uint8", TEXT: "uint8", SERIES: "float32", TABLE: "float32"}


@dataclass(frozen=True)
class GitState:
    """The checkout that a project lies in.

    Attributes:
        commit: Commit hash, or None outside git.
        dirty: Whether a tracked file is changed or an untracked one is not ignored; None outside git.
        note: Why there is no commit; empty where there is one.
    """

    commit: str | None
    dirty: bool | None
    note: str = ""


def git_state(root: Path) -> GitState:
    """Read commit and dirty flag with one call of git."""
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        reply = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=GIT_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError:
        return GitState(None, None, "git is not installed")
    except subprocess.TimeoutExpired:
        return GitState(None, None, f"git did not answer in {GIT_TIMEOUT_SECONDS:g} s")
    if reply.returncode != 0:
        lines = reply.stderr.strip().splitlines() or ["git failed"]
        return GitState(None, None, lines[0].removeprefix("fatal: "))
    lines = reply.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    dirty = any(not line.startswith("#") for line in lines)
    return GitState(None, dirty, "no commit yet") if commit == "(initial)" else GitState(commit, dirty)


def lineage_tags(project: Project, key: RunKey, params: RunParams, data: DataRef) -> dict[str, str]:
    """Tags that lead from a run or a model version back to data, code and parameters."""
    git = git_state(project.root)
    constraints = constraints_file(project)
    tags = {
        KEY_TAG: key.digest,
        **{f"{KEY_TAG}.{part}": value for part, value in key.parts.items()},
        "assay.data.md5": data.md5,
        "assay.data.source": data.source,
        "assay.params.sha256": hashlib.sha256(params.model_dump_json().encode()).hexdigest(),
        "assay.source.sha256": key.parts.get("source", ""),
        "assay.constraints.sha256": _sha256_or_absent(constraints),
        "assay.git.commit": git.commit or git.note,
        "assay.git.dirty": "unknown" if git.dirty is None else str(git.dirty).lower(),
    }
    start = params.train.start
    if isinstance(start, HuggingFaceStart):
        tags[START_TAG] = f"{start.kind} {start.path}"
    elif isinstance(start, VersionStart):
        tags[START_TAG] = f"{start.kind} {_full_name(start, params)}"
    elif start.kind != "scratch":
        tags[START_TAG] = start.kind
    return tags | ({"mlflow.source.git.commit": git.commit} if git.commit else {})


def _full_name(start: VersionStart, params: RunParams) -> str:
    return start.version if "@" in start.version else f"{params.registry.model_name}@{start.version}"


def _sha256_or_absent(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "absent"


def key_json(key: RunKey) -> str:
    """The text of a run's ``lineage.json``."""
    return json.dumps(key.to_json(), indent=1, sort_keys=True)


def dataset_inputs(data: DataRef, splits: Splits) -> list["DatasetInput"]:
    """Describe the data set to MLflow, once for each context that it is used in."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": data.path, "imported_from": data.source, "md5": data.md5})
    schema = json.dumps(
        {
            "mlflow_tensorspec": {
                "features": json.dumps(
                    [{"type": "tensor", "tensor-spec": {"dtype": _DTYPES[data.kind], "shape": [-1, *data.shape]}}]
                ),
                "targets": json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]),
            }
        }
    )
    inputs = []
    for context, rows in (("train", splits.num_train), ("val", splits.num_val), ("test", splits.num_test)):
        profile = {
            "num_rows": rows,
            "num_classes": len(data.class_names),
            "class_names": list(data.class_names),
            "splits_digest": splits.digest,
        }
        dataset = Dataset(
            name=f"{data.source}-{context}",
            digest=data.md5,
            source_type="local",
            source=source,
            schema=schema,
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)]))
    return inputs
