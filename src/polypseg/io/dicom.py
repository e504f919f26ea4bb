"""DICOM in: the frames of an image as 8-bit RGB.

Needs the extra: ``pip install 'polypseg[dicom]'``. Nothing about a patient leaves this module: no message, warning or
log line quotes the header, save what describes its pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.io.depth import bits_by_value, warn
from polypseg.io.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

INSTALL = "pip install 'polypseg[dicom]'"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_NO_PICTURES = (  # SOP classes with pixels that are not to be segmented
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
)
MAX_FRAMES = 1_000_000  # of one file: nine hours at 30 a second
MAX_INFLATED = 2**30  # bytes of a deflated file
MAX_SCANS = 100  # of a progressive JPEG: each decodes the whole picture once more
# FFmpeg's names: the containers that the standard puts a video into, and the codings that may lie in them.
_CONTAINERS = {b"\0\0\1\xba": "mpeg", b"\0\0\1\xb3": "mpegvideo"}
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")  # with which an MP4 begins, after a length
_CODINGS = ("mpeg1video", "mpeg2video", "h264", "hevc")
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")
_UNDEFINED = 0xFFFFFFFF  # the length that compressed pixel data give; their fragments have their own
_LOCK = threading.Lock()


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM, by its first 132 bytes; needs no pydicom.

    Most files have ``DICM`` behind a preamble of 128 bytes. Old ones without it count too if they begin with a data
    element of group 0002 or 0008, little endian. False for what is missing, unreadable or a folder.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or struct.unpack("<I", start[4:8])[0] <= 64  # what comes first is short: a length, a UID, a date


@dataclass(frozen=True)
class DicomFrames:
    """The frames of one DICOM image: ``len`` counts them, iterating gives each as H×W×3 uint8 RGB, in order.

    Frames are decoded one at a time as they are asked for, so that memory does not grow with their number (a
    deflated file is the exception: it is inflated as a whole). Each iteration starts anew.

    How every pixel becomes 8-bit RGB:

    * RGB, YBR_FULL, YBR_FULL_422, YBR_ICT, YBR_RCT, in either planar configuration, and PALETTE COLOR: other than
      8 bits are scaled linearly from the full range of the bits stored. Where those are all that are allocated, and a
      single frame stays below 1/16 of 16 bits, its bits are 8 or 12, as elsewhere (``polypseg.io.depth``).
    * MONOCHROME2: the modality LUT or rescale, then the first VOI LUT, else the first window (LINEAR, LINEAR_EXACT,
      SIGMOID), give 0..255; without LUT and window the full range of the bits stored does. MONOCHROME1 is inverted
      after that. The three channels are equal.
    * Video: as its codec says. ICC profiles, overlays and presentation states are not applied.

    Iterating raises ``PolypsegError`` at the first frame that cannot be decoded, and where there are fewer or more
    frames than the header says.

    Attributes:
        path: the file.
        height: rows, pixels.
        width: columns, pixels.
        times: of each frame, seconds after the first, by FrameTimeVector, FrameTime or CineRate; None without them.
    """

    path: Path
    height: int
    width: int
    times: tuple[float, ...] | None
    _count: int = field(repr=False)
    _syntax: UID = field(repr=False)
    _start: int = field(repr=False)  # of the pixel data's value in the file, bytes
    _header: Dataset = field(repr=False)  # group 0028 alone, mended: it says nothing about the patient

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        frames = self._decode_video() if _is_video(self._syntax) else self._decode_images()
        for number in range(1, self._count + 2):
            with quiet(self.path, f"frame {number} of {self._count} cannot be decoded: the file is cut or damaged"):
                frame = next(frames, None)
            if (frame is None) != (number > self._count):
                held = number - 1 if frame is None else f"more than {self._count}"
                raise _wrong_count(self.path, held, self._count)
            if frame is None:
                return
            if frame.shape[:2] != (self.height, self.width):
                size = "×".join(str(length) for length in frame.shape[:2])
                claim = f"{self.height}×{self.width}"
                raise PolypsegError(f"{self.path}: frame {number} has {size} pixels, but its header says {claim}")
            yield frame

    def _decode_images(self) -> Iterator[NDArray[np.uint8]]:
        from pydicom import dcmread
        from pydicom.pixels import iter_pixels

        source = dcmread(self.path) if self._syntax.is_deflated else self.path
        options = {option: self._header.get(keyword) for option, keyword in _PIXEL_OPTIONS.items()}
        options["number_of_frames"] = self._count
        if not self._syntax.is_deflated:
            options["transfer_syntax_uid"] = self._syntax
        if self._header.HighBit >= self._header.BitsStored:  # else pydicom cuts off what _bits_in_use looks for
            options["correct_unused_bits"] = False
        if plugin := _plugin(self._syntax, self._header.BitsAllocated):
            options["decoding_plugin"] = plugin
        if self._syntax.is_encapsulated:
            decoded = iter_pixels(source, **options)
        else:
            # Each frame by a call of its own: pydicom 3.0 forgets after the first that YBR_FULL_422 is subsampled.
            decoded = (
                frame for index in range(self._count) for frame in iter_pixels(source, indices=[index], **options)
            )
        for stored in decoded:
            bits = self._bits_in_use(stored)
            try:
                frame = _to_rgb(stored, self._header, bits)
            except Exception:  # noqa: BLE001  (pydicom and NumPy raise whatever they meet)
                raise PolypsegError(
                    f"{self.path}: the rescale, window, look-up table or palette in its header cannot be applied; "
                    "export the image again"
                ) from None
            yield frame

    def _bits_in_use(self, stored: NDArray[Any]) -> int:
        """Of a frame's samples; fewer than the header says only where it names all that there are and no window.

        That is doubtful, and said in a warning. Frames of a film keep one brightness.

        Raises:
            PolypsegError: the header says that they are not the lowest bits, and higher ones are in use.
        """
        header, bits, greatest = self._header, int(self._header.BitsStored), int(stored.max(initial=0))
        if header.HighBit >= bits and greatest >= 1 << bits:
            raise PolypsegError(
                f"{self.path}: its samples' {bits} bits are not the lowest ones (HighBit {header.HighBit}), as today's "
                "standard wants them; export the image again"
            )
        told = ("RescaleSlope", "WindowWidth", "ModalityLUTSequence", "VOILUTSequence")
        if bits < header.BitsAllocated or bits <= 8 or header.PixelRepresentation or any(one in header for one in told):
            return bits
        used = bits_by_value(greatest)
        if header.PhotometricInterpretation == "PALETTE COLOR" or not 0 < greatest < 1 << 12:
            return bits
        read = bits if self._count > 1 else used
        warn(self.path, f"contains values up to {greatest} of {(1 << bits) - 1} and is read as {read} bits")
        return read

    def _decode_video(self) -> Iterator[NDArray[np.uint8]]:
        import av

        with self.path.open("rb") as file:
            file.seek(self._start)
            joined: Any = _Joined(file, _fragments(file))
            head = joined.read(400)
            joined.seek(0)
            # By name: FFmpeg left to itself would take a text for a list of addresses, and open them.
            with av.open(
                joined, mode="r", format=_container(head, self._syntax), options={"protocol_whitelist": "none"}
            ) as container:
                if container.streams.video[0].codec_context.name not in _CODINGS:
                    raise ValueError("is coded otherwise than DICOM has it")
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def read_dicom(path: str | Path) -> DicomFrames:
    """Open a DICOM image; its frames are decoded as they are asked for.

    Args:
        path: a single- or multi-frame image, uncompressed or compressed (JPEG, JPEG-LS, JPEG 2000, RLE, deflated,
            MPEG-2, H.264, H.265).

    Raises:
        PolypsegError: it is no DICOM image, is cut, has pixels without a defined 8-bit meaning, or needs the extra
            or a decoder that is not installed.
    """
    path = Path(path)
    with quiet(path, "its header is damaged; copy the file again"):
        header = read_header(path)
        syntax = _transfer_syntax(header)
        count, height, width = (positive(path, header, name) for name in ("NumberOfFrames", "Rows", "Columns"))
        if height * width > MAX_PIXELS:
            raise PolypsegError(f"{path}: is larger than {MAX_PIXELS:,} pixels and was not decoded")
        if count > MAX_FRAMES:
            raise PolypsegError(
                f"{path}: its header says {count:,} frames, more than {MAX_FRAMES:,}; cut it into parts"
            )
        pixels = _mended(path, header)
        if not _is_video(syntax):
            _check_meaning(path, pixels, syntax)
        start, syntax = _find_pixels(path, pixels, syntax, count)
        times = _times(header, count)
        return DicomFrames(path, height, width, times, count, syntax, start, pixels)


@contextlib.contextmanager
def quiet(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever pydicom, highdicom or a decoder raises into one line, and silence what they warn and log.

    Their words quote values of the header, a patient's name too, so none of them is passed on: hence ``from None``.
    One thread at a time, as warnings and loggers belong to the whole process.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        except PolypsegError:
            raise
        except ImportError:
            raise PolypsegError(f"{path}: is DICOM, which needs more packages: {INSTALL}") from None
        except Exception:  # noqa: BLE001  (decoders raise whatever they meet)
            raise PolypsegError(f"{path}: {problem}") from None
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_header(path: Path) -> Dataset:
    """All elements before the pixel data of what is an image."""
    if not path.is_file():
        raise PolypsegError(f"{path}: there is no such file")
    if not is_dicom(path):
        raise PolypsegError(f"{path}: is no DICOM file, or cannot be read")
    from pydicom import dcmread, uid

    _check_inflated(path)
    header = dcmread(path, stop_before_pixels=True, force=True)
    kind = uid.UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == uid.MediaStorageDirectoryStorage:
        raise PolypsegError(f"{path}: is a DICOMDIR, a list of files; name the images themselves")
    if kind in _NO_PICTURES or "Rows" not in header:
        name = kind.name if kind.type == "SOP Class" else "of an unknown kind"
        raise PolypsegError(f"{path}: contains no image ({name}); leave it out")
    return header


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that becomes too large: it is inflated as a whole, by a factor of up to 1000."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    with path.open("rb") as file:
        read_preamble(file, force=True)
        syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
        if syntax not in _DEFLATED:
            return
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (piece := inflate.unconsumed_tail or file.read(1 << 16)) and not inflate.eof:
            size += len(inflate.decompress(piece, 1 << 20))
            if size > MAX_INFLATED:
                raise PolypsegError(
                    f"{path}: is larger than {MAX_INFLATED >> 20} MiB when it is inflated; store it plain"
                )


def _transfer_syntax(header: Dataset) -> UID:
    """How the file is encoded; one that does not say so is uncompressed, and encoded as its elements were read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    named: UID | None = header.file_meta.get("TransferSyntaxUID")
    if named:
        return named
    implicit, little = header.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _is_video(syntax: UID) -> bool:
    from pydicom.uid import MPEGTransferSyntaxes

    return syntax in MPEGTransferSyntaxes


