"""Speed: what is measured and told, and in which order; never how fast it was."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from polypseg.benchmark import speed
from polypseg.benchmark.speed import NAIVE, ROUNDS, Contender, Way, Worker, benchmark, table, take_turns, ways
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.data import read_all
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation import scoring
from polypseg.export.run import export
from polypseg.inference.segmenter import Segmenter
from polypseg.models.losses import LossConfig
from polypseg.models.network import build
from polypseg.visualization import charts

pytestmark = pytest.mark.slow

SMALL = Architecture("Unet", "tu-test_efficientnet", (32, 16, 16, 8, 8))
REPEATS = 2
MEASURED = (
    "network_p50_ms", "network_p95_ms", "before_ms", "after_ms", "before_and_after_share", "end_to_end_p50_ms",
    "end_to_end_p95_ms", "network_stream_fps", "stream_fps", "load_s", "memory_mb",
)  # fmt: skip


def untrained(folder: Path) -> ModelBundle:
    torch.manual_seed(0)
    network = build(SMALL)
    with torch.no_grad():  # settle batch normalisation, so that some pixels are polyp and some are not
        for _ in range(5):
            network.train()(torch.randn(4, 3, 64, 64))
    return ModelBundle.save(
        folder, network.state_dict(), name="untrained", architecture=SMALL, preprocessing=Preprocessing(64, 64),
        threshold=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """One with an export to OpenVINO, and one to ONNX that is damaged."""
    made = untrained(tmp_path_factory.mktemp("model") / "bundle")
    export(made.folder, "openvino", "fp32", progress=False)
    made = ModelBundle.load(made.folder)
    damaged = {
        "runtime": "onnx",
        "precision": "fp32",
        "files": {"onnx/fp32.onnx": 64 * "0"},
        "weights_sha256": made.metadata["weights_sha256"],
    }
    (made.folder / "onnx").mkdir()
    (made.folder / "onnx" / "fp32.onnx").write_bytes(b"damaged")
    return made.update(exports=[*made.metadata["exports"], damaged])


@pytest.fixture(scope="module")
def measured(
    bundle: ModelBundle, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The report of one run in all usual ways, and the folder that it was written to."""
    out = tmp_path_factory.mktemp("speed") / "new" / "folder"
    report = benchmark(
        bundle.folder, data=[phantom_folder], split="all", out=out, threads=1, frame_size="96x72", repeats=REPEATS
    )
    return report, out


def of(report: dict[str, Any], way: Way) -> dict[str, Any]:
    (row,) = (
        row for row in report["rows"]
        if (row["runtime"], row["device"], row["precision"], row["variant"])
        == (way.runtime, way.device, way.precision, way.variant)
    )  # fmt: skip
    return row


OPENVINO = Way("openvino", "cpu", "fp32")
CHANNELS_LAST = Way("torch", "cpu", "fp32", channels_last=True)


