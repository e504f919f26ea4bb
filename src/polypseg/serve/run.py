"""Starting and stopping the service."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from polypseg.errors import PolypsegError, UsageError
from polypseg.serve.settings import Settings, is_loopback, named
from polypseg.zoo import DEFAULT_MODEL

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol

NEEDED = {
    "fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client", "websockets": "websockets",
}  # fmt: skip
HEAD_SECONDS = 20.0  # that a connection may take to send them
MOST_CONNECTIONS = 512  # of more, the one that has been silent for longest is closed


def serve(
    settings: Settings,
    host: str,
    port: int,
    model: Sequence[str] = (),
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    tta: str | None = None,
) -> None:
    """Serve a model until SIGINT or SIGTERM; what was accepted is finished, a job in work is resumed next time.

    Args:
        settings: limits and the state folder.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        model: each as ``polypseg.load`` takes it, perhaps with ``NAME=`` before it; none is the model that ships.
        runtime: likewise.
        device: likewise.
        precision: likewise.
        threads: likewise.
        tta: likewise.

    Raises:
        UsageError: others can reach the address, and there is no token.
        PolypsegError: the extra is missing, the port is in use, another service works in the state folder, others can
            read it or it cannot be written, or the model cannot be used.
    """
    if missing := [name for module, name in NEEDED.items() if find_spec(module) is None]:
        raise PolypsegError(f"serve: needs {', '.join(missing)}; install the extra: pip install 'polypseg[serve]'")
    from polypseg.inference.segmenter import Segmenter
    from polypseg.serve.app import create_app
    from polypseg.serve.log import log_as_json
    from polypseg.serve.models import Models
    from polypseg.serve.observe import Metrics
    from polypseg.serve.state import keep_temporary_files_in, open_state

    wanted: dict[str, str | None] = {**named(model)} or {DEFAULT_MODEL: None}
    listening = _bind(host, port, settings)
    with listening:
        table = open_state(settings.state)
        keep_temporary_files_in(settings.state / "temporary")
        log_as_json()
        metrics = Metrics()
        sources = {
            name: partial(Segmenter, one, runtime, device, precision, threads, tta) for name, one in wanted.items()
        }
        models = Models(sources, settings.batch_size, metrics.together.observe, metrics.computed)
        handle_signals_on_the_usual_stack()
        app = create_app(models, settings, table, metrics)
        # What is loaded by now stays for good: going through it again and again would delay requests.
        gc.collect()
        gc.freeze()
        address, port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        opened = "; ".join(f"{one.segmenter.bundle.name}: {one.segmenter.reason}" for one in models.all)
        _run(app, listening, settings, f"http://{shown}:{port}  {opened}")


class _SignalStack(ctypes.Structure):
    _fields_: ClassVar = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def handle_signals_on_the_usual_stack() -> None:
    """OpenVINO gives this thread another one, and frees it with the model: the next signal would end the process."""
    if sys.platform == "linux":
        disable = 2
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, disable, 0)), None)


def _bind(host: str, port: int, settings: Settings) -> socket.socket:
    """A socket that has the address, but does not listen before the model is there."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host}: is no address of this computer ({error})") from error
    if not is_loopback(str(address[0])) and not settings.locked:
        raise UsageError(f"--host {host}: others can reach it, so a --token (or POLYPSEG_TOKEN) is needed")
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PolypsegError(f"port {port}: is in use; stop what uses it, or choose another --port") from error
        raise PolypsegError(
            f"{host}:{port}: cannot be listened on ({error}); choose another --host or --port"
        ) from error
    return listening


def _run(app: Any, listening: socket.socket, settings: Settings, greeting: str) -> None:
    """Serve until a signal; prints the greeting when the port listens."""
    import uvicorn

    from polypseg.serve.guard import LONGEST_HEAD
    from polypseg.serve.local import listen
    from polypseg.serve.websocket import protocol

    models, streams = app.state.models, app.state.streams
    reloads: set[asyncio.Task[None]] = set()  # which nobody else keeps

    def reload() -> None:
        task = asyncio.get_running_loop().create_task(models.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    class Server(uvicorn.Server):
        _beside: asyncio.Server | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            if settings.socket is not None:
                self._beside = await listen(settings.socket, streams)
            await super().startup(sockets)
            if self.started:
                if hasattr(signal, "SIGHUP"):
                    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
                print(greeting, flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if self._beside is not None and settings.socket is not None:
                self._beside.close()
                settings.socket.unlink(missing_ok=True)
            await streams.end()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, http=_protocol(), lifespan="on", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, h11_max_incomplete_event_size=LONGEST_HEAD,
        ws=protocol(), ws_max_size=settings.max_bytes, ws_per_message_deflate=False,
        timeout_graceful_shutdown=int(settings.timeout) + 30,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = Server(config)
    # uvicorn passes on the signal that stopped it; by then all is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listening])
    except OSError as error:
        raise PolypsegError(f"cannot listen ({error.strerror}); choose another --port") from error
    if not server.started:
        raise PolypsegError("the service could not start; the line above says why")


def _protocol() -> type[H11Protocol]:
    """uvicorn's HTTP/1.1; a connection on which nothing is asked is closed in time, and what is no HTTP gets JSON."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from polypseg.serve.guard import head_too_large
    from polypseg.serve.responses import error

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _silent_since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()
            silent = [one for one in self.connections if isinstance(one, Protocol) and one._silent]  # noqa: SLF001
            if len(self.connections) > MOST_CONNECTIONS and silent:
                min(silent, key=lambda one: one._silent_since).transport.close()  # noqa: SLF001  (of this class)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._expect_nothing()
            elif self._deadline is None:
                self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect_nothing()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._silent_since = self.loop.time()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            status = getattr(sys.exception(), "error_status_hint", 400)
            line = head_too_large() if status == 431 else "this is no HTTP request that can be read"
            response = error(status, line, {"connection": "close"})
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in (
                    h11.Response(status_code=status, headers=response.raw_headers), h11.Data(data=bytes(response.body)),
                    h11.EndOfMessage(),
                ):  # fmt: skip
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        @property
        def _silent(self) -> bool:
            """Whether nothing is in work on it."""
            done = self.cycle is None or self.cycle.response_complete
            return done and not self.transport.is_closing()

        def _expect_head(self) -> None:
            self._silent_since = self.loop.time()
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

        def _expect_nothing(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Protocol