def positive(path: Path, header: Dataset, keyword: str) -> int:
    """A whole number above 0; an image without NumberOfFrames has one frame."""
    if keyword == "NumberOfFrames" and keyword not in header:
        return 1
    try:
        value = int(header[keyword].value)
    except Exception:  # noqa: BLE001  (absent, empty, several or no number)
        value = 0
    if value < 1:
        raise PolypsegError(f"{path}: its header has no valid {keyword}; export the image again")
    return value


# What pydicom calls the elements that describe pixels.
_PIXEL_OPTIONS = {
    "rows": "Rows", "columns": "Columns", "samples_per_pixel": "SamplesPerPixel", "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored", "pixel_representation": "PixelRepresentation",
    "planar_configuration": "PlanarConfiguration", "photometric_interpretation": "PhotometricInterpretation",
}  # fmt: skip


def _mended(path: Path, header: Dataset) -> Dataset:
    """Group 0028 as whole numbers of the right kind, with the values that the standard has where one is missing.

    Raises:
        PolypsegError: what cannot be guessed is missing or is no number; it is named.
    """
    pixels = header.group_dataset(0x0028)
    photometric = str(header.get("PhotometricInterpretation") or "").strip().upper()
    values = {name: positive(path, header, name) for name in ("Rows", "Columns", "BitsAllocated")}
    for name, default in (
        ("SamplesPerPixel", 3 if photometric in _COLOURS else 1),
        ("BitsStored", values["BitsAllocated"]),
    ):
        values[name] = positive(path, header, name) if _is_there(header, name) else default
    for name in ("PixelRepresentation", "PlanarConfiguration"):
        values[name] = int(_number(path, header, name) or 0)
    highest = _number(path, header, "HighBit")
    inside = highest is not None and values["BitsStored"] <= highest < values["BitsAllocated"]
    values["HighBit"] = int(highest or 0) if inside else values["BitsStored"] - 1
    for name, value in values.items():
        put(pixels, name, value)
    put(pixels, "PhotometricInterpretation", photometric)
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        if name in pixels and not _is_there(pixels, name):
            del pixels[name]
    if "RescaleSlope" in pixels or "RescaleIntercept" in pixels:
        slope, intercept = (_number(path, header, name) for name in ("RescaleSlope", "RescaleIntercept"))
        if slope == 0:
            raise PolypsegError(f"{path}: its header has no valid RescaleSlope; export the image again")
        put(pixels, "RescaleSlope", 1.0 if slope is None else slope)
        put(pixels, "RescaleIntercept", 0.0 if intercept is None else intercept)
    window = [_number(path, header, name) for name in ("WindowCenter", "WindowWidth")]
    function = str(header.get("VOILUTFunction") or "LINEAR").strip()
    narrowest = 1.0 if function == "LINEAR" else 1e-9
    usable = None not in window and window[1] >= narrowest  # type: ignore[operator]
    for name, found in zip(("WindowCenter", "WindowWidth"), window, strict=True):
        if name in pixels:
            del pixels[name]
        if usable:  # one that is too narrow counts as none, as an empty one does
            put(pixels, name, found)
    return pixels


