"""Whole runs over pictures: what is written, what is reported, and that nothing is lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.data import phantom
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import locked
from polypseg.inference.field_of_view import outside_of
from polypseg.io.outputs import OUTPUTS
from polypseg.io.pictures import read_frame, read_mask
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.predict import predict

FRAMES = 6
Run = Callable[..., tuple[int, str, list[str]]]
EXACT: dict[str, Any] = {"runtime": "torch", "device": "cpu", "precision": "fp32", "progress": False}


@pytest.fixture
def bundle(untrained: ModelBundle) -> ModelBundle:
    """An untrained network that finds something of every shape in most frames."""
    return untrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of phantom frames of several sizes and formats."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FRAMES):
        frame, _ = phantom.draw(number, 60 + 4 * number, 80)
        Image.fromarray(frame).save(folder / f"{number}.{('png', 'jpg', 'bmp')[number % 3]}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# ---- what is written ------------------------------------------------------------------------------------


def test_by_default_a_mask_and_a_record_of_each_image(
    folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    before = content(folder)
    out = tmp_path / "out"
    status, printed, told = run(folder, "--model", bundle.folder, "--out", out)
    assert (status, told) == (0, [])
    assert content(folder) == before
    assert sorted(content(out)) == sorted(f"{n}.{kind}" for n in range(FRAMES) for kind in ("json", "png"))
    segmenter = polypseg.load(bundle.folder, runtime="torch", device="cpu", precision="fp32")
    polyps = 0
    for file in folder.iterdir():
        expected = segmenter.segment(read_frame(file))
        np.testing.assert_array_equal(read_mask(out / f"{file.stem}.png"), expected.mask)
        record = json.loads((out / f"{file.stem}.json").read_text(encoding="utf-8"))
        assert record["source"] == file.name
        assert (record["width"], record["height"]) == expected.mask.shape[::-1]
        assert record["model"] == bundle.hash and record["threshold"] == bundle.threshold
        assert [polyp["area"] for polyp in record["polyps"]] == [polyp.area for polyp in expected.polyps]
        polyps += len(expected.polyps)
    assert polyps > FRAMES  # the comparison compares something
    assert f"{out}: {FRAMES} pictures" in printed and f" {polyps} polyps" in printed
    assert len(printed.splitlines()) == 1


def test_a_turned_photograph_gives_an_upright_mask(tmp_path: Path, bundle: ModelBundle) -> None:
    frame, _ = phantom.draw(1, 60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned clockwise
    (tmp_path / "in").mkdir()
    Image.fromarray(np.rot90(frame)).save(tmp_path / "in" / "turned.png", exif=exif)
    Image.fromarray(frame).save(tmp_path / "in" / "upright.png")
    assert predict([str(tmp_path / "in")], model=[str(bundle.folder)], out=tmp_path / "out", **EXACT) == 0
    turned, upright = (read_mask(tmp_path / "out" / f"{name}.png") for name in ("turned", "upright"))
    assert turned.shape == (60, 80) and turned.any()
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_everything_by_choice(batch_size: int, folder: Path, tmp_path: Path, bundle: ModelBundle) -> None:
    out = tmp_path / "out"
    status = predict(
        [str(folder)], model=[str(bundle.folder)], out=out, save=OUTPUTS, batch_size=batch_size, **EXACT
    )  # fmt: skip
    assert status == 0
    kinds = (".png", ".json", ".geojson", ".overlay.jpg", ".probability.png")
    expected = {f"{number}{kind}" for number in range(FRAMES) for kind in kinds} | {"coco.json", "predictions.csv"}
    assert set(content(out)) == expected
    coco = json.loads((out / "coco.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in coco["images"]] == [f"{n}.{('png', 'jpg', 'bmp')[n % 3]}" for n in range(6)]
    for image in coco["images"]:
        number = Path(image["file_name"]).stem
        mask = read_mask(out / f"{number}.png")
        areas = [one["area"] for one in coco["annotations"] if one["image_id"] == image["id"]]
        assert sum(areas) == mask.sum()
        levels = cv2.imread(str(out / f"{number}.probability.png"), cv2.IMREAD_UNCHANGED)
        assert levels is not None
        near = np.abs(levels / 65535 - bundle.threshold) < 1e-5
        above = levels / 65535 >= bundle.threshold
        assert above[mask & ~near].all()
        # A region above the threshold that is no polyp lies outside the field of view, or most of it does.
        outside = outside_of(read_frame(folder / image["file_name"]))
        count, labels = cv2.connectedComponents((above & ~mask & ~near).astype(np.uint8), connectivity=8)
        assert count == 1 or (outside is not None and outside.shape == mask.shape)
        assert all(outside[labels == label].mean() > 0.5 for label in range(1, count))
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["source"] for row in rows)) == [image["file_name"] for image in coco["images"]]
    assert sum(row["polyp"] != "" for row in rows) == len(coco["annotations"])


def test_an_ensemble_and_augmentation_are_recorded(folder: Path, tmp_path: Path, bundle: ModelBundle) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle.folder, other)
    ModelBundle.load(other).update(threshold=0.5)
    options = {**EXACT, "tta": "hflip"}
    predict([str(folder / "0.png")], model=[str(bundle.folder), str(other)], out=tmp_path / "out", **options)
    record = json.loads((tmp_path / "out" / "0.json").read_text(encoding="utf-8"))
    assert record["model"] == f"{bundle.hash}+{ModelBundle.load(other).hash}"
    assert record["tta"] == "hflip" and record["threshold"] == pytest.approx((0.565 + 0.5) / 2)
    segmenter = polypseg.load(
        [bundle.folder, other], runtime="torch", device="cpu", precision="fp32", tta="hflip"
    )  # fmt: skip
    expected = segmenter.segment(read_frame(folder / "0.png")).mask
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "0.png"), expected)


def test_names_with_spaces_and_accents(tmp_path: Path, bundle: ModelBundle, folder: Path) -> None:
    (tmp_path / "Prüfung 1").mkdir()
    names = [unicodedata.normalize(form, name) for form, name in (("NFC", "Größe ü 中"), ("NFD", "polyp é"))]
    for name in names:
        shutil.copy(folder / "0.png", tmp_path / "Prüfung 1" / f"{name}.png")
    out = tmp_path / "aus gabe"
    save = ["mask", "json", "csv"]
    assert predict([str(tmp_path / "Prüfung 1")], model=[str(bundle.folder)], out=out, save=save, **EXACT) == 0  # type: ignore[arg-type]
    assert set(content(out)) == {f"{name}.{kind}" for name in names for kind in ("png", "json")} | {"predictions.csv"}
    assert json.loads((out / f"{names[0]}.json").read_text(encoding="utf-8"))["source"] == f"{names[0]}.png"


def test_dicom_frames_get_masks_and_a_segmentation(tmp_path: Path, bundle: ModelBundle, folder: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    from pydicom.data import get_testdata_file

    from polypseg.io.dicom import read_dicom

    shutil.copy(str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)), folder / "two")
    shutil.copy(str(get_testdata_file("SC_rgb_small_odd.dcm", download=False)), folder / "one.dcm")
    out = tmp_path / "out"
    options = {"model": [str(bundle.folder)], "out": out, "save": ["mask", "json", "coco"], **EXACT}
    assert predict([str(folder)], **options) == 0
    stems = ["one", "two-0001", "two-0002", *map(str, range(FRAMES))]
    kinds = ("png", "json")
    assert set(content(out)) == {f"{stem}.{kind}" for stem in stems for kind in kinds} | {
        "one.seg.dcm", "two.seg.dcm", "coco.json",
    }  # fmt: skip
    segmenter = polypseg.load(bundle.folder, runtime="torch", device="cpu", precision="fp32")
    for index, frame in enumerate(read_dicom(folder / "two")):
        mask = read_mask(out / f"two-{index + 1:04d}.png")
        np.testing.assert_array_equal(mask, segmenter.segment(frame).mask)
        record = json.loads((out / f"two-{index + 1:04d}.json").read_text(encoding="utf-8"))
        assert (record["source"], record["frame"]) == ("two", index)
    seg = pydicom.dcmread(out / "one.seg.dcm")
    assert seg.SOPClassUID.name == "Segmentation Storage"
    marked = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns).any(0)
    np.testing.assert_array_equal(marked, read_mask(out / "one.png"))
    before = content(out)
    (out / "two.seg.dcm").unlink()
    assert predict([str(folder)], resume=True, **options) == 0
    assert set(content(out)) == set(before)
    assert content(out)["coco.json"] == before["coco.json"]


def test_a_dicom_file_that_cannot_be_read_is_told_and_the_others_are_done(
    folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    from pydicom.data import get_testdata_file

    whole = Path(str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))).read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-900])
    (folder / "header.dcm").write_bytes(whole[:300])
    status, _, told = run(folder, "--model", bundle.folder, "--out", tmp_path / "out")
    assert status == 1
    assert len(told) == 3 and told[-1].startswith(f"2 of {FRAMES + 2} could not be read")
    assert {line.split(": ")[0] for line in told[:2]} == {str(folder / "cut.dcm"), str(folder / "header.dcm")}
    assert {f"{number}.png" for number in range(FRAMES)} <= set(content(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.seg.dcm"))


def clip(path: Path, frames: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (80, 64))
    for number in range(frames):
        writer.write(phantom.draw(number, 64, 80)[0][..., ::-1])
    writer.release()
    return path


def test_videos_and_images_in_one_run(folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run) -> None:
    clip(folder / "exam.mp4")
    (folder / "no video.mp4").write_text("text")
    out = tmp_path / "out"
    status, printed, told = run(folder, "--model", bundle.folder, "--out", out)
    assert status == 1
    assert len(told) == 2 and told[0].startswith(f"{folder / 'no video.mp4'}: ")
    assert told[1].startswith(f"1 of {FRAMES + 2} could not be read")
    assert f"{FRAMES} pictures" in printed and "exam.mp4: 5 frames" in printed
    expected = {f"{number}.{kind}" for number in range(FRAMES) for kind in ("png", "json")}
    assert set(content(out)) == expected | {"exam.mp4", "exam.jsonl", "exam.timeline.json"}
    status, _, told = run(folder / "exam.mp4", "--model", bundle.folder, "--out", out)
    assert status == 1 and "is there already" in told[0]
    assert run(folder / "exam.mp4", "--model", bundle.folder, "--out", out, "--resume")[0] == 0
    out = tmp_path / "without overlay"
    assert run(folder / "exam.mp4", "--model", bundle.folder, "--out", out, "--save", "json")[0] == 0
    assert set(content(out)) == {"exam.jsonl", "exam.timeline.json"}


CONTAINERS = {"ts": "libx264", "mpg": "mpeg2video", "mp4": "libx264", "avi": "mpeg4", "mkv": "libx264"}


def write_whole(path: Path, codec: str, frames: int = 24) -> bytes:
    """A video of frames that compress badly, so that each takes its share of the file; its content."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as file:
        stream: Any = file.add_stream(codec, rate=25, options={"crf": "12"} if codec == "libx264" else {"qmax": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 80, 64, "yuv420p", 2_000_000
        for number in range(frames):
            noise = cv2.resize(rng.normal(0, 40, (16, 20, 3)), (80, 64))
            pixels = (phantom.draw(number // 6, 64, 80)[0] + noise).clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTAINERS)
def test_damaged_videos_are_predicted_as_far_as_they_go_and_told(
    kind: str, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    content = write_whole(folder / f"whole.{kind}", CONTAINERS[kind])
    with av.open(str(folder / f"whole.{kind}")) as file:  # of several frames in one packet of an .mpg the first has one
        begins = [packet.pos for packet in file.demux(video=0) if packet.pos is not None and packet.size]
    damaged = {}  # from where on, bytes
    for percent in (10, 50, 90):
        end = len(content) * percent // 100
        if any(0 <= begin - end < 3 * 188 for begin in begins):  # where a frame ends, nothing tells of a cut
            end -= 188
        (folder / f"cut-{percent}.{kind}").write_bytes(content[:end])
        damaged[f"cut-{percent}"] = end
    damaged["hole"] = middle = len(content) // 2
    (folder / f"hole.{kind}").write_bytes(content[:middle] + bytes(3000) + content[middle + 3000 :])
    status, printed, told = run(folder, "--model", bundle.folder, "--out", out, "--save", "json")
    assert status == 1 and len(told) == 5 and told[-1] == "4 of 5 could not be read, or not to the end"
    lines = {Path(line.split(": ")[0]).stem: line.split(": ", 1)[1] for line in told[:-1]}
    assert sorted(lines) == ["cut-10", "cut-50", "cut-90", "hole"]

    def records(stem: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (out / f"{stem}.jsonl").read_text().splitlines()]

    whole = records("whole")
    assert len(whole) == 24 and json.loads((out / "whole.timeline.json").read_text())["problem"] is None
    for stem, line in lines.items():
        if not (out / f"{stem}.jsonl").exists():  # not even one frame, or no index
            assert stem == "cut-10" and re.match("contains no frame|is no video|is an MP4 cut off", line)
            continue
        found = records(stem)
        assert f"{stem}.{kind}: {len(found)} frames" in printed
        timeline = json.loads((out / f"{stem}.timeline.json").read_text())
        assert timeline["frames"] == len(found) and timeline["problem"].endswith(line)
        if stem == "hole":
            assert re.match(r"is damaged at [01]\.\d s|is cut off after", line)
        else:
            assert line.startswith(f"is cut off after {len(found)} frames")
        there = sum(begin < damaged[stem] for begin in begins) - 1
        assert there - 1 <= len(found) <= 24
        same = max(0, there - 3)  # reordered frames at the cut may be spoilt
        assert [{**one, "source": ""} for one in found[:same]] == [{**one, "source": ""} for one in whole[:same]]
    assert sorted(file.name for file in out.iterdir() if ".part" in file.name) == []


@pytest.mark.parametrize(
    ("sources", "live", "camera"),
    [(["camera:1"], False, 1), ([], True, 0), (["rtsp://host"], True, "rtsp://host"), (["clip.mp4"], True, "clip.mp4")],
)
def test_a_camera_is_run_live(
    sources: list[str], live: bool, camera: int | str, tmp_path: Path, bundle: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "clip.mp4")
    called: list[tuple[Any, ...]] = []

    def run_live(segmenter: Any, camera: int | str, out: Path, options: PredictOptions) -> None:
        called.append((segmenter.bundle.hash, camera, out, options.overlay, options.smoothing))

    monkeypatch.setattr("polypseg.pipeline.live.run_live", run_live)
    assert (
        predict(sources, model=[str(bundle.folder)], out="out", live=live, save=["json"], smoothing=0.5, **EXACT) == 0
    )
    assert called == [(bundle.hash, camera, Path("out"), False, 0.5)]


# ---- bad input ------------------------------------------------------------------------------------------

BAD: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty": ("bad.png", lambda good: b"", "is empty"),
    "text": ("bad.jpg", lambda good: b"this is no picture", "is not an image"),
    "cut": ("bad.png", lambda good: good[: len(good) // 2], "is damaged"),
    "only a signature": ("bad.png", lambda good: good[:8], "cannot be read|is not an image"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bad_image_is_told_and_the_others_are_done(
    name: str, batch_size: int, folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    file, spoil, says = BAD[name]
    options = ("--model", bundle.folder, "--save", "mask", "json", "coco", "csv", "--batch_size", batch_size)
    run(folder, *options, "--out", tmp_path / "good")
    (folder / file).write_bytes(spoil((folder / "0.png").read_bytes()))
    status, printed, told = run(folder, *options, "--out", tmp_path / "out")
    assert status == 1
    assert len(told) == 2, told
    assert told[0].startswith(f"{folder / file}: ")
    assert any(part in told[0] for part in says.split("|"))
    assert told[1].startswith(f"1 of {FRAMES + 1} could not be read")
    assert f"{FRAMES} pictures" in printed
    assert content(tmp_path / "out") == content(tmp_path / "good")


def test_a_name_too_long_for_its_outputs_is_told_and_the_others_are_done(
    folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    """Of 250 bytes with its ending, which a folder can take: the mask's name fits, the overlay's does not."""
    fits, long = "m" * 236, "é" * 123
    shutil.copy(folder / "0.png", folder / f"{fits}.png")
    shutil.copy(folder / "0.png", folder / f"{long}.png")
    options = ("--model", bundle.folder, "--save", "mask", "overlay", "--out", tmp_path / "out")
    status, printed, told = run(folder, *options)
    assert status == 1 and f"{FRAMES + 1} pictures" in printed
    assert len(told) == 2 and told[0].startswith(f"{folder / long}.png: its outputs' names would be too long; rename")
    assert {f"{fits}.png", f"{fits}.overlay.jpg", "1.png"} <= set(content(tmp_path / "out"))
    assert not [name for name in content(tmp_path / "out") if name.startswith((".", "é"))]


def test_two_runs_in_one_folder_are_refused(folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run) -> None:
    out = tmp_path / "out"
    for options in ((), ("--engine", "local")):
        with locked(out):
            status, _, told = run(folder, "--model", bundle.folder, "--out", out, *options)
        assert status == 1 and told == [
            f"polypseg: {out}: another polypseg writes here; wait until it has ended, or choose another --out"
        ]
    assert not out.exists()


def test_only_bad_images(tmp_path: Path, bundle: ModelBundle, run: Run) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    status, _, told = run(tmp_path / "a.png", tmp_path / "b.png", "--model", bundle.folder, "--out", tmp_path / "out")
    assert status == 1 and len(told) == 3
    assert not (tmp_path / "out").exists()  # nothing was to be written


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run) -> None:
    (folder / "0.png").chmod(0)
    status, _, told = run(folder, "--model", bundle.folder, "--out", tmp_path / "out")
    assert status == 1 and "0.png: cannot be read (Permission denied)" in told[0]
    (tmp_path / "closed").mkdir(mode=0o500)
    status, _, told = run(folder / "1.jpg", "--model", bundle.folder, "--out", tmp_path / "closed")
    assert status == 1 and "no permission to write here" in told[0]


def test_an_unreadable_file_is_told_and_the_others_are_done(
    folder: Path, tmp_path: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same as root, to whom permissions mean nothing."""

    def refuse(path: Path) -> str:
        if path.name == "2.bmp":
            raise PermissionError(13, "Permission denied", str(path))
        return "digest"

    monkeypatch.setattr("polypseg.pipeline.flow.sha256_file", refuse)
    assert predict([str(folder)], model=[str(bundle.folder)], out=tmp_path / "out", **EXACT) == 1
    assert f"{folder / '2.bmp'}: cannot be read (Permission denied)" in caplog.text
    assert len(content(tmp_path / "out")) == 2 * (FRAMES - 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_ends_the_run_with_one_line_and_keeps_what_is_complete(
    number: int, folder: Path, tmp_path: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:  # fmt: skip
    left = 5
    fsync = os.fsync

    def fill(handle: int) -> None:
        nonlocal left
        left -= not stat.S_ISDIR(os.fstat(handle).st_mode)  # files alone; folders are synced too
        if left < 0:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fill)
    out = tmp_path / "out"
    status, _, told = run(folder, "--model", bundle.folder, "--out", out)
    assert status == 1
    assert len(told) == 1 and told[0].startswith(f"polypseg: {out}")
    assert ("the disk is full" if number == errno.ENOSPC else "no permission to write here") in told[0]
    assert len(content(out)) == 5 and not list(out.glob(".*"))
    monkeypatch.undo()
    assert run(folder, "--model", bundle.folder, "--out", out, "--resume")[0] == 0
    run(folder, "--model", bundle.folder, "--out", tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_an_out_that_is_a_file_is_told(folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run) -> None:
    (tmp_path / "out").write_text("a thesis")
    status, _, told = run(folder, "--model", bundle.folder, "--out", tmp_path / "out")
    assert status == 1 and len(told) == 1 and told[0].startswith(f"polypseg: {tmp_path / 'out'}: cannot be written")
    assert (tmp_path / "out").read_text() == "a thesis"


@pytest.mark.parametrize(
    ("first", "second", "save"),
    [
        ("a/1.png", "b/1.png", ("mask",)),
        ("a/1.png", "a/1.jpg", ("json",)),
        ("a/1.png", "b/1.mp4", ("json",)),  # a name of a video, which it need not be to be in the way
        ("a/X.png", "b/x.png", ("mask",)),  # one file on Windows and macOS
        ("a/1.png", "b/1.probability.png", ("mask", "probability")),
    ],
)
def test_two_sources_of_one_name_are_refused_before_anything_is_written(
    first: str, second: str, save: tuple[Any, ...], tmp_path: Path, folder: Path
) -> None:
    for name in (first, second):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "0.png", tmp_path / name)
    named = [str(tmp_path / name) for name in (first, second)]
    with pytest.raises(PolypsegError) as error:
        predict(named, model=["no such model"], out=tmp_path / "out", save=save, **EXACT)
    assert all(name in str(error.value) for name in named)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_source_named_like_a_file_of_the_run_is_refused(tmp_path: Path, folder: Path) -> None:
    shutil.copy(folder / "0.png", folder / "coco.png")
    with pytest.raises(PolypsegError, match=r"coco.png: would be written to .*coco.json, as what the whole run"):
        predict([str(folder)], out=tmp_path / "out", save=["json", "coco"], **EXACT)


def test_originals_are_never_overwritten(folder: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    before = content(folder)
    for named, out in (
        ([folder], folder),
        ([folder / "0.png"], folder),
        ([folder], folder / ".." / "in"),
    ):
        with pytest.raises(PolypsegError, match="--out"):
            predict(list(map(str, named)), model=[str(bundle.folder)], out=out, overwrite=True, **EXACT)
    assert content(folder) == before
    out = folder / "predictions"  # inside the source's folder is fine, as its sub-folders are no sources
    for _ in range(2):
        assert predict([str(folder)], model=[str(bundle.folder)], out=out, overwrite=True, **EXACT) == 0
    assert len(content(out)) == 2 * FRAMES
    shutil.rmtree(out)
    assert content(folder) == before


def test_an_output_that_is_a_link_to_an_original_is_replaced_and_not_written_through(
    folder: Path, bundle: ModelBundle, tmp_path: Path
) -> None:
    before = content(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.png").symlink_to(folder / "0.png")
    with pytest.raises(PolypsegError, match="is there already"):
        predict([str(folder)], model=[str(bundle.folder)], out=tmp_path / "out", **EXACT)
    assert predict([str(folder)], model=[str(bundle.folder)], out=tmp_path / "out", overwrite=True, **EXACT) == 0
    assert content(folder) == before
    assert not (tmp_path / "out" / "0.png").is_symlink()


# ---- overwriting and resuming ---------------------------------------------------------------------------


def test_existing_outputs_are_kept_unless_told_otherwise(
    folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "3.png").write_text("a thesis")
    status, _, told = run(folder, "--model", bundle.folder, "--out", out)
    assert status == 1
    assert told == [f"polypseg: {out / '3.png'}: is there already; use --resume, --overwrite or another --out"]
    assert content(out) == {"3.png": b"a thesis"}
    assert run(folder, "--model", bundle.folder, "--out", out, "--overwrite")[0] == 0
    assert len(content(out)) == 2 * FRAMES
    read_mask(out / "3.png")


def test_resuming_makes_what_is_missing_and_keeps_the_rest(
    folder: Path, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    out = tmp_path / "out"
    options = ("--model", bundle.folder, "--out", out, "--save", *OUTPUTS)
    run(folder, *options)
    whole = content(out)
    for gone in ("1.json", "2.png", "4.overlay.jpg", "coco.json", "predictions.csv"):
        (out / gone).unlink()
    (out / ".2.png.abcdefgh.part").write_bytes(b"half")  # as a killed writer leaves it
    (out / ".other.part").write_bytes(b"somebody else's")
    kept = {file: file.stat().st_mtime_ns for file in out.iterdir() if file.name[0] in "035"}
    status, printed, told = run(folder, *options, "--resume")
    assert (status, told) == (0, [])
    assert f"{FRAMES} pictures (3 kept from before)" in printed
    (out / ".other.part").unlink()
    assert content(out) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    status, printed, _ = run(folder, *options, "--resume")
    assert f"({FRAMES} kept from before)" in printed and content(out) == whole


def test_shapes_are_in_the_json_only_for_coco_and_are_added_on_resuming(
    folder: Path, tmp_path: Path, bundle: ModelBundle
) -> None:
    options: dict[str, Any] = {"model": [str(bundle.folder)], "out": tmp_path, **EXACT}
    predict([str(folder)], save=["json"], **options)
    polyps = [polyp for file in tmp_path.glob("*.json") for polyp in json.loads(file.read_text())["polyps"]]
    assert polyps and not any("segmentation" in polyp for polyp in polyps)
    predict([str(folder)], save=["json", "coco"], resume=True, **options)
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert len(annotations) == len(polyps) and all(one["segmentation"] for one in annotations)


def test_resuming_takes_only_what_the_same_model_made_of_the_same_file(
    folder: Path, tmp_path: Path, bundle: ModelBundle
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": [str(bundle.folder)], "out": out, **EXACT}
    predict([str(folder)], **options)
    before = content(out)
    other = tmp_path / "other"
    shutil.copytree(bundle.folder, other)
    ModelBundle.load(other).update(threshold=0.5)
    for change, says in (
        ({"model": [str(other)]}, "made with another model"),
        ({"tta": "hflip"}, "made with another tta"),
        ({"precision": "bf16"}, "made with another precision"),
    ):
        with pytest.raises(PolypsegError, match=says) as error:
            predict([str(folder)], resume=True, **{**options, **change})
        assert str(out) in str(error.value) and len(str(error.value).splitlines()) == 1
    shutil.copy(folder / "0.png", folder / "1.jpg")
    with pytest.raises(PolypsegError, match=r"1\.json: was made with another source_sha256"):
        predict([str(folder)], resume=True, **options)
    (out / "0.json").write_text("[1, 2]")
    with pytest.raises(PolypsegError, match=r"0\.json: was made with another"):
        predict([str(folder / "0.png")], resume=True, **options)
    (out / "0.json").write_bytes(before["0.json"])
    assert content(out) == before


@pytest.mark.parametrize(
    "options",
    [
        {"resume": True, "overwrite": True}, {"resume": True, "save": ["mask"]}, {"batch_size": 0}, {"smoothing": 1.0},
        {"live": True},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_contradict_are_refused(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        predict([str(folder)], out=tmp_path / "out", **options)
    assert str(error.value).startswith("--") and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


SLOWLY = """
import sys, time
from polypseg import cli
from polypseg.pipeline import stills
write = stills.write_frame
def slowly(*arguments):
    time.sleep(0.05)
    write(*arguments)
stills.write_frame = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_at_any_moment_it_goes_on_to_the_same_outputs(
    how: signal.Signals, tmp_path: Path, bundle: ModelBundle, run: Run
) -> None:
    data = phantom.write(tmp_path / "phantom", 30, seed=2, height=60, width=80)
    out = tmp_path / "out"
    options = [data, "--model", bundle.folder, "--out", out, "--save", *OUTPUTS]
    exact = ["--runtime", "torch", "--device", "cpu", "--precision", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "predict", *map(str, options), *exact],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.json"))) < 5:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    records = {file.name: file.read_bytes() for file in out.glob("*.json")}
    assert 5 <= len(records) < 30
    assert not (out / "coco.json").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert error.splitlines()[-1].startswith("polypseg: interrupted") and "--resume" in error
        assert "Traceback" not in error
        assert len(content(out)) == 5 * len(records)  # what was begun is whole
    status, printed, _ = run(*options, "--resume")
    assert status == 0 and f"30 pictures ({len(records)} kept from before)" in printed
    run(*options[: -len(OUTPUTS) - 3], "--out", tmp_path / "whole", "--save", *OUTPUTS)
    assert content(out) == content(tmp_path / "whole")
