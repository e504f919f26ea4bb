"""Before a request's body is read: who may come in, how many at once, and how much and how slowly may be sent."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypseg.serve.people import LOCAL, SHARED, name_of
from polypseg.serve.responses import error
from polypseg.serve.settings import is_loopback

OPEN = ("/", "/docs", "/health/live", "/health/ready")  # without a token, as is /static/: nothing there is anybody's
HEALTH = ("/health/live", "/health/ready")  # answered however many requests there are
MOST_REQUESTS = 256  # at once
LONGEST_HEAD = 32 << 10  # bytes of a request's first line and headers
STREAM_PROTOCOL = "polypseg.stream"  # that a WebSocket may offer, and beside it
BEARER = "polypseg.token."  # and the token in base64url, as a browser's WebSocket can send no header
COOKIE = "polypseg_token"  # for <video> and <img>, which cannot send a header; read for these files only
_BY_COOKIE = re.compile(r"/v1/(jobs/.*/(files/.*|upload)|projects/[^/]+/frames/[^/]+/(image|thumbnail|mask))")
AUTHOR = "polypseg.author"  # in a request's scope: who sent it
GRACE = 20.0  # seconds that a body may take anyway
SLOWEST = 32 << 10  # bytes a second that it must come with besides
DRAIN = 3.0  # seconds for which the rest of a refused body is taken in
CLOSE = {"connection": "close"}  # else a refused body would still be waited for


class Guard:
    """Refuses what may not come in, and cuts off bodies that are too large or too slow while they arrive.

    Without a token, only requests that were meant for this computer's own name are let in, and none that another
    site's page makes: neither DNS rebinding nor a forged form gets through.

    Args:
        app: what it guards.
        token: that requests must carry; None for none.
        limit: the most bytes of a body, by the request's path.
        named: the token of each person by name, which are let in too.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, limit: Callable[[str], int], named: Mapping[str, str] | None = None
    ) -> None:
        self._app = app
        self._tokens = {**({} if token is None else {SHARED: token}), **(named or {})}
        self._limit = limit
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request that is refused; hand every other one on."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            refusal = self._refusal(scope, headers) or self._oversized(scope, headers, 0)
            if refusal is None:
                return await self._app(scope, receive, send)
            return await error(*refusal)(scope, receive, send)
        limit = self._limit(scope["path"])
        refusal = self._refusal(scope, headers) or self._oversized(scope, headers, limit) or self._crowded(scope)
        if refusal is not None:
            await _drain(receive, headers)
            status, line, further = refusal
            return await error(status, line, {**CLOSE, **further})(scope, receive, send)
        body = _Body(receive, headers, limit)

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await body.drain()
            await send(message)

        self._requests += 1
        try:
            await self._app(scope, body.receive, respond)
        finally:
            self._requests -= 1

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        if not self._tokens:
            scope[AUTHOR] = LOCAL
            host = _host_name(headers.get("host", ""))
            if not _is_this_computer(host):
                return 421, "this service serves localhost only; start it with --host and --token for others", {}
            origin = headers.get("origin")
            foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
            # A page of another site may open a WebSocket, and read what comes.
            if scope.get("method") not in ("GET", "HEAD") and (
                foreign or (origin is not None and urlsplit(origin).netloc != headers.get("host"))
            ):
                return 403, "pages of other sites may not use this service", {}
            return None
        path = scope["path"]
        if path in OPEN or path.startswith("/static/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = _offered(scope.get("subprotocols", ()))
            if scope.get("method") in ("GET", "HEAD") and _BY_COOKIE.fullmatch(path):
                given = _cookie(headers.get("cookie", ""))
        name = name_of(given.strip(), self._tokens)
        if name is not None:
            scope[AUTHOR] = name
            return None
        return 401, "a token is needed: send it as Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"}

    def _crowded(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        if self._requests < MOST_REQUESTS or scope["path"] in HEALTH:
            return None
        return 503, f"{MOST_REQUESTS} requests are worked on; come again later", {"retry-after": "1"}

    @staticmethod
    def _oversized(scope: Scope, headers: Headers, limit: int) -> tuple[int, str, dict[str, str]] | None:
        parts = (
            scope.get("raw_path", b""),
            scope.get("query_string", b""),
            *(part for pair in headers.raw for part in pair),
        )
        if sum(len(part) for part in parts) + 4 * len(headers.raw) > LONGEST_HEAD:
            return 431, head_too_large(), {}
        length = headers.get("content-length", "0")
        return (413, too_large(limit), {}) if length.isdecimal() and int(length[:20]) > limit else None


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self._headers, self._limit = receive, headers, limit
        self._bytes = 0
        self._ended = False
        self._started = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """The next part of it.

        Raises:
            HTTPException: 413 it is too large, 408 it comes too slowly.
        """
        if self._ended:  # what is asked for then is whether the client is still there
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._started + GRACE + self._bytes / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the request's body came too slowly", CLOSE) from None
        self._bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._bytes > self._limit:
            raise HTTPException(413, too_large(self._limit), CLOSE)
        return message

    async def drain(self) -> None:
        """Take in what is still being sent, where the response is sent before its end."""
        if not self._ended:
            self._ended = True
            await _drain(self._receive, self._headers)


async def _drain(receive: Receive, headers: Headers) -> None:
    """Take in what is still being sent, for a moment: most clients send all before they read a response."""
    if "expect" in headers:  # they ask before they send
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN):
            while (await receive()).get("more_body", False):
                pass


def too_large(limit: int) -> str:
    """The line for a body of more bytes than that."""
    return f"the request is larger than {limit / (1 << 20):.4g} MiB, which is the most that is taken here"


def head_too_large() -> str:
    """The line for a head of more bytes than are taken."""
    return f"the request's line and headers are larger than {LONGEST_HEAD >> 10} KiB, which is the most that is taken"


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _is_this_computer(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def _offered(protocols: Sequence[str]) -> str:
    """The token that a WebSocket offers as a protocol."""
    for one in protocols:
        if one.startswith(BEARER):
            given = one.removeprefix(BEARER)
            with suppress(ValueError):
                return base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)).decode("latin-1")
    return ""


def _cookie(header: str) -> str:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")