def _is_there(header: Dataset, keyword: str) -> bool:
    """Whether an element is there, and not empty."""
    return keyword in header and not header[keyword].is_empty


def _number(path: Path, header: Dataset, keyword: str) -> float | None:
    """An element's first value; None where it is missing or empty."""
    if not _is_there(header, keyword):
        return None
    try:
        value = float(np.ravel(header[keyword].value)[0])
    except Exception:  # noqa: BLE001  (no number, or what pydicom cannot read)
        value = math.nan
    if not math.isfinite(value):
        raise PolypsegError(f"{path}: its header has no valid {keyword}; export the image again")
    return value


def put(dataset: Dataset, keyword: str, value: Any) -> None:
    """Set an element in the kind that the standard has for it, whatever the file had."""
    if keyword in dataset:
        del dataset[keyword]
    setattr(dataset, keyword, value)


def _plugin(syntax: UID, bits: int) -> str | None:
    """Which of pydicom's decoders is to be used; None leaves it to pydicom, which begins with GDCM.

    That ends the whole process at some damaged pictures, and fails at signed JPEG-LS. JPEG lossless has no other.
    """
    from pydicom import uid
    from pydicom.pixels import get_decoder

    wanted = None
    if syntax in uid.JPEGLSTransferSyntaxes:  # highdicom brings it
        wanted = "pyjpegls"
    elif syntax in uid.JPEG2000TransferSyntaxes:
        wanted = "pylibjpeg"
    elif syntax == uid.JPEGBaseline8Bit or (syntax == uid.JPEGExtended12Bit and bits == 8):
        wanted = "pillow"
    return wanted if wanted is not None and wanted in get_decoder(syntax).available_plugins else None


