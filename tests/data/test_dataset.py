"""The cache, the pipelines, the Dataset and its batches."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polypseg.bundle import Preprocessing
from polypseg.catalog import Catalog
from polypseg.data import phantom, read
from polypseg.data.cache import FrameCache
from polypseg.data.dataset import EpochBatches, FrameDataset, Key, Kinds
from polypseg.data.transforms import AUGMENTATIONS, evaluation_pipeline, seed_pipeline, training_pipeline
from polypseg.errors import PolypsegError, UsageError
from polypseg.io import pictures

SMALL = Preprocessing(64, 64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def frames(tmp_path: Path) -> Catalog:
    return read(phantom.write(tmp_path / "phantom", 6, seed=1, height=72, width=88))


@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize("shape", [(72, 88), (64, 64), (33, 200), (500, 301)])
def test_evaluation_pipeline_equals_the_preprocessing_of_inference(shape: tuple[int, int], interpolation: str) -> None:
    """Training evaluates with Albumentations, inference with Preprocessing.apply: they may not drift apart."""
    preprocessing = Preprocessing(64, 96, SMALL.mean, SMALL.std, interpolation)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.random(shape) > 0.5
    result = evaluation_pipeline(preprocessing)(image=frame, mask=mask.astype(np.uint8))
    np.testing.assert_allclose(result["image"].transpose(2, 0, 1), preprocessing.apply(frame), atol=2e-6)
    np.testing.assert_array_equal(result["mask"], preprocessing.resize_mask(mask))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmentation_moves_frame_and_mask_together(augmentation: str) -> None:
    """A bright disc on black: after any augmentation the mask still covers the bright pixels."""
    grid = np.hypot(*(np.mgrid[:64, :64] - np.array([24, 38])[:, None, None]))
    mask = (grid < 12).astype(np.uint8)
    frame = np.repeat(np.where(mask, 200, 20).astype(np.uint8)[..., None], 3, axis=2)
    pipeline = training_pipeline(Preprocessing(64, 64, (0, 0, 0), (1, 1, 1)), augmentation)
    moved = agreeing = 0
    for seed in range(40):
        seed_pipeline(pipeline, seed)
        result = pipeline(image=frame, mask=mask)
        assert result["image"].shape == (64, 64, 3) and result["image"].dtype == np.float32
        assert set(np.unique(result["mask"])) <= {0, 1}
        grey = result["image"].mean(2)
        inside = result["mask"] == 1
        if inside.sum() < 50:
            continue  # moved out of the frame
        bright = grey > (np.median(grey[inside]) + np.median(grey[~inside])) / 2
        overlap = 2 * (bright & inside).sum() / (bright.sum() + inside.sum())
        agreeing += overlap > 0.85
        moved += not np.array_equal(result["mask"], mask)
    assert agreeing >= 34
    assert (moved == 0) if augmentation == "none" else (moved >= 20)


def test_transforms_choose_independently() -> None:
    """Flips left-right and up-down come in all four combinations, each about a quarter of the time."""
    pipeline = training_pipeline(SMALL, "baseline")
    flips = [step for step in pipeline.transforms if "Flip" in type(step).__name__]
    pipeline.transforms = flips
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:32, :32] = 255
    corners = []
    for seed in range(200):
        seed_pipeline(pipeline, 1, 2, seed)
        corners.append(tuple(np.argwhere(pipeline(image=frame, mask=frame[..., 0])["mask"])[0] // 32))
    counts = [corners.count((row, column)) for row in (0, 1) for column in (0, 1)]
    assert sum(counts) == 200 and min(counts) > 30


def test_unknown_augmentation() -> None:
    with pytest.raises(UsageError, match="choose one of none, baseline, strong"):
        training_pipeline(SMALL, "wild")


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_cache_gives_what_decoding_gives(kind: str, frames: Catalog, tmp_path: Path) -> None:
    cache = FrameCache(frames, SMALL, kind, folder=tmp_path / "cache", progress=False)  # type: ignore[arg-type]
    assert cache.held == (0 if kind == "none" else 6)
    for index in range(len(frames)):
        frame, mask = cache[index]
        np.testing.assert_array_equal(frame, SMALL.resize_frame(frames.frame(index)))
        np.testing.assert_array_equal(mask, SMALL.resize_mask(frames.mask(index)))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_a_cache_keeps_cannot_be_written_to(kind: str, frames: Catalog, tmp_path: Path) -> None:
    cache = FrameCache(frames, SMALL, kind, folder=tmp_path / "cache", progress=False)  # type: ignore[arg-type]
    for array in (*cache[0], cache.polyp_free):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1
    np.testing.assert_array_equal(cache[0][0], SMALL.resize_frame(frames.frame(0)))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_each_frame_is_decoded_once(
    kind: str, frames: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    opened = pictures.open_image
    monkeypatch.setattr(
        pictures, "open_image", lambda path, *others: decoded.append(str(path)) or opened(path, *others)
    )
    cache = FrameCache(frames, SMALL, kind, folder=tmp_path / "cache", progress=False)  # type: ignore[arg-type]
    for _ in range(3):
        for index in range(6):
            cache[index]
    assert len(decoded) == 12 and len(set(decoded)) == 12
    if kind == "disk":
        FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)[0]
        assert len(decoded) == 12  # a later run finds it


def test_cache_keeps_its_budget(frames: Catalog, tmp_path: Path) -> None:
    cache = FrameCache(frames, SMALL, "memory", budget=3 * 64 * 64 * 4 + 100, progress=False)
    assert cache.held == 3
    np.testing.assert_array_equal(cache[5][0], SMALL.resize_frame(frames.frame(5)))


def test_disk_cache_is_made_anew_when_a_file_changes(frames: Catalog, tmp_path: Path) -> None:
    FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)
    path = Path(frames.row(2).image_path)
    Image.new("RGB", (88, 72), (1, 2, 3)).save(path, quality=100)
    os.utime(path, (time.time() + 5, time.time() + 5))
    again = FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)
    assert np.abs(again[2][0].astype(int) - [1, 2, 3]).max() <= 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_idle_disk_caches_are_removed_beyond_the_budget(frames: Catalog, tmp_path: Path) -> None:
    folder, size = tmp_path / "cache", 6 * 64 * 64 * 4

    def cache(height: int) -> FrameCache:
        made = FrameCache(
            frames, Preprocessing(height, 64, SMALL.mean, SMALL.std), "disk", size, folder, progress=False
        )
        made[0]
        return made

    used, idle = cache(64), cache(32)
    (left,) = set(folder.iterdir()) - {used._file}
    (folder / ".frames-0123.bin.killed").write_bytes(b"unfinished")
    del idle
    small = cache(16)
    assert left.is_file() and not list(folder.glob(".*"))  # half of the budget is idle; what a kill left is gone
    old = time.time() - 1000
    os.utime(left, (old, old))
    last = small._file
    del small
    other = folder / "frames-another.bin"
    other.write_bytes(bytes(size // 2))
    now = cache(48)
    assert set(folder.iterdir()) == {used._file, last, other, now._file}  # the one unused for longest is gone


def test_disk_cache_is_whole_or_not_there(frames: Catalog, tmp_path: Path) -> None:
    Path(frames.row(3).image_path).write_bytes(b"broken")
    with pytest.raises(PolypsegError, match="phantom-0003"):
        FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_disk_cache_tells_of_a_full_disk(frames: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PolypsegError, match="the disk is full"):
        FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_disk_cache_travels_to_a_worker_without_its_pixels(frames: Catalog, tmp_path: Path) -> None:
    cache = FrameCache(frames, SMALL, "disk", folder=tmp_path / "cache", progress=False)
    sent = pickle.dumps(cache)
    assert len(sent) < 6 * 64 * 64 * 4
    np.testing.assert_array_equal(pickle.loads(sent)[4][0], cache[4][0])


def test_a_sample_depends_on_seed_epoch_and_index_alone(frames: Catalog) -> None:
    dataset = FrameDataset(FrameCache(frames, SMALL, progress=False), training_pipeline(SMALL, "strong"), seed=5)
    first = dataset[Key(2, 3)]
    dataset[Key(4, 1)]  # another in between changes nothing
    assert torch.equal(first["image"], dataset[Key(2, 3)]["image"])
    assert torch.equal(first["mask"], dataset[Key(2, 3)]["mask"])
    assert not torch.equal(first["image"], dataset[Key(2, 4)]["image"])
    other = FrameDataset(dataset.cache, dataset.pipeline, seed=6)
    assert not torch.equal(first["image"], other[Key(2, 3)]["image"])
    assert first["image"].shape == (3, 64, 64) and first["image"].dtype == torch.float32
    assert first["mask"].shape == (1, 64, 64) and set(first["mask"].unique().tolist()) <= {0.0, 1.0}
    assert dataset[2]["index"] == 2 and dataset[2]["weight"] == 1


def test_dataset_is_an_ordinary_torch_dataset(frames: Catalog) -> None:
    dataset = FrameDataset(FrameCache(frames, SMALL, progress=False), evaluation_pipeline(SMALL))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=4))
    assert [tuple(batch["image"].shape) for batch in batches] == [(4, 3, 64, 64), (2, 3, 64, 64)]


@pytest.mark.parametrize("count", [1, 5, 16, 17, 31, 33])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_batches_of_all_processes_are_those_of_one(count: int, world_size: int) -> None:
    alone = [[key.position for key in batch] for batch in EpochBatches(count, 4, shuffle=False)]
    assert [index for batch in alone for index in batch] == list(range(count))
    shards = [list(EpochBatches(count, 4, False, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1  # in step
    real = [[key.position for key in batch] for shard in shards for batch in shard if batch[0].weight]
    assert sorted(real) == sorted(alone)
    padding = [batch for shard in shards for batch in shard if not batch[0].weight]
    assert all(key.weight == 0 for batch in padding for key in batch)


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_batches_shuffle_anew_each_epoch(world_size: int) -> None:
    epoch = 0
    shards = [
        EpochBatches(30, 4, True, seed=1, rank=rank, world_size=world_size, epoch=lambda: epoch)
        for rank in range(world_size)
    ]

    def indices() -> list[int]:
        return [key.position for shard in shards for batch in shard for key in batch]

    first = indices()
    assert len(first) == len(set(first)) >= 28  # none twice
    assert first == indices()
    epoch = 1
    assert first != indices() and all(key.epoch == 1 for batch in shards[0] for key in batch)
    assert all(len(list(shard)) == len(shard) for shard in shards)


def test_no_training_batch_of_a_single_frame() -> None:
    assert [len(batch) for batch in EpochBatches(9, 4, True)] == [4, 4]
    assert [len(batch) for batch in EpochBatches(1, 4, True)] == [1]
    assert [len(batch) for batch in EpochBatches(9, 4, False)] == [4, 4, 1]


@pytest.mark.slow
def test_nobody_is_asked_for_a_version() -> None:
    """Albumentations asks PyPI for its latest version when it is imported, unless it was told before not to."""
    code = (
        "import socket, sys\nasked = []\nsocket.getaddrinfo = lambda *where, **how: asked.append(where) or 1 / 0\n"
        "import polypseg.data.dataset\nassert 'albumentations' in sys.modules\nprint(asked)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_batch_holds_the_share_of_polyp_free_frames() -> None:
    """Every frame with a polyp once an epoch; the few polyp-free ones in turn, each as often as the others."""
    polyp_free = np.array([False] * 60 + [True] * 7)
    seen: dict[int, int] = {}
    for epoch in range(7):
        batches = EpochBatches(67, 10, True, 3, epoch=lambda now=epoch: now, kinds=Kinds(polyp_free, 0.4))
        keys = list(batches)
        assert len(keys) == len(batches) == 10
        for batch in keys:
            assert 3 <= sum(polyp_free[key.position] for key in batch) <= 5
        positions = [key.position for batch in keys for key in batch]
        assert sorted(position for position in positions if position < 60) == list(range(60))
        assert len({(key.position, key.turn) for batch in keys for key in batch}) == 100  # no sample twice
        for position in positions:
            seen[position] = seen.get(position, 0) + 1
    assert {seen[position] for position in range(60, 67)} == {40}


def test_a_share_without_polyp_free_frames_changes_nothing() -> None:
    plain = [list(batch) for batch in EpochBatches(9, 4, True, 3)]
    assert [list(batch) for batch in EpochBatches(9, 4, True, 3, kinds=Kinds(np.zeros(9, bool), 0.5))] == plain


def test_frames_made_polyp_free_have_an_empty_mask_and_repeat_by_seed_and_epoch(frames: Catalog) -> None:
    cache = FrameCache(frames, Preprocessing(96, 96), progress=False)
    dataset = FrameDataset(cache, evaluation_pipeline(cache.preprocessing), 1, made_polyp_free=0.5)
    first = [dataset[Key(index, epoch)] for index in range(len(frames)) for epoch in range(6)]
    again = [dataset[Key(index, epoch)] for index in range(len(frames)) for epoch in range(6)]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(first, again, strict=True))
    empty = sum(not sample["mask"].any() for sample in first)
    assert 0 < empty < len(first)
