"""Segmentations go out, by C-STORE to an AE or by STOW-RS to a DICOMweb server, each until it is taken."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_context

from polypseg.serve.dicom_network.association import LONGEST_PDU
from polypseg.serve.dicom_network.settings import DicomSettings, Node
from polypseg.serve.dicom_network.worklist import Object, Worklist
from polypseg.serve.log import LOGGER

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

log = logging.getLogger(LOGGER)

Send = Callable[[Path], None]  # a file; raises Away or Refused
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 600.0  # seconds before it is tried again: each time twice as long
MOST_REFUSALS = 10  # of one segmentation; then it is kept, and tried again when the service starts anew
TOGETHER = 100  # segmentations over one association
CONNECT_SECONDS, RESPONSE_SECONDS = 10.0, 120.0
LONGEST_RESPONSE = 1 << 20  # bytes
DUPLICATE = 0x0111  # it was taken before: as good as success
_OF_THE_OBJECT = (400, 409, 413, 415, 422)  # HTTP statuses that are about what was sent


class Away(Exception):
    """Nothing can be delivered at present; says why."""


class Refused(Exception):
    """This one is not taken; says why."""


class Sending:
    """The step that delivers what is segmented.

    Args:
        settings: where to.
        worklist: what is to be delivered.
        to_commit: called when there is one more to ask for commitment of; None where nobody asks.

    Raises:
        UsageError: the files for TLS cannot be used.
    """

    def __init__(
        self, settings: DicomSettings, worklist: Worklist, to_commit: Callable[[], object] | None = None
    ) -> None:
        self._worklist, self._to_commit = worklist, to_commit
        self._open = destination(settings)
        self._away = 0  # times in a row
        self._refusals: dict[int, int] = {}  # of objects by their numbers
        self._due: dict[int, float] = {}  # when they are tried again, by time.monotonic()

    def step(self) -> float | None:
        """As ``Loop`` calls it; raises where the disk or the table refuses."""
        now = time.monotonic()
        # So many that some of them are ready, if any is.
        waiting = self._worklist.select("state = 'segmented'", limit=TOGETHER + len(self._due))
        ready = [one for one in waiting if self._due.get(one.number, 0) <= now][:TOGETHER]
        if not ready:
            return max(0.01, min(self._due[one.number] for one in waiting) - now) if waiting else None
        try:
            with self._open() as send:
                for one in ready:
                    self._deliver(one, send)
                    self._away = 0
        except Away as reason:
            pause = pause_after(self._away)
            self._away += 1
            fields = {"reason": str(reason), "waiting": self._worklist.count()["segmented"], "again_in": pause}
            log.warning("cannot be sent", extra={"fields": fields})
            return pause
        return 0

    def _deliver(self, one: Object, send: Send) -> None:
        began = time.monotonic()
        try:
            send(self._worklist.segmentation(one))
        except Refused as reason:
            times = self._refusals[one.number] = self._refusals.get(one.number, 0) + 1
            last = times >= MOST_REFUSALS
            fields = {"object": one.number, "reason": str(reason), "times": times}
            if last:
                self._worklist.end(one, "undelivered", str(reason))
                self._due.pop(one.number, None)
            else:
                self._due[one.number] = time.monotonic() + pause_after(times - 1)
            log.error("segmentation given up" if last else "segmentation refused", extra={"fields": fields})
            return
        if self._to_commit is None:
            self._worklist.end(one, "sent")
        else:
            meta = read_file_meta_info(self._worklist.segmentation(one))
            self._worklist.store(one, str(meta.MediaStorageSOPInstanceUID))
            self._to_commit()
        self._refusals.pop(one.number, None)
        self._due.pop(one.number, None)
        log.info(
            "segmentation sent",
            extra={"fields": {"object": one.number, "ms": round(1000 * (time.monotonic() - began))}},
        )


def pause_after(times: int) -> float:
    """Seconds before what failed is tried again, after so many times in a row before."""
    return float(min(FIRST_PAUSE * 2.0 ** min(times, 30), LONGEST_PAUSE))


def destination(settings: DicomSettings) -> Callable[[], AbstractContextManager[Send]]:
    """What opens the way to where segmentations go. Raises ``UsageError``."""
    tls = settings.outgoing_tls()
    if settings.node is not None:
        node = settings.node
        return lambda: by_store(node, settings.title, tls)
    web = str(settings.web)
    return lambda: by_web(web, tls, settings.authorization)


@contextlib.contextmanager
def association_with(
    node: Node, title: str, tls: Any, contexts: Iterable[PresentationContext], handlers: Sequence[Any] = ()
) -> Iterator[Association]:
    """An association with an AE, which is released. Raises ``Away``."""
    entity = AE(title)
    entity.connection_timeout = CONNECT_SECONDS
    entity.acse_timeout = 30
    entity.dimse_timeout = entity.network_timeout = RESPONSE_SECONDS
    try:
        association = entity.associate(
            node.host, node.port, list(contexts), node.title, LONGEST_PDU,
            tls_args=None if tls is None else (tls, node.host), evt_handlers=list(handlers),
        )  # fmt: skip
    except (OSError, RuntimeError) as error:  # as of a name that is not known
        raise Away(f"{node}: cannot be reached ({type(error).__name__})") from error
    if not association.is_established:
        reason = "rejects the association" if association.is_rejected else "cannot be reached"
        raise Away(f"{node}: {reason}")
    try:
        yield association
    finally:
        association.release()


@contextlib.contextmanager
def by_store(node: Node, title: str, tls: Any) -> Iterator[Send]:
    """Sends over one association. Raises ``Away``."""
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    contexts = (build_context(SegmentationStorage, syntax) for syntax in syntaxes)
    with association_with(node, title, tls, contexts) as association:
        yield _storing(node, association)


def _storing(node: Node, association: Association) -> Send:
    """What stores over an association."""
    accepted = {str(context.transfer_syntax[0]) for context in association.accepted_contexts}

    def send(path: Path) -> None:
        what = path if ExplicitVRLittleEndian in accepted else dcmread(path)
        try:
            status = association.send_c_store(what).get("Status")
        except (RuntimeError, ValueError) as error:  # it was aborted, or takes no segmentations
            raise Away(f"{node}: aborts the association, or does not take segmentations") from error
        if status is None:
            raise Away(f"{node}: does not respond")
        if status >> 8 == 0xA7:
            raise Away(f"{node}: has no room (status {status:04X})")
        if status and status != DUPLICATE and status >> 12 != 0xB:  # B…: taken, with a warning
            raise Refused(f"{node}: status {status:04X}")

    return send


@contextlib.contextmanager
def by_web(address: str, tls: Any, authorization: str | None) -> Iterator[Send]:
    """Sends over one connection as long as the server keeps it. Raises ``Away``."""
    parts = urlsplit(address)
    host = str(parts.hostname)
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=RESPONSE_SECONDS, context=tls
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=RESPONSE_SECONDS)

    def send(path: Path) -> None:
        boundary = secrets.token_hex(16)
        before = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        after = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(before) + path.stat().st_size + len(after)),
            "Accept": "application/dicom+json",
        }
        if authorization:
            headers["Authorization"] = authorization
        try:
            connection.request("POST", f"{parts.path}/studies", _pieces(before, path, after), headers)
            response = connection.getresponse()
            body = response.read(LONGEST_RESPONSE)
            if not response.isclosed():
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Away(f"{host}: cannot be reached ({type(error).__name__})") from error
        _judge(host, response.status, body)

    try:
        yield send
    finally:
        connection.close()


def _pieces(before: bytes, path: Path, after: bytes) -> Iterator[bytes]:
    yield before
    with path.open("rb") as file:
        while piece := file.read(1 << 18):
            yield piece
    yield after


def _judge(host: str, status: int, body: bytes) -> None:
    """What a response to STOW-RS says. Raises ``Away`` or ``Refused``."""
    reasons = _failures(body)
    if reasons and set(reasons) == {DUPLICATE}:
        return
    if reasons:
        raise Refused(f"{host}: status {status}, failure reason {', '.join(f'{one:04X}' for one in reasons)}")
    if status in _OF_THE_OBJECT:
        raise Refused(f"{host}: status {status}")
    if not 200 <= status < 300:
        raise Away(f"{host}: status {status}")


def _failures(body: bytes) -> list[int]:
    """The failure reasons in a response; none where it names none, or is no DICOM JSON."""
    try:
        failed = json.loads(body)["00081198"]["Value"]
        return [int(one["00081197"]["Value"][0]) for one in failed]
    except (ValueError, TypeError, LookupError):
        return []
