"""``mlflow models serve`` of a version by its alias answers as the version's own module does."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from assay.registry.load import load_version
from assay.registry.register import register
from assay.tracking.runs import Tracker
from tests.ports import free_port
from tests.registry.parts import make_images, make_trained, start_run
from tests.tracking.parts import default_params, make_evaluation

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with OPENER.open(request) as reply:
        return json.load(reply)


@contextmanager
def served(model: str, tracker: Tracker, log: Path) -> Iterator[tuple[str, int]]:
    """Serve a model on a free loopback port; yields the address and the process."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # The server is started by name: uvicorn of this environment has to come first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracker.store.uri, "PATH": path}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/ping", process, log)
            yield f"http://127.0.0.1:{port}/invocations", process.pid
        finally:
            _end(process)


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while process.poll() is None:
        try:
            with OPENER.open(url) as reply:
                assert reply.status == 200
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"mlflow models serve ended with {process.returncode}:\n{log.read_text()[-3000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children, whatever sessions they are in."""
    family = [process.pid]
    if process.poll() is None:
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in reversed(family):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.mark.slow
def test_the_served_champion_answers_as_ours(sqlite_tracker: Tracker, tmp_path: Path) -> None:
    root, params = sqlite_tracker.project.root, default_params()
    run = start_run(sqlite_tracker)
    images = make_images(9)
    ref = register(sqlite_tracker, run.run_id, make_trained(root / "run"), make_evaluation(root / "e"), params, images)
    sqlite_tracker.client.set_registered_model_alias(ref.name, "champion", str(ref.version))
    model, _ = load_version(sqlite_tracker, ref.name, ref.version)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).float()).numpy()
    artifacts = sqlite_tracker.client.get_run(ref.run_id).info.artifact_uri.removeprefix("file://")
    example = json.loads(Path(artifacts, "model", "serving_input_example.json").read_text())
    with served(f"models:/{ref.name}@champion", sqlite_tracker, tmp_path / "serve.log") as (url, pid):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        answered = post(url, example)["predictions"]
        np.testing.assert_allclose(answered, expected[:2], rtol=1e-5, atol=1e-6)
        answered = post(url, {"inputs": images.tolist()})["predictions"]
        np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            post(url, {"inputs": [[[[0.0]]]]})
        refused.value.close()
    _, left = psutil.wait_procs(family)
    assert left == []
