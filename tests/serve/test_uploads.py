"""What strangers send: names that mean harm, files that are not what they say, files that grow."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.serve.uploads import own_name, read_still, stored, told, told_apart

MOST = 1_000_000  # pixels


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("frame.png", "frame.png"),
        ("Ünï.png", "Ünï.png"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/etc/passwd", "passwd"),
        ("C:\\a\\b.jpg", "b.jpg"),
        ("..", "upload"),
        (".", "upload"),
        (".hidden", "hidden"),
        ("", "upload"),
        (None, "upload"),
        ("a\0b\n\x7f.png", "a_b__.png"),
        ("<img src=x>.png", "_img src=x_.png"),
        ("con%2e%2e%2fx", "con_2e_2e_2fx"),
        ("a/", "upload"),
        ("x. . ", "x"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("\udcff.png", "?.png".replace("?", "_")),
    ],
)
def test_a_name_is_one_harmless_file_name(sent: str | None, kept: str) -> None:
    assert own_name(sent) == kept


def test_a_long_name_is_cut_and_keeps_its_ending() -> None:
    for name in ("x" * 5000 + ".mp4", "€" * 5000 + ".mp4", "y" * 5000, "z." + "z" * 5000):
        kept = own_name(name)
        assert 1 <= len(kept.encode()) <= 100
        assert kept.endswith(".mp4") == name.endswith(".mp4")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["frame-001.jpg", "frame-002.jpg", "frame.jpg"], ["frame-001.jpg", "frame-002.jpg", "frame.jpg"]),
        (["2-frame.jpg", "frame.jpg", "frame.jpg"], ["2-frame.jpg", "frame.jpg", "2-1-frame.jpg"]),
        (["frame.jpg", "frame.jpg", "1-frame.jpg"], ["frame.jpg", "1-1-frame.jpg", "1-frame.jpg"]),
        (["a.jpg", "A.JPG", "a.png"], ["a.jpg", "1-A.JPG", "2-a.png"]),
        (["stra\u00dfe.jpg", "STRASSE.jpg"], ["stra\u00dfe.jpg", "1-STRASSE.jpg"]),
        (["coco.jpg", "Predictions.jpg"], ["0-coco.jpg", "1-Predictions.jpg"]),
        (["a.dcm", "a-0002.jpg"], ["a.dcm", "1-a-0002.jpg"]),  # a DICOM file of several frames gives a-0002.png
        (["a-0002.jpg", "a.dcm"], ["a-0002.jpg", "1-a.dcm"]),
        (["a.mp4", "a.timeline.jpg"], ["a.mp4", "1-a.timeline.jpg"]),
        (["1.2.3", "1.2.4"], ["1.2.3", "1-1.2.4"]),
    ],
)
def test_names_of_one_job_are_told_apart(sent: list[str], kept: list[str]) -> None:
    assert told_apart(sent) == kept


def test_however_names_collide_no_two_results_share_a_name() -> None:
    rng = np.random.default_rng(3)
    parts = [
        "frame",
        "FRAME",
        "1-frame",
        "1-1-frame",
        "frame-0001",
        "frame.timeline",
        "2-frame",
        "coco",
        "3-frame-0001",
    ]
    for _ in range(50):
        names = told_apart([f"{parts[at]}.jpg" for at in rng.integers(0, len(parts), 60)])
        results = [
            f"{Path(name).stem}{result}".casefold()
            for name in names
            for result in (
                ".png",
                ".json",
                ".overlay.jpg",
                "-0001.png",
                "-0001.json",
                ".timeline.json",
                ".jsonl",
                ".mp4",
            )
        ]
        assert len(set(results)) == len(results) and not {"coco.json", "predictions.csv"} & set(results)
        assert max(len(name) for name in names) < 40


def test_a_line_that_is_told_has_no_path_of_this_computer(tmp_path: Path) -> None:
    path = tmp_path / "upload-1" / "upload"
    line = told(PolypsegError(f"{path}: is damaged; replace it or remove it"), path, "a.png")
    assert line == "a.png: is damaged"


def test_an_upload_lies_on_the_disk_only_as_long_as_it_is_read(tmp_path: Path) -> None:
    with stored(io.BytesIO(b"content"), tmp_path) as path:
        assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"\0") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def picture(form: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 90, 80)).save(stream, form, **options)
    return stream.getvalue()


def pages(count: int) -> bytes:
    """A TIFF of many pages, one grey pixel each."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1))
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    starts = range(8, 8 + count * (len(page) + 4), len(page) + 4)
    following = [*starts[1:], 0]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(page + struct.pack("<I", place) for place in following)


def deflated_dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    stream = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(stream, meta)
    packer = zlib.compressobj(9, wbits=-15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    return bytes(128) + b"DICM" + stream.getvalue() + packed


REFUSED: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "nothing": (lambda: b"", 422, "is empty"),
    "text": (lambda: b"hello", 415, "is no image"),
    "HTML": (lambda: b"<html><script>alert(1)</script>", 415, "is no image"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "is no image"),
    "PostScript, which Pillow hands to a program": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 415, "is no image",
    ),
    "animated GIF": (lambda: b"GIF89a" + bytes(20), 415, "is no image"),
    "a video": (lambda: b"\0\0\0\x18ftypisom" + bytes(30), 415, "send it to /v1/jobs"),
    "PNG that claims 10 gigapixels": (lambda: png(100_000, 100_000), 413, "1,000,000 pixels"),
    "PNG of just too many pixels": (lambda: png(1001, 1000), 413, "1,000,000 pixels"),
    "PNG bomb": (lambda: png(9000, 9000, bytes(30_000_000)), 413, "1,000,000 pixels"),
    "JPEG of too many pixels": (lambda: picture("JPEG", (1200, 900)), 413, "1,000,000 pixels"),
    "cut PNG": (lambda: picture("PNG")[:60], 422, "damaged"),
    "cut JPEG": (lambda: picture("JPEG")[:300], 422, "damaged"),
    "PNG without pixels": (lambda: png(30, 30), 422, "damaged"),
    "animated PNG": (
        lambda: picture("PNG", save_all=True, append_images=[Image.new("RGB", (40, 30))]), 422, "several pictures",
    ),
    "TIFF of 300,000 pages": (lambda: pages(300_000), 422, "several pictures"),
    "deflated DICOM bomb": (deflated_dicom, 415, "deflated"),
    "DICOM that is none": (lambda: bytes(128) + b"DICM" + bytes(100), 422, ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_means_harm_is_refused_quickly_and_in_little_memory(name: str, tmp_path: Path) -> None:
    make, status, says = REFUSED[name]
    path = tmp_path / "upload"
    path.write_bytes(make())
    read_still_once(tmp_path)  # imports
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(HTTPException, match=says) as refusal:
            read_still(path, "their.png", MOST)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 2
    assert refusal.value.status_code == status
    line = str(refusal.value.detail)
    assert line.startswith("their.png: ") and str(tmp_path) not in line and "\n" not in line


def read_still_once(folder: Path) -> None:
    (folder / "good").write_bytes(picture("PNG"))
    assert read_still(folder / "good", "good.png", MOST).shape == (30, 40, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_stills_are_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(picture(form))
    read = read_still(path, "x", MOST)
    assert read.shape == (30, 40, 3)
    assert np.abs(read.astype(int) - (200, 90, 80)).max() <= 4
