"""What stands before both servers: who may speak to them, under which name, and from which page.

Neither server checks this well by itself: Prefect takes any ``Host`` and ``Origin``, and MLflow's list of hosts is
made of patterns. Checked here, before a request reaches either, exactly, and in this order:

1. ``Host`` is one of the names the server is known by. A page that rebinds its own name to 127.0.0.1 has another.
2. ``Origin``, if there is one, is this server's own. A browser that says where a request comes from
   (``Sec-Fetch-Site``) may change something or open a WebSocket only from this server's own pages, and from another
   site it may follow a link and nothing else. Another port of the same host is the same site: Prefect's pages show
   MLflow's figures.
3. The path is not of a part that is switched off.
4. Where credentials are set, every request but the health check carries them.
"""

import base64
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({"same-origin", "none"})  # none: typed in, or a bookmark
_SHOWN_CHARACTERS = 100
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"same-origin",
}
# Whatever the server's own settings say, Prefect's pages ask a telemetry service: here a page reaches its server only.
_POLICY = (
    b"content-security-policy",
    b"connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'self'",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """Who may speak to a server.

    Attributes:
        hosts: Exact values of ``Host``, lower case, with the port where browsers send one.
        auth: ``user:password`` that every request must carry, or None.
        open_paths: Paths that answer without credentials: the health checks.
        closed_paths: Beginnings of paths that answer nobody.
    """

    hosts: frozenset[str]
    auth: str | None = None
    open_paths: frozenset[str] = frozenset()
    closed_paths: tuple[str, ...] = ()

    @property
    def origins(self) -> frozenset[str]:
        """Exact values of ``Origin``: the pages of this very server."""
        return frozenset(f"{scheme}://{host}" for scheme in ("http", "https") for host in self.hosts)


@dataclass(frozen=True)
class _Refusal:
    status: int
    reason: str
    remedy: str


class Guard:
    """An ASGI application that lets through to another one what the rules allow.

    Args:
        app: The application behind it.
        rules: What is allowed.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._origins = rules.origins
        encoded = base64.b64encode(rules.auth.encode()) if rules.auth else b""
        self._credentials = b"Basic " + encoded if rules.auth else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            _log.warning("%s %s: %s", scope.get("method", "WEBSOCKET"), _shown(scope["path"]), refusal.reason)
            await _refuse(scope, send, refusal)
            return
        await self._app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> _Refusal | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._rules.hosts:
            found = ", ".join(_shown(host) for host in hosts) or "none"
            return _Refusal(
                403,
                f"Host is {found}: this server is not known by that name.",
                f"Known names: {', '.join(sorted(self._rules.hosts))}. Others go into services.allowed_hosts.",
            )
        origins = _values(headers, b"origin")
        foreign = [origin for origin in origins if origin.lower() not in self._origins]
        if foreign:
            return _Refusal(
                403,
                f"Origin is {_shown(foreign[0])}: a page of another site may not ask this server.",
                "Open the server's own page.",
            )
        if _is_of_another_page(scope, headers):
            site = _values(headers, b"sec-fetch-site")[0]
            return _Refusal(
                403,
                f"Sec-Fetch-Site is {_shown(site)}: a page of another site may lead here, and do no more.",
                "Open the server's own page.",
            )
        if scope["path"].startswith(self._rules.closed_paths):
            return _Refusal(403, "This part of the server is switched off.", "Nothing in Assay needs it.")
        if self._credentials is None or scope["path"] in self._rules.open_paths:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) == 1 and hmac.compare_digest(_normal(given[0]), self._credentials):
            return None
        return _Refusal(
            401,
            "The credentials are wrong." if given else "This server wants credentials.",
            "They are the user and password in ASSAY_AUTH, as HTTP Basic.",
        )


def _is_of_another_page(scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a browser says that another page is behind a request that is not for other pages."""
    sites = set(_values(headers, b"sec-fetch-site"))
    if scope["type"] == "websocket" or scope["method"] not in _READING:
        return not sites <= _OWN_SITE
    return "cross-site" in sites and _values(headers, b"sec-fetch-mode") != ["navigate"]


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _normal(authorization: bytes) -> bytes:
    """An Authorization header with the scheme spelt as it is here; the scheme's case does not count."""
    scheme, _, rest = authorization.strip().partition(b" ")
    return b"Basic " + rest.strip() if scheme.lower() == b"basic" else b""


def _shown(text: str) -> str:
    """Foreign text as it may stand in a log or a reply: one line, not long, nothing that a terminal obeys."""
    return ascii(text[:_SHOWN_CHARACTERS])


async def _refuse(scope: MutableMapping[str, Any], send: Send, refusal: _Refusal) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        return
    body = f"{refusal.reason} {refusal.remedy}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *_HEADERS.items(),
        _POLICY,
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Assay", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _with_headers(send: Send) -> Send:
    """Add to every response what keeps other sites' pages from showing it, and its own from telling others."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", ())}
            missing = [(name, value) for name, value in _HEADERS.items() if name not in present]
            message = {**message, "headers": [*message.get("headers", ()), *missing, _POLICY]}
        await send(message)

    return sender
