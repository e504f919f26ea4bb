"""The verb ``demo``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from polypseg.cli.checks import check_data
from polypseg.cli.verb import Verb
from polypseg.errors import PolypsegError


def demo(data: list[str] | None = None, out: str = "demo", recipe_file: str = "smoke") -> None:
    """Walk through everything: phantom frames (or your data), audit, split, training, test, pictures.

    Runs `data download`, `data show`, `data split`, `data check` and `train` one after the other and shows each
    command.

    Args:
        data: folders of data sets, with images/ and masks/; phantom frames are drawn without one.
        out: folder for everything that is made; an earlier run in it is replaced.
        recipe_file: the recipe to train by, one that ships or a YAML file.
    """
    check_data(data or ())
    folder = Path(out)
    split, run = str(folder / "split.csv"), str(folder / "run")
    if data is None:
        _step("data", "download", "phantom", "--out", out)
    named = ["--data", *(data or [str(folder / "phantom")])]
    _step("data", "show", *named, "--out", str(folder / "frames.png"))
    _step("data", "split", *named, "--name", "grouped", "--out", split)
    _step("data", "check", *named, "--split", split, "--out", str(folder / "check"))
    _step("train", "--config", recipe_file, *named, "--split", split, "--out", run, "--overwrite")
    scores = json.loads((folder / "run" / "test.json").read_text())["metrics"]["test"]
    print(f"\nDice on {scores['n']} frames that training never saw: {scores['dice']:.3f}")
    print(f"curves:      {folder / 'run' / 'curves.png'}\npredictions: {folder / 'run' / 'predictions.png'}")


def _step(*arguments: str) -> None:
    """Run one verb as a user would type it, and show it."""
    from polypseg.cli.main import run

    print(f"\n$ polypseg {shlex.join(arguments)}", flush=True)
    status = run(list(arguments))
    if status:
        raise PolypsegError(f"polypseg {arguments[0]} {arguments[1]}: ended with status {status}; see above")


VERB = Verb(demo, examples=("polypseg demo", "polypseg demo data/Kvasir-SEG --out demo-kvasir"))
