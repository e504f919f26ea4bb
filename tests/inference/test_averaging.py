"""Test-time augmentation and ensembles: averages of predictions, checked against averages made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import polypseg
from polypseg.bundle import Architecture, Export, ModelBundle, Preprocessing
from polypseg.data import phantom
from polypseg.errors import UsageError
from polypseg.export.run import export
from polypseg.files import sha256_file
from polypseg.models.network import build
from polypseg.operating_point import OperatingPoint

pytestmark = pytest.mark.slow

FRAMES = [phantom.draw(seed, 70 + seed, 90)[0] for seed in range(4)]
FLIPS = {"hflip": [(), (1,)], "flips": [(), (1,), (0,), (0, 1)]}


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
    # what is measured at the network's size is measured with the views too
    together = np.stack([plain.preprocessing.resize_frame(frame) for frame in FRAMES])
    singly = np.stack([averaged.probability(frame) for frame in FRAMES])
    assert np.abs(1 / (1 + np.exp(-averaged.logits(together))) - singly).max() < 1e-4
    # a mirrored frame has the mirrored prediction
    mirrored = averaged.probability(np.flip(plain.preprocessing.resize_frame(FRAMES[0]), 1).copy())
    assert np.abs(np.flip(mirrored, 1) - averaged.probability(FRAMES[0])).max() < 1e-4


@pytest.fixture(scope="module")
def plusplus(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A U-Net++, untrained, exported to OpenVINO; not to be changed."""
    torch.manual_seed(0)
    architecture = Architecture("UnetPlusPlus", "tu-test_efficientnet", (16, 16, 16, 8, 8))
    folder = tmp_path_factory.mktemp("plusplus") / "bundle"
    bundle = ModelBundle.save(
        folder, build(architecture).state_dict(), name="plusplus", architecture=architecture,
        preprocessing=Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)), threshold=0.5,
    )  # fmt: skip
    export(bundle.folder, "openvino", "fp32", progress=False)
    return ModelBundle.load(folder)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_second_look_is_turned_and_smaller(plusplus: ModelBundle, runtime: str) -> None:
    options = {"runtime": runtime, "device": "cpu", "precision": "fp32"}
    plain, looked = (polypseg.load(plusplus.folder, tta=tta, **options) for tta in ("none", "multiscale"))
    smaller = polypseg.load(plusplus.at(replace(plusplus.preprocessing, height=32, width=64)), **options)
    for batch_size in (1, 3):
        for frame, found in zip(FRAMES, looked.probabilities(iter(FRAMES), batch_size), strict=True):
            resized = plain.preprocessing.resize_frame(frame)
            seen = cv2.resize(np.rot90(resized, 2), (64, 32), interpolation=cv2.INTER_LINEAR)
            turned = np.rot90(smaller.probability(seen), 2).copy()
            second = cv2.resize(turned, (96, 64), interpolation=cv2.INTER_LINEAR)
            first = plain.probability(frame)
            assert np.abs(found - (first + second) / 2).max() < 1e-3 < np.abs(found - first).max()
    together = np.stack([plain.preprocessing.resize_frame(frame) for frame in FRAMES])
    singly = np.stack([looked.probability(frame) for frame in FRAMES])
    assert np.abs(1 / (1 + np.exp(-looked.logits(together))) - singly).max() < 1e-4
    assert looked.reason == plain.reason  # still one network


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_views_of_a_network_share_its_weights(
    plusplus: ModelBundle, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    for kind, name in ((ModelBundle, "weights"), (Export, "verify")):
        of = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, of=of: (read.append(self), of(self))[1])
    segmenter = polypseg.load(plusplus.folder, runtime=runtime, device="cpu", precision="fp32", tta="multiscale")
    assert len(read) == 1
    assert segmenter.probability(FRAMES[0]).shape == (64, 96)


def test_a_bundle_may_have_its_own_augmentation(exported: ModelBundle, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "own")
    own = ModelBundle.load(tmp_path / "own").update(tta="multiscale")
    assert exported.tta == "none" and own.tta == "multiscale" and own.hash != exported.hash
    options = {"runtime": "torch", "device": "cpu"}
    found = polypseg.load(own.folder, **options)
    assert found.tta == found.settings["tta"] == "multiscale"
    asked = polypseg.load(exported.folder, tta="multiscale", **options)
    np.testing.assert_array_equal(found.probability(FRAMES[0]), asked.probability(FRAMES[0]))
    without = polypseg.load(own.folder, tta="none", **options)
    plain = polypseg.load(exported.folder, **options)
    np.testing.assert_array_equal(without.probability(FRAMES[0]), plain.probability(FRAMES[0]))


@pytest.mark.parametrize(
    ("runtime", "precision", "largest"),
    [("onnx", "fp32", 1e-3), ("openvino", "fp32", 1e-3), ("openvino", "int8", 0.9), ("onnx", "int8", 0.9)],
)
def test_an_export_of_any_size_has_a_second_look(
    exported: ModelBundle, runtime: str, precision: str, largest: float
) -> None:
    found = polypseg.load(exported.folder, runtime=runtime, precision=precision, tta="multiscale")
    expected = polypseg.load(exported.folder, runtime="torch", device="cpu", precision="fp32", tta="multiscale")
    for frame in FRAMES:
        difference = np.abs(found.probability(frame) - expected.probability(frame))
        assert difference.max() < largest and difference.mean() < 0.06  # int8: see TOLERANCES in test_runtimes


