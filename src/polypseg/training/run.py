"""Train: from a Recipe to a run folder, step by step: prepare, fit, choose, test, picture."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pandas as pd

from polypseg.data.splits import hash_split
from polypseg.inference.segmenter import Segmenter
from polypseg.models.network import dropout_argument
from polypseg.training.checkpoints import is_hashed
from polypseg.training.fit import fit, make_trainer, quiet_lightning
from polypseg.training.folder import CACHE, LOG, logging_to, replacing, taken, write_start
from polypseg.training.loggers import make_loggers
from polypseg.training.pictures import draw_curves, draw_examples
from polypseg.training.prepare import Prepared, prepare, split_frames
from polypseg.training.processes import agree, check_restartable, from_first, join, together
from polypseg.training.recipe import Recipe
from polypseg.training.result import write_bundle
from polypseg.training.scores import Chosen, choose, test

log = logging.getLogger("polypseg")


def train(
    recipe: Recipe,
    data: Sequence[str | Path],
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    split: tuple[str, pd.DataFrame] | None = None,
) -> Path:
    """Train by a recipe and fill a run folder.

    The checkpoint with the best validation Dice becomes the bundle, or the last one by ``trainer.keep``; the operating
    point is chosen on validation where the recipe leaves the threshold open; only then is the test split scored, once.

    Args:
        recipe: what to do.
        data: folders of data sets.
        out: the run folder; ``runs/<recipe.name>`` by default.
        resume: continue from the last complete checkpoint in ``out``; start anew where there is none.
        overwrite: replace an earlier run in ``out``, which stands until the new one is known to work.
        progress: show progress bars; by default where standard error is a terminal, else lines in the log.
        split: a split's name and table, taken in place of ``recipe.split``.

    Returns:
        The run folder: ``config.yaml``, ``split.csv``, ``metrics.csv``, ``curves.png``,
        ``checkpoints/{last,best}.ckpt``, ``bundle/``, ``test.json``, ``per_image.csv``, ``predictions.png``,
        ``log.txt``.

    Raises:
        PolypsegError: the data, the disk, the network or an earlier run in ``out`` stands in the way.
        UsageError: the recipe or the options cannot be used on this machine.
        KeyboardInterrupt: the run was interrupted; ``resume`` continues from the last complete epoch.
    """
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    show = sys.stderr.isatty() if progress is None else progress
    check_restartable(overwrite)
    with quiet_lightning(), contextlib.ExitStack() as held:
        trainer = make_trainer(recipe, folder, show)
        join(trainer)
        with together():
            if trainer.is_global_zero:
                held.enter_context(taken(folder, recipe.to_dict(), (*recipe.inputs, *data), resume, overwrite))
        started = time.monotonic()
        prepared = _begin(recipe, data, folder, resume, split, show, trainer)
        with logging_to(folder / LOG if trainer.is_global_zero else None):
            _announce(prepared, trainer)
            fit(trainer, prepared)
            if not trainer.is_global_zero:
                return folder
            catalog = prepared.frames.catalog
            chosen = Chosen(Segmenter(write_bundle(folder, prepared)))
            if recipe.threshold is None:
                chosen = choose(chosen.segmenter, catalog, show)
            test(chosen, recipe.loss, catalog, folder, show)
            draw_curves(chosen.segmenter, folder)
            draw_examples(chosen.segmenter, catalog, folder)
            shutil.rmtree(folder / CACHE, ignore_errors=True)
            log.info("done in %.0f s: %s", time.monotonic() - started, folder)
    return folder


def _begin(
    recipe: Recipe,
    data: Sequence[str | Path],
    folder: Path,
    resume: bool,
    split: tuple[str, pd.DataFrame] | None,
    show: bool,
    trainer: L.Trainer,
) -> Prepared:
    """Prepare in every process, see that all have the same frames, and write what is known before training starts.

    Whatever may be wrong is met before anything is written; an earlier run that is not resumed stands until then.
    """
    first, last = trainer.is_global_zero, folder / "checkpoints" / "last.ckpt"
    checkpoint = last if from_first(resume and last.is_file()) else None
    with together():
        frames = split_frames(recipe, data, folder, checkpoint is not None, split)
        prepared = prepare(recipe, frames, folder, checkpoint, show and first)
    agree(
        hash_split(frames.catalog.frames),
        f"{', '.join(map(str, data))}: {socket.gethostname()} finds other frames or another split there than the "
        "first machine; give all the same data",
    )
    with together():
        if first:
            with replacing(folder) if checkpoint is None else contextlib.nullcontext():
                origin = None if prepared.origin is None else prepared.origin.to_dict()
                write_start(folder, recipe.to_dict(), frames.catalog, origin)
                trainer.loggers = make_loggers(recipe, folder)
    return prepared


def _announce(prepared: Prepared, trainer: L.Trainer) -> None:
    """Log what is going to be trained, by what and on what."""
    recipe, checkpoint = prepared.recipe, prepared.checkpoint
    log.info("%s", prepared.frames)
    if trainer.world_size > 1:
        log.info("%d processes, machines: %d", trainer.world_size, trainer.num_nodes)
    if recipe.model.decoder_dropout and dropout_argument(recipe.model.name) is None:
        log.info(
            "SMP's %s has no place for decoder dropout: the rate %g is not applied",
            recipe.model.name, recipe.model.decoder_dropout,
        )  # fmt: skip
    if checkpoint is not None and not is_hashed(checkpoint):
        log.warning(
            "%s: has no SHA-256 beside it, as of an earlier polypseg; it is resumed, but whether it is whole cannot "
            "be verified", checkpoint,
        )  # fmt: skip
    log.info("training %s on %s, %s", recipe.name, trainer.accelerator.__class__.__name__, trainer.precision)
