"""How unsure a model is of a frame, from its probability map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_entropy(probability: NDArray[np.float32], outside: NDArray[np.bool_] | None = None) -> float:
    """The mean over the pixels of the binary entropy of the probability, in bits.

    0 where the model is sure of every pixel, 1 where it knows nothing of any. Outlines are always a little unsure, so
    that it grows with the length of the outlines too.

    Args:
        probability: h×w, 0..1.
        outside: h×w bool, where the frame shows nothing of the patient: left out; None for nowhere.
    """
    values = probability if outside is None else probability[~outside]
    if not values.size:
        return 0.0
    certain = np.clip(values.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(np.mean(-certain * np.log2(certain) - (1 - certain) * np.log2(1 - certain)))
