"""Fetching public data sets: resumed where it was cut, checked by SHA-256, unpacked whole or not at all."""

from __future__ import annotations

import contextlib
import difflib
import http.client
import re
import shutil
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from polypseg.data import read
from polypseg.data.folder import Problem
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import disk_error, read_json, sha256_file, write_json


@dataclass(frozen=True)
class DataSet:
    """A public data set and where it is found.

    Attributes:
        name: as ``data download`` takes it.
        title: as its publishers write it.
        frames: number of frames, each with a mask; 0 where any number can be drawn.
        folder: name of the folder inside the archive that is the data set.
        terms: of use, one line.
        citation: whom to cite, short.
        homepage: the page that describes it, for people; empty where there is none.
        url: ZIP archive that can be fetched without registration, or None.
        sha256: of that archive, 64 hexadecimal digits, or None.
    """

    name: str
    title: str
    frames: int
    folder: str
    terms: str
    citation: str
    homepage: str = ""
    url: str | None = None
    sha256: str | None = None


DATASETS: dict[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            name="kvasir-seg",
            title="Kvasir-SEG",
            frames=1000,
            homepage="https://datasets.simula.no/kvasir-seg/",
            url="https://datasets.simula.no/downloads/kvasir-seg.zip",
            sha256="03b30e21d584e04facf49397a2576738fd626815771afbbf788f74a7153478f7",
            folder="Kvasir-SEG",
            terms="research and education only",
            citation="Jha et al., MMM 2020",
        ),
        DataSet(
            name="cvc-clinicdb",
            title="CVC-ClinicDB",
            frames=612,
            homepage="https://polyp.grand-challenge.org/CVCClinicDB/",
            folder="CVC-ClinicDB",
            terms="research and education only",
            citation="Bernal et al., CMIG 2015",
        ),
        DataSet(
            name="phantom",
            title="Phantom",
            frames=0,
            folder="phantom",
            terms="drawn by polypseg itself, shows no patient",
            citation="none",
        ),
    )
}

# An archive beyond these is refused before anything is unpacked: no data set of the field comes near.
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_RATIO = 100  # of unpacked to packed bytes, over the whole archive; frames hardly compress
MAX_ENTRIES = 100_000

_CHUNK = 1 << 18  # bytes
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes worth another try


class _Cut(Exception):
    """A transfer that ended early and may be taken up again; the message says why."""


def table() -> str:
    """The data sets as lines of text: name, frames, how to get it, title, terms and page."""
    lines = []
    for entry in DATASETS.values():
        way = "download" if entry.url else ("drawn by polypseg" if entry.name == "phantom" else "by hand")
        frames = "any number" if entry.frames == 0 else f"{entry.frames} frames"
        lines.append(f"{entry.name:14} {frames:12} {way:18} {entry.title}")
        lines += [f"{'':14} {entry.terms}", f"{'':14} {entry.homepage}"]
    return "\n".join(lines)


def download(
    name: str,
    out: str | Path,
    url: str | None = None,
    sha256: str | None = None,
    progress: bool = True,
    timeout: float = 30.0,
    retries: int = 4,
    backoff: float = 1.0,
) -> Path:
    """Fetch a data set, check it and unpack it.

    The archive is written to ``out/NAME.zip.part``, and taken up there by the next call when this one is cut
    or interrupted. An archive already at ``out/NAME.zip`` (fetched by hand) is used instead of the network.
    The data set's folder appears only when it is whole. The archive stays.

    Args:
        name: a key of ``DATASETS``.
        out: the folder to put the data set's folder into; made where missing.
        url: fetch the archive from here (http or https) instead, as from a mirror.
        sha256: what the archive must hash to; by default the published archive's.
        progress: show a bar on standard error.
        timeout: seconds without a byte after which the connection counts as cut.
        retries: tries after the first one that may pass in a row without any progress.
        backoff: seconds before the first retry; doubled before each further one.

    Returns:
        The data set's folder, ``out/FOLDER``.

    Raises:
        UsageError: the name, URL or checksum is no valid one.
        PolypsegError: the data set must be fetched by hand; the network, the disk or the archive fails.
    """
    data_set = _look_up(name)
    folder, archive = Path(out) / data_set.folder, Path(out) / f"{data_set.name}.zip"
    if _is_complete(folder, data_set):
        print(f"{folder}: {data_set.title} is already complete; nothing to do", file=sys.stderr)
        return folder
    url, sha256 = _source(data_set, folder, url, sha256)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(Path(out), error) from error
    fetched = not archive.exists()
    if fetched:
        _fetch(url, archive, data_set, progress=progress, timeout=timeout, retries=retries, backoff=backoff)
    _verify(archive, sha256, fetched)
    _unpack(archive, folder, data_set)
    print(f"{folder}: {data_set.title}, {data_set.frames} frames ({data_set.terms})", file=sys.stderr)
    return folder


