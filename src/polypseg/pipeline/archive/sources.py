"""From what the command line names to the frames of an archive: folders, object stores, globs and manifests."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import natural_order
from polypseg.io.kinds import IMAGE_SUFFIXES
from polypseg.pipeline.archive.store import filesystem, is_url, plain, store_error
from polypseg.pipeline.sources import check_utf8, is_camera

log = logging.getLogger("polypseg")

PATH = "path"  # a manifest's column that names the frames
MOST_LINE = 2**20  # characters of a manifest's line
MOST_COLUMNS = 256
# Where a manifest's frames may lie: stores of files. Others are asked for nothing because a line of a file says so.
_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hdfs", "webhdfs", "memory"}


def is_archive(name: str) -> bool:
    """Whether a source can only be an archive's: a manifest, or a URL that is no camera's."""
    return not is_camera(name) and ("://" in name or name.lower().endswith(".csv"))


@dataclass(frozen=True)
class Entry:
    """A frame to be predicted.

    Attributes:
        path: an absolute path, or a URL.
        columns: what its manifest says besides, by column.
    """

    path: str
    columns: dict[str, str] = field(default_factory=dict)


class Listing:
    """The frames that sources stand for, listed as they are iterated over: never all of them in memory.

    Args:
        named: each a folder (all below it, or below its ``images/``), an image, a glob, a manifest (a CSV with a column
            ``path``), or the URL of any of these.
        out: the path or URL of the results: nothing in it is a frame.

    Attributes:
        columns: the further columns of the manifests, in order.

    Raises:
        UsageError: nothing is named, or one source lies inside another.
        PolypsegError: a source is missing, a manifest is missing its column, or a store refuses; while iterating also:
            a source contains no image, a line of a manifest is broken.
    """

    def __init__(self, named: Sequence[str], out: str) -> None:
        if not named:
            raise UsageError("SOURCES: name folders, images, globs, manifests or URLs")
        self.out = plain(out)
        self.sources = list(dict.fromkeys(one for name in named for one in _expand(name)))
        for source in self.sources:
            check_utf8(source)
        known = set(self.sources)
        for source in self.sources:
            parent = source
            while (parent := parent.rpartition("/")[0]) and not parent.endswith(":/"):
                if parent in known:
                    raise UsageError(f"{source}: lies inside {parent}, which is named too; name it once")
        self.passed_over: list[str] = []  # the first file of no known kind
        self._passed_over = 0
        self._leading_out: list[str] = []  # links
        self.columns: list[str] = []
        for source in self.sources:
            if source.lower().endswith(".csv"):
                with _opened(source) as file:
                    header = _header(source, csv.reader(_lines(file)))
                self.columns += [one for one in header if one not in (PATH, *self.columns)]

    def __iter__(self) -> Iterator[Entry]:
        self._passed_over = 0
        self._leading_out = []
        for source in self.sources:
            if source.lower().endswith(".csv"):
                yield from _of_manifest(source)
            else:
                found = False
                for path in self._of_url(source) if is_url(source) else self._of_path(source):
                    found = True
                    yield Entry(path)
                if not found:
                    raise PolypsegError(f"{source}: contains no image; check the name")
        if self._passed_over:
            more = f" and {self._passed_over - 1} more" if self._passed_over > 1 else ""
            log.warning("%s%s: no images by their names, passed over", self.passed_over[0], more)
        if self._leading_out:
            more = f" and {len(self._leading_out) - 1} more" if len(self._leading_out) > 1 else ""
            log.warning(
                "%s%s: links that lead out of the folder, or to no file, passed over; name the place they lead to",
                self._leading_out[0], more,
            )  # fmt: skip

    def _of_path(self, source: str) -> Iterator[str]:
        if os.path.isdir(source):
            images = os.path.join(source, "images")
            yield from self._below(images if os.path.isdir(images) else source, os.path.realpath(source))
        elif os.path.isfile(source):
            yield from self._if_image(source, alone=True)
        else:
            raise PolypsegError(f"{source}: is missing; check the name")

    def _below(self, folder: str, home: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: natural_order(entry.name))
        except OSError as error:
            raise PolypsegError(f"{folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.path == self.out:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._below(entry.path, home)
            elif not entry.is_file() or (
                entry.is_symlink() and not os.path.realpath(entry.path).startswith(f"{home.rstrip('/')}/")
            ):
                if not entry.is_dir():
                    self._leading_out.append(entry.path)
            else:
                yield from self._if_image(entry.path)

    def _of_url(self, source: str) -> Iterator[str]:
        fs, path = filesystem(source)
        try:
            if glob.has_magic(path):
                for found in sorted(fs.glob(path), key=natural_order):
                    if not found.rpartition("/")[2].startswith("."):
                        yield from self._if_image(fs.unstrip_protocol(found))
                return
            if fs.info(path)["type"] != "directory":
                yield from self._if_image(source, alone=True)
                return
            images = f"{path}/images"
            yield from self._below_url(fs, images if fs.isdir(images) else path)
        except PolypsegError:
            raise
        except Exception as error:
            raise store_error(source, error) from error

    def _below_url(self, fs: Any, folder: str) -> Iterator[str]:
        entries = fs.ls(folder, detail=True, refresh=True)
        for entry in sorted(entries, key=lambda entry: natural_order(entry["name"])):
            name = entry["name"].rstrip("/")
            url = fs.unstrip_protocol(name)
            if name.strip("/") == folder.strip("/") or name.rpartition("/")[2].startswith(".") or url == self.out:
                continue
            if entry["type"] == "directory":
                yield from self._below_url(fs, name)
            elif not entry["name"].endswith("/"):
                yield from self._if_image(url)

    def _if_image(self, path: str, alone: bool = False) -> Iterator[str]:
        no_file = not is_url(path) and os.path.exists(path) and not os.path.isfile(path)  # as a pipe or a device
        if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and not no_file:
            check_utf8(path)
            yield path
        elif alone:
            raise PolypsegError(f"{path}: is no image by its name; an archive contains images and manifests (.csv)")
        else:
            self.passed_over = self.passed_over or [path]
            self._passed_over += 1


def _expand(name: str) -> list[str]:
    if is_camera(name):
        raise UsageError(f"{name}: is a camera; it is read alone, without --engine")
    if is_url(name) or os.path.exists(plain(name)) or not glob.has_magic(name):
        return [plain(name)]
    found = [os.path.abspath(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
    if not found:
        raise PolypsegError(f"{name}: matches no file; check the pattern")
    return sorted(found, key=natural_order)


@contextlib.contextmanager
def _opened(manifest: str) -> Iterator[IO[str]]:
    try:
        if is_url(manifest):
            fs, path = filesystem(manifest)
            file: IO[str] = io.TextIOWrapper(fs.open(path, "rb"), "utf-8-sig", newline="")
        else:
            file = open(manifest, encoding="utf-8-sig", newline="")  # noqa: SIM115  (closed below)
    except Exception as error:
        raise store_error(manifest, error) from error
    with file:
        yield file


def _lines(file: IO[str]) -> Iterator[str]:
    """A manifest's lines, none of which may fill the memory. Raises ``csv.Error``."""
    while line := file.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise csv.Error(f"it has more than {MOST_LINE} characters")
        yield line


