"""Writing so that a crash loses nothing, hashing, and the commit that a result comes from."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from polypseg.errors import PolypsegError, UsageError

if TYPE_CHECKING:
    import yaml

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
MOST_YAML = 10_000  # values of a file of settings
LOCK = ".lock"  # in a folder whose process is still writing
BINARY: int = getattr(os, "O_BINARY", 0)  # for os.open; without it Windows changes line ends
_LONGEST_NAME = 255  # bytes, of every file system that is in use
_held: set[str] = set()  # folders that this very process has locked
_held_lock = threading.Lock()


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success flush, sync and rename it over ``path``, and sync the folder.

    A reader sees the old file or the whole new one, never a part, whatever kills the writer. Once this has returned, a
    power cut does not undo it.

    Args:
        path: the file to write; missing parent folders are made.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        PolypsegError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        make_folder(path.parent)
        temporary = str(path.parent / f"{part_prefix(path.name)}{secrets.token_hex(6)}.part")
        # Not mkstemp: its files are private, and the umask cannot be asked for while other threads write.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | BINARY, 0o666)
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_folder(folder: str | Path) -> None:
    """Make a folder, with its parents, that a power cut does not undo. Raises ``OSError``."""
    folder = Path(folder)
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: str | Path) -> None:
    """Have the disk keep what was written to a file, or which files a folder names. Raises ``OSError``.

    Folders cannot be opened on some systems, nor synced on some network drives; they are left to those.
    """
    folder = os.path.isdir(path)
    try:
        # Windows syncs only what is open for writing.
        handle = os.open(path, (os.O_RDWR if os.name == "nt" and not folder else os.O_RDONLY) | BINARY)
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def part_prefix(name: str) -> str:
    """What the name of ``atomic_write``'s temporary file for ``name`` begins with; 12 digits and ``.part`` follow.

    A long name is cut, so that whatever can be written has a temporary file too.
    """
    room = _LONGEST_NAME - len(f"..{'':12}.part")
    return f".{os.fsencode(name)[:room].decode('utf-8', 'ignore')}."


def disk_error(path: Path, error: OSError) -> PolypsegError:
    """The one line for an ``OSError`` met while writing ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PolypsegError(
            f"{path}: the disk is full; free some space and run it again, with --resume where the verb has it"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return PolypsegError(f"{path}: no permission to write here; choose another --out")
    return PolypsegError(f"{path}: cannot be written ({error.strerror or error}); choose another --out")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Raises ``PolypsegError`` where the disk refuses."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        PolypsegError: it is missing or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PolypsegError(f"{path}: is not valid JSON ({error})") from error


def check_yaml(text: str) -> None:
    """Refuse YAML of which a reader would drop a part in silence, or which would keep it busy for ever.

    Raises:
        UsageError: a key stands twice, a value contains itself, or there are more than ``MOST_YAML``, aliases
            expanded. What is no YAML at all is left to its reader.
    """
    import yaml

    sizes: dict[int, int] = {}  # of every node, 0 while it is counted

    def size(node: yaml.Node) -> int:
        if sizes.get(id(node)) == 0:
            raise UsageError("has a value that contains itself")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            sizes[id(node)] = 1 + sum(map(size, _inside(node)))
        return sizes[id(node)]

    try:
        node = yaml.compose(text, yaml.SafeLoader) if len(text) <= 1 << 20 else None
        if len(text) > 1 << 20 or (node is not None and size(node) > MOST_YAML):
            raise UsageError(f"contains more than {MOST_YAML} values")
    except yaml.YAMLError:
        return
    except RecursionError:
        raise UsageError("is nested too deeply") from None


def _inside(node: yaml.Node) -> list[yaml.Node]:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return []
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
    if twice is not None:
        raise UsageError(f"{twice}: stands twice in one place; remove one")
    return [one for pair in node.value for one in pair]


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """As ``sha256_file``, but a file that has kept its size and time of change is read once in a process.

    Raises:
        PolypsegError: it cannot be read.
    """
    try:
        status = os.stat(path)
        return _sha256_of_file(str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror or error})") from error


@functools.lru_cache(maxsize=200_000)
def _sha256_of_file(path: str, *_state: int) -> str:
    return sha256_file(path)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file; text that a spreadsheet would take for a formula gets an apostrophe before it.

    Names come from outside: ``=HYPERLINK(...)`` as a file's name would run where the table is opened.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def csv_cells(table: Any) -> Any:
    """A pandas table whose cells went through ``csv_cell``."""
    return table.map(csv_cell)


def plain_cell(text: str) -> str:
    """What ``csv_cell`` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def sha256_lines(lines: Iterable[str]) -> str:
    """SHA-256 of text lines, each ended by a line feed, in UTF-8."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of the source tree that polypseg runs from, with ``-dirty``; None for an installed package."""
    try:
        done = subprocess.run(  # noqa: S603  (no shell, no word of a user)
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder to write into, for this process alone.

    The operating system ends the lock with the process, however that ends, and no child of it inherits the lock. A
    file ``.lock`` that a killed process left behind stops nobody. Where a file system knows no locks, none is taken.

    Args:
        folder: made if it is missing, with its parents; removed again if it was, and nothing is written into it.

    Raises:
        PolypsegError: another process, or another thread, has locked it; or it cannot be written.
    """
    folder = Path(folder)
    name = os.path.realpath(folder)
    with _held_lock:
        if name in _held:
            raise _is_held(folder)
        _held.add(name)
    fresh = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = _lock_file(folder / LOCK)
        except OSError as error:
            raise disk_error(folder, error) from error
        if handle is None:
            raise _is_held(folder)
        try:
            yield
        finally:
            # Removed while it is locked: whoever opened it before finds it gone, and tries again.
            if os.name != "nt":
                (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)
            if os.name == "nt":  # which removes no open file
                with contextlib.suppress(OSError):
                    (folder / LOCK).unlink()
    finally:
        with _held_lock:
            _held.discard(name)
        with contextlib.suppress(OSError):
            for one in fresh:
                one.rmdir()


def _is_held(folder: Path) -> PolypsegError:
    return PolypsegError(f"{folder}: another polypseg writes here; wait until it has ended, or choose another --out")


def _lock_file(path: Path) -> int | None:
    """A handle that has the file's lock; None where another process has it. Raises ``OSError``."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | BINARY, 0o666)
        try:
            _take_lock(handle)
            # Its holder may have removed it in between: a lock on a file without a name keeps nobody out.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                os.close(handle)
                return None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                os.close(handle)
                raise
            return handle  # no locks here
        os.close(handle)


def _take_lock(handle: int) -> None:
    """Raises ``OSError`` where another process has the lock."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        # Not flock: the workers that load frames would inherit it, and outlive a killed training for seconds.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def natural_order(stem: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``2`` comes before ``10``."""
    parts = re.split(r"([0-9]+)", stem)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part]
