"""The state folder: for one process and one user alone, with the table of jobs in ``jobs.sqlite``."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import multiprocessing.util
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polypseg.errors import PolypsegError

ENDED = ("done", "failed", "cancelled")
STATES = ("queued", "running", *ENDED)
COLUMNS = {
    "id": "TEXT PRIMARY KEY", "state": "TEXT", "kind": "TEXT", "names": "TEXT", "smoothing": "REAL",
    "settings": "TEXT", "files": "TEXT", "done": "INTEGER", "total": "INTEGER", "error": "TEXT", "created": "TEXT",
    "starts": "INTEGER", "ended": "TEXT", "point": "TEXT", "replaces": "TEXT",
}  # fmt: skip
LONGEST_FOLDER = 70  # bytes of its path, in which a socket can be: the system takes 107
_OURS = {
    "jobs.sqlite", "jobs", "corrections", "temporary", "lost+found", "annotations.sqlite", "projects", "training",
}  # fmt: skip
# What the computer refuses, whatever is asked: full, broken, read-only, not permitted, too much open.
TROUBLE = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM", "ENOMEM", "EAGAIN", "EMFILE", "ENFILE",
        "ESTALE", "ENODEV",
    )
    if hasattr(errno, name)
}  # fmt: skip


def is_trouble(error: BaseException) -> bool:
    """Whether it is the disk, the table or the system that refuses, so that the same may succeed later."""
    return any(
        isinstance(one, sqlite3.OperationalError) or (isinstance(one, OSError) and one.errno in TROUBLE)
        for one in _with_causes(error)
    )


def is_full(error: BaseException) -> bool:
    """Whether it is a full disk."""
    return any(
        one.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        if isinstance(one, OSError)
        else isinstance(one, sqlite3.OperationalError) and "is full" in str(one)
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


@dataclass
class Job:
    """A row of the table.

    Attributes:
        id: 32 hexadecimal digits.
        state: one of ``STATES``.
        kind: ``video`` for one video, ``batch`` for anything else.
        names: of the uploads, without any path, told apart; results are called after them.
        smoothing: as ``predict_video`` takes it.
        settings: what its outputs so far were made with; None before it began.
        files: its complete outputs: the name that is shown, and the path below ``out/``.
        done: frames that are finished.
        total: frames in all, as far as the files say.
        error: one line, or None.
        created: ISO 8601, UTC.
        starts: how often a process began it since it last got further.
        ended: ISO 8601, UTC; None before.
        point: what of the operating point was asked for, by name; None, or what is missing, is the model's own.
        replaces: the job that is removed when this one is done, or None.
    """

    id: str
    state: str
    kind: str
    names: list[str]
    smoothing: float
    settings: dict[str, Any] | None
    files: dict[str, str]
    done: int
    total: int | None
    error: str | None
    created: str
    starts: int = 0
    ended: str | None = None
    point: dict[str, float] | None = None
    replaces: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the service says of it."""
        shown = ("id", "state", "kind", "names", "done", "total", "error", "created", "ended", "replaces")
        return {**{key: getattr(self, key) for key in shown}, "files": list(self.files)}


class Closable(Protocol):
    """A table."""

    def close(self) -> None:
        """Let another process have it."""


