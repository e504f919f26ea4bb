"""Every definition that a test reports, recomputed in another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch.utils.data import DataLoader

import polypseg
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.data.cache import FrameCache
from polypseg.data.dataset import FrameDataset
from polypseg.data.transforms import evaluation_pipeline
from polypseg.evaluation.choosing import Maps
from polypseg.evaluation.scoring import DEFINITIONS, score
from polypseg.models.losses import LossConfig
from polypseg.models.network import build

ARCHITECTURE = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
PREPROCESSING = Preprocessing(64, 64)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> polypseg.Segmenter:
    torch.manual_seed(1)
    network = build(ARCHITECTURE)
    with torch.no_grad():
        for _ in range(5):
            network.train()(torch.randn(4, 3, 64, 64))
    bundle = ModelBundle.save(
        tmp_path_factory.mktemp("model") / "bundle", network.state_dict(), name="untrained",
        architecture=ARCHITECTURE, preprocessing=PREPROCESSING, threshold=0.4,
    )  # fmt: skip
    return polypseg.load(bundle.folder, precision="fp32")


@pytest.fixture(scope="module")
def frames(phantom_folder: Path) -> Catalog:
    return Catalog(read(phantom_folder).frames.iloc[:20].reset_index(drop=True))


def test_each_definition(segmenter: polypseg.Segmenter, frames: Catalog) -> None:
    dataset = FrameDataset(FrameCache(frames, PREPROCESSING, progress=False), evaluation_pipeline(PREPROCESSING))
    # 16 frames in a batch, then the other 4; the pipeline is Albumentations', not what the code under test uses
    batches = list(DataLoader(dataset, batch_size=16))
    assert [len(batch["mask"]) for batch in batches] == [16, 4]
    result = score(segmenter, frames, LossConfig(), progress=False)
    assert result.summary.keys() == {"n", *DEFINITIONS}

    # at original size, by scikit-learn
    predictions = [segmenter.segment(frames.frame(index)).mask.ravel() for index in range(len(frames))]
    truths = [frames.mask(index).ravel() for index in range(len(frames))]
    shown = [index for index, truth in enumerate(truths) if truth.any()]
    assert 0 < len(shown) < len(frames)  # frames without a polyp have no Dice
    each = [f1_score(truths[index], predictions[index]) for index in shown]
    assert list(result.per_image["dice"].iloc[shown]) == pytest.approx(each, abs=1e-12)
    assert result.per_image["dice"].isna().sum() == len(frames) - len(shown)
    assert result.summary["dice"] == pytest.approx(np.mean(each), abs=1e-12)
    ious = [jaccard_score(truths[index], predictions[index]) for index in shown]
    assert result.summary["iou"] == pytest.approx(np.mean(ious), abs=1e-12)
    pooled = f1_score(np.concatenate(truths), np.concatenate(predictions))
    assert result.summary["dice_global"] == pytest.approx(pooled, abs=1e-12)

    # at the network's size, by segmentation-models-pytorch's own metrics
    per_batch, per_image, losses = [], [], []
    network = build(segmenter.bundle.architecture).eval()
    network.load_state_dict(segmenter.bundle.weights())
    for batch in batches:
        with torch.inference_mode():
            logits = network(batch["image"])
        counts = smp.metrics.get_stats(logits.sigmoid(), batch["mask"].long(), mode="binary", threshold=0.5)
        per_batch.append(float(smp.metrics.f1_score(*counts, reduction="micro")))
        of_polyps = [count[batch["mask"].any(dim=(1, 2, 3))] for count in counts]
        per_image.append(float(smp.metrics.f1_score(*of_polyps, reduction="micro-imagewise")) * len(of_polyps[0]))
        loss = smp.losses.SoftBCEWithLogitsLoss()(logits, batch["mask"]) + smp.losses.DiceLoss("binary")(
            logits, batch["mask"]
        )
        losses.append(float(loss) * len(logits))
    assert result.summary["dice_batch"] == pytest.approx(np.mean(per_batch), abs=1e-6)
    assert result.summary["dice_network_size"] == pytest.approx(sum(per_image) / len(shown), abs=1e-6)
    assert result.summary["loss"] == pytest.approx(sum(losses) / 20, abs=1e-5)
    assert len({round(value, 6) for name, value in result.summary.items() if "dice" in name}) == 4  # all differ


def test_of_frames_without_a_polyp_there_is_no_score(segmenter: polypseg.Segmenter, frames: Catalog) -> None:
    table = frames.frames
    free = [index for index in range(len(frames)) if not frames.mask(index).any()]
    summary = score(segmenter, Catalog(table.iloc[free].reset_index(drop=True)), LossConfig(), progress=False).summary
    assert summary.pop("n") == len(free) and summary.pop("loss") > 0
    assert set(summary.values()) == {None}


def test_a_test_decodes_and_computes_every_frame_once(
    segmenter: polypseg.Segmenter, frames: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, counted = Catalog(frames.frames.iloc[:3]), []
    frame, logits = Catalog.frame, segmenter.runtime.stream
    monkeypatch.setattr(Catalog, "frame", lambda self, index: counted.append("frame") or frame(self, index))
    monkeypatch.setattr(
        segmenter.runtime, "stream", lambda images, size: (counted.append("map") or one for one in logits(images, size))
    )
    score(segmenter, few, LossConfig(), progress=False)
    assert counted.count("frame") == counted.count("map") == 3


def test_frames_that_were_predicted_for_the_choice_are_not_predicted_again(
    segmenter: polypseg.Segmenter, frames: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(segmenter, frames, LossConfig(), progress=False)
    maps = Maps.of(segmenter, frames, progress=False)

    def again(*_: object) -> None:
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(polypseg.Segmenter, "views", again)
    monkeypatch.setattr(Catalog, "frame", again)
    found = score(segmenter, frames, LossConfig(), False, maps.predictions(segmenter.operating_point))
    assert found.summary == pytest.approx(expected.summary, abs=1e-3)
    np.testing.assert_allclose(found.per_image["dice"], expected.per_image["dice"], atol=1e-3)