def _look_up(name: str) -> DataSet:
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name.lower(), DATASETS, 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(DATASETS)}"
    raise UsageError(f"{name}: no data set of that name; {hint}")


def _is_complete(folder: Path, data_set: DataSet) -> bool:
    """Whether the folder contains every frame with its mask; one that contains something else is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _frames(folder)
    if found == data_set.frames:
        return True
    raise PolypsegError(
        f"{folder}: is there but contains {found} of {data_set.frames} frames; move it away and run again"
    )


def _frames(folder: Path) -> int:
    """The number of frames with a mask that can be opened; 0 where the folder is no data set."""
    problems: list[Problem] = []
    try:
        return len(read(folder, problems))
    except PolypsegError:
        return 0


def _source(data_set: DataSet, folder: Path, url: str | None, sha256: str | None) -> tuple[str, str]:
    """The URL and the checksum to go by."""
    url, sha256 = url or data_set.url, (sha256 or data_set.sha256 or "").lower()
    if url is None and not data_set.homepage:
        raise PolypsegError(f"{data_set.name}: {data_set.terms}; there is nothing to download")
    if url is None:
        raise PolypsegError(
            f"{data_set.name}: must be fetched by hand from {data_set.homepage} ({data_set.terms}; cite "
            f"{data_set.citation}); unpack it as {folder}"
        )
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url}: is no http or https address; give one that starts with https://")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(f"{url}: needs the archive's SHA-256 to check against, 64 hexadecimal digits")
    return url, sha256


def _fetch(
    url: str,
    archive: Path,
    data_set: DataSet,
    *,
    progress: bool,
    timeout: float,
    retries: int,
    backoff: float,
) -> None:
    """Bring ``url`` to ``archive`` by way of a part file, trying again while each try gets further."""
    part = archive.with_name(f"{archive.name}.part")
    before = furthest = _size(part)
    failures = 0
    by_hand = (
        f"download it by hand from {data_set.homepage}, save it as {archive} and run the command again"
        if data_set.homepage
        else "run the command again later"
    )
    while True:
        try:
            _transfer(url, part, progress, timeout)
            break
        except urllib.error.HTTPError as error:
            raise PolypsegError(f"{url}: the server responds {error.code} {error.reason}; {by_hand}") from error
        except (_Cut, urllib.error.URLError) as error:
            size = _size(part)
            if isinstance(error, urllib.error.URLError) and size <= before:  # there never was a line
                raise PolypsegError(f"{url}: cannot be reached ({_reason(error)}); {by_hand}") from error
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures > retries:
                kept = f"{size / 1e6:.1f} MB are kept, run the command again to continue, or " if size else ""
                raise PolypsegError(
                    f"{url}: {_reason(error)}, {retries} retries did not help; {kept}{by_hand}"
                ) from error
            time.sleep(backoff * 2 ** (failures - 1))
    try:
        part.replace(archive)
        _state_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(archive, error) from error


def _transfer(url: str, part: Path, progress: bool, timeout: float) -> None:
    """One request that appends what is missing to ``part``, or writes it anew where the server wants that.

    Raises:
        _Cut: the transfer ended early.
        urllib.error.URLError: the server cannot be reached or refuses (``HTTPError``).
        PolypsegError: the disk refuses.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "polypseg"})  # noqa: S310  (see _opener)
    start = _size(part)
    state = _read_state(part)
    if start and state.get("url") == url:
        request.add_header("Range", f"bytes={start}-")
        if state.get("validator"):  # the server sends the whole file where it has changed since
            request.add_header("If-Range", state["validator"])
    try:
        response = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the part is no beginning of what the server has
            _remove(part)
            raise _Cut("the server's file has changed") from error
        if error.code in _BUSY:
            raise _Cut(f"the server responds {error.code} {error.reason}") from error
        raise
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut ({_reason(error)})") from error
    with response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status == 206 and _range_start(response.headers) == start:
            total = None if total is None else start + total
        elif response.status == 206:  # a range that was not asked for
            _remove(part)
            raise _Cut("the server sent another part of the file than asked for")
        else:
            start = 0
            write_json(_state_file(part), {"url": url, "validator": _validator(response.headers)})
        received = _copy(response, part, start, total, progress)
    if total is not None and received != total:
        raise _Cut(f"the connection was cut after {received / 1e6:.1f} of {total / 1e6:.1f} MB")


