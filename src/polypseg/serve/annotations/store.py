"""Frames in projects, and every version of what people made of them.

A frame is known by its content: the SHA-256 of its size and its decoded pixels. Version 0 is the model's prediction;
each save is a version of its own, which nothing changes or removes but removing the frame for good. The files of a
project lie in ``projects/<project>/``: ``frames/<hash>.*`` as they were sent, ``thumbnails/<hash>.jpg``, and
``masks/<hash>/<version>.png``. A file is written before the row that speaks of it, and removed after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg.drawing import overlay
from polypseg.errors import PolypsegError
from polypseg.files import atomic_write
from polypseg.names import FrameState
from polypseg.serve.annotations.database import FILE, Database
from polypseg.serve.annotations.labels import Labels
from polypseg.serve.annotations.regions import Given, Regions
from polypseg.serve.corrections import Corrections, check_size, key_of, png, stem_of
from polypseg.serve.state import now
from polypseg.serve.uploads import own_name

CORRECTIONS = "corrections"  # the project that is always there
STATES: tuple[FrameState, ...] = get_args(FrameState)
REVIEWED: tuple[FrameState, ...] = ("accepted", "corrected", "no_polyp")  # of which a mask is known for certain
_STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"II*\0": ".tif", b"MM\0*": ".tif"}
THUMBNAIL = 192  # pixels, of the longer side
NOT_IN_A_PROJECT = "the project has no such frame"

Mask = NDArray[np.bool_]
Frame = NDArray[np.uint8]


class Conflict(Exception):
    """Somebody saved another version since; ``row`` is the frame's."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row["version"])
        self.row = row


@dataclass(frozen=True)
class Picture:
    """A frame to be kept.

    Attributes:
        name: as it was sent.
        pixels: H×W×3 uint8 RGB, decoded.
        content: the file's bytes; None where only the pixels are kept.
        suffix: of the file, as ``.jpg``.
    """

    name: str
    pixels: Frame
    content: bytes | None = None
    suffix: str = ".png"


