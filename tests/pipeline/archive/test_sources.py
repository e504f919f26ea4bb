"""Which frames an archive's sources stand for, in which order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polypseg.errors import PolypsegError, UsageError
from polypseg.pipeline.archive.sources import Listing, is_archive
from polypseg.pipeline.archive.store import read_bytes

pytest.importorskip("fsspec")
Picture = Callable[[Path], Path]


def listed(*named: object, out: object = "/nowhere/out") -> list[str]:
    return [entry.path for entry in Listing([str(name) for name in named], str(out))]


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, emptied."""
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("s3://bucket/prefix", True), ("memory://a", True), ("manifest.csv", True), ("folder/M.CSV", True),
        ("folder", False), ("a.png", False), ("camera:0", False), ("0", False), ("rtsp://host/stream", False),
        ("http://host/stream", False),
    ],
)  # fmt: skip
def test_what_can_only_be_an_archive(name: str, answer: bool) -> None:
    assert is_archive(name) is answer


def test_a_folder_with_all_below_it_in_natural_order(tmp_path: Path, picture: Picture) -> None:
    names = ["a/b/c.tif", "a/1.jpg", "z.bmp", "2.png", "10.PNG"]
    for name in reversed(names):
        picture(tmp_path / name)
    (tmp_path / "a" / ".hidden.png").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert listed(tmp_path) == listed(f"file://{tmp_path}") == [str(tmp_path / name) for name in names]


def test_a_data_sets_frames_and_not_its_masks(phantom_folder: Path) -> None:
    assert listed(phantom_folder) == [str(path) for path in sorted((phantom_folder / "images").iterdir())]


def test_results_in_the_archive_are_no_frames(tmp_path: Path, picture: Picture) -> None:
    one = picture(tmp_path / "1.png")
    picture(tmp_path / "out" / "masks" / "0.png")
    assert listed(tmp_path, out=tmp_path / "out") == [str(one)]


def test_other_files_are_passed_over_and_told(
    tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "1.png")
    for name in ("a.mp4", "b.txt"):
        (tmp_path / name).write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(listed(tmp_path)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/a.mp4 and 1 more: no images by their names, passed over"
    ]


def test_a_file_that_is_named_twice_is_one_frame(tmp_path: Path, picture: Picture) -> None:
    one, two = picture(tmp_path / "1.png"), picture(tmp_path / "2.png")
    assert listed(one, tmp_path / "*.png", two) == [str(one), str(two)]


def test_urls(memory: Any) -> None:
    for name in (
        "/a/2.png",
        "/a/10.png",
        "/a/b/1.jpg",
        "/a/notes.txt",
        "/a/.x.png",
        "/set/images/1.png",
        "/set/m/1.png",
    ):
        memory.pipe_file(name, b"x")
    assert listed("memory://a") == ["memory:///a/2.png", "memory:///a/10.png", "memory:///a/b/1.jpg"]
    assert listed("memory://a/", out="memory:///a/b") == ["memory:///a/2.png", "memory:///a/10.png"]
    assert listed("memory://set") == ["memory:///set/images/1.png"]
    assert listed("memory://a/*.png") == ["memory:///a/2.png", "memory:///a/10.png"]
    assert listed("memory://a/2.png") == ["memory://a/2.png"]


def test_a_manifest_carries_its_columns_along(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text('exam,path,"a, b"\n7,x/1.png,"q ""r"""\n\n8,s3://bucket/2.png,\n9,/abs/3.png,\n')
    listing = Listing([str(file)], "out")
    assert listing.columns == ["exam", "a, b"]
    first, second, third = listing
    assert (first.path, first.columns) == (str(tmp_path / "x" / "1.png"), {"exam": "7", "a, b": 'q "r"'})
    assert (second.path, third.path) == ("s3://bucket/2.png", "/abs/3.png")


def test_a_manifest_that_names_other_places_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "m.csv"
    file.write_text("path\n1.png\na/../2.png\n/etc/3.png\ns3://bucket/4.png\n")
    assert listed(file) == [str(tmp_path / "1.png"), str(tmp_path / "2.png"), "/etc/3.png", "s3://bucket/4.png"]
    assert caplog.messages == [f"{file}: line 4 names a place outside the manifest's folder, /etc/3.png"]


def test_links_are_followed_inside_a_folder_alone(
    tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "private.png")
    picture(tmp_path / "in" / "1.png")
    for name, target in (
        ("2.png", "1.png"), ("out.png", "../private.png"), ("abs.png", tmp_path / "private.png"), ("gone.png", "x.png"),
        ("zero.png", "/dev/zero"), ("all", tmp_path),
    ):  # fmt: skip
        (tmp_path / "in" / name).symlink_to(target)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert listed(tmp_path / "in") == [str(tmp_path / "in" / name) for name in ("1.png", "2.png")]
    assert caplog.messages == [
        f"{tmp_path}/in/abs.png and 4 more: links that lead out of the folder, or to no file, passed over; name the "
        "place they lead to"
    ]
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert len(listed(tmp_path / "link")) == 2  # named by the user


def test_what_is_no_file_or_no_frames_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "huge.png").write_bytes(b"x")
    os.truncate(tmp_path / "huge.png", 2**40)
    for name, says in (
        (tmp_path / "pipe.png", "no file"),
        ("/dev/zero", "no file"),
        (tmp_path / "huge.png", "1024 MiB"),
    ):
        with pytest.raises(OSError, match=says):
            read_bytes(str(name))


