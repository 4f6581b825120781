"""The guard lets through exactly what its rules name."""

import asyncio
import base64
from collections.abc import MutableMapping
from typing import Any

import pytest

from assay.services.guard import Guard, Message, Receive, Rules, Send

HOST = (b"host", b"127.0.0.1:4200")
AUTH = "anna:s3cret"
BASIC = (b"authorization", b"Basic " + base64.b64encode(AUTH.encode()))
OPEN = Rules(frozenset({"127.0.0.1:4200", "localhost:4200"}))
LOCKED = Rules(OPEN.hosts, auth=AUTH, open_paths=frozenset({"/api/health"}))

Header = tuple[bytes, bytes]


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"DENY")]})
    await send({"type": "http.response.body", "body": b"behind"})


def ask(rules: Rules, *headers: Header, method: str = "GET", path: str = "/", kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Guard(application, rules)(scope, receive, send))
    return sent


def status(*headers: Header, rules: Rules = OPEN, method: str = "GET", path: str = "/") -> int:
    return int(ask(rules, *headers, method=method, path=path)[0]["status"])


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:4200",
        b"127.0.0.1",
        b"127.0.0.1:4201",
        b"127.0.0.1.evil.example:4200",
        b"10.evil.example",
        b"127.0.0.1:4200@evil.example",
        b"",
    ],
)
def test_another_name_is_refused(host: bytes) -> None:
    assert status((b"host", host)) == 403


def test_no_name_and_two_names_are_refused() -> None:
    assert status() == 403
    assert status(HOST, (b"host", b"evil.example")) == 403


def test_its_own_names_pass_in_any_case() -> None:
    assert status(HOST) == 200
    assert status((b"host", b"LOCALHOST:4200")) == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", [b"http://evil.example", b"null", b"http://127.0.0.1:5000", b"http://127.0.0.1"])
def test_a_page_of_another_site_is_refused(method: str, origin: bytes) -> None:
    assert status(HOST, (b"origin", origin), method=method) == 403


def test_its_own_pages_may_change_things() -> None:
    assert status(HOST, (b"origin", b"http://127.0.0.1:4200"), method="POST") == 200
    assert status(HOST, (b"origin", b"https://localhost:4200"), method="DELETE") == 200


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_form_of_another_site_is_refused_and_a_link_is_followed(site: bytes) -> None:
    assert status(HOST, (b"sec-fetch-site", site), (b"sec-fetch-mode", b"navigate"), method="POST") == 403
    assert status(HOST, (b"sec-fetch-site", site), (b"sec-fetch-mode", b"navigate")) == 200
    assert status(HOST, (b"sec-fetch-site", b"same-origin"), method="POST") == 200


def test_another_site_shows_nothing_of_this_one_and_another_port_may() -> None:
    shown = (b"sec-fetch-mode", b"no-cors")
    assert status(HOST, (b"sec-fetch-site", b"cross-site"), shown) == 403
    assert status(HOST, (b"sec-fetch-site", b"cross-site")) == 403
    assert status(HOST, (b"sec-fetch-site", b"same-site"), shown) == 200


def test_programs_that_are_no_browsers_pass() -> None:
    assert status(HOST, method="POST") == 200


def test_a_websocket_of_another_site_is_closed_before_it_opens() -> None:
    foreign = ask(OPEN, HOST, (b"origin", b"http://evil.example"), kind="websocket")
    assert foreign == [{"type": "websocket.close", "code": 1008}]
    assert ask(LOCKED, HOST, kind="websocket") == foreign
    assert ask(LOCKED, HOST, BASIC, kind="websocket") == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "authorization",
    [
        b"Basic " + base64.b64encode(b"anna:wrong"),
        b"Basic " + base64.b64encode(b"anna:s3cret "),
        b"Bearer " + base64.b64encode(AUTH.encode()),
        b"Basic",
        b"",
        "Basic ä".encode(),
    ],
)
def test_wrong_credentials_are_refused(authorization: bytes) -> None:
    assert status(HOST, (b"authorization", authorization), rules=LOCKED) == 401


def test_credentials_open_every_path_and_health_needs_none() -> None:
    assert status(HOST, rules=LOCKED) == 401
    assert status(HOST, BASIC, rules=LOCKED) == 200
    assert status(HOST, (b"authorization", BASIC[1].replace(b"Basic", b"basic")), rules=LOCKED) == 200
    assert status(HOST, rules=LOCKED, path="/api/health") == 200
    assert status(HOST, rules=LOCKED, path="/api/health/../flows") == 401
    assert status((b"host", b"evil.example"), rules=LOCKED, path="/api/health") == 403


def test_what_is_switched_off_answers_nobody() -> None:
    rules = Rules(OPEN.hosts, auth=AUTH, closed_paths=("/assistant",))
    assert status(HOST, BASIC, rules=rules, path="/assistant/message", method="POST") == 403
    assert status(HOST, BASIC, rules=rules, path="/experiments") == 200


def test_a_refusal_says_what_to_do_and_shows_nothing_that_a_terminal_obeys() -> None:
    start, body = ask(OPEN, (b"host", b"\x1b[31mevil" + b"x" * 500))
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]
    words = body["body"].decode()
    assert words.startswith("Host is '\\x1b[31mevilxxx")
    assert "\x1b" not in words
    assert len(words) < 400
    assert "services.allowed_hosts" in words


def test_headers_are_added_and_none_is_overwritten() -> None:
    headers = [(name.lower(), value) for name, value in ask(OPEN, HOST)[0]["headers"]]
    assert (b"x-content-type-options", b"nosniff") in headers
    assert [value for name, value in headers if name == b"x-frame-options"] == [b"DENY"]
    [policy] = [value for name, value in headers if name == b"content-security-policy"]
    assert policy.startswith(b"connect-src 'self' data: blob:;")
