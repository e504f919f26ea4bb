"""What is exported is the same network; what is not, or is worse, does not stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polypseg
from polypseg.bundle import Architecture, ModelBundle
from polypseg.cli import main
from polypseg.data import phantom, read_all
from polypseg.data.splits import read_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.export import formats
from polypseg.export import run as exporting
from polypseg.export.run import export
from polypseg.files import sha256_file
from polypseg.metrics.overlap import dice
from polypseg.models.network import build


@pytest.fixture
def plain(exported: ModelBundle, tmp_path: Path) -> Path:
    """A copy of the bundle without exports, in a run folder; with two views, whose second has another size."""
    folder = tmp_path / "run" / "bundle"
    folder.mkdir(parents=True)
    shutil.copy(exported.folder / "model.safetensors", folder)
    shutil.copy(exported.folder.parent / "split.csv", folder.parent)
    metadata = {key: value for key, value in exported.metadata.items() if key != "exports"}
    (folder / "metadata.json").write_text(json.dumps({**metadata, "tta": "multiscale"}))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in folder.rglob("*") if file.is_file()}


def record_of(bundle: ModelBundle, runtime: str, precision: str) -> dict[str, Any]:
    return next(one.record for one in bundle.exports if (one.runtime, one.precision) == (runtime, precision))


def test_the_onnx_file_is_the_network_with_any_batch(exported: ModelBundle) -> None:
    """By ONNX Runtime itself, on its own input: normalisation and threshold are not inside."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.folder / "onnx" / "fp32.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["frame"]
    network = build(exported.architecture).eval()
    network.load_state_dict(exported.weights())
    for count in (1, 3, 7):
        images = torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = network(images).numpy()
        assert np.abs(session.run(None, {"frame": images.numpy()})[0] - expected).max() < 1e-3


def test_the_openvino_file_is_the_network_with_any_batch(exported: ModelBundle) -> None:
    import openvino

    model = openvino.Core().compile_model(
        exported.folder / "openvino" / "fp32.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    network = build(exported.architecture).eval()
    network.load_state_dict(exported.weights())
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = network(images).numpy()
        assert np.abs(model({"frame": images.numpy()})["logits"] - expected).max() < 1e-3


def test_what_was_found_stands_in_the_bundle(exported: ModelBundle, phantom_folder: Path) -> None:
    assert [(one.runtime, one.precision) for one in exported.exports] == [
        ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "fp32"), ("onnx", "int8"),
    ]  # fmt: skip
    split = read_split(exported.folder.parent / "split.csv")
    val = read_all([phantom_folder]).with_split(split).of_split("val")
    for one in exported.exports:
        record = one.record
        assert record["files"] == {name: sha256_file(exported.folder / name) for name in record["files"]}
        assert record["bytes"] == sum((exported.folder / name).stat().st_size for name in record["files"])
        found = record["verified"]
        assert found["frames"] == len(val) and found["split"]["part"] == "val"
        for runtime, precision, key in (("torch", "fp32", "torch"), (one.runtime, one.precision, "export")):
            segmenter = polypseg.load(exported.folder, runtime=runtime, device="cpu", precision=precision)
            shown = [index for index in range(len(val)) if val.mask(index).any()]
            scores = [dice(segmenter.segment(val.frame(index)).mask, val.mask(index)) for index in shown]
            assert found["dice"][key] == pytest.approx(np.mean(scores), abs=1e-3)
    sizes = {(one.runtime, one.precision): one.record["bytes"] for one in exported.exports}
    assert sizes["openvino", "int8"] < sizes["openvino", "bf16"] < sizes["openvino", "fp32"]
    assert record_of(exported, "openvino", "int8")["calibration"]["frames"] == 28  # all training frames
    assert record_of(exported, "openvino", "int8")["calibration"]["split"]["part"] == "train"
    assert record_of(exported, "openvino", "fp32")["verified"]["probability_difference"]["largest"] < 1e-3
    assert exported.hash == ModelBundle.load(exported.folder).hash  # an export is no other model


def test_without_data_phantom_frames_prove_it(plain: Path) -> None:
    made = export(plain.parent, "openvino", "bf16")  # a run folder does too
    found = made.record["verified"]
    assert found["frames"] == 8 and found["dice"] is None and found["split"] is None
    assert polypseg.load(plain, device="cpu").precision == "bf16"


@pytest.mark.parametrize(
    ("runtime", "precision", "largest"), [("onnx", "fp32", 1e-3), ("openvino", "fp32", 1e-3), ("openvino", "int8", 0.9)]
)
def test_a_bundle_with_two_views_is_exported_and_run(
    plain: Path, phantom_folder: Path, runtime: str, precision: str, largest: float
) -> None:
    frame = phantom.draw(7, 70, 90)[0]
    expected = polypseg.load(plain, runtime="torch", device="cpu", precision="fp32").probability(frame)
    data = [phantom_folder] if precision == "int8" else []
    export(plain, runtime, precision, data=data, max_drop=0.2, progress=False)
    segmenter = polypseg.load(plain, runtime=runtime, precision=precision)
    difference = np.abs(segmenter.probability(frame) - expected)
    assert segmenter.tta == "multiscale" and difference.max() < largest and difference.mean() < 0.06


