"""The torch Dataset, and the batches whose order and augmentation depend on seed, epoch and index alone.

Because nothing else enters, a run repeats whatever the number of workers, a resumed run goes on exactly as if it
had not been interrupted, and several processes see together what one would see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from polypseg.data.cache import FrameCache
from polypseg.data.transforms import seed_pipeline

if TYPE_CHECKING:
    import albumentations as A  # transforms imports it first, having told it to ask nobody for its version


class Key(NamedTuple):
    """What a sampler asks the Dataset for: a frame's position, the epoch, and 0 in ``weight`` for padding."""

    position: int
    epoch: int = 0
    weight: float = 1.0


class Sample(TypedDict):
    """One frame, or with a leading dimension a batch: ``image`` 3×H×W float32 (normalised), ``mask`` 1×H×W
    float32 0/1, ``index`` int64, ``weight`` float32 (0 marks padding that no metric counts)."""

    image: torch.Tensor
    mask: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor


class FrameDataset(Dataset[Sample]):
    """Frames of a cache through a pipeline of ``polypseg.data.transforms``.

    Args:
        cache: frames and masks at the network's size.
        pipeline: augmentation and normalisation.
        seed: with epoch and index, decides every random choice of the augmentation.
    """

    def __init__(self, cache: FrameCache, pipeline: A.Compose, seed: int = 0) -> None:
        self.cache = cache
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: Key | int) -> Sample:
        """The sample for a position, or for a Key."""
        index, epoch, weight = key if isinstance(key, tuple) else Key(int(key))
        frame, mask = self.cache[index]
        seed_pipeline(self.pipeline, self.seed, epoch, index)
        result = self.pipeline(image=frame, mask=mask)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(result["image"].transpose(2, 0, 1))),
            "mask": torch.from_numpy(result["mask"][None].astype(np.float32)),
            "index": torch.tensor(index),
            "weight": torch.tensor(weight, dtype=torch.float32),
        }


class EpochBatches(Sampler[list[Key]]):
    """Batches of Keys for one of several processes; a batch sampler.

    The frames are cut into batches first and the batches dealt out in turn afterwards, so that each batch is the
    same whatever the number of processes. In evaluation the processes that would get one batch less get the first
    batch again with weight 0; in training the rounds that not all processes could join are left out.

    Args:
        count: frames.
        batch_size: frames in a batch; the last may be smaller.
        shuffle: a new order each epoch (training); else the Catalog's order (evaluation).
        seed: decides the order, with the epoch.
        rank: this process, 0-based.
        world_size: processes.
        epoch: gives the epoch when an iteration starts. It is asked for, not set from outside: Lightning starts
            the first iteration of a resumed run before it would set it.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = epoch

    def __len__(self) -> int:
        total = math.ceil(self.count / self.batch_size)
        if self.shuffle:
            # Batch normalisation cannot learn from a single sample.
            if total > 1 and self.count % self.batch_size == 1:
                total -= 1
            return total // self.world_size
        return math.ceil(total / self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch()
        order = np.arange(self.count)
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        total = math.ceil(self.count / self.batch_size)
        for turn in range(len(self)):
            number = turn * self.world_size + self.rank
            batch, weight = (number, 1.0) if number < total else (0, 0.0)
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [Key(int(index), epoch, weight) for index in chosen]
