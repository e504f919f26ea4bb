"""The model card says what was measured, in the numbers of the reports, and what was not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.errors import PolypsegError
from polypseg.evaluation.evaluate import BOUNDARY_DEFINITIONS, PIXEL_DEFINITIONS, PRANET_DEFINITIONS
from polypseg.evaluation.run import run
from polypseg.export.card import render, write_card
from polypseg.export.publish import record_results
from polypseg.files import write_json
from polypseg.models.network import build
from polypseg.zoo import headlines

HEADINGS = [
    "Intended use", "Not for", "Use", "Data", "Training", "Results", "Where it fails", "Speed", "Files", "Licence",
    "Train it again",
]  # fmt: skip
RECIPE = {"name": "tiny", "split": "pranet", "loss": {"bce": 1.0, "dice": 1.0}}


def save(folder: Path, seed: int = 0, **details: Any) -> ModelBundle:
    torch.manual_seed(seed)
    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    return ModelBundle.save(
        folder, build(architecture).state_dict(), name="tiny", architecture=architecture,
        preprocessing=Preprocessing(64, 96), threshold=0.5, **details,
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Path:
    """A folder with a bundle, its evaluation on all phantom frames and its benchmark; not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    bundle = save(
        folder / "bundle", epoch=3, recipe=RECIPE, commit="0123456789ab", device="CPU, 2 threads",
        data={"datasets": ["CVC-ClinicDB", "Kvasir-SEG", "Ours"], "hash": "d" * 64},
        split={"name": "pranet", "hash": "e" * 64}, threshold_split="validation", licence="As the data's terms say.",
        encoder_weights={"source": "a_package", "revision": "0.1.0", "sha256": "f" * 64, "licence": "Apache-2.0"},
    )  # fmt: skip
    run(bundle.folder, [phantom_folder], folder / "evaluation", split="all", runtime="torch", progress=False)
    row = {
        "runtime": "openvino", "device": "cpu", "precision": "int8", "variant": "", "threads": 2, "calls": 50,
        "network_p50_ms": 12.34, "end_to_end_p50_ms": 15.5, "stream_fps": 71.26, "reason": "",
    }  # fmt: skip
    facts = {
        "processor": "a processor", "cores": 2, "frame_size": "1280x720", "date": "2026-01-01", "commit": None,
        "bundle_hash": bundle.hash,
    }  # fmt: skip
    rows = [row, {**row, "runtime": "onnx", "calls": 0, "network_p50_ms": None, "reason": "not installed"}]
    write_json(folder / "speed" / "benchmark.json", {"provenance": facts, "rows": rows})
    return folder


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "measured"))


def sections(page: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    outside_code = re.sub(r"(?ms)^```.*?^```", lambda block: block[0].replace("\n#", "\n "), page)
    return dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", outside_code))


@pytest.mark.slow
def test_a_card_holds_every_number_with_its_interval_and_definition(copied: Path) -> None:
    file = copied / "evaluation" / "report.json"
    write_json(file, {**json.loads(file.read_text()), "robustness": {"blur": [0.9, 0.8, 0.7, 0.6, 0.5]}})
    bundle = record_results(
        ModelBundle.load(copied / "bundle"), {"Phantom, all frames": copied / "evaluation"}, copied / "speed",
        ["Flat polyps at the edge of the frame are missed."],
    )  # fmt: skip
    page = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert page == render(bundle)
    assert "not a medical device" in page.lower()
    found = sections(page)
    assert list(found) == HEADINGS

    report = json.loads(file.read_text())
    results = found["Results"]
    assert "### Phantom, all frames" in results and "40 frames (all of split all frames)" in results
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in results.splitlines() if line.startswith("| ")}
    values = {**report["definitions"], **report["pixels"], **report["boundary"]}
    assert {*PIXEL_DEFINITIONS, *PRANET_DEFINITIONS} <= values.keys()
    assert {name.split("_")[0] for name in BOUNDARY_DEFINITIONS} <= {name.split("_")[0] for name in report["boundary"]}
    for name, one in values.items():
        mean = "–" if one["mean"] is None else f"{one['mean']:.4f}"
        interval = f"{one['low']:.4f} to {one['high']:.4f}" if one.get("low") is not None else "–"
        assert rows[name].startswith(f"| {name} | {mean} | {interval} | "), name
        assert len(rows[name].split(" | ")) == 4 and rows[name].endswith(f"{one['definition']} |"), name
    half, free = report["detection"]["0.5"], report["polyp_free"]
    assert f"| IoU ≥ 0.5 | {100 * half['found']['mean']:.1f} % (" in results and "| any overlap |" in results
    assert f"Polyp-free frames: {free['frames']}, of which {100 * free['marked']['mean']:.1f} % (" in results
    for stratum in report["strata"]:
        expected = f"| {stratum['by']} | {stratum['stratum']} | {stratum['n']} | {stratum['mean']:.4f} |"
        assert (expected in results) is (stratum["by"] != "group")
    assert "Flat polyps at the edge of the frame are missed." in found["Where it fails"]
    assert "| openvino cpu int8  | 2 | 12.3 | 15.5 | 71.3 |" in found["Speed"] and "onnx" not in found["Speed"]
    assert "| blur | 0.900 | 0.800 | 0.700 | 0.600 | 0.500 |" in results
    dice = report["headline"]["dice"]
    title = {"title": "Phantom, all frames"}
    assert headlines(bundle.metadata) == [
        title | {"measure": "Dice", **{key: dice[key] for key in ("n", "mean", "low", "high")}},
        title | {"measure": "polyp-free frames marked", "n": free["frames"], **free["marked"]},
    ]


