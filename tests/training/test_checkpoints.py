"""Checkpoints: no code, verified, and whole whenever the writer was killed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polypseg.errors import PolypsegError
from polypseg.training import checkpoints
from polypseg.training.checkpoints import SafeCheckpointIO, is_hashed, read_checkpoint

CONTENT: dict[str, Any] = {"epoch": 3, "state_dict": {"network.w": torch.arange(2000.0)}, "callbacks": {"a": {"b": 1}}}


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def written(path: Path, epoch: int = 3) -> Path:
    SafeCheckpointIO().save_checkpoint({**CONTENT, "epoch": epoch}, path)
    return path


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(PolypsegError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1 and len(message) < 600
    assert message.endswith("; restore it, or begin anew with --overwrite")
    for part in parts:
        assert part in message, message


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "deep" / "last.ckpt")
    again = read_checkpoint(path)
    assert again["epoch"] == 3 and torch.equal(again["state_dict"]["network.w"], torch.arange(2000.0))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("last.ckpt.sha256").read_text() == f"{digest}  last.ckpt\n"  # what sha256sum -c takes
    assert SafeCheckpointIO().load_checkpoint(path, weights_only=False)["epoch"] == 3
    assert torch.load(path, weights_only=True)["epoch"] == 3
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_anywhere_is_told(tmp_path: Path, seed: int) -> None:
    path = written(tmp_path / "best.ckpt")
    content = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(content) * 8)
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    refused(path, "is not the file that best.ckpt.sha256 describes")


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, hashed: bool, legacy: bool) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({**CONTENT, "x": Code(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
    if hashed:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("last.ckpt.sha256").write_text(f"{digest}  last.ckpt\n")
    refused(path, "not a zip file" if legacy else f"it contains {os.mkdir.__module__}.mkdir")
    assert not (tmp_path / "ran").exists()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def packed() -> bytes:
    """The same checkpoint, deflated: a few bytes that become many."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as source, zipfile.ZipFile(buffer, "w") as target:
        for one in source.infolist():
            target.writestr(one.filename, source.read(one), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


GARBAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"epoch 3\n" * 100,
    "noise": lambda: random.Random(0).randbytes(5000),
    "cut": lambda: saved(CONTENT)[:1000],
    "without its end": lambda: saved(CONTENT)[:-30],
    "a bare pickle": lambda: pickle.dumps(CONTENT["callbacks"]),
    "a list": lambda: saved([1, 2]),
    "something else": lambda: saved({"a": 1}),
    "weights alone": lambda: saved(CONTENT["state_dict"]),
    "a module": lambda: saved({**CONTENT, "m": torch.nn.Linear(2, 2)}),
    "packed": packed,
    "an epoch of text": lambda: saved({**CONTENT, "epoch": "3"}),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(GARBAGE[name]())
    refused(path)


def test_what_is_missing_or_no_file_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "last.ckpt", "No such file")
    (tmp_path / "folder.ckpt").mkdir()
    refused(tmp_path / "folder.ckpt", "directory")
    path = written(tmp_path / "a.ckpt")
    path.with_name("a.ckpt.sha256").write_text("mine\n")
    with pytest.raises(PolypsegError, match=r"a\.ckpt\.sha256: is no list of SHA-256"):
        read_checkpoint(path)
    assert read_checkpoint(written(path, 5))["epoch"] == 5  # which must not end a training


def test_of_an_earlier_version_it_is_read_without_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(saved(CONTENT))
    assert read_checkpoint(path)["epoch"] == 3 and not is_hashed(path)
    assert read_checkpoint(written(path, 4))["epoch"] == 4 and is_hashed(path)


@pytest.mark.parametrize("former", ["hashed", "of an earlier version", "none"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_killed_between_two_files_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: str, stop: int
) -> None:
    """The writer ends before the first, second or third file: twice over, as of a run that is killed again."""
    path = tmp_path / "last.ckpt"
    if former == "hashed":
        written(path, 0)
    elif former != "none":
        path.write_bytes(saved({**CONTENT, "epoch": 0}))
    write = checkpoints.atomic_write
    for epoch in (1, 2):
        left = iter(range(1, 4))

        def killed(*arguments: Any, left: Any = left) -> Any:
            if next(left) == stop:
                raise KeyboardInterrupt
            return write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "atomic_write", killed)
            with pytest.raises(KeyboardInterrupt):
                written(path, epoch)
        if path.exists():
            assert read_checkpoint(path)["epoch"] == (epoch if stop == 3 else 0)
        else:
            assert former == "none" and stop < 3
    assert read_checkpoint(written(path, 3))["epoch"] == 3


def test_a_checkpoints_names_remove_nothing(tmp_path: Path) -> None:
    """Lightning removes the former best checkpoint by the path that a resumed one contains."""
    (tmp_path / "work").mkdir()
    SafeCheckpointIO().remove_checkpoint(tmp_path / "checkpoints" / ".." / "work")
    assert (tmp_path / "work").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="no sha256sum")
def test_sha256sum_reads_the_hash(tmp_path: Path) -> None:
    written(tmp_path / "best.ckpt")
    done = subprocess.run(["sha256sum", "-c", "best.ckpt.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "best.ckpt: OK\n"
