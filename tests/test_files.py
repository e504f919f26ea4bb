"""Atomic writing, and what is left when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polypseg
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import (
    atomic_write,
    csv_cell,
    disk_error,
    locked,
    part_prefix,
    plain_cell,
    read_json,
    sha256_file,
    sha256_lines,
    write_json,
)


def write_and_fail(path: Path, failure: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise failure


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(("mode", "content"), [("wb", b"\x00\r\n"), ("w", "é\r\n中\n")])
def test_written_content_is_there_byte_by_byte(tmp_path: Path, mode: str, content: Any) -> None:
    path = tmp_path / "new" / "folders" / "a.bin"
    with atomic_write(path, mode) as file:
        file.write(content)
    assert path.read_bytes() == (content if mode == "wb" else content.encode("utf-8"))
    assert names(path.parent) == ["a.bin"]


def test_readers_see_the_old_content_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new, and longer")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new, and longer"


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt(), PolypsegError("mine")])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException, old: str | None) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    before = names(tmp_path)
    with pytest.raises(type(failure)) as error:
        write_and_fail(path, failure)
    assert error.value is failure  # told as it is, not as trouble with the disk
    assert names(tmp_path) == before
    assert old is None or path.read_text() == old


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "no permission to write here"),
        (errno.EACCES, "no permission to write here"),
        (errno.EIO, "cannot be written"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_trouble_with_the_disk_is_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, step: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(PolypsegError, match=says) as error, atomic_write(path, "w") as file:
        file.write("new")
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be opened there")
def test_content_and_name_are_on_the_disk_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could lose a file that a table, written afterwards, names."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def renamed(source: str, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("new")
    assert steps == ["content", "name", "folder"]


def test_a_full_disk_met_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(PolypsegError, match="the disk is full"):
        write_and_fail(path, OSError(errno.ENOSPC, "No space left on device"))
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(PolypsegError) as error, atomic_write(path, "w") as file:
            file.write("new")
        assert str(path) in str(error.value)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.txt", "w") as file:
            file.write("x")
        (tmp_path / "plain.txt").write_text("x")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "plain.txt")]
    assert modes == [0o666 & ~umask] * 2


def test_disk_error_names_the_file() -> None:
    message = str(disk_error(Path("some/file"), OSError(errno.ENOSPC, "No space left on device")))
    assert (
        message == "some/file: the disk is full; free some space and run it again, with --resume where the verb has it"
    )


def test_json_goes_there_and_back(tmp_path: Path) -> None:
    value = {"é": [1, 2.5, None, True], "b": {"中": "x"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text
    assert text.endswith("}\n")
    assert json.loads(text) == value == read_json(tmp_path / "a.json")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_bad_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(PolypsegError, match="is not valid JSON") as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_missing_json_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match=r"a\.json: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "a.json")


def test_hashes(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert sha256_lines(["a", "é"]) == hashlib.sha256("a\né\n".encode()).hexdigest()
    assert sha256_lines(["ab"]) != sha256_lines(["a", "b"])


def test_a_wrong_argument_is_an_error_of_the_user_too() -> None:
    assert issubclass(UsageError, PolypsegError)


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-1", "\t=1", "'=1", "''@x"])
def test_a_csv_cell_is_no_formula_and_comes_back(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert plain_cell(csv_cell(text)) == text


@pytest.mark.parametrize("value", ["a=b", "", "'quoted'", "007", 3, -0.5, None])
def test_other_csv_cells_stay_as_they_are(value: Any) -> None:
    assert csv_cell(value) == value
    if isinstance(value, str):
        assert plain_cell(value) == value


@pytest.mark.parametrize("name", ["m" * 255, "é" * 127, "polyp.json"])
def test_whatever_name_can_be_written_has_a_temporary_one(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
        (temporary,) = (one for one in names(tmp_path) if one.endswith(".part"))
        assert temporary.startswith(part_prefix(name)) and len(temporary.encode()) <= 255
    assert names(tmp_path) == [name]


def test_a_folder_is_held_once_and_free_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with locked(out):
        with pytest.raises(PolypsegError, match="another polypseg writes here"), locked(out):
            pytest.fail("held twice")
        assert _in_another_process(out) == "held"
    assert not (tmp_path / "new").exists()  # nothing was written into it
    assert _in_another_process(tmp_path) == "free"
    (tmp_path / ".lock").write_text("")  # as a killed process leaves it
    with locked(tmp_path):
        (tmp_path / "a.txt").write_text("kept")
    assert names(tmp_path) == ["a.txt"]


def test_a_killed_process_holds_nothing_nor_do_its_children(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from polypseg.files import locked\n"
        "with locked(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(60); os._exit(0)\n"
        "    print(child, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(PolypsegError, match="another polypseg writes here"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def _in_another_process(folder: Path) -> str:
    code = (
        "import sys; from polypseg.errors import PolypsegError; from polypseg.files import locked\n"
        "try:\n"
        "    with locked(sys.argv[1]): print('free')\n"
        "except PolypsegError: print('held')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_descriptor_is_opened_for_text() -> None:
    """Windows would write two characters for each line's end, and offsets would be wrong."""
    sources = [path.read_text(encoding="utf-8") for path in Path(polypseg.__file__).parent.rglob("*.py")]
    written = r"os\.open\([^\n]*\bO_(?:RDWR|WRONLY|APPEND)\b[^\n]*"
    opened = [call for text in sources for call in re.findall(written, text) if "devnull" not in call]
    assert len(opened) >= 3
    assert not [call for call in opened if "BINARY" not in call]
