"""What the names on a command line stand for, and one line for each that stands for nothing."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polypseg.errors import PolypsegError, UsageError
from polypseg.io.kinds import Kind, kind_of
from polypseg.pipeline.sources import Source, gather

PIXELS = np.zeros((4, 6, 3), np.uint8)
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(200)
DICOM = bytes(128) + b"DICM" + bytes(100)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


def file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(sources: list[Source]) -> list[str]:
    return [source.path.name for source in sources]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_folder_gives_its_own_files_in_natural_order(tmp_path: Path, out: Path) -> None:
    for name in ("frame10.png", "frame9.jpg", "frame1.tif", "b.webp", "deeper/other.png"):
        picture(tmp_path / "in" / name)
    file(tmp_path / "in" / "exam.mp4", MP4)
    file(tmp_path / "in" / "IM0001", DICOM)
    for hidden in (".DS_Store", "._frame1.png", "Thumbs.db", "desktop.ini"):
        file(tmp_path / "in" / hidden, b"x")
    found = gather([str(tmp_path / "in")], out)
    assert [(source.path.name, source.kind) for source in found] == [
        ("IM0001", "dicom"), ("b.webp", "image"), ("exam.mp4", "video"), ("frame1.tif", "image"),
        ("frame9.jpg", "image"), ("frame10.png", "image"),
    ]  # fmt: skip


def test_a_data_set_gives_its_frames_and_not_its_masks(tmp_path: Path, out: Path) -> None:
    for name in ("images/1.png", "images/2.png", "masks/1.png", "masks/2.png", "contact-sheet.png"):
        picture(tmp_path / "set" / name)
    found = gather([str(tmp_path / "set")], out)
    assert [source.path for source in found] == [tmp_path / "set" / "images" / f"{n}.png" for n in (1, 2)]


def test_sources_keep_the_order_in_which_they_are_named_and_are_read_once(tmp_path: Path, out: Path) -> None:
    for name in ("a/2.png", "a/10.png", "b/1.png"):
        picture(tmp_path / name)
    named = [tmp_path / "b" / "1.png", tmp_path / "a", tmp_path / "a" / "10.png", tmp_path / "a" / ".." / "b" / "1.png"]
    assert names(gather([str(name) for name in named], out)) == ["1.png", "2.png", "10.png"]


def test_links_of_other_names_are_sources_of_their_own(tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert names(gather([str(tmp_path / "a.png"), str(tmp_path / "b.png")], out)) == ["a.png", "b.png"]


def test_globs_match_files_at_any_depth(tmp_path: Path, out: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/c/10.png", "b/c/2x.png", "a/x.jpg"):
        picture(tmp_path / name)
    assert names(gather([f"{tmp_path}/a/*.png"], out)) == ["1.png", "2.png"]
    assert names(gather([f"{tmp_path}/**/*.png"], out)) == ["1.png", "2.png", "2x.png", "10.png"]
    assert names(gather([f"{tmp_path}/a/[2x].*"], out)) == ["x.jpg", "2.png"]  # letters before numbers
    picture(tmp_path / "odd[1].png")  # a name that looks like a pattern, and is one file's
    assert names(gather([f"{tmp_path}/odd[1].png"], out)) == ["odd[1].png"]


def test_a_glob_passes_over_what_lies_in_out(tmp_path: Path) -> None:
    """The second run of a command must not take the masks of the first for frames."""
    picture(tmp_path / "in" / "1.png")
    picture(tmp_path / "in" / "predictions" / "1.png")
    found = gather([f"{tmp_path}/in/**/*.png"], tmp_path / "in" / "predictions")
    assert [source.path for source in found] == [tmp_path / "in" / "1.png"]


@pytest.mark.parametrize(
    ("named", "location", "camera"),
    [
        ("camera:0", "0", 0),
        ("2", "2", 2),
        ("rtsp://host/stream", "rtsp://host/stream", "rtsp://host/stream"),
        ("HTTP://host:8080/video", "HTTP://host:8080/video", "HTTP://host:8080/video"),
        *(
            (url, url, url)
            for url in ("https://host/live.m3u8", "http://host/a.mjpg?size=2", "http://host/cam.cgi?a.jpg")
        ),
    ],
)
def test_cameras(named: str, location: str, camera: int | str, out: Path) -> None:
    found = gather([named], out)
    assert found == [Source("camera", location)]
    assert found[0].camera == camera


def test_a_file_called_by_a_number_is_a_file(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "1.png").rename(tmp_path / "1")
    assert gather(["1"], out) == [Source("image", "1")]
    assert gather(["1"], out)[0].camera is None
    assert gather(["camera:1"], out)[0].camera == 1


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        *((f"{kind}, unnamed", saved(kind), "image") for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")),
        ("picture.mp4", saved("PNG"), "image"),  # the content wins over the name
        ("video.jpg", MP4, "video"),
        ("avif", b"\0\0\0\x1cftypavif" + bytes(20), "image"),
        ("mkv", b"\x1aE\xdf\xa3" + bytes(20), "video"),
        ("avi", b"RIFF\x10\0\0\0AVI LIST" + bytes(20), "video"),
        ("ts", (b"\x47" + bytes(187)) * 4, "video"),
        ("m2ts", (bytes(4) + b"\x47" + bytes(187)) * 4, "video"),
        ("mov", b"\0\0\0\x08wide\0\0\0\0mdat", "video"),
        ("dicom", DICOM, "dicom"),
        ("dicom.png", DICOM, "dicom"),
        ("tiff and dicom.tif", b"II*\0" + DICOM[4:], "dicom"),
        ("empty.png", b"", "image"),  # its reader says what is wrong
        ("text.jpg", b"hello", "image"),
        ("empty.mp4", b"", "video"),
        ("text.dcm", b"hello", "dicom"),
        ("BMI table", b"BMI of the patients, a text", None),
        ("notes.txt", b"hello", None),
        ("empty", b"", None),
    ],
)  # fmt: skip
def test_the_kind_is_told_by_content_first(name: str, content: bytes, kind: Kind | None, tmp_path: Path) -> None:
    assert kind_of(file(tmp_path / name, content)) == kind


def test_a_cut_picture_is_still_a_picture(tmp_path: Path) -> None:
    assert kind_of(file(tmp_path / "cut", saved("PNG")[:20])) == "image"


def test_files_of_no_known_kind_in_a_folder_are_passed_over_aloud(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "in" / "1.png")
    for name in ("notes.txt", "split.csv"):
        file(tmp_path / "in" / name, b"text")
    with caplog.at_level(logging.INFO, "polypseg"):
        assert names(gather([str(tmp_path / "in")], out)) == ["1.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/in/notes.txt and 1 more: of no kind that polypseg reads, passed over"
    ]


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere.png", "is missing"),
        ("nowhere", "is missing"),
        ("nowhere/*.png", "matches no image"),
        ("text/*", "matches no image"),
        ("empty", "contains no image, video or DICOM file"),
        ("text", "contains no image, video or DICOM file"),
        ("set", "contains no image, video or DICOM file"),
        ("text/notes.txt", "is no image, video or DICOM file that polypseg knows"),
        ("out", "lies in --out"),
        ("link.png", "lies in --out"),
        ("out/1.png", "lies in --out"),
        ("pipe", "is neither a file nor a folder"),
    ],
)
def test_a_source_that_stands_for_nothing_is_one_line(named: str, says: str, tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "good.png")
    picture(out / "1.png")
    file(tmp_path / "text" / "notes.txt", b"text")
    for folder in ("empty", "set/images"):
        (tmp_path / folder).mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.png").symlink_to(out / "1.png")
    with pytest.raises(PolypsegError, match=says) as error:
        gather([str(tmp_path / "good.png"), str(tmp_path / named)], out)
    assert str(error.value).startswith(str(tmp_path / named))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["https://host/a.jpg", "http://host/x/a%2EPNG?size=2", "HTTPS://host/a.dcm", "http://h/a.mp4"]
)
def test_a_file_on_the_web_is_no_camera(url: str, out: Path) -> None:
    with pytest.raises(UsageError, match="is a file on the web, and no camera; download it"):
        gather([url], out)


def test_pipes_and_devices_are_never_opened(tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "in" / "1.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "in" / "2.png")
    (tmp_path / "in" / "3.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "in" / "4.mp4").symlink_to("/dev/zero")
    with caplog.at_level(logging.INFO, "polypseg"):
        assert names(gather([str(tmp_path / "in")], out)) == names(gather([f"{tmp_path}/in/*"], out)) == ["1.png"]
    assert caplog.text.count("2.png and 2 more: of no kind that polypseg reads, passed over") == 2
    assert kind_of(tmp_path / "pipe") is None


def test_one_name_that_is_no_utf8_holds_nobody_up(tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "in" / "1.png")
    try:
        os.rename(picture(tmp_path / "in" / "x.png"), os.fsencode(tmp_path) + b"/in/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    good, bad = sorted(gather([str(tmp_path / "in")], out), key=lambda source: source.problem or "")
    assert (good.path.name, good.problem) == ("1.png", None)
    assert bad.problem is not None and bad.problem.endswith(r"caf\xe9.png: its name is not UTF-8; rename it")


@pytest.mark.parametrize("named", [[], ["camera:x"], ["camera:0", "rtsp://host"], ["camera:0", "good.png"]])
def test_wrong_use_is_a_usage_error(named: list[str], tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "good.png")
    with pytest.raises(UsageError) as error:
        gather([str(tmp_path / name) if name.endswith(".png") else name for name in named], out)
    assert len(str(error.value).splitlines()) == 1


def test_a_name_that_is_no_utf8_is_told(tmp_path: Path, out: Path) -> None:
    try:
        os.rename(picture(tmp_path / "in" / "x.png"), os.fsencode(tmp_path) + b"/in/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for named in (tmp_path / "in", os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.png")):
        with pytest.raises(PolypsegError, match=r"caf\\xe9.png: its name is not UTF-8"):
            gather([str(named)], out)


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "1.png")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PolypsegError, match=r"in: cannot be read \(Permission denied\)"):
        gather([str(tmp_path / "in")], out)
