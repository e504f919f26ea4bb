"""Models on the Hugging Face hub: ``hf://owner/name[@revision]`` to a folder, and files to a repository.

The hub is asked only about such a name. Of its repository nothing is fetched but ``metadata.json``, the weights and the
exports that it names, and the same of an ensemble's members: formats that contain no code. The token is
huggingface_hub's own matter (``hf auth login`` or HF_TOKEN); it is neither read nor written here.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.metadata import (
    FRAMES_FILE,
    METADATA_FILE,
    MOST_BYTES,
    MOST_FILE_BYTES,
    MOST_FRAMES_BYTES,
    WEIGHTS_FILE,
    export_files,
    member_names,
    read_metadata,
)

log = logging.getLogger("polypseg")
PREFIX = "hf://"
_TIMEOUT = 10.0  # seconds without a response
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch(reference: str) -> Path:
    """The folder, in the hub's cache, that contains the bundle which ``reference`` names; what is missing is fetched.

    A commit that was fetched before needs no network. Of a branch or a tag, or of none, which is ``main``, the hub is
    asked for the commit, and a warning says so.

    Args:
        reference: ``hf://owner/name`` or ``hf://owner/name@revision``; a commit, a tag or a branch.

    Raises:
        UsageError: ``reference`` is not of this form.
        PolypsegError: the hub cannot be reached, refuses, or has no such repository, revision or bundle.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision = _parse(reference)
    _silence()
    pinned = _COMMIT.fullmatch(revision) is not None
    try:
        # hf_hub_download keeps trying for half a minute where there is no network. The question for the file's size,
        # which is not repeated, says that at once.
        metadata = Path(_download(hub, repository, METADATA_FILE, revision))
        commit = metadata.parent.name  # the cache keeps files as snapshots/COMMIT/NAME

        def take(names: Iterable[str]) -> None:
            for name in names:
                try:
                    _download(hub, repository, name, commit)
                except LocalEntryNotFoundError:
                    raise
                except EntryNotFoundError:
                    continue  # opening the bundle says what is missing

        members = _names(member_names, read_metadata(metadata), reference)
        take(f"{member}/{METADATA_FILE}" for member in members)
        for part in members or [""]:
            file = metadata.parent / part / METADATA_FILE
            described = read_metadata(file) if file.is_file() else {}
            names = [WEIGHTS_FILE, *([FRAMES_FILE] if "frames" in described else [])]
            take(f"{part}/{name}".lstrip("/") for name in names + _names(export_files, described, reference))
    except PolypsegError:
        raise
    except Exception as error:  # the hub's transport errors share no base class across its versions
        raise _explained(error, reference, repository, revision) from error
    if not pinned:
        log.warning(
            "%s%s: %s is commit %s now; %s%s@%s stays this one",
            PREFIX, repository, revision, commit, PREFIX, repository, commit,
        )  # fmt: skip
    return metadata.parent


def upload(files: Mapping[str, Path | bytes], repository: str, *, private: bool = True, message: str = "Upload") -> str:
    """Put files into a repository of the hub, in one commit; the repository is made where there is none.

    Args:
        files: what to upload, by its name in the repository.
        repository: ``owner/name``.
        private: of a repository that is made; one that exists stays as it is.
        message: of the commit.

    Returns:
        The reference that stays with what was uploaded, ``hf://owner/name@commit``.

    Raises:
        UsageError: ``repository`` is no ``owner/name``.
        PolypsegError: the hub cannot be reached or refuses.
    """
    import huggingface_hub as hub

    repository, revision = _parse(f"{PREFIX}{repository.removeprefix(PREFIX)}")
    _silence()
    api = hub.HfApi()
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.create_commit(repository, operations, commit_message=message)
    except Exception as error:
        raise _explained(error, f"{PREFIX}{repository}", repository, revision) from error
    return f"{PREFIX}{repository}@{made.oid}"


def _parse(reference: str) -> tuple[str, str]:
    repository, _, revision = reference.removeprefix(PREFIX).partition("@")
    named = "@" not in reference or _REVISION.fullmatch(revision)
    if not named or not _REPOSITORY.fullmatch(repository) or ".." in reference:
        raise UsageError(f"{reference}: is no {PREFIX}owner/name or {PREFIX}owner/name@revision")
    return repository, revision or "main"


def _silence() -> None:
    """Nothing phones home: without this the hub's client first asks its server for a list of coding agents."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def _download(hub: Any, repository: str, name: str, revision: str) -> str:
    """A file of the repository, in the cache; fetched where it is not there, if it is of a size that a bundle has.

    Raises:
        PolypsegError: it is larger.
    """
    cached = hub.try_to_load_from_cache(repository, name, revision=revision)
    if not isinstance(cached, str) or _COMMIT.fullmatch(revision) is None:
        url = hub.hf_hub_url(repository, name, revision=revision)
        size = hub.get_hf_file_metadata(url, timeout=_TIMEOUT).size
        limits = {METADATA_FILE: MOST_BYTES, FRAMES_FILE: MOST_FRAMES_BYTES}
        most = limits.get(name.rpartition("/")[2], MOST_FILE_BYTES)
        if size is None or size > most:
            told = "of unknown size" if size is None else f"of {size:,} bytes, more than any bundle's"
            raise PolypsegError(f"{PREFIX}{repository}: its {name} is {told}; do not use it")
    return str(hub.hf_hub_download(repository, name, revision=revision, etag_timeout=_TIMEOUT))


def _cached(hub: Any, repository: str, revision: str) -> Path | None:
    """The ``metadata.json`` that an earlier call fetched."""
    file = hub.try_to_load_from_cache(repository, METADATA_FILE, revision=revision)
    return Path(file) if isinstance(file, str) else None


def _names(of: Callable[[Any], list[str]], metadata: Any, reference: str) -> list[str]:
    """Names in ``metadata.json``; none where it is not as it should be: opening it says so.

    Raises:
        PolypsegError: one is none that may be fetched.
    """
    try:
        return of(metadata)
    except (AttributeError, KeyError, TypeError):
        return []
    except ValueError as error:
        raise PolypsegError(f"{reference}: its {METADATA_FILE} {error}; do not use it") from error


def _explained(error: Exception, reference: str, repository: str, revision: str) -> PolypsegError:
    """One line for what went wrong between this machine and the hub."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return PolypsegError(f"{reference}: its owner grants access one by one; ask for it on its page, and {_LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return PolypsegError(f"{reference}: the hub's repository has no revision {revision!r}; name one that it has")
    # The former is the cache's response, not the hub's.
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return PolypsegError(f"{reference}: contains no {METADATA_FILE}, so no bundle of polypseg; name another")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return PolypsegError(f"{reference}: is not on the hub, or not open to you; check the name, or {_LOGIN}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return PolypsegError(
            f"{constants.HF_HUB_CACHE}: cannot be written ({error.strerror}); free some space, or set HF_HOME to "
            "another folder"
        )
    reason = " ".join(str(error).split())[:240] or type(error).__name__
    kept = _cached(hub, repository, revision)
    here = f"; or name the commit that is here, {PREFIX}{repository}@{kept.parent.name}" if kept else ""
    return PolypsegError(
        f"{reference}: the Hugging Face hub cannot be reached, or fails ({reason}); connect, or set HF_ENDPOINT to a "
        f"mirror or HF_HOME to a filled cache{here}"
    )