class _Enlarging(torch.nn.Module):
    """Its graph has a size in it, 64×96, which is 32 times that of what is enlarged."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        far = torch.nn.functional.avg_pool2d(images, 32).mean(1, keepdim=True)
        return images[:, :1] + torch.nn.functional.interpolate(far, size=(images.shape[2], images.shape[3]))


class _OfOneSize(torch.nn.Module):
    """Its graph has a size in it, 64×96, which no factor can stand for: what is enlarged is always one pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = torch.nn.functional.adaptive_avg_pool2d(images, 1).mean(1, keepdim=True)
        return images[:, :1] + torch.nn.functional.interpolate(mean, size=(images.shape[2], images.shape[3]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no size", "a factor", "a size"])
def test_an_int8_onnx_graph_keeps_a_size_that_no_factor_can_stand_for(
    untrained: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import onnx

    networks = {"no size": torch.nn.Conv2d(3, 1, 3, padding=1), "a factor": _Enlarging(), "a size": _OfOneSize()}
    network = networks[kind]
    monkeypatch.setattr(formats, "open_network", lambda bundle: network.eval())
    monkeypatch.setattr(formats, "_made", {})
    file = tmp_path / "floats.onnx"
    formats.write_onnx(untrained, file, any_size=False)
    shutil.copy(file, tmp_path / "int8.onnx")
    formats.open_size(untrained, file, tmp_path / "int8.onnx")
    shape = onnx.load(tmp_path / "int8.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_value for one in shape[2:]] == ([64, 96] if kind == "a size" else [0, 0])


def test_an_export_that_loses_too_much_is_refused_and_leaves_nothing(plain: Path, phantom_folder: Path) -> None:
    before = contents(plain)
    with pytest.raises(PolypsegError, match=r"of mean Dice on validation .* was not kept.*--max_drop") as caught:
        export(plain, "openvino", "int8", data=[phantom_folder], max_drop=-1.0, progress=False)
    assert str(caught.value).startswith(str(plain)) and "\n" not in str(caught.value)
    assert contents(plain) == before


def test_another_network_under_its_name_is_found_out(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(plain)
    monkeypatch.setattr(formats, "_made", {})
    real = exporting.write_onnx

    def wrong(bundle: ModelBundle, file: Path, any_size: bool = True) -> None:
        weights = {
            key: value * 1.05 if "segmentation_head" in key else value for key, value in bundle.weights().items()
        }
        with monkeypatch.context() as patch:
            patch.setattr(ModelBundle, "weights", lambda self: weights)
            real(bundle, file, any_size)

    monkeypatch.setattr(exporting, "write_onnx", wrong)
    with pytest.raises(PolypsegError, match="differs from PyTorch"):
        export(plain, "onnx", "fp32")
    assert contents(plain) == before


def test_an_earlier_export_is_kept_or_replaced(plain: Path) -> None:
    first = export(plain, "openvino", "fp32")
    with pytest.raises(PolypsegError, match="contains an export to openvino fp32 already; use --overwrite"):
        export(plain, "openvino", "fp32")
    again = export(plain, "openvino", "fp32", overwrite=True)
    assert len(ModelBundle.load(plain).exports) == 1
    assert again.model == first.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--precision", "bf16"], "--precision bf16: onnx has none"),
        (["--precision", "int8"], "--precision int8: needs --data"),
        (["--precision", "int8", "--calibration_frames", "0", "--data", "{data}"], "--calibration_frames 0"),
    ],
)
def test_arguments_that_cannot_be(
    plain: Path, phantom_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.format(data=phantom_folder) for word in arguments]
    assert main(["export", str(plain), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_verb_says_what_it_found(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(plain)]) == 0
    line, file = capsys.readouterr().out.splitlines()
    assert line.startswith("openvino fp32: ") and "against PyTorch fp32 on 8 phantom frames" in line
    assert Path(file).is_file()


@pytest.mark.parametrize("package", ["nncf", "onnxscript"])
def test_a_missing_package_is_told(
    plain: Path, phantom_folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(formats, "_made", {})
    before = contents(plain)
    options = ("openvino", "int8") if package == "nncf" else ("onnx", "fp32")
    with pytest.raises(PolypsegError, match=r"pip install 'polypseg\[export\]'") as caught:
        export(plain, *options, data=[phantom_folder])
    assert "\n" not in str(caught.value) and not isinstance(caught.value, UsageError)
    assert contents(plain) == before


@pytest.mark.slow
def test_what_follows_the_last_convolutions_is_not_quantised(tmp_path: Path) -> None:
    """A map that is joined with a judgement of presence: in steps, chance would decide which region is shown."""
    import openvino

    torch.manual_seed(0)
    network = build(Architecture("UnetPlusPlus", "mobilenet_v2", presence=True, output_stride=4)).eval()
    example = torch.randn(1, 3, 64, 96)
    openvino.save_model(
        openvino.convert_model(network, example_input=example, input=[example.shape]), tmp_path / "fp32.xml"
    )
    images = list(torch.randn(4, 3, 64, 96).numpy())
    formats.quantise(tmp_path / "fp32.xml", tmp_path / "int8.xml", images)
    waiting, kinds = [openvino.Core().read_model(tmp_path / "int8.xml").get_results()[0]], []
    while waiting:
        node = waiting.pop()
        kinds.append(node.get_type_name())
        if node.get_type_name() != "Convolution":
            waiting += [value.get_node() for value in node.input_values()]
    assert "Convolution" in kinds and "FakeQuantize" not in kinds
    assert "Select" in kinds and "Interpolate" in kinds
