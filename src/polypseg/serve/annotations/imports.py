"""Data sets taken into a project: a ZIP file or many files; images and masks, COCO, YOLO, or pictures alone.

What arrives is kept in ``incoming/<import>/`` of the project until it has been taken in, so that a restart continues.
``polypseg.data`` reads it, in a process of its own. A frame that is known keeps what people made of it. What
masks cannot say, ``frames.json`` of an export does (``records``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.files import atomic_write
from polypseg.serve.annotations import records
from polypseg.serve.annotations.labels import Labels
from polypseg.serve.annotations.regions import Given
from polypseg.serve.annotations.store import Save, Store, content_hash, picture_of
from polypseg.serve.decoding import Decoders
from polypseg.serve.jobs import Stopped
from polypseg.serve.log import without_values
from polypseg.serve.settings import Settings
from polypseg.serve.state import now
from polypseg.serve.uploads import own_name, read_still

log = logging.getLogger("polypseg.serve")

MOST_FILES = 100_000  # of a ZIP file
MOST_LINES = 100  # of problems that are kept; all are counted
DEEPEST = 8  # folders within folders
READ_SECONDS = 600.0  # that looking through a data set may take
_UPLOAD, _FILES = "upload.zip", "files"


class Imports:
    """Takes imports in, and works through one at a time.

    Args:
        store: of the projects.
        settings: limits.
        decoders: what opens the frames.
        readers: what looks through a data set, which may take longer.
    """

    def __init__(self, store: Store, settings: Settings, decoders: Decoders, readers: Decoders) -> None:
        self._store, self._settings = store, settings
        self._decoders, self._readers = decoders, readers

    def submit(
        self, project: str, uploads: Sequence[tuple[str | None, IO[bytes] | Path]], frame_state: str, author: str
    ) -> dict[str, Any]:
        """Keep what arrives, to be taken in; when this returns, it survives a crash.

        Args:
            project: that it is for.
            uploads: each one's name, which may contain folders, and content, or the file that has it.
            frame_state: of frames that come with a mask or labels; with ``accepted`` what ``frames.json`` says comes
                first.
            author: who sends it.

        Raises:
            HTTPException: 404 or 409 as ``Store.project``.
            PolypsegError: the disk refuses.
            OSError: one of the files cannot be read.
        """
        self._store.project(project, deleted=False)
        identity = secrets.token_hex(16)
        folder = self._folder(project, identity)
        try:
            for number, (name, upload) in enumerate(uploads):
                with upload.open("rb") if isinstance(upload, Path) else contextlib.nullcontext(upload) as content:
                    head = content.read(4)
                    content.seek(0)
                    zipped = len(uploads) == 1 and head == b"PK\x03\x04"
                    target = folder / _UPLOAD if zipped else _place(folder / _FILES, name or "", number)
                    with atomic_write(target) as file:
                        shutil.copyfileobj(content, file, 1 << 20)
            self._store.database.insert(
                "imports", id=identity, project=project, state="waiting", frame_state=frame_state, done=0, total=None,
                added=0, known=0, problems="[]", problem_count=0, error=None, author=author, created=now(),
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.get(project, identity)

    def note(self, project: str, lines: Sequence[str]) -> None:
        """Enter what is wrong with the files of a project as an import, unless the newest one says so already."""
        newest, problems = self.newest(project), json.dumps(list(lines[:MOST_LINES]))
        if lines and (newest is None or newest["problems"] != problems):
            self._store.database.insert(
                "imports", id=secrets.token_hex(16), project=project, state="done", frame_state="corrected", done=0,
                total=len(lines), added=0, known=0, problems=problems, problem_count=len(lines), error=None,
                author="folder", created=now(), ended=now(),
            )  # fmt: skip

    def tidy(self) -> None:
        """Remove what a process left that died just after an import had ended."""
        for folder in self._store.folder.glob("*/incoming/*"):
            row = self._store.database.one("SELECT state FROM imports WHERE id = ?", folder.name)
            if row is None or row["state"] not in ("waiting", "running"):
                shutil.rmtree(folder, ignore_errors=True)

    def get(self, project: str, identity: str) -> dict[str, Any]:
        """An import's row. Raises ``HTTPException`` (404) where there is none."""
        self._store.project(project)
        row = self._store.database.one("SELECT * FROM imports WHERE id = ? AND project = ?", identity, project)
        if row is None:
            raise HTTPException(404, "there is no such import")
        return row

    def newest(self, project: str) -> dict[str, Any] | None:
        """The import of a project that came last."""
        return self._store.database.one("SELECT * FROM imports WHERE project = ? ORDER BY rowid DESC LIMIT 1", project)

    def waiting(self) -> dict[str, Any] | None:
        """The import to be worked on, one that was begun first."""
        return self._store.database.one(
            "SELECT * FROM imports WHERE state IN ('waiting', 'running') ORDER BY state = 'waiting', rowid LIMIT 1"
        )

    def work(self, row: dict[str, Any], check: Callable[[], object]) -> None:
        """Take an import in, or continue.

        Args:
            row: the import's.
            check: called between two frames; what it raises ends the work for now.

        Raises:
            PolypsegError: the disk refuses.
            OSError: likewise.
            sqlite3.Error: likewise.
        """
        folder = self._folder(row["project"], row["id"])
        try:
            problems = self._through(row, folder, check)
            error = None if row["total"] or problems else "contains no picture; send images/ and masks/, or pictures"
        except _Refused as refusal:
            error = str(refusal)
        except HTTPException as refusal:  # the project is deleted meanwhile
            if refusal.status_code == 503:
                raise
            error = str(refusal.detail)
        except (PolypsegError, OSError, sqlite3.Error, Stopped):
            raise
        except Exception as crash:  # noqa: BLE001  (any: else it would be tried for ever)
            log.error("crash", extra={"fields": without_values(crash)})
            error = "the service failed at this; its log says more"
        self._change(row, state="failed" if error else "done", error=error, ended=now())
        shutil.rmtree(folder, ignore_errors=True)

    def _through(self, row: dict[str, Any], folder: Path, check: Callable[[], object]) -> int:
        """The number of problems, when all frames are taken in."""
        files = folder / _FILES
        if (folder / _UPLOAD).is_file():
            shutil.rmtree(files, ignore_errors=True)
            _unpack(folder / _UPLOAD, files, self._settings.max_job_bytes)
        found = self._reading(lambda: self._readers.call("the data set", look_through, files))
        _check_labels(found["labels"], self._store.labels)
        items, lines = found["items"], found["problems"] if row["state"] == "waiting" else []
        problems = json.loads(row["problems"])
        self._note(row, problems, lines)
        self._change(row, state="running", total=len(items))
        for number, item in enumerate(items):
            if number < row["done"]:
                continue
            check()
            outcome, lines = self._take(row, files, item)
            if outcome:
                row[outcome] += 1
            self._note(row, problems, lines)
            self._change(row, done=number + 1, added=row["added"], known=row["known"])
        return int(row["problem_count"])

    def _take(self, row: dict[str, Any], files: Path, item: Mapping[str, Any]) -> tuple[str | None, list[str]]:
        """What became of a frame (``added``, ``known`` or None), and what is wrong with it."""
        project, path = row["project"], files / item["image"]
        try:
            pixels = self._reading(
                lambda: self._decoders.call(path.name, read_still, path, path.name, self._settings.max_pixels)
            )
        except _Refused as refusal:
            return None, [str(refusal)]
        lines: list[str] = []
        mask, given = None, []
        record = item["record"]
        if record is not None and record.hash != content_hash(pixels):
            record, lines = None, [f"{path.name}: is another picture than in {records.FILE}, which is not read for it"]
        if item["mask"] is not None:
            labels = self._store.labels
            single = labels.default if len(labels.classes) == 1 else None
            try:
                said = record.given if record else ()
                mask, given, more = self._reading(
                    lambda: self._decoders.call(
                        path.name, read_labelled, files / item["mask"], item["kind"], single, said
                    )
                )
                lines += more
                if mask.shape != pixels.shape[:2]:
                    sizes = " but its frame ".join(f"{one.shape[1]}×{one.shape[0]}" for one in (mask, pixels))
                    raise _Refused(f"{item['mask']}: mask is {sizes}; the frame is taken without it")
            except _Refused as refusal:
                mask, given, lines = None, [], [*lines, str(refusal)]
        frame, fresh = self._store.add(project, picture_of(path.name, pixels, path.read_bytes()))
        if mask is not None and frame["version"] == 0 and not frame["deleted"]:
            state = row["frame_state"]
            if state == "accepted" and record is not None and not (record.state == "no_polyp" and mask.any()):
                state = record.state
            if state == "accepted" and not mask.any():
                state = "no_polyp"
            try:
                self._store.save(project, frame["hash"], Save(0, state, mask, given, "import"), row["author"])
            except HTTPException as error:
                lines = [*lines, f"{path.name}: {error.detail}"]
        elif mask is not None and not fresh:
            lines = [*lines, f"{path.name}: is known, as {frame['name']}, and keeps what was made of it"]
        return "added" if fresh else "known", lines

    def _reading(self, work: Callable[[], Any]) -> Any:
        """What ``work`` reads; where that cannot be read, ``_Refused`` with a line that names no folder here."""
        try:
            return work()
        except HTTPException as error:
            if error.status_code == 503:
                raise
            raise _Refused(_shown(error.detail)) from error
        except PolypsegError as error:
            raise _Refused(_shown(str(error))) from error

    def _note(self, row: dict[str, Any], problems: list[str], lines: Sequence[str]) -> None:
        if lines:
            problems += [_shown(line) for line in lines][: max(0, MOST_LINES - len(problems))]
            row["problem_count"] += len(lines)
            self._change(row, problems=json.dumps(problems), problem_count=row["problem_count"])

    def _change(self, row: dict[str, Any], **values: Any) -> None:
        row |= values
        self._store.database.change("imports", "id", row["id"], **values)

    def _folder(self, project: str, identity: str) -> Path:
        return self._store.folder / project / "incoming" / identity


