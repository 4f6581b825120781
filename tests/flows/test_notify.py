"""A message of a night goes out through Prefect's own block to a real server, or it is logged why not."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from assay.params import NightlyParams
from assay.records import NightRecord
from assay.services.local_prefect import LocalPrefect
from tests.copies import ROOT
from tests.ports import free_port

pytestmark = pytest.mark.slow

RECORD = NightRecord("2026-03-01T02:00:00+00:00", "refused", "class 7 got worse", True, "digits-cnn", 4, 3)
SECRET = "T0KEN-of-the-chat"

SAVE = """
import json, sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block

for name, url in json.loads(sys.argv[1]).items():
    Block(name=name, url=url, json_data={"title": "{{subject}}", "text": "{{body}}"}).save(name)
"""

NOTIFY = """
import json, logging, sys
from assay.params import NightlyParams
from assay.records import NightRecord
from flows.notify import notify

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
for case in json.loads(sys.argv[1]):
    sent = notify(NightlyParams.model_validate(case["schedule"]), NightRecord.from_json(case["record"]))
    print(json.dumps(sent), flush=True)
    print("next", file=sys.stderr, flush=True)
"""
"""Each case in turn, in a process of its own, which imports no block before it is asked for one."""

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "sent": ({"notify": "custom-webhook/team"}, "refused"),
    "not listed": ({"notify": "custom-webhook/team"}, "skipped"),
    "listed by hand": ({"notify": "custom-webhook/team", "notify_on": ["skipped"]}, "skipped"),
    "no block named": ({}, "refused"),
    "down": ({"notify": "custom-webhook/down"}, "failed"),
    "broken": ({"notify": "custom-webhook/broken"}, "failed"),
    "unknown block": ({"notify": "custom-webhook/nobody"}, "failed"),
    "unknown kind": ({"notify": "no-such-kind/team"}, "failed"),
}


class Mailbox(BaseHTTPRequestHandler):
    """Keeps what is posted; will not have what comes to ``/broken/...``."""

    received: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, json.loads(body)))
        self.send_response(500 if self.path.startswith("/broken") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mailbox() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Mailbox) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(script: str, argument: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script, json.dumps(argument)], capture_output=True, text=True, check=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def outcomes(mailbox: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """Case -> whether a message was sent, and what was logged; blocks are saved in a Prefect API of their own."""
    places = {"team": mailbox, "broken": f"user:{SECRET}@{mailbox}/broken", "down": f"127.0.0.1:{free_port()}"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        with LocalPrefect(tmp_path_factory.mktemp("prefect")) as prefect:
            prefect.ready()
            run(SAVE, {name: f"http://{place}/{SECRET}?key={SECRET}" for name, place in places.items()})
            cases = [
                {"schedule": schedule, "record": RECORD.to_json() | {"outcome": outcome}}
                for schedule, outcome in CASES.values()
            ]
            done = run(NOTIFY, cases)
    sent = [json.loads(line) for line in done.stdout.splitlines()]
    logged = done.stderr.split("next\n")
    return dict(zip(CASES, zip(sent, logged, strict=False), strict=True))


def test_messages_go_out_for_the_outcomes_that_are_listed(outcomes: dict[str, tuple[bool, str]]) -> None:
    assert [name for name, (sent, _) in outcomes.items() if sent] == ["sent", "listed by hand"]
    skipped = NightRecord.from_json(RECORD.to_json() | {"outcome": "skipped"})
    assert [body for path, body in Mailbox.received if path.startswith(f"/{SECRET}")] == [
        {"title": "Assay, the night of 2026-03-01", "text": f"digits-cnn: {record.describe()}."}
        for record in (RECORD, skipped)
    ]


@pytest.mark.parametrize("name", ["down", "broken", "unknown block", "unknown kind"])
def test_a_message_that_cannot_be_sent_is_logged_and_nothing_else(
    outcomes: dict[str, tuple[bool, str]], name: str
) -> None:
    sent, logged = outcomes[name]
    block = CASES[name][0]["notify"]
    assert not sent
    assert f"No message was sent to {block}: " in logged
    assert SECRET not in logged, "the address of a web hook is its password"


@pytest.mark.parametrize("name", ["sent", "not listed", "no block named"])
def test_nothing_is_logged_where_nothing_went_wrong(outcomes: dict[str, tuple[bool, str]], name: str) -> None:
    assert outcomes[name][1] == ""


def test_a_server_that_refuses_is_named(outcomes: dict[str, tuple[bool, str]], mailbox: str) -> None:
    assert (
        f"HTTPStatusError: Server error '500 Internal Server Error' for url 'http://{mailbox}/...'"
        in outcomes["broken"][1]
    )


def test_nights_that_move_something_or_go_wrong_are_told_by_default() -> None:
    assert NightlyParams().notify is None
    assert NightlyParams().notify_on == ("promoted", "refused", "stopped", "failed")
