"""What came in and what became of it: a table that survives the process, and the files of what is not done yet.

``worklist.sqlite`` has a row for each object, known by its SOP Instance UID and content. While it is in work its file
lies in ``objects/<file>.dcm``, and its segmentation in ``objects/<file>.seg.dcm``; both go when it has ended. A file is
written before its row, and removed after its row says that it has ended: what has no row was never answered for.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from polypseg.serve.state import connect, make_table, making, now, prepare, taking

# received: to be segmented; segmented: to be sent; stored: the archive has it, and is to say that it keeps it;
# uncommitted: it does not, so it is to be sent again after a pause. The others have ended, but ``undelivered`` is tried
# anew at a start.
State = Literal["received", "segmented", "stored", "uncommitted", "sent", "committed", "failed", "undelivered"]
_ENDED = "('sent', 'committed', 'failed')"
_COLUMNS = {
    "number": "INTEGER PRIMARY KEY AUTOINCREMENT", "uid": "TEXT", "digest": "TEXT", "file": "TEXT", "sender": "TEXT",
    "state": "TEXT", "starts": "INTEGER", "error": "TEXT", "received": "TEXT", "ended": "TEXT", "instance": "TEXT",
    "transaction_uid": "TEXT", "asked": "TEXT", "refusals": "INTEGER DEFAULT 0",
}  # fmt: skip
_OURS = {"worklist.sqlite", "worklist.sqlite-journal", "objects", "temporary", "lost+found"}


@dataclass
class Object:
    """A row.

    Attributes:
        number: from 1, in the order of arrival; what the log calls it.
        uid: its SOP Instance UID.
        digest: SHA-256 of its transfer syntax and data set.
        file: what its files are called.
        sender: AE title of who sent it.
        state: one of ``State``.
        starts: how often a process began to segment it and did not end that.
        error: why it failed, one line; None for most.
        received: ISO 8601, UTC.
        ended: likewise; None before. Of what is uncommitted, when the archive said so.
        instance: SOP Instance UID of its segmentation, where commitment is asked for; else None.
        transaction_uid: under which it was asked for last.
        asked: when that was.
        refusals: how often the archive said that it does not keep it.
    """

    number: int
    uid: str
    digest: str
    file: str
    sender: str
    state: State
    starts: int
    error: str | None
    received: str
    ended: str | None
    instance: str | None
    transaction_uid: str | None
    asked: str | None
    refusals: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"object {self.number}"


class Worklist:
    """The table and the files of a state folder, for this process alone. Thread-safe.

    Args:
        folder: made if it is missing, for this user alone.

    Raises:
        PolypsegError: another process works in it, others may read it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.RLock()
        file = folder / "worklist.sqlite"
        with making(folder, _OURS), taking(file, "dicom", "received images"):
            self._connection = connect(file)
            make_table(self._connection, "objects", _COLUMNS, "UNIQUE (uid, digest)")
            for column in ("state", "transaction_uid"):
                self._connection.execute(f"CREATE INDEX IF NOT EXISTS by_{column} ON objects ({column})")
            self._connection.execute("COMMIT")
        prepare(folder, "objects", self)

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._connection.close()

    def begin(self, commitment: bool = False) -> None:
        """What an earlier process could not deliver is to be tried again, and what it left without need is removed.

        Args:
            commitment: whether the archive is still asked for it; if not, what it has counts as sent.
        """
        self._execute(
            "UPDATE objects SET state = 'segmented', ended = NULL, refusals = 0 "
            "WHERE state IN ('undelivered', 'uncommitted')"
        )
        if not commitment:
            self._execute("UPDATE objects SET state = 'sent', ended = ? WHERE state = 'stored'", now())
        open_ones = {one.file for one in self.select(f"state NOT IN {_ENDED}")}
        for path in (self.folder / "objects").iterdir():
            if path.name.partition(".")[0] not in open_ones:
                path.unlink(missing_ok=True)

    def source(self, one: Object) -> Path:
        """Where an object lies."""
        return self.folder / "objects" / f"{one.file}.dcm"

    def segmentation(self, one: Object) -> Path:
        """Where its segmentation lies, or will."""
        return self.folder / "objects" / f"{one.file}.seg.dcm"

    def has(self, uid: str, digest: str) -> bool:
        """Whether an object of this UID and content has come before."""
        return bool(self._execute("SELECT 1 FROM objects WHERE uid = ? AND digest = ?", uid, digest))

    def add(self, uid: str, digest: str, file: str, sender: str) -> int | None:
        """Enter an object, whose file is on disk; its number, or None where it was entered already."""
        values = (uid, digest, file, sender, "received", 0, now())
        columns = "uid, digest, file, sender, state, starts, received"
        statement = f"INSERT INTO objects ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING number"  # noqa: S608
        with contextlib.suppress(sqlite3.IntegrityError):
            return int(self._execute(statement, *values)[0]["number"])
        return None

    def change(self, number: int, **values: Any) -> None:
        """Change columns of a row."""
        changes = ", ".join(f"{name} = ?" for name in values)
        self._execute(f"UPDATE objects SET {changes} WHERE number = ?", *values.values(), number)  # noqa: S608  (ours)

    def store(self, one: Object, instance: str) -> None:
        """Enter that the archive has the segmentation, known by its SOP Instance UID; that file stays."""
        self.change(one.number, state="stored", instance=instance, transaction_uid=None, asked=None, error=None)
        with contextlib.suppress(OSError):
            self.source(one).unlink(missing_ok=True)

    def end(self, one: Object, state: State, error: str | None = None) -> None:
        """Enter how an object ended, and only then remove its files, save those of what is undelivered."""
        self.change(one.number, state=state, error=error, ended=now())
        for path in (self.source(one), *([] if state == "undelivered" else [self.segmentation(one)])):
            with contextlib.suppress(OSError):  # the next start tries again
                path.unlink()

    def select(self, condition: str, *values: Any, order: str = "number", limit: int = -1) -> list[Object]:
        """Rows, the oldest first."""
        query = f"SELECT * FROM objects WHERE {condition} ORDER BY {order} LIMIT ?"  # noqa: S608  (words of this package)
        names = [field.name for field in fields(Object)]
        return [Object(**{name: row[name] for name in names}) for row in self._execute(query, *values, limit)]

    def count(self) -> dict[str, int]:
        """How many objects are in each state."""
        rows = self._execute("SELECT state, COUNT(*) AS count FROM objects GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    def forget(self, days: float) -> None:
        """Remove what ended so long ago; such an object that came again would be segmented again."""
        self._execute(f"DELETE FROM objects WHERE state IN {_ENDED} AND ended < ?", now(-days))  # noqa: S608  (ours)

    def _execute(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()
