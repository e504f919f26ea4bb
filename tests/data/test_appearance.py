"""What screens and lamps add: it is where it should be, and what it covers shows no polyp."""

import albumentations as A
import numpy as np

from polypseg.data.appearance import Glare, Screen

FRAME = np.full((80, 100, 3), 120, np.uint8)
POLYP = np.ones((80, 100), np.uint8)


def test_glare_whitens_a_few_pixels_and_leaves_the_mask() -> None:
    pipeline = A.Compose([Glare(p=1.0)], seed=1)
    for _ in range(5):
        result = pipeline(image=FRAME, mask=POLYP)
        white = (result["image"] > 200).all(axis=2).mean()
        assert 0 < white < 0.3
        assert result["mask"].all()


def test_what_the_screen_covers_has_no_polyp_and_nothing_else_changes() -> None:
    pipeline = A.Compose([Screen(border=1.0, inset=1.0, p=1.0)], seed=1)
    shares = []
    for _ in range(20):
        result = pipeline(image=FRAME, mask=POLYP)
        shown = result["mask"] > 0
        assert (result["image"][shown] == 120).all()
        shares.append(shown.mean())
    assert 0.2 < min(shares) < max(shares) < 1.0


def test_a_border_is_dark_and_touches_the_edge() -> None:
    pipeline = A.Compose([Screen(border=1.0, inset=0.0, p=1.0)], seed=2)
    for _ in range(10):
        result = pipeline(image=FRAME, mask=POLYP)
        covered = result["mask"] == 0
        assert (result["image"][covered] < 30).all()
        assert covered[0, 0] and covered[-1, -1]
