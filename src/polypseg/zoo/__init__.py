"""The models that ship with the package: one bundle a folder beside this file, found by the folder's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polypseg.bundle import DEFAULT_MODEL, ZOO, ModelBundle, shipped_names


@dataclass(frozen=True)
class ShippedModel:
    """What is known of a shipped model without running it.

    Attributes:
        bundle: the model, whole.
        bytes: size of its folder.
        dice: its headline on each set of test frames, as ``{"title", "n", "mean", "low", "high"}``; ``low`` and
            ``high`` bound the 95 % interval, or are None.
    """

    bundle: ModelBundle
    bytes: int
    dice: list[dict[str, Any]]

    @property
    def is_default(self) -> bool:
        """Whether it is taken where no model is named."""
        return self.bundle.folder.name == DEFAULT_MODEL


def shipped() -> list[ShippedModel]:
    """The models that ship with this polypseg, the default first.

    Raises:
        PolypsegError: a file of one of them is missing, cut or changed.
    """
    models = []
    for name in sorted(shipped_names(), key=lambda name: (name != DEFAULT_MODEL, name)):
        bundle = ModelBundle.load(ZOO / name)
        for export in (export for network in bundle.networks for export in network.exports):
            export.verify()
        size = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
        models.append(ShippedModel(bundle, size, headlines(bundle.metadata)))
    return models


def headlines(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline metric, mean Dice over images at original size, of each evaluation in a bundle's ``metadata.json``.

    Returns:
        ``{"title", "n", "mean", "low", "high"}`` each; without evaluations that of the training's own test, if any.
    """
    found = [
        {"title": one["title"], **{key: one["headline"]["dice"][key] for key in ("n", "mean", "low", "high")}}
        for one in metadata.get("evaluations") or []
        if one["headline"]["dice"]["mean"] is not None  # else no frame shows a polyp
    ]
    test = (metadata.get("metrics") or {}).get("test")
    if not found and test and test["dice"] is not None:
        found.append({"title": "test frames", "n": test["n"], "mean": test["dice"], "low": None, "high": None})
    return found


def table(models: list[ShippedModel]) -> str:
    """The models as lines of text: name, size, network, scores and place."""
    lines = []
    for model in models:
        bundle = model.bundle
        runs = ", ".join(["torch", *(f"{one.runtime} {one.precision}" for one in bundle.networks[0].exports)])
        count = f"{len(bundle.members)} × " if bundle.members else ""
        size = f"{bundle.preprocessing.width}×{bundle.preprocessing.height}"
        lines.append(
            f"{bundle.name}{' (default)' if model.is_default else ''}: {model.bytes / 1e6:.1f} MB, "
            f"{count}{bundle.architecture.name} {bundle.architecture.encoder} at {size}; {runs}"
        )
        for one in model.dice:
            interval = "" if one["low"] is None else f" ({one['low']:.4f} to {one['high']:.4f})"
            lines.append(f"    Dice {one['mean']:.4f}{interval}, n = {one['n']}: {one['title']}")
        lines.append(f"    {bundle.folder}")
    return "\n".join(lines) or "no model ships with this polypseg"
