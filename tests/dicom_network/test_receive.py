"""The SCP, in this process: who may call, what is answered, and what hostile callers can take."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import socket
import sqlite3
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pynetdicom import dimse_messages

from polypseg.serve.decoding import Decoders
from polypseg.serve.dicom_network import association as bounds
from polypseg.serve.dicom_network import receive
from polypseg.serve.dicom_network.receive import Receiver
from polypseg.serve.dicom_network.settings import DicomSettings
from polypseg.serve.dicom_network.worklist import Worklist

from .conftest import SECRETS, associate, picture, send, wait_for

MIB = 1 << 20


class Listening:
    """A Receiver in this process."""

    def __init__(self, folder: Path, decoders: Decoders, **settings: Any) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.settings = DicomSettings(folder, "PACS@127.0.0.1:1", max_bytes=MIB, associations=4, **settings)
        self.worklist = Worklist(folder)
        self.arrived = threading.Semaphore(0)
        self.receiver = Receiver(self.settings, self.worklist, decoders, self.arrived.release)
        self.port = self.receiver.start("127.0.0.1", 0)[1]

    def close(self) -> None:
        self.receiver.stop()
        self.worklist.close()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.worklist.folder.rglob("*.dcm"))


@pytest.fixture(scope="module")
def listen(tmp_path_factory: pytest.TempPathFactory, decoders: Decoders) -> Iterator[Callable[..., Listening]]:
    """Starts Receivers."""
    open_ones: list[Listening] = []

    def begin(**settings: Any) -> Listening:
        open_ones.append(Listening(tmp_path_factory.mktemp("receive") / "state", decoders, **settings))
        return open_ones[-1]

    import tempfile

    before = tempfile.tempdir
    yield begin
    tempfile.tempdir = before
    for one in open_ones:
        one.close()


@pytest.fixture(scope="module")
def open_to_all(listen: Callable[..., Listening]) -> Listening:
    return listen()


@pytest.fixture
def here(open_to_all: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """A Receiver that lets in everybody. It leaves no temporary file, and no word of a patient in the log."""
    monkeypatch.setattr("tempfile.tempdir", str(open_to_all.worklist.folder / "temporary"))
    caplog.set_level(logging.DEBUG, "polypseg")
    yield open_to_all
    server = open_to_all.receiver._server
    wait_for(lambda: server is not None and not server.active_associations)
    wait_for(lambda: not list((open_to_all.worklist.folder / "temporary").glob("*.dcm")))
    said = "\n".join(f"{record.getMessage()} {record.__dict__.get('fields')}" for record in caplog.records)
    assert not any(secret in said for secret in SECRETS)
    assert "1.2.826" not in said  # nor UIDs


def told(port: int, data: Any, **options: Any) -> tuple[int, str]:
    """Status and comment of a C-STORE."""
    association = associate(port, data, **options)
    status = association.send_c_store(data)
    association.release()
    return status.Status, status.get("ErrorComment", "")


def test_what_is_answered_with_success_is_on_disk_and_in_the_worklist(here: Listening) -> None:
    data = picture(1)
    assert told(here.port, data) == (0, "")
    (one,) = here.worklist.select("uid = ?", data.SOPInstanceUID)
    assert (one.state, one.sender) == ("received", "ENDO")
    stored = dcmread(here.worklist.source(one))
    assert stored == data and stored.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert here.arrived.acquire(timeout=10)
    assert here.worklist.source(one).stat().st_mode & 0o077 == 0


def test_an_object_that_comes_twice_is_known_by_uid_and_content(here: Listening) -> None:
    data = picture(2)
    assert send(here.port, data, data) == [0, 0]
    threads = [threading.Thread(target=send, args=(here.port, data)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(here.worklist.select("uid = ?", data.SOPInstanceUID)) == 1
    data.PatientID = "corrected"
    assert send(here.port, data) == [0]
    assert len(here.worklist.select("uid = ?", data.SOPInstanceUID)) == 2


def test_an_echo_is_answered(here: Listening) -> None:
    association = associate(here.port)
    assert association.send_c_echo().Status == 0
    association.release()


def test_another_called_title_is_rejected(here: Listening) -> None:
    assert associate(here.port, called="ELSE").is_rejected


@pytest.mark.parametrize(
    ("allow", "calling", "state"),
    [
        ("ENDO@127.0.0.1", "ENDO", "established"),
        ("*@127.0.0.0/8", "ANY", "established"),
        ("ENDO@localhost", "ENDO", "established"),
        ("ENDO@127.0.0.1", "OTHER", "rejected"),
        ("ENDO@10.0.0.1", "ENDO", "closed"),
        ("ENDO@nowhere.invalid", "ENDO", "closed"),
    ],
)
def test_callers_are_let_in_by_title_and_address(
    listen: Callable[..., Listening], allow: str, calling: str, state: str
) -> None:
    one = listen(allow=(allow,))
    association = associate(one.port, calling=calling)
    assert association.is_established == (state == "established")
    assert association.is_rejected == (state == "rejected")
    if association.is_established:
        association.release()


def test_other_kinds_of_objects_are_not_taken(here: Listening) -> None:
    data = picture()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    association = associate(here.port, data)
    assert [str(context.abstract_syntax) for context in association.rejected_contexts] == [uid.CTImageStorage]
    association.release()


def cut(data: Any, keep: float = 0.5) -> Any:
    """The data set, of which the end is missing."""
    data.PixelData = data.PixelData[: int(len(data.PixelData) * keep) // 2 * 2]
    return data


def without_reference(data: Any) -> Any:
    del data.StudyInstanceUID
    return data


REFUSED: dict[str, tuple[Any, int, str]] = {
    "too large": (picture(7, 90), 0xC000, "larger than 1 MiB"),
    "pixels are missing": (cut(picture(8)), 0xC000, "contains 0 frames, but its header says 1"),
    "fewer frames than said": (picture(9, NumberOfFrames=4), 0xC000, "contains 1 frames, but its header says 4"),
    "a bomb": (picture(10, Rows=60000, Columns=60000), 0xC000, "is larger than"),
    "nothing to refer to": (without_reference(picture(11)), 0xC000, "is missing StudyInstanceUID"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_segmented_is_refused_with_the_reason(here: Listening, what: str) -> None:
    data, status, says = REFUSED[what]
    files = here.files()
    found = told(here.port, data)
    assert found[0] == status and found[1].startswith(says)
    assert here.files() == files and not here.worklist.select("uid = ?", data.SOPInstanceUID)


def store_raw(port: int, content: bytes, instance: str = "1.2.3") -> int:
    """Store bytes as the data set of an endoscopic image; the status."""
    from pynetdicom.dimse_primitives import C_STORE

    association = associate(port, picture())
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = uid.VLEndoscopicImageStorage, instance
    request.DataSet = io.BytesIO(content)
    (context,) = [one for one in association.accepted_contexts if one.abstract_syntax == uid.VLEndoscopicImageStorage]
    association._reactor_checkpoint.clear()  # else its own thread would take the response
    wait_for(lambda: association._is_paused)
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(response.Status)


def element(tag: tuple[int, int], kind: bytes, length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HH2sHI", *tag, kind, 0, length) + value


@pytest.mark.parametrize(
    "content",
    [
        bytes(8),
        os.urandom(4096),
        element((0x0008, 0x0001), b"UN", 0xFFFFFFF0),  # an element of 4 GiB, of which nothing came
        element((0x0008, 0x1140), b"SQ", 0xFFFFFFFF) * 500,  # sequences in sequences
        element((0x7FE0, 0x0010), b"OB", 0xFFFFFFFF) + b"\xfe\xff\0\xe0\xff\xff\xff\xff",
    ],
    ids=["zeros", "noise", "huge element", "nested", "huge fragment"],
)
def test_damaged_objects_are_refused_and_harm_nobody(here: Listening, content: bytes) -> None:
    assert store_raw(here.port, content) == 0xC000
    assert send(here.port, picture(12)) == [0]


def test_an_object_must_be_the_one_that_its_command_names(here: Listening) -> None:
    data, buffer = picture(13), io.BytesIO()
    data.save_as(buffer, implicit_vr=False, little_endian=True)
    assert store_raw(here.port, buffer.getvalue(), "1.2.3.4") == 0xA900
    assert store_raw(here.port, buffer.getvalue(), data.SOPInstanceUID) == 0


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_table(*_: Any) -> Any:
    raise sqlite3.OperationalError("database or disk is full")


def on_pieces(patch: pytest.MonkeyPatch) -> None:
    """Fails while the object arrives."""

    def write(self: Any, data: bytes) -> None:
        self.problem = OSError(errno.ENOSPC, "No space left on device")
        self.drop()

    patch.setattr(bounds.Incoming, "write", write)


FULL: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "no file": lambda patch: patch.setattr(dimse_messages, "NamedTemporaryFile", full),
    "in the middle": on_pieces,
    "at the end": lambda patch: patch.setattr(os, "fsync", full),
    "the table": lambda patch: patch.setattr(Worklist, "add", full_table),
    "nearly": lambda patch: patch.setattr(
        receive.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - MIB, MIB)
    ),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_is_answered_and_the_object_is_taken_later(
    here: Listening, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    data, files = picture(14), here.files()
    with monkeypatch.context() as patch:
        FULL[where](patch)
        assert told(here.port, data) == (0xA700, "the disk is full")
        assert here.files() == files
    assert send(here.port, data) == [0]


def begun(port: int, data: Any, part: int) -> Any:
    """An association over which the command of a C-STORE and so many bytes of its data set have been sent."""
    from pynetdicom.dimse_messages import C_STORE_RQ
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    association = associate(port, data)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    request.DataSet = io.BytesIO(encode(data, False, True)[:part])
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    (context,) = [one for one in association.accepted_contexts if one.abstract_syntax == data.SOPClassUID]
    for primitive in message.encode_msg(context.context_id, 4096):
        (pair,) = primitive.presentation_data_value_list
        if pair[1][0] == 2:  # the last of the data set: say that more comes
            primitive.presentation_data_value_list = []
            primitive.presentation_data_value_list.append((pair[0], b"\0" + pair[1][1:]))
        association.dul.send_pdu(primitive)
    return association


def test_half_an_object_leaves_nothing(here: Listening) -> None:
    data, files = picture(15), here.files()
    association = begun(here.port, data, 10_000)
    wait_for(lambda: list((here.worklist.folder / "temporary").glob("*.dcm")))
    association.abort()
    wait_for(lambda: here.files() == files)
    assert not here.worklist.select("uid = ?", data.SOPInstanceUID)


def test_who_sends_too_slowly_is_cut_off(here: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PDU_SECONDS", -10.0)
    association = begun(here.port, picture(16), 8_000)
    wait_for(lambda: association.is_aborted)


def open_raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def is_closed(one: socket.socket) -> bool:
    """Whether the other side closes, having sent nothing but an abort."""
    try:
        received = b""
        while piece := one.recv(4096):
            received += piece
    except ConnectionError:
        return True
    return received[:1] in (b"", b"\x07")


@pytest.mark.parametrize(
    "start",
    [b"\x01\0\xff\xff\xff\xff", b"\x04\0\x7f\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x01\0\0\0\0\x08\0\1\0\0ABCD"],
    ids=["4 GiB to begin with", "2 GiB of data", "HTTP", "nonsense"],
)
def test_what_is_no_dicom_or_too_long_is_closed(here: Listening, start: bytes) -> None:
    with open_raw(here.port) as one:
        one.sendall(start)
        assert is_closed(one)


def test_an_association_that_sends_a_huge_pdu_is_closed(here: Listening) -> None:
    association = associate(here.port)
    association.dul.socket.socket.sendall(b"\x04\0\x10\0\0\0" + bytes(4096))
    wait_for(lambda: association.is_aborted)


def test_an_endless_command_is_cut_off(here: Listening) -> None:
    association = associate(here.port)
    fragment = b"\x01" + bytes(60_000)
    item = struct.pack(">IB", len(fragment) + 1, 1) + fragment
    pdu = struct.pack(">BBI", 4, 0, len(item)) + item

    def refused() -> bool:
        try:
            association.dul.socket.socket.sendall(pdu)
        except (OSError, AttributeError):
            return True
        return bool(association.is_aborted)

    sent = 0
    while not refused():
        sent += len(fragment)
        assert sent < 64 * MIB


def test_a_thousand_associations_are_bounded_and_others_get_through_after_them(here: Listening) -> None:
    held = []
    for _ in range(1000):
        try:
            held.append(open_raw(here.port))
        except OSError:
            continue
    most = here.settings.associations + bounds.CROWD
    server = here.receiver._server
    assert server is not None and len(server.active_associations) <= most
    assert sum(thread.name.startswith("AcceptorThread") for thread in threading.enumerate()) <= most
    for one in held:
        one.close()
    wait_for(lambda: len(server.active_associations) == 0)
    assert send(here.port, picture(17)) == [0]


def test_more_associations_than_allowed_are_rejected_for_now(here: Listening) -> None:
    held = [associate(here.port) for _ in range(here.settings.associations)]
    assert all(one.is_established for one in held)
    assert associate(here.port).is_rejected
    for one in held:
        one.release()
    wait_for(lambda: not here.receiver._server.active_associations)  # type: ignore[union-attr]


def client_tls(folder: Path, shown: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if shown:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_tls_asks_for_a_certificate_and_waits_for_nobody(listen: Callable[..., Listening], certificates: Path) -> None:
    files = {f"tls_{name}": certificates / f"{name}.pem" for name in ("cert", "key", "ca")}
    one = listen(**files)
    with open_raw(one.port), open_raw(one.port):  # who never shake hands
        association = associate(one.port, tls_args=(client_tls(certificates, True), "localhost"))
        assert association.is_established and association.send_c_echo().Status == 0
        association.release()
    assert not associate(one.port, tls_args=(client_tls(certificates, False), "localhost")).is_established
    assert not associate(one.port).is_established


def test_the_worklist_is_for_one_process_and_its_user(open_to_all: Listening, tmp_path: Path) -> None:
    from polypseg.errors import PolypsegError

    assert open_to_all.worklist.folder.stat().st_mode & 0o077 == 0
    strange = tmp_path / "strange"
    strange.mkdir(mode=0o755)
    (strange / "other.txt").touch()
    with pytest.raises(PolypsegError, match="other users may read it"):
        Worklist(strange)


def test_syntaxes_are_those_that_can_be_read() -> None:
    from pydicom.pixels import get_decoder

    for syntax in receive.SYNTAXES:
        assert syntax.is_transfer_syntax and not syntax.is_deflated
        assert syntax in uid.MPEGTransferSyntaxes or get_decoder(syntax).is_available
    assert np.isin([uid.MPEG2MPML, uid.MPEG4HP41, uid.HEVCMP51], receive.SYNTAXES).all()
