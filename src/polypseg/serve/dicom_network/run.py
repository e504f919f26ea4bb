"""Starting and stopping the DICOM node."""

from __future__ import annotations

import errno
import gc
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.pipeline.options import PredictOptions
from polypseg.serve.decoding import Decoders
from polypseg.serve.dicom_network.commitment import Committing
from polypseg.serve.dicom_network.receive import Receiver
from polypseg.serve.dicom_network.segment import Segmenting, refusal
from polypseg.serve.dicom_network.send import Sending
from polypseg.serve.dicom_network.settings import DicomSettings
from polypseg.serve.dicom_network.worklist import Worklist
from polypseg.serve.log import LOGGER, log_as_json, without_values
from polypseg.serve.loop import Loop
from polypseg.serve.settings import is_loopback
from polypseg.serve.state import keep_temporary_files_in

log = logging.getLogger(LOGGER)

DECODE_SECONDS = 15.0  # that a frame, or a look at an object, may take
STOP_SECONDS = 30.0  # that stopping may take
PRELOAD = ("polypseg.serve.dicom_network.segment", "polypseg.serve.dicom_network.receive", "av", "pydicom.pixels",
           "highdicom")  # fmt: skip


def serve(settings: DicomSettings, host: str, port: int, options: PredictOptions, model: Sequence[str]) -> None:
    """Receive, segment and send until SIGINT or SIGTERM; what is not done by then is done next time.

    Args:
        settings: who may call, where segmentations go, limits, the state folder.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        options: how is predicted.
        model: as ``PredictOptions.load`` takes it.

    Raises:
        UsageError: others can reach the address, and nothing says who may call; or a file for TLS cannot be used.
        PolypsegError: the port is in use, another process works in the state folder, others can read it or it cannot
            be written, or the model cannot be used.
    """
    address = _address(settings, host, port)
    node = Node(settings, Worklist(settings.state), options, model)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        print(node.start(*address), flush=True)
        stop.wait()
    finally:
        node.stop()


class Node:
    """All parts of it, in this process.

    Args:
        settings: as ``serve``.
        worklist: closed with it.
        options: as ``serve``.
        model: as ``serve``.

    Raises:
        PolypsegError: as ``serve``.
    """

    def __init__(
        self, settings: DicomSettings, worklist: Worklist, options: PredictOptions, model: Sequence[str]
    ) -> None:
        self._settings, self._worklist = settings, worklist
        try:
            keep_temporary_files_in(settings.state / "temporary")
            log_as_json()
            threading.excepthook = _log_crash
            segmenter = options.load(model)
            self._greeting = f"{segmenter.bundle.name}: {segmenter.reason}"
            self._decoders = Decoders(DECODE_SECONDS, settings.decode_memory, refusal=refusal, preload=PRELOAD)
            asks = Committing(settings, worklist, lambda: self._sending.wake()) if settings.commitment else None
            sending = Sending(settings, worklist, asks.loop.wake if asks else None)
            self._sending = Loop("sending", sending.step)
            segmenting = Segmenting(
                segmenter, worklist, self._decoders, self._sending.wake, lambda: self._segmenting.stopping,
                settings,
            )  # fmt: skip
            self._segmenting = Loop("segmenting", segmenting.step)
            reported = asks.reported if asks else None
            self._receiver = Receiver(settings, worklist, self._decoders, self._segmenting.wake, reported)
            self._loops = [self._segmenting, self._sending, *([asks.loop] if asks else [])]
        except BaseException:
            worklist.close()
            raise

    def start(self, host: str, port: int) -> str:
        """Begin; the line that says so. Raises ``PolypsegError``."""
        self._worklist.begin(self._settings.commitment)
        if counts := self._worklist.count():
            log.info("worklist", extra={"fields": counts})
        self._decoders.call("start", abs, 0)  # the first process takes seconds, which no caller is to wait for
        gc.collect()
        gc.freeze()  # what is loaded by now stays
        try:
            address, port = self._receiver.start(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PolypsegError(f"port {port}: is in use; stop what uses it, or choose another --port") from error
            raise PolypsegError(
                f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --host or --port"
            ) from error
        for loop in self._loops:
            loop.start()
        shown = f"[{address}]" if ":" in address else address
        to = self._settings.web or str(self._settings.node)
        return f"{self._settings.title}@{shown}:{port}  to {to}  {self._greeting}"

    def stop(self) -> None:
        """End; the present frame is finished, all else is resumed by the next process."""
        for loop in self._loops:
            loop.ask_to_stop()
        self._receiver.stop()
        self._decoders.close()
        ended = [loop.ended(STOP_SECONDS) for loop in self._loops]
        if all(ended):
            self._worklist.close()


def _address(settings: DicomSettings, host: str, port: int) -> tuple[str, int]:
    """Where to listen, after a look at who could reach it."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be 0 to 65535")
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host}: is no address of this computer ({error})") from error
    if not is_loopback(address) and not settings.callers and settings.tls_ca is None:
        raise UsageError(f"--host {host}: others can reach it, so say who may call: --allow AE@address, or --tls_ca")
    return address, port


def _log_crash(crash: Any) -> None:
    """A thread of pynetdicom's ended by an error: its association is closed, and no word of it is printed."""
    if crash.exc_value is not None:
        log.warning("association failed", extra={"fields": without_values(crash.exc_value)})
