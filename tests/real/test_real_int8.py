"""What int8 costs the model that ships, on real frames.

Of 50 of PraNet's test frames, one view: mean difference of a probability .0027, of a frame .0153 at most; largest of a
pixel .80 (in the median frame .20), on steep outlines: a frame has .5 % at most of pixels that differ by more than .3,
and 1.4 % on the other side of 0.5. Two views: .0025, .0115, .44, .2 % and 1.3 %; mean Dice .9346, in fp32 .9355.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import polypseg
from polypseg.data import read_all

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["Kvasir-SEG", "CVC-ClinicDB"])
def test_int8_of_the_shipped_model_is_the_same_network(real_data: Path, name: str) -> None:
    catalog = read_all([real_data / name])
    full = polypseg.load(runtime="torch", device="cpu", precision="fp32", tta="none")
    small = polypseg.load(runtime="openvino", device="cpu", precision="int8", tta="none")
    for index in range(7, len(catalog), len(catalog) // 4):
        frame = catalog.frame(index)
        expected, found = full.probability(frame), small.probability(frame)
        difference = np.abs(expected - found)
        assert difference.mean() < 0.03
        assert (difference > 0.3).mean() < 0.01
        assert ((expected >= 0.5) != (found >= 0.5)).mean() < 0.03
