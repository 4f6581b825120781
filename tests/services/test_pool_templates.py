"""The Kubernetes templates are current, and real job manifests made from them are what Kubernetes takes."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytest.importorskip("prefect_kubernetes")

from prefect.client.schemas.objects import FlowRun  # noqa: E402 - after the check that the extra is there
from prefect.settings import (  # noqa: E402
    PREFECT_API_URL,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)
from prefect.utilities.schema_tools.validation import validate  # noqa: E402
from prefect.utilities.templating import apply_values  # noqa: E402
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration  # noqa: E402

from assay.services.child import GRACE_SECONDS  # noqa: E402
from assay.services.pool_templates import job_template, rendered_file  # noqa: E402
from assay.services.slots import POOLS  # noqa: E402

FOLDER = Path(__file__).parents[2] / "pools"
FILLED = {"image": "registry.example.org/assay@sha256:" + "0" * 64, "project_folder": "/srv/project"}


def manifest(pool: str, **values: Any) -> dict[str, Any]:
    """The job that a Kubernetes worker would create for a run in this pool."""
    nobody = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    with temporary_settings(nobody):  # it opens a client that has nothing to ask here
        configuration = asyncio.run(
            KubernetesWorkerJobConfiguration.from_template_and_values(job_template(pool), FILLED | values)
        )
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="eager-crab"))
    made: dict[str, Any] = configuration.job_manifest
    return made


def pod(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod(job)["containers"][0]
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_the_files_are_current(pool: str) -> None:
    assert (FOLDER / f"{pool}.json").read_text() == rendered_file(pool), (
        "run: python -m assay.services.pool_templates pools"
    )


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "values",
    [{}, {"node_selector": {"disk": "ssd"}, "tolerations": [], "env": {"A": "b"}, "finished_job_ttl": 600}],
)
def test_kubernetes_takes_the_job(pool: str, version: str, values: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest(pool, **values), version, strict=True)


def test_the_default_of_the_package_would_not_pass() -> None:
    """What the two moved fields are moved for."""
    job = manifest("cpu")
    pod(job)["completions"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("pool", POOLS)
def test_a_run_is_one_pod_that_may_write_its_checkpoint(pool: str) -> None:
    job = manifest(pool)
    assert (job["spec"]["backoffLimit"], job["spec"]["completions"], job["spec"]["parallelism"]) == (0, 1, 1)
    assert pod(job)["restartPolicy"] == "Never"
    assert pod(job)["terminationGracePeriodSeconds"] == 120 > GRACE_SECONDS
    assert container(job)["volumeMounts"] == [{"name": "project", "mountPath": "/srv/project"}]
    assert pod(job)["volumes"][0]["persistentVolumeClaim"] == {"claimName": "assay-project"}
    environment = {item["name"]: item["value"] for item in container(job)["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_each_pool_asks_for_its_device() -> None:
    resources = {pool: container(manifest(pool))["resources"] for pool in POOLS}
    assert all(found["limits"] == found["requests"] for found in resources.values())
    assert set(resources["cpu"]["limits"]) == {"cpu", "memory"}
    assert resources["gpu"]["limits"]["nvidia.com/gpu"] == 1
    assert resources["tpu"]["limits"]["google.com/tpu"] == 1
    assert container(manifest("gpu", gpus=4))["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod(manifest("gpu"))["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod(manifest("tpu"))["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "1x1"


@pytest.mark.parametrize("pool", POOLS)
def test_the_container_has_no_rights_it_does_not_need(pool: str) -> None:
    job = manifest(pool)
    assert pod(job)["securityContext"]["runAsNonRoot"] is True
    assert pod(job)["automountServiceAccountToken"] is False
    assert container(job)["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pool", POOLS)
def test_every_placeholder_is_a_typed_variable_with_words(pool: str) -> None:
    template = job_template(pool)
    variables = template["variables"]["properties"]
    text = json.dumps(template["job_configuration"])
    used = {part.split("}}")[0].strip() for part in text.split("{{")[1:]}
    assert used == set(variables)
    assert all(variable.get("description") or "$ref" in json.dumps(variable) for variable in variables.values())
    left = json.dumps(apply_values(template["job_configuration"], {name: "x" for name in variables}))
    assert "{{" not in left


@pytest.mark.parametrize(
    "values",
    [{"grace_seconds": 5}, {"cpu": "much"}, {"memory": "-1"}, {"image": ""}, {"project_folder": "here"}],
)
def test_a_bad_value_is_refused(values: dict[str, Any]) -> None:
    schema = job_template("cpu")["variables"]
    assert validate(FILLED, schema) == []
    assert len(validate(FILLED | values, schema)) == 1