def _header(manifest: str, lines: Iterator[list[str]]) -> list[str]:
    try:
        header = next(lines, [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise PolypsegError(f"{manifest}: is no CSV in UTF-8 ({error})") from error
    if len(header) > MOST_COLUMNS:
        raise PolypsegError(f"{manifest}: has {len(header)} columns, more than {MOST_COLUMNS}; leave some out")
    if PATH not in header:
        raise PolypsegError(f"{manifest}: has no column {PATH!r}; it has {', '.join(header)[:200] or 'none'}")
    twice = next((one for one in header if header.count(one) > 1), None)
    if twice is not None:
        raise PolypsegError(f"{manifest}: has two columns {twice!r}; rename one")
    return header


def _of_manifest(manifest: str) -> Iterator[Entry]:
    folder = manifest.rpartition("/")[0] if is_url(manifest) else str(Path(manifest).parent)
    warned = False
    with _opened(manifest) as file:
        lines = csv.reader(_lines(file))
        header = _header(manifest, lines)
        number = 0
        try:
            for cells in lines:
                if not cells:
                    continue
                number += 1
                line = f"{manifest}: line {lines.line_num}"
                if len(cells) != len(header):
                    raise PolypsegError(f"{line} has {len(cells)} cells, the header {len(header)}; mend it")
                columns = dict(zip(header, cells, strict=True))
                path = columns.pop(PATH)
                if not path:
                    raise PolypsegError(f"{line} names no {PATH}; mend it")
                place = _joined(folder, path, line)
                if not warned and not place.startswith(f"{folder}/"):
                    warned = True
                    log.warning(
                        "%s: line %d names a place outside the manifest's folder, %s", manifest, lines.line_num, place
                    )
                yield Entry(place, columns)
        except (csv.Error, UnicodeDecodeError) as error:
            raise PolypsegError(f"{manifest}: line {lines.line_num + 1} is no CSV in UTF-8 ({error})") from error
        if not number:
            raise PolypsegError(f"{manifest}: names no frame")


def _joined(folder: str, path: str, line: str) -> str:
    """A manifest's path, which may be relative to the manifest's folder.

    Raises:
        PolypsegError: it leads out of the folder by ``..``, from a store to this machine, or to what is no store.
    """
    shown = ascii(path[:200])
    if not path.isprintable():
        raise PolypsegError(f"{line} names {shown}, which cannot be printed; rename it")
    if "://" in path and not path.startswith("file://"):
        protocol = path.partition("://")[0]
        if protocol not in _STORES | {folder.partition("://")[0]}:
            raise PolypsegError(f"{line} names {shown}, which is in no store; fetch it, and name the file")
        return plain(path)
    if os.path.isabs(path) or path.startswith("file://"):
        if is_url(folder):
            raise PolypsegError(f"{line} names {shown}, of this machine; a manifest in a store names what is in stores")
        return plain(path)
    parts = os.path.normpath(path).split(os.sep)
    if ".." in parts:
        raise PolypsegError(f"{line} names {shown}, which leads out of the manifest's folder; write the whole path")
    return f"{folder}/{'/'.join(parts)}" if is_url(folder) else os.path.abspath(os.path.join(folder, path))
