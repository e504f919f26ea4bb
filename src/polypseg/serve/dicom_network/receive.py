"""Images come in: a C-STORE is answered with success when the object is on disk and in the worklist, and not before."""

from __future__ import annotations

import logging
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from polypseg.errors import PolypsegError
from polypseg.files import sync
from polypseg.io.dicom import read_dicom, read_header
from polypseg.serve.decoding import Decoders
from polypseg.serve.dicom_network.association import (
    HANDSHAKE_SECONDS,
    LONGEST_PDU,
    PDU_SECONDS,
    Incoming,
    Server,
    incoming,
    write_to_files,
)
from polypseg.serve.dicom_network.segment import Stopped
from polypseg.serve.dicom_network.settings import MIB, DicomSettings
from polypseg.serve.dicom_network.worklist import Worklist
from polypseg.serve.log import LOGGER, without_values
from polypseg.serve.state import is_full

if TYPE_CHECKING:
    from pynetdicom.events import Event

log = logging.getLogger(LOGGER)

SPARE = 64 * MIB  # bytes of the disk that an object must leave, for the worklist and segmentations
SUCCESS, NO_RESOURCES, OTHER_OBJECT, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
IMAGES = (
    uid.VLEndoscopicImageStorage,
    uid.VideoEndoscopicImageStorage,
    uid.VLPhotographicImageStorage,
    uid.VideoPhotographicImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
# What io.dicom reads; deflated objects, which are inflated as a whole, are left out.
SYNTAXES = (
    uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless,
    uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
    uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, *uid.MPEGTransferSyntaxes,
)  # fmt: skip


def identity(path: Path, max_pixels: int) -> tuple[str, str]:
    """SOP class and instance of an image, after a look at all but its pixels; for a process of its own.

    Raises:
        PolypsegError: it cannot be read, is larger than ``max_pixels``, or is missing what a segmentation refers to.
    """
    frames = read_dicom(path)
    if frames.height * frames.width > max_pixels:
        raise PolypsegError(f"{path}: has more than {max_pixels:,} pixels")
    header = read_header(path)
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not header.get(name):
            raise PolypsegError(f"{path}: is missing {name}")
    return str(header.SOPClassUID), str(header.SOPInstanceUID)


class Receiver:
    """The SCP of C-STORE and C-ECHO.

    Args:
        settings: who may call, and the limits.
        worklist: where objects are entered.
        decoders: what looks at them; raise ``PolypsegError`` for what cannot be read.
        arrived: called when there is one more.
        reported: takes in the archive's reports on what it keeps; None where it is not asked.

    Raises:
        UsageError: the files for TLS cannot be used.
    """

    def __init__(
        self,
        settings: DicomSettings,
        worklist: Worklist,
        decoders: Decoders,
        arrived: Callable[[], object],
        reported: Callable[[Event], object] | None = None,
    ) -> None:
        self._settings, self._worklist, self._decoders, self._arrived = settings, worklist, decoders, arrived
        self._looking = threading.Semaphore(2)  # objects at which is looked at once
        self._tls = settings.incoming_tls()
        self._server: Server | None = None
        self._ae = AE(settings.title)
        self._ae.require_called_aet = True
        self._ae.maximum_associations = settings.associations
        self._ae.maximum_pdu_size = LONGEST_PDU
        self._ae.acse_timeout, self._ae.dimse_timeout = HANDSHAKE_SECONDS, PDU_SECONDS
        self._ae.network_timeout = 60
        self._ae.add_supported_context(Verification)
        self._reported = reported
        if reported is not None:  # the archive opens an association, in which it stays what it was: the SCP
            self._ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        for kind in IMAGES:
            self._ae.add_supported_context(kind, list(SYNTAXES))

    def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and give the address; port 0 takes a free one. Raises ``OSError``."""
        write_to_files()
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
        ]
        if self._reported is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, self._reported))
        server: Any = self._ae.make_server(
            (host, port), ssl_context=self._tls, evt_handlers=handlers, server_class=Server,
            limit=self._settings.max_bytes, welcome=self._welcome, turned_away=_turned_away,
        )  # fmt: skip
        self._server = server
        threading.Thread(target=server.serve_forever, name="polypseg-dicom", daemon=True).start()
        address: tuple[str, int] = server.server_address[:2]
        return address

    def stop(self) -> None:
        """Abort what is open, and close the port; callers send again what they had no answer for."""
        for association in self._ae.active_associations:
            association.abort()
        if self._server is not None:
            self._server.close()

    def _welcome(self, address: str) -> bool:
        callers = self._settings.callers
        return not callers or any(caller.has_address(address) for caller in callers)

    def _requested(self, event: Event) -> None:
        """Refuse a caller that may not call; pynetdicom looks at the called title and the number."""
        callers = self._settings.callers
        requestor = event.assoc.requestor
        title = str(getattr(requestor.primitive, "calling_ae_title", "")).strip()
        if callers and not any(caller.matches(title, requestor.address) for caller in callers):
            log.warning("caller refused", extra={"fields": {"address": requestor.address, "ae": title}})
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)  # for good, calling AE title not recognised
            event.assoc.kill()

    def _rejected(self, event: Event) -> None:
        log.warning("association rejected", extra={"fields": {"address": event.assoc.requestor.address}})

    def _stored(self, event: Event) -> Dataset:
        """Take an object in; what the caller is told."""
        arriving = incoming(event)
        title = str(event.assoc.requestor.ae_title).strip()
        fields: dict[str, Any] = {"ae": title, "bytes": 0 if arriving is None else arriving.size}
        try:
            status, comment = self._take_in(event, arriving, title, fields)
        except (OSError, sqlite3.Error, PolypsegError) as error:
            problem = error if isinstance(error, OSError) or error.__cause__ is None else error.__cause__
            full = is_full(problem)
            comment = "the disk is full" if full else "cannot be stored"
            status = NO_RESOURCES
            fields |= without_values(problem)
        level = logging.INFO if status == SUCCESS else logging.WARNING
        event_name = "object received" if status == SUCCESS else "object refused"
        log.log(level, event_name, extra={"fields": {**fields, "status": f"{status:04X}", "told": comment}})
        answer = Dataset()
        answer.Status = status
        if status != SUCCESS:
            plain = comment.replace("×", "x").replace("\\", "/").encode("ascii", "replace").decode()
            answer.ErrorComment = plain[:64]
        return answer

    def _take_in(self, event: Event, arriving: Incoming | None, title: str, fields: dict[str, Any]) -> tuple[int, str]:
        """Status and comment. Raises what the disk or the table refuses with."""
        if arriving is None:
            return NOT_UNDERSTOOD, "came without a data set"
        if arriving.too_large:
            return NOT_UNDERSTOOD, f"larger than {self._settings.max_bytes // MIB} MiB"
        syntax = event.context.transfer_syntax
        digest = arriving.finish(syntax)
        path = Path(arriving.name)
        request: Any = event.request
        instance = str(request.AffectedSOPInstanceUID)
        if self._worklist.has(instance, digest):
            return SUCCESS, "known already"
        if shutil.disk_usage(self._worklist.folder).free < SPARE:
            return NO_RESOURCES, "the disk is full"
        try:
            with self._looking:
                found = self._decoders.call("object", identity, path, self._settings.max_pixels)
        except Stopped:
            return NO_RESOURCES, "stopping; send it again"
        except PolypsegError as refusal:
            return NOT_UNDERSTOOD, str(refusal).replace(f"{path}: ", "").replace("object: ", "")
        if found != (str(request.AffectedSOPClassUID), instance):
            return OTHER_OBJECT, "SOP class or instance are not those of the command"
        file = secrets.token_hex(16)
        target = self._worklist.folder / "objects" / f"{file}.dcm"
        path.rename(target)
        try:
            sync(target.parent)
            number = self._worklist.add(instance, digest, file, title)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        if number is None:  # it came by another association at the same time
            target.unlink(missing_ok=True)
            return SUCCESS, "known already"
        fields["object"] = number
        self._arrived()
        return SUCCESS, "stored"


def _turned_away(address: str, reason: str) -> None:
    log.warning("connection closed", extra={"fields": {"address": address, "reason": reason}})
