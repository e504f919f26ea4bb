"""Networks and losses."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from polypseg.bundle import Architecture
from polypseg.errors import PolypsegError, UsageError
from polypseg.models.device import choose_device, gains_from_bf16
from polypseg.models.network import build, dropout_argument, finer_layers, joined


def test_the_known_recipes_network() -> None:
    network = build(Architecture("UnetPlusPlus", "efficientnet-b3", decoder_dropout=0.4))
    assert isinstance(network, smp.UnetPlusPlus)
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(13.6e6, rel=0.01)  # FIELD.md E.1
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)


@pytest.mark.parametrize(
    ("encoder", "stride", "last", "first_coarser"),
    [
        ("tu-tf_efficientnet_lite2", 4, "model.blocks.2.0.bn1", "model.blocks.2.0.conv_dw"),
        ("efficientnet-b0", 2, "_blocks.1._bn0", "_blocks.1._depthwise_conv"),  # with squeeze and excitation before it
        ("resnet18", 4, "layer1.1.bn2", "layer2.0.conv1"),
    ],
)
def test_the_finer_layers_of_an_encoder(encoder: str, stride: int, last: str, first_coarser: str) -> None:
    network = build(Architecture("Unet", encoder)).train()
    names = {id(layer): name for name, layer in network.get_submodule("encoder").named_modules()}
    found = [names[id(layer)] for layer in finer_layers(network, stride)]
    own = [name for name in names.values() if name in found or name == first_coarser]
    assert own[-1] == first_coarser and own[-2] == last
    assert network.training


def test_decoder_dropout_goes_where_smp_has_a_place() -> None:
    assert dropout_argument("UnetPlusPlus") is None
    network = build(Architecture("FPN", "mobilenet_v2", decoder_dropout=0.4))
    assert 0.4 in [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout2d)]


def test_decoder_channels() -> None:
    wide = build(Architecture("UnetPlusPlus", "mobilenet_v2"))
    narrow = build(Architecture("UnetPlusPlus", "mobilenet_v2", decoder_channels=(64, 32, 16, 8, 8)))
    count = [sum(value.numel() for value in network.parameters()) for network in (wide, narrow)]
    assert count[1] < count[0]


@pytest.mark.parametrize("name", ["UnetPlusPlus", "Unet"])
def test_the_last_stage_at_half_the_size(name: str) -> None:
    torch.manual_seed(0)
    whole = build(Architecture(name, "mobilenet_v2")).eval()
    half = build(Architecture(name, "mobilenet_v2", output_stride=2)).eval()
    half.load_state_dict(whole.state_dict())
    frames, seen = torch.randn(2, 3, 64, 96), {}
    last = half.decoder.blocks["x_0_4"] if name == "UnetPlusPlus" else half.decoder.blocks[-1]
    last.register_forward_hook(lambda module, given, made: seen.update(given=given[0], made=made))
    with torch.inference_mode():
        prediction = half(frames)
        assert prediction.shape == (2, 1, 64, 96)
        assert seen["given"].shape[2:] == seen["made"].shape[2:] == (32, 48)
        block = whole.decoder.blocks["x_0_4"] if name == "UnetPlusPlus" else whole.decoder.blocks[-1]
        small = whole.segmentation_head[0](block.conv2(block.conv1(seen["given"])))
        expected = torch.nn.functional.interpolate(small, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction, expected)


@pytest.mark.parametrize("name", ["UnetPlusPlus", "Unet"])
def test_the_decoder_without_its_finest_stage_is_smps_decoder_of_the_coarser_features(name: str) -> None:
    torch.manual_seed(0)
    network = build(Architecture(name, "mobilenet_v2", (64, 48, 32, 16, 8), output_stride=4)).eval()
    skips = network.encoder.out_channels
    reference = type(network.decoder)((3, *skips[2:]), (64, 48, 32, 8), n_blocks=4).eval()
    reference.load_state_dict(network.decoder.state_dict())
    seen = []
    for decoder in (network.decoder, reference):
        last = list(decoder.blocks.children())[-1]
        last.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
    frames = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        prediction = network(frames)
        frame, _, *coarser = network.encoder(frames)
        reference([frame, *coarser])
        (_, ours), (block, theirs) = seen
        assert ours.shape == (2, 32, 16, 24)
        torch.testing.assert_close(ours, theirs)
        small = network.segmentation_head[0](block.conv2(block.conv1(theirs)))
        expected = torch.nn.functional.interpolate(small, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction, expected)


def test_which_networks_can_take_each_others_weights() -> None:
    whole = Architecture("Unet", "mobilenet_v2")
    assert whole.weights_differ_by(Architecture("Unet", "mobilenet_v2", output_stride=2)) is None
    assert whole.weights_differ_by(Architecture("Unet", "mobilenet_v2", output_stride=4)) == "output_stride"
    assert whole.weights_differ_by(Architecture("Unet", "mobilenet_v2", (8, 8, 8, 8, 8))) == "decoder_channels"
    assert whole.weights_differ_by(Architecture("UnetPlusPlus", "mobilenet_v2")) == "name"


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture("UnetPlus", "mobilenet_v2"), "did you mean UnetPlusPlus"),
        (Architecture("Unet", "no-such-encoder"), "no-such-encoder"),
        (Architecture("Unet", "mobilenet_v2", decoder_channels=(8, 8)), "cannot be built"),
        (Architecture("FPN", "mobilenet_v2", output_stride=2), "FPN has no output_stride of 2"),
        (Architecture("FPN", "mobilenet_v2", output_stride=4), "FPN has no output_stride of 4"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(architecture: Architecture, message: str) -> None:
    with pytest.raises(PolypsegError, match=message) as caught:
        build(architecture)
    assert "\n" not in str(caught.value)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in {"cpu", "cuda", "mps"}
    assert not gains_from_bf16("mps")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="not available"):
            choose_device("cuda")
    with pytest.raises(UsageError, match="not available"):
        choose_device("abacus")


@pytest.fixture(scope="module")
def judging() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(Architecture("UnetPlusPlus", "mobilenet_v2", presence=True, output_stride=4)).eval()


def test_the_judgement_of_presence_begins_as_if_it_were_not_there(judging: torch.nn.Module) -> None:
    plain = build(Architecture("UnetPlusPlus", "mobilenet_v2", output_stride=4)).eval()
    missing = plain.load_state_dict(judging.state_dict(), strict=False)
    assert all(name.startswith("presence.") for name in missing.unexpected_keys) and not missing.missing_keys
    frames = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(judging(frames), plain(frames), atol=0.02, rtol=0)


def test_presence_lowers_confidence_and_never_changes_a_sign() -> None:
    torch.manual_seed(0)
    logits = 8 * torch.randn(1, 1, 64, 64)
    presence = torch.full((1, 1, 4, 4), 6.0)
    presence[..., 2:, :] = -6.0
    found = joined(logits, presence, 16)
    assert ((found > 0) == (logits > 0)).all()
    above, marked = (0, 0, slice(24)), logits > 0
    assert (found[above] - logits[above]).abs().max() < 0.01
    below = found[0, 0, 40:][marked[0, 0, 40:]]
    assert (below < logits[0, 0, 40:][marked[0, 0, 40:]]).all() and below.max() < logits.max() - 4


def test_the_enlargement_of_a_map_joined_with_the_judgement_is_the_last_step(judging: Any) -> None:
    frames = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        coarse, presence = judging.parts(frames)
        assert coarse.shape == (1, 1, 16, 24) and presence.shape == (1, 1, 4, 6)
        enlarged = torch.nn.functional.interpolate(joined(coarse, presence, 4), scale_factor=4, mode="bilinear")
        torch.testing.assert_close(judging(frames), enlarged)