def test_every_way_has_numbers_that_go_together(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    for way in (NAIVE, CHANNELS_LAST, OPENVINO):
        row = of(report, way)
        assert row["reason"] == ""
        assert all(np.isfinite(row[name]) and row[name] > 0 for name in MEASURED), row
        assert row["network_p95_ms"] >= row["network_p50_ms"]
        assert row["end_to_end_p95_ms"] >= row["end_to_end_p50_ms"]
        share = (row["before_ms"] + row["after_ms"]) / row["network_p50_ms"]
        assert row["before_and_after_share"] == pytest.approx(share, rel=1e-4)
        assert row["network_speedup"] > 0 and row["end_to_end_speedup"] > 0
        assert row["calls"] == ROUNDS * REPEATS and row["threads"] == 1
        assert row["polyps"] > 0


def test_the_naive_way_comes_first_and_is_what_others_are_compared_with(
    measured: tuple[dict[str, Any], Path],
) -> None:
    first = measured[0]["rows"][0]
    assert (first["runtime"], first["precision"], first["variant"]) == ("torch", "fp32", "default layout, eager")
    assert first["network_speedup"] == first["end_to_end_speedup"] == 1


def test_each_way_has_a_process_of_its_own(measured: tuple[dict[str, Any], Path]) -> None:
    """OpenVINO's memory would include PyTorch's if they shared one, or if it were inherited from this one."""
    assert 2 * of(measured[0], OPENVINO)["memory_mb"] < of(measured[0], NAIVE)["memory_mb"]


@pytest.mark.parametrize("way", [NAIVE, OPENVINO], ids=["torch", "openvino"])
def test_dice_is_that_of_the_evaluation(
    way: Way, measured: tuple[dict[str, Any], Path], bundle: ModelBundle, phantom_folder: Path
) -> None:
    segmenter = Segmenter(bundle, way.runtime, way.device, way.precision, channels_last=way.channels_last)
    scores = scoring.score(segmenter, read_all([phantom_folder]), LossConfig(), progress=False)
    expected = scores.summary["dice"]
    assert 0.01 < expected < 0.99
    assert of(measured[0], way)["dice"] == pytest.approx(expected, abs=1e-4)
    assert measured[0]["provenance"]["n"] == scores.summary["n"] == 40


def test_a_damaged_export_is_a_row_with_its_reason(measured: tuple[dict[str, Any], Path], bundle: ModelBundle) -> None:
    row = of(measured[0], Way("onnx", "cpu", "fp32"))
    assert str(bundle.folder / "onnx" / "fp32.onnx") in row["reason"] and "\n" not in row["reason"]
    assert row["calls"] == 0 and all(row[name] is None for name in (*MEASURED, "network_speedup", "dice"))


def test_csv_and_json_agree(measured: tuple[dict[str, Any], Path]) -> None:
    report, out = measured
    assert json.loads((out / "benchmark.json").read_text()) == report
    with (out / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["rows"]) > 3
    for found, row in zip(rows, report["rows"], strict=True):
        for name, value in row.items():
            if isinstance(value, float):
                assert float(found[name]) == value
            else:
                assert found[name] == ("" if value is None else str(value))
        assert found["bundle_hash"] == report["provenance"]["bundle_hash"]
        assert json.loads(found["versions"]) == report["provenance"]["versions"]
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.csv", "benchmark.json"]


def test_provenance_is_complete(measured: tuple[dict[str, Any], Path], bundle: ModelBundle) -> None:
    facts = measured[0]["provenance"]
    assert (facts["bundle"], facts["bundle_hash"]) == ("untrained", bundle.hash)
    assert (facts["frame_size"], facts["network_size"], facts["rounds"]) == ("96x72", "64x64", ROUNDS)
    assert (facts["frames"], facts["split"]["part"]) == ("phantom", "all")
    assert facts["cores"] >= 1 and facts["processor"] is not None and facts["load_average"] >= 0
    assert {"python", "torch", "openvino", "numpy", "polypseg"} <= set(facts["versions"])
    assert facts["date"][:2] == "20" and "commit" in facts


def test_the_table_has_a_line_for_each_row(measured: tuple[dict[str, Any], Path]) -> None:
    rows = measured[0]["rows"]
    head, *lines = table(rows).splitlines()
    assert len(lines) == len(rows) and "Dice" in head
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"{row['runtime']} {row['device']} {row['precision']}")
        assert (f"{row['network_p50_ms']:.1f}" if row["calls"] else row["reason"]) in line


def test_ways_of_a_bundle(bundle: ModelBundle) -> None:
    found = ways(bundle)
    assert found[:2] == [NAIVE, CHANNELS_LAST]
    assert found[-2:] == [OPENVINO, Way("onnx", "cpu", "fp32")]
    assert not any(way.compile for way in found)
    assert all(way.compile and way.channels_last for way in ways(bundle, ["compile"]))
    assert ways(bundle, ["openvino"]) == [OPENVINO]


def test_a_runtime_without_an_export_says_how_to_make_one(tmp_path: Path) -> None:
    bare = untrained(tmp_path / "bare")
    with pytest.raises(PolypsegError, match=r"nothing could be measured: .*polypseg export") as caught:
        benchmark(bare.folder, out=tmp_path / "out", frame_size="96x72", repeats=1, runtimes=["openvino"])
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_runtime_that_is_not_installed_says_so(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PolypsegError, match="pip install openvino"):
        benchmark(bundle.folder, out=tmp_path / "out", frame_size="96x72", repeats=1, runtimes=["openvino"])


