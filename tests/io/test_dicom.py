"""DICOM: every kind of pixels becomes the right RGB, what cannot is reported in one line, and segmentations are valid.

The files are made here with pydicom, whose own test files serve as references from elsewhere. ``dciodvfy`` (the
validator of dicom3tools) checks the segmentations where it is installed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import shutil
import subprocess
import sys
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polypseg.data.phantom import draw
from polypseg.errors import PolypsegError
from polypseg.io.dicom import is_dicom, read_dicom
from polypseg.io.dicom_seg import MadeBy, write_segmentation

highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")
pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

from pydicom import Dataset, FileMetaDataset, dcmread, uid  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.datadict import tag_for_keyword  # noqa: E402
from pydicom.dataelem import RawDataElement  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.tag import Tag  # noqa: E402

# Not in the header of any file by chance: found anywhere, it was leaked.
NAME, BIRTH, NUMBER = "Zweistein^Qwertz", "19010203", "PATNR-4711"
SECRETS = ("Zweistein", "Qwertz", BIRTH, NUMBER)
RNG = np.random.default_rng(5)
HEIGHT, WIDTH = 32, 40  # JPEG 2000's encoder wants 32 and more
NOISE = RNG.integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
FLAT = RNG.integers(30, 226, (2, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

Frames = NDArray[np.uint8]


def image(pixels: NDArray[Any], *, sop_class: str = uid.SecondaryCaptureImageStorage, **elements: Any) -> Dataset:
    """An uncompressed image of F×H×W or F×H×W×3 samples, as a device writes it; ``elements`` change or (None) drop.

    The pixels stand in ``PixelData`` as they are in memory.
    """
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = NAME, NUMBER, BIRTH, "O"
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20260102", "101112", "7", "A7"
    data.ReferringPhysicianName, data.SeriesNumber, data.InstanceNumber = "", 3, 12
    if sop_class in (uid.VLEndoscopicImageStorage, uid.VideoEndoscopicImageStorage):
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "71854001", "SCT", "Colon"
        data.Modality, data.AnatomicRegionSequence, data.AcquisitionContextSequence = "ES", [region], []
        data.AcquisitionDateTime = "20260102101112"
    else:
        data.Modality, data.ConversionType, data.BodyPartExamined, data.BurnedInAnnotation = "OT", "SYN", "COLON", "NO"
    data.ImageType, data.ContentDate, data.ContentTime = ["ORIGINAL", "PRIMARY"], "20260102", "101112"
    data.Manufacturer, data.LossyImageCompression, data.PatientOrientation = "Phantom", "00", ""
    data.Rows, data.Columns = pixels.shape[1:3]
    data.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
    data.PhotometricInterpretation = "RGB" if pixels.ndim == 4 else "MONOCHROME2"
    if pixels.ndim == 4:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    if len(pixels) > 1:
        data.NumberOfFrames, data.FrameTime, data.FrameIncrementPointer = len(pixels), 40, 0x00181063
    data.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    if data.BitsAllocated > data.BitsStored:
        data.HighBit = data.BitsStored - 1
    return data


def save(data: Dataset, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True, **options)
    return path


def elements_alone(data: Dataset) -> bytes:
    """The file without preamble and file meta information, as old ones are."""
    buffer = io.BytesIO()
    Dataset(data).save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def encapsulated(frames: list[bytes], syntax: str, pixels: NDArray[Any], **elements: Any) -> Dataset:
    """An image whose frames are compressed already."""
    data = image(pixels, **elements)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    return data


def encoded(frame: Frames, kind: str, **options: Any) -> bytes:
    """A frame as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Frames:
    """A frame as Pillow reads it."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def frames_of(path: Path | str) -> Frames:
    read = read_dicom(path)
    frames = np.stack(list(read))
    assert len(read) == len(frames) and (read.height, read.width) == frames.shape[1:3]
    assert frames.dtype == np.uint8 and frames.shape[3] == 3
    return frames


def ybr(rgb: Frames) -> Frames:
    """RGB to YBR_FULL, by the matrix of PS3.3 C.7.6.3.1.2."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def grey(values: NDArray[Any]) -> Frames:
    return values[..., None].repeat(3, -1)


def told(error: BaseException, path: Path) -> str:
    """The message, checked to be one line that names the file, and to carry nobody's name with it."""
    text = str(error)
    assert "\n" not in text and str(path) in text
    assert not any(secret in "".join(traceback.format_exception(error)) for secret in SECRETS)
    return text


# ---- what is DICOM --------------------------------------------------------------------------------------


