"""A training before the training: every shape that a run will bring passes through its network once.

What other libraries' networks cannot do comes out in their first pass, as an exception of any kind. Here it comes out
in seconds, in one line, before anything is written. Nothing is computed: PyTorch's ``meta`` device follows shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Hashable

import torch

from polypseg.errors import PolypsegError
from polypseg.inference.augmentation import views
from polypseg.models.losses import segmentation_loss
from polypseg.training.recipe import Recipe

_passed: set[Hashable] = set()  # what this process has tried: a search and the folds train one network many times


def rehearse(network: torch.nn.Module, recipe: Recipe, batch_sizes: Collection[int]) -> None:
    """Pass batches of a run's shapes through a copy of its network: forward and backward, and as validation does.

    Args:
        network: as ``models.network.build`` makes it; stays as it is.
        recipe: of the run.
        batch_sizes: of training.

    Raises:
        PolypsegError: the network cannot compute one of them.
    """
    sizes = {recipe.training_size(epoch) for epoch in range(recipe.trainer.epochs)}
    seen = {32 * max(1, round(recipe.frames.size * share / 32)) for share in views(recipe.tta)}
    passes = {(True, count, min(sizes)) for count in batch_sizes} | {(True, max(batch_sizes), max(sizes))}
    passes |= {(False, 1, size) for size in seen - {min(sizes), max(sizes)}}
    known = {(recipe.model.architecture, recipe.loss, *one): one for one in passes}
    passes = {one for key, one in known.items() if key not in _passed}
    shadow = copy.deepcopy(network).to("meta") if passes else network
    for training, count, size in sorted(passes, reverse=True):
        try:
            _pass(shadow, recipe, training, count, size)
        except Exception:  # noqa: BLE001  (of many classes, as the library has it; or meta does not know an operation)
            try:
                _pass(copy.deepcopy(network), recipe, training, min(count, 2), size)
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                what = f"train on batches of {count} frames" if training else "compute frames"
                raise PolypsegError(
                    f"{recipe.name}: {recipe.model.name} with encoder {recipe.model.encoder} cannot {what} of "
                    f"{size}×{size} ({reason}); change frames.size, frames.batch_size or model"
                ) from error
    _passed.update(known)


def _pass(network: torch.nn.Module, recipe: Recipe, training: bool, count: int, size: int) -> None:
    device = next(network.parameters()).device
    images = torch.zeros(count, 3, size, size, device=device)
    if not training:
        with torch.no_grad():
            logits = network.eval()(images)
        if logits.shape[2:] != images.shape[2:]:
            raise ValueError(f"its map has {logits.shape[2]}×{logits.shape[3]}")
        return
    logits = network.train()(images)
    segmentation_loss(logits, torch.zeros(count, 1, size, size, device=device), recipe.loss).backward()
