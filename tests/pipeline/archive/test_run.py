"""Whole runs over archives in this process: every frame predicted once, whatever happens."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError, UsageError
from polypseg.pipeline.archive import plan as plan_module
from polypseg.pipeline.archive import run as module
from polypseg.pipeline.archive import worker as worker_module
from polypseg.pipeline.archive.plan import Plan
from polypseg.pipeline.archive.rows import noted
from polypseg.pipeline.archive.store import Store
from polypseg.pipeline.archive.worker import Job, Worker
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.predict import predict

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")
EXACT: dict[str, Any] = {"runtime": "openvino", "device": "cpu", "precision": "fp32", "threads": 1, "progress": False}
Check = Callable[..., list[dict[str, Any]]]
Manifest = Callable[..., tuple[Path, list[str], list[int]]]
Command = Callable[..., list[str]]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def predicting(light: ModelBundle) -> Callable[..., int]:
    """``predict`` in this process."""

    def call(*sources: object, **options: Any) -> int:
        return predict([str(source) for source in sources], model=[str(light.folder)], **{**EXACT, **options})

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Wait until something is so; the process must not have ended before."""
    end = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)


# ---- what is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_a_folder_becomes_rows_and_masks(
    phantom_folder: Path, frames: list[Path], tmp_path: Path, predicting: Callable[..., int], check: Check,
    capsys: pytest.CaptureFixture[str], light: ModelBundle, threads: int,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert predicting(phantom_folder, out=out, engine="local", partition=16, threads=threads) == 0
    rows = check(out, [str(path) for path in frames])
    assert sorted(path.name for path in (out / "partitions").iterdir()) == [
        f"part-{number:07d}.parquet" for number in range(3)
    ]
    assert rows[0]["source_sha256"] == hashlib.sha256(frames[0].read_bytes()).hexdigest()
    settings = {"model": light.hash, "runtime": "openvino", "device": "cpu", "precision": "fp32", "tta": "none"}
    assert all(row.items() >= settings.items() and row["threshold"] == 0.565 for row in rows)
    assert all(polyp["contour"] is None for row in rows for polyp in row["polyps"])
    polyps = sum(len(row["polyps"]) for row in rows)
    assert polyps > 40 and f"{out}: 40 frames, " in (printed := capsys.readouterr().out)
    assert f" {polyps} polyps, " in printed and len(printed.splitlines()) == 1
    lines = list(csv.DictReader((out / "done.csv").open()))
    assert [int(line["frames"]) for line in lines] == [16, 16, 8]
    assert sum(int(line["polyps"]) for line in lines) == polyps


def test_contours_instead_of_masks(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int], expected: dict[str, Any]
) -> None:
    import pyarrow.parquet as pq

    assert predicting(frames[0], out=tmp_path / "out", engine="local", save=["contours"]) == 0
    (row,) = pq.read_table(tmp_path / "out" / "partitions").to_pylist()
    polyps = expected[frames[0].name].polyps
    assert polyps and [polyp["contour"] for polyp in row["polyps"]] == [polyp.contour.tolist() for polyp in polyps]
    assert row["mask"] is None and not (tmp_path / "out" / "masks").exists()


def test_a_manifests_columns_and_a_broken_frame_every_tenth(
    tmp_path: Path, predicting: Callable[..., int], check: Check, manifest: Manifest, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, named, broken = manifest(45, broken_every=10)
    missing = tmp_path / "missing.png"
    file.write_text(file.read_text() + f"{missing},gone\n")
    out = tmp_path / "out"
    with caplog.at_level(logging.ERROR):
        assert predicting(file, out=out, partition=7) == 1
    rows = check(out, [*named, str(missing)], [*broken, 45])
    assert [row["patient"] for row in rows] == [f"p{index}" for index in range(45)] + ["gone"]
    assert [record.getMessage() for record in caplog.records] == [
        "5 of 46 frames could not be read; their rows say why"
    ]
    assert rows[9]["error"].startswith(f"{named[9]}: is damaged") and rows[9]["source_sha256"]
    assert rows[45]["error"] == f"{missing}: is missing; replace it or remove it" and rows[45]["source_sha256"] is None
    assert "46 frames" in capsys.readouterr().out


def test_any_store_of_fsspec_gives_the_same(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int], check: Check
) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    for path in frames:
        store.pipe_file(f"/archive/{path.name}", path.read_bytes())
    assert predicting("memory://archive", out="memory://results", partition=16) == 0
    store.get("/results/", str(tmp_path / "out"), recursive=True)
    check(tmp_path / "out", [f"memory:///archive/{path.name}" for path in frames])
    before = dict(store.store)
    assert predicting("memory://archive", out="memory://results", partition=16, resume=True) == 0
    assert {name: file.getvalue() for name, file in store.store.items()} == {
        name: file.getvalue() for name, file in before.items()
    }
    assert predicting("memory://archive", out="memory://results", partition=20, overwrite=True) == 0
    assert len(store.ls("/results/partitions")) == 2


