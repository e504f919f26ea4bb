"""Evaluation as a user meets it: which frames, the files of a report, calibration, comparison, robustness."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from sklearn.metrics import f1_score, log_loss

import polypseg
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.catalog import Catalog
from polypseg.cli import main
from polypseg.data import read
from polypseg.data.corruptions import CORRUPTIONS, corrupt
from polypseg.data.splits import hash_split, make_split, write_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.calibrate import calibrate
from polypseg.evaluation.choosing import Maps, choose_point
from polypseg.evaluation.robustness import robustness
from polypseg.evaluation.run import compare, ranking_table
from polypseg.evaluation.run import run as evaluate_run
from polypseg.evaluation.selection import select
from polypseg.metrics.calibration import CONFORMAL_THRESHOLDS
from polypseg.models.network import build

pytestmark = pytest.mark.slow

ARCHITECTURE = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
PREPROCESSING = Preprocessing(64, 64)


@pytest.fixture(scope="module")
def frames(phantom_folder: Path) -> Catalog:
    return read(phantom_folder)


@pytest.fixture(scope="module")
def split(frames: Catalog) -> pd.DataFrame:
    return make_split("random", frames)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, frames: Catalog, split: pd.DataFrame) -> Path:
    """A run folder, not to be changed: a network that has seen the frames for a moment, and its split."""
    torch.manual_seed(0)
    network = build(ARCHITECTURE)
    images = torch.from_numpy(np.stack([PREPROCESSING.apply(frames.frame(index)) for index in range(24)]))
    masks = torch.from_numpy(np.stack([PREPROCESSING.resize_mask(frames.mask(index)) for index in range(24)]))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(18):
        batch = slice(8 * (step % 3), 8 * (step % 3) + 8)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images[batch])[:, 0], masks[batch].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("runs") / "finished"
    write_split(split, folder / "split.csv")
    ModelBundle.save(
        folder / "bundle", network.state_dict(), name="quick", architecture=ARCHITECTURE, preprocessing=PREPROCESSING,
        threshold=0.35, split={"name": "random", "hash": hash_split(split)}, metrics={"test": {"dice": 0.5}},
    )  # fmt: skip
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def complaint(call: Callable[[], Any], kind: type[PolypsegError] = PolypsegError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} contains {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def stems(catalog: Catalog) -> set[str]:
    return set(catalog.frames["frame_id"])


def named(split: pd.DataFrame, part: str) -> set[str]:
    return set(split["frame_id"][split["split"] == part])


# --- which frames ---


def test_the_split_beside_the_bundle(finished: Path, frames: Catalog, split: pd.DataFrame) -> None:
    for part in ("train", "val", "test"):
        chosen, provenance = select(frames, part, bundle=ModelBundle.load(finished))
        assert stems(chosen) == named(split, part)
        assert provenance["split"] == {"name": "random", "part": part, "hash": hash_split(split)}
    every, provenance = select(frames, "all", bundle=ModelBundle.load(finished))
    assert len(every) == 40 and provenance["split"]["hash"] is None


def test_a_split_file_comes_first(finished: Path, frames: Catalog, split: pd.DataFrame, tmp_path: Path) -> None:
    turned = split.assign(split=split["split"].map({"train": "test", "val": "val", "test": "train"}))
    write_split(turned, tmp_path / "turned.csv")
    for bundle in (None, ModelBundle.load(finished)):
        chosen, provenance = select(frames, "test", tmp_path / "turned.csv", bundle)
        assert stems(chosen) == named(split, "train")
        assert provenance["split"] == {"name": "turned", "part": "test", "hash": hash_split(turned)}


def test_another_split_beside_the_bundle_is_refused(copied: Path, frames: Catalog, split: pd.DataFrame) -> None:
    write_split(split.assign(split=split["split"].to_numpy()[::-1]), copied / "split.csv")
    line = complaint(lambda: select(frames, "test", bundle=ModelBundle.load(copied)))
    assert line.startswith(str(copied / "split.csv")) and "--split_file" in line


def test_a_split_is_made_anew_by_its_name(copied: Path, frames: Catalog, split: pd.DataFrame) -> None:
    (copied / "split.csv").unlink()
    chosen, provenance = select(frames, "test", bundle=ModelBundle.load(copied))
    assert stems(chosen) == named(split, "test") and provenance["split"]["hash"] == hash_split(split)
    fewer = Catalog(frames.frames.iloc[:30])
    for recorded in (
        {"name": "random", "hash": "0" * 64}, {"name": "random"}, {"name": "own", "hash": hash_split(split)}, None,
        {"name": "pranet", "hash": hash_split(split)},  # of Kvasir-SEG and ClinicDB only
    ):  # fmt: skip
        bundle = ModelBundle.load(copied).update(split=recorded)
        line = complaint(partial(select, frames, "test", bundle=bundle))
        assert str(copied / "bundle") in line and "--split_file" in line and "--split all" in line
    bundle = bundle.update(split={"name": "random", "hash": hash_split(split)})
    assert "--split all" in complaint(lambda: select(fewer, "test", bundle=bundle))


def test_no_split_to_go_by(frames: Catalog) -> None:
    assert "--split_file" in complaint(lambda: select(frames, "test"), UsageError)


def test_an_empty_part_and_a_data_set_that_the_split_leaves_out(
    frames: Catalog, split: pd.DataFrame, tmp_path: Path
) -> None:
    write_split(split[split["split"] != "val"], tmp_path / "split.csv")
    assert "'val' contains no frames" in complaint(lambda: select(frames, "val", tmp_path / "split.csv"))
    other = Catalog(frames.frames.assign(dataset="clinic"))
    both = Catalog.concatenate([frames, other])
    assert complaint(lambda: select(both, "test", tmp_path / "split.csv")).startswith("clinic: ")
    assert "not in the data" in complaint(
        lambda: select(Catalog(frames.frames.iloc[:3]), "test", tmp_path / "split.csv")
    )


# --- the report's files ---


class Page(HTMLParser):
    """What a browser would find: tags, links, pictures, headings, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "href", "data", "action", "poster", "srcset"):
                (self.pictures if tag == "img" and name == "src" else self.links).append(value or "")
        if ("http-equiv", "content-security-policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        if "script" in self._open:
            self.scripts.append(data)
            return
        if "h2" in self._open:
            self.headings[-1] += data
        self.text += data


ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "div", "img", "table", "thead",
    "tbody", "tr", "th", "td", "span", "figure", "figcaption", "br", "dl", "dt", "dd", "h3", "script",
    "main",
}  # fmt: skip


