"""A few questions to a Prefect server without importing prefect, which takes a second."""

import base64
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

_BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_NUM_RETRIES = 8
_RETRY_SECONDS = 0.5


def http_client(url: str, **settings: Any) -> httpx.Client:
    """Return a client for a server of the line; certificates are read, which takes longer than an answer, for https.

    Args:
        url: Where the server is.
        settings: More of ``httpx.Client``.
    """
    return httpx.Client(verify=url.startswith("https:"), trust_env=False, **settings)


def answers(url: str, timeout_seconds: float) -> bool:
    """Say whether a page is there.

    Args:
        url: Its whole address.
        timeout_seconds: How long it may take.
    """
    try:
        with http_client(url, timeout=timeout_seconds) as client:
            return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


class PrefectApi:
    """Reads a Prefect server; a context manager.

    Args:
        url: Address of the server, without ``/api``.
        auth: ``user:password``, or None.
        timeout_seconds: How long one answer may take.
    """

    def __init__(self, url: str, auth: str | None = None, timeout_seconds: float = 5.0) -> None:
        headers = {"Prefect-Csrf-Client": str(uuid.uuid4())}
        if auth:
            headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
        self._client = http_client(url, base_url=f"{url}/api", headers=headers, timeout=timeout_seconds)
        self._has_token = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def is_healthy(self) -> bool:
        """Say whether the server answers."""
        try:
            return self._client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Any:
        """Read one thing.

        Raises:
            httpx.HTTPError: There is no answer, or it is an error.
        """
        return self._ask("GET", path).raise_for_status().json()

    def filter(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for a selection; in Prefect that is a POST, which wants a token against cross-site requests.

        Raises:
            httpx.HTTPError: There is no answer, or it is an error.
        """
        if not self._has_token:
            client = self._client.headers["Prefect-Csrf-Client"]
            reply = self._ask("GET", "/csrf-token", params={"client": client})
            if reply.status_code == 200:
                self._client.headers["Prefect-Csrf-Token"] = reply.json()["token"]
            self._has_token = True
        return self._ask("POST", path, json=dict(body or {})).raise_for_status().json()

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        """Ask again when the server says that it is busy; it has done nothing then."""
        for _ in range(_NUM_RETRIES):
            reply = self._client.request(method, path, **body)
            if reply.status_code not in _BUSY:
                return reply
            time.sleep(_RETRY_SECONDS)
        return self._client.request(method, path, **body)
