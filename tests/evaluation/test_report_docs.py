"""The report's page says all that an evaluation writes, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.data import phantom, read
from polypseg.evaluation.calibrate import calibrate
from polypseg.evaluation.run import compare, ranking_values, run
from polypseg.models.network import build

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
VALUE = {"mean", "low", "high", "median", "n", "definition", "reason"}  # told once, for all
# Whose keys are names of data, packages, thresholds.
NAMES = {"datasets", "versions", "at_iou", "curves", "sensitivity_at_specificity"}


def first_cells(page: str, heading: str) -> set[str]:
    """The code in the first column of a section's tables."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    section = re.search(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text)
    assert section is not None, heading
    return set(re.findall(r"(?m)^\| `([^`]+)` \|", section.group(1)))


def keys(value: Any) -> set[str]:
    """Every key at any depth, but for names and for what the row of its parent says."""
    found: set[str] = set()
    for each in value if isinstance(value, list) else [value]:
        for key, inner in each.items() if isinstance(each, dict) else ():
            found.add(key)
            if key in NAMES:
                found |= set().union(*(keys(one) for one in inner.values()))
            elif key not in ("split", "seconds", "operating_point"):
                found |= keys(inner)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of an untrained network, and of the truths as another program's predictions, on six frames."""
    folder = tmp_path_factory.mktemp("written")
    data = phantom.write(folder / "data", 6, seed=3, height=72, width=88, empty_fraction=0.5)
    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    ModelBundle.save(
        folder / "bundle", build(architecture).state_dict(), name="untrained", architecture=architecture,
        preprocessing=Preprocessing(64, 64), threshold=0.5,
    )  # fmt: skip
    run(folder / "bundle", [data], folder / "one", split="all", corruptions=True, progress=False)
    (folder / "masks").mkdir()
    for row in read(data):
        Image.open(row.mask_path).convert("L").save(folder / "masks" / f"{row.frame_id}.png")
    run(None, [data], folder / "other", split="all", predictions=folder / "masks", progress=False)
    return folder


def test_every_key_of_a_report_is_on_its_page(written: Path) -> None:
    numbers = json.loads((written / "one" / "report.json").read_text(encoding="utf-8"))
    other = json.loads((written / "other" / "report.json").read_text(encoding="utf-8"))
    assert first_cells("report.md", "report.json") == numbers.keys() | VALUE
    for report in (numbers, other):  # told in sections of their own, or by names of criteria and rates
        told = dict.fromkeys(("polyp_free", "frames_roc", "froc"))
        strata = [one for one in report["detection"]["strata"] if one["by"] == "data set"]
        report["detection"]["strata"] = [{**one, **told} for one in strata]
        assert report["froc"]["sensitivity_at"].keys() == {"any", "0.3", "0.5"}
        report["froc"]["sensitivity_at"] = None
    sections = (
        "polyp_free", "detection", "froc", "frames_roc", "definitions", "pixels", "boundary", "lesions", "strata",
        "calibration", "robustness", "provenance",
    )  # fmt: skip
    for section in sections:
        found = keys(numbers[section]) | keys(other.get(section, {}))
        told_once = set() if section in ("lesions", "calibration", "robustness", "provenance") else VALUE
        assert first_cells("report.md", section) - told_once == found - told_once, section
    assert numbers["headline"].keys() <= numbers["definitions"].keys()
    assert keys(numbers["headline"]) - numbers["headline"].keys() == VALUE - {"reason"}


def test_every_column_of_the_table_is_on_its_page(written: Path) -> None:
    for report in ("one", "other"):
        columns = pd.read_csv(written / report / "per_image.csv").columns
        assert first_cells("report.md", "per_image.csv") == set(columns)


def test_every_key_of_a_ranking_is_on_its_page(written: Path) -> None:
    ranking = ranking_values(compare([written / "one", written / "other"]))
    assert ranking["ranking"][0]["name"] == "other" and ranking["comparisons"]
    assert first_cells("report.md", "Ranking") == keys(ranking)


def test_what_calibrate_writes_is_on_the_bundles_page(written: Path) -> None:
    before = ModelBundle.load(written / "bundle").metadata
    data = written / "data"
    after = calibrate(written / "bundle", [data], split="all", alpha=0.5, progress=False).metadata
    new = {key for key in after if after[key] != before.get(key)}
    assert {"temperature", "conformal", "threshold_split"} <= new
    told = first_cells("bundle.md", "metadata.json")
    assert new <= told
    assert {key for key in told if key.startswith("conformal.")} == {f"conformal.{key}" for key in after["conformal"]}
