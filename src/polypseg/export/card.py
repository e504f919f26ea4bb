"""The model card of a bundle: what ``metadata.json`` says, as a page for people."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from polypseg import renamed
from polypseg.bundle import ModelBundle
from polypseg.data.download import DATASETS
from polypseg.errors import PolypsegError
from polypseg.evaluation.wording import interval, number, percent, share
from polypseg.files import atomic_write
from polypseg.metadata import METADATA_FILE

CARD_FILE = "README.md"


def write_card(bundle: ModelBundle) -> Path:
    """Write the model card into the bundle, as ``README.md``; one that lies there is replaced.

    Raises:
        PolypsegError: the bundle cannot be written, or is a published one, which stays as it is.
    """
    bundle.check_own()
    path = bundle.folder / CARD_FILE
    with atomic_write(path, "w") as file:
        file.write(render(bundle))
    return path


def render(bundle: ModelBundle) -> str:
    """The model card as Markdown, with the front matter that the Hugging Face hub reads.

    What was not measured or recorded is said to be missing; nothing is made up.

    Raises:
        PolypsegError: ``metadata.json`` contains something else than what polypseg writes into it.
    """
    try:
        return _rendered(bundle)
    except Exception as error:  # the template meets whatever there is in place of what should be
        reason = " ".join(str(error).split())[:200]
        file = bundle.folder / METADATA_FILE
        raise PolypsegError(f"{file}: no model card can be made of it ({reason}); measure it again") from error


def _rendered(bundle: ModelBundle) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)  # noqa: S701  (Markdown)
    environment.filters.update(number=number, interval=interval, percent=percent, share=share, cell=_cell)
    template = environment.from_string((resources.files(__package__) / "card.md.j2").read_text("utf-8"))
    metadata = renamed.values(bundle.metadata, quiet=True)
    page = template.render(
        bundle=bundle,
        metadata=metadata,
        title=_cell(bundle.name),
        data=[_data_set(name) for name in (metadata.get("data") or {}).get("datasets", [])],
        origin=metadata.get("encoder_weights") or {},
        steps=_steps({**bundle.lineage(), "name": "again"}),
        evaluations=metadata.get("evaluations") or [],
        test=(metadata.get("metrics") or {}).get("test"),
        out_of_fold=(metadata.get("metrics") or {}).get("out_of_fold"),
        definitions=metadata.get("metric_definitions") or {},
        failures=metadata.get("failures") or [],
        speed=metadata.get("speed") or {},
    )
    return page.rstrip() + "\n"


def _steps(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """What to run, one after another, for a bundle of this lineage; each step once."""
    recipe = renamed.values(lineage.get("recipe") or {}, quiet=True)
    averaged = {"weights": lineage.get("averaged_from"), "predictions": lineage.get("ensemble_of")}
    of, members = next(((of, members) for of, members in averaged.items() if members), ("", None))
    steps: dict[str, dict[str, Any]] = {}
    for one in filter(None, members or [lineage.get("started_from"), lineage.get("taught_by")]):
        steps |= {step["hash"]: step for step in _steps(one)}
    if members:
        steps[lineage["hash"]] = {**lineage, "average": [one["name"] for one in members], "of": of}
    elif recipe:
        steps[lineage["hash"]] = {**lineage, "recipe": _yaml(recipe), "epochs": recipe.get("trainer", {}).get("epochs")}
    return list(steps.values())


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _data_set(name: str) -> dict[str, str]:
    """What polypseg knows of a data set by its title, as ``Kvasir-SEG``."""
    known = next((one for one in DATASETS.values() if name.lower() in (one.name, one.title.lower())), None)
    if known is None:
        return {"name": name, "terms": "those of its publishers, whom to cite too", "citation": "", "homepage": ""}
    return {"name": known.title, "terms": known.terms, "citation": known.citation, "homepage": known.homepage}


def _cell(value: Any) -> str:
    """Text that stays in its line and its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
