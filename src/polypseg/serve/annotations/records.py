"""``frames.json`` of an export: each frame's state, and the classes and attributes of its polyps, which masks lack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from polypseg.errors import PolypsegError
from polypseg.files import read_json
from polypseg.names import FrameState
from polypseg.serve.annotations.regions import Given

FILE = "frames.json"
_STATES = get_args(FrameState)


@dataclass(frozen=True)
class Record:
    """What an export says of a frame: the hash of its content, its state, and what its polyps are."""

    hash: str
    state: str
    given: tuple[Given, ...]


def written(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """The file's content, of frames' rows and the names of their pictures."""
    kept = ("hash", "state", "version", "author", "time")
    records = [
        {"image": name, **{key: row[key] for key in kept}, "polyps": json.loads(row["polyps"])}
        for row, name in zip(rows, names, strict=True)
    ]
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def read(folder: Path) -> dict[str, Record]:
    """The records of an export by the names of their pictures; none where it has no such file.

    Raises:
        PolypsegError: it contains something else.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return {str(one["image"]): _record(one) for one in read_json(path)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PolypsegError(
            f"{path}: is no list of frames as an export of polypseg has it ({type(error).__name__}: {error}); export "
            "it again, or remove the file to go without classes, attributes and states"
        ) from error


def _record(one: Mapping[str, Any]) -> Record:
    if one["state"] not in _STATES:
        raise ValueError(f"{one['state']} is no state")
    return Record(str(one["hash"]), one["state"], tuple(_given(polyp) for polyp in one["polyps"]))


def _given(polyp: Mapping[str, Any]) -> Given:
    x, y = polyp["at"]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (x, y)):
        raise ValueError(f"{polyp['at']} is no pixel")
    return Given((x, y), str(polyp["class"]), {str(key): str(value) for key, value in polyp["attributes"].items()})
