"""What was trained: the run folders under a folder, as a table or JSON. Nothing of a model is loaded."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from polypseg.errors import PolypsegError
from polypseg.metadata import METADATA_FILE, read_metadata
from polypseg.training.folder import CONFIG, LOG, SPLIT

_DEPTH = 3  # folders below the one that is searched
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_STAMP_FORMAT = "%Y-%m-%d %H:%M:%S"
_LOG_TAIL = 1 << 16  # bytes


@dataclass(frozen=True)
class RunSummary:
    """One run folder.

    Attributes:
        folder: the run folder.
        name: the model's; empty where it cannot be read.
        date: when the last line of the log was written, or the settings, as ``2026-11-30 10:20:05``, local time.
        data: names of the data sets.
        split: name of the split.
        epochs: complete ones; None where the run has no epochs of its own, as an ensemble.
        val_dice, test_dice: mean over frames with a polyp, 0..1; of a run without a test, ``val_dice`` is the best
            epoch's.
        lesions_found, regions_right: shares at IoU 0.3 on validation at the operating point, 0..1.
        threshold, min_confidence: of the operating point, 0..1.
        bytes: size of the bundle.
        problem: why the run cannot be read or used, a line; None where nothing is wrong.
    """

    folder: str
    name: str = ""
    date: str = ""
    data: tuple[str, ...] = ()
    split: str = ""
    epochs: int | None = None
    val_dice: float | None = None
    test_dice: float | None = None
    lesions_found: float | None = None
    regions_right: float | None = None
    threshold: float | None = None
    min_confidence: float | None = None
    bytes: int | None = None
    problem: str | None = None


def find_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """The runs in and below a folder, the latest last; the folds of a run and the trials of a search are none.

    Raises:
        PolypsegError: there is no such folder, or it cannot be listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PolypsegError(f"{root}: is no folder; `polypseg train` writes runs/NAME, or name another folder")
    try:
        return sorted(map(_summary, _run_folders(root, _DEPTH)), key=lambda run: (run.date, run.folder))
    except OSError as error:
        raise PolypsegError(f"{error.filename or root}: cannot be read ({error.strerror})") from error


def table(runs: Sequence[RunSummary], folder: str | Path = "runs") -> str:
    """The runs as lines of text, one each under a line of titles.

    Args:
        runs: as ``find_runs`` gives them.
        folder: where they were searched for.
    """
    if not runs:
        return f"{folder}: contains no runs yet; `polypseg train` writes them"
    titles = ("run", "date", "data", "split", "val Dice", "test Dice", "found", "right", "threshold", "MB")
    rows = [titles, *(_cells(run, Path(folder)) for run in runs if run.problem is None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    whole = iter(
        "  ".join(f"{cell:{'<' if column < 4 else '>'}{widths[column]}}" for column, cell in enumerate(row)).rstrip()
        for row in rows
    )
    first = next(whole)
    return "\n".join([first, *(next(whole) if run.problem is None else run.problem for run in runs)])


def to_json(runs: Sequence[RunSummary]) -> str:
    """The runs as a JSON list of objects with the fields of ``RunSummary``."""
    return json.dumps([asdict(run) for run in runs], indent=2, ensure_ascii=False)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / CONFIG).is_file() or (folder / "bundle").is_dir():
        yield folder
    elif depth and not (folder / "trials").is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _run_folders(inner, depth - 1)


def _summary(folder: Path) -> RunSummary:
    try:
        return _read(folder)
    except PolypsegError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or folder}: cannot be read ({error.strerror})"
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        problem = (
            f"{folder}: is no run that can be read ({' '.join(str(error).split())[:160]}); remove it or train anew"
        )
    return RunSummary(str(folder), date=_date(folder), problem=problem)


def _read(folder: Path) -> RunSummary:
    settings = _mapping(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")), folder / CONFIG)
    name, date, epochs = str(settings.get("name") or folder.name), _date(folder), _epochs(folder)
    dices = [float(row["val_dice"]) for row in epochs]
    count = len(epochs) if epochs else None
    bundle, test = folder / "bundle" / METADATA_FILE, folder / "test.json"
    if not test.is_file():
        return RunSummary(
            str(folder), name, date, _data_sets(folder), str(settings.get("split") or ""), len(epochs),
            max(dices, default=None),
        )  # fmt: skip
    metadata = read_metadata(bundle)
    scores = _mapping(json.loads(test.read_text(encoding="utf-8")), test)
    metrics = {part: _mapping(values, test) for part, values in _mapping(scores["metrics"], test).items()}
    point = _mapping(metadata.get("operating_point") or {"threshold": metadata.get("threshold")}, bundle)
    chosen = _mapping((metadata.get("operating_point_choice") or {}).get("chosen") or {}, bundle)
    return RunSummary(
        str(folder),
        str(metadata["name"]),
        date,
        tuple(map(str, metadata["data"]["datasets"])),
        str(metadata["split"]["name"]),
        count,
        _number(metrics.get("val", metrics.get("out_of_fold", {})).get("dice")),
        _number(metrics.get("test", {}).get("dice")),
        _number(chosen.get("found")),
        _number(chosen.get("right")),
        _number(point.get("threshold")),
        _number(point.get("min_confidence")),
        sum(file.stat().st_size for file in (folder / "bundle").rglob("*") if file.is_file()),
    )


def _epochs(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``; none where there is no such file."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return [row for row in csv.DictReader(opened) if row.get("val_dice")]


def _data_sets(folder: Path) -> tuple[str, ...]:
    if not (folder / SPLIT).is_file():
        return ()
    with (folder / SPLIT).open(encoding="utf-8", newline="") as opened:
        return tuple(sorted({row["dataset"] for row in csv.DictReader(opened)}))


def _date(folder: Path) -> str:
    """The time of the log's last line; where there is none, of what was written last."""
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _LOG_TAIL))
            stamps = _STAMP.findall(log.read().decode("utf-8", "replace"))
        if stamps:
            return str(stamps[-1])
    except OSError:
        pass
    newest = max((one.stat().st_mtime for one in folder.iterdir()), default=folder.stat().st_mtime)
    return datetime.fromtimestamp(newest).strftime(_STAMP_FORMAT)


def _mapping(value: Any, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolypsegError(f"{file}: contains no settings; remove the run or train anew")
    return value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _cells(run: RunSummary, root: Path) -> tuple[str, ...]:
    """A run's row; a run that is not complete says so in place of its test."""
    inside = Path(run.folder)
    shown = str(inside.relative_to(root)) if inside != root and inside.is_relative_to(root) else run.folder
    done = run.bytes is not None
    point = _fixed(run.threshold, 2) + (f"/{run.min_confidence:.2f}" if run.min_confidence else "")
    return (
        shown if run.name in (shown, Path(shown).name) else f"{shown} ({run.name})",
        run.date[:16],
        " ".join(run.data) or "–",
        run.split or "–",
        _fixed(run.val_dice, 4),
        _fixed(run.test_dice, 4) if done else f"{run.epochs} epochs so far",
        _fixed(run.lesions_found, 3),
        _fixed(run.regions_right, 3),
        point,
        "–" if run.bytes is None else f"{run.bytes / 1e6:.1f}",
    )


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
