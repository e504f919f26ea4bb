"""Associations that cannot take more than they may: pynetdicom's own take what a caller says.

A PDU has a largest length and a time in which it must come; a command and what is no image have a largest size; an
image goes to a file as it arrives, and where it is too large or the disk is full it is taken in and thrown away, so
that its caller can be answered. TLS shakes hands in the connection's own thread, not where all are accepted.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from pynetdicom import _config
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.events import Event

LONGEST_PDU = 256 << 10  # bytes that are announced, and taken
LONGEST_OTHER = 1 << 20  # bytes of a PDU that opens an association, of a command, and of what is no image
PDU_SECONDS = 30.0  # in which a PDU must have come
SLOWEST = 16 << 10  # bytes a second that an object must come with, after a grace of PDU_SECONDS
MOST_MESSAGES = 8  # that wait in one association: a caller waits for each answer anyway
CROWD = 32  # connections beyond the associations that are allowed: those are refused, any more are closed at once
LOOK = 0.2  # seconds after which who waits for an association to open looks whether it still can
COLLECT_AFTER = 64  # associations that have ended
HANDSHAKE_SECONDS = 10.0  # in which a caller must begin to speak


class TooMuch(OSError):
    """A caller sends more than it may, or more slowly; its connection is closed."""


class Incoming:
    """A data set that arrives, in the place of pynetdicom's temporary file.

    Attributes:
        problem: why it is not whole on disk, an ``OSError``; None if it is.
        too_large: whether it has more bytes than it may.
        size: bytes that came.
    """

    def __init__(self, file: Any, limit: int, problem: OSError | None = None) -> None:
        self._file, self._limit, self.problem = file, limit, problem
        self._digest = hashlib.sha256()
        self.size, self.too_large = 0, False
        self.began = time.monotonic()
        self.file = self  # whose flush() pynetdicom calls

    @property
    def name(self) -> str:
        """Its path; empty where there is no file."""
        return "" if self._file is None else str(self._file.name)

    def write(self, data: bytes) -> None:
        """Take in more of it."""
        self.size += len(data)
        if self.size > self._limit:
            self.too_large = True
            self.drop()
        elif self.problem is None:
            self._digest.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self.problem = error
                self.drop()

    def flush(self) -> None:
        """Nothing: it is done once, by ``finish``."""

    def finish(self, transfer_syntax: str) -> str:
        """Have it on disk; what tells its content apart from others', 64 hexadecimal digits. Raises ``OSError``."""
        if self.problem is not None:
            raise self.problem
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._digest.update(transfer_syntax.encode())
        return self._digest.hexdigest()

    def close(self) -> None:
        """As a file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def drop(self) -> None:
        """Remove it."""
        self.close()
        if self.name:
            with contextlib.suppress(OSError):
                Path(self.name).unlink()


class _Messages(DIMSEServiceProvider):
    """Puts an association's messages together, within limits."""

    def __init__(self, assoc: Association, limit: int) -> None:
        super().__init__(assoc)
        self._limit = limit
        self._others = 0  # bytes of the present message besides an image
        self._refused = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        for fragment in primitive.presentation_data_value_list:
            one = P_DATA()
            one.presentation_data_value_list = []  # takes what is set as lists only, and gives tuples
            one.presentation_data_value_list.append(fragment)
            self._receive(one, len(fragment[1]))

    def _receive(self, one: P_DATA, size: int) -> None:
        if self._refused:
            return
        if self.message is None or self.message._data_set_file is None:
            self._others += size
            if self._others > LONGEST_OTHER or self.msg_queue.qsize() >= MOST_MESSAGES:
                return self._refuse()
        try:
            super().receive_primitive(one)
        except OSError as error:  # no file could be made; the response to it says so
            begun: Any = self.message
            if not isinstance(begun, C_STORE_RQ):
                return self._refuse()
            begun._data_set_file = Incoming(None, self._limit, error)  # type: ignore[assignment]
        except Exception:  # noqa: BLE001  (pynetdicom raises whatever it meets in a command)
            return self._refuse()
        if self.message is None:
            self._others = 0
            return None
        message: Any = self.message
        file = message._data_set_file
        if file is not None and not isinstance(file, Incoming):
            message._data_set_file = file = Incoming(file, self._limit)
        if file is not None and file.size < SLOWEST * (time.monotonic() - file.began - PDU_SECONDS):
            self._refuse()
        return None

    def _refuse(self) -> None:
        """Have the association aborted, as for a PDU that cannot be read."""
        self._refused = True
        self.dul.event_queue.put("Evt19")

    def clean_up(self) -> None:
        """Remove what came of an object that did not come to its end, and of those that nobody answered."""
        waiting = [message for _, message in list(self.msg_queue.queue)]
        for message in (self.message, *waiting):
            file = getattr(message, "_data_set_file", None) or getattr(message, "_dataset_file", None)
            if isinstance(file, Incoming):
                file.drop()