def test_dicom_is_known_by_its_first_bytes_and_without_pydicom(tmp_path: Path) -> None:
    data = image(NOISE[:1])
    path = save(data, tmp_path / "no-suffix")
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(path.read_bytes()[132:])  # as very old files are
    code = (
        "import sys; from polypseg.io.dicom import is_dicom\n"
        f"print(is_dicom({str(path)!r}), is_dicom({str(bare)!r}), 'pydicom' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]


@pytest.mark.parametrize(
    "content",
    [
        encoded(NOISE[0], "PNG"),
        encoded(NOISE[0], "JPEG"),
        encoded(NOISE[0], "BMP"),
        encoded(NOISE[0], "TIFF"),
        b"\0\0\0\x18ftypmp42" + bytes(200),
        b"x" * 200,
        bytes(200),
        b"\x08\0" + b"\xff" * 200,
        b"DICM",
        b"",
    ],
)
def test_other_files_are_no_dicom(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    assert not is_dicom(path)
    with pytest.raises(PolypsegError) as caught:
        read_dicom(path)
    assert "no DICOM file" in told(caught.value, path)


def test_a_folder_or_a_missing_file_is_no_dicom(tmp_path: Path) -> None:
    assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "none.dcm")
    with pytest.raises(PolypsegError, match="no such file"):
        read_dicom(tmp_path / "none.dcm")


# ---- what is read ---------------------------------------------------------------------------------------

UNCOMPRESSED: dict[str, tuple[Dataset, Frames, int]] = {}


def case(name: str, data: Dataset, expected: Frames, tolerance: int = 0) -> None:
    UNCOMPRESSED[name] = data, expected, tolerance


case("RGB", image(NOISE), NOISE)
case("RGB by planes", image(NOISE.transpose(0, 3, 1, 2).copy().reshape(NOISE.shape), PlanarConfiguration=1), NOISE)
case("YBR_FULL", image(ybr(FLAT), PhotometricInterpretation="YBR_FULL"), FLAT, 2)
# two pixels share their colour: Y1 Y2 B R
_pairs = ybr(FLAT).reshape(-1, 2, 3)
_halved = np.concatenate([_pairs[:, :, 0], _pairs[:, 0, 1:]], axis=1).tobytes()
case("YBR_FULL_422", image(ybr(FLAT), PhotometricInterpretation="YBR_FULL_422", PixelData=_halved), FLAT, 2)
_wide = RNG.integers(0, 1 << 12, NOISE.shape).astype(np.uint16)
case("RGB of 12 bits", image(_wide, BitsStored=12), np.rint(_wide * (255 / 4095)).astype(np.uint8))
case("RGB of 16 bits", image(_wide << 4), np.rint((_wide << 4) * (255 / 65535)).astype(np.uint8))
case("grey", image(NOISE[..., 0]), grey(NOISE[..., 0]))
case("inverted grey", image(NOISE[..., 0], PhotometricInterpretation="MONOCHROME1"), grey(255 - NOISE[..., 0]))
for _bits in (10, 12, 16):
    _values = RNG.integers(0, 1 << _bits, NOISE.shape[:3]).astype(np.uint16)
    _shown = np.rint(_values * (255 / ((1 << _bits) - 1))).astype(np.uint8)
    case(f"grey of {_bits} bits", image(_values, BitsStored=_bits), grey(_shown))
_signed = RNG.integers(-2048, 2048, NOISE.shape[:3]).astype(np.int16)
_shown = np.rint((_signed.astype(int) + 2048) * (255 / 4095)).astype(np.uint8)
case("signed grey of 12 bits", image(_signed, BitsStored=12), grey(_shown))
case("rescaled", image(_signed, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000), grey(_shown))
# LINEAR of PS3.3 C.11.2.1.2.1: below 100 black, from 354 white, one grey level a step between them
_ramp = np.clip(_signed.astype(int) + 500 - 100, 0, 255).astype(np.uint8)
_window = {"RescaleSlope": 1, "RescaleIntercept": 500, "WindowWidth": [256, 9], "WindowCenter": [228, 9]}
case("windowed", image(_signed, BitsStored=12, **_window), grey(_ramp))
case(
    "windowed and inverted",
    image(_signed, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **_window),
    grey(255 - _ramp),
)
case(
    "windowed exactly",
    image(_signed, BitsStored=12, WindowWidth=255, WindowCenter=-100.5, VOILUTFunction="LINEAR_EXACT"),
    grey(np.clip(_signed.astype(int) + 228, 0, 255).astype(np.uint8)),
)
_curve = 255 / (1 + np.exp(-4 * (_signed - 50.0) / 900))
case(
    "windowed by a sigmoid",
    image(_signed, BitsStored=12, WindowWidth=900, WindowCenter=50, VOILUTFunction="SIGMOID"),
    grey(np.rint(_curve).astype(np.uint8)),
)
_lut = RNG.integers(0, 1 << 10, 256).astype(np.uint16)


def lut(values: NDArray[np.uint16], bits: int, **more: Any) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), 0, bits])
    item.add_new("LUTData", "OW", values.tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return [item]


_mapped = grey(np.rint(_lut[NOISE[..., 0]] * (255 / 1023)).astype(np.uint8))
case("through a VOI LUT", image(NOISE[..., 0], VOILUTSequence=lut(_lut, 10)), _mapped)
_lut = _lut << 6  # a modality LUT has 8 or 16 bits
_mapped = grey(np.rint(_lut[NOISE[..., 0]] * (255 / 65535)).astype(np.uint8))
case("through a modality LUT", image(NOISE[..., 0], ModalityLUTSequence=lut(_lut, 16, ModalityLUTType="US")), _mapped)
_palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
for _depth in (8, 16):
    _coloured = image(NOISE[..., 0], PhotometricInterpretation="PALETTE COLOR")
    for _channel, _colour in enumerate(("Red", "Green", "Blue")):
        _entries = _palette[:, _channel].astype(np.uint16) * (257 if _depth == 16 else 1)
        _coloured.add_new(f"{_colour}PaletteColorLookupTableDescriptor", "US", [256, 0, _depth])
        _coloured.add_new(f"{_colour}PaletteColorLookupTableData", "OW", _entries.astype(f"u{_depth // 8}").tobytes())
    case(f"palette of {_depth} bits", _coloured, _palette[NOISE[..., 0]])


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
@pytest.mark.parametrize("used", [8, 12])
def test_bits_that_the_header_names_and_nobody_uses_do_not_make_a_frame_dark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, used: int
) -> None:
    values = NOISE[:1, ..., 0].astype(kind) << (used - 8)
    bits = np.dtype(kind).itemsize * 8
    frames = frames_of(save(image(values, BitsStored=bits), tmp_path / "dark.dcm"))
    assert np.abs(frames.astype(int) - grey(NOISE[:1, ..., 0])).max() <= 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"dark.dcm: contains values up to {values.max()} of {2**bits - 1} and is read as {used} bits" in line