def assert_self_contained(file: Path) -> Page:
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags <= ALLOWED_TAGS and not {name for name in page.attributes if name.startswith("on")}
    assert page.links == [] and "url(" not in text and "@import" not in text
    (script,) = page.scripts  # the page's own, and no other may run
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    assert page.pictures
    for picture in page.pictures:
        kind, _, content = picture.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        assert f"data:image/{str(image.format).lower()}" == kind
        assert min(image.size) > 100 and np.asarray(image.convert("L")).std() > 1  # something is drawn
    return page


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, finished: Path, phantom_folder: Path) -> Path:
    """The report of the run on all frames, by the command line."""
    out = tmp_path_factory.mktemp("reports") / "quick"
    arguments = ["evaluate", finished, "--data", phantom_folder, "--split", "all", "--allow_train_frames", "true",
                 "--out", out]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    return out


def test_scores_are_those_of_segmenting_each_frame(evaluated: Path, finished: Path, frames: Catalog) -> None:
    numbers = strict(evaluated / "report.json")
    table = pd.read_csv(evaluated / "per_image.csv", dtype={"frame_id": str})
    segmenter = polypseg.load(finished)
    expected = []
    for index in range(len(frames)):
        truth, prediction = frames.mask(index), segmenter.segment(frames.frame(index)).mask
        expected.append(f1_score(truth.ravel(), prediction.ravel()) if truth.any() else np.nan)
    assert list(table["frame_id"]) == list(frames.frames["frame_id"])
    assert list(table["dice"]) == pytest.approx(expected, abs=1e-6, nan_ok=True) and np.isnan(expected).any()
    assert numbers["headline"]["dice"]["mean"] == pytest.approx(np.nanmean(expected), abs=1e-9)
    assert 0.05 < np.nanmean(expected) < 0.999  # a model that does something, but not all
    assert numbers["name"] == "quick" and numbers["n"] == 40 and numbers["threshold"] == 0.35
    assert {"dice_network_size", "dice_batch", "loss"} <= numbers["definitions"].keys()
    bundle = ModelBundle.load(finished)
    provenance = numbers["provenance"]
    assert provenance["bundle_hash"] == bundle.hash and provenance["data_hash"] == frames.hash()
    assert provenance["split"]["part"] == "all" and provenance["device"] and "commit" in provenance


def test_the_page_is_one_file_with_everything_in_it(evaluated: Path) -> None:
    page = assert_self_contained(evaluated / "report.html")
    numbers = strict(evaluated / "report.json")
    for name in ("dice", "iou"):
        assert f"{numbers['headline'][name]['mean']:.4f}" in page.text
    assert f"{numbers['headline']['dice']['low']:.4f} to {numbers['headline']['dice']['high']:.4f}" in page.text
    assert "Research use only" in page.text.partition("Dice")[0]  # before any number
    for name, one in numbers["definitions"].items():
        assert name in page.text and one["definition"] in page.text
    for one in numbers["strata"]:
        assert one["by"] in page.text and one["stratum"] in page.text
    assert numbers["provenance"]["bundle_hash"] in page.text


