"""The frames of a project: filtered, ordered, a page at a time; and who has which of them open."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polypseg.serve.annotations.store import Store

Order = Literal["name", "time", "uncertainty", "confidence"]
_ORDERS: dict[Order, str] = {
    "name": "sort, key",
    "time": "changed DESC, key",
    "uncertainty": "uncertainty IS NULL, uncertainty DESC, sort, key",
    "confidence": "confidence IS NULL, confidence, sort, key",
}
FORGOTTEN = 30.0  # seconds after which a page that says nothing is taken to be gone
MOST_CLIENTS = 1000


@dataclass(frozen=True)
class Wanted:
    """Which frames of a project; what is None or empty leaves out none.

    Attributes:
        state: one of these.
        label: each of these, a class or ``attribute:value``, is that of one of its polyps.
        least_area, most_area: share of the frame that is polyp, 0..1.
        least_confidence, most_confidence: the highest of the model's polyps, 0..1.
        name: the name contains this, in any case.
        hashes: one of these.
        deleted: hidden frames in place of the others.
    """

    state: Sequence[str] = ()
    label: Sequence[str] = ()
    least_area: float | None = None
    most_area: float | None = None
    least_confidence: float | None = None
    most_confidence: float | None = None
    name: str | None = None
    hashes: Sequence[str] = ()
    deleted: bool = False


def listed(
    store: Store, project: str, wanted: Wanted, order: Order, offset: int, limit: int
) -> tuple[int, list[dict[str, Any]]]:
    """How many frames match, and the rows of a page of them."""
    where, values = _condition(project, wanted)
    with store.database.transaction():
        count = store.database.one(f"SELECT COUNT(*) AS count FROM frames WHERE {where}", *values)  # noqa: S608  (our words)
        page = f"SELECT * FROM frames WHERE {where} ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?"  # noqa: S608
        rows = store.database.all(page, *values, limit, offset)
    return int(count["count"]) if count else 0, rows


def _condition(project: str, wanted: Wanted) -> tuple[str, list[Any]]:
    parts, values = ["project = ?", f"deleted IS {'NOT ' * wanted.deleted}NULL"], [project]
    for column, chosen in (("state", wanted.state), ("hash", wanted.hashes)):
        if chosen:
            parts.append(f"{column} IN ({', '.join('?' * len(chosen))})")
            values += chosen
    for label in wanted.label:
        parts.append("instr(labels, ?) > 0")
        values.append(f"\n{label}\n")
    if wanted.name:
        parts.append("instr(lower(name), lower(?)) > 0")
        values.append(wanted.name)
    for column, compared, bound in (
        ("area", ">=", wanted.least_area), ("area", "<=", wanted.most_area),
        ("confidence", ">=", wanted.least_confidence), ("confidence", "<=", wanted.most_confidence),
    ):  # fmt: skip
        if bound is not None:
            parts.append(f"{column} {compared} ?")
            values.append(bound)  # type: ignore[arg-type]
    return " AND ".join(parts), values


class Presence:
    """Which pages have which frame open: by frame the pages, each with its user's name and since when. Thread-safe."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], dict[str, tuple[str, str, float]]] = {}

    def enter(self, project: str, digest: str, client: str, name: str, since: str) -> None:
        """A page has a frame open, still or from now on, and no other one."""
        with self._lock:
            self._expire()
            known = self._open.get((project, digest), {}).get(client)
            self._leave(client)
            if sum(map(len, self._open.values())) < MOST_CLIENTS:
                place = self._open.setdefault((project, digest), {})
                place[client] = (name, known[1] if known else since, self._clock())

    def leave(self, client: str) -> None:
        """A page has no frame open any more."""
        with self._lock:
            self._leave(client)

    def of(self, project: str, digest: str, but: str | None = None) -> list[dict[str, str]]:
        """Who has a frame open, but for one page."""
        with self._lock:
            self._expire()
            pages = self._open.get((project, digest), {})
            return [{"name": name, "since": since} for page, (name, since, _) in pages.items() if page != but]

    def key(self, project: str) -> str:
        """Differs where other people have other frames of a project open."""
        with self._lock:
            self._expire()
            found = [
                (digest, sorted((page, name) for page, (name, *_) in pages.items()))
                for (where, digest), pages in self._open.items()
                if where == project
            ]
            return json.dumps(sorted(found))

    def _leave(self, client: str) -> None:
        for place in list(self._open):
            self._open[place].pop(client, None)
            if not self._open[place]:
                del self._open[place]

    def _expire(self) -> None:
        before = self._clock() - FORGOTTEN
        for pages in list(self._open.values()):
            for client in [client for client, (*_, seen) in pages.items() if seen < before]:
                self._leave(client)
