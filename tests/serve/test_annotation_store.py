"""What people made of frames survives whatever happens to the disk, the folder of corrections and the service."""

from __future__ import annotations

import errno
import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg import files
from polypseg.data import read
from polypseg.errors import PolypsegError
from polypseg.io.pictures import read_frame, read_mask
from polypseg.serve.annotations import database
from polypseg.serve.annotations.labels import Labels
from polypseg.serve.annotations.store import CORRECTIONS, Conflict, Picture, Save, Store

FRAME = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
MASK = np.zeros((40, 60), bool)
MASK[10:20, 10:30] = True


def decode(image: Path, mask: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return read_frame(image), read_mask(mask)


def write(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(pixels, np.uint8))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Labels())


def current(store: Store, digest: str) -> tuple[Any, ...]:
    row = store.frame(CORRECTIONS, digest)
    mask = store.mask(CORRECTIONS, digest)
    return row["version"], row["state"], row["author"], None if mask is None else mask.tobytes()


# ---- the folder of corrections --------------------------------------------------------------------------


def test_what_lies_in_the_corrections_becomes_versions_once(tmp_path: Path) -> None:
    folder = tmp_path / CORRECTIONS
    write(folder / "images" / "a.jpg", FRAME)
    write(folder / "masks" / "a.png", MASK * 255)
    write(folder / "images" / "b.png", FRAME[::-1])
    write(folder / "masks" / "b.png", MASK * 0)
    write(folder / "images" / "c.png", FRAME[:, ::-1])
    write(folder / "masks" / "c.png", MASK * 90)  # no mask of ours: it stays as it is
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    store = Store(tmp_path, Labels())
    problems = store.read_corrections(decode)
    assert len(problems) == 1 and "no white" in problems[0]
    rows = store.database.all("SELECT name, state, version, author FROM frames ORDER BY name")
    assert [tuple(row.values()) for row in rows] == [
        ("a.jpg", "corrected", 1, "folder"), ("b.png", "no_polyp", 1, "folder"),
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in before} == before
    store.close()

    write(folder / "masks" / "a.png", MASK[::-1] * 255)  # somebody draws another one by hand
    (folder / "images" / "b.png").unlink()
    (folder / "masks" / "b.png").unlink()
    store = Store(tmp_path, Labels())
    store.read_corrections(decode)
    a, b = (store.database.one("SELECT * FROM frames WHERE name = ?", name) for name in ("a.jpg", "b.png"))
    assert a is not None and a["version"] == 2 and (store.mask(CORRECTIONS, a["hash"]) == MASK[::-1]).all()
    first = store.mask(CORRECTIONS, a["hash"], 1)
    assert first is not None and (first == MASK).all()
    assert b is not None and b["deleted"]  # and it comes back with its mask
    store.restore(CORRECTIONS, b["hash"])
    assert (
        not read_mask(folder / "masks" / "b.png").any()
        and (read_frame(folder / "images" / "b.png") == FRAME[::-1, :, ::-1]).all()
    )
    (folder / "masks" / "b.png").unlink()  # the mask alone: it is known
    store.close()
    store = Store(tmp_path, Labels())
    assert len(store.read_corrections(decode)) == 1
    assert not read_mask(folder / "masks" / "b.png").any()
    assert [row["version"] for row in store.database.all("SELECT version FROM frames ORDER BY name")] == [2, 1]