class _Refused(Exception):
    """What arrived cannot be read; the line says why."""


def _shown(line: str) -> str:
    """A line without the folders of this computer."""
    return re.sub(r"\S*/incoming/[0-9a-f]{32}/(?:files/)?", "", line)


def _place(folder: Path, name: str, number: int) -> Path:
    """Where a file of a browser or a ZIP file goes: below the folder, whatever its name says."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")][-DEEPEST:]
    *above, last = [own_name(part) for part in parts] or ["upload"]
    place = folder.joinpath(*above) / last
    return place if not place.exists() else place.with_name(f"{number}-{last}")


def _unpack(path: Path, folder: Path, most: int) -> None:
    """Unpack a ZIP file: plain files alone, no more bytes than ``most`` whatever it says.

    Raises:
        _Refused: it is damaged, encrypted or too large.
        PolypsegError: the disk refuses.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir() and not _is_litter(one.filename)]
            if len(members) > MOST_FILES:
                raise _Refused(f"the ZIP file contains more than {MOST_FILES} files; send it in parts")
            left = most
            for number, member in enumerate(members):
                with archive.open(member) as content, atomic_write(_place(folder, member.filename, number)) as file:
                    while block := content.read(1 << 20):
                        left -= len(block)
                        if left < 0:
                            raise _Refused(f"the ZIP file unpacks to more than {most >> 20} MiB; send it in parts")
                        file.write(block)
    except (PolypsegError, OSError):
        raise
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise _Refused(
            f"the ZIP file cannot be unpacked ({' '.join(str(error).split())[:200]}); pack it anew"
        ) from error
    except Exception as error:
        if type(error).__module__ not in ("zlib", "lzma", "_lzma", "bz2"):
            raise
        raise _Refused("the ZIP file is damaged; pack it anew") from error


