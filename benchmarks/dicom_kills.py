"""Kill ``polypseg dicom`` again and again while images come in: is any lost, is any segmentation doubled?

Needs Orthanc (Debian: ``orthanc``) and the extra ``polypseg[dicom]``. Images of one and of several frames are sent by
C-STORE, again and again until each is answered with success, as a PACS does. Meanwhile the node is killed (SIGKILL) at
random moments, and the archive is stopped for a while now and then. In the end each image must have one segmentation.

    python benchmarks/dicom_kills.py --kills 20 --images 160
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, uid
from pynetdicom import AE

from polypseg.data.phantom import draw

FRAMES = (1, 1, 4)  # of the images, in turn
PAUSES = (0.2, 6.0)  # seconds between two kills, the least and the most


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def image(number: int) -> Dataset:
    """An endoscopic image of a phantom."""
    count = FRAMES[number % len(FRAMES)]
    pixels = np.stack([draw(number * 10 + index, 288, 352)[0] for index in range(count)])
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = uid.VLEndoscopicImageStorage if count == 1 else uid.VideoEndoscopicImageStorage
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    data.PatientID, data.PatientName, data.Modality = f"P{number}", f"Phantom^{number}", "ES"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PlanarConfiguration = *pixels.shape[1:3], 3, 0
    data.PhotometricInterpretation, data.PixelRepresentation = "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    if count > 1:
        data.NumberOfFrames = count
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB"
    return data


class Archive:
    """Orthanc in a process."""

    def __init__(self, folder: Path) -> None:
        self.port, self.http, self.folder = free_port(), free_port(), folder
        folder.mkdir()
        settings = {
            "DicomAet": "ORTHANC", "DicomPort": self.port, "HttpPort": self.http, "StorageDirectory": str(folder),
            "IndexDirectory": str(folder), "DicomAlwaysAllowStore": True, "Plugins": [],
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        while True:
            try:
                self.ask("/system")
                return
            except OSError:
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", data, timeout=30) as response:
            return json.load(response)

    def segmentations(self) -> collections.Counter[str]:
        """How many there are of each image, by its SOP Instance UID."""
        found = self.ask("/tools/find", {"Level": "Instance", "Query": {"Modality": "SEG"}, "Expand": False})
        tags = [self.ask(f"/instances/{name}/simplified-tags") for name in found]
        return collections.Counter(one["SourceImageSequence"][0]["ReferencedSOPInstanceUID"] for one in tags)


def start_node(state: Path, port: int, archive: Archive, model: str | None) -> subprocess.Popen[str]:
    to = f"ORTHANC@127.0.0.1:{archive.port}"
    words = ["--to", to, "--state", str(state), "--port", str(port), *(["--model", model] if model else [])]
    with state.with_suffix(".log").open("a") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "polypseg", "dicom", *words], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert node.stdout is not None
    node.stdout.readline()
    return node


class Sender(threading.Thread):
    """Sends images until each has been answered with success."""

    def __init__(self, port: int, images: list[Dataset]) -> None:
        super().__init__(daemon=True)
        self.port, self.waiting, self.times = port, list(images), 0

    def run(self) -> None:
        while self.waiting:
            entity = AE("ENDO")
            entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 10
            for kind in (uid.VLEndoscopicImageStorage, uid.VideoEndoscopicImageStorage):
                entity.add_requested_context(kind, uid.ExplicitVRLittleEndian)
            association = entity.associate("127.0.0.1", self.port, ae_title="POLYPSEG")
            while association.is_established and self.waiting:
                self.times += 1
                try:
                    status = association.send_c_store(self.waiting[0]).get("Status")
                except (RuntimeError, ValueError):
                    break
                if status == 0:
                    self.waiting.pop(0)
                    time.sleep(0.3)
            association.release()
            time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="dicom-kills-"))
    archive, port = Archive(folder / "orthanc"), free_port()
    images = [image(number) for number in range(arguments.images)]
    sender = Sender(port, images)
    node = start_node(folder / "state", port, archive, arguments.model)
    sender.start()
    for kill in range(arguments.kills):
        if kill % 5 == 3:
            archive.stop()
        time.sleep(chance.uniform(*PAUSES))
        node.send_signal(signal.SIGKILL)
        node.wait()
        node = start_node(folder / "state", port, archive, arguments.model)
        if kill % 5 == 3:
            archive.start()
    sender.join()
    wanted = {str(one.SOPInstanceUID) for one in images}
    end = time.monotonic() + 300
    while set(archive.segmentations()) != wanted and time.monotonic() < end:
        time.sleep(1)
    found = archive.segmentations()
    node.terminate()
    status = node.wait()
    archive.stop()
    result = {
        "kills": arguments.kills, "images": len(images), "stores": sender.times, "segmentations": sum(found.values()),
        "lost": len(wanted - set(found)), "doubled": sum(count > 1 for count in found.values()), "exit": status,
        "left": len(list((folder / "state" / "objects").iterdir())),
    }  # fmt: skip
    print(json.dumps(result))
    return int(bool(result["lost"] or result["doubled"] or result["left"]))


if __name__ == "__main__":
    sys.exit(main())
