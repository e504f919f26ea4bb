"""The network as training starts: built by the recipe, with an encoder's weights or those of a trained model."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from polypseg import zoo
from polypseg.bundle import FrameRecord, ModelBundle, Preprocessing
from polypseg.catalog import Catalog
from polypseg.data.splits import hash_split
from polypseg.errors import PolypsegError
from polypseg.inference.runtimes.torch import check_weights
from polypseg.models.network import build
from polypseg.models.weights import WeightsOrigin, load_encoder_weights, normalisation
from polypseg.training.datamodule import training_batch_sizes
from polypseg.training.recipe import Recipe
from polypseg.training.rehearsal import rehearse

log = logging.getLogger("polypseg")
LICENCE = "Weights follow the terms of the data they were trained on; code Apache-2.0."


@dataclass(frozen=True)
class Start:
    """A network before its first step.

    Attributes:
        network: N×3×H×W float32 to N×1×H×W logits.
        preprocessing: of its frames.
        origin: where its weights came from; None of a resumed run, which takes every weight from its checkpoint.
        seen: the frames that they were trained and chosen on, as far as that is known.
    """

    network: torch.nn.Module
    preprocessing: Preprocessing
    origin: WeightsOrigin | None
    seen: tuple[FrameRecord, ...] = ()


def start(recipe: Recipe, catalog: Catalog, resumed: bool) -> Start:
    """Build a recipe's network, try it, and load the weights that it starts from unless the run is resumed.

    Args:
        recipe: names the network and its weights.
        catalog: the frames to train by, with their splits.
        resumed: whether a checkpoint has the weights.

    Raises:
        PolypsegError: the network cannot compute what the recipe asks for, or its weights cannot be used.
    """
    network = build(recipe.model.architecture)
    rehearse(network, recipe, training_batch_sizes(catalog, recipe))
    size = recipe.frames.size
    if recipe.model.weights is None:
        encoder, weights = recipe.model.encoder, recipe.model.encoder_weights
        mean, std = normalisation(encoder, weights)
        known = None if weights.lower() in ("none", "null", "") else weights
        origin = None if resumed else load_encoder_weights(network.get_submodule("encoder"), encoder, known)
        return Start(network, Preprocessing(size, size, mean, std, recipe.frames.interpolation), origin)
    bundle = _trained(recipe, recipe.model.weights, catalog)
    mean, std = bundle.preprocessing.mean, bundle.preprocessing.std
    origin = None
    if not resumed:
        _take_weights(network, bundle, recipe)
        origin = WeightsOrigin(
            f"the bundle {bundle.name}", bundle.hash, bundle.metadata["weights_sha256"], LICENCE, bundle.lineage()
        )
    preprocessing = Preprocessing(size, size, mean, std, recipe.frames.interpolation)
    return Start(network, preprocessing, origin, tuple(bundle.frames() or ()))


def _trained(recipe: Recipe, path: str, catalog: Catalog) -> ModelBundle:
    """The bundle whose network training starts from."""
    bundle = zoo.open(path)
    bundle.check_single("name one of its members as model.weights")
    check_weights(bundle)
    ours, theirs = recipe.model.architecture, bundle.architecture
    differs = ours.weights_differ_by(theirs)
    if differs not in (None, "output_stride", "presence"):
        raise PolypsegError(
            f"{path}: its network has {differs} {getattr(theirs, differs)}, the recipe's {getattr(ours, differs)}; "
            f"set model.{differs} or start from another bundle"
        )
    warn_of_another_split(path, bundle, catalog)
    return bundle


def _take_weights(network: torch.nn.Module, bundle: ModelBundle, recipe: Recipe) -> None:
    """Load a bundle's weights; into a network with fewer or more stages those that fit."""
    weights = bundle.weights()
    if recipe.model.architecture.weights_differ_by(bundle.architecture):
        own = network.state_dict()
        fit = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        log.info("%d of %d tensors start afresh: %s has no such stage", len(own) - len(fit), len(own), bundle.name)
        weights = {**own, **fit}
    network.load_state_dict(weights)


def warn_of_another_split(path: str, bundle: ModelBundle, catalog: Catalog) -> None:
    """Warn where a trained model that training uses may have seen the frames that are to choose or test."""
    before, now = bundle.metadata.get("split") or {}, hash_split(catalog.frames)
    shared = set((bundle.metadata.get("data") or {}).get("datasets", ())) & set(catalog.frames["dataset"])
    if shared and before.get("hash") != now:
        log.warning(
            "%s was trained on %s by another split: it may have seen frames that are validation or test here",
            path, ", ".join(sorted(shared)),
        )  # fmt: skip
