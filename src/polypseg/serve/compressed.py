"""Responses as gzip, for who takes them so: text that is long enough to gain from it."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SMALLEST = 1400  # bytes; less fits into one packet of a network anyway
LEVEL = 1  # measured: a higher one takes several times as long for a tenth less
TEXT = (".js", ".css", ".html", ".svg", ".json", ".jsonl", ".csv")


class Compressed:
    """Around the application. Pictures, videos and archives are compressed already, and parts of files stay parts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressing = GZipMiddleware(app, minimum_size=SMALLEST, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        app = self._compressing if scope["type"] == "http" and _gains(scope) else self._app
        await app(scope, receive, send)


def _gains(scope: Scope) -> bool:
    """Whether the response is text."""
    headers, path = Headers(scope=scope), str(scope["path"])
    if "range" in headers or headers.get("accept", "*/*").strip().lower().startswith("image/"):
        return False
    last = path.rpartition("/")[2]
    return path.endswith(TEXT) or "." not in last
