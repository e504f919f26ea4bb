"""Each frame decoded once: frames and masks at the network's size, in memory or on disk, under a budget."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.bundle import Preprocessing
from polypseg.catalog import Catalog
from polypseg.errors import PolypsegError
from polypseg.files import disk_error, sha256_lines
from polypseg.segmentation import read_only

CacheKind = Literal["memory", "disk", "none"]
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class FrameCache:
    """The resized frames and masks of a Catalog.

    What lies beyond the budget is decoded anew at each reading. A disk cache is one file, named by the hash of
    the files' paths, sizes and modification times and of the resize, so that a changed file makes a new cache;
    it is written whole or not at all, and shared by processes and later runs through the page cache. Files that no
    process uses are kept up to the budget; beyond it, writing a new one removes those unused for longest.

    Args:
        catalog: frames with masks.
        preprocessing: gives the size and the resize.
        kind: ``memory``, ``disk`` or ``none``.
        budget: most bytes that the cache may take; ``height * width * 4`` bytes a frame.
        folder: where the disk cache lies.
        progress: show a progress bar while decoding.

    Raises:
        PolypsegError: a file cannot be decoded, or the disk is full.
    """

    def __init__(
        self,
        catalog: Catalog,
        preprocessing: Preprocessing,
        kind: CacheKind = "memory",
        budget: int = 4 * 2**30,
        folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.catalog = catalog
        self.preprocessing = preprocessing
        self.progress = progress
        self._shape = (preprocessing.height, preprocessing.width, 4)  # RGB and the mask as a fourth channel
        self.held = 0 if kind == "none" else min(len(catalog), budget // int(np.prod(self._shape)))
        self._file: Path | None = None
        self._used: IO[bytes] | None = None  # locked as long as this cache is in use
        self._store: NDArray[np.uint8] = np.empty((0, *self._shape), np.uint8)
        if not self.held:
            return
        if kind == "disk":
            self._file = Path(folder or ".cache/polypseg") / f"frames-{self._key()[:16]}.bin"
            if not self._file.is_file():
                _evict(self._file.parent, budget)
                self._write_file(self._file)
            self._map_file()
        else:
            self._store = np.empty((self.held, *self._shape), np.uint8)
            self._fill(self._put)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, index: int) -> Pair:
        """The frame, H×W×3 uint8 RGB, and its mask, H×W uint8 0/1, both at the network's size; read-only."""
        if index >= self.held:
            return self._decode(index)
        stored = self._store[index]
        return read_only(stored[..., :3]), read_only(stored[..., 3])

    @cached_property  # beyond the budget every access decodes the frame
    def polyp_free(self) -> NDArray[np.bool_]:
        """Of each frame, whether its mask at the network's size shows no polyp; N bool."""
        return read_only(np.array([not self[index][1].any() for index in range(len(self))], dtype=bool))

    def __getstate__(self) -> dict[str, object]:
        # A worker started by spawn maps the file again instead of receiving a copy of it.
        state = dict(self.__dict__)
        if self._file is not None:
            del state["_store"], state["_used"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._map_file()

    def _decode(self, index: int) -> Pair:
        frame = self.preprocessing.resize_frame(self.catalog.frame(index))
        return frame, self.preprocessing.resize_mask(self.catalog.mask(index))

    def _put(self, index: int) -> None:
        self._store[index, ..., :3], self._store[index, ..., 3] = self._decode(index)

    def _fill(self, put: Callable[[int], None]) -> None:
        # Pillow and OpenCV release the GIL while they decode, so that threads are enough.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(put, range(self.held))
            try:
                for _ in tqdm(done, "reading frames", self.held, unit="frame", disable=not self.progress, leave=False):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _key(self) -> str:
        lines = [str(asdict(self.preprocessing)), str(self.held)]
        for row in self.catalog:
            for path in (row.image_path, row.mask_path):
                try:
                    status = os.stat(path)  # noqa: PTH116  (None is refused below)
                except (OSError, TypeError) as error:
                    raise PolypsegError(f"{path or row.image_path}: cannot be read ({error})") from error
                lines.append(f"{path}:{status.st_size}:{status.st_mtime_ns}")
        return sha256_lines(lines)

    def _write_file(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
                try:
                    _lock(part, alone=False)
                    # Blocks are reserved first: a full disk must be an error here, not a crash in the mapping.
                    _reserve(part.fileno(), self.held * int(np.prod(self._shape)))
                    self._store = np.memmap(part.name, np.uint8, "r+", shape=(self.held, *self._shape))
                    self._fill(self._put)
                    self._store.flush()
                    if os.name == "nt":  # which moves nothing that is open or mapped
                        self._store = np.empty((0, *self._shape), np.uint8)
                        part.close()
                    Path(part.name).replace(file)
                finally:
                    Path(part.name).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(file, error) from error

    def _map_file(self) -> None:
        assert self._file is not None
        self._used = self._file.open("rb")
        _lock(self._used, alone=False)
        with contextlib.suppress(OSError):  # of another user
            os.utime(self._file)
        self._store = np.memmap(self._file, np.uint8, "r", shape=(self.held, *self._shape))


def _evict(folder: Path, budget: int) -> None:
    """Remove caches that nobody uses, those unused for longest first, until the others take no more than the budget."""
    idle = []
    for file in [*folder.glob("frames-*.bin"), *folder.glob(".frames-*.bin.*")]:
        with contextlib.suppress(OSError), file.open("rb") as opened:
            if _lock(opened, alone=True):
                idle.append((file.name.startswith("."), file.stat().st_mtime, file.stat().st_size, file))
    left = sum(size for unfinished, _, size, _ in idle if not unfinished)
    for unfinished, _, size, file in sorted(idle):
        if unfinished or left > budget:
            left -= 0 if unfinished else size
            with contextlib.suppress(OSError):
                file.unlink()


def _lock(file: IO[bytes], alone: bool) -> bool:
    """Lock a file while it is open, with others or alone; whether that was possible, without waiting."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; some network storage; in use
        return False
    return True


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS, Windows
        os.ftruncate(descriptor, size)
