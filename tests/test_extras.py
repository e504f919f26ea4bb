"""What works without the extras, and the line that names the one that is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from polypseg.extras import MODULES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# An environment without the extras torch and train, and what comes with them.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name in sys.argv[1].split(",") else found(name, package)
importlib.util.find_spec = find_spec
from polypseg.cli import main
sys.exit(main(sys.argv[2:]))
"""


def polypseg(*words: object, without: tuple[str, ...] = ("torch", "train")) -> subprocess.CompletedProcess[str]:
    missing = ",".join(module for extra in without for module in MODULES[extra])
    command = [sys.executable, "-c", WITHOUT, missing, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_core_predicts_evaluates_and_checks_data_without_torch(phantom_folder: Path, tmp_path: Path) -> None:
    for words in (
        ("predict", phantom_folder / "images" / "phantom-0000.jpg", "--out", tmp_path / "found"),
        ("data", "check", "--data", phantom_folder, "--out", tmp_path / "check"),
        ("data", "split", "--data", phantom_folder, "--name", "grouped", "--out", tmp_path / "split.csv"),
        ("evaluate", "--predictions", phantom_folder / "masks", "--data", phantom_folder, "--out", tmp_path / "masks"),
        ("evaluate", "polypseg-realtime", "--data", phantom_folder, "--out", tmp_path / "report"),
        ("models",),
    ):
        done = polypseg(*words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").exists() and (tmp_path / "found" / "phantom-0000.json").exists()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("train", "--data", "{data}", "--out", "{out}"), "train"),
        (("export", "polypseg-realtime"), "export"),
        (("tune", "--data", "{data}", "--out", "{out}"), "tune"),
        (("average", "polypseg-realtime", "polypseg-realtime", "--data", "{data}", "--out", "{out}"), "train"),
        (("predict", "{data}", "--runtime", "torch", "--out", "{out}"), "torch"),
        (("data", "split", "--data", "{data}", "--name", "random", "--out", "{out}"), "train"),
    ],
)
def test_a_verb_that_lacks_its_extra_names_it(
    words: tuple[str, ...], extra: str, phantom_folder: Path, tmp_path: Path
) -> None:
    done = polypseg(*(word.format(data=phantom_folder, out=tmp_path / "out") for word in words))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(rf"polypseg: .*install the extra: pip install 'polypseg\[{extra}\]'", line)
    assert not (tmp_path / "out").exists()


def test_every_extra_that_is_named_exists_and_none_but_the_core_is_needed_by_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(MODULES) <= set(extras)
    named = {re.match(r"[\w-]+", one)[0].lower() for one in project["dependencies"]}  # type: ignore[index]
    assert not named & {"torch", "torchvision", "lightning", "albumentations", "timm", "segmentation-models-pytorch"}