def test_frames_of_a_film_keep_one_brightness(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.stack([NOISE[0, ..., 0].astype(np.uint16), NOISE[1, ..., 0].astype(np.uint16) * 257])
    frames = frames_of(save(image(values), tmp_path / "film.dcm"))
    assert frames[0].max() <= 1 and np.abs(frames[1].astype(int) - grey(NOISE[1, ..., 0])).max() <= 1
    assert "contains values up to" in caplog.text and "is read as 16 bits" in caplog.text


def test_bits_that_are_not_the_lowest_are_refused(tmp_path: Path) -> None:
    data = image(NOISE[..., 0].astype(np.uint16) << 8, BitsStored=8)
    data.HighBit = 15
    with pytest.raises(PolypsegError, match="samples' 8 bits are not the lowest ones") as caught:
        frames_of(save(data, tmp_path / "high.dcm"))
    told(caught.value, tmp_path / "high.dcm")


@pytest.mark.parametrize("name", UNCOMPRESSED)
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_pixels_become_the_rgb_that_they_mean(tmp_path: Path, name: str, syntax: uid.UID) -> None:
    data, expected, tolerance = UNCOMPRESSED[name]
    data.file_meta.TransferSyntaxUID = syntax
    options = {"implicit_vr": syntax.is_implicit_VR, "little_endian": True}
    found = frames_of(save(data, tmp_path / "image.dcm", **options))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


def test_big_endian_pixels_and_odd_sizes_are_read_as_their_twins() -> None:
    """pydicom's own files, written by other software."""
    small = frames_of(get_testdata_file("SC_rgb_small_odd.dcm", download=False))
    assert small.shape == (1, 3, 3, 3)
    assert np.array_equal(frames_of(get_testdata_file("SC_rgb_small_odd_big_endian.dcm", download=False)), small)
    wide = frames_of(get_testdata_file("MR_small.dcm", download=False))
    assert np.array_equal(frames_of(get_testdata_file("MR_small_bigendian.dcm", download=False)), wide)


def test_a_file_that_does_not_name_its_transfer_syntax_is_read_as_uncompressed(tmp_path: Path) -> None:
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(elements_alone(image(NOISE)))
    assert is_dicom(bare)
    assert np.array_equal(frames_of(bare), NOISE)


LOSSLESS = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("name", ["RGB", "grey", "grey of 12 bits", "inverted grey", "windowed"])
def test_lossless_compression_changes_no_pixel(tmp_path: Path, syntax: uid.UID, name: str) -> None:
    data, expected, _ = UNCOMPRESSED[name]
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    packed = dcmread(save(data, tmp_path / "plain.dcm", implicit_vr=False, little_endian=True))
    if syntax == uid.JPEG2000Lossless and name == "RGB":
        packed.PhotometricInterpretation = "YBR_RCT"  # told to the encoder, which transforms the colours itself
    packed.compress(syntax, generate_instance_uid=False)
    assert packed.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(frames_of(save(packed, tmp_path / "packed.dcm")), expected)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    for subsampling, photometric in (("4:4:4", "YBR_FULL"), ("4:2:2", "YBR_FULL_422"), ("4:2:0", "YBR_FULL_422")):
        content = [encoded(frame, "JPEG", quality=95, subsampling=subsampling) for frame in FLAT]
        data = encapsulated(content, uid.JPEGBaseline8Bit, FLAT, PhotometricInterpretation=photometric)
        found = frames_of(save(data, tmp_path / "image.dcm")).astype(int)
        assert np.abs(found - np.stack([decoded(frame) for frame in content])).max() <= 4
        assert np.abs(found[:, 4::8, 4::8] - FLAT[:, 4::8, 4::8]).max() <= 8


def test_a_damaged_jpeg_does_not_end_the_process(tmp_path: Path) -> None:
    """Whatever is wrong in its tables and its scan: GDCM aborts at one of these."""
    whole, rng = encoded(NOISE[0], "JPEG", quality=90), random.Random(0)
    tables, scan = whole.find(b"\xff\xc4"), whole.find(b"\xff\xda")
    files = []
    for number in range(120):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(tables + 4, scan)] = rng.randrange(256)
        for _ in range(6):
            content[rng.randrange(scan + 14, len(content) - 2)] = rng.randrange(255)
        if number > 100:
            options = {"PhotometricInterpretation": "YBR_FULL_422"}
            data = encapsulated([bytes(content)], uid.JPEGBaseline8Bit, NOISE[:1], **options)
            files.append(save(data, tmp_path / f"{number}.dcm"))
    program = """
import sys
from polypseg.errors import PolypsegError
from polypseg.io.dicom import read_dicom
for path in sys.argv[1:]:
    try:
        list(read_dicom(path))
    except PolypsegError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert all(line.startswith(str(tmp_path)) for line in found.stdout.splitlines())


def test_a_jpeg_that_holds_rgb_or_grey_is_read_as_such(tmp_path: Path) -> None:
    content = [encoded(frame, "JPEG", quality=95, keep_rgb=True) for frame in FLAT]
    data = encapsulated(content, uid.JPEGBaseline8Bit, FLAT, PhotometricInterpretation="RGB")
    found = frames_of(save(data, tmp_path / "image.dcm"))
    assert np.abs(found.astype(int) - FLAT).max() <= 4
    content = [encoded(frame[..., 0], "JPEG", quality=95) for frame in FLAT]
    data = encapsulated(content, uid.JPEGBaseline8Bit, FLAT[..., 0])
    found = frames_of(save(data, tmp_path / "image.dcm"))
    assert np.abs(found.astype(int) - grey(FLAT[..., 0])).max() <= 4


def test_lossy_jpeg_2000_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    options = {"no_jp2": True, "irreversible": True, "mct": 1, "quality_layers": [4]}
    content = [encoded(frame, "JPEG2000", **options) for frame in FLAT]
    data = encapsulated(content, uid.JPEG2000, FLAT, PhotometricInterpretation="YBR_ICT")
    found = frames_of(save(data, tmp_path / "image.dcm"))
    assert np.abs(found.astype(int) - np.stack([decoded(frame) for frame in content])).max() <= 1
    assert np.abs(found.astype(int) - FLAT).mean() < 6


# Ten bars of 10 rows each that several programs wrote; the colours are pydicom's documentation of its files.
BARS = np.array(
    [
        (255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255),
        (0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG lossless
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_rle_2frame.dcm", 0),  # its second frame is the first, inverted
        ("SC_rgb_rle_16bit.dcm", 0),
        ("SC_rgb_rle_32bit.dcm", 0),
        ("SC_rgb_jls_lossy_line.dcm", 2),
        ("SC_rgb_jls_lossy_sample.dcm", 2),
        ("SC_rgb_jpeg_dcmtk.dcm", 5),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+n2.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 8),
        ("SC_ybr_full_422_uncompressed.dcm", 5),
    ],
)
def test_files_of_other_programs_show_the_known_bars(name: str, tolerance: int) -> None:
    frames = frames_of(get_testdata_file(name, download=False)).astype(int)
    assert np.abs(frames[0, 5::10, 50] - BARS).max() <= tolerance
    if len(frames) == 2:
        assert np.array_equal(frames[1], 255 - frames[0])


def video(frames: Frames, codec: str = "libx264", form: str = "h264") -> bytes:
    """The frames as a video stream without container, or in an MP4."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


GREYS = np.full((9, 48, 64, 3), 0, np.uint8) + (20 + 25 * np.arange(9, dtype=np.uint8))[:, None, None, None]


