"""The torch Dataset, and the batches whose order and augmentation depend on seed, epoch and index alone.

Because nothing else enters, a run repeats whatever the number of workers, a resumed run continues exactly as if it
had not been interrupted, and several processes see together what one would see.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from polypseg.data.cache import FrameCache
from polypseg.data.polyp_free import Frame, Mask, decoy, without_polyp
from polypseg.data.transforms import seed_pipeline

if TYPE_CHECKING:
    import albumentations as A  # transforms imports it first, having kept it from asking for its version


class Key(NamedTuple):
    """What a sampler asks the Dataset for: a frame's position, the epoch, and 0 in ``weight`` for padding.

    ``turn`` counts how often the epoch has asked for the frame before.
    """

    position: int
    epoch: int = 0
    weight: float = 1.0
    turn: int = 0


class Kinds(NamedTuple):
    """Which frames are polyp-free (N bool), and the share of them in every batch, 0 or more and below 1."""

    polyp_free: NDArray[np.bool_]
    share: float


class Sample(TypedDict):
    """One frame, or with a leading dimension a batch.

    ``image`` is 3×H×W float32 (normalised), ``mask`` 1×H×W float32 0/1, ``index`` int64, and ``weight`` float32
    (0 marks padding that no metric counts).
    """

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
        made_polyp_free: share of the frames with a polyp that are shown without it (``polypseg.data.polyp_free``); as
            many of the others show the traces that this leaves.
    """

    def __init__(self, cache: FrameCache, pipeline: A.Compose, seed: int = 0, made_polyp_free: float = 0.0) -> None:
        self.cache = cache
        self.pipeline = pipeline
        self.seed = seed
        self.made_polyp_free = made_polyp_free

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: Key | int) -> Sample:
        """The sample for a position, or for a Key."""
        index, epoch, weight, turn = key if isinstance(key, Key) else Key(int(key))
        frame, mask = self.cache[index]
        numbers = (self.seed, epoch, index) + ((turn,) if turn else ())
        if self.made_polyp_free:
            frame, mask = self._with_made(frame, mask, np.random.default_rng((*numbers, 1)))
        seed_pipeline(self.pipeline, *numbers)
        result = self.pipeline(image=frame, mask=mask)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(result["image"].transpose(2, 0, 1))),
            "mask": torch.from_numpy(result["mask"][None].astype(np.float32)),
            "index": torch.tensor(index),
            "weight": torch.tensor(weight, dtype=torch.float32),
        }

    def _with_made(self, frame: Frame, mask: Mask, rng: np.random.Generator) -> tuple[Frame, Mask]:
        draw = rng.random()
        if draw < self.made_polyp_free and mask.any():
            made = without_polyp(frame, mask, rng)
            return (frame, mask) if made is None else (made, np.zeros_like(mask))
        return (decoy(frame, mask, rng) if draw > 1 - self.made_polyp_free else frame), mask


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
        kinds: where given, an epoch shows every frame with a polyp once and as many polyp-free ones, in turn, as make
            up their share of every batch.
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
        kinds: Kinds | None = None,
    ) -> None:
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = epoch
        self.kinds = kinds
        self.count = count
        if kinds is not None and kinds.polyp_free.any():
            shown = int((~kinds.polyp_free).sum())
            self.count = shown + round(shown * kinds.share / (1 - kinds.share))

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
        order = self._order(epoch)
        turns = _turns(order)
        total = math.ceil(self.count / self.batch_size)
        for turn in range(len(self)):
            number = turn * self.world_size + self.rank
            batch, weight = (number, 1.0) if number < total else (0, 0.0)
            chosen = range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.count))
            yield [Key(int(order[place]), epoch, weight, turns[place]) for place in chosen]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, epoch))
        if self.kinds is None or not self.kinds.polyp_free.any():
            order = np.arange(self.count)
            if self.shuffle:
                rng.shuffle(order)
            return order
        shown, free = np.flatnonzero(~self.kinds.polyp_free), np.flatnonzero(self.kinds.polyp_free)
        wanted = self.count - len(shown)
        # Each turn through the polyp-free frames is begun where the last epoch's ended.
        start = epoch * wanted % len(free)
        rounds = [
            np.random.default_rng((self.seed, number, 2)).permutation(free)
            for number in _rounds(epoch, wanted, len(free))
        ]
        drawn = np.concatenate(rounds)[start : start + wanted] if wanted else free[:0]
        # Spread evenly: every stretch of the order has the same share of both.
        place = np.concatenate(
            [(np.arange(len(one)) + rng.random(len(one))) / max(1, len(one)) for one in (shown, drawn)]
        )
        return np.concatenate([rng.permutation(shown), drawn])[np.argsort(place)]


def _rounds(epoch: int, wanted: int, count: int) -> range:
    """The rounds through ``count`` frames that the epoch touches, where every epoch takes the next ``wanted``."""
    return range(epoch * wanted // count, ((epoch + 1) * wanted - 1) // count + 1)


def _turns(order: NDArray[np.int64]) -> list[int]:
    """Of each entry, how often the same stood before it."""
    seen: Counter[int] = Counter()
    turns = []
    for index in order.tolist():
        turns.append(seen[index])
        seen[index] += 1
    return turns
