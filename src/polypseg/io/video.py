"""Video files: frames in, upright and with their times; H.264 out, as browsers play it.

**Times.** A frame keeps the time that its file gives it, in the file's own time base, so that a variable frame rate
stays one. Time counts from the first frame, as a player shows it (broadcast streams begin anywhere). A frame without
a time, or with one that does not come after its predecessor's, gets its predecessor's plus one nominal frame.

**Damage.** What can be decoded is read, up to the cut of a truncated file and beyond a damaged spot; afterwards
``VideoReader.problem`` says in one line what was met. Containers with an index say how much they contain. The decoder
is asked too: it runs strictly, so that it hides nothing, up to the first error; from there the video is decoded again
by a decoder that conceals errors, and continues. The structure of transport and program streams and of Matroska files
is walked through: every packet must be there, and whole. What FFmpeg says nothing of is looked for here: long runs of
zeros, and an HEVC stream that ends within a picture. The last picture is decoded twice, with and without bytes behind
its own, which make a difference only where they are taken for its end. A cut exactly between two frames of a container
that does not say how much it contains leaves a shorter whole video.

**Untrusted.** FFmpeg opens what comes from outside in ``open_media`` alone: no playlist, no network, no other file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import av
import av.video.reformatter
import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import INTENDED_USE
from polypseg.errors import PolypsegError
from polypseg.files import disk_error

# FFmpeg's names of what is read. Not those that open other files or sockets (hls, concat, dash, sdp, imf, image2), nor
# text that FFmpeg renders as video (tty), nor devices.
FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "mjpeg", "av1", "obu",
    "ivf", "asf", "flv", "ogg", "mxf", "dv", "nut", "rm", "gif", "yuv4mpegpipe",
)  # fmt: skip
_STEADY, _MOST_GAPS = 25, 2  # frames, and gaps among them, of a stream that is taken for steady
_INDEXED = ("mov", "matroska", "avi")  # formats that say how much they contain
# Codings of which FFmpeg marks pictures that it conceals, which in several threads it loses now and then.
_MARKED = ("h264", "mpeg4")
# More zeros than stand in a row in any picture of HEVC or H.264 (Rec. ITU-T H.265, 7.4.2), or come out of VP8's and
# VP9's arithmetic coding. FFmpeg says nothing of most such pictures.
_HOLE, _SILENT = bytes(32), ("hevc", "h264", "vp8", "vp9")
_LONGEST_GROUP = 600  # packets from a key frame on that are kept, to decode the last one again
# The first that PyAV was built with; its wheels on PyPI have libx264.
_ENCODERS = ("libx264", "libopenh264")
_ENCODER_OPTIONS = {
    # Without lookahead or reordering: a frame that went in is on the disk at once, whatever happens then.
    # Deblocking is the one costly thing of which ultrafast does without that is worth its time.
    # A key frame every 50 lets a player jump about.
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "g": "50", "x264-params": "deblock=0,0"},
    "libopenh264": {},
}


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself, with its frames upright.

    Attributes:
        width, height: of the first frame as it is shown, pixels.
        fps: average frames a second; nominal where the rate varies.
        time_base: seconds a tick of ``Frame.pts``.
        frames: how many the file announces; None where it does not say, and not to be relied on.
        codec: FFmpeg's name of the coding, as ``h264``.
        pixel_aspect: width of a pixel over its height, as shown; 1 for square ones.
    """

    width: int
    height: int
    fps: float
    time_base: Fraction
    frames: int | None = None
    codec: str = ""
    pixel_aspect: Fraction = Fraction(1)


class TooLargeError(PolypsegError):
    """A video's frames have more pixels than are allowed."""


