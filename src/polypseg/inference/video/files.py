"""Video files: frames in, upright and with their times; H.264 out, as browsers play it.

**Times.** A frame keeps the time that its file gives it, in the file's own time base, so that a variable frame rate
stays one. Time counts from the first frame, as a player shows it (broadcast streams begin anywhere). A frame without
a time, or with one that does not come after its predecessor's, gets its predecessor's plus one nominal frame.

**Damage.** What can be decoded is read, up to the cut of a truncated file and beyond a damaged spot; afterwards
``VideoReader.problem`` says in one line what was met.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
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

# Renderings of text files, which FFmpeg also counts among the videos.
_TEXT_CODECS = ("ansi", "bintext", "xbin", "idf")
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
        converted = self._reader._upright(self._source)
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
        PolypsegError: the file is missing, no video, coded in a way that this FFmpeg cannot decode, or holds no frame.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problem: str | None = None
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._container = _open(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
            self._stream.thread_type = "AUTO"
            self._frames = self._decode()
            self._first: Frame | None = next(self._frames, None)
            if self._first is None:
                raise PolypsegError(f"{self.path}: holds no frame that can be decoded; record or copy it again")
            self.info = self._as_shown(self._first)
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
        time_base = self._header.time_base
        step = max(1, round(1 / (self._header.fps * time_base)))
        count = first = pts = damaged = 0
        end = 0  # of what the container held, in its own ticks
        cut = False
        for packet in self._packets():
            if packet is None:  # the container breaks off here
                cut = True
                decoded = self._flush()
            else:
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    damaged += 1
                    continue
                if packet.size:
                    cut = packet.is_corrupt  # unless whole ones follow
                    damaged += cut
                    end = max(end, (packet.pts or 0) + (packet.duration or step))
            for source in decoded:
                if count == 0:
                    first = source.pts or 0
                own = None if source.pts is None else source.pts - first
                pts = 0 if count == 0 else own if own is not None and own > pts else pts + step
                yield Frame(count, pts, round(float(pts * time_base), 6), source, self)
                count += 1
        if cut or self._announces_more_than(float(end * time_base)):
            seconds = float((pts + step) * time_base)
            self.problem = f"{self.path}: is cut off after {count} frames ({seconds:.1f} s); copy or record it again"
        elif damaged:
            self.problem = f"{self.path}: {damaged} of its packets are damaged; frames there are missing or spoilt"

    def _packets(self) -> Iterator[av.Packet | None]:
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
        if container.format.name == "avi":
            announced = stream.frames / self._header.fps
        elif "matroska" in container.format.name:
            announced = _clock_seconds(stream.metadata.get("DURATION", ""))
            if not announced and len(container.streams) == 1 and container.duration:
                announced = container.duration / av.time_base
        return announced > seconds + 0.6 / self._header.fps

    def _upright(self, source: av.VideoFrame) -> NDArray[np.uint8]:
        rgb = self._reformatter.reformat(source, format="rgb24", threads=1)
        pixels = np.asarray(rgb.to_ndarray(), np.uint8)
        side_data: Any = source.side_data  # PyAV's annotation knows of motion vectors only
        if "DISPLAYMATRIX" not in side_data:
            return pixels
        return _displayed(pixels, np.frombuffer(side_data["DISPLAYMATRIX"], "=i4"))


def probe(path: str | Path) -> VideoInfo:
    """What a video says of itself; decodes one frame. Raises as ``VideoReader``."""
    with VideoReader(path) as reader:
        return reader.info


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise PolypsegError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name a video file")
    try:
        # Nothing but files: a playlist in disguise must not reach out to the network.
        return av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except av.DemuxerNotFoundError as error:
        raise PolypsegError(f"{path}: is in a format that PyAV's FFmpeg does not read; convert it to MP4") from error
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, PermissionError):
            raise PolypsegError(f"{path}: no permission to read it") from error
        with open(path, "rb") as file:
            start = file.read(8)
        if not start:
            raise PolypsegError(f"{path}: is empty; copy or record it again") from error
        if start[4:] in (b"ftyp", b"wide", b"mdat"):
            raise PolypsegError(f"{path}: is an MP4 cut off before its index; copy or record it again") from error
        raise PolypsegError(f"{path}: is no video that can be read, or its beginning is damaged") from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if av.stream.Disposition.attached_pic in stream.disposition:
            continue  # the cover of a sound file
        if stream.codec_context is None:
            raise PolypsegError(f"{path}: is coded in a way that PyAV's FFmpeg cannot decode; convert it to H.264")
        if stream.codec_context.name not in _TEXT_CODECS:
            return stream
    raise PolypsegError(f"{path}: holds no video stream")


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
            self._file: IO[bytes] = open(path, "wb", buffering=0)  # noqa: SIM115
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


def finish_mp4(part: Path, path: Path) -> None:
    """Rewrite a fragmented MP4 as a plain one whose index comes first, as browsers want it; ``part`` stays.

    ``path`` appears whole or not at all. Raises ``PolypsegError`` where the disk refuses.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        with av.open(f"file:{part}") as source:
            stream = source.streams.video[0]
            assert stream.time_base is not None
            options = {"movflags": "faststart", "video_track_timescale": str(stream.time_base.denominator)}
            with av.open(f"file:{temporary}", "w", format="mp4", options=options) as target:
                target.metadata["comment"] = INTENDED_USE
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)
        os.chmod(temporary, part.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except (av.FFmpegError, OSError) as error:
        raise _write_error(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_error(path: Path, error: av.FFmpegError | OSError) -> PolypsegError:
    if isinstance(error, OSError):
        return disk_error(path, error)
    return PolypsegError(f"{path}: cannot be written ({error.strerror})")