def test_a_card_tells_data_terms_training_and_how_to_repeat_it(copied: Path) -> None:
    bundle = ModelBundle.load(copied / "bundle")
    page = write_card(bundle).read_text(encoding="utf-8")
    found = sections(page)
    for text in (
        "[Kvasir-SEG](https://datasets.simula.no",
        "research and education only",
        "Jha et al.",
        "Bernal et al.",
    ):
        assert text in found["Data"]
    assert "| Ours | those of its publishers" in found["Data"] and "e" * 64 in found["Data"]
    assert "a_package 0.1.0, Apache-2.0" in found["Training"] and "0123456789ab" in found["Training"]
    assert "As the data's terms say." in found["Licence"]
    recipe = re.search(r"(?ms)^```yaml\n(.*?)^```", page)
    assert recipe is not None and yaml.safe_load(recipe[1]) == RECIPE
    assert bundle.metadata["weights_sha256"] in found["Files"] and bundle.hash in found["Files"]
    front = re.match(r"(?s)---\n(.*?)---\n", page)
    assert front is not None and yaml.safe_load(front[1])["license"] == "other"


def test_a_card_says_what_is_missing(tmp_path: Path) -> None:
    found = sections(render(save(tmp_path / "bundle")))
    assert list(found) == HEADINGS
    for heading, says in {
        "Data": "Not recorded.", "Training": "Not recorded.", "Results": "Not measured.", "Speed": "Not measured",
        "Where it fails": "Nobody has described it yet", "Licence": "Not recorded.",
        "Train it again": "The recipe was not recorded.",
    }.items():  # fmt: skip
        assert says in found[heading], heading


def test_the_trainings_own_test_stands_in_for_an_evaluation(tmp_path: Path) -> None:
    metrics = {"test": {"n": 9, "dice": 0.81234}}
    bundle = save(tmp_path / "bundle", metrics=metrics, metric_definitions={"dice": "mean | over images"})
    assert "| dice | 0.8123 | mean \\| over images |" in render(bundle)


def test_what_may_tell_of_patients_stays_out(copied: Path) -> None:
    """Groups are videos or persons; frames may be named after them."""
    file = copied / "evaluation" / "report.json"
    report = json.loads(file.read_text())
    secret = {**report["strata"][0], "by": "group", "stratum": "Erika Mustermann"}
    write_json(file, {**report, "strata": [*report["strata"], secret]})
    bundle = record_results(ModelBundle.load(copied / "bundle"), {"x": copied / "evaluation"})
    text = (bundle.folder / "README.md").read_text() + (bundle.folder / "metadata.json").read_text()
    frame = (copied / "evaluation" / "per_image.csv").read_text().splitlines()[1].split(",")[1]
    assert "Mustermann" not in text and f'"{frame}"' not in text and str(copied) not in text


def test_numbers_of_another_bundle_are_refused(copied: Path) -> None:
    other = save(copied / "other", 1)
    with pytest.raises(PolypsegError, match=r"report\.json: was measured with another bundle") as caught:
        record_results(other, {"x": copied / "evaluation"})
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(PolypsegError, match=r"benchmark\.json: was measured with another bundle"):
        record_results(other, {}, copied / "speed")
    write_json(copied / "evaluation" / "report.json", [])
    with pytest.raises(PolypsegError, match=r"report\.json: is no report"):
        record_results(other, {"x": copied / "evaluation"})
    with pytest.raises(PolypsegError, match=r"report\.json: cannot be read"):
        record_results(other, {"x": copied / "none"})
    assert not (other.folder / "README.md").exists() and "evaluations" not in ModelBundle.load(other.folder).metadata
