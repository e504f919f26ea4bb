"""From what the command line names to an ordered list of files and cameras to read."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypseg.errors import PolypsegError, UsageError
from polypseg.io.camera import camera_in
from polypseg.io.kinds import Kind, kind_of, readable, shown_path

log = logging.getLogger("polypseg")


@dataclass(frozen=True)
class Source:
    """One thing to read.

    Attributes:
        kind: what it is; by its content where that shows it, else by its name.
        location: the file's path as it was named, or a camera's index or URL.
        problem: one line that says why the file cannot be used, found beside others that can; None for most.
    """

    kind: Kind
    location: str
    problem: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.location)

    @property
    def camera(self) -> int | str | None:
        """The camera's index or URL; None for a file."""
        if self.kind != "camera":
            return None
        return int(self.location) if self.location.isdecimal() else self.location


def gather(named: Sequence[str], out: Path) -> list[Source]:
    """What the sources on a command line stand for, in their order; a file that is named twice is read once.

    Args:
        named: each an image, a video, a DICOM file, a folder (its own files, or those of its ``images/``), a glob,
            ``camera:N`` or N, or a camera's URL (rtsp, or a stream by http).
        out: the folder for the outputs: no file in it is a source.

    Returns:
        The sources; files of a folder or a glob in natural order.

    Raises:
        UsageError: nothing is named, or a camera beside other sources.
        PolypsegError: something named is missing, is of no known kind, contains nothing to read, or lies in ``out``.
    """
    if not named:
        raise UsageError("SOURCES: name images, folders, globs, videos, DICOM files or a camera")
    found: dict[str, Source] = {}
    for name in named:
        for source in _expand(name, out):
            key = source.location if source.kind == "camera" else os.path.abspath(source.location)
            found.setdefault(key, source)
    sources = list(found.values())
    camera = next((source for source in sources if source.kind == "camera"), None)
    if camera and len(sources) > 1:
        raise UsageError("SOURCES: a camera is read alone; name the other sources in a run of their own")
    return sources


def is_camera(name: str) -> bool:
    """Whether a source is a camera's number or URL."""
    return camera_in(name) is not None


def check_utf8(path: str | Path) -> None:
    """Refuse a name that cannot stand in JSON, CSV or Parquet.

    Raises:
        PolypsegError: its bytes are no UTF-8.
    """
    if shown_path(path) != str(path):
        raise PolypsegError(f"{shown_path(path)}: its name is not UTF-8; rename it")


def _expand(name: str, out: Path) -> list[Source]:
    camera = camera_in(name)
    if camera is not None:
        return [Source("camera", camera)]
    path = Path(name)
    if path.is_dir():
        return _of_folder(path, out)
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in glob.glob(name, recursive=True)]
        inside = os.path.realpath(out) + os.sep
        matches = [match for match in matches if not os.path.realpath(match).startswith(inside)]
        return _readable(matches, out, name, "matches no image, video or DICOM file; check the pattern")
    if not path.is_file():
        trouble = "is neither a file nor a folder" if path.exists() else "is missing; check the name"
        raise PolypsegError(f"{shown_path(path)}: {trouble}")
    kind = kind_of(path)
    if kind is None:
        raise PolypsegError(f"{shown_path(path)}: is no image, video or DICOM file that polypseg knows; leave it out")
    source = _file(kind, path, out)
    if source.problem:
        raise PolypsegError(source.problem)
    return [source]


def _of_folder(folder: Path, out: Path) -> list[Source]:
    images = folder / "images"
    folder = images if images.is_dir() else folder
    try:
        files = list(folder.iterdir())
    except OSError as error:
        raise PolypsegError(f"{folder}: cannot be read ({error.strerror})") from error
    advice = f"contains no image, video or DICOM file; sub-folders are read by '{folder}/**/*'"
    return _readable(files, out, str(folder), advice)


def _readable(files: Iterable[Path], out: Path, where: str, advice: str) -> list[Source]:
    """Those files of a folder or a glob that can be read, in natural order; says which others it passes over."""
    known, unknown = readable(files)
    sources = [_file(kind, file, out) for file, kind in known]
    if all(source.problem for source in sources):
        raise PolypsegError(sources[0].problem if sources else f"{where}: {advice}")
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        log.warning("%s%s: of no kind that polypseg reads, passed over", shown_path(unknown[0]), more)
    return sources


def _file(kind: Kind, path: Path, out: Path) -> Source:
    try:
        check_utf8(path)
    except PolypsegError as error:
        return Source(kind, str(path), str(error))
    if os.path.dirname(os.path.realpath(path)) == os.path.realpath(out):
        raise PolypsegError(f"{path}: lies in --out; choose another, so that no output overwrites a source")
    return Source(kind, str(path))