def test_the_worst_frames_are_shown_lowest_first(evaluated: Path) -> None:
    text = (evaluated / "report.html").read_text(encoding="utf-8")
    part = text.partition("<h2>The worst twelve</h2>")[2].partition("<h2>")[0]
    table = pd.read_csv(evaluated / "per_image.csv", dtype={"frame_id": str}).dropna(subset="dice")
    table = table.sort_values("dice", kind="stable")
    captions = [piece.partition("<br>")[0] for piece in part.split("<figcaption>")[1:]]
    assert captions == list(table["frame_id"].iloc[:12])
    # truth and prediction are drawn into them
    encoded = [picture.partition(",")[2] for picture in Page(part).pictures]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in encoded]
    assert len(decoded) == 12

    def near(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
        return bool((np.abs(picture.astype(int) - colour).max(axis=-1) < 60).sum() > 20)

    assert sum(near(picture, (0, 158, 255)) for picture in decoded) >= 6
    assert sum(near(picture, (255, 230, 0)) for picture in decoded) >= 6


def test_false_positives_are_shown_polyp_free_frames_first(evaluated: Path) -> None:
    text = (evaluated / "report.html").read_text(encoding="utf-8")
    part = text.partition("<h2>False positives</h2>")[2].partition("<h2>")[0]
    free, beside = part.partition("<h3>Polyp-free frames</h3>")[2].split("<h3>Beside polyps</h3>")
    table = pd.read_csv(evaluated / "per_image.csv", dtype={"frame_id": str}).dropna(subset="false_peak")
    table = table.sort_values("false_peak", ascending=False, kind="stable")
    for section, rows in ((free, table[table["polyps"] == 0]), (beside, table[table["polyps"] > 0])):
        captions = [piece.partition("<br>")[0] for piece in section.split("<figcaption>")[1:]]
        assert captions == list(rows["frame_id"].iloc[:12]) and captions
        for encoded in Page(section).pictures:  # white boxes around the false regions
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.partition(",")[2]))))
            assert (picture.min(axis=-1) > 225).sum() > 30


def test_the_order_of_the_sections(finished: Path, phantom_folder: Path, split: pd.DataFrame, tmp_path: Path) -> None:
    """With robustness, on two frames."""
    few = split[split["split"] == "test"].iloc[:2]
    write_split(few, tmp_path / "few.csv")
    arguments = [
        "evaluate", finished, "--data", phantom_folder, "--split_file", tmp_path / "few.csv", "--corruptions", "--out",
        tmp_path / "out",
    ]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    page = assert_self_contained(tmp_path / "out" / "report.html")
    wanted = ["Who does well", "Calibration", "Robustness", "The worst", "Provenance"]
    found = [next(name for name in wanted if heading.startswith(name)) for heading in page.headings
             if heading.startswith(tuple(wanted))]  # fmt: skip
    assert found == wanted and page.headings[-1] == "Provenance"
    assert page.text.index("mean over 2 frames with a polyp") < page.text.index(page.headings[0])  # the headline first
    assert "The worst 2" in page.headings
    curves = strict(tmp_path / "out" / "report.json")["robustness"]
    assert curves.keys() == CORRUPTIONS.keys() and all(len(values) == 5 for values in curves.values())


