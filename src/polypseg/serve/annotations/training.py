"""Fine-tuning the service's model on a project: ``polypseg train`` in a process of its own, one at a time.

``training/<id>/`` of the state folder contains ``data/`` (the project's reviewed frames as they were), ``recipe.yaml``,
``run/`` (the run folder) and ``log.txt``; ``training/state.json`` says what became of the newest. A service that stops
ends the process after its last complete epoch, and the next one resumes it.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.extras import MODULES
from polypseg.files import atomic_write, locked, make_folder, read_json, write_json
from polypseg.serve.annotations.exports import export
from polypseg.serve.annotations.store import REVIEWED, Store
from polypseg.serve.log import without_values
from polypseg.serve.state import now

if TYPE_CHECKING:
    from polypseg.bundle import ModelBundle

log = logging.getLogger("polypseg.serve")

LEAST_FRAMES = 10
MOST_EPOCHS = 500
STOP_WAIT = 30.0  # seconds that the process has to end by itself
LOOK = 0.5  # seconds after which it is asked again whether an earlier one has ended
NONE: dict[str, Any] = {
    "state": "none", "project": None, "frames": None, "epoch": None, "epochs": None, "curve": [], "error": None,
    "author": None, "created": None, "ended": None, "bundle": None,
}  # fmt: skip
# The process ends as by Ctrl-C where the service does, however that ends: then what it reads from is closed.
_PROGRAM = """
import os, signal, sys, threading
def watch():
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=watch, daemon=True).start()
from polypseg.cli import main
sys.exit(main())
"""


class Training:
    """The fine-tuning of a state folder. Thread-safe.

    Args:
        state: the state folder.
        store: of the projects.
        bundle: the model that it starts from.
    """

    def __init__(self, state: Path, store: Store, bundle: ModelBundle) -> None:
        self._state, self._store, self.bundle = state, store, bundle
        self._folder = state / "training"
        self._file = self._folder / "state.json"
        self._changed = threading.Condition()  # with a lock that its holder may take again
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._cancelled = False

    def start(self) -> None:
        """Resume what an earlier process of the service had in work."""
        if self._read()["state"] == "running":
            self._thread = threading.Thread(target=self._resume, name="polypseg-training", daemon=True)
            self._thread.start()

    def _resume(self) -> None:
        """Launch it as soon as the process of a service that was killed has ended."""
        run = self._folder / self._read()["id"] / "run"
        while True:
            with self._changed:
                if self._stopping or self._cancelled:
                    return
            try:
                with locked(run):
                    break
            except PolypsegError:
                with self._changed:
                    self._changed.wait(LOOK)
        with self._changed:
            if not self._stopping and not self._cancelled:
                self._launch()

    def stop(self, seconds: float = STOP_WAIT + 5) -> None:
        """End the process; the next start resumes it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._interrupt()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def begin(self, project: str, epochs: int, author: str) -> dict[str, Any]:
        """Start a fine-tuning on the frames of a project that were looked at.

        Raises:
            HTTPException: 404 no such project; 409 one is running, or there are too few frames; 501 training is not
                installed here.
            PolypsegError: the disk refuses.
        """
        missing = [name for extra in ("torch", "train") for name in MODULES[extra] if find_spec(name) is None]
        if missing:
            raise HTTPException(
                501,
                f"training needs {missing[0]}; install the extra where the service runs: pip install 'polypseg[train]'",
            )
        with self._changed:
            if self._read()["state"] == "running":
                raise HTTPException(409, "a fine-tuning is running; wait for it, or cancel it")
            if self._process is not None:
                raise HTTPException(409, "a fine-tuning that was cancelled is still ending; come again in a moment")
            counts = self._store.project(project, deleted=False)["counts"]
            frames = sum(counts[state] for state in REVIEWED)
            if frames < LEAST_FRAMES:
                raise HTTPException(409, f"{frames} frames were looked at; {LEAST_FRAMES} or more are needed")
            identity = secrets.token_hex(8)
            folder = self._folder / identity
            data = folder / "data" / project

            def put(name: str, content: bytes | Path) -> None:
                if isinstance(content, Path):
                    make_folder((data / name).parent)
                    shutil.copyfile(content, data / name)
                else:
                    with atomic_write(data / name) as file:
                        file.write(content)

            try:
                export(self._store, project, "folder", REVIEWED, put)
                with atomic_write(folder / "recipe.yaml", "w") as file:
                    file.write(_recipe(self.bundle, epochs, frames))
                made = {"id": identity, "project": project, "frames": frames, "epochs": epochs, "author": author}
                self._write({**made, "state": "running", "error": None, "created": now(), "ended": None})
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._cancelled = False
            self._launch()
        return self.told()

    def cancel(self) -> dict[str, Any]:
        """End the fine-tuning that runs. Raises ``HTTPException`` (409) where none does."""
        with self._changed:
            record = self._read()
            if record["state"] != "running":
                raise HTTPException(409, "no fine-tuning is running")
            self._write({**record, "state": "cancelled", "ended": now()})
            self._cancelled = True
            self._changed.notify_all()
            if self._process is None:
                shutil.rmtree(self._folder / record["id"], ignore_errors=True)
            self._interrupt()
        return self.told()

    def told(self) -> dict[str, Any]:
        """What the service says of it: ``NONE``'s keys."""
        record = self._read()
        if record["state"] == "none":
            return dict(NONE)
        run = self._folder / record["id"] / "run"
        curve = _curve(run / "metrics.csv")
        bundle = f"training/{record['id']}/run/bundle" if record["state"] == "done" else None
        told = {**NONE, **{key: record[key] for key in NONE if key in record}}
        return {**told, "curve": curve, "epoch": curve[-1]["epoch"] if curve else 0, "bundle": bundle}

    def _launch(self) -> None:
        record = self._read()
        folder = self._folder / record["id"]
        command = [
            sys.executable, "-c", _PROGRAM, "train", "--config", str(folder / "recipe.yaml"),
            "--data", str(folder / "data" / record["project"]), "--out", str(folder / "run"), "--resume",
        ]  # fmt: skip
        with (folder / "log.txt").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  (our own program; no shell, no word of a user)
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,  # the service says when to end
            )  # fmt: skip
        self._thread = threading.Thread(target=self._watch, args=(self._process, folder), daemon=True)
        self._thread.start()
        log.info("fine-tuning begins", extra={"fields": {"frames": record["frames"], "epochs": record["epochs"]}})

    def _watch(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Enter what became of the process."""
        status = process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            with self._changed:
                self._process = None
                if self._cancelled:
                    shutil.rmtree(folder, ignore_errors=True)
                elif status == 0:
                    self._write({**self._read(), "state": "done", "ended": now()})
                elif not self._stopping:
                    self._write({**self._read(), "state": "failed", "error": self._why(folder), "ended": now()})
        except (PolypsegError, OSError) as error:  # the next start asks again
            log.error("cannot write", extra={"fields": without_values(error)})
        log.info("fine-tuning ends", extra={"fields": {"status": status}})

    def _interrupt(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGINT)
            killer = threading.Timer(STOP_WAIT, process.kill)  # which does nothing to one that has ended
            killer.daemon = True
            killer.start()

    def _why(self, folder: Path) -> str:
        """The last line that the process wrote, without any folder of this computer."""
        with contextlib.suppress(OSError):
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in reversed(lines) if line.strip()), "")
            said = said.replace(f"{folder}{os.sep}", "").replace(f"{folder.resolve()}{os.sep}", "")
            if re.match(r"polypseg( \w+)?: ", said):
                return said.split(": ", 1)[1]
        return "the training failed; training/*/log.txt in the state folder says more"

    def _read(self) -> dict[str, Any]:
        if not self._file.is_file():
            return {"state": "none"}
        record: dict[str, Any] = read_json(self._file)
        return record

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self._file, record)


def _curve(file: Path) -> list[dict[str, Any]]:
    """Loss and Dice of each epoch, counted from 1."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError:
        return []
    names = {"loss": "train_loss", "val_loss": "val_loss", "dice": "val_dice"}
    found = []
    for row in rows:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            values = {name: _number(row.get(column)) for name, column in names.items()}
            found.append({"epoch": int(float(row["epoch"])) + 1, **values})
    return found


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _recipe(bundle: ModelBundle, epochs: int, frames: int) -> str:
    """The recipe that fine-tunes a bundle, as YAML: small steps, and half of the way back to where it started."""
    import yaml

    architecture, preprocessing = bundle.architecture, bundle.preprocessing
    side = 32 * max(1, round(max(preprocessing.height, preprocessing.width) / 32))
    channels = architecture.decoder_channels
    finer = architecture.name in ("Unet", "UnetPlusPlus")
    return yaml.safe_dump(
        {
            "name": "fine-tuned",
            "threshold": None,
            "split": "grouped",
            "frames": {
                "size": side, "interpolation": preprocessing.interpolation, "augmentation": "stronger",
                "batch_size": max(2, min(16, frames // 8)), "workers": 0,
            },
            "model": {
                "name": architecture.name, "encoder": architecture.encoder,
                "decoder_channels": None if channels is None else list(channels),
                "decoder_dropout": architecture.decoder_dropout, "output_stride": architecture.output_stride,
                "presence": architecture.presence, "weights": str(bundle.folder.resolve()),
                "frozen_stride": 4 if finer else None,
            },
            "loss": {
                "bce": 1.0, "dice": 1.0, "dice_per_image": True, "boundary": 5.0, "background": 0.3,
                "presence": 1.0 if architecture.presence else 0.0,
            },
            "optimizer": {
                "name": "adamw", "learning_rate": 3.0e-4, "encoder_learning_rate": 1.0e-4, "weight_decay": 1.0e-2,
                "schedule": "one_cycle", "gradient_clip": 1.0,
            },
            "trainer": {
                "epochs": epochs, "keep": "best", "start_share": 0.5, "threads": max(1, (os.cpu_count() or 2) // 2),
                "loggers": [],
            },
        },
        sort_keys=False,
    )  # fmt: skip