def film(content: list[bytes], syntax: str = uid.MPEG4HP41, **elements: Any) -> Dataset:
    elements = {"PhotometricInterpretation": "YBR_PARTIAL_420", **elements}
    return encapsulated(content, syntax, GREYS, sop_class=uid.VideoEndoscopicImageStorage, **elements)


@pytest.mark.parametrize(
    ("syntax", "codec", "form"),
    [
        (uid.MPEG4HP41, "libx264", "h264"),
        (uid.MPEG4HP41, "libx264", "mp4"),
        (uid.MPEG2MPML, "mpeg2video", "mpeg2video"),
        (uid.HEVCMP51, "libx265", "hevc"),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_video_is_read_from_one_or_several_fragments(
    tmp_path: Path, syntax: uid.UID, codec: str, form: str, parts: int
) -> None:
    content = video(GREYS, codec, form)
    pieces = [content] if parts == 1 else [content[:102], content[102:250], content[250:]]
    data = film(pieces, syntax)
    data.PixelData = encapsulate(pieces, has_bot=False)
    path = save(data, tmp_path / "film.dcm")
    found = frames_of(path)
    assert found.shape == GREYS.shape
    assert np.abs(found.astype(int) - GREYS).max() <= 8
    assert read_dicom(path).times == pytest.approx([0.04 * index for index in range(9)])


# ---- lazily, and when -----------------------------------------------------------------------------------


def peak(path: Path) -> int:
    """Bytes allocated at most at a time while all frames are read."""
    frames = read_dicom(path)
    next(iter(frames))  # what the first use loads and keeps
    tracemalloc.start()
    try:
        for _ in frames:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=lambda syntax: syntax.name)
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, syntax: uid.UID) -> None:
    found = []
    for count in (4, 40):
        data = image(np.zeros((count, 100, 100, 3), np.uint8) + RNG.integers(0, 9, (100, 1, 3), dtype=np.uint8))
        if syntax != uid.ExplicitVRLittleEndian:
            data.compress(syntax)
        found.append(peak(save(data, tmp_path / f"{count}.dcm")))
    assert found[1] < found[0] + 100_000  # ten times the frames; one has 30 kB


def test_frames_can_be_asked_for_again_and_the_file_is_closed(tmp_path: Path) -> None:
    frames = read_dicom(save(image(NOISE), tmp_path / "image.dcm"))
    first = next(iter(frames))
    assert np.array_equal(first, NOISE[0])
    assert np.array_equal(np.stack(list(frames)), NOISE)
    assert np.array_equal(np.stack(list(frames)), NOISE)


def test_times_come_from_the_vector_the_frame_time_or_the_rate(tmp_path: Path) -> None:
    def times(**elements: Any) -> tuple[float, ...] | None:
        return read_dicom(save(image(NOISE, **elements), tmp_path / "image.dcm")).times

    assert times() == pytest.approx((0, 0.04, 0.08))
    assert times(FrameTimeVector=[0, 10, 30]) == pytest.approx((0, 0.01, 0.04))
    assert times(FrameTimeVector=[0, 10]) == pytest.approx((0, 0.04, 0.08))  # of another number of frames
    assert times(FrameTime=None, CineRate=50) == pytest.approx((0, 0.02, 0.04))
    assert times(FrameTime=None) is None


# ---- what devices leave out or write otherwise -----------------------------------------------------------


def jpeg(**elements: Any) -> Dataset:
    contents = [encoded(frame, "JPEG", quality=95) for frame in NOISE]
    return encapsulated(contents, uid.JPEGBaseline8Bit, NOISE, PhotometricInterpretation="YBR_FULL_422", **elements)


def of_another_kind(data: Dataset, kind: str, **elements: Any) -> Dataset:
    """Elements with another value representation than the standard's."""
    for keyword, value in elements.items():
        del data[keyword]
        data.add_new(tag_for_keyword(keyword), kind, value)
    return data