def _is_litter(name: str) -> bool:
    """Whether a file is one that systems put into ZIP files."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini") or parts[-1].startswith("._")


def _check_labels(found: Sequence[tuple[str, str, Mapping[str, Any]]], labels: Labels) -> None:
    """Refuse classes and attributes that the service does not know, before anything is taken in.

    Where it knows one class alone, whatever one class a file has is that.
    """
    classes = {name for _, name, _ in found}
    for where, name, attributes in found:
        called = labels.default if len(labels.classes) == 1 and len(classes) == 1 else name
        problem = labels.problem(called, attributes)
        if problem is not None:
            raise _Refused(f"{where}: {problem}, add it to the service's --labels, or rename it; nothing was taken in")


# ---- in a process of its own ----------------------------------------------------------------------------


def look_through(files: Path) -> dict[str, Any]:
    """The frames below a folder, and what their label files say.

    Returns:
        ``items``, one a frame: ``image`` and ``mask`` (below the folder; None without one), ``kind`` of the mask, and
        the ``record`` of it or None; ``problems``, lines; ``labels``: file, class and attributes that occur.

    Raises:
        PolypsegError: a data set cannot be read.
    """
    from polypseg.data import read
    from polypseg.data.folder import Problem
    from polypseg.io.kinds import IMAGE_SUFFIXES

    items: list[dict[str, Any]] = []
    lines: list[str] = []
    labels: dict[str, tuple[str, str, dict[str, str]]] = {}
    roots = _roots(files)
    for root in roots:
        problems: list[Problem] = []
        catalog = read(root, problems)
        known = records.read(root)
        paired = {}
        for row in catalog:
            paired[Path(row.image_path)] = row
        lines += [one.message for one in problems if one.kind != "missing-mask"]
        for image in sorted((root / "images").rglob("*")):
            if not image.is_file() or image.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            row = paired.get(image.resolve())
            mask = None if row is None else str(Path(row.mask_path).relative_to(files.resolve()))
            kind = "binary" if row is None else row.mask_kind
            record = known.pop(image.name, None)
            items.append({"image": str(image.relative_to(files)), "mask": mask, "kind": kind, "record": record})
            if record is not None and mask is not None and not kind.startswith("coco:"):
                for given in record.given:
                    one = (records.FILE, given.label, dict(given.attributes))
                    labels.setdefault(repr(one), one)
        for one in _named([(row.mask_path, row.mask_kind) for row in catalog]):
            labels.setdefault(repr(one), one)
        lines += [f"{records.FILE}: names {one}, which is not in images/; add it or remove its entry" for one in known]
    if not roots:
        pictures = [path for path in sorted(files.rglob("*")) if path.is_file()]
        items = [
            {"image": str(path.relative_to(files)), "mask": None, "kind": "binary", "record": None} for path in pictures
        ]
    return {"items": items, "problems": lines, "labels": list(labels.values())}


def _roots(files: Path) -> list[Path]:
    """The folders that contain ``images/``, the files' own first."""
    folders = [files, *(path for path in sorted(files.rglob("*")) if path.is_dir())]
    return [path for path in folders if (path / "images").is_dir()]


