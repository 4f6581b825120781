"""Base job templates of the pools on Kubernetes, made from prefect-kubernetes' own.

    python -m assay.services.pool_templates FOLDER

writes ``cpu.json``, ``gpu.json`` and ``tpu.json``. A run is a Job of one container that Kubernetes never restarts:
Prefect starts it again, and it goes on from its checkpoint in the project's volume. It is given time to write that
checkpoint before it is ended.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

from prefect_kubernetes.worker import KubernetesWorker

from assay.services.slots import POOLS

_GRACE_SECONDS = 120
_USER_ID = 1000

_REPLACED = {"cpu_request", "cpu_limit", "memory_request", "memory_limit", "image"}


def job_template(pool: str) -> dict[str, Any]:
    """Return the base job template of a pool.

    Args:
        pool: ``cpu``, ``gpu`` or ``tpu``.

    Returns:
        What ``prefect work-pool create --type kubernetes --base-job-template`` takes.
    """
    template: dict[str, Any] = copy.deepcopy(KubernetesWorker.get_default_base_job_template())
    spec = template["job_configuration"]["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    # prefect-kubernetes has these two in the pod, where Kubernetes knows no such fields.
    spec |= {"completions": pod.pop("completions"), "parallelism": pod.pop("parallelism")}
    container = pod["containers"][0]
    container["resources"] = _resources(pool)
    container |= {
        "workingDir": "{{ project_folder }}",
        "envFrom": [{"secretRef": {"name": "{{ secret_name }}", "optional": True}}],
        "volumeMounts": [{"name": "project", "mountPath": "{{ project_folder }}"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod |= {
        "automountServiceAccountToken": False,
        "nodeSelector": "{{ node_selector }}",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": "{{ user_id }}",
            "fsGroup": "{{ user_id }}",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": "{{ grace_seconds }}",
        "tolerations": "{{ tolerations }}",
        "volumes": [{"name": "project", "persistentVolumeClaim": {"claimName": "{{ project_claim }}"}}],
    }
    kept = {name: value for name, value in template["variables"]["properties"].items() if name not in _REPLACED}
    kept["env"] = kept["env"] | {"default": _ENVIRONMENT}
    template["variables"] |= {"properties": _variables(pool) | kept, "required": ["image", "project_folder"]}
    return template


_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def _resources(pool: str) -> dict[str, dict[str, str]]:
    """Limits equal requests: a run's share of cores decides its number of threads, and with it its bits."""
    resources = {"cpu": "{{ cpu }}", "memory": "{{ memory }}"}
    if pool == "gpu":
        resources["nvidia.com/gpu"] = "{{ gpus }}"
    elif pool == "tpu":
        resources["google.com/tpu"] = "{{ tpu_chips }}"
    return {"limits": dict(resources), "requests": resources}


def _variables(pool: str) -> dict[str, dict[str, Any]]:
    """What a person fills in when the pool is made, and may change for one deployment."""
    cpu, memory = {"cpu": ("2", "4Gi"), "gpu": ("4", "16Gi"), "tpu": ("8", "32Gi")}[pool]
    quantity = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
    variables: dict[str, dict[str, Any]] = {
        "image": {
            "title": "Image",
            "description": "Container image with this project's packages, pinned by digest, e.g. "
            "registry.example.org/assay@sha256:... See the README beside this file.",
            "type": "string",
            "minLength": 1,
        },
        "project_folder": {
            "title": "Project folder",
            "description": "Where the project's volume is mounted: the path that the project has where its "
            "deployments were made.",
            "type": "string",
            "pattern": "^/",
        },
        "project_claim": {
            "title": "Project claim",
            "description": "Name of the persistent volume claim that holds the project and its checkpoints.",
            "type": "string",
            "default": "assay-project",
        },
        "secret_name": {
            "title": "Secret",
            "description": "Name of the secret whose keys become environment variables, e.g. ASSAY_DATABASE_URL and "
            "MLFLOW_TRACKING_URI. It may be missing.",
            "type": "string",
            "default": "assay",
        },
        "cpu": {
            "title": "CPU",
            "description": "Cores of one run, e.g. 2.",
            "type": "string",
            "pattern": quantity,
            "default": cpu,
        },
        "memory": {
            "title": "Memory",
            "description": "Memory of one run, e.g. 4Gi.",
            "type": "string",
            "pattern": quantity,
            "default": memory,
        },
        "grace_seconds": {
            "title": "Grace, seconds",
            "description": "How long a run that is asked to end may take to write its checkpoint.",
            "type": "integer",
            "minimum": 30,
            "default": _GRACE_SECONDS,
        },
        "user_id": {
            "title": "User id",
            "description": "User and group that the run has; the volume belongs to it.",
            "type": "integer",
            "minimum": 1,
            "default": _USER_ID,
        },
        "node_selector": {
            "title": "Node selector",
            "description": "Labels that a node must have.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": _NODE_SELECTORS[pool],
        },
        "tolerations": {
            "title": "Tolerations",
            "description": "Taints of nodes that a run may be put on all the same.",
            "type": "array",
            "items": {"type": "object"},
            "default": _TOLERATIONS[pool],
        },
    }
    device = _DEVICE_VARIABLES.get(pool, {})
    return variables | device


_DEVICE_VARIABLES: dict[str, dict[str, dict[str, Any]]] = {
    "gpu": {
        "gpus": {
            "title": "GPUs",
            "description": "GPUs of one run; a run computes on one.",
            "type": "integer",
            "minimum": 1,
            "default": 1,
        }
    },
    "tpu": {
        "tpu_chips": {
            "title": "TPU chips",
            "description": "Chips of one run, as many as the topology in the node selector has on a node (1x1: 1, "
            "2x2: 4); a run computes on one.",
            "type": "integer",
            "minimum": 1,
            "default": 1,
        }
    },
}
# Labels: NVIDIA's GPU feature discovery; GKE's TPU nodes.
_NODE_SELECTORS: dict[str, dict[str, str]] = {
    "cpu": {},
    "gpu": {"nvidia.com/gpu.present": "true"},
    "tpu": {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "1x1",
    },
}
_TOLERATIONS: dict[str, list[dict[str, str]]] = {
    "cpu": [],
    "gpu": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "tpu": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
}


def rendered_file(pool: str) -> str:
    """Return what the template's file holds."""
    return json.dumps(job_template(pool), indent=2) + "\n"


def main(folder: Path) -> None:
    """Write the templates of all pools."""
    folder.mkdir(parents=True, exist_ok=True)
    for pool in POOLS:
        (folder / f"{pool}.json").write_text(rendered_file(pool))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