class Table:
    """The table of jobs in a file that one process at a time may use. Thread-safe.

    Raises:
        PolypsegError: another process uses it, or it cannot be opened.
    """

    _AS_JSON = ("names", "settings", "files", "point")

    def __init__(self, file: Path) -> None:
        self._lock = threading.RLock()
        with taking(file, "serve"):
            self._connection = connect(file)
            make_table(self._connection, "jobs", COLUMNS)
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._connection.close()

    def add(self, job: Job) -> None:
        """A new row."""
        values = self._stored(vars(job))
        columns, places = ", ".join(values), ", ".join(f":{key}" for key in values)
        self._execute(f"INSERT INTO jobs ({columns}) VALUES ({places})", values)  # noqa: S608  (names of our columns)

    def change(self, identity: str, **values: Any) -> None:
        """Change these columns of a row, if it is there."""
        changes = ", ".join(f"{key} = :{key}" for key in values)
        stored = {**self._stored(values), "id": identity}
        self._execute(f"UPDATE jobs SET {changes} WHERE id = :id", stored)  # noqa: S608  (names of our columns)

    def remove(self, identity: str) -> None:
        """Remove a row."""
        self._execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def get(self, identity: str) -> Job | None:
        """A row."""
        return next(iter(self.select("WHERE id = ?", identity)), None)

    def select(self, condition: str = "", *values: Any, order: str = "rowid", limit: int = -1) -> list[Job]:
        """Rows, by default all and in the order in which they were added."""
        query = f"SELECT * FROM jobs {condition} ORDER BY {order} LIMIT ?"  # noqa: S608  (words of this package)
        rows = self._execute(query, (*values, limit))
        return [Job(**{name: self._read(name, row[name]) for name in COLUMNS}) for row in rows]

    def count(self, state: str) -> int:
        """How many rows are in a state."""
        return int(self._execute("SELECT COUNT(*) FROM jobs WHERE state = ?", (state,))[0][0])

    def _execute(self, statement: str, values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _stored(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: json.dumps(value) if key in self._AS_JSON else value for key, value in values.items()}

    def _read(self, name: str, value: Any) -> Any:
        return json.loads(value) if name in self._AS_JSON and value is not None else value


def connect(file: Path) -> sqlite3.Connection:
    """A database for this process alone, in a transaction that is to be committed. Raises ``sqlite3.Error``."""
    connection = sqlite3.connect(file, timeout=2, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def make_table(connection: sqlite3.Connection, name: str, columns: Mapping[str, str], *rest: str) -> None:
    """Make a table where it is missing, and in one that an earlier version made the columns that it is missing."""
    parts = [*(f"{column} {kind}" for column, kind in columns.items()), *rest]
    connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(parts)})")
    there = {row["name"] for row in connection.execute(f"PRAGMA table_info({name})")}
    for column in [column for column in columns if column not in there]:
        connection.execute(f"ALTER TABLE {name} ADD COLUMN {column} {columns[column]}")


@contextlib.contextmanager
def taking(file: Path, verb: str, rows: str = "jobs") -> Iterator[None]:
    """Turn what SQLite raises while ``polypseg VERB`` opens its table of ``rows`` into one ``PolypsegError``."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            line = f"{file.parent}: another polypseg {verb} works in this folder; stop it or choose another --state"
            raise PolypsegError(line) from error
        raise PolypsegError(f"{file}: cannot be opened ({error}); choose another --state") from error
    except sqlite3.DatabaseError as error:
        raise PolypsegError(f"{file}: is no table of {rows} ({error}); move it away") from error


def now(days: float = 0) -> str:
    """This moment, or so many days from it: ISO 8601, UTC."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return moment.isoformat(timespec="seconds")


def open_state(folder: Path) -> Table:
    """Make the state folder, for this user alone, take it for this process, and only then empty its ``temporary/``.

    Raises:
        PolypsegError: another process works in it, others may read it and that cannot be changed, or it cannot be
            written.
    """
    with making(folder, _OURS):
        table = Table(folder / "jobs.sqlite")
    prepare(folder, "jobs", table)
    return table


@contextlib.contextmanager
def making(folder: Path, ours: Collection[str]) -> Iterator[None]:
    """Make a state folder, which may contain what is ``ours``, for this user alone. Raises as ``open_state``."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(folder, ours)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield
    except OSError as error:
        raise _state_error(folder, error) from error


def prepare(folder: Path, kept: str, table: Closable) -> None:
    """In a folder whose table this process has taken, make the sub-folder ``kept`` and an empty ``temporary``.

    Raises:
        PolypsegError: it cannot be written; the table is closed.
    """
    try:
        (folder / kept).mkdir(exist_ok=True)
        shutil.rmtree(folder / "temporary", ignore_errors=True)
        (folder / "temporary").mkdir(exist_ok=True)
    except OSError as error:
        table.close()
        raise _state_error(folder, error) from error


def _make_private(folder: Path, ours: Collection[str]) -> None:
    """Take a folder's rights from everybody else; one that contains other things is not touched but refused."""
    if os.name == "nt" or not folder.stat().st_mode & 0o077:
        return
    advice = f"run chmod 700 '{folder}', or choose another --state"
    if strangers := sorted({path.name for path in folder.iterdir()} - set(ours)):
        raise PolypsegError(
            f"{folder}: other users may read it, and it contains other files ({strangers[0]}); {advice}"
        )
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    if folder.stat().st_mode & 0o077:
        raise PolypsegError(f"{folder}: other users may read it, and its mode cannot be changed; {advice}")


def _state_error(folder: Path, error: OSError) -> PolypsegError:
    return PolypsegError(f"{folder}: cannot be written ({error.strerror or error}); choose another --state")


def keep_temporary_files_in(folder: Path) -> None:
    """Have the process keep all that it writes for a while there, so that nothing of a patient lies elsewhere."""
    if len(os.fsencode(folder.absolute())) > LONGEST_FOLDER:
        multiprocessing.util.get_temp_dir()  # keeps the system's own for its sockets
    tempfile.tempdir = str(folder.absolute())