def test_hostile_names_are_only_text(frames: Catalog, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&'\"<script>alert(2)"
    data, predictions = tmp_path / "data", tmp_path / "<script>alert(3)<b>"
    for folder in (data / "images", data / "masks", predictions):
        folder.mkdir(parents=True)
    Image.fromarray(frames.frame(0)).save(data / "images" / f"{name}.png")
    truth = Image.fromarray(frames.mask(0).astype(np.uint8) * 255)
    truth.save(data / "masks" / f"{name}.png")
    Image.new("L", truth.size).save(predictions / f"{name}.png")
    arguments = ["evaluate", "--predictions", predictions, "--data", data, "--split", "all", "--out", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 0
    page = assert_self_contained(tmp_path / "out" / "report.html")
    assert page.text.count(name) >= 2  # as worst and as missed
    assert predictions.name in page.text
    assert strict(tmp_path / "out" / "report.json")["name"] == predictions.name
    assert list(pd.read_csv(tmp_path / "out" / "per_image.csv")["frame_id"]) == [name]


# --- the command line ---


def test_predictions_by_the_command_line(
    capsys: pytest.CaptureFixture[str], phantom_folder: Path, frames: Catalog, split: pd.DataFrame, tmp_path: Path
) -> None:
    write_split(split, tmp_path / "split.csv")
    (tmp_path / "theirs").mkdir()
    for row in frames:
        if row.frame_id in named(split, "test"):
            shutil.copy(row.mask_path, tmp_path / "theirs" / f"{row.frame_id}.png")
    status, out, error = run(
        capsys, "evaluate", "--predictions", tmp_path / "theirs", "--data", phantom_folder, "--split_file",
        tmp_path / "split.csv", "--threshold", 0.7, "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, error
    numbers = strict(tmp_path / "out" / "report.json")
    assert numbers["headline"]["dice"]["mean"] == 1 and numbers["n"] == 6 and numbers["threshold"] == 0.7
    assert numbers["name"] == "theirs" and "dice_batch" not in numbers["definitions"]
    assert "dice " in out and "1.0000" in out and str(tmp_path / "out" / "report.html") in out.splitlines()[-1]


def test_wrong_arguments_and_failures(
    capsys: pytest.CaptureFixture[str], finished: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    data, out = ["--data", phantom_folder], ["--out", tmp_path / "out"]
    predictions = ["--predictions", tmp_path / "empty"]
    for status, said, arguments in (
        (2, "either a bundle or --predictions", ["evaluate", *data, *out]),
        (2, "either a bundle or --predictions", ["evaluate", finished, *predictions, *data, *out]),
        (2, "--threshold", ["evaluate", finished, "--threshold", 0.4, *data, *out]),
        (2, "--corruptions", ["evaluate", *predictions, "--corruptions", *data, *out]),
        (1, "no prediction for frame", ["evaluate", *predictions, *data, *out]),
        (1, "was trained on", ["evaluate", finished, "--split", "all", *data, *out]),
        (1, "was trained on", ["calibrate", finished, "--split", "train", *data]),
        (2, "--threshold", ["evaluate", *predictions, "--threshold", 3, "--split", "all", *data, *out]),
        (2, "split", ["evaluate", finished, "--split", "tset", *data, *out]),
        (2, "data", ["evaluate", finished, *out]),
        (2, "--alpha", ["calibrate", finished, "--alpha", 1.5, *data]),
        (2, "two reports", ["compare", finished]),
        (1, "no prediction for frame", ["evaluate", *predictions, "--split", "all", *data, *out]),
        (1, str(tmp_path / "nowhere"), ["evaluate", tmp_path / "nowhere", *data, *out]),
        (1, str(tmp_path / "nowhere"), ["evaluate", finished, "--data", tmp_path / "nowhere", *out]),
        (1, str(tmp_path / "no.csv"), ["evaluate", finished, "--split_file", tmp_path / "no.csv", *data, *out]),
        (1, str(tmp_path / "nowhere"), ["calibrate", tmp_path / "nowhere", *data]),
        (1, "per_image.csv", ["compare", tmp_path / "empty", finished]),
        (1, str(tmp_path / "file"), ["evaluate", finished, *data, "--out", tmp_path / "file"]),
    ):  # fmt: skip
        found, printed, error = run(capsys, *arguments)
        assert found == status, (arguments, error)
        assert len(error.strip().splitlines()) == 1 and said in error, error
        assert printed == "" and not (tmp_path / "out" / "report.json").exists()


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    finished: Path, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("polypseg.evaluation.run.Segmenter", None)
    line = complaint(lambda: evaluate_run(finished, [phantom_folder], tmp_path / "file" / "out"))
    assert line.startswith(str(tmp_path / "file"))


# --- calibration ---


@pytest.fixture(scope="module")
def val(frames: Catalog, split: pd.DataFrame) -> Catalog:
    return frames.with_split(split).of_split("val")


def logits_and_truth(folder: Path, val: Catalog) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Of every pixel at the network's size, by the network itself."""
    bundle = ModelBundle.load(folder)
    network = build(bundle.architecture).eval()
    network.load_state_dict(bundle.weights())
    images = torch.from_numpy(np.stack([PREPROCESSING.apply(val.frame(index)) for index in range(len(val))]))
    truth = np.stack([PREPROCESSING.resize_mask(val.mask(index)) for index in range(len(val))])
    with torch.inference_mode():
        return network(images)[:, 0].double().numpy(), truth


def test_calibration_finds_the_temperature(copied: Path, phantom_folder: Path, val: Catalog) -> None:
    before = ModelBundle.load(copied)
    after = calibrate(copied, [phantom_folder], progress=False)
    logits, truth = logits_and_truth(copied, val)

    def loss(temperature: float) -> float:
        return float(log_loss(truth.ravel(), expit(logits.ravel() / temperature)))

    assert after.temperature > 0 and abs(after.temperature - 1) > 0.02  # there was something to find
    grid = [loss(temperature) for temperature in np.geomspace(0.05, 20, 80)]
    assert loss(after.temperature) <= min(grid) + 1e-5
    assert loss(after.temperature) < loss(1.0)

    # and it is used from then on, at the network's size
    segmenter = polypseg.load(copied, precision="fp32")
    assert segmenter.temperature == after.temperature == json.loads(
        (copied / "bundle" / "metadata.json").read_text()
    )["temperature"]  # fmt: skip
    for index in range(2):
        expected = expit(logits[index] / after.temperature)
        assert np.abs(segmenter.probability(val.frame(index)) - expected).max() < 1e-4
    assert before.hash != after.hash == ModelBundle.load(copied).hash


def test_calibration_finds_the_threshold(copied: Path, finished: Path, phantom_folder: Path, val: Catalog) -> None:
    after = calibrate(copied, [phantom_folder], progress=False)
    segmenter = polypseg.load(copied)
    probabilities = [segmenter.segment(val.frame(index)).probability for index in range(len(val))]
    shown = [index for index in range(len(val)) if val.mask(index).any()]
    scores = {}
    for threshold in np.arange(1, 20) / 20:
        each = [
            f1_score(val.mask(index).ravel(), (probabilities[index] >= np.float32(threshold)).ravel(), zero_division=0)
            for index in shown
        ]
        scores[f"{threshold:.2f}"] = float(np.mean(each))
    tried = after.metadata["threshold_choice"]
    assert tried == pytest.approx(scores, abs=1e-3)
    assert scores[f"{after.threshold:.2f}"] == pytest.approx(max(scores.values()), abs=1e-3)
    assert len(set(tried.values())) > 1 and after.metadata["threshold_split"] == "random, val"
    assert after.metadata["conformal"] is None
    assert after.metadata["metrics"] is None  # they were of the old threshold
    before = ModelBundle.load(finished).metadata
    for name in ("name", "weights_sha256", "architecture", "preprocessing", "split"):
        assert after.metadata[name] == before[name]


def test_the_guarantee_holds_on_its_own_frames(copied: Path, phantom_folder: Path, frames: Catalog) -> None:
    alpha = 0.2
    calibrated = calibrate(copied, [phantom_folder], split="all", alpha=alpha, allow_train_frames=True, progress=False)
    found = calibrated.metadata["conformal"]
    segmenter = polypseg.load(copied)

    def missed_and_marked(threshold: float) -> tuple[float, float]:
        missed, marked = [], []
        for index in range(len(frames)):
            truth = frames.mask(index)
            if truth.any():
                prediction = segmenter.segment(frames.frame(index)).probability >= np.float32(threshold)
                missed.append((truth & ~prediction).sum() / truth.sum())
                marked.append(prediction.mean())
        assert found["n"] == len(missed) < len(frames)  # frames without a polyp are left out
        return float(np.mean(missed)), float(np.mean(marked))

    missed, marked = missed_and_marked(found["threshold"])
    assert found["missed_share"] == pytest.approx(missed, abs=1e-3) and missed <= alpha == found["alpha"]
    assert found["predicted_area"] == pytest.approx(marked, abs=1e-3)
    n = found["n"]
    assert (n * missed + 1) / (n + 1) <= alpha
    above = CONFORMAL_THRESHOLDS[np.float32(found["threshold"]) < CONFORMAL_THRESHOLDS]
    assert (n * missed_and_marked(above[1])[0] + 1) / (n + 1) > alpha  # no larger threshold keeps it, but for rounding


def test_polyp_free_frames_alone_choose_nothing(
    copied: Path, phantom_folder: Path, split: pd.DataFrame, frames: Catalog, tmp_path: Path
) -> None:
    free = {row.frame_id for index, row in enumerate(frames) if not frames.mask(index).any()}
    assert free
    changed = split.assign(split=np.where(split["frame_id"].isin(free), "val", "train"))
    write_split(changed, tmp_path / "changed.csv")
    metadata = (copied / "bundle" / "metadata.json").read_bytes()
    asked = {"split_file": tmp_path / "changed.csv", "allow_train_frames": True, "progress": False}
    line = complaint(partial(calibrate, copied, [phantom_folder], **asked))
    assert line.startswith(f"{phantom_folder}: none of the {len(free)} val frames shows a polyp, so there is nothing")
    assert (copied / "bundle" / "metadata.json").read_bytes() == metadata


def test_no_polyp_free_frame_is_written_down_and_warned_of(
    copied: Path, phantom_folder: Path, val: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    assert all(val.mask(index).any() for index in range(len(val)))
    found = calibrate(copied, [phantom_folder], max_false_per_frame=3, progress=False)
    choice = found.metadata["operating_point_choice"]
    assert choice["polyp_free"] == 0 and "polyp_free_marked" not in choice["chosen"]
    assert choice["objective"] == "max_false_per_frame" and choice["chosen"]["false_per_frame"] <= 3
    assert any("none of these frames is without a polyp" in one.getMessage() for one in caplog.records)


def test_a_hopeless_model_is_warned_of(copied: Path, phantom_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One whose map is the same everywhere: the best threshold marks all."""
    bundle = ModelBundle.load(copied)
    state = {name: value * 0 if "segmentation_head" in name else value for name, value in bundle.weights().items()}
    kept = {name: bundle.metadata[name] for name in ("split", "data", "frames") if name in bundle.metadata}
    ModelBundle.save(
        copied / "bundle", state, name="hopeless", architecture=bundle.architecture,
        preprocessing=bundle.preprocessing, **kept,
    )  # fmt: skip
    calibrate(copied, [phantom_folder], progress=False)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "the threshold marks 100.0% of the pixels of a frame" in told


def test_the_temperature_is_that_of_the_mean_of_the_views(copied: Path, phantom_folder: Path, val: Catalog) -> None:
    """By a search of its own, over segmenters that are given one."""
    after = calibrate(copied, [phantom_folder], tta="hflip", progress=False)

    def loss(temperature: float) -> float:
        segmenter = polypseg.load(copied, precision="fp32", tta="hflip")
        for member in segmenter._members:
            member.temperature = temperature
        each = []
        for index in range(len(val)):
            probability = segmenter.probability(val.frame(index)).astype(np.float64).clip(1e-7, 1 - 1e-7)
            truth = PREPROCESSING.resize_mask(val.mask(index)) > 0
            each.append(-np.log(np.where(truth, probability, 1 - probability)).mean())
        return float(np.mean(each))

    assert loss(after.temperature) <= min(loss(after.temperature * factor) for factor in (0.93, 1.07)) + 1e-6


def test_too_few_frames_for_the_guarantee(copied: Path, phantom_folder: Path) -> None:
    metadata = (copied / "bundle" / "metadata.json").read_bytes()
    line = complaint(lambda: calibrate(copied, [phantom_folder], alpha=0.01, progress=False))
    assert "needs at least 99 calibration frames" in line
    for alpha in (0.0, 1.0, -1.0, float("nan")):
        wrong = complaint(partial(calibrate, copied, [phantom_folder], alpha=alpha), UsageError)
        assert "--alpha" in wrong
    assert (copied / "bundle" / "metadata.json").read_bytes() == metadata


def test_calibrate_by_the_command_line(
    capsys: pytest.CaptureFixture[str], copied: Path, phantom_folder: Path, val: Catalog
) -> None:
    status, out, error = run(
        capsys, "calibrate", copied, "--data", phantom_folder, "--split", "train", "--alpha", 0.3,
        "--allow_train_frames", "true",
    )  # fmt: skip
    assert status == 0, error
    bundle = ModelBundle.load(copied)
    assert f"temperature {bundle.temperature:g}, threshold {bundle.threshold:g}" in out and "guarantee: " in out
    noted = "random, train; 28 of these 28 frames the model was trained on"
    assert bundle.metadata["threshold_split"] == noted and bundle.tta == "none"
    assert out.splitlines()[0] == f"chosen on {noted}"
    status, _, error = run(capsys, "calibrate", copied, "--data", phantom_folder, "--tta", "hflip")
    assert status == 0, error
    looked = ModelBundle.load(copied)
    assert looked.tta == polypseg.load(copied).tta == "hflip"
    maps = Maps.of(polypseg.load(copied, tta="hflip"), val, progress=False)
    assert looked.threshold == choose_point(maps, progress=False)["operating_point"].threshold
    assert calibrate(copied, [phantom_folder], progress=False).tta == "hflip"  # it stays the bundle's own


# --- comparison ---


def write_table(folder: Path, dice: Any, **columns: Any) -> Path:
    folder.mkdir(parents=True)
    count = len(dice)
    table = {
        "dataset": "clinic", "frame_id": [f"{index:03d}" for index in range(count)],
        "group": [f"clinic/{index:03d}" for index in range(count)], "dice": dice, **columns,
    }  # fmt: skip
    pd.DataFrame(table).to_csv(folder / "per_image.csv", index=False)
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    good = rng.uniform(0.7, 0.95, 60)
    scores = {"good": good, "twin": good, "alike": good + rng.normal(0, 0.02, 60), "bad": good - 0.2}
    return {name: write_table(tmp_path / name, dice) for name, dice in scores.items()}


def test_models_share_a_letter_only_where_they_cannot_be_told_apart(reports: dict[str, Path], tmp_path: Path) -> None:
    ranking = compare(list(reports.values()), tmp_path / "ranking.json")
    letters = {place.name: set(place.letters) for place in ranking.places}
    assert letters["good"] == letters["twin"] == letters["alike"] and not letters["good"] & letters["bad"]
    assert ranking.places[-1].name == "bad"
    written = strict(tmp_path / "ranking.json")
    means = {name: pd.read_csv(folder / "per_image.csv")["dice"].mean() for name, folder in reports.items()}
    assert {one["name"]: one["dice"] for one in written["ranking"]} == pytest.approx(means)
    assert [one["dice"] for one in written["ranking"]] == sorted(means.values(), reverse=True)
    assert all(one["low"] < one["dice"] < one["high"] and one["n"] == 60 for one in written["ranking"])
    assert len(written["comparisons"]) == 6
    for one in written["comparisons"]:
        assert one["difference"] == pytest.approx(means[one["better"]] - means[one["worse"]], abs=1e-9)
        assert one["difference"] >= -1e-12 and 0 < one["p_value"] <= one["adjusted_p_value"] <= 1
    twins = next(one for one in written["comparisons"] if {one["better"], one["worse"]} == {"good", "twin"})
    assert twins["p_value"] == 1 and twins["difference"] == 0
    text = ranking_table(ranking)
    assert len(text.splitlines()) == 2 + 4 + 6 and all(name in text for name in reports)
    assert text.splitlines()[0] == "60 frames with a polyp, in 60 groups"
    assert (written["n"], written["groups"], written["groups_needed"]) == (60, 60, 8)
    verdicts = {(one["better"], one["worse"]): one["verdict"] for one in written["comparisons"]}
    assert verdicts["good", "bad"] == "told apart" and verdicts["good", "twin"] == "not told apart"


def test_the_order_of_rows_does_not_matter(reports: dict[str, Path], tmp_path: Path) -> None:
    table = pd.read_csv(reports["alike"] / "per_image.csv", dtype={"frame_id": str}).sample(frac=1, random_state=0)
    write_table(tmp_path / "shuffled" / "alike", table["dice"].to_numpy(), frame_id=table["frame_id"].to_numpy(),
                group=table["group"].to_numpy())  # fmt: skip
    one = compare([reports["good"], reports["alike"]])
    other = compare([reports["good"], tmp_path / "shuffled" / "alike"])
    assert one.comparisons == other.comparisons and one.places == other.places


def test_groups_widen_a_comparison(reports: dict[str, Path], tmp_path: Path) -> None:
    groups = [f"sequence {index // 20}" for index in range(60)]
    rng = np.random.default_rng(1)
    base = rng.uniform(0.6, 0.8, 60)
    scores = {"one": base, "other": base + 0.05 + rng.normal(0, 0.01, 60)}
    alone = compare([write_table(tmp_path / "alone" / name, dice) for name, dice in scores.items()])
    grouped = compare([write_table(tmp_path / "grouped" / name, dice, group=groups) for name, dice in scores.items()])
    assert alone.comparisons["other", "one"].p_value < 0.001
    assert grouped.comparisons["other", "one"].p_value == pytest.approx(0.25)  # 2 of the 8 signs of three sequences


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_groups_have_no_verdict(tmp_path: Path, count: int) -> None:
    """As two groups that agree: an interval far from 0 beside p = 0.5 is no verdict, and is not shown as one."""
    rng = np.random.default_rng(0)
    groups = [f"sequence {index % count}" for index in range(20)]
    scores = {"high": 0.8 + rng.normal(0, 0.01, 20), "low": np.full(20, 0.7)}
    folders = [write_table(tmp_path / name, dice, group=groups) for name, dice in scores.items()]
    ranking = compare(folders, tmp_path / "ranking.json")
    text = ranking_table(ranking)
    assert f"20 frames with a polyp, in {count} group" in text and "fewer than 6" in text
    assert "p = 0.0500" not in text.replace("reach p = 0.05", "") and text.endswith(": too few groups")
    written = strict(tmp_path / "ranking.json")
    (one,) = written["comparisons"]
    assert one["verdict"] == "too few groups" and one["low"] is None and one["high"] is None
    assert (written["groups"], written["groups_needed"]) == (count, 6)
    assert all(place["letters"] == [] for place in written["ranking"])


def test_six_groups_can_be_told_apart(tmp_path: Path) -> None:
    groups = [f"sequence {index % 6}" for index in range(18)]
    folders = [write_table(tmp_path / name, np.full(18, dice), group=groups) for name, dice in (("a", 0.8), ("b", 0.7))]
    assert ranking_table(compare(folders)).endswith("p = 0.0312 adjusted: told apart")


def test_an_interval_that_contradicts_the_test_is_explained(tmp_path: Path) -> None:
    """Seven groups of which one disagrees a little: the percentile of seven draws leaves out 0, the test does not."""
    differences = np.array([0.1, 0.1, 0.1, 0.1, 0.1, -0.01, -0.01])
    groups = [f"sequence {index}" for index in range(7)]
    folders = [
        write_table(tmp_path / name, dice, group=groups) for name, dice in (("a", 0.7 + differences), ("b", [0.7] * 7))
    ]
    ranking = compare(folders, tmp_path / "ranking.json")
    (found,) = ranking.comparisons.values()
    assert found.difference.low > 0 and found.adjusted > 0.05
    (one,) = strict(tmp_path / "ranking.json")["comparisons"]
    assert one["verdict"].startswith("not told apart by the test, though the interval leaves out 0")
    assert one["verdict"] in ranking_table(ranking)


def test_only_frames_with_a_polyp_are_compared(tmp_path: Path) -> None:
    polyps = ["1"] * 10 + ["0"] * 5
    dice = [0.9] * 10 + [""] * 5
    former = [0.8] * 10 + [1.0] * 5  # of a version that gave empty frames a Dice
    folders = [write_table(tmp_path / name, one, polyps=polyps) for name, one in (("a", dice), ("b", former))]
    (found,) = compare(folders).comparisons.values()
    assert found.difference.n == 10 and found.difference.value == pytest.approx(0.1)
    nothing = write_table(tmp_path / "c", [""] * 5, polyps=["0"] * 5)
    line = complaint(lambda: compare([nothing, folders[0]]))
    assert line.startswith(str(nothing)) and "no frame shows a polyp" in line


@pytest.mark.parametrize(("count", "group"), [(1, "a"), (5, "a"), (5, "")])
def test_one_frame_or_one_group_has_no_interval(tmp_path: Path, count: int, group: str) -> None:
    folders = [write_table(tmp_path / name, [dice] * count, group=group) for name, dice in (("a", 0.9), ("b", 0.5))]
    ranking = compare(folders, tmp_path / "ranking.json")
    written = strict(tmp_path / "ranking.json")
    assert written["ranking"][0]["low"] is None and written["comparisons"][0]["high"] is None
    assert written["comparisons"][0]["p_value"] == 1
    assert "nan" not in ranking_table(ranking) and "no interval" in ranking_table(ranking)


def test_frames_called_like_missing_values(tmp_path: Path) -> None:
    names = ["NA", "null", "", "1e3", "007"]
    first = write_table(tmp_path / "first", np.linspace(0.1, 0.5, 5), frame_id=names)
    same = write_table(tmp_path / "same", np.linspace(0.1, 0.5, 5)[::-1], frame_id=names[::-1])
    assert compare([first, same]).comparisons["first", "same"].difference.value == 0
    other = write_table(tmp_path / "other", np.linspace(0.1, 0.5, 5), frame_id=["NaN", *names[1:]])
    assert str(other) in complaint(lambda: compare([first, other]))


def test_reports_that_cannot_be_compared(reports: dict[str, Path], tmp_path: Path) -> None:
    good = reports["good"]
    fewer = write_table(tmp_path / "fewer", np.full(59, 0.5))
    assert str(fewer) in complaint(lambda: compare([good, fewer]))
    elsewhere = write_table(tmp_path / "elsewhere", np.full(60, 0.5), dataset="ward")
    assert "other frames" in complaint(lambda: compare([good, elsewhere]))
    again = write_table(tmp_path / "again" / "good", np.full(60, 0.5))
    assert "called good too" in complaint(lambda: compare([good, again]))
    assert "called good too" in complaint(lambda: compare([good, good]))
    line = complaint(lambda: compare([good, tmp_path / "nowhere"]))
    assert str(tmp_path / "nowhere" / "per_image.csv") in line and "polypseg evaluate" in line
    complaint(lambda: compare([good]), UsageError)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"dice\n0.5\n",
        b"dataset,frame_id,group,dice\n",
        b"dataset,frame_id,group,dice\na,b,c,high\n",
        b"dataset,frame_id,group,dice\na,b,c,\n",
        b"dataset,frame_id,group,dice\na,b,c,nan\n",
        b'dataset,frame_id,group,dice\na,"b,c,0.5\n',
        b"dataset,frame_id,group,dice\na,b,c,0.5,1,2\na,b\n",
    ],
)
def test_a_damaged_table_is_told_in_one_line(reports: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged").mkdir()
    file = tmp_path / "damaged" / "per_image.csv"
    file.write_bytes(content)
    for pair in ([reports["good"], tmp_path / "damaged"], [tmp_path / "damaged", reports["good"]]):
        assert complaint(partial(compare, pair)).startswith(f"{file}: ")


def test_compare_by_the_command_line(
    capsys: pytest.CaptureFixture[str], reports: dict[str, Path], evaluated: Path, tmp_path: Path
) -> None:
    status, out, _ = run(capsys, "compare", reports["bad"], reports["good"], "--out", tmp_path / "ranking.json")
    assert status == 0 and out.splitlines()[2].startswith("good") and "good - bad: +0.2000" in out
    assert strict(tmp_path / "ranking.json")["ranking"][0]["letters"] == ["a"]
    twin = shutil.copytree(evaluated, tmp_path / "copy")  # what `evaluate` writes can be compared
    status, out, error = run(capsys, "compare", evaluated, twin)
    assert status == 0 and "p = 1.0000 adjusted" in out, error


# --- robustness ---


def test_robustness_is_the_mean_dice_of_corrupted_frames(finished: Path, frames: Catalog) -> None:
    shown = [index for index in range(len(frames)) if frames.mask(index).any()][:2]
    free = next(index for index in range(len(frames)) if not frames.mask(index).any())
    few = Catalog(frames.frames.iloc[[*shown, free]].reset_index(drop=True))
    segmenter = polypseg.load(finished)
    curves = robustness(segmenter, few, progress=False)
    assert curves.keys() == CORRUPTIONS.keys() and len(curves) == 8
    values = np.array(list(curves.values()))
    assert values.shape == (8, 5) and values.min() >= 0 and values.max() <= 1 and len(np.unique(values)) > 10
    for name, severity in (("darkness", 3), (list(CORRUPTIONS)[-1], 5)):
        expected = []
        for index in range(2):
            prediction = segmenter.segment(corrupt(few.frame(index), name, severity, seed=index)).mask
            expected.append(f1_score(few.mask(index).ravel(), prediction.ravel()))
        assert curves[name][severity - 1] == pytest.approx(np.mean(expected), abs=1e-12), name