def _wrong_count(path: Path, held: int | str, claimed: int) -> PolypsegError:
    return PolypsegError(f"{path}: contains {held} frames, but its header says {claimed}; export the image again")


def _check_meaning(path: Path, header: Dataset, syntax: UID) -> None:
    """Refuse pixels that cannot be decoded here or have no defined 8-bit meaning."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        name = syntax.name if syntax.type == "Transfer Syntax" else "an unknown transfer syntax"
        raise PolypsegError(f"{path}: no decoder is known for {name}; export the image uncompressed") from None
    if not decoder.is_available:
        raise PolypsegError(f"{path}: is compressed as {syntax.name}; to read it: {INSTALL}")
    photometric = header.PhotometricInterpretation
    if not photometric:
        raise PolypsegError(f"{path}: its header has no PhotometricInterpretation; export the image again")
    known = photometric in (*_COLOURS, *_GREYS, "PALETTE COLOR")
    if photometric in ("YBR_ICT", "YBR_RCT"):  # the colour transforms of JPEG 2000, undone by its decoder alone
        known = syntax in JPEG2000TransferSyntaxes
    samples, allocated, stored = header.SamplesPerPixel, header.BitsAllocated, header.BitsStored
    if photometric in ("YBR_FULL", "YBR_FULL_422"):  # whose transform pydicom knows for 8 bits
        known = allocated == 8
    if not known or samples != (3 if photometric in _COLOURS else 1) or not stored <= allocated <= 32:
        told = f"{samples} × {stored} of {allocated} bits as {photometric if known else 'another colour space'}"
        raise PolypsegError(f"{path}: its pixels ({told}) have no defined 8-bit meaning; export the image as 8-bit RGB")


def _find_pixels(path: Path, header: Dataset, syntax: UID, count: int) -> tuple[int, UID]:
    """Where the value of the pixel data begins, bytes, and how it is encoded.

    Checks that it is there and as long as so many frames must be. A file that calls its elements implicit though they
    are explicit, or the other way round, is taken for what it is.
    """
    from pydicom import dcmread

    if syntax.is_deflated:
        start, length = 0, len(dcmread(path).get("PixelData") or b"")
        end = length
    else:
        end = path.stat().st_size
        with path.open("rb") as file:
            dcmread(file, stop_before_pixels=True, force=True)  # leaves the file standing at the pixel data
            start, length, explicit = _element(path, file, syntax)
            if not syntax.is_encapsulated:
                syntax = _native(syntax, explicit)
            if length == _UNDEFINED:
                held, length = 0, 0
                for at, size in _fragments(file):
                    held, length = held + 1, at + size - start
                    if at + size <= end and not _is_video(syntax):
                        _check_fragment(path, file, at, size, header)
                    _check_enough(path, held)
                _check_frames(path, syntax, count, held, length)
    if length == 0:
        raise PolypsegError(f"{path}: contains no pixel data; export the image again")
    if start + length > end:
        raise PolypsegError(f"{path}: is cut or damaged: its pixels are not complete; copy the file again")
    if not syntax.is_encapsulated:
        subsampled = header.PhotometricInterpretation == "YBR_FULL_422"
        samples = 2 if subsampled else header.SamplesPerPixel
        frame = header.Rows * header.Columns * samples * header.BitsAllocated  # bits
        if subsampled and 8 * length >= 1.5 * frame * count:
            raise PolypsegError(f"{path}: has pixels that are not subsampled as YBR_FULL_422 says; export it as RGB")
        needed = -(-frame * count // 8)
        if length < needed or (8 * length >= frame * (count + 1) and length > needed + 1):  # a byte may pad
            raise _wrong_count(path, 8 * length // frame, count)
    return start, syntax


def _element(path: Path, file: IO[bytes], syntax: UID) -> tuple[int, int, bool]:
    """The pixel data where a file stands.

    Returns:
        where its value begins; its length, 0 at the file's end; and whether it names its kind (explicit VR).
    """
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8)
    if len(head) < 8:
        return file.tell(), 0, False
    if struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise PolypsegError(
            f"{path}: contains floating-point pixels, which have no defined 8-bit meaning; leave it out"
        )
    # Implicit, these two bytes would be an odd length, which no element has.
    explicit = head[4:6] in (b"OB", b"OW", b"UN", b"OV")
    rest = file.read(4) if explicit else head[4:]
    return file.tell(), struct.unpack(f"{order}I", rest)[0] if len(rest) == 4 else 0, explicit


def _native(syntax: UID, explicit: bool) -> UID:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not explicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if syntax.is_little_endian else ExplicitVRBigEndian


def _fragments(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """(where, length), bytes, of each fragment of the compressed pixel data at which a file stands; no empty ones."""
    item = struct.Struct("<HHI")
    first = True  # the table of offsets
    while len(head := file.read(item.size)) == item.size:
        group, element, length = item.unpack(head)
        if (group, element) != (0xFFFE, 0xE000):
            return
        start = file.tell()
        if length and not first:
            yield start, length
        first = False
        file.seek(start + length)


def _check_enough(path: Path, held: int) -> None:
    if held > 10 * MAX_FRAMES:
        raise PolypsegError(f"{path}: its pixels lie in more than {10 * MAX_FRAMES:,} pieces; export the image again")


def _check_frames(path: Path, syntax: UID, count: int, held: int, length: int) -> None:
    """Refuse a header that says more frames than can be there: a fragment for each, of a video some bytes."""
    if _is_video(syntax):
        if count > length // 4:
            raise _wrong_count(path, f"at most {length // 4}", count)
    elif count > held:
        raise _wrong_count(path, f"at most {held}", count)


def _check_fragment(path: Path, file: IO[bytes], start: int, length: int, header: Dataset) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 picture whose own header says another size than the file's.

    A decoder would take memory for what it says. What begins in another way is the continuation of one, or no picture.
    """
    file.seek(start)
    found, scans = _jpeg_size(file, start + length)
    if found is not None and found != (header.Rows, header.Columns):
        size, claim = "×".join(map(str, found)), f"{header.Rows}×{header.Columns}"
        raise PolypsegError(f"{path}: contains a frame of {size} pixels, but its header says {claim}; export it again")
    if scans > MAX_SCANS:
        raise PolypsegError(f"{path}: contains a frame of {scans} scans, more than {MAX_SCANS}; export it again")