def test_a_manifest_in_a_store_names_frames_beside_it(memory: Any) -> None:
    memory.pipe_file("/a/m.csv", "\ufeffpath\nx/1.png\nmemory://b/2.png\n".encode())
    assert listed("memory://a/m.csv") == ["memory://a/x/1.png", "memory://b/2.png"]
    for path in ("/etc/1.png", "file:///etc/1.png", "../1.png"):
        memory.pipe_file("/a/m.csv", f"path\n{path}\n".encode())
        with pytest.raises(
            PolypsegError, match=r"memory://a/m\.csv: line 2 names '.*', (of this machine|which leads out)"
        ):
            listed("memory://a/m.csv")


def test_many_manifests_have_all_columns(tmp_path: Path) -> None:
    for name, text in (("1.csv", "path,a\n1.png,x\n"), ("2.csv", "b,path,a\ny,2.png,z\n")):
        (tmp_path / name).write_text(text)
    listing = Listing([str(tmp_path / "1.csv"), str(tmp_path / "2.csv")], "out")
    assert listing.columns == ["a", "b"]
    assert [entry.columns for entry in listing] == [{"a": "x"}, {"b": "y", "a": "z"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,exam\na,b\n", "has no column 'path'; it has file, exam"),
        (b"", "has no column 'path'; it has none"),
        (b"path,a,a\n", "has two columns 'a'"),
        (b"path\n", "names no frame"),
        (b"path,a\nx.png,1\n,2\n", "line 3 names no path"),
        (b"path,a\nx.png\n", "line 2 has 1 cells, the header 2"),
        (b"path,a\nx.png,1,2\n", "line 2 has 3 cells, the header 2"),
        (b"path\n\xff\xfe.png\n", "is no CSV in UTF-8"),
        (b"path\na.png\n../../etc/x.png\n", "line 3 names '../../etc/x.png', which leads out of the manifest's folder"),
        (b"path\na/../../x.png\n", "which leads out"),
        (b"path\nhttp://169.254.169.254/x.png\n", "line 2 names 'http://169.254.169.254/x.png', which is in no store"),
        (b"path\nsftp://host/x.png\n", "which is in no store"),
        (b"path\ngithub://a:b@/x.png\n", "which is in no store"),
        (b'path\n"a\nb.png"\n', "which cannot be printed"),
        (b"path\n\x1b[2J.png\n", "names '\\x1b[2J.png', which cannot be printed"),
        (b"path," + b",".join(b"c%d" % number for number in range(300)) + b"\n", "has 301 columns, more than 256"),
        (b"path\n" + b"x" * 2_000_000, "has more than 1048576 characters"),
        (b"x" * 2_000_000, "has more than 1048576 characters"),
        (b"path\n" + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_wrong_manifest_is_told_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes(text)
    with pytest.raises(PolypsegError) as caught:
        listed(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "is missing"), ("missing.csv", "is missing"), ("no*.png", "matches no file"),
        ("empty", "contains no image"), ("a.txt", "is no image by its name"), ("memory://nothing", "is missing"),
        ("nosuch://bucket/a", "fsspec knows no nosuch://"), ("zip://a::s3://b", "chained"), ("camera:0", "is a camera"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_told_in_one_line(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(PolypsegError, match=message) as caught:
        listed(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_inside_another_is_refused(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a" / "1.png")
    with pytest.raises(UsageError, match="lies inside"):
        listed(tmp_path, tmp_path / "a" / "1.png")
    with pytest.raises(UsageError, match="lies inside"):
        listed("s3://bucket", "s3://bucket/a/b")
    with pytest.raises(UsageError, match="name folders"):
        listed()
