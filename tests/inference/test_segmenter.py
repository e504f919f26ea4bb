"""A bundle and a frame in, a Segmentation out."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import polypseg
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.data import phantom
from polypseg.errors import PolypsegError, UsageError
from polypseg.models.network import build

SMALL = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    torch.manual_seed(0)
    network = build(SMALL)
    with torch.no_grad():  # settle batch normalisation, so that the outputs are not all alike
        for _ in range(5):
            network.train()(torch.randn(4, 3, 64, 64))
    return ModelBundle.save(
        tmp_path_factory.mktemp("model") / "bundle", network.state_dict(), name="untrained", architecture=SMALL,
        preprocessing=Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), threshold=0.45,
    )  # fmt: skip


def test_equals_a_plain_computation(bundle: ModelBundle) -> None:
    """Independent of our code: torch's resize, normalisation, network, sigmoid and resize back."""
    frame, _ = phantom.draw(1, 128, 192)
    segmenter = polypseg.load(bundle.folder, device="cpu", precision="fp32")
    prediction = segmenter.segment(frame)
    network = build(SMALL).eval()
    network.load_state_dict(bundle.weights())
    image = functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None].float(), (64, 96), mode="bilinear", align_corners=False
    )
    with torch.inference_mode():
        logits = network((image.round() / 255 - 0.5) / 0.5)
    expected = functional.interpolate(logits.sigmoid(), (128, 192), mode="bilinear", align_corners=False)[0, 0]
    assert np.abs(prediction.probability - expected.numpy()).max() < 0.01  # the resize rounds to 8 bits differently
    np.testing.assert_array_equal(prediction.mask, prediction.probability >= np.float32(0.45))


def test_predictions_at_the_frames_own_size(bundle: ModelBundle) -> None:
    segmenter = polypseg.load(bundle.folder)
    for shape in ((72, 88), (33, 201), (64, 96), (1, 1)):
        prediction = segmenter.segment(np.full((*shape, 3), 90, np.uint8))
        assert prediction.mask.shape == prediction.probability.shape == shape
        assert prediction.mask.dtype == bool and prediction.probability.dtype == np.float32
        assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1


def test_another_operating_point_is_another_segmenter_by_the_same_runtime(bundle: ModelBundle) -> None:
    segmenter = polypseg.load(bundle.folder)
    frame, _ = phantom.draw(1, 64, 96)
    level = float(np.quantile(segmenter.segment(frame).probability, 0.8))
    other = segmenter.at(threshold=level, min_confidence=None, min_area=0.0)
    assert (segmenter.threshold, other.threshold) == (0.45, level) and other.runtime is segmenter.runtime
    loaded = polypseg.load(bundle.folder, threshold=level)
    np.testing.assert_array_equal(other.segment(frame).mask, loaded.segment(frame).mask)
    assert other.segment(frame).mask.sum() != segmenter.segment(frame).mask.sum()
    assert copy.deepcopy(other).settings == other.settings == loaded.settings
    with pytest.raises(UsageError, match="threshold 2"):
        segmenter.at(threshold=2.0)


def test_stream_equals_single_frames_in_order(bundle: ModelBundle) -> None:
    segmenter = polypseg.load(bundle.folder, precision="fp32")
    frames = [phantom.draw(seed, 60 + seed, 80)[0] for seed in range(5)]
    for batch_size in (1, 2, 8):
        predictions = list(segmenter.stream(iter(frames), batch_size))
        assert [prediction.mask.shape for prediction in predictions] == [frame.shape[:2] for frame in frames]
        for frame, prediction in zip(frames, predictions, strict=True):
            assert np.abs(prediction.probability - segmenter.segment(frame).probability).max() < 1e-4


@pytest.mark.parametrize("frame", [np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 5), np.uint8)])
def test_other_arrays_are_refused(bundle: ModelBundle, frame: np.ndarray) -> None:
    segmenter = polypseg.load(bundle.folder)
    for ask in (segmenter.segment, segmenter.probability):
        with pytest.raises(ValueError, match="H×W×3 uint8 RGB"):
            ask(frame)
    with pytest.raises(ValueError, match="H×W×3 uint8 RGB"):
        segmenter.probability(np.zeros((8, 8), np.uint8))  # which takes frames as they are


def test_weights_that_do_not_fit(bundle: ModelBundle, tmp_path: Path) -> None:
    wrong = ModelBundle.save(
        tmp_path / "wrong", bundle.weights(), name="wrong", architecture=Architecture("Unet", "resnet18"),
        preprocessing=bundle.preprocessing, threshold=0.5,
    )  # fmt: skip
    with pytest.raises(PolypsegError, match="do not fit its architecture") as caught:
        polypseg.load(wrong.folder)
    assert "\n" not in str(caught.value)
