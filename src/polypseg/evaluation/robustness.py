"""How much Dice is left when the same frames are corrupted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.catalog import Catalog
from polypseg.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.lesions import shows_polyp
from polypseg.metrics.overlap import dice


def robustness(segmenter: Segmenter, catalog: Catalog, progress: bool = True) -> dict[str, list[float]]:
    """Mean Dice of the frames with a polyp, at original size, for each corruption at severities 1 to 5.

    Args:
        segmenter: what to test.
        catalog: frames with masks.
        progress: show a progress bar.

    Returns:
        Five values, 0..1, by the corruption's name; nothing where no frame shows a polyp.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    sums = {name: np.zeros(len(SEVERITIES)) for name in CORRUPTIONS}
    shown = 0
    for index in tqdm(range(len(catalog)), "robustness", unit="frame", disable=not progress):
        truth = catalog.mask(index)
        if not shows_polyp(truth):
            continue
        frame, shown = catalog.frame(index), shown + 1
        predictions = segmenter.stream(_corrupted(frame, index))
        for name in CORRUPTIONS:
            sums[name] += [dice(next(predictions).mask, truth) for _ in SEVERITIES]
    return {name: (total / shown).tolist() for name, total in sums.items()} if shown else {}


def _corrupted(frame: NDArray[np.uint8], seed: int) -> Iterator[NDArray[np.uint8]]:
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield corrupt(frame, name, severity, seed)