def test_an_export_of_one_size_has_no_second_look(exported: ModelBundle, tmp_path: Path) -> None:
    import onnx

    shutil.copytree(exported.folder, tmp_path / "one")
    file = tmp_path / "one" / "onnx" / "int8.onnx"
    model = onnx.load(file)
    for axis, size in ((2, 64), (3, 96)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, file)
    metadata = json.loads((tmp_path / "one" / "metadata.json").read_text())
    for record in metadata["exports"]:
        if (record["runtime"], record["precision"]) == ("onnx", "int8"):
            record["files"] = {"onnx/int8.onnx": sha256_file(file)}
    (tmp_path / "one" / "metadata.json").write_text(json.dumps(metadata))
    line = r"onnx/int8\.onnx: cannot compute frames of 32×64, only those of its own size, 64×96 .*; take --tta none, or"
    with pytest.raises(UsageError, match=line):
        polypseg.load(tmp_path / "one", runtime="onnx", precision="int8", tta="multiscale")


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
    prediction = both.segment(FRAMES[0])
    np.testing.assert_array_equal(prediction.mask, prediction.probability >= np.float32(0.5))
    mixed = polypseg.load([exported.folder, other.folder], device="cpu")
    alone = [polypseg.load(folder, device="cpu") for folder in (exported.folder, other.folder)]
    assert alone[0].precision == "int8" != alone[1].precision
    assert mixed.precision == mixed.settings["precision"] == f"int8+{alone[1].precision}"
    assert mixed.settings["runtime"] == "openvino+torch" and mixed.device == "cpu"
    assert "; the others by torch on cpu" in mixed.reason
    twins = polypseg.load([exported.folder, tmp_path / "same"], **options)
    assert np.abs(twins.probability(FRAMES[0]) - single[0].probability(FRAMES[0])).max() < 1e-6


def test_an_ensemble_bundle_averages_its_members_and_has_its_own_threshold(
    exported: ModelBundle, phantom_folder: Path, tmp_path: Path
) -> None:
    from polypseg.benchmark.speed import ways
    from polypseg.data import read_all
    from polypseg.evaluation.scoring import score
    from polypseg.metrics.overlap import dice
    from polypseg.models.losses import LossConfig

    weights = {key: value * 0.9 if "conv" in key else value for key, value in exported.weights().items()}
    other = ModelBundle.save(
        tmp_path / "other", weights, name="other", architecture=exported.architecture, temperature=2.0,
        preprocessing=Preprocessing(96, 64, (0.4, 0.5, 0.6), (0.5, 0.5, 0.5)), threshold=0.9,
    )  # fmt: skip
    ModelBundle.join(
        tmp_path / "run" / "bundle", {"one": exported, "two": other}, name="both",
        operating_point=OperatingPoint(0.35, min_area=0.03),
    )  # fmt: skip
    options = {"runtime": "torch", "device": "cpu", "precision": "fp32"}
    listed = polypseg.load([exported.folder, other.folder], **options)
    both = polypseg.load(tmp_path / "run", **options)
    assert (both.threshold, both.operating_point.min_area) == (0.35, 0.03)
    assert both.hash == ModelBundle.load(tmp_path / "run").hash
    assert both.reason.startswith("2 networks, the first by torch on cpu")
    for frame, found, expected in zip(FRAMES, both.probabilities(FRAMES), listed.probabilities(FRAMES), strict=True):
        np.testing.assert_array_equal(found, expected)
        prediction = both.segment(frame)
        np.testing.assert_array_equal(
            prediction.mask, both.operating_point.clean(prediction.probability >= np.float32(0.35))
        )
    # what is scored at the network's size is the mean too, not the first network
    catalog = read_all([phantom_folder])
    truth = [both.preprocessing.resize_mask(catalog.mask(index)) > 0 for index in range(len(catalog))]
    maps = [both.probability(catalog.frame(index)) for index in range(len(catalog))]
    by_hand = np.mean([dice(one > 0.5, mask) for one, mask in zip(maps, truth, strict=True) if mask.any()])
    scored, likewise = (score(one, catalog, LossConfig(), progress=False).summary for one in (both, listed))
    assert scored["dice_network_size"] == pytest.approx(by_hand, abs=1e-6)
    for name in ("dice_network_size", "dice_batch", "loss"):
        assert likewise[name] == scored[name]
    # a runtime serves it where every member has an export
    members = ModelBundle.load(tmp_path / "run").members
    assert {one.precision for one in ways(members[0], ["openvino"])} == {"fp32", "bf16", "int8"}
    assert [one.precision for one in ways(ModelBundle.load(tmp_path / "run"), ["openvino"])] == ["fp32"]
    exact = ModelBundle.join(tmp_path / "twins", {"one": exported, "two": exported}, name="twins", threshold=0.4)
    fast = polypseg.load(exact.folder, runtime="openvino", precision="fp32")
    alone = polypseg.load(exported.folder, runtime="openvino", precision="fp32")
    assert np.abs(fast.probability(FRAMES[0]) - alone.probability(FRAMES[0])).max() < 1e-6
