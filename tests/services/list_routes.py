"""Print every route of a server's application as JSON: ``[[METHOD, PATH], ...]``.

python list_routes.py prefect|mlflow
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any


def routes_of(app: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every method and path of a Starlette application and of what is mounted in it."""
    for route in getattr(app, "routes", ()):
        if hasattr(route, "include_context"):  # a router that FastAPI resolves when it is asked
            yield from routes_of(route.original_router, prefix + route.include_context.prefix)
            continue
        path = prefix + route.path
        if type(route).__name__ == "Mount":
            yield "GET", f"{path}/"
            yield from routes_of(route.app, path)
            yield from flask_routes(route.app, path)
        elif "WebSocket" in type(route).__name__:
            yield "WEBSOCKET", path
        else:
            for method in sorted(route.methods or {"GET"}):
                yield method, path


def flask_routes(app: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """The same of a Flask application, where there is one behind the mount."""
    flask = getattr(app, "app", None)
    for rule in flask.url_map.iter_rules() if hasattr(flask, "url_map") else ():
        for method in sorted(rule.methods or ()):
            yield method, prefix + rule.rule


def main() -> None:
    if sys.argv[1] == "prefect":
        from prefect.server.api.server import create_app

        app: Any = create_app()
    else:
        from mlflow.server.fastapi_app import app
    filled = {(method, re.sub(r"[{<][^}>]*[}>]", "1", path)) for method, path in routes_of(app)}
    print(json.dumps(sorted(filled)))  # noqa: T201


if __name__ == "__main__":
    main()