def _jpeg_size(file: IO[bytes], end: int) -> tuple[tuple[int, int] | None, int]:
    """Rows and columns of the picture where a file stands, and of a progressive JPEG the number of its scans."""
    start = file.read(4)
    if start == b"\xff\x4f\xff\x51":  # JPEG 2000: Xsiz, Ysiz, XOsiz, YOsiz
        head = file.read(20)
        right, bottom, left, top = struct.unpack(">4x4I", head) if len(head) == 20 else (0, 0, 0, 0)
        return (bottom - top, right - left), 0
    if start[:2] != b"\xff\xd8":
        return None, 0
    file.seek(-2, io.SEEK_CUR)
    while file.tell() < end and len(head := file.read(4)) == 4:
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if head[0] != 0xFF or marker == 0xDA:
            break
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack(">1x2H", file.read(5).ljust(5, b"\0"))
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            return (rows, columns), file.read(end - file.tell()).count(b"\xff\xda") if progressive else 0
        file.seek(max(0, length - 2), io.SEEK_CUR)
    return None, 0


def _container(head: bytes, syntax: UID) -> str:
    """FFmpeg's name of the container that begins so.

    Raises:
        ValueError: it is none that the standard allows.
    """
    if head[4:8] in _BOXES:
        return "mov"
    if head[:1] == b"\x47" and head[188:189] in (b"\x47", b""):
        return "mpegts"
    if head[:4] in _CONTAINERS:
        return _CONTAINERS[head[:4]]
    if head.startswith((b"\0\0\1", b"\0\0\0\1")):
        return "hevc" if "HEVC" in syntax.name else "mpegvideo" if "MPEG2" in syntax.name else "h264"
    raise ValueError("is no container of DICOM's")


