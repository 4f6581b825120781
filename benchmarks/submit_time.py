"""How long it takes from a submitted form to the first training step, and where the time goes.

    assay up && python benchmarks/submit_time.py [--runs N] [key=value ...]

Run it in a project whose services are up and idle. Every run gets another seed, so that it trains.
"""

import argparse
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from assay.params import load_params
from assay.project import find_project
from assay.services.api import PrefectApi
from assay.services.paths import ServicePaths
from assay.services.settings import credentials, read_settings
from assay.services.submit import submit, watch

SETTLE_SECONDS = 12.0
"""Between runs: what the one before left to do is done meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    project = find_project()
    settings = read_settings(ServicePaths(project))
    if settings is None:
        raise SystemExit("Nothing is up here: assay up")
    tables = []
    for _ in range(arguments.runs):
        time.sleep(SETTLE_SECONDS)
        seed = time.time_ns() % 1_000_000
        params = load_params(project.params_file, [f"train.seed={seed}", *arguments.overrides])
        begun = time.time()
        sent = submit(project, "pipeline", "cpu", params)
        *_, end = watch(project, sent.flow_run_id)
        if end["type"] != "COMPLETED":
            raise SystemExit(f"{sent.url} ended {end['name']}: {end['message']}")
        with PrefectApi(settings.prefect_url, credentials()) as api:
            tables.append(timeline(api, sent.flow_run_id, begun, project.root))
    names = list(tables[0])
    for name in names:
        seconds = [table[name] for table in tables]
        print(f"{statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})  {name}")


def timeline(api: PrefectApi, flow_run_id: str, begun: float, root: Path) -> dict[str, float]:
    """When things happened, in seconds after the submission."""
    mine = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    states = api.get(f"/flow_run_states/?flow_run_id={flow_run_id}")
    moments = {f"flow run {state['name']}": state["timestamp"] for state in states}
    for task in api.filter("/task_runs/filter", mine):
        moments[f"task {task['name'].rpartition('-')[0] or task['name']} starts"] = task["start_time"]
    logs: list[dict[str, Any]] = api.filter("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}})
    epochs = [log["timestamp"] for log in logs if log["message"].startswith("train: epoch")]
    moments["first epoch over (its steps take well under a second)"] = min(epochs)
    seconds = {name: datetime.fromisoformat(moment).timestamp() - begun for name, moment in moments.items() if moment}
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


if __name__ == "__main__":
    main()