class Frame:
    """One decoded frame.

    Attributes:
        index: from 0.
        pts: presentation time in ticks of the video's time base; 0 for the first frame, always rising.
        time: the same in seconds, rounded to microseconds.
    """

    def __init__(self, index: int, pts: int, time: float, source: av.VideoFrame, reader: VideoReader) -> None:
        self.index, self.pts, self.time = index, pts, time
        self._source: av.VideoFrame | None = source
        self._reader = reader

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB, upright; converted when first asked for, by one thread at a time."""
        assert self._source is not None
        converted = self._reader._upright(self._source)  # noqa: SLF001  (a frame is of its reader)
        self._source = None  # gives the decoder its buffer back
        return converted


class VideoReader:
    """Reads a video's frames in order, once.

    Args:
        path: a file.

    Attributes:
        info: what the file says of itself.
        problem: after the last frame, one line naming the file where it is cut off or damaged; else None.

    Raises:
        PolypsegError: the file is missing, no video, coded in a way that this FFmpeg cannot decode, or contains no
            frame.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problem: str | None = None
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._cut = self._failed = False
        self._damaged: int | None = None  # where damage was met first, in the container's ticks
        self._end = 0  # of what the container had, likewise
        self._sent = self._read_to = 0  # packets to be shown that the decoder got, and where the last one ends
        self._open(strict=True)
        try:
            self._frames = self._decode()
            self._first: Frame | None = next(self._frames, None)
            if self._first is None:
                raise PolypsegError(f"{self.path}: contains no frame that can be decoded; record or copy it again")
            self.info = self._as_shown(self._first)
        except BaseException:
            self.close()
            raise

    def _open(self, strict: bool) -> None:
        """Open the file, at its beginning; ``strict``: the decoder raises where it could conceal an error."""
        self._strict = strict
        self._container = _open(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
            self._stream.thread_type = "NONE" if self._stream.codec_context.name in _MARKED else "AUTO"
            self._group: list[av.Packet[Any]] = []  # of HEVC without an index: the packets since the last key frame
            if strict:
                self._stream.codec_context.options = {"err_detect": "explode+crccheck"}
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @cached_property
    def _header(self) -> VideoInfo:
        """As the container says, not yet upright."""
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        time_base = stream.time_base or 1 / rate
        seconds = self._container.duration / av.time_base if self._container.duration else None
        frames = stream.frames or (round(seconds * rate) if seconds else None)
        name = stream.codec_context.name
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return VideoInfo(stream.width, stream.height, float(rate), time_base, frames, name, aspect)

    def _as_shown(self, first: Frame) -> VideoInfo:
        height, width = first.pixels.shape[:2]
        turned = (height, width) == (self._header.width, self._header.height) and height != width
        aspect = 1 / self._header.pixel_aspect if turned else self._header.pixel_aspect
        return replace(self._header, width=width, height=height, pixel_aspect=aspect)

    def _decode(self) -> Iterator[Frame]:
        """Every frame that can be decoded; sets ``problem`` at the end."""
        time_base, step = self._header.time_base, self._step
        count = first = pts = own_end = 0
        gaps: list[tuple[int, int]] = []  # frames after a time that is not a nominal frame's, and before which pts
        for source in self._pictures():
            if count == 0:
                first = source.pts or 0
            own = None if source.pts is None else source.pts - first
            own_end = max(own_end, own or 0)
            before, pts = pts, 0 if count == 0 else own if own is not None and own > pts else pts + step
            if count and pts - before > 1.5 * step and len(gaps) <= _MOST_GAPS:
                gaps.append((count, before))
            yield Frame(count, pts, round(float(pts * time_base), 6), source, self)
            count += 1
        if not self._indexed:
            missing = round(own_end / step) + 1 - count  # a program stream gives few times, and the others are guessed
            self._look_for_gaps(gaps if missing > 0 else [], count, first)
        if not self._indexed or "matroska" in self._format:
            self._look_at_structure(first)
        self._tell(count, first, pts)

    def _pictures(self) -> Iterator[av.VideoFrame]:
        """Decoded frames in order: strictly up to the first error, and again from there by a decoder that conceals."""
        count, self._sent = 0, 0
        for source in self._read():
            yield source
            count += 1
        if not self._failed and count >= self._sent:
            return
        self._container.close()  # an error among the last frames shows only in that fewer come out than went in
        self._open(strict=False)
        for source in itertools.islice(self._read(), count, None):
            if not self._failed:
                self._found_damage(source.pts or 0)
                self._failed = True
            yield source

    def _read(self) -> Iterator[av.VideoFrame]:
        """Decoded frames; when strict, up to the first error."""
        time = 0  # of the last packet that had one, ticks
        for packet in self._packets():
            if packet is None:  # the container breaks off here
                self._cut = True
                decoded = self._flush()
            else:
                time = time if packet.pts is None else packet.pts
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    self._found_damage(time)
                    if self._strict:
                        self._failed = True
                        return
                    continue
                if packet.size:
                    self._cut = packet.is_corrupt  # unless whole ones follow
                    self._end = max(self._end, (packet.pts or 0) + (packet.duration or self._step))
                    self._sent += not packet.is_discard
                    if self._stream.codec_context.name in _SILENT:
                        self._see(packet, time)
                    self._read_to = (packet.pos or 0) + packet.size
                    if packet.is_corrupt and self._format != "mpegts":  # whose packets are walked through below
                        self._found_damage(time)
            for source in decoded:
                if source.is_corrupt:
                    self._found_damage(time if source.pts is None else source.pts)
                yield source

    def _see(self, packet: av.Packet[Any], time: int) -> None:
        """Look at a packet of which a part may be missing without the decoder's saying so."""
        content = bytes(packet)
        if self._stream.codec_context.name == "h264":  # of which the decoder tells more, and which some devices pad
            content = content.rstrip(b"\0") if self._indexed else b""
        if _HOLE in content:
            self._found_damage(time)
        if not self._indexed and self._stream.codec_context.name == "hevc":
            if packet.is_keyframe or len(self._group) == _LONGEST_GROUP:
                self._group.clear()
            self._group.append(packet)

    def _lacks_its_end(self) -> bool:
        """Whether the last HEVC picture of a container without an index is another one with bytes added at its end."""
        if not self._group:
            return False
        plain, longer = (_last_picture(self._stream.codec_context, self._group, tail) for tail in (b"", b"\xa5" * 256))
        return plain is not None and longer is not None and not np.array_equal(plain, longer)

    def _found_damage(self, pts: int) -> None:
        self._damaged = pts if self._damaged is None else min(pts, self._damaged)

    def _look_for_gaps(self, gaps: Sequence[tuple[int, int]], count: int, first: int) -> None:
        """Take one or two gaps in an otherwise steady stream for damage.

        A gap before the last frame is of a cut: where frames are reordered, the last comes before its predecessors. Any
        other may be a pause, and is damage only where the container has no structure that would show it.
        """
        if count >= _STEADY and 0 < len(gaps) <= _MOST_GAPS:
            after, pts = gaps[0]
            self._cut = self._cut or after == count - 1
            if self._format not in ("mpegts", "mpeg"):
                self._found_damage(first + pts)

    def _look_at_structure(self, first: int) -> None:
        """See to what the container's own structure says, whatever the decoder made of it."""
        share, partial = _stream_damage(self.path, self._stream.id)
        unread = self._format == "yuv4mpegpipe" and self._read_to < self.path.stat().st_size
        self._cut = self._cut or partial or unread or self._lacks_its_end()
        if share is not None and self._damaged is None:
            self._found_damage(first + round(share * (self._end - first)))

    def _tell(self, count: int, first: int, pts: int) -> None:
        """Set ``problem``, after ``count`` frames of which the last came at ``pts``."""
        time_base, step = self._header.time_base, self._step
        damaged = self._damaged
        ends_damaged = not self._indexed and damaged is not None and damaged >= first + pts - 2 * step
        if self._cut or ends_damaged or self._announces_more_than(float(self._end * time_base)):
            seconds = float((pts + step) * time_base)
            self.problem = f"{self.path}: is cut off after {count} frames ({seconds:.1f} s); copy or record it again"
        elif damaged is not None:
            at = max(0.0, float((damaged - first) * time_base))
            self.problem = f"{self.path}: is damaged at {at:.1f} s, perhaps beyond; frames there are missing or spoilt"

    def _packets(self) -> Iterator[av.Packet[Any] | None]:
        """Its packets, the last one empty; None where the container breaks off."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                yield None
                return
            if packet is None:
                return
            yield packet

    def _flush(self) -> list[av.VideoFrame]:
        with contextlib.suppress(av.FFmpegError, EOFError):
            return list(self._stream.codec_context.decode(None))
        return []

    def _announces_more_than(self, seconds: float) -> bool:
        """Whether the file speaks of more than so many seconds; a cut that falls between two packets shows only here.

        Each format is asked where it does not mislead: an MP4's count includes frames that its edit list hides.
        """
        stream, container = self._stream, self._container
        if len(stream.index_entries):
            last = stream.index_entries[-1]
            if last.pos + last.size > container.size:
                return True
        announced = 0.0
        if self._format == "avi":
            announced = stream.frames / self._header.fps
        elif "matroska" in self._format:
            announced = _clock_seconds(stream.metadata.get("DURATION", ""))
            if not announced and len(container.streams) == 1 and container.duration:
                announced = container.duration / av.time_base
        elif self._format in ("asf", "mxf") and len(container.streams) == 1 and container.duration:
            announced = container.duration / av.time_base
        return announced > seconds + 0.6 / self._header.fps

    @property
    def _step(self) -> int:
        """A nominal frame in ticks."""
        return max(1, round(1 / (self._header.fps * self._header.time_base)))

    @property
    def _indexed(self) -> bool:
        """Whether the container says how much it contains."""
        return any(name in self._format.split(",") for name in _INDEXED)

    @property
    def _format(self) -> str:
        return self._container.format.name

    def _upright(self, source: av.VideoFrame) -> NDArray[np.uint8]:
        rgb = self._reformatter.reformat(source, format="rgb24", threads=1)
        pixels = np.asarray(rgb.to_ndarray(), np.uint8)
        side_data: Any = source.side_data  # PyAV's annotation knows of motion vectors only
        if "DISPLAYMATRIX" not in side_data:
            return pixels
        return _displayed(pixels, np.frombuffer(side_data["DISPLAYMATRIX"], "=i4"))


def probe(path: str | Path, max_pixels: int | None = None) -> VideoInfo:
    """What a video says of itself; decodes one frame.

    Args:
        path: a file.
        max_pixels: most pixels of a frame; the size that the header claims is compared before anything is decoded.

    Raises:
        TooLargeError: its frames have more pixels.
        PolypsegError: as ``VideoReader``.
    """
    if max_pixels is not None:
        with _open(Path(path)) as container:
            for stream in container.streams.video:
                if (stream.width or 0) * (stream.height or 0) > max_pixels:
                    raise TooLargeError(f"{path}: has frames of more than {max_pixels:,} pixels")
    with VideoReader(path) as reader:
        return reader.info


def open_media(source: Path | IO[bytes], formats: Sequence[str] = FORMATS) -> av.container.InputContainer:
    """Open a video that comes from outside: nothing but it is opened, be it a playlist or a session description.

    Args:
        source: a file's path, or an open file, of which not more than its bytes is reached.
        formats: FFmpeg's names of the formats that it may have; a single one is taken for granted.

    Raises:
        av.FFmpegError, OSError: it cannot be opened, or is of another format.
    """
    path = isinstance(source, Path)
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "file" if path else "none"}
    only = formats[0] if len(formats) == 1 else None
    name: Any = f"file:{source}" if path else source
    container: av.container.InputContainer = av.open(name, "r", format=only, metadata_errors="ignore", options=options)
    return container


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise PolypsegError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name a video file")
    try:
        return open_media(path)
    except (av.DemuxerNotFoundError, av.ArgumentError) as error:  # the latter of formats that are not to be read
        raise PolypsegError(f"{path}: is in no format of video that polypseg reads; convert it to MP4") from error
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, PermissionError):
            raise PolypsegError(f"{path}: no permission to read it") from error
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            raise PolypsegError(f"{path}: is empty; copy or record it again") from error
        if start[4:] in (b"ftyp", b"wide", b"mdat"):
            raise PolypsegError(f"{path}: is an MP4 cut off before its index; copy or record it again") from error
        raise PolypsegError(f"{path}: is no video that can be read, or its beginning is damaged") from error


def _last_picture(
    like: av.CodecContext, packets: Sequence[av.Packet[Any]], tail: bytes
) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    """The last packet's picture, with bytes added to it; None where it gives none."""
    decoder: Any = av.CodecContext.create(like.name, "r")  # PyAV's annotation knows no kind of it
    decoder.extradata, decoder.thread_type = like.extradata, "NONE"
    copies: list[av.Packet[Any] | None] = [av.Packet(bytes(packet)) for packet in packets[:-1]]
    copies += [av.Packet(bytes(packets[-1]) + tail), None]
    found: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    for number, packet in enumerate(copies):
        if packet is not None:
            packet.pts = number
        with contextlib.suppress(av.FFmpegError, EOFError):
            for frame in decoder.decode(packet):
                if frame.pts == len(packets) - 1:
                    found = frame.to_ndarray()
    return found


def _stream_damage(path: Path, identity: int) -> tuple[float | None, bool]:
    """What the structure of an MPEG transport or program stream, a Matroska file or a GIF says of damage.

    Args:
        path: the file.
        identity: of the video stream: a transport stream's packets bear it.

    Returns:
        the share of the file before the first place where something else should stand, None where there is none or the
        file is of another kind; and whether it ends within a packet.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(5 * 204)
        file.seek(0)
        for size, sync in ((188, 0), (192, 4), (204, 0)):
            if head[sync::size][:5] == b"G" * 5:
                place = _lost_packet(file, size, sync, identity)
                return None if place is None else place / total, total % size != 0
        if head.startswith(b"\0\0\1\xba"):
            return _walk_program_stream(file, total)
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            return _walk_matroska(file, total)
        if head.startswith(b"GIF8"):
            file.seek(-1, io.SEEK_END)
            return None, file.read() != b";"
    return None, False


def _lost_packet(file: IO[bytes], size: int, sync: int, identity: int) -> int | None:
    """Where a transport stream of packets of ``size`` bytes is missing one, bytes; None where nowhere.

    None begins there, or the video's numbers, 0 to 15 in turn, skip one (ISO/IEC 13818-1, 2.4.3). Where a table comes
    between, a recording may have been put behind another.
    """
    at, before, tables_before = 0, None, 0
    while block := file.read(size * 65536):
        whole = np.frombuffer(block, np.uint8)[: len(block) // size * size].reshape(-1, size)[:, sync : sync + 6]
        starts, flags, low, third, extra, marks = whole.astype(np.int32).T
        lost = np.flatnonzero(starts != ord("G"))
        identities = (flags & 31) << 8 | low
        own = np.flatnonzero((identities == identity) & (third & 16 > 0) & (starts == ord("G")))
        if len(own):
            numbers, tables = third[own] & 15, np.searchsorted(np.flatnonzero(identities == 0), own)
            skipped = (np.diff(numbers, prepend=numbers[0] - 1 if before is None else before) - 1) & 15
            told = (third[own] & 32 > 0) & (extra[own] > 0) & (marks[own] & 128 > 0)  # the stream says so itself
            joined = (flags[own] & 64 > 0) & (np.diff(tables, prepend=-tables_before) > 0)
            # 15 skipped: one comes twice, as it may.
            wrong = (skipped > 0) & (skipped < 15) & ~told & ~joined | (flags[own] & 128 > 0)  # by the receiver's mark
            lost = np.sort(np.append(lost, own[wrong]))
            before, tables_before = int(numbers[-1]), 0
        tables_before += int(np.count_nonzero(identities[own[-1] if len(own) else 0 :] == 0))
        if len(lost):
            return at + int(lost[0]) * size
        at += len(block)
    return None


_MATROSKA = {"segment": 0x18538067, "cluster": 0x1F43B675}
# What stands in those: SeekHead, Info, Tracks, Cues, Tags, Attachments, Chapters; Timestamp, SimpleBlock, BlockGroup,
# PrevSize, Position; and anywhere Void, CRC-32 and the file's head.
_MATROSKA_PARTS = {
    0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0xE7, 0xA3, 0xA0, 0xAB, 0xA7,
    0xEC, 0xBF, 0x1A45DFA3,
}  # fmt: skip


def _walk_matroska(file: IO[bytes], total: int) -> tuple[float | None, bool]:
    """As ``_stream_damage``, from element to element (RFC 8794, RFC 9559)."""
    at, end = 0, math.inf  # of the segment; what stands behind it is nobody's
    while at < min(total, end):
        file.seek(at)
        head = file.read(12)
        identity, length = _vint(head, 4, False)
        size, taken = _vint(head[length:], 8, True)
        known = identity in _MATROSKA_PARTS or identity in _MATROSKA.values()
        if not length or not taken:
            return (None, True) if total - at < 12 and length + taken else (at / total, False)
        at += length + taken
        if identity in _MATROSKA.values():  # of unknown size, as of recordings that are streamed, or not
            if size is not None and at + size > total:
                return None, True
            end = at + size if size is not None and identity == _MATROSKA["segment"] else end
        elif size is None or at + size > total:
            return (None, True) if known else (at / total, False)
        else:
            at += size
    return None, False


def _vint(data: bytes, longest: int, value: bool) -> tuple[int | None, int]:
    """A number of variable length at the beginning, and its length, 0 where there is none.

    As a ``value`` it is without the marker, and None where it stands for an unknown size.
    """
    length = 9 - data[0].bit_length() if data and data[0] else 0
    if not 0 < length <= min(longest, len(data)):
        return None, 0
    number = int.from_bytes(data[:length])
    if value:
        number &= (1 << 7 * length) - 1
        return (None if number == (1 << 7 * length) - 1 else number), length
    return number, length


def _walk_program_stream(file: IO[bytes], total: int) -> tuple[float | None, bool]:
    """As ``_stream_damage``, from packet to packet (ISO/IEC 13818-1, 2.5, and ISO/IEC 11172-1)."""
    at = 0
    while at < total:
        file.seek(at)
        head = file.read(14)
        if head.startswith(b"\0\0\1\xb9"):  # the end, which need not be there and may be followed by another stream
            at += 4
            continue
        if len(head) < 6:
            return None, True
        if head[:3] != b"\0\0\1" or head[3] < 0xBA:
            return at / total, False
        if head[3] == 0xBA:
            at += 14 + (head[-1] & 7) if head[4] >> 6 == 1 else 12
        else:
            at += 6 + int.from_bytes(head[4:6], "big")
    return None, at > total


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if av.stream.Disposition.attached_pic in stream.disposition:
            continue  # the cover of a sound file
        if stream.codec_context is None:
            raise PolypsegError(f"{path}: is coded in a way that PyAV's FFmpeg cannot decode; convert it to H.264")
        return stream
    raise PolypsegError(f"{path}: contains no video stream")


def _clock_seconds(text: str) -> float:
    """``00:01:02.5`` in seconds; 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _displayed(pixels: NDArray[np.uint8], matrix: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Turn and mirror a stored frame as its display matrix says, to the nearest quarter turn.

    The matrix (ISO/IEC 14496-12, ``tkhd``) takes a stored point (x, y) to (a·x + c·y, b·x + d·y), but for a shift.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) < abs(b) + abs(c):  # columns become rows
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


class VideoWriter:
    """Writes H.264 (yuv420p) as fragmented MP4: playable, but for its last frame, whenever it breaks off.

    A size that is odd is made even by repeating the last column or row; a frame of another size than the first is
    scaled to it.

    Args:
        path: a new file, or one to replace.
        info: size, rate, time base and shape of the pixels.

    Raises:
        PolypsegError: PyAV has no H.264 encoder, or the disk refuses.
    """

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path, self._info = path, info
        self._step = max(1, round(1 / (info.fps * info.time_base)))
        self._pad = info.height % 2, info.width % 2
        name = next((name for name in _ENCODERS if name in av.codecs_available), None)
        if name is None:
            raise PolypsegError(f"{path}: this PyAV has no H.264 encoder; install the wheel from PyPI (pip install av)")
        # A Python file, because its errors name themselves, and at the frame where they happen.
        try:
            self._file: IO[bytes] = open(path, "wb", buffering=0)  # noqa: SIM115, PTH123
        except OSError as error:
            raise disk_error(path, error) from error
        self._container = av.open(
            self._file, "w", format="mp4",
            options={
                "movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1",
                "video_track_timescale": str(info.time_base.denominator),
            },
        )  # fmt: skip
        self._container.metadata["comment"] = INTENDED_USE
        # The rate steers only how many bits a frame is worth: at 5 a second, x264 would spend more than twice as many.
        stream = self._container.add_stream(name, rate=25, options=_ENCODER_OPTIONS[name])
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        codec = stream.codec_context
        codec.width, codec.height = info.width + self._pad[1], info.height + self._pad[0]
        codec.pix_fmt = "yuv420p"
        codec.time_base = stream.time_base = info.time_base
        codec.sample_aspect_ratio = info.pixel_aspect
        # What OpenCV's conversion below makes.
        codec.colorspace = av.video.reformatter.Colorspace.ITU601
        codec.color_range = av.video.reformatter.ColorRange.MPEG

    @property
    def size(self) -> tuple[int, int, Fraction]:
        """Width and height of what is written, and its time base."""
        return self._stream.codec_context.width, self._stream.codec_context.height, self._info.time_base

    @property
    def units(self) -> list[bytes]:
        """H.264's sequence and picture parameter sets."""
        self._stream.codec_context.open(strict=False)
        units = re.split(b"\0\0\0?\1", self._stream.codec_context.extradata or b"")
        return [unit for unit in units if unit and unit[0] & 31 in (7, 8)]

    def write(self, pixels: NDArray[np.uint8], pts: int) -> None:
        """Append a frame, H×W×3 uint8 RGB, shown from ``pts`` ticks on. Raises ``PolypsegError`` as the class."""
        size = self._info.width, self._info.height
        if pixels.shape[1::-1] != size:
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        if any(self._pad):
            bottom, right = self._pad
            pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
        planes = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = pts, self._info.time_base
        self._mux(frame)

    def close(self) -> None:
        """Write what is pending and close the file. Raises ``PolypsegError`` where the disk refuses."""
        try:
            self._mux(None)
            self._container.close()
            os.fsync(self._file.fileno())
        except (av.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error
        finally:
            self._file.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                packet.duration = self._step  # of the last one; others end where their successor begins
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error


def whole_frames(part: Path) -> int:
    """How many frames of a growing MP4 of ``VideoWriter`` are there whole; 0 where it cannot be read."""
    try:
        with open_media(part, ("mov",)) as container:
            return sum(1 for _ in _whole_packets(container, part.stat().st_size))
    except (av.FFmpegError, OSError):
        return 0


def _whole_packets(container: av.container.InputContainer, size: int) -> Iterator[av.Packet[Any]]:
    """The packets up to the first that the file's end cuts."""
    packets = container.demux(container.streams.video[0])
    with contextlib.suppress(av.FFmpegError, OSError):
        for packet in packets:
            if not packet.size:
                return
            if packet.is_corrupt or packet.pos is None or packet.pos + packet.size > size:
                return
            yield packet


def continues(part: Path, writer: VideoWriter) -> bool:
    """Whether a decoder that has begun with ``part`` can continue with what ``writer`` writes: one set of values."""
    try:
        with open_media(part, ("mov",)) as container:
            stream = container.streams.video[0]
            size = stream.width, stream.height, stream.time_base
            return size == writer.size and all(unit in (stream.codec_context.extradata or b"") for unit in writer.units)
    except (av.FFmpegError, OSError, IndexError):
        return False


def finish_mp4(parts: Path | Sequence[tuple[Path, int]], path: Path) -> None:
    """Rewrite fragmented MP4s, one after the other, as a plain one whose index comes first, as browsers want it.

    ``path`` appears whole or not at all; the parts stay.

    Args:
        parts: each with the ticks at which its first frame is shown, as in itself time counts from there; or one alone.
        path: the file to make.

    Raises:
        PolypsegError: the disk refuses.
    """
    parts = [(parts, 0)] if isinstance(parts, Path) else list(parts)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        with contextlib.ExitStack() as opened:
            sources = [opened.enter_context(open_media(part, ("mov",))) for part, _ in parts]
            stream = sources[0].streams.video[0]
            assert stream.time_base is not None
            options = {"movflags": "faststart", "video_track_timescale": str(stream.time_base.denominator)}
            target = opened.enter_context(av.open(f"file:{temporary}", "w", format="mp4", options=options))
            target.metadata["comment"] = INTENDED_USE
            copy = target.add_stream_from_template(stream)
            for (part, begin), source in zip(parts, sources, strict=True):
                for packet in _whole_packets(source, part.stat().st_size):
                    packet.pts = packet.dts = (packet.pts or 0) + begin  # nothing is reordered
                    packet.stream = copy
                    target.mux(packet)
        Path(temporary).chmod(parts[0][0].stat().st_mode & 0o777)
        Path(temporary).replace(path)
    except (av.FFmpegError, OSError) as error:
        raise _write_error(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_error(path: Path, error: av.FFmpegError | OSError) -> PolypsegError:
    if isinstance(error, OSError):
        return disk_error(path, error)
    return PolypsegError(f"{path}: cannot be written ({error.strerror})")
