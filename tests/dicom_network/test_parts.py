"""Segmenting and sending on their own: what fails, what waits, what is tried again; and what the options refuse."""

from __future__ import annotations

import errno
import http.server
import json
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.segmenter import Segmenter
from polypseg.io.dicom_seg import MadeBy, write_segmentation
from polypseg.serve.decoding import Decoders
from polypseg.serve.dicom_network import commitment, segment, send
from polypseg.serve.dicom_network.commitment import Committing
from polypseg.serve.dicom_network.segment import Segmenting
from polypseg.serve.dicom_network.send import MOST_REFUSALS, Away, Refused, Sending, by_store, by_web
from polypseg.serve.dicom_network.settings import Caller, DicomSettings, Node
from polypseg.serve.dicom_network.worklist import Object, Worklist

from .conftest import SECRETS, picture

MADE_BY = MadeBy("phantom", "c0ffee" * 10 + "beef", 0.4, 0.9, "openvino", "fp32")


SETTINGS = DicomSettings(Path("unused"), "PACS@127.0.0.1:1")


@pytest.fixture
def worklist(tmp_path: Path) -> Iterator[Worklist]:
    made = Worklist(tmp_path / "state")
    yield made
    made.close()


def enter(worklist: Worklist, data: Dataset, name: str, state: str = "received") -> int:
    """An object, as the receiver enters it; also its segmentation where it is to be sent."""
    source = worklist.folder / "objects" / f"{name}.dcm"
    data.save_as(source, enforce_file_format=True)
    number = worklist.add(str(data.SOPInstanceUID), "0" * 64, name, "ENDO")
    assert number is not None
    if state == "segmented":
        mask = np.zeros((1, data.Rows, data.Columns), bool)
        write_segmentation(source, mask, MADE_BY, source.with_suffix(".seg.dcm"), uid.generate_uid())
        worklist.change(number, state="segmented")
    return number


def row(worklist: Worklist, number: int) -> Object:
    (one,) = worklist.select("number = ?", number)
    return one


# ---- segmenting --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return Segmenter(model)


@pytest.fixture
def segmenting(worklist: Worklist, segmenter: Segmenter, decoders: Decoders) -> Segmenting:
    return Segmenting(segmenter, worklist, decoders, lambda: None, lambda: False, SETTINGS)


def test_a_segmentation_made_again_is_the_same_instance(segmenting: Segmenting, worklist: Worklist) -> None:
    number = enter(worklist, picture(1), "a")
    assert segmenting.step() == 0 and segmenting.step() is None
    one = row(worklist, number)
    first = dcmread(worklist.segmentation(one))
    worklist.segmentation(one).unlink()
    worklist.change(number, state="received")
    segmenting.step()
    again = dcmread(worklist.segmentation(one))
    assert (one.state, first.SOPInstanceUID) == ("segmented", again.SOPInstanceUID)
    worklist.change(number, state="received", digest="1" * 64)
    worklist.segmentation(one).unlink()
    segmenting.step()
    assert dcmread(worklist.segmentation(one)).SOPInstanceUID != again.SOPInstanceUID


def test_a_segmentation_that_is_there_already_is_not_made_again(segmenting: Segmenting, worklist: Worklist) -> None:
    number = enter(worklist, picture(2), "a", "segmented")
    worklist.change(number, state="received")  # killed between file and row
    before = worklist.segmentation(row(worklist, number)).read_bytes()
    segmenting.step()
    one = row(worklist, number)
    assert one.state == "segmented" and worklist.segmentation(one).read_bytes() == before


