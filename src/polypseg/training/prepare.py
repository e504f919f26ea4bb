"""Prepare: the frames, the network and the weights of a training, so that whatever is wrong with them comes out first.

Nothing is written but a cache of decoded frames.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pandas as pd
import torch

from polypseg import zoo
from polypseg.bundle import FrameRecord
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.data.cache import FrameCache
from polypseg.data.splits import changed_frames, make_split, read_split
from polypseg.errors import PolypsegError
from polypseg.evaluation.choosing import check_shows_polyp
from polypseg.evaluation.seen import frame_records
from polypseg.models.weights import WeightsOrigin
from polypseg.training.checkpoints import read_checkpoint
from polypseg.training.datamodule import FramesDataModule
from polypseg.training.folder import CACHE, SPLIT
from polypseg.training.module import SegmentationModule
from polypseg.training.processes import is_first
from polypseg.training.recipe import Recipe
from polypseg.training.start import start, warn_of_another_split
from polypseg.training.teacher import Teacher


@dataclass(frozen=True)
class Frames:
    """Frames that are dealt out to training, validation and test.

    Attributes:
        catalog: its ``split`` column is filled.
        split: the split's name.
    """

    catalog: Catalog
    split: str

    def __str__(self) -> str:
        counts = self.catalog.frames["split"].value_counts()
        each = ", ".join(f"{count} {part}" for part, count in counts.items())
        return f"{len(self.catalog)} frames, split {self.split}: {each}"


@dataclass(frozen=True)
class Prepared:
    """What a Trainer needs, found to work, and what the bundle will say of it.

    Attributes:
        recipe: of the run.
        frames: with their splits.
        batches: of them, every frame decoded once.
        module: the network as it starts, and its teacher.
        checkpoint: what is resumed; None of a new run.
        origin: where the first weights came from; None of a resumed run.
        records: the frames that the network will have seen, those of the model that it starts from among them.
    """

    recipe: Recipe
    frames: Frames
    batches: FramesDataModule
    module: SegmentationModule
    checkpoint: Path | None
    origin: WeightsOrigin | None
    records: tuple[FrameRecord, ...]


def split_frames(
    recipe: Recipe,
    data: Sequence[str | Path],
    folder: Path,
    resume: bool,
    split: tuple[str, pd.DataFrame] | None = None,
) -> Frames:
    """Read the data sets and deal them out: by the split of the run that is resumed, the one given, or the recipe's.

    Args:
        recipe: names a split.
        data: folders of data sets.
        folder: of the run.
        resume: whether it is resumed.
        split: a split's name and table, taken in place of the recipe's.

    Raises:
        PolypsegError: the data or the split cannot be used, or a frame was changed since the run began.
    """
    catalog = read_all(data)
    name = recipe.split if split is None else split[0]
    if resume and (folder / SPLIT).is_file():
        table = read_split(folder / SPLIT)
    elif split is not None:
        table = split[1]
    elif name.lower().endswith(".csv"):
        table = read_split(Path(name))
    else:
        table = make_split(name, catalog)  # by the default seed: another trainer.seed keeps its frames
    catalog = catalog.with_split(table)
    if resume and (folder / SPLIT).is_file():
        changed = changed_frames(catalog, folder / SPLIT)
        if changed:
            raise PolypsegError(
                f"{changed[0]}: this frame or its mask was changed since the run began ({len(changed)} such), or is "
                "read otherwise; restore it, or start anew with --overwrite"
            )
    return Frames(catalog, Path(name).stem)


def prepare(
    recipe: Recipe, frames: Frames, folder: Path, checkpoint: Path | None = None, progress: bool = False
) -> Prepared:
    """Make what a Trainer needs. From here to the first step, the random state is the recipe's.

    Args:
        recipe: what to do.
        frames: with their splits.
        folder: of the run.
        checkpoint: what is resumed; None starts anew.
        progress: show progress bars.

    Raises:
        PolypsegError: the network, its weights, the checkpoint, the teacher or a frame cannot be used, or a split
            shows no polyp.
    """
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    L.seed_everything(recipe.trainer.seed, workers=True, verbose=False)
    catalog = frames.catalog
    begun = start(recipe, catalog, checkpoint is not None)
    teacher = None
    if recipe.distillation.teacher is not None:
        bundle = zoo.open(recipe.distillation.teacher)
        warn_of_another_split(recipe.distillation.teacher, bundle, catalog)
        teacher = Teacher(bundle, begun.preprocessing, recipe.distillation.tta, recipe.trainer.threads)
    for part, purpose in (("train", "learn from"), ("val", "choose by")):
        check_shows_polyp(catalog.of_split(part), purpose, begun.preprocessing)
    batches = FramesDataModule(catalog, begun.preprocessing, recipe, folder / CACHE, progress)
    for part in set(catalog.frames["split"]):
        cache = batches.dataset(part).cache  # decodes, the test split too: damage must not come out after hours
        if checkpoint is None:
            _decode_rest(cache)
    if checkpoint is not None:
        _check_checkpoint(checkpoint)
    # The first process alone writes the bundle.
    records = (*frame_records(catalog), *begun.seen) if is_first() else ()
    module = SegmentationModule(begun.network, recipe, teacher)
    return Prepared(recipe, frames, batches, module, checkpoint, begun.origin, records)


def _decode_rest(cache: FrameCache) -> None:
    """Decode once what the cache has no room for."""

    def decode(index: int) -> None:
        cache[index]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(decode, range(cache.held, len(cache))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_checkpoint(path: Path) -> None:
    if not path.is_file():
        raise PolypsegError(
            f"{path}: is not seen on {socket.gethostname()}; the run folder must lie on storage that all machines share"
        )
    read_checkpoint(path)  # some strategies read it in a way of their own