def test_what_was_measured_before_an_interrupt_is_written(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = Worker.ask, []

    def interrupted(self: Worker, **request: Any) -> dict[str, Any]:
        asked.append(request)
        if len([one for one in asked if "repeats" in one]) == 3:
            raise KeyboardInterrupt
        return ask(self, **request)

    monkeypatch.setattr(Worker, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(bundle.folder, out=tmp_path, frame_size="96x72", repeats=3, runtimes=["openvino", "onnx"])
    openvino, onnx = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert openvino["calls"] == 2 * 3 and openvino["network_p50_ms"] > 0
    assert onnx["calls"] == 0 and onnx["reason"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frame_size": "1280"}, "--frame_size 1280"),
        ({"frame_size": "0x720"}, "--frame_size 0x720"),
        ({"frame_size": "99999x720"}, "--frame_size 99999x720"),
        ({"repeats": 0}, "--repeats 0"),
        ({"threads": -1}, "--threads -1"),
        ({"runtimes": ["tensorrt"]}, "--runtimes tensorrt"),
    ],
)
def test_unusable_options(options: dict[str, Any], says: str, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        benchmark(bundle.folder, out=tmp_path / "out", **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# A worker that answers at once, writes its name into a file at each turn, and can fail at one of them.
STAND_IN = """
import json, sys
name, log, failing = sys.argv[1:]
for number, line in enumerate(sys.stdin):
    if number == int(failing):
        sys.exit("it was too much")
    if number:
        open(log, "a").write(name)
    print(json.dumps({"load_s": 1, "threads": 3, "network": [0.010, 0.020, 0.060], "stream": 0.1}), flush=True)
"""


def stand_in(name: str, log: Path, failing: int = -1) -> Contender:
    return Contender([sys.executable, "-c", STAND_IN, name, str(log), str(failing)], {}, {"tool": name})


def test_contenders_take_turns_round_after_round(tmp_path: Path) -> None:
    three = [stand_in(name, tmp_path / "log") for name in "ABC"]
    take_turns(three, repeats=3, rounds=4)
    assert (tmp_path / "log").read_text() == "ABCABCABCABC"


def test_a_contender_that_dies_keeps_what_it_measured_and_the_others_go_on(tmp_path: Path) -> None:
    three = [stand_in("A", tmp_path / "log"), stand_in("B", tmp_path / "log", 2), stand_in("C", tmp_path / "log", 0)]
    take_turns(three, repeats=3, rounds=3)
    rows = [one.row(three[0]) for one in three]
    assert (tmp_path / "log").read_text() == "ABAA"
    assert [row["calls"] for row in rows] == [9, 3, 0]
    assert [row["reason"] for row in rows] == ["", *2 * ["its process ended with status 1 (it was too much)"]]
    assert rows[1]["network_p50_ms"] == 20 and rows[2]["network_p50_ms"] is None


def test_percentiles_are_of_all_calls_and_speedups_of_rounds() -> None:
    def turns(*rounds: list[float]) -> list[dict[str, Any]]:
        return [
            {"network": calls, "stream": calls[0], "network_stream": calls[0] / 4, "memory_mb": 100 * calls[0]}
            for calls in rounds
        ]

    naive = Contender([], {}, {}, turns=turns([4, 4, 4], [8, 8, 8], [2, 2, 2]), reason="")
    other = Contender([], {}, {}, turns=turns([1, 1, 9], [4, 4, 4], [2, 2, 2]), reason="")
    row = other.row(naive)
    calls = [1, 1, 9, 4, 4, 4, 2, 2, 2]
    assert row["network_p50_ms"] == pytest.approx(1000 * np.median(calls))
    assert row["network_p95_ms"] == pytest.approx(1000 * np.percentile(calls, 95))
    assert row["network_speedup"] == 2  # the middle one of 4/1, 8/4 and 2/2
    assert row["stream_fps"] == pytest.approx(1 / 2) and row["network_stream_fps"] == 2 and row["memory_mb"] == 400
    assert row["before_ms"] is None and row["before_and_after_share"] is None and row["end_to_end_speedup"] is None
    assert other.row(None)["network_speedup"] is None


def test_a_worker_that_cannot_load_says_why_in_one_line() -> None:
    with pytest.raises(PolypsegError, match=r"ended with status 1 \(.*no_such_module") as caught:
        Worker([sys.executable, "-c", "import no_such_module"], {})
    assert "\n" not in str(caught.value)


def test_the_chart_of_speed_has_a_pair_of_bars_for_each_way() -> None:
    def coloured(groups: dict[str, dict[str, tuple[float, float]]], colour: str) -> int:
        picture = np.asarray(Image.open(io.BytesIO(charts.speed(groups))).convert("RGB")).astype(int)
        return int((np.abs(picture - np.round(255 * np.array(to_rgb(colour)))).max(axis=-1) < 30).sum())

    slow = {"one": {"a": (10.0, 5.0), "b": (40.0, 40.0)}}
    quick = {"one": {"a": (40.0, 5.0), "b": (40.0, 40.0)}, "two": {"a": (40.0, 40.0)}}
    for groups in (slow, quick):
        assert coloured(groups, charts.COLOURS[0]) > coloured(groups, charts.COLOURS[4]) > 2000
    assert coloured(quick, charts.COLOURS[0]) > 1.3 * coloured(slow, charts.COLOURS[0])
    assert speed.NAIVE.variant == "default layout, eager"