class _Socket(AssociationSocket):
    """Reads PDUs of a sensible length, in a sensible time."""

    def recv(self, nr_bytes: int) -> bytearray:
        association = self.assoc
        longest = LONGEST_PDU if association.is_established else LONGEST_OTHER
        if nr_bytes > longest + 6:
            raise TooMuch
        sock: Any = self.socket
        read = bytearray(nr_bytes)
        view, at, end = memoryview(read), 0, time.monotonic() + PDU_SECONDS
        while at < nr_bytes:
            sock.settimeout(max(0.001, end - time.monotonic()))
            count = sock.recv_into(view[at:])
            if not count:
                break
            at += count
        view.release()
        return read[:at]


def _end_early(association: Association) -> None:
    """Have an association whose connection has gone before it opened end at once, not when its time is over."""
    provider = association.dul
    receive = provider.receive_pdu

    def receive_pdu(wait: bool = False, timeout: float | None = None) -> Any:
        if not wait or timeout is None:
            return receive(wait, timeout)
        end, idle = time.monotonic() + timeout, 0
        while time.monotonic() < end and idle < 2:  # it begins in the idle state too
            if (primitive := receive(True, LOOK)) is not None:
                return primitive
            idle = idle + 1 if provider.state_machine.current_state == "Sta1" else 0
        return None

    provider.receive_pdu = receive_pdu  # type: ignore[method-assign]


class _Handler(RequestHandler):
    """Makes associations of these parts."""

    server: Server

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dimse = _Messages(association, self.server.limit)
        association.dul.socket = None
        while not association.dul.event_queue.empty():  # of the socket that is replaced
            association.dul.event_queue.get_nowait()
        association.set_socket(_Socket(association, client_socket=self.request))
        _end_early(association)
        self.server.associations.append(association)
        return association


class Server(ThreadedAssociationServer):
    """Accepts connections, a bounded number of them, from addresses that may call.

    Args:
        limit: bytes of an object.
        welcome: whether an address may call.
        turned_away: called with the address of a connection that is closed at once, and why.
        args, kwargs: as pynetdicom's.
    """

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        *args: Any,
        limit: int,
        welcome: Callable[[str], bool],
        turned_away: Callable[[str, str], object],
        **kwargs: Any,
    ) -> None:
        self.limit, self._welcome, self._turned_away = limit, welcome, turned_away
        self._ended = 0
        self._connecting = 0  # connections that are not yet associations
        self._counting = threading.Lock()
        self.associations: list[Association] = []  # those whose end has not been seen
        super().__init__(*args, **{**kwargs, "request_handler": _Handler})

    def get_request(self) -> tuple[Any, Any]:
        """A connection, without TLS as yet."""
        assert self.socket is not None
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more."""
        with self._counting:
            if self._connecting + len(self.active_associations) < self.ae.maximum_associations + CROWD:
                self._connecting += 1
                return True
        self._turned_away(client_address[0], "too many connections")
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own: look at the address, shake hands, begin the association."""
        try:
            self._begin(request, client_address)
        finally:
            with self._counting:
                self._connecting -= 1

    def _begin(self, request: Any, client_address: Any) -> None:
        if not self._welcome(client_address[0]):
            self._turned_away(client_address[0], "address not allowed")
            self.shutdown_request(request)
            return
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.ssl_context is not None:
            request.settimeout(HANDSHAKE_SECONDS)
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except (OSError, ValueError):
                self._turned_away(client_address[0], "TLS failed")
                self.shutdown_request(request)
                return
        elif not _speaks(request):
            self.shutdown_request(request)
            return
        super().finish_request(request, client_address)

    def service_actions(self) -> None:
        """Now and then: remove what associations left that have ended."""
        for association in [one for one in self.associations if one.ident is not None and not one.is_alive()]:
            self.associations.remove(association)
            association.dimse.clean_up()  # type: ignore[attr-defined]
            self._ended += 1
        if self._ended >= COLLECT_AFTER:  # they are made of cycles
            self._ended = 0
            gc.collect()

    def close(self) -> None:
        """Accept nothing any more."""
        TCPServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What goes wrong with one connection is that one's, and nothing is printed."""
        self._turned_away(client_address[0], "connection failed")


def _speaks(request: socket.socket) -> bool:
    """Whether a first byte comes; a probe that only looks whether the port is open takes no association."""
    request.settimeout(HANDSHAKE_SECONDS)
    try:
        return bool(request.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def incoming(event: Event) -> Incoming | None:
    """What came with a C-STORE; None where it came without a data set."""
    file = event.request._dataset_file
    return file if isinstance(file, Incoming) else None


def write_to_files() -> None:
    """Have pynetdicom take images in by files, send them by pieces, and log nothing of them."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
