"""The table of projects, frames, versions and imports, in a file that one process uses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polypseg.serve.state import connect, taking

FILE = "annotations.sqlite"
# A frame's row contains what its newest version says, so that a list needs one query; changed: the project's revision.
TABLES = """
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL, deleted TEXT, revision INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS frames (
    key INTEGER PRIMARY KEY, project TEXT NOT NULL, hash TEXT NOT NULL, name TEXT NOT NULL, stem TEXT NOT NULL,
    sort TEXT NOT NULL, file TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, state TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 0, author TEXT, time TEXT, area REAL, polyps TEXT NOT NULL DEFAULT '[]',
    labels TEXT NOT NULL DEFAULT '', confidence REAL, uncertainty REAL, predicted TEXT,
    found TEXT NOT NULL DEFAULT '[]',
    mirror TEXT, deleted TEXT, created TEXT NOT NULL, changed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (project, hash), UNIQUE (project, stem));
CREATE INDEX IF NOT EXISTS frames_by_state ON frames (project, deleted, state);
CREATE INDEX IF NOT EXISTS frames_to_predict ON frames (predicted);
CREATE TABLE IF NOT EXISTS versions (
    frame INTEGER NOT NULL, number INTEGER NOT NULL, based_on INTEGER NOT NULL, state TEXT NOT NULL, mask TEXT,
    area REAL, polyps TEXT NOT NULL, author TEXT NOT NULL, time TEXT NOT NULL, kind TEXT NOT NULL, restored INTEGER,
    PRIMARY KEY (frame, number));
CREATE TABLE IF NOT EXISTS imports (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, state TEXT NOT NULL, frame_state TEXT NOT NULL, done INTEGER NOT NULL,
    total INTEGER, added INTEGER NOT NULL, known INTEGER NOT NULL, problems TEXT NOT NULL,
    problem_count INTEGER NOT NULL,
    error TEXT, author TEXT NOT NULL, created TEXT NOT NULL, ended TEXT);
CREATE TABLE IF NOT EXISTS mirrored (path TEXT PRIMARY KEY, size INTEGER NOT NULL, time INTEGER NOT NULL);
"""


class Database:
    """The file. Thread-safe: whoever needs several statements together holds ``transaction``.

    Raises:
        PolypsegError: another process uses it, or it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        with taking(file, "serve", "annotations"):
            self._connection = connect(file)
            for statement in TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements within it, or none; nobody else's come between. One within another is a part of it."""
        with self._lock:
            if self._depth:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def all(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of a statement."""
        with self._lock:
            return [dict(row) for row in self._connection.execute(statement, values)]

    def one(self, statement: str, *values: Any) -> dict[str, Any] | None:
        """The first row of a statement; None where there is none."""
        return next(iter(self.all(statement, *values)), None)

    def insert(self, table: str, **values: Any) -> None:
        """A new row."""
        columns, places = ", ".join(values), ", ".join("?" * len(values))
        self.all(f"INSERT INTO {table} ({columns}) VALUES ({places})", *values.values())  # noqa: S608  (our names)

    def change(self, table: str, key: str, value: Any, **values: Any) -> None:
        """Change these columns of the row whose ``key`` is ``value``."""
        changes = ", ".join(f"{column} = ?" for column in values)
        self.all(f"UPDATE {table} SET {changes} WHERE {key} = ?", *values.values(), value)  # noqa: S608  (our names)
