"""The DataModule: a Catalog with its splits, as batches."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from polypseg.bundle import Preprocessing
from polypseg.catalog import Catalog
from polypseg.data.cache import FrameCache
from polypseg.data.dataset import EpochBatches, FrameDataset, Kinds, Sample
from polypseg.data.transforms import evaluation_pipeline, training_pipeline
from polypseg.errors import PolypsegError
from polypseg.training.recipe import Recipe


class FramesDataModule(L.LightningDataModule):
    """Training, validation and test batches of a Catalog whose ``split`` column is filled.

    Each split is decoded once, when it is first asked for. The test split is not touched before ``test``.

    Args:
        catalog: frames with masks and splits.
        preprocessing: size, resize and normalisation.
        recipe: batch size, augmentation, cache, workers and seed.
        cache_folder: where a disk cache lies.
        progress: show progress while decoding.
    """

    def __init__(
        self,
        catalog: Catalog,
        preprocessing: Preprocessing,
        recipe: Recipe,
        cache_folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.catalog = catalog
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.cache_folder = cache_folder
        self.progress = progress
        self._datasets: dict[str, FrameDataset] = {}

    def dataset(self, split: str) -> FrameDataset:
        """The Dataset of a split. Raises ``PolypsegError`` where it is empty or a frame cannot be decoded."""
        if split not in self._datasets:
            settings = self.recipe.frames
            frames = self.catalog.of_split(split)
            share = len(frames) / len(self.catalog)
            cache = FrameCache(
                frames,
                self.preprocessing,
                settings.cache,
                int(settings.cache_gb * 2**30 * share),
                self.cache_folder,
                self.progress,
            )
            pipeline = (
                training_pipeline(self.preprocessing, settings.augmentation)
                if split == "train"
                else evaluation_pipeline(self.preprocessing)
            )
            made = settings.made_polyp_free if split == "train" else 0.0
            self._datasets[split] = FrameDataset(cache, pipeline, self.recipe.trainer.seed, made)
        return self._datasets[split]

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader("val")

    def batches(self, split: str) -> EpochBatches:
        """The batches of a split that fall to this process; their number is ``len``.

        Raises:
            PolypsegError: there are fewer batches of training frames than processes.
        """
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        count, size = len(self.catalog.of_split(split)), self.recipe.frames.batch_size
        share = self.recipe.frames.polyp_free_share if split == "train" else None
        kinds = None if share is None else Kinds(self.dataset(split).cache.polyp_free, share)
        batches = EpochBatches(
            count, size, split == "train", self.recipe.trainer.seed, rank, world_size, self._epoch, kinds
        )
        if not len(batches):
            raise PolypsegError(
                f"{self.recipe.name}: {count} training frames in batches of {size} are fewer batches than the "
                f"{world_size} processes; lower frames.batch_size or start fewer processes"
            )
        return batches

    def _loader(self, split: str) -> DataLoader[Sample]:
        dataset, batches = self.dataset(split), self.batches(split)
        training = split == "train"
        workers = self.workers() if training else 0
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # so that making an iterator leaves the global one, dropout's, alone
        )

    def _epoch(self) -> int:
        # Not trainer.current_epoch, which lags one epoch behind when a resumed run starts its first iteration.
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]

    def workers(self) -> int:
        """Worker processes: as the recipe says, or as many as leave the training its cores."""
        if self.recipe.frames.workers >= 0:
            return self.recipe.frames.workers
        cores = os.cpu_count() or 1
        # On a CPU the network needs every core: one worker hides the augmentation, more would take cores away.
        return min(8, cores - 1) if torch.cuda.is_available() else min(1, cores - 1)


def training_batch_sizes(catalog: Catalog, recipe: Recipe) -> set[int]:
    """How many frames the batches of training have, in one epoch."""
    count, size = len(catalog.of_split("train")), recipe.frames.batch_size
    batches = EpochBatches(count, size, shuffle=True)
    return {min(size, count - start) for start in range(0, len(batches) * size, size)}


def _one_thread(_worker: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