@dataclass(frozen=True)
class Save:
    """What somebody made of a frame.

    Attributes:
        based_on: the version that it was made from; None takes whatever is newest.
        state: one of ``STATES``.
        mask: H×W bool; None keeps the newest version's.
        given: of its regions; None carries over what was said of those that they overlap.
        kind: ``save``, ``import``, ``restore`` or ``folder``.
        restored: the version that is taken back.
    """

    based_on: int | None
    state: str
    mask: Mask | None = None
    given: Sequence[Given] | None = None
    kind: str = "save"
    restored: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model found in a frame: its mask, its highest confidence and its uncertainty, each 0..1."""

    mask: Mask
    confidence: float
    uncertainty: float
    model: str


def content_hash(frame: Frame) -> str:
    """What a frame is known by: SHA-256 of its size and its decoded pixels (H×W×3 uint8 RGB), in hexadecimal."""
    digest = hashlib.sha256(f"{frame.shape[1]}x{frame.shape[0]}:".encode())
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def picture_of(name: str, pixels: Frame, content: bytes) -> Picture:
    """A frame that is kept as it was sent, where all readers of data sets know that format; else as PNG."""
    known = next((suffix for start, suffix in _STARTS.items() if content.startswith(start)), None)
    if known is None and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        known = ".webp"
    return Picture(name, pixels, content, known) if known else Picture(name, pixels)


class Store:
    """The projects of a state folder. Thread-safe.

    Args:
        state: the state folder, which this process holds.
        labels: what polyps may be called.

    Raises:
        PolypsegError: another process uses the table, or it cannot be written.
    """

    def __init__(self, state: Path, labels: Labels) -> None:
        self.labels = labels
        self.folder = state / "projects"
        self.database = Database(state / FILE)
        self.corrections = Corrections(state / CORRECTIONS)
        self.added: Callable[[], object] = lambda: None  # called when there is something to predict
        self._lock = threading.RLock()
        if self.database.one("SELECT 1 FROM projects WHERE id = ?", CORRECTIONS) is None:
            self.database.insert("projects", id=CORRECTIONS, name="Corrections", created=now())

    def close(self) -> None:
        """Let another process have it."""
        self.database.close()

    # ---- projects --------------------------------------------------------------------------------------

    def create_project(self, name: str) -> str:
        """A new project; its id.

        Raises:
            HTTPException: 422 the name is empty.
        """
        shown = " ".join("".join(char if char.isprintable() else " " for char in name).split())[:100]
        if not shown:
            raise HTTPException(422, "name: must not be empty")
        slug = re.sub(r"[^a-z0-9]+", "-", shown.casefold()).strip("-")[:60] or "project"
        with self.database.transaction():
            chosen, number = slug, 1
            while self.database.one("SELECT 1 FROM projects WHERE id = ?", chosen):
                number += 1
                chosen = f"{slug}-{number}"
            self.database.insert("projects", id=chosen, name=shown, created=now())
        return chosen

    def projects(self, deleted: bool = False) -> list[str]:
        """The ids, in the order in which they were made."""
        rows = self.database.all(f"SELECT id FROM projects WHERE deleted IS {'NOT ' * deleted}NULL ORDER BY rowid")  # noqa: S608
        return [row["id"] for row in rows]

    def project(self, project: str, deleted: bool = True) -> dict[str, Any]:
        """A project's row, and how many frames are in each state.

        Raises:
            HTTPException: 404 there is none of that name; 409 it is deleted, and those do not count.
        """
        row = self.database.one("SELECT * FROM projects WHERE id = ?", project)
        if row is None:
            raise HTTPException(404, "there is no such project")
        if not deleted:
            self._check_shown(project)
        counted = self.database.all(
            "SELECT state, COUNT(*) AS frames, SUM(predicted IS NULL) AS waiting FROM frames "
            "WHERE project = ? AND deleted IS NULL GROUP BY state", project,
        )  # fmt: skip
        counts = dict.fromkeys(STATES, 0) | {one["state"]: one["frames"] for one in counted}
        waiting = sum(one["waiting"] for one in counted)
        return {**row, "counts": counts, "total": sum(counts.values()), "waiting": waiting}

    def _check_shown(self, project: str) -> None:
        if self.database.one("SELECT 1 FROM projects WHERE id = ? AND deleted IS NOT NULL", project):
            raise HTTPException(409, "the project is deleted; restore it first")

    def delete_project(self, project: str, for_good: bool) -> None:
        """Hide a project; with ``for_good`` remove one that is hidden, with its files.

        Raises:
            HTTPException: 404 there is none of that name, 409 it must stay, or is not hidden yet.
        """
        with self._lock, self.database.transaction():
            row = self.project(project)
            if project == CORRECTIONS:
                raise HTTPException(409, "the corrections cannot be deleted as a whole; delete their frames")
            if not for_good:
                self.database.change("projects", "id", project, deleted=row["deleted"] or now())
                return
            if not row["deleted"]:
                raise HTTPException(409, "only a deleted project is removed for good; delete it first")
            self.database.all("DELETE FROM versions WHERE frame IN (SELECT key FROM frames WHERE project = ?)", project)
            for table in ("frames", "imports"):
                self.database.all(f"DELETE FROM {table} WHERE project = ?", project)  # noqa: S608  (our names)
            self.database.all("DELETE FROM projects WHERE id = ?", project)
        shutil.rmtree(self.folder / project, ignore_errors=True)

    def restore_project(self, project: str) -> None:
        """Show a hidden project again. Raises ``HTTPException`` (404) where there is none."""
        self.project(project)
        self.database.change("projects", "id", project, deleted=None)

    # ---- frames ----------------------------------------------------------------------------------------

    def add(self, project: str, picture: Picture) -> tuple[dict[str, Any], bool]:
        """Keep a frame; its row, and whether it is new: one of this content keeps what people made of it.

        Raises:
            HTTPException: 404 no such project, 409 it is deleted.
            PolypsegError: the disk refuses.
        """
        digest = content_hash(picture.pixels)
        with self._lock:
            self.project(project, deleted=False)
            known = self._find(project, digest)
            if known is not None:
                return known, False
            folder = self.folder / project
            content = picture.content or png(picture.pixels[..., ::-1])
            file = f"{digest}{picture.suffix if picture.content else '.png'}"
            with atomic_write(folder / "frames" / file) as target:
                target.write(content)
            with atomic_write(folder / "thumbnails" / f"{digest}.jpg") as target:
                target.write(_jpeg(_small(picture.pixels)))
            height, width = picture.pixels.shape[:2]
            with self._changing(project) as revision:
                name, stem = self._told_apart(project, own_name(picture.name))
                self.database.insert(
                    "frames", project=project, hash=digest, name=name, stem=stem, sort=_sort_key(name), file=file,
                    width=width, height=height, state="predicted", created=now(), changed=revision,
                )  # fmt: skip
            self.added()
            return self.frame(project, digest), True

    def frame(self, project: str, digest: str) -> dict[str, Any]:
        """A frame's row.

        Raises:
            HTTPException: 404 there is no such project or frame.
        """
        row = self._find(project, digest)
        if row is None:
            self.project(project)
            raise HTTPException(404, NOT_IN_A_PROJECT)
        return row

    def delete(self, project: str, digest: str, for_good: bool) -> None:
        """Hide a frame; with ``for_good`` remove one that is hidden, with its versions and files.

        Raises:
            HTTPException: 404 there is none, 409 it is not hidden yet.
        """
        with self._lock:
            row = self.frame(project, digest)
            if for_good and not row["deleted"]:
                raise HTTPException(409, "only a deleted frame is removed for good; delete it first")
            with self._changing(project) as revision:
                if for_good:
                    self.database.all("DELETE FROM versions WHERE frame = ?", row["key"])
                    self.database.all("DELETE FROM frames WHERE key = ?", row["key"])
                elif not row["deleted"]:
                    self.database.change("frames", "key", row["key"], deleted=now(), changed=revision, mirror=None)
                    self._unmirror(row)
            if for_good:
                folder = self.folder / project
                shutil.rmtree(folder / "masks" / digest, ignore_errors=True)
                for path in (folder / "frames" / row["file"], folder / "thumbnails" / f"{digest}.jpg"):
                    path.unlink(missing_ok=True)

    def restore(self, project: str, digest: str) -> None:
        """Show a hidden frame again. Raises ``HTTPException`` (404) where there is none."""
        with self._lock:
            row = self.frame(project, digest)
            if row["deleted"]:
                with self._changing(project) as revision:
                    self.database.change("frames", "key", row["key"], deleted=None, changed=revision)
                    self._mirror({**row, "deleted": None}, self._read(project, digest, self._mask_file(row)))

    def image(self, project: str, digest: str) -> Path:
        """The file of a frame. Raises as ``frame``."""
        return self.folder / project / "frames" / str(self.frame(project, digest)["file"])

    def pixels(self, row: dict[str, Any]) -> Frame:
        """A frame as it is decoded, of a file that was decoded before: H×W×3 uint8 RGB."""
        from polypseg.io.pictures import read_frame

        return read_frame(self.folder / row["project"] / "frames" / row["file"])

    def mask(self, project: str, digest: str, version: int | None = None) -> Mask | None:
        """A version's mask, by default the newest's: H×W bool; None where the prediction is not there yet.

        Raises:
            HTTPException: 404 there is no such frame or version.
        """
        row = self.frame(project, digest)
        return self._read(project, digest, self._mask_file(row, version))

    def mask_path(self, project: str, digest: str, version: int | None = None) -> Path:
        """The PNG of a version's mask, by default the newest's. Raises as ``mask``; 404 where it is not there yet."""
        row = self.frame(project, digest)
        path = self.folder / project / "masks" / digest / self._mask_file(row, version)
        if not path.is_file():
            raise HTTPException(404, "the frame has no mask yet")
        return path

    def thumbnail(self, project: str, digest: str) -> bytes:
        """A small JPEG with the outline of the newest mask. Raises as ``frame``."""
        row = self.frame(project, digest)
        content = (self.folder / project / "thumbnails" / f"{digest}.jpg").read_bytes()
        mask = self._read(project, digest, self._mask_file(row))
        if mask is None or not mask.any():
            return content
        small = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        share = cv2.resize(mask.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA)
        return _jpeg(overlay(small[..., ::-1], share >= 0.5))

    # ---- versions --------------------------------------------------------------------------------------

    def save(self, project: str, digest: str, save: Save, author: str) -> tuple[dict[str, Any], bool]:
        """A new version of a frame; its row, and whether there is one: what is there already makes none.

        Raises:
            Conflict: another version was saved since the one that it is based on.
            HTTPException: 404 no such frame, 409 it is deleted or its prediction is not there yet, 422 the mask or
                what is said of it does not fit.
            PolypsegError: the disk refuses; nothing is changed then.
        """
        with self._lock:
            row = self.frame(project, digest)
            if row["deleted"]:
                raise HTTPException(409, "the frame is deleted; restore it first")
            self._check_shown(project)
            mask, polyps = self._content(row, save)
            if row["version"] and self._is_there(row, save.state, mask, polyps):
                return row, False
            if save.based_on is not None and save.based_on != row["version"]:
                raise Conflict(row)
            self._write(row, save, mask, polyps, author)
            return self.frame(project, digest), True

    def correct(self, name: str, frame: Frame, mask: Mask, author: str) -> str:
        """A frame with its mask, whatever is known of it, as the newest version in the corrections; the pair's stem.

        Raises:
            HTTPException: 422 the two are not of one size.
            PolypsegError: the disk refuses.
        """
        check_size(mask, frame.shape[:2])
        with self._lock:
            row, _ = self.add(CORRECTIONS, Picture(name, frame))
            self.restore(CORRECTIONS, row["hash"])
            state = "corrected" if mask.any() else "no_polyp"
            row, _ = self.save(CORRECTIONS, row["hash"], Save(None, state, mask), author)
            return str(row["mirror"])

    def versions(self, project: str, digest: str) -> list[dict[str, Any]]:
        """Those of a frame, the newest first. Raises as ``frame``."""
        key = self.frame(project, digest)["key"]
        rows = self.database.all("SELECT * FROM versions WHERE frame = ? ORDER BY number DESC", key)
        return [{**row, "polyps": json.loads(row["polyps"])} for row in rows]

    def take_back(
        self, project: str, digest: str, number: int, based_on: int, author: str
    ) -> tuple[dict[str, Any], bool]:
        """A new version that is as an earlier one was; 0 is the prediction. As ``save``; 404 no such version."""
        row = self.frame(project, digest)
        if number == 0:
            save = Save(based_on, "predicted", kind="restore", restored=0)
            return self.save(project, digest, save, author)
        version = next((one for one in self.versions(project, digest) if one["number"] == number), None)
        if version is None:
            raise HTTPException(404, "the frame has no such version")
        given = [Given(tuple(one["at"]), one["class"], one["attributes"]) for one in version["polyps"]]
        mask = self._read(project, digest, self._mask_file(row, number))
        save = Save(based_on, version["state"], mask, given, "restore", number)
        return self.save(project, digest, save, author)

    def predict(self, row: dict[str, Any], found: Prediction) -> None:
        """Enter what a model found in a frame; shown where nobody has saved anything of his own."""
        project, digest = row["project"], row["hash"]
        polyps = Regions(found.mask).described([], self.labels)
        with self._lock:
            there = self._find(project, digest)
            if there is None:  # removed meanwhile
                return
            with atomic_write(self.folder / project / "masks" / digest / "0.png") as file:
                file.write(png(found.mask.astype(np.uint8) * 255))
            shown = _shown(found.mask, polyps) if there["state"] == "predicted" else {}
            with self._changing(project):
                self.database.change(
                    "frames", "key", there["key"], confidence=found.confidence, uncertainty=found.uncertainty,
                    predicted=found.model, found=json.dumps(polyps), **shown,
                )  # fmt: skip

    def give_up(self, row: dict[str, Any], model: str) -> None:
        """Enter that a model cannot predict a frame."""
        self.database.change("frames", "key", row["key"], predicted=model)

    def to_predict(self, model: str) -> dict[str, Any] | None:
        """A frame of which this model's prediction is missing, those without any first; None where there is none."""
        return self.database.one(
            "SELECT frames.* FROM frames JOIN projects ON projects.id = frames.project WHERE frames.deleted IS NULL "
            "AND projects.deleted IS NULL AND (predicted IS NULL OR predicted != ?) "
            "ORDER BY predicted IS NOT NULL, key LIMIT 1", model,
        )  # fmt: skip

    # ---- the folder of corrections ---------------------------------------------------------------------

    def read_corrections(self, decode: Callable[[Path, Path], tuple[Frame, Mask]]) -> list[str]:
        """Take in what lies in ``corrections/`` and is not known: pairs, other masks; hide frames that are gone.

        Args:
            decode: gives the frame and the mask of two files; what it raises (``PolypsegError``, ``HTTPException``)
                leaves the pair alone.

        Returns:
            The lines of pairs that cannot be read.
        """
        problems = []
        pairs = self.corrections.pairs()
        known = {row["path"]: (row["size"], row["time"]) for row in self.database.all("SELECT * FROM mirrored")}
        for stem, (image, mask) in pairs.items():
            states = {str(path.relative_to(self.corrections.folder)): _file_state(path) for path in (image, mask)}
            if all(known.get(path) == state for path, state in states.items()):
                continue
            try:
                pixels, drawn = decode(image, mask)
                if pixels.shape[:2] != drawn.shape:
                    raise PolypsegError(f"{mask.name}: is not of its frame's size")
            except (PolypsegError, HTTPException) as error:
                problems.append(str(getattr(error, "detail", None) or error))
                continue
            self._take_in(stem, picture_of(image.name, pixels, image.read_bytes()), drawn)
            with self.database.transaction():
                for path, (size, time) in states.items():
                    self.database.all("INSERT OR REPLACE INTO mirrored VALUES (?, ?, ?)", path, size, time)
        if pairs:
            whole = {key_of(stem) for stem in pairs}
            rows = "SELECT * FROM frames WHERE project = ? AND deleted IS NULL AND mirror IS NOT NULL"
            for row in self.database.all(rows, CORRECTIONS):
                if key_of(row["mirror"]) in whole:
                    continue
                if self.corrections.files(row["mirror"])[0] is None:
                    self.delete(CORRECTIONS, row["hash"], for_good=False)
                else:  # its mask alone is gone
                    with self.database.transaction():
                        self._mirror(row, self.mask(CORRECTIONS, row["hash"]))
        return problems

    def _take_in(self, stem: str, picture: Picture, mask: Mask) -> None:
        """A pair of the folder becomes a frame and a version of its own."""
        with self._lock, self.database.transaction():
            row, _ = self.add(CORRECTIONS, picture)
            if row["deleted"]:
                self.database.change("frames", "key", row["key"], deleted=None)
            self.database.change("frames", "key", row["key"], mirror=stem)
            state = row["state"] if row["state"] in REVIEWED and mask.any() == (row["state"] != "no_polyp") else None
            state = state or ("corrected" if mask.any() else "no_polyp")
            self.save(CORRECTIONS, row["hash"], Save(None, state, mask, kind="folder"), "folder")

    def _mirror(self, row: dict[str, Any], mask: Mask | None) -> None:
        """Have ``corrections/`` contain a frame whose mask is known, and no other. Within a transaction."""
        if row["project"] != CORRECTIONS:
            return
        if row["state"] not in REVIEWED or mask is None:
            self._unmirror(row)
            self.database.change("frames", "key", row["key"], mirror=None)
            return
        stem = self.corrections.keep(row["mirror"], row["name"], lambda: self.pixels(row), mask)
        self.database.change("frames", "key", row["key"], mirror=stem)
        image, masks = self.corrections.files(stem)
        for path in masks if image is None else [image, *masks]:
            size, time = _file_state(path)
            where = str(path.relative_to(self.corrections.folder))
            self.database.all("INSERT OR REPLACE INTO mirrored VALUES (?, ?, ?)", where, size, time)

    def _unmirror(self, row: dict[str, Any]) -> None:
        if row["mirror"]:
            self.corrections.remove(row["mirror"])

    # ---- within ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self, project: str) -> Iterator[int]:
        """A transaction that changes a project; its new revision."""
        with self.database.transaction():
            self.database.all("UPDATE projects SET revision = revision + 1 WHERE id = ?", project)
            row = self.database.one("SELECT revision FROM projects WHERE id = ?", project)
            yield int(row["revision"]) if row else 0

    def _find(self, project: str, digest: str) -> dict[str, Any] | None:
        return self.database.one("SELECT * FROM frames WHERE project = ? AND hash = ?", project, digest)

    def _told_apart(self, project: str, name: str) -> tuple[str, str]:
        """The name and its stem's key, with a number where another frame is called so."""
        stem, number = stem_of(name), 1
        ending = name[len(stem) :]
        chosen = stem
        while self.database.one("SELECT 1 FROM frames WHERE project = ? AND stem = ?", project, key_of(chosen)):
            number += 1
            chosen = f"{stem}-{number}"
        return chosen + ending, key_of(chosen)

    def _mask_file(self, row: dict[str, Any], version: int | None = None) -> str:
        number = row["version"] if version is None else version
        if number == 0:
            return "0.png"
        found = self.database.one("SELECT mask FROM versions WHERE frame = ? AND number = ?", row["key"], number)
        if found is None:
            raise HTTPException(404, "the frame has no such version")
        return found["mask"] or "0.png"

    def _read(self, project: str, digest: str, file: str) -> Mask | None:
        path = self.folder / project / "masks" / digest / file
        if not path.is_file():
            return None
        levels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        return np.asarray(levels) > 127

    def _content(self, row: dict[str, Any], save: Save) -> tuple[Mask | None, list[dict[str, Any]]]:
        """The mask and the polyps of a version; the mask is None where it is the prediction's."""
        before = self._read(row["project"], row["hash"], self._mask_file(row))
        mask = save.mask
        if mask is not None:
            check_size(mask, (row["height"], row["width"]))
        if save.state == "no_polyp":
            if mask is not None and mask.any():
                raise HTTPException(422, "mask: shows a polyp, but the state is no_polyp; choose another state")
            mask = np.zeros((row["height"], row["width"]), bool)
        elif save.state == "predicted":
            return None, json.loads(row["found"])
        elif mask is None:
            if before is None and save.state in REVIEWED:
                raise HTTPException(409, "the frame's prediction is not there yet; come again, or send a mask")
            mask = before
            if mask is None:
                return None, []
        regions = Regions(mask)
        given = save.given
        if given is None and before is not None:
            given = regions.carried(before, json.loads(row["polyps"]))
        checked = save.given is not None and save.kind != "restore"
        try:
            return mask, regions.described(given or (), self.labels, checked)
        except PolypsegError as error:
            raise HTTPException(422, str(error)) from error

    def _is_there(self, row: dict[str, Any], state: str, mask: Mask | None, polyps: list[dict[str, Any]]) -> bool:
        """Whether a frame is so already."""
        if row["state"] != state or json.loads(row["polyps"]) != polyps:
            return False
        file = self._mask_file(row)
        if mask is None:
            return file == "0.png"
        there = self._read(row["project"], row["hash"], file)
        return there is not None and bool((there == mask).all())

    def _write(
        self, row: dict[str, Any], save: Save, mask: Mask | None, polyps: list[dict[str, Any]], author: str
    ) -> None:
        number, moment, file = row["version"] + 1, now(), None
        before = self._read(row["project"], row["hash"], self._mask_file(row))
        if mask is not None:
            file = f"{number}.png"
            with atomic_write(self.folder / row["project"] / "masks" / row["hash"] / file) as target:
                target.write(png(mask.astype(np.uint8) * 255))
        changed = {"state": save.state, "version": number, "author": author, "time": moment}
        shown = _shown(self._read(row["project"], row["hash"], "0.png") if mask is None else mask, polyps)
        pairs = set(self.corrections.names()) if row["project"] == CORRECTIONS else set()
        try:
            with self._changing(row["project"]) as revision:
                self.database.insert(
                    "versions", frame=row["key"], number=number, based_on=row["version"], state=save.state, mask=file,
                    area=shown["area"], polyps=json.dumps(polyps), author=author, time=moment, kind=save.kind,
                    restored=save.restored,
                )  # fmt: skip
                self.database.change("frames", "key", row["key"], changed=revision, **changed, **shown)
                if save.kind != "folder":  # which contains it
                    self._mirror({**row, **changed}, mask)
        except BaseException:
            with contextlib.suppress(PolypsegError, OSError):  # as it was, as far as the disk lets it
                if row["mirror"] and before is not None:
                    self.corrections.keep(row["mirror"], row["name"], lambda: self.pixels(row), before)
                elif row["project"] == CORRECTIONS:
                    for stem in set(self.corrections.names()) - pairs:
                        self.corrections.remove(stem)
            raise


def _shown(mask: Mask | None, polyps: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of a frame's row that say what its newest mask contains."""
    named = {one["class"] for one in polyps}
    named |= {f"{name}:{value}" for one in polyps for name, value in one["attributes"].items()}
    area = None if mask is None else float(mask.mean())
    return {"area": area, "polyps": json.dumps(polyps), "labels": "".join(f"\n{one}\n" for one in sorted(named))}


def _file_state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sort_key(name: str) -> str:
    """A name so that 2 comes before 10."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].lstrip("0").rjust(20, "0"), name.casefold())


def _small(frame: Frame) -> Frame:
    scale = min(1.0, THUMBNAIL / max(frame.shape[:2]))
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(frame: Frame) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
