"""The WebSocket ``/v1/stream``: what carries a live stream over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from polypseg.serve.guard import STREAM_PROTOCOL
from polypseg.serve.responses import error
from polypseg.serve.stream import Streams

if TYPE_CHECKING:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PATH = "/v1/stream"
MOST_PIECES = 4096  # of a message: each costs an object, whatever its size
MOST_PINGS = 100  # a second
MOST_UNREAD = 1 << 20  # bytes of pongs
RETRY_AFTER = 5  # seconds


def add_stream(app: FastAPI, streams: Streams) -> None:
    """Add the route."""

    @app.websocket(PATH)
    async def stream(socket: WebSocket) -> None:
        if socket.query_params:
            refusal = error(422, "a stream has no parameters in its address; its first message says them")
        elif streams.full:
            line = f"{streams.settings.streams} streams are open; come again later"
            refusal = error(503, line, {"retry-after": str(RETRY_AFTER)})
        else:
            return await streams.serve(_Channel(socket))
        await socket.send_denial_response(refusal)


class _Channel:
    """A WebSocket as a ``Channel``."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def accept(self) -> None:
        offered = self._socket.scope["subprotocols"]
        await self._socket.accept(STREAM_PROTOCOL if STREAM_PROTOCOL in offered else None)

    async def receive(self) -> str | bytes | None:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        content: bytes | None = message.get("bytes")
        text: str = message.get("text") or ""
        return text if content is None else content

    async def send(self, text: str) -> None:
        try:
            await self._socket.send_text(text)
        except (RuntimeError, WebSocketDisconnect) as broken:  # it is closed
            raise ConnectionError from broken

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code, reason)


def protocol() -> type[WebSocketsSansIOProtocol]:
    """uvicorn's WebSocket, which cuts off what costs more than it says: pieces and pings without end."""
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class Protocol(WebSocketsSansIOProtocol):
        _pings = 0
        _since = 0.0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.handshake_initiated:  # its head came whole, and is not one that can be read
                response = error(400, "this is no WebSocket's opening that can be read", {"connection": "close"})
                head = b"".join(b"%b: %b\r\n" % pair for pair in response.raw_headers)
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
                self.transport.close()

        def handle_cont(self, event: Any) -> None:
            if len(self.frames) >= MOST_PIECES:
                self.transport.abort()
            else:
                super().handle_cont(event)

        def handle_ping(self) -> None:
            now = self.loop.time()
            if now - self._since > 1:
                self._since, self._pings = now, 0
            self._pings += 1
            if self._pings > MOST_PINGS or self.transport.get_write_buffer_size() > MOST_UNREAD:
                self.transport.abort()
            else:
                super().handle_ping()

    return Protocol
