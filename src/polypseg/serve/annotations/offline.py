"""The projects of a state folder while no service works in it: filled and emptied by the command line."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write
from polypseg.names import DataFormat
from polypseg.serve.annotations.answers import import_of
from polypseg.serve.annotations.database import FILE
from polypseg.serve.annotations.exports import export, write_zip
from polypseg.serve.annotations.imports import READ_SECONDS, Imports
from polypseg.serve.annotations.labels import Labels
from polypseg.serve.annotations.store import Store
from polypseg.serve.decoding import Decoders
from polypseg.serve.people import LOCAL
from polypseg.serve.settings import Settings
from polypseg.serve.state import open_state


def take_in(state: Path, labels: Labels, project: str, source: Path, frame_state: str) -> tuple[str, dict[str, Any]]:
    """Import a data set, as the service does; the project's id, and the import at its end.

    Args:
        state: the state folder; made where there is none.
        labels: what polyps may be called.
        project: id or name; made where there is none.
        source: a folder, a ZIP file or a picture.
        frame_state: of frames that come with a mask or labels, as ``Imports.submit`` takes it.

    Raises:
        PolypsegError: a service works in the state folder, the source cannot be read, or the disk refuses.
        UsageError: several projects have that name.
    """
    uploads = _files(source)
    settings = Settings(state, labels=labels)
    with _opened(state, labels) as store:
        known = _project(store, project)
        identity = known or store.create_project(project)
        with (
            contextlib.closing(Decoders(settings.decode_seconds, settings.decode_memory)) as decoders,
            contextlib.closing(Decoders(READ_SECONDS, settings.decode_memory)) as readers,
        ):
            imports = Imports(store, settings, decoders, readers)
            row = imports.submit(identity, uploads, frame_state, LOCAL)
            imports.work(row, lambda: None)
            found = import_of(imports.get(identity, row["id"]))
        if known is None and not found["added"]:  # nobody wants an empty one
            for for_good in (False, True):
                store.delete_project(identity, for_good)
        return identity, found


def give_out(state: Path, labels: Labels, project: str, kind: DataFormat, states: Sequence[str], out: Path) -> int:
    """Export a project, as the service does; how many frames it gave.

    Args:
        state: the state folder.
        labels: what polyps may be called.
        project: id or name.
        kind: ``folder`` (images and masks), ``coco`` or ``yolo``.
        states: of the frames.
        out: a new folder, or a ZIP file where its name ends so.

    Raises:
        PolypsegError: a service works in the state folder, it has no annotations, no frame is in these states, one has
            no mask yet, ``out`` is there already, or the disk refuses.
        UsageError: there is no such project.
    """
    if not (state / FILE).is_file():
        raise PolypsegError(f"{state}: contains no annotations; name the --state folder of `polypseg serve`")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise PolypsegError(f"{out}: is there already; choose another --out, or remove it")
    with _opened(state, labels) as store:
        found = _project(store, project)
        if found is None:
            raise UsageError(f"--project {project}: is no project; choose one of {', '.join(store.projects())}")
        if out.suffix.lower() == ".zip":
            with atomic_write(out) as file:
                return write_zip(store, found, kind, states, file)

        with _whole(out) as part:

            def put(name: str, content: bytes | Path) -> None:
                with atomic_write(part / name) as file:
                    if isinstance(content, Path):
                        with content.open("rb") as picture:
                            shutil.copyfileobj(picture, file, 1 << 20)
                    else:
                        file.write(content)

            return export(store, found, kind, states, put)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Another folder beside it, which becomes it when all is written."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _opened(state: Path, labels: Labels) -> Iterator[Store]:
    """The projects, for this process alone; whatever refuses is one line."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(open_state(state)))
        store = stack.enter_context(contextlib.closing(Store(state, labels)))
        try:
            yield store
        except HTTPException as refusal:
            raise PolypsegError(str(refusal.detail)) from refusal
        except (OSError, sqlite3.Error) as error:
            line = f"{state}: cannot be used ({getattr(error, 'strerror', None) or error}); run it again when it can"
            raise PolypsegError(line) from error


def _project(store: Store, called: str) -> str | None:
    """The id of a project by that or by its name; None where there is none."""
    names = {one: store.project(one)["name"] for one in store.projects()}
    if called in names:
        return called
    found = [one for one, name in names.items() if name.casefold() == called.casefold()]
    if len(found) > 1:
        raise UsageError(f"--project {called}: is what {len(found)} are called; choose one of {', '.join(found)}")
    return found[0] if found else None


def _files(source: Path) -> list[tuple[str | None, Path]]:
    """What is to be imported, each file with its folders' names."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise PolypsegError(f"{source}: is missing; name a folder with images/, or a ZIP file of one")
    found = [path for path in sorted(source.rglob("*")) if path.is_file()]
    names = [path.relative_to(source) for path in found]
    visible = [not any(part.startswith(".") for part in name.parts) for name in names]
    files: list[tuple[str | None, Path]] = [
        (f"{source.resolve().name}/{name.as_posix()}", path)
        for path, name, shown in zip(found, names, visible, strict=True) if shown
    ]  # fmt: skip
    if not files:
        raise PolypsegError(f"{source}: contains no file; name a folder with images/")
    return files
