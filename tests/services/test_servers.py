"""The real Prefect and MLflow servers behind their guard: other names, other sites and strangers are refused."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from assay.errors import ServiceError
from assay.project import find_project
from assay.services.servers import Access, Server, mlflow_server, prefect_server
from assay.tracking.store import Store, find_store, open_client
from tests.ports import free_port

USER, PASSWORD = "anna", "s3cret-of-the-test"
ROUTES = Path(__file__).with_name("list_routes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    (folder / "params.yaml").touch()
    project = find_project(folder)
    project.make_home()
    store = find_store(project)
    open_client(project, store)
    access = Access(auth=f"{USER}:{PASSWORD}")
    found = {
        "prefect": prefect_server(project.home / "prefect", free_port(), access),
        "mlflow": mlflow_server(store, free_port(), access),
    }
    processes = []
    try:
        for server in found.values():
            with (folder / f"{server.name}.log").open("wb") as log:
                environment = os.environ | server.environment
                processes.append(subprocess.Popen(server.command, env=environment, stdout=log, stderr=log, cwd=folder))
        for server, process in zip(found.values(), processes, strict=True):
            while not _answers(server):
                assert process.poll() is None, (folder / f"{server.name}.log").read_text()
                time.sleep(0.1)
        yield found
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _answers(server: Server) -> bool:
    try:
        return httpx.get(server.health_url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def ask(server: Server, path: str, method: str = "GET", known: bool = True, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    auth = (USER, PASSWORD) if known else None
    with httpx.Client(trust_env=False, auth=auth, timeout=60) as client:
        return client.request(method, server.url + path, headers=names)


PAGES = {"prefect": "/api/admin/version", "mlflow": "/api/2.0/mlflow/experiments/get?experiment_id=0"}
CHANGES = {"prefect": "/api/flows/", "mlflow": "/api/2.0/mlflow/experiments/create"}
NAMES = sorted(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_answers_those_it_knows(servers: dict[str, Server], name: str) -> None:
    server = servers[name]
    assert ask(server, PAGES[name]).status_code == 200
    assert ask(server, PAGES[name], host=f"localhost:{server.port}").status_code == 200
    assert ask(server, "/").status_code in (200, 307)
    assert ask(server, PAGES[name], known=False).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", ["page", "health", "ui"])
def test_a_rebound_name_is_refused(servers: dict[str, Server], name: str, path: str) -> None:
    server = servers[name]
    asked = {"page": PAGES[name], "health": server.health_path, "ui": "/"}[path]
    assert ask(server, asked, host=f"rebound.example:{server.port}").status_code == 403
    assert ask(server, asked, host="10.evil.example").status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_post_of_another_site_is_refused(servers: dict[str, Server], name: str, origin: str) -> None:
    server = servers[name]
    foreign = ask(server, CHANGES[name], "POST", origin=origin)
    assert foreign.status_code == 403
    assert "access-control-allow-origin" not in foreign.headers
    assert ask(server, CHANGES[name], "OPTIONS", origin=origin).status_code == 403
    assert ask(server, CHANGES[name], "POST", sec_fetch_site="cross-site").status_code == 403


@pytest.mark.slow
def test_the_assistant_that_has_a_shell_is_switched_off(servers: dict[str, Server]) -> None:
    for path in ("config", "message"):
        reply = ask(servers["mlflow"], f"/ajax-api/3.0/mlflow/assistant/{path}", "GET" if path == "config" else "POST")
        assert (reply.status_code, "switched off" in reply.text) == (403, True)


@pytest.mark.slow
def test_prefect_wants_its_token_for_every_change(servers: dict[str, Server]) -> None:
    server = servers["prefect"]
    without = ask(server, CHANGES["prefect"], "POST")
    assert without.status_code == 403
    assert "CSRF" in without.text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_route_wants_credentials(servers: dict[str, Server], name: str, folder: Path) -> None:
    environment = os.environ | {"PREFECT_HOME": str(folder / "routes"), "PREFECT_API_URL": ""}
    listed = subprocess.run(
        [sys.executable, str(ROUTES), name], env=environment, capture_output=True, text=True, check=True, cwd=folder
    )
    routes = json.loads(listed.stdout)
    assert len(routes) > 150
    server = servers[name]
    open_routes = set()
    with httpx.Client(trust_env=False, base_url=server.url, timeout=60) as client:
        for method, path in routes:
            if method == "WEBSOCKET":
                key = base64.b64encode(b"0123456789abcdef").decode()
                upgrade = {"connection": "Upgrade", "upgrade": "websocket"}
                wanted = {"sec-websocket-version": "13", "sec-websocket-key": key}
                status = client.get(path, headers=upgrade | wanted).status_code
            else:
                status = client.request(method, path).status_code
            if status not in (401, 403):
                open_routes.add((method, path, status))
    assert {path for _, path, _ in open_routes} <= {server.health_path}, open_routes


@pytest.mark.slow
def test_secrets_are_in_no_log_and_no_process_list_and_files_are_private(
    servers: dict[str, Server], folder: Path
) -> None:
    for name, server in servers.items():
        assert ask(server, PAGES[name], known=False, authorization=f"Bearer {PASSWORD}").status_code == 401
        log = (folder / f"{name}.log").read_text()
        assert "wants credentials" in log or "credentials are wrong" in log
        assert PASSWORD not in log
        assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in log
    children = psutil.Process().children(recursive=True)
    lines = [" ".join(child.cmdline()) for child in children]
    assert any("assay.services.serve" in line for line in lines)
    assert not [line for line in lines if PASSWORD in line]
    databases = [*folder.rglob("*.db"), *folder.rglob("*.db-*")]
    assert len(databases) >= 2
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in databases if file.stat().st_mode & 0o077} == {}


STORE = Store("sqlite:////nowhere/mlflow.db", None, Path("/nowhere/mlflow.db"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "fe80::1"])
@pytest.mark.parametrize(
    ("allowed_hosts", "auth", "missing"),
    [
        ((), None, "ASSAY_AUTH=USER:PASSWORD in the environment and services.allowed_hosts"),
        (("train.example.org",), None, "needs ASSAY_AUTH=USER:PASSWORD in the environment. Set it"),
        ((), "anna:secret", "needs services.allowed_hosts in params.yaml. Set it"),
    ],
)
def test_other_machines_need_credentials_and_a_name(
    host: str, allowed_hosts: tuple[str, ...], auth: str | None, missing: str
) -> None:
    with pytest.raises(ServiceError, match=f"services.host={host}") as refused:
        Access(host, allowed_hosts, auth)
    assert missing in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ServiceError, match="must be an IP address"):
        Access("train.example.org", ("train.example.org",), "a:b")


def hosts_of(server: Server) -> list[str]:
    found: list[str] = json.loads(server.environment["ASSAY_SERVE"])["hosts"]
    return found


def test_allowed_hosts_are_taken_with_and_without_the_port(tmp_path: Path) -> None:
    server = prefect_server(tmp_path, 4200, Access("0.0.0.0", ("Train.example.org",), "a:b"))
    assert server.url == "http://127.0.0.1:4200"
    assert hosts_of(server) == [
        *("127.0.0.1:4200", "localhost:4200", "[::1]:4200"),
        *("train.example.org:4200", "train.example.org"),
    ]
    other = mlflow_server(STORE, 5000, Access("192.168.1.5", ("a:8443",), "a:b"))
    assert hosts_of(other) == ["192.168.1.5:5000", "a:8443"]
    assert "a:b" not in " ".join(other.command)
