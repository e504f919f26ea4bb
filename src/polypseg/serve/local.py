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

from polypseg.errors import PolypsegError
from polypseg.serve.stream import INVALID, REFUSED, TOO_LARGE, Streams

TEXT, FRAME, END = 1, 2, 8
HEAD = struct.Struct(">BI")
READ_AT_ONCE = 1 << 20  # bytes
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
            return await asyncio.start_unix_server(lambda *ends: _serve(streams, *ends), path, limit=READ_AT_ONCE)
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


async def _serve(streams: Streams, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    channel = _Channel(reader, writer, streams.settings.max_bytes)
    try:
        if streams.full:
            await channel.close(1013, f"{streams.settings.streams} streams are open; come again later")
        else:
            await streams.serve(channel)
    except OSError:  # the other side is gone
        pass
    finally:
        writer.close()


class _Channel:
    """A Unix socket as a ``Channel``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
        self._reader, self._writer, self._most = reader, writer, most
        self._why: tuple[int, str] | None = None  # what was received makes an end

    async def accept(self) -> None:
        pass

    async def receive(self) -> str | bytes | None:
        try:
            kind, length = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            if kind not in (TEXT, FRAME) or length > self._most:
                self._ends(kind, length)
                return None
            content = await self._reader.readexactly(length)
            return content.decode() if kind == TEXT else content
        except (asyncio.IncompleteReadError, OSError):
            return None
        except UnicodeDecodeError:
            self._why = INVALID, "a text is not in UTF-8"
            return None

    def _ends(self, kind: int, length: int) -> None:
        if kind in (TEXT, FRAME):
            self._why = TOO_LARGE, f"a message of {length} bytes; {self._most} are the most"
        elif kind != END:
            self._why = REFUSED, f"there is no message of kind {kind}"

    async def send(self, text: str) -> None:
        content = text.encode()
        self._writer.write(HEAD.pack(TEXT, len(content)) + content)
        await self._writer.drain()

    async def close(self, code: int, reason: str) -> None:
        code, reason = self._why or (code, reason)
        content = struct.pack(">H", code) + reason.encode()
        self._writer.write(HEAD.pack(END, len(content)) + content)
        await self._writer.drain()
        self._writer.close()