def _named(masks: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """File, class and attributes of every polyp of label files."""
    from polypseg.io.label_files import YOLO_NAMES, is_label_kind, labels_of

    for path, kind in masks:
        if is_label_kind(kind):
            where = YOLO_NAMES if kind.startswith("yolo:") else Path(path).name
            with contextlib.suppress(PolypsegError):  # which the frame's own turn reports
                for label, attributes in labels_of(path, kind):
                    yield where, label, dict(attributes)


def read_labelled(
    path: Path, kind: str, single: str | None, said: Sequence[Given] = ()
) -> tuple[NDArray[np.bool_], list[Given], list[str]]:
    """A frame's mask, H×W bool, what is said of its regions, and what of that cannot be kept.

    Args:
        path: of the mask or the label file.
        kind: how it is read.
        single: the class that every polyp has; None takes the file's.
        said: what ``frames.json`` says of the regions: of a mask all that is known, of YOLO's outlines the attributes;
            COCO says it itself.

    Raises:
        PolypsegError: it cannot be read.
    """
    from polypseg.io.label_files import is_label_kind, outlined
    from polypseg.io.pictures import read_mask

    if not is_label_kind(kind):
        mask = read_mask(path)
        return mask, *_placed(mask, said, single, path.name)
    polyps = sorted(outlined(path, kind), key=lambda one: -int(one.region.sum()))
    mask = np.any([one.region for one in polyps], axis=0) if polyps else read_mask(path, kind)
    numbers = _numbered(mask)
    attributes = {} if kind.startswith("coco:") else {_number(numbers, one): one for one in said}
    found: dict[int, Given] = {}
    lines = []
    for one in polyps:
        places = np.argwhere(one.region)
        if not len(places):
            lines.append(f"{path.name}: an outline of {one.label} contains no pixel; draw it again")
            continue
        y, x = (int(value) for value in places[0])
        number = int(numbers[y, x])
        known = attributes.get(number)
        further = known.attributes if known is not None and known.label == one.label else {}
        given = Given((x, y), single or one.label, {**further, **one.attributes})
        first = found.setdefault(number, given)
        if (first.label, first.attributes) != (given.label, given.attributes):
            lines.append(f"{path.name}: polyps that touch have different labels; the largest one's are kept")
    return mask, list(found.values()), lines


def _placed(
    mask: NDArray[np.bool_], said: Sequence[Given], single: str | None, name: str
) -> tuple[list[Given], list[str]]:
    """What ``frames.json`` says of the regions of a mask, and what of that cannot be kept."""
    numbers = _numbered(mask)
    found: dict[int, Given] = {}
    lines = []
    for one in said:
        number = _number(numbers, one)
        if number == 0:
            lines.append(f"{name}: has no polyp at {one.at[0]}, {one.at[1]}, where {records.FILE} names one")
        elif number not in found:
            found[number] = replace(one, label=single or one.label)
        elif (found[number].attributes, found[number].label) != (one.attributes, single or one.label):
            lines.append(f"{name}: has one polyp where {records.FILE} names two; the largest one's labels are kept")
    return list(found.values()), lines


def _numbered(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The number of each pixel's region, H×W; 0 outside."""
    import cv2

    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1], np.int32)


def _number(numbers: NDArray[np.int32], given: Given) -> int:
    """That of the region which contains the pixel; 0 where none does."""
    (x, y), (height, width) = given.at, numbers.shape
    return int(numbers[y, x]) if 0 <= x < width and 0 <= y < height else 0
