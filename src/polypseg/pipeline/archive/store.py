"""Where the files of an archive's frames and results are: a folder, or whatever fsspec opens. Writes are atomic."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write, disk_error

# Stores that show an object only when all of it is there; elsewhere a rename is needed for that.
_WHOLE_OR_NOT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
_INSTALL = "pip install 'polypseg[archive]'"
MOST_FRAME_BYTES = 2**30  # a frame of the most pixels takes 640 MB, of 16 bits and without any compression


def is_url(name: str) -> bool:
    """Whether a name is for fsspec; a folder's is not, even as ``file://``."""
    return "://" in name and not name.startswith("file://")


def plain(name: str) -> str:
    """An absolute path of a plain name or a ``file://`` URL; other URLs without a slash at their end."""
    if is_url(name):
        return name.rstrip("/")
    return os.path.abspath(name.removeprefix("file://"))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, patient with a store that is busy, and the path in it.

    Raises:
        UsageError: fsspec has nothing of that name.
        PolypsegError: a package is not installed, or the store cannot be opened.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise UsageError(f"{url}: chained URLs are not read; unpack it first")
    try:
        import fsspec
    except ImportError as error:
        raise PolypsegError(f"{url}: fsspec is not installed; {_INSTALL}") from error
    try:
        fs, path = fsspec.core.url_to_fs(url, **_options(protocol))
    except Exception as error:  # whatever its backend raises
        if isinstance(error, ValueError) and protocol not in fsspec.available_protocols():
            raise UsageError(f"{url}: fsspec knows no {protocol}://; check the name") from error
        raise store_error(url, error) from error
    return fs, str(path).rstrip("/")


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in ("s3", "s3a"):
        return {}
    retries: dict[str, Any] = {"mode": "standard"}  # waits longer each time, at 503 and the like
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["max_attempts"] = 8
    return {
        "config_kwargs": {"retries": retries, "connect_timeout": 10},
        "use_listings_cache": False,  # it would keep every name of a bucket
        "max_concurrency": 1,  # for one object: else each is asked for its size first
    }


def read_bytes(name: str) -> bytes:
    """A file's or an object's content.

    Raises:
        OSError: this one cannot be had, is no file, or is larger than a frame can be; others may be had.
        PolypsegError: the store does not respond, or refuses everybody: no fault of this one file.
    """
    if not is_url(name):
        try:
            found = os.stat(name)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is no file", name)
            if found.st_size > MOST_FRAME_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {MOST_FRAME_BYTES // 2**20} MiB", name)
            return Path(name).read_bytes()
        except ValueError as error:  # a NUL in its name
            raise FileNotFoundError(errno.ENOENT, str(error), name) from error
    fs, path = filesystem(name)
    try:
        content: bytes = fs.cat_file(path)
        return content
    except (FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:
        if isinstance(error, PermissionError) and not _is_about_credentials(error):
            raise
        raise store_error(name, error) from error


def store_error(name: str, error: BaseException) -> PolypsegError:
    """The one line for whatever a file system or a store raises."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
    if isinstance(error, PolypsegError):
        return error
    if isinstance(error, ImportError):
        return PolypsegError(f"{name}: a package for it is not installed ({reason}); {_INSTALL}")
    if isinstance(error, FileNotFoundError):
        return PolypsegError(f"{name}: is missing; check the name")
    if isinstance(error, PermissionError) or "credential" in reason.lower():
        return PolypsegError(f"{name}: access is refused ({reason}); check permissions and credentials")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_error(Path(name), error)
    return PolypsegError(f"{name}: cannot be reached ({reason}); run it again, with --resume, when it responds")


def _is_about_credentials(error: PermissionError) -> bool:
    """Whether every frame will be refused; S3 gives the same exception for one object's own permissions."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code is not None and code not in ("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403")


class Store:
    """The folder of a run's results: a local one, or a URL's.

    Args:
        root: a path or a URL.

    Raises:
        UsageError, PolypsegError: as ``filesystem``.
    """

    def __init__(self, root: str) -> None:
        self.root = plain(root)
        self._remote = is_url(root)
        self._fs: Any = None
        self._path = self.root
        if self._remote:
            self._fs, self._path = filesystem(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def place(self, name: str) -> str:
        """The path or URL of one of its files."""
        return f"{self.root}/{name}" if self._remote else os.path.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether a file is there, whole."""
        if not self._remote:
            return os.path.isfile(self.place(name))
        with self._told(name):
            return bool(self._fs.exists(f"{self._path}/{name}"))

    def names(self, folder: str) -> list[str]:
        """The names of a folder's files, in order; none where it is missing."""
        try:
            if not self._remote:
                return sorted(os.listdir(self.place(folder)))
            found = self._fs.ls(f"{self._path}/{folder}", detail=False, refresh=True)
            return sorted(str(one).rstrip("/").rsplit("/", 1)[-1] for one in found)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise store_error(self.place(folder), error) from error

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read, anywhere in it. Raises ``PolypsegError`` where it is missing."""
        with self._told(name):
            if not self._remote:
                return open(self.place(name), "rb")
            opened: IO[bytes] = self._fs.open(f"{self._path}/{name}", "rb")
            return opened

    def read(self, name: str) -> bytes:
        """A file's content. Raises ``PolypsegError`` where it is missing."""
        with self._told(name):
            return read_bytes(self.place(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file: whatever ends the writer, it is there whole or not at all.

        Raises:
            PolypsegError: the disk is full, or the store refuses.
        """
        if not self._remote:
            with atomic_write(self.place(name)) as file:
                file.write(content)
            return
        with self._told(name), self._named_last(f"{self._path}/{name}") as path:
            self._fs.pipe_file(path, content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """As ``write``, for what is too large for the memory: a file to write to; nothing is kept of a failure."""
        if not self._remote:
            with atomic_write(self.place(name)) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(prefix="polypseg-") as file:
            yield file
            file.flush()
            with self._told(name), self._named_last(f"{self._path}/{name}") as path:
                self._fs.put_file(file.name, path)

    def remove(self, name: str) -> None:
        """Remove a file or a folder; that it is missing is no error."""
        try:
            if self._remote:
                if self._fs.exists(f"{self._path}/{name}"):
                    self._fs.rm(f"{self._path}/{name}", recursive=True)
            elif os.path.isdir(self.place(name)):
                shutil.rmtree(self.place(name))
            else:
                Path(self.place(name)).unlink(missing_ok=True)
        except Exception as error:
            raise store_error(self.place(name), error) from error

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left in a folder."""
        for name in self.names(folder):
            if name.startswith(".") and name.endswith(".part"):
                self.remove(f"{folder}/{name}")

    @contextlib.contextmanager
    def _named_last(self, path: str) -> Iterator[str]:
        """A path to write to that becomes ``path`` when all is written."""
        if self.root.partition("://")[0] in _WHOLE_OR_NOT:
            yield path
            return
        folder, _, name = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.{secrets.token_hex(6)}.part"
        yield temporary
        self._fs.mv(temporary, path)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not self._remote:
                here = f"{self.place(name)}: is not there on {socket.gethostname()}"
                raise PolypsegError(f"{here}; --out must be a place that all workers see") from error
            raise store_error(self.place(name), error) from error
