"""The folder of a run: what it contains, and how a new run takes an earlier one's place without a moment of neither.

Everything stays in the folder itself, which may be a mount point, or lie where nothing else may be written:

    .leaving/   the earlier run, on its way out or back
    .earlier/   the earlier run, whole, until the new one stands
    .gone/      the earlier run, while it is removed

Whatever kills a process between these steps, ``restore`` finds out by the names where it stood.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from polypseg.catalog import Catalog
from polypseg.data.splits import write_split
from polypseg.errors import PolypsegError
from polypseg.files import LOCK, atomic_write, disk_error, locked
from polypseg.training.recipe import first_difference

log = logging.getLogger("polypseg")
CONFIG = "config.yaml"
SPLIT = "split.csv"
ORIGIN = "encoder_weights.yaml"
LOG = "log.txt"
CACHE = "cache"  # of decoded frames: it belongs to no run
_LEAVING, _EARLIER, _GONE = ".leaving", ".earlier", ".gone"
_STAY = (LOCK, CACHE, _LEAVING, _EARLIER, _GONE)
# What a run writes before its first epoch is complete.
_STARTED = (CONFIG, SPLIT, ORIGIN, LOG, "metrics.csv", "checkpoints", "tensorboard", "mlflow.db", "wandb")


def holds_epoch(folder: Path) -> bool:
    """Whether there is something to lose: a checkpoint, of a fold too, or a bundle."""
    patterns = ("checkpoints/last.ckpt", "fold-*/checkpoints/last.ckpt", "bundle/metadata.json")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def is_only_started(folder: Path) -> bool:
    """Whether a folder contains nothing but what a run without a complete epoch has written; an empty one too."""
    return not holds_epoch(folder) and all(
        one.name in _STARTED or re.fullmatch(r"fold-\d+|\..*\.part", one.name) for one in _content(folder)
    )


@contextlib.contextmanager
def taken(
    folder: Path,
    settings: dict[str, Any],
    inputs: Iterable[str | Path | None],
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[None]:
    """Keep a folder for this process alone, once it is known to be free for what is asked for.

    Args:
        folder: of the run.
        settings: what ``config.yaml`` will contain.
        inputs: paths that the run is made of.
        resume: continue the run that it contains.
        overwrite: replace the run that it contains.

    Raises:
        PolypsegError: another process writes there, or as ``check_folder`` and ``refuse_inputs_within``.
    """
    with locked(folder):
        check_folder(folder, settings, resume, overwrite)
        if not resume:
            refuse_inputs_within(folder, inputs)
        yield


def check_folder(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse a folder that contains something else than what was asked for. Nothing that it contains is touched.

    A run that began, but has no complete epoch yet, stands in nobody's way.

    Raises:
        PolypsegError: it contains files that are no run, another run than the one to resume, or one not to be replaced.
    """
    restore(folder)
    config = folder / CONFIG
    if is_only_started(folder):
        return
    if not config.is_file() or not (folder / SPLIT).is_file():
        raise PolypsegError(f"{folder}: is not empty and contains no run; choose another --out")
    if resume:
        difference = first_difference(read_yaml(config), settings)
        if difference:
            raise PolypsegError(f"{config}: the run to resume differs in {difference}; use its recipe or another --out")
    elif not overwrite:
        raise PolypsegError(f"{folder}: contains a run already; use --resume, --overwrite or another --out")


def refuse_inputs_within(folder: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to replace a run that what is to replace it is made of.

    Raises:
        PolypsegError: one of the paths lies in the folder, which contains a run.
    """
    if not holds_epoch(folder):
        return
    root = os.path.realpath(folder)
    for one in inputs:
        if one is not None and os.path.exists(one) and f"{os.path.realpath(one)}{os.sep}".startswith(root + os.sep):
            raise PolypsegError(f"{one}: lies in {folder}, the run that would be replaced; choose another --out")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Set aside what a folder contains while something else begins in it; put it back if that fails.

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


def write_start(
    folder: Path, settings: dict[str, Any], catalog: Catalog, origin: Mapping[str, Any] | None = None
) -> None:
    """Write what is known before a run starts: ``config.yaml``, ``split.csv`` and ``encoder_weights.yaml``.

    Args:
        folder: of the run.
        settings: in plain types.
        catalog: the frames with their splits; each one's content hash goes into ``split.csv``.
        origin: where the first weights came from, in plain types; None writes no file of it.
    """
    write_yaml(folder / CONFIG, settings)
    write_split(catalog.frames.assign(content=catalog.content_hashes()), folder / SPLIT)
    if origin is not None:
        write_yaml(folder / ORIGIN, origin)


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write settings in plain types, in their order. Raises ``PolypsegError`` where the disk refuses."""
    with atomic_write(path, "w") as file:
        yaml.safe_dump(dict(value), file, sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read what ``write_yaml`` wrote. Raises ``PolypsegError`` where it cannot be read, or is something else."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(f"{path}: cannot be read ({reason}); use --overwrite") from error
    if not isinstance(value, dict):
        raise PolypsegError(f"{path}: contains no settings; use --overwrite")
    return value


@contextlib.contextmanager
def logging_to(file: Path | None) -> Iterator[None]:
    """Also write the log to a file, the error that ends the work too; None where another process speaks."""
    if file is None:
        log.setLevel(logging.WARNING)
        yield
        return
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except PolypsegError as error:
        handler.handle(logging.LogRecord("polypseg", logging.ERROR, __file__, 0, "%s", (error,), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _content(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.name not in _STAY] if folder.is_dir() else []
