"""Test-time augmentation and ensembles: averages of answers, checked against averages made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import polypseg
from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.data import phantom

FRAMES = [phantom.draw(seed, 70 + seed, 90)[0] for seed in range(4)]
FLIPS = {"flip": [(), (1,)], "flips": [(), (1,), (0,), (0, 1)]}


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize("tta", FLIPS)
def test_augmentation_averages_the_views(exported: ModelBundle, tta: str, runtime: str) -> None:
    plain = polypseg.load(exported.folder, runtime=runtime, device="cpu", precision="fp32")
    averaged = polypseg.load(exported.folder, runtime=runtime, device="cpu", precision="fp32", tta=tta)
    for batch_size in (1, 3):
        for frame, found in zip(FRAMES, averaged.probabilities(iter(FRAMES), batch_size), strict=True):
            resized = plain.preprocessing.resize_frame(frame)
            views = [np.flip(plain.probability(np.flip(resized, axes).copy()), axes) for axes in FLIPS[tta]]
            assert np.abs(found - np.mean(views, axis=0)).max() < 1e-4
            assert np.abs(found - plain.probability(frame)).max() > 1e-3
    # a mirrored frame has the mirrored answer
    mirrored = averaged.probability(np.flip(plain.preprocessing.resize_frame(FRAMES[0]), 1).copy())
    assert np.abs(np.flip(mirrored, 1) - averaged.probability(FRAMES[0])).max() < 1e-4


def test_an_ensemble_averages_its_bundles(exported: ModelBundle, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "same")
    weights = {key: value * 0.98 if "conv" in key else value for key, value in exported.weights().items()}
    other = ModelBundle.save(
        tmp_path / "other", weights, name="other", architecture=exported.architecture,
        preprocessing=Preprocessing(96, 64, (0.4, 0.5, 0.6), (0.5, 0.5, 0.5)), threshold=0.6,
    )  # fmt: skip
    options = {"runtime": "torch", "device": "cpu", "precision": "fp32"}
    single = [polypseg.load(folder, **options) for folder in (exported.folder, other.folder)]
    both = polypseg.load([exported.folder, other.folder], **options)
    assert both.threshold == pytest.approx((0.4 + 0.6) / 2)
    for batch_size in (1, 3):
        for frame, found in zip(FRAMES, both.probabilities(iter(FRAMES), batch_size), strict=True):
            maps = [segmenter.probability(frame) for segmenter in single]
            second = torch.nn.functional.interpolate(
                torch.from_numpy(maps[1])[None, None], (64, 96), mode="bilinear", align_corners=False
            )[0, 0].numpy()
            assert np.abs(found - (maps[0] + second) / 2).max() < 1e-4
    answer = both.segment(FRAMES[0])
    np.testing.assert_array_equal(answer.mask, answer.probability >= np.float32(0.5))
    twins = polypseg.load([exported.folder, tmp_path / "same"], **options)
    assert np.abs(twins.probability(FRAMES[0]) - single[0].probability(FRAMES[0])).max() < 1e-6
