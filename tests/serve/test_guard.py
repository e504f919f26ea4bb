"""Who is let in, and what is cut off before it is read."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from polypseg.serve import guard
from polypseg.serve.guard import Guard

TOKEN = "0123456789abcdef"
MEMORY = {"host": "127.0.0.1:8000"}


def ask(
    token: str | None = None,
    method: str = "GET",
    path: str = "/v1/model",
    headers: dict[str, str] | None = None,
    parts: Iterable[bytes] = (b"",),
    delay: float = 0.0,
) -> tuple[int, str, int]:
    """Status, error and the bytes that the application was given."""
    sent: list[Any] = []
    given = 0
    coming = list(parts)

    async def receive() -> Any:
        await asyncio.sleep(delay)
        part = coming.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(coming)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal given
        more = True
        while more:
            message = await receive()
            given += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    pairs = [(name.encode(), value.encode()) for name, value in {**MEMORY, **(headers or {})}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    try:
        asyncio.run(Guard(app, token, lambda path: 1000)(scope, receive, send))
    except HTTPException as refusal:
        return refusal.status_code, str(refusal.detail), given
    return sent[0]["status"], json.loads(sent[1]["body"]).get("error", ""), given


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {TOKEN}0"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer é"}, 401),
        ({"cookie": f"polypseg_token={TOKEN}"}, 401),
    ],
)
def test_with_a_token_only_its_bearer_is_let_in(headers: dict[str, str], status: int) -> None:
    assert ask(TOKEN, headers=headers)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs/1/files/clip.mp4", 200),
        ("DELETE", "/v1/jobs/1/files/clip.mp4", 401),
        ("GET", "/v1/projects/p/frames/0f/image", 200),
        ("GET", "/v1/projects/p/frames/0f/thumbnail", 200),
        ("GET", "/v1/projects/p/frames/0f/mask", 200),
        ("GET", "/v1/projects/p/frames/0f/versions", 401),
        ("GET", "/v1/projects/p/frames/0f", 401),
        ("POST", "/v1/projects/p/frames/0f/mask", 401),
        ("GET", "/v1/jobs/1", 401),
        ("GET", "/metrics", 401),
    ],
)
def test_a_cookie_opens_files_and_pictures_and_nothing_else(method: str, path: str, status: int) -> None:
    assert ask(TOKEN, method, path, {"cookie": f"a=b; polypseg_token={TOKEN}"})[0] == status


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/health/live", "/health/ready"])
def test_the_page_and_health_need_no_token(path: str) -> None:
    assert ask(TOKEN, path=path)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("127.8.8.8", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:8000", 421), ("", 421),
        ("[", 421), ("192.168.1.2", 421), ("evil@localhost", 200),
    ],
)  # fmt: skip
def test_without_a_token_only_this_computer_is_answered_for(host: str, status: int) -> None:
    assert ask(headers={"host": host})[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_pages_may_not_send_anything(headers: dict[str, str], status: int) -> None:
    assert ask(method="POST", path="/v1/jobs", headers=headers)[0] == status
    assert ask(method="DELETE", path="/v1/jobs/1", headers=headers)[0] == status


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    assert ask(method="POST", headers={"content-length": "1001"}, parts=[b"x" * 1001]) == (
        413, "the request is larger than 0.0009537 MiB, which is the most that is taken here", 0,
    )  # fmt: skip
    assert ask(method="POST", headers={"content-length": "1000"}, parts=[b"x" * 1000])[0] == 200
    assert ask(method="POST", headers={"content-length": "9" * 5000}, parts=[b"x"])[0] == 413


def test_a_body_that_does_not_say_is_cut_off_while_it_comes() -> None:
    status, _, given = ask(method="POST", parts=[b"x" * 400] * 100)
    assert (status, given) == (413, 800)


def test_a_body_that_comes_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE", 0.2)
    status, line, given = ask(method="POST", parts=[b"x"] * 100, delay=0.05)
    assert (status, line) == (408, "the request's body came too slowly")
    assert 0 < given < 10
    monkeypatch.setattr(guard, "SLOWEST", 10)  # fast enough, for long
    assert ask(method="POST", parts=[b"x"] * 20, delay=0.02)[0] == 200


def test_a_large_head_is_refused_also_where_it_came_whole() -> None:
    for headers in ({"x": "y" * 40_000}, {f"x{number}": "y" for number in range(8000)}):
        status, line, _ = ask(headers=headers)
        assert (status, line) == (431, guard.head_too_large())
    assert ask(headers={"x": "y" * 30_000})[0] == 200


def test_health_is_answered_however_many_requests_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_REQUESTS", 0)
    assert ask(path="/v1/model")[:2] == (503, "0 requests are worked on; come again later")
    assert ask(path="/health/live")[0] == ask(path="/health/ready")[0] == 200


def test_what_follows_an_early_refusal_is_taken_in() -> None:
    """So that a client that still sends reads the answer."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x", "more_body": bool(coming.pop())}

    async def send(message: Any) -> None:
        sent.append((message["type"], len(coming)))

    sent: list[Any] = []
    coming = [0, 1, 1, 1]
    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(refuse, None, lambda path: 1000)(scope, receive, send))
    assert sent == [("http.response.start", 0), ("http.response.body", 0)]


def offer(token: str | None, headers: dict[str, str], *protocols: str) -> int:
    """Status of a WebSocket's opening, 101 where the application gets it."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 101})

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in {**MEMORY, **headers}.items()]
    scope = {"type": "websocket", "path": "/v1/stream", "headers": pairs, "subprotocols": list(protocols)}
    asyncio.run(Guard(app, token, lambda path: 1000)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


def bearer(token: str) -> str:
    return guard.BEARER + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("headers", "protocols", "status"),
    [
        ({}, (), 401),
        ({"authorization": f"Bearer {TOKEN}"}, (), 101),
        ({"origin": "http://evil.example"}, ("polypseg.stream", bearer(TOKEN)), 101),  # who knows it may
        ({}, ("polypseg.stream", bearer(TOKEN)), 101),
        ({}, ("polypseg.stream", bearer(f"{TOKEN}0")), 401),
        ({}, ("polypseg.stream", f"{guard.BEARER}{TOKEN}"), 401),
        ({}, (f"{guard.BEARER}é!",), 401),
        ({"cookie": f"polypseg_token={TOKEN}"}, (), 401),
    ],
)
def test_a_stream_needs_the_token(headers: dict[str, str], protocols: tuple[str, ...], status: int) -> None:
    assert offer(TOKEN, headers, *protocols) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 101),
        ({"origin": "http://127.0.0.1:8000"}, 101),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 421),
        ({"x": "y" * 40_000}, 431),
    ],
)
def test_without_a_token_no_page_of_another_site_may_stream(headers: dict[str, str], status: int) -> None:
    assert offer(None, headers) == status
