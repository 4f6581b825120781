"""An addition to the head of a server's one page."""

from collections.abc import MutableMapping
from typing import Any

from assay.services.guard import App, Message, Receive, Send

_HEAD_END = b"</head>"
_CONDITIONS = (b"if-none-match", b"if-modified-since")
_OF_THE_OLD_BODY = (b"content-length", b"etag", b"last-modified")


class PageHead:
    """An ASGI application that answers as another one does, with an addition to the page at ``/``.

    Args:
        app: The application behind it.
        addition: HTML for the end of the page's head.
    """

    def __init__(self, app: App, addition: str) -> None:
        self._app = app
        self._addition = addition.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            asked = [(name, value) for name, value in scope["headers"] if name not in _CONDITIONS]
            await self._app({**scope, "headers": asked}, receive, self._page_sender(send))
        else:
            await self._app(scope, receive, send)

    def _page_sender(self, send: Send) -> Send:
        """Hold the page back until it is whole, and send it with the addition."""
        start: Message = {}
        body = bytearray()

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body", False):
                return
            page = bytes(body).replace(_HEAD_END, self._addition + _HEAD_END, 1)
            kept = [(name, value) for name, value in start["headers"] if name.lower() not in _OF_THE_OLD_BODY]
            await send({**start, "headers": [*kept, (b"content-length", str(len(page)).encode())]})
            await send({"type": "http.response.body", "body": page})

        return sender
