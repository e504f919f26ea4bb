"""A real archive (Orthanc), nodes of ``polypseg dicom`` in processes of their own, and images for them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pydicom = pytest.importorskip("pydicom", reason="the extra polypseg[dicom] is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="the extra polypseg[dicom] is not installed")
httpx = pytest.importorskip("httpx")

from pydicom import Dataset, FileMetaDataset, uid  # noqa: E402

from polypseg.data.phantom import draw  # noqa: E402

NODE = "import sys; from polypseg.cli import main; sys.exit(main())"
WEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HEIGHT, WIDTH = 72, 88
# Not in a log by chance: found there, it was leaked.
SECRETS = ("Zweistein", "PATNR-4711", "19010203")


def free_port() -> int:
    """A TCP port of this computer that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(reached: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``reached`` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end, f"not reached: {reached}"
        time.sleep(0.02)
    return found


def picture(seed: int = 0, frames: int = 1, **elements: Any) -> Dataset:
    """An endoscopic image of a phantom, one frame or several, as a processor writes it."""
    pixels = np.stack([draw(seed + index, HEIGHT, WIDTH)[0] for index in range(frames)])
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    kind = uid.VLEndoscopicImageStorage if frames == 1 else uid.VideoEndoscopicImageStorage
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = (
        "Zweistein^A",
        SECRETS[1],
        SECRETS[2],
        "O",
    )
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20260102", "101112", "7", "A7"
    data.ReferringPhysicianName, data.SeriesNumber, data.InstanceNumber = "", 3, 12
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "71854001", "SCT", "Colon"
    data.Modality, data.AnatomicRegionSequence, data.AcquisitionContextSequence = "ES", [region], []
    data.AcquisitionDateTime = "20260102101112"
    data.ImageType, data.ContentDate, data.ContentTime = ["ORIGINAL", "PRIMARY"], "20260102", "101112"
    data.Manufacturer, data.LossyImageCompression, data.PatientOrientation = "Phantom", "00", ""
    data.Rows, data.Columns, data.SamplesPerPixel, data.PlanarConfiguration = HEIGHT, WIDTH, 3, 0
    data.PhotometricInterpretation, data.PixelRepresentation = "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    if frames > 1:
        data.NumberOfFrames, data.FrameTime, data.FrameIncrementPointer = frames, 40, 0x00181063
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB"
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def frames_of(data: Dataset) -> NDArray[np.uint8]:
    """The N×H×W×3 pixels of ``picture``."""
    return np.frombuffer(data.PixelData, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


class Orthanc:
    """A process of Debian's Orthanc with an empty archive; ``web`` is a client of its REST interface."""

    def __init__(self, folder: Path, nodes: dict[str, int], lua: str | None = None) -> None:
        self.folder, self.port, self.http_port = folder, free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.settings: dict[str, Any] = {
            "Name": "test", "DicomAet": "ORTHANC", "DicomPort": self.port, "HttpPort": self.http_port,
            "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "RemoteAccessAllowed": False,
            "DicomModalities": {name: ["POLYPSEG", "127.0.0.1", port] for name, port in nodes.items()},
            "DicomAlwaysAllowStore": True, "DicomCheckCalledAet": True, "Plugins": [str(WEB_PLUGIN)],
        }  # fmt: skip
        if lua:
            (folder / "route.lua").write_text(lua)
            self.settings["LuaScripts"] = [str(folder / "route.lua")]
        (folder / "orthanc.json").write_text(json.dumps(self.settings))
        self.to = f"ORTHANC@127.0.0.1:{self.port}"
        self.dicomweb = f"http://127.0.0.1:{self.http_port}/dicom-web"
        self.web = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=60)
        self.start()

    def start(self) -> None:
        """Begin, with what the archive contains."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)

        def up() -> bool:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with contextlib.suppress(httpx.HTTPError):
                return bool(self.web.get("/system").is_success)
            return False

        wait_for(up)

    def stop(self) -> None:
        """End."""
        self.process.terminate()
        self.process.wait(30)

    def segmentations(self) -> dict[str, list[str]]:
        """Orthanc's names of the segmentations in it, by the SOP Instance UID of the image they refer to."""
        found: dict[str, list[str]] = {}
        query = {"Level": "Instance", "Query": {"Modality": "SEG"}, "Expand": False}
        for name in self.web.post("/tools/find", json=query).json():
            tags = self.web.get(f"/instances/{name}/simplified-tags").json()
            found.setdefault(tags["SourceImageSequence"][0]["ReferencedSOPInstanceUID"], []).append(name)
        return found

    def file(self, name: str, path: Path) -> Path:
        """An instance, written to a file."""
        path.write_bytes(self.web.get(f"/instances/{name}/file").content)
        return path


class Node:
    """A process of ``polypseg dicom``."""

    def __init__(self, model: Path, state: Path, to: str, *options: str, port: int | None = None, **more: Any) -> None:
        self.state, self.log = state, state.parent / f"{state.name}.log"
        self.port = port or free_port()
        words = ["--to", to, "--model", str(model), "--state", str(state), "--port", str(self.port), *options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", NODE, "dicom", *words], stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **more.get("env", {})},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        assert re.match(rf"POLYPSEG@[\d.:\[\]]+:{self.port}  to ", self.greeting), self.log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait; the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log with this event."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [line for line in map(json.loads, (one for one in lines if one.endswith("\n"))) if line["event"] == name]

    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


def associate(port: int, data: Dataset | None = None, **options: Any) -> Any:
    """An association with a node, for C-ECHO and what ``data`` is."""
    entity = pynetdicom.AE(options.pop("calling", "ENDO"))
    entity.connection_timeout, entity.acse_timeout, entity.dimse_timeout = 10, 30, 60
    entity.add_requested_context("1.2.840.10008.1.1")
    if data is not None:
        entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    called = options.pop("called", "POLYPSEG")
    return entity.associate("127.0.0.1", port, ae_title=called, **options)


def send(port: int, *objects: Dataset, **options: Any) -> list[int | None]:
    """Store objects of one kind at a node; the statuses, None where there was no response."""
    association = associate(port, objects[0], **options)
    assert association.is_established
    found = [association.send_c_store(one).get("Status") for one in objects]
    association.release()
    return found


@pytest.fixture(scope="session")
def needs_orthanc() -> None:
    """Orthanc and its DICOMweb plugin are there."""
    if shutil.which("Orthanc") is None or not WEB_PLUGIN.is_file():
        pytest.skip("there is no Orthanc: apt-get install orthanc orthanc-dicomweb")


@pytest.fixture(scope="session")
def model(exported: Any) -> Path:
    """A bundle."""
    return Path(exported.folder)


@pytest.fixture(scope="session")
def decoders() -> Iterator[Any]:
    """Processes that open objects, with the limits of a small node."""
    from polypseg.serve.decoding import Decoders
    from polypseg.serve.dicom_network.run import PRELOAD
    from polypseg.serve.dicom_network.segment import refusal

    made = Decoders(15, 2 << 30, refusal=refusal, preload=PRELOAD)
    yield made
    made.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem of localhost, and ca.pem, which signed it."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def make(name: str, key: Any, signer: Any, issuer: str, authority: bool) -> bytes:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(signer, hashes.SHA256())
        )
        return bytes(built.public_bytes(serialization.Encoding.PEM))

    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (folder / "ca.pem").write_bytes(make("test CA", root, root, "test CA", True))
    (folder / "cert.pem").write_bytes(make("localhost", own, root, "test CA", False))
    form = serialization.PrivateFormat.TraditionalOpenSSL
    private = own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder


@pytest.fixture(scope="module")
def node_port() -> int:
    """Where the module's node listens; the archive must know it first."""
    return free_port()


@pytest.fixture(scope="module")
def orthanc(needs_orthanc: None, node_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive that knows the module's node as ``polypseg``."""
    archive = Orthanc(tmp_path_factory.mktemp("orthanc"), {"polypseg": node_port})
    yield archive
    archive.stop()


@pytest.fixture(scope="module")
def node(model: Path, orthanc: Orthanc, node_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that sends to the archive."""
    state = tmp_path_factory.mktemp("node") / "state"
    options = ("--max_mib", "8", "--associations", "4", "--commitment")
    with Node(model, state, orthanc.to, *options, port=node_port) as one:
        yield one


@pytest.fixture
def run_dicom(capsys: pytest.CaptureFixture[str], model: Path) -> Callable[..., tuple[int, str]]:
    """Runs ``polypseg dicom`` here with options that it refuses; its status, and what it says."""
    from polypseg.cli import main

    def call(*words: object) -> tuple[int, str]:
        status = main(["dicom", "--model", str(model), *map(str, words)])
        return status, capsys.readouterr().err

    return call