def test_the_corrections_contain_what_is_known_for_certain(store: Store, tmp_path: Path) -> None:
    row, _ = store.add(CORRECTIONS, Picture("x.png", FRAME))
    digest = row["hash"]
    assert store.corrections.names() == []
    store.save(CORRECTIONS, digest, Save(0, "corrected", MASK), "anna")
    assert (read(tmp_path / CORRECTIONS).mask(0) == MASK).all()
    store.save(CORRECTIONS, digest, Save(1, "unsure"), "anna")
    assert store.corrections.names() == []
    store.save(CORRECTIONS, digest, Save(2, "accepted"), "anna")
    assert (read(tmp_path / CORRECTIONS).mask(0) == MASK).all()
    store.delete(CORRECTIONS, digest, for_good=False)
    assert store.corrections.names() == []
    store.restore(CORRECTIONS, digest)
    assert (read(tmp_path / CORRECTIONS).mask(0) == MASK).all()
    assert store.correct("other name.jpg", FRAME, ~MASK, "bob") == "x"  # the same content
    assert current(store, digest)[:3] == (4, "corrected", "bob")
    assert (read(tmp_path / CORRECTIONS).mask(0) == ~MASK).all()


# ---- a disk that refuses, other processes ---------------------------------------------------------------


@pytest.mark.parametrize("place", ["mask", "table", "mirror"])
def test_a_full_disk_while_saving_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    row, _ = store.add(CORRECTIONS, Picture("x.png", FRAME))
    digest = row["hash"]
    store.save(CORRECTIONS, digest, Save(0, "corrected", MASK), "anna")
    before, revision = current(store, digest), store.project(CORRECTIONS)["revision"]

    real = files.os.fsync if place == "mask" else store.corrections.keep
    if place == "table":

        def insert(*_: Any, **__: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(database.Database, "insert", insert)
    elif place == "mask":

        def sync(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", sync)
    else:

        def keep(*arguments: Any) -> str:
            if (arguments[3] == MASK).all():  # what was there is put back
                return str(real(*arguments))
            raise PolypsegError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store.corrections, "keep", keep)
    with pytest.raises((PolypsegError, sqlite3.OperationalError), match="full"):
        store.save(CORRECTIONS, digest, Save(1, "corrected", ~MASK), "bob")
    monkeypatch.undo()
    assert current(store, digest) == before and store.project(CORRECTIONS)["revision"] == revision
    assert (read(tmp_path / CORRECTIONS).mask(0) == MASK).all()
    assert len(store.versions(CORRECTIONS, digest)) == 1
    assert store.save(CORRECTIONS, digest, Save(1, "corrected", ~MASK), "bob")[0]["version"] == 2
    assert (read(tmp_path / CORRECTIONS).mask(0) == ~MASK).all()


def test_a_commit_that_fails_leaves_no_pair_in_the_corrections(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next start would take it for somebody's work."""
    digest = store.add(CORRECTIONS, Picture("x.png", FRAME))[0]["hash"]
    real = database.Database.change

    def change(self: Any, table: str, key: str, value: Any, **values: Any) -> None:
        real(self, table, key, value, **values)
        if values.get("mirror"):
            monkeypatch.setattr(database.Database, "all", full)

    def full(*_: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database.Database, "change", change)
    with pytest.raises(sqlite3.OperationalError):
        store.save(CORRECTIONS, digest, Save(0, "corrected", MASK), "bob")
    monkeypatch.undo()
    assert current(store, digest)[:2] == (0, "predicted") and store.corrections.names() == []


def test_a_project_opened_by_two_servers_is_refused_in_a_line(store: Store, tmp_path: Path) -> None:
    store.add(CORRECTIONS, Picture("x.png", FRAME))
    with pytest.raises(PolypsegError, match="another polypseg serve works in this folder; stop it"):
        Store(tmp_path, Labels())
    store.close()
    Store(tmp_path, Labels()).close()


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / database.FILE).write_bytes(b"no table at all" * 100)
    with pytest.raises(PolypsegError, match="is no table of annotations"):
        Store(tmp_path, Labels())


def test_saves_at_once_are_all_kept_or_told(store: Store) -> None:
    """Of twelve people who save on the same version, one is first; nothing of his is replaced."""
    from concurrent.futures import ThreadPoolExecutor

    digest = store.add(CORRECTIONS, Picture("x.png", FRAME))[0]["hash"]

    def save(number: int) -> bool:
        mask = MASK.copy()
        mask[30, number] = True
        try:
            return store.save(CORRECTIONS, digest, Save(0, "corrected", mask), f"person {number}")[1]
        except Conflict:
            return False

    with ThreadPoolExecutor(6) as pool:
        first = list(pool.map(save, range(12)))
    assert sum(first) == 1 and len(store.versions(CORRECTIONS, digest)) == 1
    assert current(store, digest)[2] == f"person {first.index(True)}"


def test_names_are_told_apart_and_labels_that_are_gone_stay(store: Store, tmp_path: Path) -> None:
    names = [store.add(CORRECTIONS, Picture("A.png", FRAME + np.uint8(n)))[0]["name"] for n in range(2)]
    names += [store.add(CORRECTIONS, Picture("a.jpg", FRAME + np.uint8(n)))[0]["name"] for n in range(2, 4)]
    assert names == ["A.png", "A-2.png", "a-3.jpg", "a-4.jpg"]
    digest = store.add(CORRECTIONS, Picture("A.png", FRAME))[0]["hash"]
    store.save(CORRECTIONS, digest, Save(0, "corrected", MASK), "anna")
    store.close()
    from polypseg.serve.annotations.labels import LabelClass

    store = Store(tmp_path, Labels((LabelClass("adenoma"),)))
    assert json.loads(store.frame(CORRECTIONS, digest)["polyps"])[0]["class"] == "polyp"
    store.save(CORRECTIONS, digest, Save(1, "corrected", ~MASK), "anna")  # what is drawn anew has a class of now
    assert json.loads(store.frame(CORRECTIONS, digest)["polyps"])[0]["class"] == "adenoma"
    with pytest.raises(HTTPException, match="mask: is 60×39 but its frame 60×40"):
        store.save(CORRECTIONS, digest, Save(2, "corrected", MASK[1:]), "anna")


def test_a_thousand_frames_are_listed_by_one_query(store: Store) -> None:
    from polypseg.serve.annotations.listing import Wanted, listed

    with store.database.transaction():
        for number in range(1000):
            store.database.insert(
                "frames", project=CORRECTIONS, hash=f"{number:064x}", name=f"f{number}.png", stem=f"f{number}",
                sort=f"f{number:04}", file="x.png", width=9, height=9, state="predicted", created="",
            )  # fmt: skip
    asked: list[str] = []
    store.database._connection.set_trace_callback(asked.append)
    count, rows = listed(store, CORRECTIONS, Wanted(), "name", 0, 1000)
    assert count == 1000 and [row["name"] for row in rows[:11]] == [f"f{number}.png" for number in range(11)]
    assert len([line for line in asked if line.startswith("SELECT")]) == 2


# ---- a service that dies --------------------------------------------------------------------------------


def test_states_and_imports_survive_the_death_of_the_service(
    start: Callable[..., Any], frames: list[Path], tmp_path: Path
) -> None:
    service = start(tmp_path / "state")
    files = [("file", (f"set/images/{path.name}", path.read_bytes())) for path in frames]
    service.web.post("/v1/projects", data={"name": "P"})
    identity = service.web.post("/v1/projects/p/imports", files=files).json()["id"]
    service.end(signal.SIGKILL)
    service = start(tmp_path / "state")
    end = time.monotonic() + 60
    while not (found := service.web.get(f"/v1/projects/p/imports/{identity}").json())["ended"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert (found["state"], found["done"], found["added"] + found["known"]) == ("done", len(frames), len(frames))
    frame = service.web.get("/v1/projects/p/frames", params={"limit": 1}).json()["frames"][0]
    address = f"/v1/projects/p/frames/{frame['hash']}"
    assert (
        service.web.post(f"{address}/versions", data={"based_on": 0, "state": "no_polyp"}).json()["author"] == "local"
    )
    service.end(signal.SIGKILL)
    store = Store(tmp_path / "state", Labels())
    row = store.frame("p", frame["hash"])
    assert (row["state"], row["version"], store.project("p")["total"]) == ("no_polyp", 1, len(frames))
    store.close()
