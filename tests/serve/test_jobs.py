"""Jobs: what is accepted is worked through once and whole, whatever happens between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.files import disk_error
from polypseg.io.outputs import frame_record, with_shapes
from polypseg.io.pictures import read_frame
from polypseg.io.video_outputs import VideoOutputs
from polypseg.pipeline import stills
from polypseg.pipeline.video import predict_video
from polypseg.serve import jobs as module
from polypseg.serve.decoding import Decoders
from polypseg.serve.jobs import MOST_STARTS, Jobs
from polypseg.serve.settings import Settings
from polypseg.serve.state import COLUMNS, Job, Table, open_state

DECODERS: dict[str, Decoders] = {}


class Held:
    """A Segmenter that waits before each frame, from a certain one on, until it is let go."""

    def __init__(self, segmenter: Any, after: int) -> None:
        self._segmenter, self._after = segmenter, after
        self.seen = 0
        self.reached, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def probabilities(self, frames: Any, batch_size: int = 1) -> Iterator[Any]:
        for probability in self._segmenter.probabilities(frames, batch_size):
            self.seen += 1
            if self.seen > self._after:
                self.reached.set()
                assert self.go.wait(30)
            yield probability


@pytest.fixture(scope="module", autouse=True)
def decoders() -> Iterator[Decoders]:
    """Processes for all tests here."""
    settings = Settings(Path())
    processes = DECODERS.setdefault("all", Decoders(settings.decode_seconds, settings.decode_memory))
    yield processes
    processes.close()


def opened(segmenter: Any, state: Path, **limits: Any) -> Jobs:
    return Jobs(segmenter, Settings(state, **limits), open_state(state), DECODERS["all"])


@contextmanager
def working(segmenter: Any, state: Path, **limits: Any) -> Iterator[Jobs]:
    jobs = opened(segmenter, state, **limits)
    jobs.start()
    try:
        yield jobs
    finally:
        if isinstance(segmenter, Held):
            segmenter.go.set()
        jobs.stop(30)
        assert not jobs._thread.is_alive()


def submit(jobs: Jobs, *files: Path | tuple[str, bytes], smoothing: float = 0.0) -> Job:
    pairs = [(file.name, file.read_bytes()) if isinstance(file, Path) else file for file in files]
    return jobs.submit([(name, io.BytesIO(content)) for name, content in pairs], smoothing)


def ended(jobs: Jobs, job: Job, seconds: float = 30) -> Job:
    end = time.monotonic() + seconds
    while (found := jobs.get(job.id)).state not in ("done", "failed", "cancelled"):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def files_of(state: Path, job: Job) -> set[str]:
    folder = state / "jobs" / job.id
    return {name for _, _, names in os.walk(folder) for name in names}  # folders may vanish meanwhile


def test_a_video_becomes_what_predict_makes_of_it(segmenter: Any, clip: Path, tmp_path: Path) -> None:
    with working(segmenter, tmp_path / "state") as jobs:
        job = submit(jobs, clip, smoothing=0.5)
        assert (job.kind, job.total, job.names) == ("video", 30, ["clip.mp4"])
        found = ended(jobs, job)
        assert (found.state, found.done, found.error) == ("done", 30, None)
        assert set(found.files) == {"clip.mp4", "clip.jsonl", "clip.timeline.json"}
        predict_video(segmenter, clip, tmp_path / "alone", smoothing=0.5)
        for name in ("clip.jsonl", "clip.timeline.json"):
            assert jobs.file(job.id, name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert files_of(tmp_path / "state", job) == set(found.files)  # the upload is gone


def test_a_batch_tells_of_what_it_could_not_read_and_goes_on(
    segmenter: Any, clip: Path, frames: list[Path], tmp_path: Path
) -> None:
    broken = ("broken.png", frames[0].read_bytes()[:200])
    with working(segmenter, tmp_path / "state") as jobs:
        job = submit(jobs, frames[0], broken, clip, frames[1])
        assert (job.kind, job.total) == ("batch", 33)
        found = ended(jobs, job)
        assert found.state == "done" and found.done == 33
        assert found.error is not None and found.error.startswith("broken.png: ") and str(tmp_path) not in found.error
        stems = [frames[0].stem, frames[1].stem]
        stills = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".overlay.jpg", ".json")}
        expected = stills | {"clip.mp4", "clip.jsonl", "clip.timeline.json", "coco.json", "predictions.csv"}
        assert set(found.files) == expected
        frame = read_frame(frames[1])
        record = json.loads(jobs.file(job.id, f"{stems[1]}.json").read_text())
        answer = segmenter.segment(frame)
        alone = with_shapes(frame_record(answer, source=frames[1].name, model=segmenter.hash), answer)
        assert {key: record[key] for key in alone} == alone
        assert len(json.loads(jobs.file(job.id, "coco.json").read_text())["images"]) == 2


def test_files_of_one_name_are_kept_apart(segmenter: Any, frames: list[Path], tmp_path: Path) -> None:
    with working(segmenter, tmp_path / "state") as jobs:
        contents = [frame.read_bytes() for frame in frames[:3]]
        job = submit(jobs, ("a.jpg", contents[0]), ("a.jpg", contents[1]), ("coco.jpg", contents[2]))
        found = ended(jobs, job)
        assert found.error is None and {"a.json", "1-a.json", "coco.json", "2-coco.json"} >= {
            name for name in found.files if name.endswith("a.json")
        }
        assert len(found.files) == 3 * 3 + 2 and found.done == 3
        digests = {json.loads(jobs.file(job.id, name).read_text())["source_sha256"] for name in ("a.json", "1-a.json")}
        assert len(digests) == 2


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("a.txt", b"hello", 415),
        ("a.mp4", b"\0\0\0\x18ftypisom", 422),
        ("a.mp4", b"", 422),
        ("../../x.sh", b"#!/bin/sh", 415),
    ],
)
def test_what_is_no_video_or_image_is_not_taken_in(
    segmenter: Any, tmp_path: Path, name: str, content: bytes, status: int
) -> None:
    with working(segmenter, tmp_path / "state") as jobs:
        with pytest.raises(HTTPException) as refusal:
            submit(jobs, (name, content))
        assert refusal.value.status_code == status
        assert str(tmp_path) not in str(refusal.value.detail)
        assert jobs.page(1000) == [] and list((tmp_path / "state" / "jobs").iterdir()) == []


def test_limits_of_a_video(segmenter: Any, clip: Path, tmp_path: Path) -> None:
    for limits, says in (({"max_video_seconds": 1.0}, "longer than 1 s"), ({"max_pixels": 3071}, "3,071 pixels")):
        with working(segmenter, tmp_path / "state", **limits) as jobs:
            with pytest.raises(HTTPException, match=says) as refusal:
                submit(jobs, clip)
            assert refusal.value.status_code == 413


def test_a_job_is_cancelled_at_once_and_leaves_nothing_half_done(
    segmenter: Any, clip: Path, frames: list[Path], tmp_path: Path
) -> None:
    held = Held(segmenter, after=10)
    with working(held, tmp_path / "state") as jobs:
        job, waiting = submit(jobs, frames[0], clip), submit(jobs, clip)
        assert held.reached.wait(30)
        assert jobs.get(job.id).state == "running" and len(jobs.get(job.id).files) == 3
        assert [one.state for one in (jobs.cancel(waiting.id), jobs.cancel(job.id)) if one] == ["cancelled"] * 2
        held.go.set()
        end = time.monotonic() + 30
        while files_of(tmp_path / "state", job) != set(jobs.get(job.id).files):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(jobs.get(job.id).files) == 3 and files_of(tmp_path / "state", waiting) == set()
        assert jobs.cancel(job.id) is None
        assert not (tmp_path / "state" / "jobs" / job.id).exists()
        with pytest.raises(HTTPException):
            jobs.get(job.id)
        assert ended(jobs, submit(jobs, frames[1])).state == "done"  # and it works on


def test_a_stopped_service_goes_on_where_it_was(segmenter: Any, clip: Path, tmp_path: Path) -> None:
    held = Held(segmenter, after=13)
    with working(held, tmp_path / "state") as jobs:
        job = submit(jobs, clip)
        assert held.reached.wait(30)
        with jobs._changed:
            jobs._stopping = True
    again = Held(segmenter, after=1000)
    with working(again, tmp_path / "state") as jobs:
        found = ended(jobs, job)
        assert (found.state, found.done) == ("done", 30)
        assert again.seen < 30
        predict_video(segmenter, clip, tmp_path / "alone")
        assert jobs.file(job.id, "clip.jsonl").read_bytes() == (tmp_path / "alone" / "clip.jsonl").read_bytes()


def test_with_another_model_a_job_begins_anew(segmenter: Any, exported: Any, clip: Path, tmp_path: Path) -> None:
    import polypseg

    held = Held(segmenter, after=13)
    with working(held, tmp_path / "state") as jobs:
        job = submit(jobs, clip)
        assert held.reached.wait(30)
        with jobs._changed:
            jobs._stopping = True
    other = polypseg.load(exported.folder, runtime="onnx")
    with working(other, tmp_path / "state") as jobs:
        assert ended(jobs, job).state == "done"
        assert json.loads(jobs.file(job.id, "clip.timeline.json").read_text())["runtime"] == "onnx"


def test_deaths_of_the_service_end_no_job_but_let_others_go_first(
    segmenter: Any, clip: Path, frames: list[Path], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    jobs = opened(segmenter, state)
    first, second, third = submit(jobs, clip), submit(jobs, frames[0]), submit(jobs, frames[1])
    jobs._table.change(first.id, state="running", starts=MOST_STARTS + 1)  # as those deaths left it
    jobs._table.change(third.id, state="running", starts=MOST_STARTS)
    jobs._began = time.monotonic() - 1000  # a while ago
    order = []
    for _ in range(3):
        jobs._current = None
        taken = jobs._take()
        assert taken is not None
        order.append(taken.id)
        jobs._table.change(taken.id, state="done")
    assert order == [third.id, second.id, first.id]
    jobs._table.change(first.id, state="running")
    jobs._table.close()
    with working(segmenter, state) as jobs:
        assert jobs._pause(jobs.get(first.id)) > 0
        jobs._began = time.monotonic() - 1000
        with jobs._changed:
            jobs._changed.notify()
        assert ended(jobs, first).state == "done"


REFUSALS: dict[str, Exception] = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "broken": OSError(errno.EIO, "Input/output error"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "table": sqlite3.OperationalError("disk I/O error"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_disk_refuses_waits_and_goes_on(
    segmenter: Any, clip: Path, frames: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At every place: where a video's lines, a still's files and the job's progress are written."""
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(module, "LONGEST_RETRY", 0.01)
    refusing, reached = threading.Event(), threading.Event()

    def unless_refusing(function: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            if refusing.is_set() and threading.current_thread() is jobs._thread:
                reached.set()
                error = REFUSALS[kind]
                if isinstance(error, sqlite3.Error):
                    raise error
                raise disk_error(tmp_path / "state" / "x", error) from error
            return function(*arguments, **options)

        return called

    with working(segmenter, tmp_path / "state") as jobs:
        if kind == "table":
            monkeypatch.setattr(Table, "_execute", unless_refusing(Table._execute))
        else:
            monkeypatch.setattr(stills, "write_frame", unless_refusing(stills.write_frame))
            monkeypatch.setattr(VideoOutputs, "add", unless_refusing(VideoOutputs.add))
        for files in ([frames[0], clip], [clip]):
            reached.clear()
            refusing.set()
            job = submit(jobs, *files)
            assert reached.wait(60)
            end = time.monotonic() + 30
            while jobs.trouble is None:
                assert time.monotonic() < end
            told = jobs.get(job.id)
            assert told.state in ("queued", "running") and jobs.alive
            assert kind == "table" or (told.error or "").startswith("waits: ")
            assert str(tmp_path) not in str(told.error)
            refusing.clear()
            found = ended(jobs, job)
            assert (found.state, found.error) == ("done", None)
            assert jobs.trouble is None and len(found.files) == (8 if len(files) > 1 else 3)


def test_cancelling_does_not_wait_for_the_disk(
    segmenter: Any, frames: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        error = OSError(errno.ENOSPC, "No space left on device")
        raise disk_error(tmp_path / "x", error) from error

    with working(segmenter, tmp_path / "state") as jobs:
        with monkeypatch.context() as patched:
            patched.setattr(stills, "write_frame", full)
            job = submit(jobs, frames[0])
            end = time.monotonic() + 30
            while jobs.trouble is None:
                assert time.monotonic() < end
            assert jobs.cancel(job.id) is not None
        assert ended(jobs, submit(jobs, frames[1])).state == "done"
        assert files_of(tmp_path / "state", job) == set() and jobs.get(job.id).state == "cancelled"


def test_what_gave_no_result_keeps_its_upload_until_the_job_is_removed(
    segmenter: Any, frames: list[Path], tmp_path: Path
) -> None:
    broken = frames[0].read_bytes()[:200]
    with working(segmenter, tmp_path / "state") as jobs:
        job = submit(jobs, ("broken.jpg", broken), frames[1])
        assert ended(jobs, job).state == "done"
        alone = submit(jobs, ("broken.jpg", broken))
        assert ended(jobs, alone).state == "failed"
        ended(jobs, submit(jobs, frames[2]))  # by now the others are tidied up
        folder = tmp_path / "state" / "jobs"
        assert [path.name for path in sorted((folder / job.id / "in").rglob("*.jpg"))] == ["broken.jpg"]
        assert [path.name for path in (folder / alone.id).rglob("*.jpg")] == ["broken.jpg"]
        jobs.cancel(alone.id)
        assert not (folder / alone.id).exists()


def test_results_of_every_upload_stand_under_its_own_name(segmenter: Any, frames: list[Path], tmp_path: Path) -> None:
    sent = ["2-frame.jpg", "frame.jpg", "frame.jpg", "FRAME.jpg", "frame.png", "fra\u0301me.jpg", "fr\u00e1me.jpg"]
    contents = [frame.read_bytes() for frame in frames[: len(sent)]]
    with working(segmenter, tmp_path / "state") as jobs:
        found = ended(jobs, submit(jobs, *zip(sent, contents, strict=True)))
        assert found.names[:2] == sent[:2] and len(set(found.names)) == len(sent)
        assert len(found.files) == 3 * len(sent) + 2
        for name, content in zip(found.names, contents, strict=True):
            record = json.loads(jobs.file(found.id, f"{Path(name).stem}.json").read_text())
            assert record["source"] == name and record["source_sha256"] == hashlib.sha256(content).hexdigest()


def test_jobs_expire_and_come_in_pages(segmenter: Any, frames: list[Path], tmp_path: Path) -> None:
    with working(segmenter, tmp_path / "state") as jobs:
        known = [submit(jobs, frame).id for frame in frames[:3]]
        for identity in known:
            ended(jobs, jobs.get(identity))
        assert [job.id for job in jobs.page(2)] == known[:2] and [job.id for job in jobs.page(2, known[1])] == known[2:]
        assert jobs.page(2, known[2]) == []
        with pytest.raises(HTTPException, match="no such job"):
            jobs.page(2, "none")
        jobs._table.change(known[0], ended="2020-01-01T00:00:00+00:00")
    with working(segmenter, tmp_path / "state", keep_days=1) as jobs:
        late = ended(jobs, submit(jobs, frames[0]))
        assert [job.id for job in jobs.page(10)] == [*known[1:], late.id]
        assert not (tmp_path / "state" / "jobs" / known[0]).exists()


def test_a_video_is_kept_where_the_settings_say_so(segmenter: Any, clip: Path, tmp_path: Path) -> None:
    size = clip.stat().st_size
    for most in (0, size - 1, size):
        with working(segmenter, tmp_path / "state", keep_video_bytes=most) as jobs:
            found = ended(jobs, submit(jobs, clip))
        kept = jobs.upload(found)
        assert (kept is not None) is (most == size)
        uploads = list((tmp_path / "state" / "jobs" / found.id / "in").rglob("*.mp4"))
        assert uploads == ([kept] if kept else [])
    assert kept is not None and kept.read_bytes() == clip.read_bytes()
    with working(segmenter, tmp_path / "state", keep_video_bytes=size) as jobs:  # over a restart
        assert jobs.upload(jobs.get(found.id)) == kept and kept.is_file()
    with working(segmenter, tmp_path / "state") as jobs:  # and no longer than that
        assert jobs.upload(jobs.get(found.id)) is None and not kept.exists()


def test_a_kept_video_is_followed_anew_in_the_place_of_its_former_results(
    segmenter: Any, clip: Path, tmp_path: Path
) -> None:
    state, size = tmp_path / "state", clip.stat().st_size
    with working(segmenter, state, keep_video_bytes=size) as jobs:
        former = ended(jobs, submit(jobs, clip, smoothing=0.5))
    slow, asked = Held(segmenter, after=5), {"threshold": 0.4, "min_confidence": 0.6}
    with working(slow, state, keep_video_bytes=size) as jobs:
        given_up = jobs.again(former.id, {}, replace=True)
        assert slow.reached.wait(30)
        with pytest.raises(HTTPException, match="has not ended"):
            jobs.again(given_up.id, {})
        jobs.cancel(given_up.id)
        slow.go.set()
        assert ended(jobs, given_up).state == "cancelled" and jobs.get(former.id) == former  # nothing is lost
        found = ended(jobs, jobs.again(former.id, asked, replace=True))
        predict_video(segmenter.at(**asked), clip, tmp_path / "alone", smoothing=0.5)
        for name in ("clip.jsonl", "clip.timeline.json"):
            assert jobs.file(found.id, name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        kept = jobs.upload(found)
        assert kept is not None and kept.read_bytes() == clip.read_bytes()
        assert [job.id for job in jobs.page(10)] == [given_up.id, found.id]
        with pytest.raises(HTTPException, match="has ended"):  # who gives it up too late loses nothing
            jobs.cancel(found.id, only=True)
    assert not (state / "jobs" / former.id).exists() and kept.is_file()


def test_a_table_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    columns = ", ".join(f"{name} TEXT" for name in COLUMNS if name not in ("ended", "point", "replaces"))
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as old:
        old.execute(f"CREATE TABLE jobs ({columns})")
        row = ["1", "done", "batch", '["a.jpg"]', "0", "null", "{}", "1", "1", None, "2026-01-01", "0"]
        old.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", row)
        old.commit()
    table = Table(tmp_path / "jobs.sqlite")
    assert [(job.id, job.names, job.ended) for job in table.select()] == [("1", ["a.jpg"], None)]
    table.close()


def test_a_crash_fails_its_job_only(segmenter: Any, frames: list[Path], tmp_path: Path) -> None:
    class Broken(Held):
        def probabilities(self, frames: Any, batch_size: int = 1) -> Iterator[Any]:
            self.seen += 1
            if self.seen == 1:
                raise RuntimeError("the network broke")
            return super().probabilities(frames, batch_size)

    with working(Broken(segmenter, after=1000), tmp_path / "state") as jobs:
        first, second = submit(jobs, frames[0]), submit(jobs, frames[1])
        assert ended(jobs, first).state == "failed" and "RuntimeError" not in str(jobs.get(first.id).error)
        assert ended(jobs, second).state == "done"


def test_what_a_crash_left_without_a_row_is_removed(segmenter: Any, tmp_path: Path) -> None:
    stray = tmp_path / "state" / "jobs" / "0123" / "in" / "0"
    stray.mkdir(parents=True)
    (stray / "patient.mp4").write_bytes(b"x")
    with working(segmenter, tmp_path / "state"):
        assert not stray.exists()


def test_one_folder_is_worked_in_by_one_process(tmp_path: Path) -> None:
    table = Table(tmp_path / "jobs.sqlite")
    with pytest.raises(PolypsegError, match="another polypseg serve"):
        Table(tmp_path / "jobs.sqlite")
    table.close()
    Table(tmp_path / "jobs.sqlite").close()
    (tmp_path / "jobs.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(PolypsegError, match="no table of jobs"):
        Table(tmp_path / "jobs.sqlite")


def test_a_full_disk_refuses_a_job_and_keeps_none_of_it(
    segmenter: Any, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with working(segmenter, tmp_path / "state") as jobs:
        monkeypatch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(PolypsegError, match="disk is full"):
            submit(jobs, clip)
        assert jobs.page(1000) == [] and list((tmp_path / "state" / "jobs").iterdir()) == []


def test_dicom_of_several_frames(segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pydicom = pytest.importorskip("pydicom")
    pixels = np.random.default_rng(2).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.MultiFrameTrueColorSecondaryCaptureImageStorage, "1.2.3"
    data.PatientName = "Secret^Name"
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape[:3]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    pydicom.dcmwrite(tmp_path / "1.2.3", data, enforce_file_format=True)
    with working(segmenter, tmp_path / "state") as jobs:
        job = submit(jobs, tmp_path / "1.2.3")
        found = ended(jobs, job)
        assert (found.state, found.done, found.total) == ("done", 3, 3)
        record = json.loads(jobs.file(job.id, "1.2-0002.json").read_text())
        assert record["frame"] == 1
        mask = read_frame(jobs.file(job.id, "1.2-0002.png"))[..., 0] > 127
        assert (mask == segmenter.segment(pixels[1]).mask).all()
        assert all(b"Secret" not in jobs.file(job.id, name).read_bytes() for name in found.files)
