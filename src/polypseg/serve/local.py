"""A Unix socket for live streams of a process beside this one: the messages of a WebSocket, without HTTP.

A message is one byte that says what it is (1 text, 2 frame, 8 end), its length in bytes (4 bytes, big-endian), and its
content. The content of an end is a code (2 bytes, big-endian) and a line, as of a WebSocket. Who may use the socket's
file may stream; there is no token.
"""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from pathlib import Path
from typing import Any

from polypseg.errors import PolypsegError
from polypseg.serve.stream import INVALID, REFUSED, TOO_LARGE, Streams

TEXT, FRAME, END = 1, 2, 8
HEAD = struct.Struct(">BI")
PIECE = 4 << 20  # bytes of a message that room is made for at once
LONGEST_PATH = 100  # bytes: the system takes 107


async def listen(path: Path, streams: Streams) -> asyncio.Server:
    """Take streams at a path, for this user alone. A socket that nobody listens at any more is replaced.

    Raises:
        PolypsegError: there is something else, another process listens there, or the path cannot be used.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise PolypsegError(f"--socket {path}: is longer than {LONGEST_PATH} bytes; choose a shorter path")
    try:
        await _remove_abandoned(path)
        before = os.umask(0o177)
        try:
            return await asyncio.get_running_loop().create_unix_server(lambda: _Connection(streams), path)
        finally:
            os.umask(before)
    except OSError as error:
        raise PolypsegError(f"--socket {path}: cannot be listened at ({error.strerror or error})") from error


async def _remove_abandoned(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise PolypsegError(f"--socket {path}: is there already, and is no socket; choose another path")
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except ConnectionRefusedError:
        path.unlink()
        return
    writer.close()
    raise PolypsegError(f"--socket {path}: another process listens there; choose another path")


class _Connection(asyncio.BufferedProtocol):
    """A connection as a ``Channel``.

    A message is received to where it will lie, which ``asyncio``'s streams take seven times as long for. None is
    received before the one before it was taken, and memory is taken by pieces, as it comes.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._why: tuple[int, str] | None = None  # what was received makes an end
        self._message: tuple[int, bytes] | None = None  # that waits to be taken
        self._came, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._ended = False  # nothing more comes
        self._begin(None, HEAD.size)

    # ---- as a protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._at == len(self._pieces[-1]):
            self._add_piece()
        return memoryview(self._pieces[-1])[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._left -= nbytes
        if self._left:
            return
        content = b"".join(self._pieces)
        if self._kind is not None:
            self._complete(self._kind, content)
            return
        kind, length = HEAD.unpack(content)
        most = self._streams.settings.max_bytes
        if kind not in (TEXT, FRAME) or length > most:
            if kind in (TEXT, FRAME):
                self._why = TOO_LARGE, f"a message of {length} bytes; {most} are the most"
            elif kind != END:
                self._why = REFUSED, f"there is no message of kind {kind}"
            self._end()
        elif length:
            self._begin(kind, length)
        else:
            self._complete(kind, b"")

    def eof_received(self) -> bool:
        self._end()
        return True  # it may still listen

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _begin(self, kind: int | None, length: int) -> None:
        """Receive a head (kind None) or the content of a message."""
        self._kind, self._left = kind, length
        self._pieces: list[bytearray] = []
        self._add_piece()

    def _add_piece(self) -> None:
        self._pieces.append(bytearray(min(self._left, PIECE)))
        self._at = 0

    def _complete(self, kind: int, content: bytes) -> None:
        self._message = kind, content
        self._transport.pause_reading()
        self._begin(None, HEAD.size)
        self._came.set()

    def _end(self) -> None:
        self._ended = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._came.set()

    # ---- as a channel -------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            if self._streams.full:
                await self.close(1013, f"{self._streams.settings.streams} streams are open; come again later")
            else:
                await self._streams.serve(self)
        except OSError:  # the other side is gone
            pass
        finally:
            self._transport.close()

    async def accept(self) -> None:
        pass

    async def receive(self) -> str | bytes | None:
        while self._message is None:
            if self._ended:
                return None
            self._came.clear()
            self._transport.resume_reading()
            await self._came.wait()
        (kind, content), self._message = self._message, None
        try:
            return content.decode() if kind == TEXT else content
        except UnicodeDecodeError:
            self._why = INVALID, "a text is not in UTF-8"
            return None

    async def send(self, text: str) -> None:
        await self._write(TEXT, text.encode())

    async def close(self, code: int, reason: str) -> None:
        code, reason = self._why or (code, reason)
        await self._write(END, struct.pack(">H", code) + reason.encode())
        self._transport.close()

    async def _write(self, kind: int, content: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(HEAD.pack(kind, len(content)) + content)
        await self._writable.wait()
        if self._transport.is_closing():
            raise ConnectionResetError