class _Joined(io.RawIOBase):
    """Fragments of a file as one file to read and seek in."""

    def __init__(self, file: IO[bytes], fragments: Iterable[tuple[int, int]]) -> None:
        self._file = file
        self._starts, self._ends = array("Q"), array("Q", [0])  # plain numbers: there may be millions
        for start, length in fragments:
            self._starts.append(start)
            self._ends.append(self._ends[-1] + length)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self._ends, self._position) - 1
        if number >= len(self._starts):
            return 0
        self._file.seek(self._starts[number] + self._position - self._ends[number])
        piece = self._file.read(min(self._ends[number + 1] - self._position, len(buffer)))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _times(header: Dataset, count: int) -> tuple[float, ...] | None:
    """Seconds of each frame after the first; None where the header does not say."""
    vector = header.get("FrameTimeVector")
    if count > 1 and vector is not None and len(vector) == count:  # each from the frame before it, ms
        return tuple(float(time) / 1000 for time in accumulate([0.0, *vector[1:]]))
    if frame_time := header.get("FrameTime"):
        return tuple(index * float(frame_time) / 1000 for index in range(count))
    if rate := header.get("CineRate"):
        return tuple(index / float(rate) for index in range(count))
    return None


def _to_rgb(stored: NDArray[Any], header: Dataset, bits: int) -> NDArray[np.uint8]:
    """H×W or H×W×3 samples of so many bits as pydicom decodes them (YBR is RGB already) to H×W×3 uint8."""
    from pydicom.pixels import apply_color_lut

    if header.PhotometricInterpretation in _GREYS:
        return np.repeat(_to_grey(stored, header, bits)[..., None], 3, axis=2)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, header)[..., :3]
        return _scale(colours, 0, _brightest(header, colours.dtype))
    return _scale(stored, 0, (1 << bits) - 1)