def palette_in_low_bytes(bits: int) -> Dataset:
    data = image(NOISE[..., 0], PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        data.add_new(
            f"{colour}PaletteColorLookupTableData", "OW", _palette[:, channel].astype(np.uint16).tobytes()
        )  # fmt: skip
    return data


_deep = _wide[..., 0]
_grey12 = grey(np.rint(_deep * (255 / 4095)).astype(np.uint8))
ODD: dict[str, tuple[Callable[[], Dataset], Frames | None]] = {
    "no PlanarConfiguration": (lambda: image(NOISE, PlanarConfiguration=None), NOISE),
    "an empty PlanarConfiguration": (lambda: of_another_kind(image(NOISE), "US", PlanarConfiguration=None), NOISE),
    "no PlanarConfiguration of a JPEG": (lambda: jpeg(PlanarConfiguration=None), None),
    "no PixelRepresentation": (lambda: image(NOISE, PixelRepresentation=None), NOISE),
    "no PixelRepresentation of a JPEG": (lambda: jpeg(PixelRepresentation=None), None),
    "no SamplesPerPixel": (lambda: image(NOISE, SamplesPerPixel=None), NOISE),
    "an empty BitsStored": (lambda: of_another_kind(image(NOISE), "US", BitsStored=None), NOISE),
    "a colour space in small letters": (lambda: image(NOISE, PhotometricInterpretation="rgb"), NOISE),
    "an empty rescale": (
        lambda: relabelled(image(_deep, BitsStored=12), RescaleSlope=None, RescaleIntercept=None),
        _grey12,
    ),
    "a slope alone": (lambda: relabelled(image(_deep, BitsStored=12), RescaleSlope="2"), _grey12),
    "a window of no width": (lambda: image(_deep, BitsStored=12, WindowWidth=0, WindowCenter=9), _grey12),
    "an empty window": (lambda: relabelled(image(_deep, BitsStored=12), WindowWidth=None, WindowCenter=3), _grey12),
    "no VOI LUT in its sequence": (lambda: image(_deep, BitsStored=12, VOILUTSequence=[]), _grey12),
    "no modality LUT in its sequence": (lambda: image(_deep, BitsStored=12, ModalityLUTSequence=[]), _grey12),
    "a size as text": (lambda: of_another_kind(image(NOISE), "LO", Rows=str(HEIGHT), Columns=str(WIDTH)), NOISE),
    "a size as decimals": (lambda: of_another_kind(image(NOISE), "DS", Rows=HEIGHT, Columns=WIDTH), NOISE),
    "bits as text": (lambda: of_another_kind(image(_deep), "SH", BitsAllocated="16", BitsStored="12"), _grey12),
    "a rescale of another kind": (
        lambda: of_another_kind(
            image(_deep, BitsStored=12, RescaleSlope=1, RescaleIntercept=0), "FD", RescaleSlope=2.0
        ),
        _grey12,
    ),
    "8 bits in the low bytes of a palette of 16": (lambda: palette_in_low_bytes(16), _palette[NOISE[..., 0]]),
    "a palette of 8 bits in 16": (lambda: palette_in_low_bytes(8), _palette[NOISE[..., 0]]),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_is_left_out_has_the_standards_value(tmp_path: Path, what: str) -> None:
    make, expected = ODD[what]
    found = frames_of(save(make(), tmp_path / "image.dcm"))
    wanted = frames_of(save(jpeg(), tmp_path / "whole.dcm")) if expected is None else expected
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("claimed", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_a_file_that_names_the_other_encoding_is_read_as_what_it_is(tmp_path: Path, claimed: uid.UID) -> None:
    path = save(image(NOISE), tmp_path / "image.dcm")
    if claimed == uid.ExplicitVRLittleEndian:
        path = save(with_syntax(image(NOISE), uid.ImplicitVRLittleEndian), path, implicit_vr=True, little_endian=True)
        other = uid.ImplicitVRLittleEndian
    else:
        other = uid.ExplicitVRLittleEndian
    names = [name.encode() + b"\0" * (len(name) % 2) for name in (other, claimed)]
    size = max(map(len, names))
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI") + 6
    length = int.from_bytes(content[at : at + 2], "little")
    renamed = names[1].ljust(length, b"\0")
    assert len(renamed) == length or size > length
    if len(renamed) > length:  # the group's length follows
        whole = int.from_bytes(content[140:144], "little") + len(renamed) - length
        content = content[:140] + whole.to_bytes(4, "little") + content[144:]
    content = content[:at] + len(renamed).to_bytes(2, "little") + renamed + content[at + 2 + length :]
    path.write_bytes(content)
    assert np.array_equal(frames_of(path), NOISE)


# ---- what is refused ------------------------------------------------------------------------------------


def compressed(**elements: Any) -> Dataset:
    data = image(NOISE, **elements)
    data.compress(uid.RLELossless, generate_instance_uid=False)
    return data


def relabelled(data: Dataset, **elements: Any) -> Dataset:
    """Say something else of pixels that stay as they are."""
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def with_syntax(data: Dataset, syntax: str) -> Dataset:
    data.file_meta.TransferSyntaxUID = syntax
    return data


REFUSED: dict[str, tuple[Callable[[], Dataset], str]] = {
    "a report": (lambda: image(NOISE, sop_class=uid.ComprehensiveSRStorage, Rows=None, PixelData=None), "no image"),
    "a segmentation": (lambda: image(NOISE, sop_class=uid.SegmentationStorage), "no image"),
    "a dose": (lambda: image(NOISE, sop_class=uid.RTDoseStorage), "no image"),
    "a DICOMDIR": (lambda: image(NOISE, sop_class=uid.MediaStorageDirectoryStorage), "DICOMDIR"),
    "no pixels": (lambda: image(NOISE, PixelData=None), "no pixel data"),
    "empty pixels": (lambda: image(NOISE, PixelData=b""), "no pixel data"),
    "no columns": (lambda: image(NOISE, Columns=None), "no valid Columns"),
    "no rows": (lambda: image(NOISE, Rows=0), "no valid Rows"),
    "no frames": (lambda: image(NOISE, NumberOfFrames=0), "no valid NumberOfFrames"),
    "fewer frames": (lambda: image(NOISE, NumberOfFrames=4), "contains 3 frames, but its header says 4"),
    "more frames": (lambda: image(NOISE, NumberOfFrames=2), "contains 3 frames, but its header says 2"),
    "an uncounted video": (lambda: image(NOISE, NumberOfFrames=None), "contains 3 frames, but its header says 1"),
    "fewer compressed frames": (lambda: relabelled(compressed(), NumberOfFrames=4), "4"),
    "more compressed frames": (lambda: relabelled(compressed(), NumberOfFrames=2), "contains more than 2 frames"),
    "another compressed size": (lambda: relabelled(compressed(), Rows=33), "frame 1 of 3 cannot be decoded"),
    "a video of fewer frames": (lambda: film([video(GREYS)], NumberOfFrames=12), "contains 9 frames"),
    "a video of more frames": (lambda: film([video(GREYS)], NumberOfFrames=5), "contains more than 5 frames"),
    "a video of another size": (lambda: film([video(GREYS)], Rows=32), "48×64"),
    "a video that is none": (lambda: film([bytes(1000)]), "frame 1 of 9 cannot be decoded"),
    "too large": (lambda: image(NOISE, Rows=60000, Columns=60000), "larger than"),
    "CMYK": (lambda: image(NOISE, PhotometricInterpretation="CMYK"), "no defined 8-bit meaning"),
    "a wavelet's colours in no JPEG 2000": (
        lambda: image(NOISE, PhotometricInterpretation="YBR_RCT"),
        "no defined 8-bit meaning",
    ),
    "three samples of grey": (lambda: image(NOISE, PhotometricInterpretation="MONOCHROME2"), "no defined 8-bit"),
    "more bits than there are": (lambda: image(NOISE, BitsStored=12), "no defined 8-bit meaning"),
    "colours that are not halved": (
        lambda: image(NOISE[:1], PhotometricInterpretation="YBR_FULL_422"),
        "not subsampled",
    ),
    "a transfer syntax that pydicom does not know": (lambda: with_syntax(compressed(), "1.2.3.4"), "no decoder"),
    "no colour space": (lambda: image(NOISE, PhotometricInterpretation=None), "no PhotometricInterpretation"),
    "a slope of 0": (lambda: image(NOISE[..., 0], RescaleSlope=0, RescaleIntercept=0), "no valid RescaleSlope"),
    "a slope that is no number": (
        lambda: of_another_kind(image(NOISE[..., 0], RescaleSlope=1), "LO", RescaleSlope="steep"),
        "no valid RescaleSlope",
    ),
    "a window LUT without data": (
        lambda: image(NOISE[..., 0], VOILUTSequence=[Dataset()]),
        "window, look-up table or palette in its header cannot be applied",
    ),
    "50 million frames of a JPEG": (lambda: relabelled(jpeg(), NumberOfFrames=50_000_000), "more than 1,000,000"),
    "a hundred thousand frames of a JPEG": (
        lambda: relabelled(jpeg(), NumberOfFrames=100_000),
        "contains at most 3 frames, but its header says 100000",
    ),
    "a million frames of a video": (
        lambda: film([video(GREYS)], NumberOfFrames=1_000_000),
        "but its header says 1000000",
    ),
    "a JPEG of another size": (
        lambda: relabelled(jpeg(), Rows=HEIGHT + 1),
        f"a frame of {HEIGHT}×{WIDTH} pixels, but its header says {HEIGHT + 1}×{WIDTH}",
    ),
    "floating-point pixels": (
        lambda: relabelled(
            image(_deep, PixelData=None, BitsAllocated=32), FloatPixelData=_deep.astype(np.float32).tobytes()
        ),
        "floating-point",
    ),
    "a text in place of a video": (
        lambda: film([b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"] * 9),
        "frame 1 of 9 cannot be decoded",
    ),
    "JPIP": (lambda: with_syntax(compressed(), "1.2.840.10008.1.2.4.94"), "no decoder is known for JPIP"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, what: str) -> None:
    make, words = REFUSED[what]
    path = save(make(), tmp_path / "image.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(PolypsegError) as caught:
        list(read_dicom(path))
    assert words in told(caught.value, path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian])
def test_a_file_cut_anywhere_is_told_in_one_line(tmp_path: Path, syntax: uid.UID) -> None:
    data = compressed() if syntax == uid.RLELossless else with_syntax(image(NOISE), syntax)
    content = save(data, tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    for length in np.linspace(133, len(content) - 12, 40, dtype=int):
        path.write_bytes(content[:length])
        with pytest.raises(PolypsegError) as caught:
            list(read_dicom(path))
        told(caught.value, path)


def test_a_missing_extra_is_told_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(image(NOISE), tmp_path / "image.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(PolypsegError) as caught:
        read_dicom(path)
    assert "pip install 'polypseg[dicom]'" in told(caught.value, path)


def test_a_missing_decoder_is_told_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    path = save(compressed(), tmp_path / "image.dcm")
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(PolypsegError) as caught:
        read_dicom(path)
    text = told(caught.value, path)
    assert "RLE Lossless" in text and "pip install 'polypseg[dicom]'" in text


# ---- segmentations --------------------------------------------------------------------------------------

MADE_BY = MadeBy("phantom-model", "c0ffee" * 10 + "beef", 0.4, 0.9, "openvino", "fp32")
PHANTOMS, MASKS = (np.stack(part) for part in zip(*(draw(seed, 45, 61, polyps=2) for seed in range(4)), strict=True))


def endoscopy(count: int, **elements: Any) -> Dataset:
    kind = uid.VLEndoscopicImageStorage if count == 1 else uid.VideoEndoscopicImageStorage
    return image(PHANTOMS[:count], sop_class=kind, **elements)


def secondary_capture(count: int, **elements: Any) -> Dataset:
    kinds = uid.SecondaryCaptureImageStorage, uid.MultiFrameTrueColorSecondaryCaptureImageStorage
    return image(PHANTOMS[:count], sop_class=kinds[count > 1], **elements)


SOURCES: dict[str, tuple[Dataset, NDArray[np.bool_]]] = {
    "VL endoscopic, one frame": (endoscopy(1), MASKS[:1]),
    "video endoscopic, four frames": (endoscopy(4), MASKS),
    "video endoscopic, some frames without a polyp": (
        endoscopy(4),
        MASKS * np.array([0, 1, 0, 1], bool)[:, None, None],
    ),
    "video endoscopic, no polyp": (endoscopy(4), MASKS * False),
    "VL endoscopic, no polyp": (endoscopy(1), MASKS[:1] * False),
    "secondary capture": (secondary_capture(1), MASKS[:1]),
    "secondary capture, four frames": (secondary_capture(4), MASKS),
}


@pytest.fixture(params=SOURCES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Dataset, NDArray[np.bool_], Path]:
    """A source, its masks and the file of its segmentation."""
    data, masks = SOURCES[request.param]
    source = save(data, tmp_path / "source.dcm")
    out = tmp_path / "out" / "source.seg.dcm"
    before = source.read_bytes()
    write_segmentation(source, iter(masks), MADE_BY, out)
    assert source.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    return data, masks, out


def test_a_segmentation_gives_the_very_masks_back(written: tuple[Dataset, NDArray[np.bool_], Path]) -> None:
    """Read by highdicom, which knows nothing of how it was written."""
    data, masks, out = written
    found = highdicom.seg.segread(out)
    if len(masks) == 1:
        pixels = found.get_pixels_by_source_instance([data.SOPInstanceUID])
    else:
        pixels = found.get_pixels_by_source_frame(
            data.SOPInstanceUID, range(1, len(masks) + 1), assert_missing_frames_are_empty=True
        )
    assert np.array_equal(pixels[..., 0].astype(bool), masks)


def test_a_segmentation_holds_the_frames_with_a_polyp(written: tuple[Dataset, NDArray[np.bool_], Path]) -> None:
    _, masks, out = written
    shown = [mask for mask in masks if mask.any()] or [masks[0]]
    pixels = dcmread(out).pixel_array.astype(bool)
    assert np.array_equal(pixels.reshape(-1, *masks.shape[1:]), np.stack(shown))


def test_a_segmentation_refers_to_its_source_and_keeps_patient_and_study(
    written: tuple[Dataset, NDArray[np.bool_], Path],
) -> None:
    data, masks, out = written
    found = dcmread(out)
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
        "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    ):  # fmt: skip
        assert found[keyword].value == data[keyword].value
    assert found.SeriesInstanceUID != data.SeriesInstanceUID and found.SOPInstanceUID != data.SOPInstanceUID
    (series,) = found.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == data.SeriesInstanceUID
    (instance,) = series.ReferencedInstanceSequence
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (
        data.SOPClassUID,
        data.SOPInstanceUID,
    )
    referred = [
        frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in found.PerFrameFunctionalGroupsSequence
    ]
    assert {item.ReferencedSOPInstanceUID for item in referred} == {data.SOPInstanceUID}
    if len(masks) > 1:
        numbers = [index + 1 for index, mask in enumerate(masks) if mask.any()] or [1]
        assert [item.ReferencedFrameNumber for item in referred] == numbers
    else:
        assert "ReferencedFrameNumber" not in referred[0]


def test_a_segmentation_says_what_it_shows_and_what_made_it(written: tuple[Dataset, NDArray[np.bool_], Path]) -> None:
    from polypseg import __version__

    _, masks, out = written
    found = dcmread(out)
    assert (found.Modality, found.SegmentationType) == ("SEG", "BINARY")
    assert "research use only" in found.SeriesDescription
    count = int(masks.any(axis=(1, 2)).sum())
    assert found.ContentDescription.startswith(f"Polyps in {count} of {len(masks)} frames")
    assert (found.Manufacturer, found.SoftwareVersions) == ("polypseg", __version__)
    assert (found.ManufacturerModelName, found.DeviceSerialNumber) == (MADE_BY.name, MADE_BY.hash)
    (segment,) = found.SegmentSequence
    (category,), (kind,) = segment.SegmentedPropertyCategoryCodeSequence, segment.SegmentedPropertyTypeCodeSequence
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("41329004", "SCT", "Polyp")
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("polypseg", __version__)
    for part in (
        "model=phantom-model",
        f"hash={MADE_BY.hash}",
        "threshold=0.4",
        "min_confidence=0.9",
        "openvino",
        "fp32",
    ):
        assert part in algorithm.AlgorithmParameters


def test_polypseg_does_not_take_its_segmentation_for_an_image(
    written: tuple[Dataset, NDArray[np.bool_], Path],
) -> None:
    with pytest.raises(PolypsegError, match=r"no image \(Segmentation Storage\)"):
        read_dicom(written[2])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_the_validator_has_nothing_to_say(written: tuple[Dataset, NDArray[np.bool_], Path]) -> None:
    _, _, out = written
    source = out.parents[1] / "source.dcm"  # so that the sources are what devices write
    told = [
        subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr.split("\n", 1)
        for path in (source, out)
    ]
    assert told[1] == ["Segmentation", ""]
    assert told[0][1] == ""
    # patient and study of both agree
    pair = subprocess.run(["dcentvfy", str(source), str(out)], capture_output=True, text=True)
    assert (pair.returncode, pair.stdout + pair.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("count", [1, 4])
def test_a_segmentation_can_be_placed_in_a_plane_for_viewers_that_ask_for_one(tmp_path: Path, count: int) -> None:
    source, out = save(endoscopy(count), tmp_path / "source.dcm"), tmp_path / "source.seg.dcm"
    write_segmentation(source, MASKS[:count], MADE_BY, out, uid.generate_uid(), plane=True)
    assert subprocess.run(["dciodvfy", str(out)], capture_output=True, text=True).stderr == "Segmentation\n"
    found = dcmread(out)
    (shared,) = found.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [1, 1] and found.FrameOfReferenceUID
    assert "SourceImageSequence" not in found and "DerivationImageSequence" in found.PerFrameFunctionalGroupsSequence[0]
    assert all(
        frame.PlanePositionSequence[0].ImagePositionPatient == [0, 0, 0]
        for frame in found.PerFrameFunctionalGroupsSequence
    )


def test_a_segmentation_has_the_frame_of_reference_and_the_region_of_its_source(tmp_path: Path) -> None:
    frame = uid.generate_uid()
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "", "SCT", "Colon"  # of no use
    data = endoscopy(1, FrameOfReferenceUID=frame, PositionReferenceIndicator="")
    write_segmentation(save(data, tmp_path / "a.dcm"), MASKS[:1], MADE_BY, tmp_path / "a.seg.dcm")
    found = dcmread(tmp_path / "a.seg.dcm")
    assert found.FrameOfReferenceUID == frame
    assert found.SegmentSequence[0].AnatomicRegionSequence[0].CodeValue == "71854001"
    data = endoscopy(1, AnatomicRegionSequence=[region])
    write_segmentation(save(data, tmp_path / "b.dcm"), MASKS[:1], MADE_BY, tmp_path / "b.seg.dcm")
    found = dcmread(tmp_path / "b.seg.dcm")
    assert "FrameOfReferenceUID" not in found and "AnatomicRegionSequence" not in found.SegmentSequence[0]


def test_a_long_videos_masks_are_kept_in_a_file_and_come_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(endoscopy(4), tmp_path / "source.dcm")
    monkeypatch.setattr("polypseg.io.dicom_seg._IN_MEMORY", 100)  # bytes
    write_segmentation(source, MASKS, MADE_BY, tmp_path / "out.dcm", "1.2.3")
    found = dcmread(tmp_path / "out.dcm")
    assert found.SOPInstanceUID == "1.2.3" and np.array_equal(found.pixel_array.astype(bool), MASKS)


def test_segmentations_of_one_series_and_model_stand_in_one_series(tmp_path: Path) -> None:
    series = uid.generate_uid()
    other = replace(MADE_BY, name="other", hash="1" * 64)

    def write(name: str, made_by: MadeBy) -> Dataset:
        source = save(endoscopy(1, SeriesInstanceUID=series), tmp_path / name)
        write_segmentation(source, MASKS[:1], made_by, tmp_path / f"{name}.seg.dcm")
        return dcmread(tmp_path / f"{name}.seg.dcm")

    one, two, three = write("one", MADE_BY), write("two", MADE_BY), write("three", other)
    assert one.SeriesInstanceUID == two.SeriesInstanceUID != three.SeriesInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID


def test_an_ensemble_is_named_by_all_its_hashes_and_its_device_by_the_first(tmp_path: Path) -> None:
    source = save(endoscopy(1), tmp_path / "source.dcm")
    both = replace(MADE_BY, hash=f"{'1' * 64}+{'2' * 64}")
    write_segmentation(source, MASKS[:1], both, tmp_path / "out.dcm")
    found = dcmread(tmp_path / "out.dcm")
    (algorithm,) = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert found.DeviceSerialNumber == "1" * 64 and f"hash={both.hash}" in algorithm.AlgorithmParameters


def test_an_anonymised_source_without_patient_gets_a_segmentation(tmp_path: Path) -> None:
    dropped = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "InstanceNumber", "LossyImageCompression", "Manufacturer",
    )  # fmt: skip
    source = save(endoscopy(1, **dict.fromkeys(dropped)), tmp_path / "source.dcm")
    out = tmp_path / "source.seg.dcm"
    write_segmentation(source, MASKS[:1], MADE_BY, out)
    found = highdicom.seg.segread(out)
    assert not found.PatientID and not found.PatientName and not found.StudyDate
    assert np.array_equal(found.pixel_array.astype(bool), MASKS[0])


def test_odd_patient_values_are_carried_over_as_they_are(tmp_path: Path) -> None:
    odd = {"PatientBirthDate": "1901-2-3", "PatientSex": "MALE", "PatientID": "4711" * 20, "StudyTime": "noon"}
    source = save(relabelled(endoscopy(1), **odd, SpecificCharacterSet="ISO_IR 192"), tmp_path / "source.dcm")
    name = relabelled(dcmread(source), PatientName="Größe^Ärger")
    save(name, source)
    write_segmentation(source, MASKS[:1], MADE_BY, tmp_path / "out.dcm")
    found = dcmread(tmp_path / "out.dcm")
    assert {keyword: found.get_item(keyword).value.decode().strip() for keyword in odd} == odd
    assert str(found.PatientName) == "Größe^Ärger"


@pytest.mark.parametrize("missing", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_that_cannot_be_referred_to_is_told(tmp_path: Path, missing: str) -> None:
    data = endoscopy(1)
    data[missing].value = ""
    source = tmp_path / "source.dcm"
    source.write_bytes(elements_alone(data))
    with pytest.raises(PolypsegError) as caught:
        write_segmentation(source, MASKS[:1], MADE_BY, tmp_path / "out.dcm")
    assert f"is missing {missing}" in told(caught.value, source)
    assert not (tmp_path / "out.dcm").exists()


def test_a_source_of_a_private_kind_gets_a_segmentation(tmp_path: Path) -> None:
    source = save(image(PHANTOMS[:1], sop_class="1.2.3.4.5"), tmp_path / "source.dcm")
    assert len(read_dicom(source)) == 1
    write_segmentation(source, MASKS[:1], MADE_BY, tmp_path / "out.dcm")
    found = dcmread(tmp_path / "out.dcm")
    assert found.SourceImageSequence[0].ReferencedSOPClassUID == "1.2.3.4.5"
    assert (str(found.PatientName), found.StudyID) == (NAME, "7")


def test_wrong_masks_are_a_bug_and_write_nothing(tmp_path: Path) -> None:
    source = save(endoscopy(4), tmp_path / "source.dcm")
    for masks in (MASKS[:3], np.concatenate([MASKS, MASKS]), MASKS[:, :40], MASKS.astype(np.uint8)):
        with pytest.raises(ValueError, match="mask"):
            write_segmentation(source, masks, MADE_BY, tmp_path / "out.dcm")
    assert not (tmp_path / "out.dcm").exists()


def test_masks_can_come_from_the_frames_as_they_are_read(tmp_path: Path) -> None:
    """As predict does it: reading goes on while the segmentation is being made."""
    source = save(endoscopy(4), tmp_path / "source.dcm")
    write_segmentation(source, (frame[..., 0] > 128 for frame in read_dicom(source)), MADE_BY, tmp_path / "out.dcm")
    found = dcmread(tmp_path / "out.dcm").pixel_array.astype(bool)
    assert np.array_equal(found, PHANTOMS[..., 0] > 128)


# ---- patient data ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def overheard(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Gives all that is logged, at any level, and warned."""
    for name in (None, "pydicom", "highdicom"):
        caplog.set_level(logging.DEBUG, logger=name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: "\n".join([caplog.text, *(str(warning.message) for warning in caught)])


def raw(kind: str) -> Callable[[int], RawDataElement]:
    """An element of this kind that contains the name, which pydicom would refuse to set."""
    return lambda tag: RawDataElement(Tag(tag), kind, len(NAME), NAME.encode(), 0, False, True)


LEAKY: dict[str, dict[str, Any]] = {
    "sound": {},
    "a date that is none": {"PatientBirthDate": f"{BIRTH}9", "StudyDate": "yesterday"},
    "a name with too many parts": {"PatientName": "^".join([NAME] * 5)},
    "a name that is too long": {"PatientName": NAME * 9},
    "an identifier that is too long": {"PatientID": NUMBER * 9},
    "a name where a code belongs": {"PatientSex": NAME, "Modality": NAME},
    "a name where a number belongs": {"SeriesDescription": NAME * 9, "PatientAge": NAME},
    "a name where an identifier belongs": {"StudyInstanceUID": NAME},
    "a name in the place of a number": {"InstanceNumber": raw("IS"), "FrameTime": raw("DS"), "CineRate": raw("IS")},
    "a name in the place of the number of frames": {"NumberOfFrames": raw("IS")},
    "a name where the pixels are described": {"PhotometricInterpretation": NAME},
}


def leaky(path: Path, what: str) -> Path:
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        data = endoscopy(4)
        for keyword, value in LEAKY[what].items():
            if callable(value):
                data[keyword] = value(tag_for_keyword(keyword))
            else:
                setattr(data, keyword, value)
        return save(data, path)


@pytest.mark.parametrize("what", LEAKY)
def test_no_word_about_the_patient_gets_out(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source = leaky(tmp_path / "source.dcm", what)
    content = source.read_bytes()
    caplog.clear()
    with overheard(caplog) as said:
        for length in (len(content), len(content) - 2000, 1200, 900, 700):
            source.write_bytes(content[:length])
            try:
                shown = repr(read_dicom(source))
                masks = (frame[..., 0] > 99 for frame in read_dicom(source))
                write_segmentation(source, masks, MADE_BY, tmp_path / "out.dcm")
            except PolypsegError as error:
                told(error, source)
            else:
                assert not any(secret in shown for secret in SECRETS)
        printed = capfd.readouterr()
        heard = said() + printed.out + printed.err
    assert not any(secret in heard for secret in SECRETS)


def test_pydicom_alone_would_say_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So the test above can fail."""
    source = leaky(tmp_path / "source.dcm", "a name where an identifier belongs")
    with overheard(caplog) as said:
        _ = dcmread(source).StudyInstanceUID
        assert NAME in said()
