"""The folder of a run: what it holds, and how a new run takes the place of an earlier one without a moment of neither.

Everything stays in the folder itself, which may be a mount point, or lie where nothing else may be written:

    .leaving/   the earlier run, on its way out or back
    .earlier/   the earlier run, whole, until the new one stands
    .gone/      the earlier run, while it is removed

Whatever kills a process between these steps, ``restore`` finds out by the names where it stood.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from polypseg.errors import PolypsegError
from polypseg.files import LOCK, disk_error

CONFIG = "config.yaml"
SPLIT = "split.csv"
ORIGIN = "encoder_weights.yaml"
LOG = "log.txt"
CACHE = "cache"  # of decoded frames: it belongs to no run
_LEAVING, _EARLIER, _GONE = ".leaving", ".earlier", ".gone"
_STAY = (LOCK, CACHE, _LEAVING, _EARLIER, _GONE)
# What a run writes before its first epoch is complete.
_STARTED = (CONFIG, SPLIT, ORIGIN, LOG, "metrics.csv", "checkpoints", "tensorboard", "mlflow.db")


def holds_epoch(folder: Path) -> bool:
    """Whether there is something to lose: a checkpoint, of a fold too, or a bundle."""
    patterns = ("checkpoints/last.ckpt", "fold-*/checkpoints/last.ckpt", "bundle/metadata.json")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def is_only_started(folder: Path) -> bool:
    """Whether a folder holds nothing but what a run without a complete epoch has written; an empty one too."""
    return not holds_epoch(folder) and all(
        one.name in _STARTED or re.fullmatch(r"fold-\d+|\..*\.part", one.name) for one in _content(folder)
    )


def refuse_inputs_within(folder: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to replace a run that what is to replace it is made of.

    Raises:
        PolypsegError: one of the paths lies in the folder, which holds a run.
    """
    if not holds_epoch(folder):
        return
    root = os.path.realpath(folder)
    for one in inputs:
        if one is not None and os.path.exists(one) and f"{os.path.realpath(one)}{os.sep}".startswith(root + os.sep):
            raise PolypsegError(f"{one}: lies in {folder}, the run that would be replaced; choose another --out")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Set aside what a folder holds while something else begins in it; put it back if that fails.

    Raises:
        PolypsegError: the disk refuses.
    """
    restore(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        leaving = folder / _LEAVING
        leaving.mkdir()
        for one in _content(folder):
            one.rename(leaving / one.name)
        leaving.rename(folder / _EARLIER)
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield
    except BaseException:
        restore(folder)
        raise
    (folder / _EARLIER).rename(folder / _GONE)
    shutil.rmtree(folder / _GONE, ignore_errors=True)


def restore(folder: Path) -> None:
    """Bring a folder into order that a killed process left between two runs: the earlier one stands again.

    Raises:
        PolypsegError: the disk refuses.
    """
    try:
        if (folder / _GONE).exists():
            shutil.rmtree(folder / _GONE)
        if (folder / _EARLIER).exists():
            for one in _content(folder):
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
            (folder / _EARLIER).rename(folder / _LEAVING)
        if (folder / _LEAVING).exists():
            for one in (folder / _LEAVING).iterdir():
                one.rename(folder / one.name)
            (folder / _LEAVING).rmdir()
    except OSError as error:
        raise disk_error(folder, error) from error


def _content(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.name not in _STAY] if folder.is_dir() else []