def _copy(response: Any, part: Path, start: int, total: int | None, progress: bool) -> int:
    """Append the body to ``part`` from byte ``start`` on; returns the part's size in bytes."""
    bar = tqdm(
        total=total,
        initial=start,
        desc=part.name.removesuffix(".part"),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    )
    try:
        with bar, part.open("ab" if start else "wb") as file:
            while True:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Cut(f"the connection was cut ({_reason(error)})") from error
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                start += len(chunk)
    except OSError as error:
        raise disk_error(part, error) from error
    return start


def _opener() -> urllib.request.OpenerDirector:
    """urllib's opener without its FTP and file handlers, so that a redirect cannot lead there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may carry (RFC 9110, 13.1.5): a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _range_start(headers: Mapping[str, str]) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range") or "")
    return int(match[1]) if match else None


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    with contextlib.suppress(PolypsegError):  # missing or damaged: the part is not trusted
        state = read_json(_state_file(part))
        if isinstance(state, dict):
            return state
    return {}


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def _verify(archive: Path, expected: str, fetched: bool) -> None:
    try:
        found = sha256_file(archive)
    except OSError as error:
        raise PolypsegError(f"{archive}: cannot be read ({error.strerror}); remove it and run again") from error
    if found == expected:
        return
    if fetched:
        _remove(archive)
        raise PolypsegError(
            f"{archive}: has SHA-256 {found}, expected {expected}; it was removed, run the command again"
        )
    raise PolypsegError(f"{archive}: has SHA-256 {found}, expected {expected}; remove it and run the command again")


def _unpack(archive: Path, folder: Path, data_set: DataSet) -> None:
    """Unpack the archive's ``FOLDER`` beside ``folder`` and rename it there when it is whole."""
    temporary = folder.parent / f".{data_set.name}.unpack"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        with zipfile.ZipFile(archive) as file:
            for info in _safe_entries(archive, file):
                path = PurePosixPath(info.filename)
                if path.parts[0] == data_set.folder and not info.is_dir():
                    target = temporary / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(info) as source, target.open("xb") as sink:
                        shutil.copyfileobj(source, sink, _CHUNK)
        whole = temporary / data_set.folder
        found = _frames(whole)
        if found != data_set.frames:
            raise PolypsegError(
                f"{archive}: contains {found} of {data_set.frames} frames in {data_set.folder}/; "
                f"it is not {data_set.title}, remove it"
            )
        whole.replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise PolypsegError(f"{archive}: is no ZIP archive that can be unpacked ({error}); remove it") from error
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _safe_entries(archive: Path, file: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries worth unpacking, after every entry was found harmless.

    ``zipfile`` itself never yields more bytes of an entry than the size declared for it, so the sum of the
    declared sizes bounds what is written.

    Raises:
        PolypsegError: one would be written elsewhere, is a link, encrypted or oddly packed, comes twice, or
            all together unpack to too much.
    """
    entries = file.infolist()
    unpacked = sum(info.file_size for info in entries)
    if len(entries) > MAX_ENTRIES:
        raise _refused(archive, f"contains {len(entries):,} entries, more than {MAX_ENTRIES:,}")
    if unpacked > MAX_UNPACKED_BYTES:
        raise _refused(archive, f"unpacks to {unpacked:,} bytes, more than {MAX_UNPACKED_BYTES:,}")
    if unpacked > MAX_RATIO * archive.stat().st_size:
        raise _refused(archive, f"unpacks to more than {MAX_RATIO} times its size")
    seen: set[str] = set()
    result = []
    for info in entries:
        parts = PurePosixPath(info.filename).parts
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not parts or parts[0] == "/" or ".." in parts or re.search(r"[\\:\x00-\x1f]", info.filename):
            raise _refused(archive, f"entry {info.filename!r} has a name that is not safe to write")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, f"entry {info.filename!r} is a link or a device")
        if info.flag_bits & 0x1:
            raise _refused(archive, f"entry {info.filename!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(archive, f"entry {info.filename!r} is packed by an unusual method")
        # Compared without case: on some disks the second would overwrite the first.
        if (key := "/".join(parts).casefold()) in seen:
            raise _refused(archive, f"entry {info.filename!r} comes twice")
        seen.add(key)
        if not any(part == "__MACOSX" or part.startswith(".") for part in parts):
            result.append(info)
    return result


def _refused(archive: Path, why: str) -> PolypsegError:
    return PolypsegError(f"{archive}: {why}; nothing was unpacked, fetch the archive from its publishers")
