"""Models by name: those that ship with the package, one bundle a folder beside this file, and those on the hub."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypseg import bundle as bundles
from polypseg import hub
from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError

DEFAULT_MODEL = "polypseg-realtime"
DICE, MARKED = "Dice", "polyp-free frames marked"
Name = str | os.PathLike[str]  # what ``find`` takes


@dataclass(frozen=True)
class ShippedModel:
    """What is known of a shipped model without running it.

    Attributes:
        bundle: the model, whole.
        bytes: size of its folder.
        scores: its headlines on each set of frames it was scored on, as of ``headlines``.
    """

    bundle: ModelBundle
    bytes: int
    scores: list[dict[str, Any]]

    @property
    def is_default(self) -> bool:
        """Whether it is taken where no model is named."""
        return self.bundle.folder.name == DEFAULT_MODEL


def find(name: Name | None = None) -> Path:
    """The folder that a name of a model means.

    Args:
        name: the path of a bundle or of a run folder, the name of a shipped model, or ``hf://owner/name[@revision]``
            on the Hugging Face hub, which is fetched; a folder of that name comes before a shipped model. None is the
            shipped default.

    Raises:
        PolypsegError: no shipped model is called so, none ships at all, or the hub cannot be reached or refuses.
        UsageError: ``name`` begins with ``hf://`` and is none of the hub's names.
    """
    if name is None:
        if DEFAULT_MODEL not in shipped_names():
            raise PolypsegError("no model was named, and this polypseg ships with none; name a bundle or a run folder")
        return bundles.ZOO / DEFAULT_MODEL
    text = os.fspath(name)
    if text.startswith(hub.PREFIX):
        return hub.fetch(text)
    folder = Path(text)
    return bundles.ZOO / _shipped_name(text) if not folder.exists() and folder.name == text else folder


def open(name: ModelBundle | Name | None = None) -> ModelBundle:
    """The bundle that a name of a model means, opened and verified; one that is opened already is returned as it is.

    Args:
        name: as ``find`` takes it.

    Raises:
        PolypsegError: as ``find`` and ``ModelBundle.load``.
        UsageError: as ``find``.
    """
    return name if isinstance(name, ModelBundle) else ModelBundle.load(find(name))


def shipped_names() -> list[str]:
    """The names of the models that ship with the package."""
    if not bundles.ZOO.is_dir():
        return []
    return sorted(folder.name for folder in bundles.ZOO.iterdir() if folder.is_dir() and folder.name[0] not in "._")


def _shipped_name(name: str) -> str:
    names = shipped_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, 1, 0.5)
        hint = f"did you mean {near[0]}? `polypseg models` lists them" if near else "`polypseg models` lists them"
        raise PolypsegError(f"{name}: is no model bundle, nor the name of a shipped one; {hint}")
    return name


def shipped() -> list[ShippedModel]:
    """The models that ship with this polypseg, the default first.

    Raises:
        PolypsegError: a file of one of them is missing, cut or changed.
    """
    models = []
    for name in sorted(shipped_names(), key=lambda name: (name != DEFAULT_MODEL, name)):
        bundle = ModelBundle.load(bundles.ZOO / name)
        for export in (export for network in bundle.networks for export in network.exports):
            export.verify()
        size = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
        models.append(ShippedModel(bundle, size, headlines(bundle.metadata)))
    return models


def headlines(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The headlines of each evaluation in a bundle's ``metadata.json``: of frames with a polyp and of those without.

    Returns:
        ``{"title", "measure", "n", "mean", "low", "high"}`` each. ``measure`` is ``Dice``, the mean over frames with a
        polyp at their original size, or ``polyp-free frames marked``, their share. ``low`` and ``high`` bound the 95 %
        interval, or are None. Without evaluations the Dice of the training's own test, if any.
    """
    found = []
    for one in metadata.get("evaluations") or []:
        dice, free = one["headline"]["dice"], one.get("polyp_free") or {"frames": 0}  # older ones lack them
        if dice["n"] and dice["mean"] is not None:
            found.append(_score(one["title"], DICE, dice["n"], dice))
        if free["frames"]:
            found.append(_score(one["title"], MARKED, free["frames"], free["marked"]))
    test = (metadata.get("metrics") or {}).get("test")
    if not found and test and test["dice"] is not None:
        found.append(_score("test frames", DICE, test["n"], {"mean": test["dice"], "low": None, "high": None}))
    return found


def _score(title: str, measure: str, n: int, value: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "measure": measure, "n": n, **{key: value[key] for key in ("mean", "low", "high")}}


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
        for one in model.scores:
            interval = "" if one["low"] is None else f" ({one['low']:.4f} to {one['high']:.4f})"
            lines.append(f"    {one['measure']} {one['mean']:.4f}{interval}, n = {one['n']}: {one['title']}")
        lines.append(f"    {bundle.folder}")
    return "\n".join(lines) or "no model ships with this polypseg"
