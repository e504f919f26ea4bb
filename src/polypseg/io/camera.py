"""A camera by OpenCV: by its number, the one way that is alike on Linux, macOS and Windows, or by its URL."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError, UsageError
from polypseg.io.kinds import DICOM_SUFFIXES, IMAGE_SUFFIXES

log = logging.getLogger("polypseg")

Pixels = NDArray[np.uint8]
PATIENCE = 30.0  # seconds for which a stream that was cut is opened again
SHORTEST, LONGEST = 0.25, 5.0  # seconds between two tries
SILENCE = 5.0  # seconds after which a network that sends nothing counts as cut
_URLS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://")
# Files on the web whose names say so: what plays for ever has other endings (.m3u8, .mjpg, .ts, .flv) or none.
_FILES_ON_THE_WEB = {*IMAGE_SUFFIXES, *DICOM_SUFFIXES, ".gif", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".wmv"}


class CameraGone(PolypsegError):
    """The camera sends no more frames."""


def camera_frames(camera: int | str, patience: float = PATIENCE) -> Iterator[Pixels]:
    """H×W×3 uint8 RGB frames of a camera or a stream, as they arrive, without an end.

    A stream of a network that stops is opened anew, again and again; a camera by its number is not, as its number may
    be another's by then.

    Args:
        camera: its number, or its URL.
        patience: seconds for which a URL that stopped is tried.

    Raises:
        CameraGone: it cannot be opened, sends no more, or sends frames of another size after a cut.
    """
    name = camera_name(camera)
    is_index = isinstance(camera, int) or camera.isdecimal()
    size: tuple[int, ...] | None = None
    stopped: float | None = None  # when, ``time.monotonic``
    pause = SHORTEST
    while True:
        for pixels in _frames_until_cut(camera, is_index):
            if size is not None and pixels.shape != size:
                raise CameraGone(f"{name}: now sends frames of another size; start again")
            size, stopped, pause = pixels.shape, None, SHORTEST
            yield pixels
        if size is None:
            raise CameraGone(f"{name}: cannot be opened; check its number or URL, and that it is connected")
        now = time.monotonic()
        if stopped is None:
            stopped = now
            if not is_index and patience > 0:
                log.warning("%s: stopped sending frames; opened again for %g s", name, patience)
        if is_index or now + pause > stopped + patience:
            raise CameraGone(f"{name}: stopped sending frames; check its cable or its network")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)


def _frames_until_cut(camera: int | str, is_index: bool) -> Iterator[Pixels]:
    """What it sends until it stops; nothing where it cannot be opened."""
    # The one line that matters is ours, not OpenCV's or its FFmpeg's.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    chatter = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(int(camera)) if is_index else _from_network(str(camera))
    try:
        while capture.isOpened():
            began = time.monotonic()
            whole, frame = capture.read()
            # After a silence come the frames that the decoder kept back, each after one more silence.
            if not whole or (not is_index and time.monotonic() - began >= SILENCE):
                return
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
    finally:
        capture.release()
        cv2.utils.logging.setLogLevel(chatter)


def _from_network(url: str) -> cv2.VideoCapture:
    silence = round(1000 * SILENCE)
    options = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: silence,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: silence,
        cv2.CAP_PROP_N_THREADS: 1,  # the decoder keeps back a frame for each further thread
    }
    return cv2.VideoCapture(url, cv2.CAP_FFMPEG, [one for option in options.items() for one in option])


def camera_name(camera: int | str | Iterable[Pixels]) -> str:
    """What a camera is called in messages and files: a URL without the password that it may contain."""
    if isinstance(camera, int) or (isinstance(camera, str) and camera.isdecimal()):
        return f"camera {camera}"
    if not isinstance(camera, str):
        return "camera"
    return re.sub("//[^/@]*@", "//", camera) if "://" in camera else Path(camera).name


def camera_in(name: str) -> str | None:
    """The number or URL of the camera that a name means, as ``0``, ``camera:0`` or ``rtsp://…``; None for other names.

    Raises:
        UsageError: it is the URL of a file, or names a camera without its number.
    """
    if name.lower().startswith(_URLS):
        if name.lower().startswith("http") and _web_suffix(name) in _FILES_ON_THE_WEB:
            raise UsageError(f"{name}: is a file on the web, and no camera; download it, and name the file")
        return name
    index = name.removeprefix("camera:")
    if not re.fullmatch("[0-9]+", index):
        if name.startswith("camera:"):
            raise UsageError(f"{name}: a camera is named by its number, as camera:0")
        return None
    return None if index == name and Path(name).exists() else index


def _web_suffix(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).suffix.lower()
    except ValueError:  # as of [ without ]
        return ""
