"""Questions to servers: quick over plain HTTP, with certificates over HTTPS."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from assay.services.api import answers, http_client
from tests.ports import free_port


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_answers_or_not(url: str) -> None:
    assert answers(f"{url}/health", 5.0)
    assert not answers(f"{url}/elsewhere", 5.0)
    assert not answers(f"http://127.0.0.1:{free_port()}/health", 5.0)


def test_certificates_are_read_for_https_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *given, **named: read.append(named))
    http_client("http://127.0.0.1:4200").close()
    assert read == []
    with http_client("https://models.example.org") as client:
        assert read
        assert client._transport._pool._ssl_context.verify_mode == ssl.CERT_REQUIRED  # type: ignore[attr-defined]
