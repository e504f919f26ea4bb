"""The bundle that a training leaves, and what it says of where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polypseg.bundle import ModelBundle
from polypseg.data.splits import hash_split
from polypseg.files import commit
from polypseg.training.checkpoints import read_checkpoint
from polypseg.training.folder import ORIGIN, read_yaml
from polypseg.training.prepare import Frames, Prepared
from polypseg.training.recipe import Recipe
from polypseg.training.start import LICENCE

_PREFIX = "network."  # of the network's tensors in a checkpoint


def write_bundle(folder: Path, prepared: Prepared) -> ModelBundle:
    """Make ``bundle/`` of the checkpoint that the recipe keeps.

    Args:
        folder: of the run.
        prepared: what was trained.

    Returns:
        The bundle, its threshold the recipe's, or 0.5 until one is chosen.

    Raises:
        PolypsegError: the checkpoint or the disk stands in the way.
    """
    recipe, teacher = prepared.recipe, prepared.module.teacher
    taught: dict[str, Any] = {} if teacher is None else {"taught_by": teacher.bundle.lineage()}
    checkpoint = read_checkpoint(folder / "checkpoints" / f"{recipe.trainer.keep}.ckpt")
    bundle = ModelBundle.save(
        folder / "bundle",
        {name.removeprefix(_PREFIX): one for name, one in checkpoint["state_dict"].items() if name.startswith(_PREFIX)},
        name=recipe.name,
        architecture=recipe.model.architecture,
        preprocessing=prepared.batches.preprocessing,
        threshold=0.5 if recipe.threshold is None else recipe.threshold,
        threshold_split="validation" if recipe.threshold is None else None,
        encoder_weights=read_yaml(folder / ORIGIN),
        **taught,
        epoch=int(checkpoint["epoch"]) + 1,
        **provenance(recipe, prepared.frames),
    )
    return bundle.record_frames(prepared.records)


def provenance(recipe: Recipe, frames: Frames) -> dict[str, Any]:
    """What ``metadata.json`` says of any bundle that a recipe made of some frames."""
    return {
        "tta": recipe.tta,
        "recipe": recipe.to_dict(),
        "data": {"datasets": sorted(set(frames.catalog.frames["dataset"])), "hash": frames.catalog.hash()},
        "split": {"name": frames.split, "hash": hash_split(frames.catalog.frames)},
        "commit": commit(),
        "device": device_name(),
        "licence": LICENCE,
    }


def device_name() -> str:
    """What the computation runs on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
