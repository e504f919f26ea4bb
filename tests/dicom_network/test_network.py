"""The whole way, with a real archive (Orthanc): images go in, their segmentations come back, each once."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate

from .conftest import SECRETS, Node, Orthanc, frames_of, free_port, picture, send, wait_for


def film(seed: int, frames: int, codec: str, container: str, syntax: uid.UID) -> Any:
    """A video as a processor sends it: encapsulated, in one fragment."""
    data = picture(seed, frames)
    content = io.BytesIO()
    with av.open(content, "w", format=container) as written:
        stream: Any = written.add_stream(codec, rate=25)
        stream.height, stream.width = data.Rows, data.Columns
        stream.pix_fmt = "yuv420p"
        for pixels in frames_of(data):
            written.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        written.mux(stream.encode())
    data.file_meta.TransferSyntaxUID = syntax
    data.PhotometricInterpretation, data.LossyImageCompression = "YBR_PARTIAL_420", "01"
    data.LossyImageCompressionRatio, data.LossyImageCompressionMethod = 20, "ISO_14496_10"
    data.PixelData = encapsulate([content.getvalue() + bytes(len(content.getvalue()) % 2)])
    data["PixelData"].is_undefined_length = True
    return data


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Any:
    """The same model in this process, fed with arrays: it knows nothing of DICOM."""
    import polypseg

    return polypseg.load(model)


def masks_in(path: Path, data: Any, count: int) -> NDArray[np.bool_]:
    """The masks in a segmentation, N×H×W, as highdicom reads them."""
    found = highdicom.seg.segread(path)
    if count == 1:
        pixels = found.get_pixels_by_source_instance([data.SOPInstanceUID])
    else:
        numbers = range(1, count + 1)
        pixels = found.get_pixels_by_source_frame(data.SOPInstanceUID, numbers, assert_missing_frames_are_empty=True)
    return np.asarray(pixels[..., 0], bool)


def segmentation_of(orthanc: Orthanc, data: Any, folder: Path) -> Path:
    """The one segmentation of an image, as soon as it is in the archive."""
    (name,) = wait_for(lambda: orthanc.segmentations().get(data.SOPInstanceUID))
    return orthanc.file(name, folder / "found.dcm")


def valid(path: Path) -> bool:
    """Whether the validator has nothing to say."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return done.stderr == "Segmentation\n"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("frames", [1, 3])
def test_an_image_comes_back_as_a_segmentation_of_the_same_study(
    node: Node, orthanc: Orthanc, segmenter: Any, tmp_path: Path, frames: int
) -> None:
    data = picture(20, frames)
    assert send(node.port, data) == [0]
    path = segmentation_of(orthanc, data, tmp_path)
    assert valid(path)
    expected = np.stack([segmenter(pixels).mask for pixels in frames_of(data)])
    assert np.array_equal(masks_in(path, data, frames), expected)
    found = dcmread(path)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert found[keyword].value == data[keyword].value
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == data.SeriesInstanceUID
    (segment,) = found.SegmentSequence
    assert segment.AnatomicRegionSequence[0].CodeValue == "71854001" and segment.RecommendedDisplayCIELabValue


VIDEOS = {
    "MPEG-2": (7, "mpeg2video", "mpegts", uid.MPEG2MPML),
    "H.264": (8, "libx264", "mp4", uid.MPEG4HP41),
    "H.265": (9, "libx265", "mp4", uid.HEVCMP51),
}


@pytest.mark.parametrize("codec", VIDEOS)
def test_a_video_comes_back_as_one_segmentation_of_its_frames(
    node: Node, orthanc: Orthanc, tmp_path: Path, codec: str
) -> None:
    seed, *how = VIDEOS[codec]
    data = film(seed, 6, *how)
    assert send(node.port, data) == [0]
    found = dcmread(segmentation_of(orthanc, data, tmp_path))
    assert "of 6 frames" in found.ContentDescription
    assert valid(tmp_path / "found.dcm")


def test_what_the_archive_forwards_comes_back_once_however_often_it_does(
    node: Node, orthanc: Orthanc, tmp_path: Path
) -> None:
    data = picture(30)
    data.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    name = orthanc.web.post("/instances", content=(tmp_path / "image.dcm").read_bytes()).json()["ID"]
    for _ in range(3):
        assert orthanc.web.post("/modalities/polypseg/store", json=[name]).json()["FailedInstancesCount"] == 0
    assert orthanc.web.post("/modalities/polypseg/echo").is_success
    segmentation_of(orthanc, data, tmp_path)
    later = picture(31)  # when that is done, all before it is
    assert send(node.port, later) == [0]
    segmentation_of(orthanc, later, tmp_path)
    assert len(orthanc.segmentations()[data.SOPInstanceUID]) == 1
    study = orthanc.web.post(
        "/tools/find", json={"Level": "Study", "Query": {"StudyInstanceUID": data.StudyInstanceUID}}
    ).json()
    assert len(study) == 1  # image and segmentation stand in one