def test_files_without_an_engine_are_predicted_as_ever(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int]
) -> None:
    assert predicting(*frames[:2], out=tmp_path / "out") == 0
    assert sorted(content(tmp_path / "out")) == [
        f"{path.stem}.{kind}" for path in frames[:2] for kind in ("json", "png")
    ]


# ---- again ----------------------------------------------------------------------------------------------


def test_a_finished_run_does_nothing_and_says_what_is_there(
    tmp_path: Path, predicting: Callable[..., int], manifest: Manifest, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, _, _ = manifest(30, broken_every=10)
    out = tmp_path / "out"
    assert predicting(file, out=out, partition=8) == 1
    before = content(out)
    capsys.readouterr()
    monkeypatch.setattr(module, "Worker", None)  # no model is opened
    assert predicting(file, out=out, partition=8, resume=True) == 1
    assert "30 frames (30 kept from before)" in capsys.readouterr().out
    (out / "done.csv").unlink()  # which only saves opening the partitions
    assert predicting(file, out=out, partition=8, resume=True) == 1
    assert content(out) == before


def test_only_what_is_missing_is_made_again(
    tmp_path: Path, predicting: Callable[..., int], manifest: Manifest, check: Check
) -> None:
    file, named, _ = manifest(40)
    out = tmp_path / "out"
    predicting(file, out=out, partition=8)
    before = content(out)
    (out / "partitions" / "part-0000002.parquet").unlink()
    (out / "partitions" / "part-0000003.parquet").write_bytes(b"of another program")
    shutil.rmtree(out / "masks" / "0000003")
    (out / "done.csv").unlink()
    (out / "partitions" / ".part-0000002.parquet.0123.part").write_bytes(b"of a killed writer")
    whole = ("0000000", "0000001", "0000004")
    kept = {name: os.stat(out / name).st_mtime_ns for name in before if any(number in name for number in whole)}
    assert predicting(file, out=out, partition=8, resume=True) == 0
    check(out, named)
    assert content(out) == before
    assert len(kept) == 3 + 24 and all(os.stat(out / name).st_mtime_ns == at for name, at in kept.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "is there already; use --resume, --overwrite"),
        ({"resume": True, "partition": 9}, "another partition"),
        ({"resume": True, "save": ["contours"]}, "another masks"),
        ({"resume": True, "precision": "bf16"}, "another precision"),
        ({"resume": True, "overwrite": True}, "choose one"),
    ],
)
def test_another_run_in_the_same_place_is_refused(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int], change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    predicting(*frames[:3], out=out, engine="local", partition=2)
    before = content(out)
    with pytest.raises(PolypsegError, match=message):
        predicting(*frames[:3], **{"out": out, "engine": "local", "partition": 2, **change})
    with pytest.raises(PolypsegError, match="another sources"):
        predicting(*frames[:4], out=out, engine="local", partition=2, resume=True)
    with pytest.raises(PolypsegError, match="is missing"):
        predicting(tmp_path / "gone", out=out, engine="local", overwrite=True)
    assert content(out) == before
    assert predicting(frames[5], out=out, engine="local", overwrite=True) == 0
    assert {name.partition("/")[0] for name in content(out)} == {
        "done.csv", "masks", "partitions", "plan.parquet", "run.json"
    }  # fmt: skip
    assert len(content(out / "masks")) == len(content(out / "partitions")) == 1


