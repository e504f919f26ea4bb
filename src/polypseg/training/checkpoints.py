"""Checkpoints of a training: tensors and plain types, no code, and beside each one its SHA-256.

``last.ckpt`` has ``last.ckpt.sha256``, as ``sha256sum`` writes it. While a checkpoint is replaced the file lists two
hashes, of the old one and of the new one: whatever kills the writer, the checkpoint that lies there has one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from polypseg.errors import PolypsegError
from polypseg.files import atomic_write
from polypseg.training.processes import first_sentence

_LINE = re.compile(r"([0-9a-f]{64}) [ *].+", re.ASCII)
_MOST = 2**16  # characters of a list of hashes
_CODE = re.compile(r"(?:GLOBAL|class|type) '?([\w.]+)'?")  # what torch's error names
_REMEDY = "restore it, or begin anew with --overwrite"


class SafeCheckpointIO(TorchCheckpointIO):
    """How the Trainer writes and reads checkpoints: whole or not at all, verified, and never as code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint and its hash. Raises ``PolypsegError`` where the disk is full; the older one stays."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path, content = Path(path), buffer.getbuffer()
        fresh = hashlib.sha256(content).hexdigest()
        _write_hashes(path, [fresh, *_former(path)])
        with atomic_write(path) as file:
            file.write(content)
        _write_hashes(path, [fresh])

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As ``read_checkpoint``, whatever ``weights_only`` says."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove nothing: a run overwrites its two checkpoints, and the path is what a resumed one names."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Only tensors and plain types are read. One without a hash beside it, as an earlier polypseg wrote it, is read so
    too; whether it is whole is not known then (``is_hashed``).

    Raises:
        PolypsegError: it is missing, damaged, not the one that its hash is of, or contains anything else.
    """
    try:
        with path.open("rb") as file:
            _verify(path, file)
            content = _load(path, file)
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(state, dict) or not isinstance(content.get("epoch"), int):
        raise PolypsegError(f"{path}: is no checkpoint of a training; {_REMEDY}")
    return content


def is_hashed(path: Path) -> bool:
    """Whether a checkpoint has its hash beside it."""
    return _hash_file(path).is_file()


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_hashes(path: Path, hashes: list[str]) -> None:
    with atomic_write(_hash_file(path), "w") as file:
        file.writelines(f"{one}  {path.name}\n" for one in hashes)


def _former(path: Path) -> list[str]:
    """The hashes of what lies at ``path``: as they are listed, or of the file where an earlier polypseg wrote it."""
    with contextlib.suppress(OSError, PolypsegError):
        if is_hashed(path):
            return _listed(path)
    with contextlib.suppress(OSError), path.open("rb") as file:
        return [hashlib.file_digest(file, "sha256").hexdigest()]
    return []


def _listed(path: Path) -> list[str]:
    with _hash_file(path).open(encoding="ascii", errors="replace") as file:
        found = [_LINE.fullmatch(line.rstrip("\n")) for line in file.read(_MOST).splitlines()]
    if not found or None in found:
        raise PolypsegError(f"{_hash_file(path)}: is no list of SHA-256; {_REMEDY}")
    return [one[1] for one in found if one is not None]


def _verify(path: Path, file: io.BufferedReader) -> None:
    if not is_hashed(path):
        return
    expected = _listed(path)
    if hashlib.file_digest(file, "sha256").hexdigest() not in expected:
        raise PolypsegError(f"{path}: is not the file that {_hash_file(path).name} describes; {_REMEDY}")
    file.seek(0)


def _load(path: Path, file: io.BufferedReader) -> Any:
    """Unpickle tensors and plain types alone."""
    try:
        with zipfile.ZipFile(file) as archive:  # as torch.save writes it: nothing packed, nothing twice
            entries = archive.infolist()
            if any(one.compress_type for one in entries):
                raise ValueError("its content is compressed")
            if sum(one.file_size for one in entries) > os.fstat(file.fileno()).st_size:
                raise ValueError("it claims more than it contains")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # besides UnpicklingError, whatever the content's own readers meet
        code = _CODE.search(str(error))
        reason = f"it contains {code[1]}" if code else first_sentence(error)
        raise PolypsegError(f"{path}: cannot be read as tensors and plain types ({reason}); {_REMEDY}") from error