def _brightest(header: Dataset, kind: np.dtype[Any]) -> int:
    """The value of a palette that is full brightness.

    Some devices write entries of 8 bits into the low bytes of 16: then no entry of any colour has more.
    """
    from pydicom.pixels import apply_color_lut

    count, first, bits = header.RedPaletteColorLookupTableDescriptor
    entries = apply_color_lut(np.arange(count or 1 << 16) + first, header)[..., :3]
    return 255 if bits <= 8 or entries.max() <= 255 else int(np.iinfo(kind).max)


def _to_grey(stored: NDArray[Any], header: Dataset, bits: int) -> NDArray[np.uint8]:
    """H×W samples of so many bits to H×W uint8 by the rules of ``DicomFrames``."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    lowest = -(1 << (bits - 1)) if header.PixelRepresentation else 0
    ends = np.array([lowest, lowest + (1 << bits) - 1])
    values = apply_modality_lut(stored, header)
    if header.get("ModalityLUTSequence"):
        low, high = 0.0, float((1 << header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        low, high = sorted(float(end) for end in apply_modality_lut(ends, header))
    if header.get("VOILUTSequence"):
        values = apply_voi(values.astype(np.int64), header)
        low, high = 0.0, float((1 << header.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif "WindowWidth" in header:
        centre, width = float(header.WindowCenter), float(header.WindowWidth)
        function = str(header.get("VOILUTFunction") or "LINEAR").strip()
        if function == "SIGMOID":
            values, low, high = 1 / (1 + np.exp(-4 * (values - centre) / width)), 0.0, 1.0
        elif function == "LINEAR_EXACT":
            low, high = centre - width / 2, centre + width / 2
        else:  # the standard's LINEAR (PS3.3 C.11.2.1.2.1)
            low, high = centre - width / 2, centre + width / 2 - 1
    grey = _scale(values, low, high)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """``low``..``high`` to 0..255, what lies outside to the nearer end."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