def plan_of(**columns: list[Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_a_plan_of_others_is_one_line(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predicting(*frames[:2], out=out, engine="local", partition=2)
    shutil.rmtree(out / "partitions")
    (out / "done.csv").unlink()
    whole = (out / "plan.parquet").read_bytes()
    flipped = bytearray(whole)
    flipped[10] ^= 255
    for content in (
        b"", b"PAR1" * 100, whole[:-9], bytes(flipped), plan_of(path=[1, 2]), plan_of(a=["x"]),
        plan_of(b=["x"], path=["y"]),
    ):  # fmt: skip
        (out / "plan.parquet").write_bytes(content)
        with pytest.raises(PolypsegError, match=r"plan\.parquet: is damaged \(.*\); use --overwrite") as caught:
            predicting(*frames[:2], out=out, engine="local", partition=2, resume=True)
        assert len(str(caught.value).splitlines()) == 1
    (out / "plan.parquet").write_bytes(whole)
    monkeypatch.setattr(plan_module, "MOST_FRAMES", 1)
    with pytest.raises(PolypsegError, match="a partition of 2 frames"):
        Plan(Store(str(out))).partition(0)
    monkeypatch.undo()
    record = json.loads((out / "run.json").read_text())
    for name, value in (("partitions", 10**12), ("frames", -1), ("frames", "2"), ("partitions", None), ("plan", 3)):
        (out / "run.json").write_text(json.dumps({**record, name: value}))
        with pytest.raises(PolypsegError, match="is none of an archive's run"):
            predicting(*frames[:2], out=out, engine="local", partition=2, resume=True)
    (out / "run.json").write_text("[" * 10**5)
    with pytest.raises(PolypsegError, match="is none of an archive's run"):
        predicting(*frames[:2], out=out, engine="local", partition=2, resume=True)


@pytest.mark.parametrize(
    "note", [b"[]", b"{", b'{"plan": "p"}', b'{"plan": "p", "frames": -1}', b'{"plan": "p", "x": 1}', b"[" * 10**5]
)
def test_a_partitions_file_of_others_is_none_of_ours(note: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"polypseg": note}), file)
    assert noted(file, "p") is None
    assert noted(io.BytesIO(b"PAR1"), "p") is None


def test_what_is_not_ours_is_left_alone(frames: list[Path], tmp_path: Path, predicting: Callable[..., int]) -> None:
    out = tmp_path / "out"
    (out / "partitions").mkdir(parents=True)
    (out / "partitions" / "x").write_text("of another program")
    with pytest.raises(PolypsegError, match=r"is there, but no run\.json"):
        predicting(frames[0], out=out, engine="local", overwrite=True)
    (out / "run.json").write_text("[]")
    with pytest.raises(PolypsegError, match="is none of an archive's run"):
        predicting(frames[0], out=out, engine="local", overwrite=True)
    assert content(out) == {"partitions/x": b"of another program", "run.json": b"[]"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "spark"}, "--engine spark"), ({"workers": 2}, "--workers: is for --engine ray"),
        ({"address": "auto", "engine": None}, "--address: is for --engine ray"), ({"partition": 0}, "--partition 0"),
        ({"memory": 0}, "--memory 0"), ({"save": ["overlay"]}, "--save overlay"), ({"live": True}, "--live"),
        ({"smoothing": 0.5}, "--smoothing"), ({"engine": "ray", "out": "memory://a"}, "memory://: is one"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(
    frames: list[Path], tmp_path: Path, predicting: Callable[..., int], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        predicting(frames[0], **{"out": tmp_path / "out", "engine": "local", **change})
    assert not (tmp_path / "out").exists()


def test_a_manifests_column_that_is_ours_is_refused(tmp_path: Path, predicting: Callable[..., int]) -> None:
    (tmp_path / "m.csv").write_text("path,error\n1.png,x\n")
    with pytest.raises(PolypsegError, match="column 'error' is a name of polypseg's own"):
        predicting(tmp_path / "m.csv", out=tmp_path / "out")


def test_the_archive_itself_is_no_place_for_results(phantom_folder: Path, predicting: Callable[..., int]) -> None:
    before = content(phantom_folder)
    with pytest.raises(PolypsegError, match="lies in --out"):
        predicting(phantom_folder / "images", out=phantom_folder, engine="local")
    assert content(phantom_folder) == before


# ---- memory and progress --------------------------------------------------------------------------------


def test_as_many_frames_at_once_as_the_memory_allows(
    frames: list[Path], tmp_path: Path, light: ModelBundle, predicting: Callable[..., int]
) -> None:
    predicting(frames[0], out=tmp_path / "out", engine="local")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    options = PredictOptions(threads=2, batch_size=64)
    job = Job(str(tmp_path / "out"), record["plan"], record["model"], (str(light.folder),), options)
    worker = Worker(job)
    frame = 1080 * 1920 * worker_module.BYTES_A_PIXEL
    for height, width in ((1080, 1920), (2160, 3840), (8000, 10000), (30, 40)):
        batch = worker.batch_size(height, width)
        share = batch * frame * height * width / (1080 * 1920)
        assert 1 <= batch <= 64 and (share <= 512 * 2**20 or batch == 1)
        assert batch == 64 or 2 * share > 512 * 2**20  # no smaller than it need be
    assert [worker.batch_size(1080, 1920), worker.batch_size(8000, 10000), worker.batch_size(30, 40)] == [16, 1, 64]


def test_frames_of_all_sizes_in_small_batches(
    tmp_path: Path, light: ModelBundle, predicting: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq
    from PIL import Image

    from polypseg.data import phantom
    from polypseg.inference.segmenter import Segmenter

    for number, height in enumerate((60, 60, 60, 700, 60, 300, 300)):
        Image.fromarray(phantom.draw(number, height, 80)[0]).save(tmp_path / f"{number}.png")
    batches: list[int] = []
    original = Segmenter.probabilities

    def watched(self: Segmenter, pixels: Iterator[Any], batch_size: int = 1) -> Iterator[Any]:
        batches.append(batch_size)
        return original(self, pixels, batch_size)

    monkeypatch.setattr(Segmenter, "probabilities", watched)
    out = tmp_path / "out"
    predicting(tmp_path / "*.png", out=out, engine="local", threads=2, batch_size=8, memory=1)
    assert batches == [8, 1, 8, 2]  # by what 1 MiB contains of each size
    assert [row["height"] for row in pq.read_table(out / "partitions").to_pylist()] == [60, 60, 60, 700, 60, 300, 300]


def test_progress_is_told_where_no_bar_is_shown(
    tmp_path: Path, predicting: Callable[..., int], manifest: Manifest, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file, _, _ = manifest(20)
    monkeypatch.setattr(module, "TELL_EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        predicting(file, out=tmp_path / "out", partition=5, progress=True)
    told = [record.getMessage() for record in caplog.records if " of 20 frames, " in record.getMessage()]
    assert [line.split()[0] for line in told] == ["5", "10", "15", "20"]
    assert all("frames/s" in line and line.endswith(" left") for line in told) and "00:00 left" in told[-1]


# ---- killed, full ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_resumed_each_frame_is_predicted_once(
    tmp_path: Path, command: Command, run: Run, manifest: Manifest, check: Check
) -> None:
    file, named, broken = manifest(300, broken_every=100)
    out = tmp_path / "out"
    options = (file, "--out", out, "--partition", 10)
    done = out / "partitions"
    with subprocess.Popen(command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: done.is_dir() and len(list(done.glob("*.parquet"))) >= 3, process)
        process.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in done.glob("*.parquet")}
    assert 3 <= len(before) < 30
    status, printed, errors = run(*options, "--resume")
    assert status == 1 and errors[-1] == "3 of 300 frames could not be read; their rows say why"
    kept = int(printed.partition("(")[2].split()[0])
    assert kept == 10 * len(before)
    check(out, named, broken)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


TINY_DISK = """
mount -t tmpfs -o size=96k none "$OUT" && { "$@"; echo "status $?"; mount -o remount,size=16m "$OUT"
"$@" --resume; echo "status $?"; cp -r "$OUT" "$KEPT"; }
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="needs a disk of its own, by user namespaces",
)
@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_resuming_completes_it(
    tmp_path: Path, command: Command, manifest: Manifest, check: Check
) -> None:
    file, named, _ = manifest(60)
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", TINY_DISK, "sh", *command(file, "--out", out, "--partition", 10)],
        env={**os.environ, "OUT": str(out), "KEPT": str(kept)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 1", "status 0"], done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("polypseg: ")]
    assert len(told) == 1 and "the disk is full" in told[0]
    assert "60 frames" in done.stdout
    check(kept, named)