def test_what_brings_its_decoder_down_fails_alone_and_says_nothing_of_the_patient(
    segmenting: Segmenting, worklist: Worklist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "polypseg")
    bad, good = enter(worklist, picture(3), "bad"), enter(worklist, picture(4), "good")
    with monkeypatch.context() as patch:
        stream = segmenting._decoders.stream
        patch.setattr(segmenting._decoders, "stream", lambda name, *_, **__: stream(name, os.abort))  # as GDCM does
        segmenting.step()
    segmenting.step()
    assert (row(worklist, bad).state, row(worklist, good).state) == ("failed", "segmented")
    assert row(worklist, bad).error == "brings its decoder down; it is damaged"
    assert not worklist.source(row(worklist, bad)).exists()
    assert not any(secret in caplog.text for secret in SECRETS)


def test_a_full_disk_ends_nothing(segmenting: Segmenting, worklist: Worklist, monkeypatch: pytest.MonkeyPatch) -> None:
    number = enter(worklist, picture(5), "a")
    with monkeypatch.context() as patch:
        patch.setattr(segmenting._decoders, "call", lambda *_, **__: errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            segmenting.step()
    assert (row(worklist, number).state, row(worklist, number).starts) == ("received", 0)
    assert segmenting.step() == 0 and row(worklist, number).state == "segmented"


def test_the_disk_that_is_full_while_a_segmentation_is_written_is_told_from_a_damaged_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.dcm"
    picture(6).save_as(source, enforce_file_format=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    mask = segment.packed(np.zeros((72, 88), bool))
    assert segment.write(source, [mask], MADE_BY, tmp_path / "a.seg.dcm", uid.generate_uid()) == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


def test_an_object_that_ends_the_service_again_and_again_comes_last(segmenting: Segmenting, worklist: Worklist) -> None:
    poison, fine = enter(worklist, picture(7), "poison"), enter(worklist, picture(8), "fine")
    worklist.change(poison, starts=segment.MOST_STARTS + 8)
    segmenting.step()
    assert (row(worklist, poison).state, row(worklist, fine).state) == ("received", "segmented")
    pause = segmenting.step()
    assert pause is not None and 100 < pause <= segment.LONGEST_WAIT


def test_stopping_leaves_the_present_object_to_the_next_process(
    worklist: Worklist, segmenter: Segmenter, decoders: Decoders
) -> None:
    number = enter(worklist, picture(9, 3), "a")
    stopping = Segmenting(segmenter, worklist, decoders, lambda: None, lambda: True, SETTINGS)
    assert stopping.step() is None
    assert (row(worklist, number).state, row(worklist, number).starts) == ("received", 0)


def test_a_start_removes_what_has_no_row_and_tries_again_what_was_given_up(worklist: Worklist) -> None:
    kept, done = enter(worklist, picture(10), "kept", "segmented"), enter(worklist, picture(11), "done", "segmented")
    worklist.end(row(worklist, kept), "undelivered", "refused")
    worklist.end(row(worklist, done), "sent")
    assert [path.name for path in (worklist.folder / "objects").iterdir()] == ["kept.seg.dcm"]
    (worklist.folder / "objects" / "stranger.dcm").touch()
    (worklist.folder / "objects" / ".kept.seg.dcm.123456789abc.part").touch()
    worklist.begin()
    assert [path.name for path in (worklist.folder / "objects").iterdir()] == ["kept.seg.dcm"]
    assert worklist.count() == {"segmented": 1, "sent": 1}
    worklist.forget(-1)
    assert worklist.count() == {"segmented": 1}


def test_a_damaged_table_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "worklist.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(PolypsegError, match=r"worklist\.sqlite: is no table of received images .*; move it away"):
        Worklist(tmp_path / "state")


def test_a_table_of_an_earlier_version_gets_what_it_is_missing(worklist: Worklist) -> None:
    number = enter(worklist, picture(12), "a")
    for column in ("instance", "refusals"):
        worklist._execute(f"ALTER TABLE objects DROP COLUMN {column}")
    worklist.close()
    again = Worklist(worklist.folder)
    assert (row(again, number).instance, row(again, number).refusals) == (None, 0)
    again.close()


# ---- sending -----------------------------------------------------------------------------------------------


class Archive:
    """A storage SCP that answers as it is told; where asked for commitment, it is told with what to report."""

    def __init__(self, syntaxes: list[str], tls: ssl.SSLContext | None = None) -> None:
        self.status, self.received = 0, list[Dataset]()
        entity = AE("PACS")
        entity.require_called_aet = True
        entity.add_supported_context(uid.SegmentationStorage, syntaxes)
        entity.add_supported_context(StorageCommitmentPushModel)
        self.asked = list[Dataset]()
        handlers: list[Any] = [(evt.EVT_C_STORE, self._stored), (evt.EVT_N_ACTION, self._asked)]
        self.server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
        self.node = Node("PACS", "localhost", self.server.server_address[1])

    def _stored(self, event: Any) -> int:
        self.received.append(event.dataset)
        return self.status

    def _asked(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        return self.status, None


@pytest.fixture
def archive() -> Iterator[Callable[..., Archive]]:
    made: list[Archive] = []

    def begin(syntaxes: list[str] | None = None, tls: ssl.SSLContext | None = None) -> Archive:
        made.append(Archive(syntaxes or [uid.ExplicitVRLittleEndian], tls))
        return made[-1]

    yield begin
    for one in made:
        one.server.shutdown()


@pytest.fixture
def sending(worklist: Worklist, monkeypatch: pytest.MonkeyPatch) -> Callable[[Archive], Sending]:
    monkeypatch.setattr(send, "FIRST_PAUSE", 0.0)  # tried again at once
    return lambda one: Sending(DicomSettings(worklist.folder, str(one.node)), worklist)


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0x0111])
def test_what_is_taken_is_sent_once(
    worklist: Worklist, archive: Callable[..., Archive], sending: Callable[[Archive], Sending], status: int
) -> None:
    """Also with a warning, and where the archive has it already."""
    pacs, number = archive(), enter(worklist, picture(20), "a", "segmented")
    pacs.status, step = status, sending(pacs).step
    assert step() == 0 and step() is None
    one = row(worklist, number)
    assert (one.state, len(pacs.received)) == ("sent", 1)
    assert not list((worklist.folder / "objects").iterdir())


def test_what_is_refused_is_tried_again_does_not_hold_others_up_and_is_kept_in_the_end(
    worklist: Worklist, archive: Callable[..., Archive], sending: Callable[[Archive], Sending]
) -> None:
    pacs, number = archive(), enter(worklist, picture(21), "a", "segmented")
    pacs.status, step = 0xC000, sending(pacs).step
    step()
    pacs.status, other = 0, enter(worklist, picture(22), "b", "segmented")
    worklist.change(number, state="received")  # not its turn
    step()
    assert row(worklist, other).state == "sent"
    worklist.change(number, state="segmented")
    pacs.status = 0xA900
    for _ in range(MOST_REFUSALS - 1):
        step()
    one = row(worklist, number)
    assert one.state == "undelivered" and "status A900" in str(one.error)
    assert step() is None and worklist.segmentation(one).is_file()


def test_an_archive_that_is_away_is_asked_later_and_later_and_loses_nothing(
    worklist: Worklist, archive: Callable[..., Archive]
) -> None:
    pacs, number = archive(), enter(worklist, picture(23), "a", "segmented")
    one = Sending(DicomSettings(worklist.folder, str(pacs.node)), worklist)
    pacs.status = 0xA700  # it has no room
    assert [one.step() for _ in range(3)] == [2, 4, 8]
    pacs.status = 0
    assert one.step() == 0 and row(worklist, number).state == "sent"
    assert send.pause_after(50) == send.LONGEST_PAUSE


AWAY = {
    "nobody listens": "PACS@127.0.0.1:1",
    "no such host": "PACS@nowhere.invalid:104",
}


@pytest.mark.parametrize("what", AWAY)
def test_who_cannot_be_reached_is_away(what: str) -> None:
    with pytest.raises(Away, match="cannot be reached"), by_store(Node.parse(AWAY[what]), "POLYPSEG", None):
        pass


def test_who_knows_another_title_is_away(archive: Callable[..., Archive]) -> None:
    node = Node("OTHER", "127.0.0.1", archive().node.port)
    with pytest.raises(Away, match="rejects the association"), by_store(node, "POLYPSEG", None):
        pass


def test_an_archive_that_knows_implicit_elements_alone_gets_them(
    worklist: Worklist, archive: Callable[..., Archive], sending: Callable[[Archive], Sending]
) -> None:
    pacs, number = archive([uid.ImplicitVRLittleEndian]), enter(worklist, picture(24), "a", "segmented")
    expected = dcmread(worklist.segmentation(row(worklist, number)))
    sending(pacs).step()
    assert row(worklist, number).state == "sent" and pacs.received[0].PixelData == expected.PixelData


def test_segmentations_go_by_tls_to_whom_the_authority_vouches_for(
    worklist: Worklist, archive: Callable[..., Archive], certificates: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    pacs, number = archive(tls=tls), enter(worklist, picture(25), "a", "segmented")
    files = {f"tls_{name}": certificates / f"{name}.pem" for name in ("cert", "key", "ca")}
    unknown = DicomSettings(worklist.folder, str(pacs.node), to_tls=True)
    assert Sending(unknown, worklist).step() is not None and row(worklist, number).state == "segmented"
    known = DicomSettings(worklist.folder, str(pacs.node), to_tls=True, **files)
    Sending(known, worklist).step()
    assert row(worklist, number).state == "sent"


# ---- commitment --------------------------------------------------------------------------------------------


def report(asked: Dataset, *failed: str) -> Any:
    """An archive's report on what it was asked: kept, but for these instances."""
    found = Dataset()
    found.TransactionUID = asked.TransactionUID
    found.ReferencedSOPSequence, found.FailedSOPSequence = [], []
    for item in asked.ReferencedSOPSequence:
        if item.ReferencedSOPInstanceUID in failed:
            item.FailureReason = 0x0112
            found.FailedSOPSequence.append(item)
        else:
            found.ReferencedSOPSequence.append(item)
    return SimpleNamespace(event_information=found)


@pytest.fixture
def committing(worklist: Worklist, archive: Callable[..., Archive]) -> tuple[Archive, Sending, Committing]:
    """An archive, what sends to it and what asks it."""
    pacs = archive()
    settings = DicomSettings(worklist.folder, str(pacs.node), commitment=True)
    return pacs, Sending(settings, worklist, lambda: None), Committing(settings, worklist, lambda: None)


def test_what_is_stored_stays_until_it_is_committed(
    worklist: Worklist, committing: tuple[Archive, Sending, Committing]
) -> None:
    pacs, sending, asking = committing
    kept, lost = (enter(worklist, picture(26), "a", "segmented"), enter(worklist, picture(27), "b", "segmented"))
    sending.step()
    assert [row(worklist, one).state for one in (kept, lost)] == ["stored", "stored"]
    assert asking.step() == 0 and asking.step() == commitment.LOOK  # both at once, and once
    (asked,) = pacs.asked
    instances = [str(one.SOPInstanceUID) for one in pacs.received]
    assert [str(one.ReferencedSOPInstanceUID) for one in asked.ReferencedSOPSequence] == instances
    stranger = report(asked)
    stranger.event_information.TransactionUID = "1.2.3"
    assert asking.reported(stranger)[0] == commitment.INVALID
    assert row(worklist, kept).state == "stored"
    assert asking.reported(report(asked, instances[1]))[0] == 0
    assert [row(worklist, one).state for one in (kept, lost)] == ["committed", "uncommitted"]
    assert [path.name for path in (worklist.folder / "objects").iterdir()] == ["b.seg.dcm"]
    worklist.begin(commitment=True)  # as after a kill: it is sent again, as the same instance
    sending.step()
    assert row(worklist, lost).state == "stored" and str(pacs.received[2].SOPInstanceUID) == instances[1]
    assert asking.step() == 0
    assert asking.reported(report(pacs.asked[1]))[0] == 0 and row(worklist, lost).state == "committed"


def test_what_the_archive_never_keeps_is_sent_later_and_later_and_then_kept_here(
    worklist: Worklist, committing: tuple[Archive, Sending, Committing], monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs, sending, asking = committing
    number = enter(worklist, picture(28), "a", "segmented")
    for times in range(1, MOST_REFUSALS + 1):
        sending.step()
        monkeypatch.undo()
        assert asking.step() == 0
        asking.reported(report(pacs.asked[-1], str(pacs.received[-1].SOPInstanceUID)))
        assert row(worklist, number).refusals == times
        assert asking.step() == (commitment.FIRST_PAUSE if times < MOST_REFUSALS else None)
        monkeypatch.setattr(commitment, "pause_after", lambda _: 0.0)
        asking.step()
    one = row(worklist, number)
    assert one.state == "undelivered" and "failure reason 0112" in str(one.error)
    assert worklist.segmentation(one).is_file() and len(pacs.received) == MOST_REFUSALS


def test_an_archive_that_does_not_report_is_asked_again(
    worklist: Worklist, committing: tuple[Archive, Sending, Committing], monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs, sending, asking = committing
    number = enter(worklist, picture(29), "a", "segmented")
    sending.step()
    pacs.status = 0x0110
    assert [asking.step() for _ in range(3)] == [2, 4, 8]  # it cannot
    pacs.status = 0
    assert asking.step() == 0 and asking.step() == commitment.LOOK
    monkeypatch.setattr(commitment, "REPORT_SECONDS", -60.0)  # its time is over
    assert asking.step() == 0
    assert len({one.TransactionUID for one in pacs.asked}) == 5
    worklist.begin()  # as after a start without the option
    assert row(worklist, number).state == "sent" and not list((worklist.folder / "objects").iterdir())


class Web(http.server.BaseHTTPRequestHandler):
    """Responds as ``status`` and ``body`` say, and keeps what came."""

    protocol_version = "HTTP/1.1"
    status, body = 200, b"{}"
    came: tuple[str, dict[str, str], bytes] = ("", {}, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).came = self.path, {key.lower(): value for key, value in self.headers.items()}, content
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    server.shutdown()
    server.server_close()


def test_stow_sends_one_part_with_its_type_and_the_authorization(web: str, tmp_path: Path) -> None:
    Web.status, Web.body = 200, b"{}"
    file = tmp_path / "a.dcm"
    file.write_bytes(b"content")
    with by_web(web, None, "Bearer secret") as deliver:
        deliver(file)
    path, headers, content = Web.came
    assert path == "/dicom-web/studies" and headers["authorization"] == "Bearer secret"
    boundary = headers["content-type"].rpartition("boundary=")[2]
    assert headers["content-type"].startswith('multipart/related; type="application/dicom"; ')
    parts = content.split(f"--{boundary}".encode())
    assert parts == [b"", b"\r\nContent-Type: application/dicom\r\n\r\ncontent\r\n", b"--\r\n"]


def failure(reason: int) -> bytes:
    """A STOW-RS response that one instance failed for this reason."""
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "raised"),
    [
        (200, b"", None),
        (200, b"<xml/>", None),
        (202, b"{}", None),
        (409, failure(0x0111), None),  # it is there already
        (202, failure(0xA900), Refused),
        (409, b"", Refused),
        (415, b"", Refused),
        (401, b"", Away),
        (404, b"", Away),
        (301, b"", Away),
        (503, b"", Away),
    ],
)
def test_what_a_response_means(
    web: str, tmp_path: Path, status: int, body: bytes, raised: type[Exception] | None
) -> None:
    Web.status, Web.body = status, body
    (tmp_path / "a.dcm").write_bytes(b"content")
    with by_web(web, None, None) as deliver:
        if raised is None:
            deliver(tmp_path / "a.dcm")
        else:
            with pytest.raises(raised, match=str(status)):
                deliver(tmp_path / "a.dcm")


def test_a_server_that_is_not_there_is_away(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"content")
    with by_web("http://127.0.0.1:1", None, None) as deliver, pytest.raises(Away, match="cannot be reached"):
        deliver(tmp_path / "a.dcm")


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "PACS"}, "--to PACS: must be AE@host:port"),
        ({"to": "PACS@host"}, "must be AE@host:port"),
        ({"to": "PACS@host:0"}, "must be AE@host:port"),
        ({"to": "A" * 17 + "@host:104"}, "must be AE@host:port"),
        ({"to": "https://user:pass@host/dicom-web"}, "--to https://…: must be as"),
        ({"to": "https://host/dicom-web", "to_tls": True}, "--to_tls: is for an AE"),
        ({"to": "https://host/dicom-web", "commitment": True}, "--commitment: is for an AE"),
        ({"allow": ("ENDO",)}, "--allow ENDO: must be AE@address"),
        ({"allow": ("ENDO@10.0.0.0/99",)}, "is no network"),
        ({"title": "A\\B"}, "--ae_title"),
        ({"title": ""}, "--ae_title"),
        ({"tls_cert": Path("a.pem")}, "--tls_cert and --tls_key: are a pair"),
        ({"tls_ca": Path("a.pem")}, "--tls_ca: needs"),
        ({"associations": 0}, "--associations: must be above 0"),
        ({"associations": 1000}, "must be 256 or less"),
        ({"max_bytes": 0}, "--max_mib: must be above 0"),
        ({"max_pixels": 10**12}, "are never read"),
        ({"keep_days": -1}, "--keep_days"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        DicomSettings(Path("state"), **{"to": "PACS@host:104", **options})
    assert says in str(caught.value) and "pass" not in str(caught.value)


def test_files_for_tls_that_cannot_be_used_are_named(tmp_path: Path, certificates: Path) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    key, to = certificates / "key.pem", "PACS@host:104"
    for file, says in ((tmp_path / "no.pem", "is no PEM file"), (tmp_path / "none.pem", "is missing")):
        with pytest.raises(UsageError, match=says):
            DicomSettings(tmp_path, to, tls_cert=file, tls_key=key).incoming_tls()


@pytest.mark.parametrize(
    ("allow", "title", "address", "expected"),
    [
        ("ENDO@10.0.0.7", "ENDO", "10.0.0.7", True),
        ("ENDO@10.0.0.7", "ENDO", "::ffff:10.0.0.7", True),
        ("ENDO@10.0.0.7", "ENDO", "10.0.0.8", False),
        ("ENDO@10.0.0.7", "endo", "10.0.0.7", False),
        ("*@10.0.0.0/24", "ANY", "10.0.0.200", True),
        ("*@10.0.0.0/24", "ANY", "10.0.1.1", False),
        ("ENDO@*", "ENDO", "192.0.2.1", True),
        ("ENDO@fd00::/8", "ENDO", "fd00::1", True),
        ("MY ENDO@localhost", "MY ENDO", "127.0.0.1", True),
    ],
)
def test_who_may_call(allow: str, title: str, address: str, expected: bool) -> None:
    assert Caller.parse(allow).matches(title, address) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0"), "say who may call: --allow AE@address, or --tls_ca"),
        (("--port", "70000"), "--port 70000: must be 0 to 65535"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    run_dicom: Callable[..., tuple[int, str]], tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    status, told = run_dicom("--to", "PACS@127.0.0.1:104", "--state", tmp_path / "state", *words)
    assert status in (1, 2) and says in told and told.count("\n") == 1