def test_a_damaged_object_fails_alone(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    """Frames that bring a decoder down are found out when they are decoded: after they were accepted."""
    damaged = film(12, 6, "libx264", "mp4", uid.MPEG4HP41)
    content = bytearray(damaged.PixelData)
    content[200:-200] = np.random.default_rng(0).bytes(len(content) - 400)
    damaged.PixelData = bytes(content)
    fine = picture(41)
    assert send(node.port, damaged) == [0] and send(node.port, fine) == [0]
    assert valid(segmentation_of(orthanc, fine, tmp_path))
    assert damaged.SOPInstanceUID not in orthanc.segmentations()
    (event,) = wait_for(lambda: node.events("object failed"))
    assert "frame 1 of 6 cannot be decoded" in event["reason"]


def test_the_archive_takes_segmentations_by_the_web_too_and_twice_is_once(
    node: Node, orthanc: Orthanc, tmp_path: Path
) -> None:
    from polypseg.io.dicom_seg import MadeBy, write_segmentation
    from polypseg.serve.dicom_network.send import Refused, by_web

    data = picture(50)
    data.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    made = MadeBy("phantom", "c0ffee" * 10 + "beef", 0.4, 0.9, "openvino", "fp32")
    mask = np.zeros((1, data.Rows, data.Columns), bool)
    mask[:, 10:20, 10:20] = True
    write_segmentation(tmp_path / "image.dcm", mask, made, tmp_path / "image.seg.dcm", uid.generate_uid())
    with by_web(orthanc.dicomweb, None, None) as deliver:
        deliver(tmp_path / "image.seg.dcm")
        deliver(tmp_path / "image.seg.dcm")
        (tmp_path / "no.dcm").write_bytes(b"no DICOM at all")
        with pytest.raises(Refused):
            deliver(tmp_path / "no.dcm")
    path = segmentation_of(orthanc, data, tmp_path)
    assert np.array_equal(masks_in(path, data, 1), mask)


def test_what_the_archive_keeps_is_committed(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    data = picture(55)
    assert send(node.port, data) == [0]
    segmentation_of(orthanc, data, tmp_path)
    (number,) = (event["object"] for event in wait_for(lambda: node.events("object received")[-1:]))
    wait_for(lambda: number in [event["object"] for event in node.events("segmentation committed")])


def test_what_the_archive_takes_and_does_not_keep_is_found_out(
    model: Path, needs_orthanc: None, tmp_path: Path
) -> None:
    """Orthanc answers C-STORE with success, and its filter drops the object: what storage commitment is for."""
    lua = "function ReceivedInstanceFilter(dicom, origin, info) return dicom.Modality ~= 'SEG' end"
    port = free_port()
    archive = Orthanc(tmp_path / "orthanc", {"polypseg": port}, lua)
    with Node(model, tmp_path / "state", archive.to, "--commitment", port=port) as node:
        assert send(port, picture(56)) == [0]
        (first, *_) = wait_for(lambda: node.events("segmentation not committed"))
        assert first["object"] == 1 and "does not keep it (failure reason 0112)" in first["reason"]
        assert node.events("segmentation sent") and not node.events("segmentation committed")
        wait_for(lambda: len(node.events("segmentation sent")) > 1)  # it is sent again
        assert node.end() == 0
    assert [path.suffixes for path in (tmp_path / "state" / "objects").iterdir()] == [[".seg", ".dcm"]]
    archive.stop()


def test_the_log_names_no_patient_and_nothing_is_left_of_what_is_done(node: Node, orthanc: Orthanc) -> None:
    wait_for(lambda: not list((node.state / "objects").iterdir()))
    text = node.log.read_text()
    assert not any(secret in text for secret in SECRETS) and "1.2.826" not in text
    assert not list((node.state / "temporary").glob("*.dcm"))


def test_nothing_is_lost_or_doubled_when_the_node_is_killed_and_the_archive_is_away(
    model: Path, needs_orthanc: None, tmp_path: Path
) -> None:
    port = free_port()
    archive = Orthanc(tmp_path / "orthanc", {"polypseg": port})
    archive.stop()
    images: list[Any] = [picture(seed) for seed in (60, 61)] + [picture(62, 20)]

    def start() -> Node:
        return Node(model, tmp_path / "state", archive.to, port=port)

    with start() as first:
        assert send(port, images[0]) == [0]
        wait_for(lambda: first.events("cannot be sent"))
        assert send(port, images[1]) == [0] and send(port, images[2]) == [0]
        first.end(signal.SIGKILL)  # with one that waits to be sent, one in work and one that was just accepted
    with start() as second:
        assert send(port, *images[:2]) == [0, 0]
        wait_for(lambda: len({event["object"] for event in second.events("object segmented")}) == 3)
        second.end(signal.SIGKILL)
    archive.start()
    with start() as third:
        found = wait_for(lambda: len(archive.segmentations()) == 3 and archive.segmentations())
        assert {key: len(names) for key, names in found.items()} == {one.SOPInstanceUID: 1 for one in images}
        assert third.end() == 0
    archive.stop()


def test_another_node_cannot_work_in_the_same_folder(node: Node, run_dicom: Callable[..., tuple[int, str]]) -> None:
    status, told = run_dicom("--to", "PACS@127.0.0.1:1", "--state", node.state, "--port", "0")
    assert status == 1 and "another polypseg dicom works in this folder" in told


def test_the_route_in_the_documents_brings_segmentations_back_by_the_web(
    model: Path, needs_orthanc: None, tmp_path: Path
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "dicom-network.md"
    (lua,) = re.findall(r"```lua\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    port = free_port()
    archive = Orthanc(tmp_path / "orthanc", {"polypseg": port}, lua)
    data = picture(70)
    data.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    with Node(model, tmp_path / "state", archive.dicomweb, port=port) as node:
        assert archive.web.post("/instances", content=(tmp_path / "image.dcm").read_bytes()).is_success
        assert valid(segmentation_of(archive, data, tmp_path))
        wait_for(lambda: node.events("segmentation sent"))
        assert len(node.events("object received")) == 1  # what came back is not forwarded
        assert node.end() == 0
    archive.stop()
