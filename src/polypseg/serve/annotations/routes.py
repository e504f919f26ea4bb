"""The routes of annotating."""

from __future__ import annotations

import json
import secrets
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, File, Form, Query, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response
from numpy.typing import NDArray
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from polypseg.inference.segmenter import Segmenter
from polypseg.names import DataFormat, FrameState
from polypseg.serve.annotations import answers
from polypseg.serve.annotations.answers import frame_of, import_of, project_of, version_of
from polypseg.serve.annotations.exports import write_zip
from polypseg.serve.annotations.imports import READ_SECONDS, Imports
from polypseg.serve.annotations.listing import Order, Presence, Wanted, listed
from polypseg.serve.annotations.regions import Given
from polypseg.serve.annotations.store import (
    CORRECTIONS,
    REVIEWED,
    STATES,
    Conflict,
    Save,
    Store,
    picture_of,
)
from polypseg.serve.annotations.training import MOST_EPOCHS, Training
from polypseg.serve.annotations.work import Work
from polypseg.serve.corrections import png
from polypseg.serve.decoding import Decoders
from polypseg.serve.guard import AUTHOR
from polypseg.serve.people import LOCAL
from polypseg.serve.responses import BINARY, BODY, refusals
from polypseg.serve.settings import Settings
from polypseg.serve.state import now
from polypseg.serve.uploads import read_still, read_still_mask

Share = Annotated[float | None, Query(ge=0, le=1)]
MOST_LABELLED = 2000  # polyps of a save
IMPORTED = "Of frames that come with a mask or labels; with accepted, frames.json of an export comes first"
MOST_HASHES = 200  # of a query: its line would be too long
TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".bmp": "image/bmp", ".tif": "image/tiff", ".webp": "image/webp",
}  # fmt: skip


class Reading(Protocol):
    """What decodes uploads."""

    def read(self, upload: UploadFile, name: str | None) -> NDArray[Any]:
        """The frame of an upload."""

    def read_mask(self, upload: UploadFile) -> NDArray[Any]:
        """The mask of an upload."""


class Annotating:
    """The parts that annotating is made of; they start and stop with the service.

    Raises:
        PolypsegError: another process uses the state folder, or it cannot be written.
    """

    def __init__(self, segmenter: Segmenter, settings: Settings, decoders: Decoders) -> None:
        self._settings, self._decoders = settings, decoders
        self._readers = Decoders(READ_SECONDS, settings.decode_memory)
        self.labels = settings.labels
        self.store = Store(settings.state, settings.labels)
        self.presence = Presence()
        self.imports = Imports(self.store, settings, decoders, self._readers)
        self.work = Work(self.store, self.imports, segmenter)
        self.training = Training(settings.state, self.store, segmenter.bundle)
        self.mark = secrets.token_hex(4)  # of this process, in ETags

    def start(self) -> None:
        """Take in what lies in ``corrections/``, and begin."""
        most = self._settings.max_pixels

        def decode(image: Path, mask: Path) -> tuple[NDArray[Any], NDArray[Any]]:
            pixels = self._decoders.call(image.name, read_still, image, image.name, most)
            return pixels, self._decoders.call(mask.name, read_still_mask, mask, mask.name, most)

        self.imports.note(CORRECTIONS, self.store.read_corrections(decode))
        self.imports.tidy()
        self.work.start()
        self.training.start()

    def use(self, segmenter: Segmenter) -> None:
        """Predict and fine-tune with another model from now on."""
        self.work.segmenter = segmenter
        self.training.bundle = segmenter.bundle
        self.work.wake()

    def stop(self, seconds: float) -> None:
        """End; what is in work is continued by the next process."""
        self.training.stop()
        self._readers.close()
        self.work.stop(seconds)


def add_routes(app: FastAPI, annotating: Annotating, frames: Reading, temporary: Path) -> None:  # noqa: C901  (a function a route)
    """Add them to an application.

    Args:
        app: whose routes are strict.
        annotating: what they ask.
        frames: what decodes uploads.
        temporary: where a ZIP file is written before it is sent.
    """
    store, presence, imports, training = annotating.store, annotating.presence, annotating.imports, annotating.training

    async def done(work: Callable[..., Any], *arguments: Any) -> Any:
        return await run_in_threadpool(work, *arguments)

    @app.exception_handler(Conflict)
    async def superseded(_: Request, conflict: Conflict) -> JSONResponse:
        row = conflict.row
        who = f"{row['author']} saved version {row['version']} of this frame at {row['time']}"
        line = f"{who}; look at it, then save again" if row["version"] else "the frame has no version yet; base it on 0"
        content = {"error": line, **{key: row[key] for key in ("version", "author", "time")}}
        return JSONResponse(content, 409)

    def frame_answer(row: dict[str, Any], status: int = 200) -> JSONResponse:
        who = [one["name"] for one in presence.of(row["project"], row["hash"])]
        return JSONResponse(frame_of(row, who), status)

    def project_answer(project: str, status: int = 200) -> JSONResponse:
        return JSONResponse(project_of(store.project(project), imports.newest(project)), status)

    # ---- who asks, and what polyps may be called ---------------------------------------------------------

    @app.get("/v1/me", tags=["annotating"], responses=refusals())
    async def me(request: Request) -> answers.Me:
        """Who asks, as versions will say."""
        return answers.Me(name=author_of(request))

    @app.get("/v1/labels", tags=["annotating"], responses=refusals())
    async def labels() -> answers.Labels:
        """The classes and attributes of polyps, and the states of frames."""
        return answers.Labels(**asdict(annotating.labels), states=list(STATES))

    # ---- projects ----------------------------------------------------------------------------------------

    @app.get("/v1/projects", tags=["projects"], responses=described(list[answers.Project]))
    async def projects(deleted: Annotated[bool, Query(description="The deleted ones instead")] = False) -> Response:
        """The projects; the corrections first."""

        def told() -> list[dict[str, Any]]:
            return [project_of(store.project(one), imports.newest(one)) for one in store.projects(deleted)]

        return JSONResponse(await done(told))

    @app.post(
        "/v1/projects", tags=["projects"], status_code=201, responses=described(answers.Project, *BODY, 507, status=201)
    )
    async def create(name: Annotated[str, Form(description="What to call it")]) -> Response:
        """Make a project."""
        return await done(project_answer, await done(store.create_project, name), 201)  # type: ignore[no-any-return]

    @app.get("/v1/projects/{project}", tags=["projects"], responses=described(answers.Project, 404))
    async def project_(project: str) -> Response:
        """One project: its frames by state, its newest import."""
        return await done(project_answer, project)  # type: ignore[no-any-return]

    @app.delete("/v1/projects/{project}", tags=["projects"], responses=removable(answers.Project))
    async def delete_project(
        project: str, for_good: Annotated[bool, Query(description="With all its files; only of a deleted one")] = False
    ) -> Response:
        """Delete a project; it can be restored until it is removed for good."""
        await done(store.delete_project, project, for_good)
        return Response(status_code=204) if for_good else await done(project_answer, project)

    @app.post("/v1/projects/{project}/restore", tags=["projects"], responses=described(answers.Project, 404, 507))
    async def restore_project(project: str) -> Response:
        """Restore a deleted project."""
        await done(store.restore_project, project)
        return await done(project_answer, project)  # type: ignore[no-any-return]

    # ---- in and out --------------------------------------------------------------------------------------

    @app.post(
        "/v1/projects/{project}/imports", tags=["projects"], status_code=202,
        responses=described(answers.Import, *BODY, 404, 409, 507, status=202),
    )  # fmt: skip
    async def take_in(
        request: Request,
        project: str,
        file: Annotated[list[UploadFile], File(description="A ZIP file, or files whose names contain their folders")],
        state: Annotated[FrameState, Form(description=IMPORTED)] = "accepted",
    ) -> Response:
        """Take in images and masks, COCO, YOLO, or pictures alone, in the background."""
        uploads = [(one.filename, one.file) for one in file]
        row = await done(imports.submit, project, uploads, state, author_of(request))
        annotating.work.wake()
        return JSONResponse(import_of(row), 202)

    @app.get("/v1/projects/{project}/imports/{id}", tags=["projects"], responses=described(answers.Import, 404))
    async def taken_in(project: str, id: str) -> Response:
        """How far an import is, and what could not be read."""
        return JSONResponse(import_of(await done(imports.get, project, id)))

    @app.get(
        "/v1/projects/{project}/export", tags=["projects"], response_class=FileResponse,
        responses={200: {"content": {"application/zip": {"schema": BINARY}}}, **refusals(404, 409, 507)},
    )  # fmt: skip
    async def give_out(
        project: str,
        format: Annotated[DataFormat, Query(description="Images and masks, COCO or YOLO")] = "folder",
        state: Annotated[list[FrameState], Query(description="Of the frames")] = list(REVIEWED),  # noqa: B006  (FastAPI copies it)
    ) -> Response:
        """A data set of the frames, as `polypseg data check` and `polypseg train` read it."""
        with tempfile.NamedTemporaryFile(dir=temporary, suffix=".zip", delete=False) as target:
            path = Path(target.name)
        try:
            await done(write_zip, store, project, format, state, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return FileResponse(
            path, media_type="application/zip", filename=f"{project}-{format}.zip",
            background=BackgroundTask(path.unlink, missing_ok=True),
        )  # fmt: skip

    # ---- frames ------------------------------------------------------------------------------------------

    @app.get(
        "/v1/projects/{project}/frames", tags=["frames of a project"],
        responses={304: {"description": "As If-None-Match has it"}, **described(answers.FrameList, 404)},
    )  # fmt: skip
    async def frames_of(  # noqa: PLR0913  (a filter each)
        request: Request,
        project: str,
        order: Annotated[Order, Query(description="By name, last change, or what the model is least sure of")] = "name",
        offset: Annotated[int, Query(ge=0, le=10**9, description="Frames before the page")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="Frames, for the most")] = 100,
        state: Annotated[list[FrameState], Query(description="One of these")] = [],  # noqa: B006  (FastAPI copies it)
        label: Annotated[list[str], Query(description="Each of these: a class, or attribute:value")] = [],  # noqa: B006
        min_area: Share = None,
        max_area: Share = None,
        min_confidence: Share = None,
        max_confidence: Share = None,
        name: Annotated[str | None, Query(description="The name contains this")] = None,
        hash: Annotated[list[str], Query(max_length=MOST_HASHES, description="One of these")] = [],  # noqa: B006
        deleted: Annotated[bool, Query(description="The deleted ones instead")] = False,
    ) -> Response:
        """Frames of a project, filtered and ordered, a page at a time."""
        wanted = Wanted(
            state, label, min_area, max_area, min_confidence, max_confidence, name, hash, deleted,
        )  # fmt: skip

        def told() -> Response:
            row = store.project(project)
            tag = f'"{annotating.mark}-{row["revision"]}-{zlib.crc32(presence.key(project).encode()):x}"'
            known = request.headers.get("if-none-match", "").split(",")
            if tag in [one.strip().removeprefix("W/") for one in known]:
                return Response(status_code=304, headers={"etag": tag, "cache-control": "no-cache"})
            matching, found = listed(store, project, wanted, order, offset, limit)
            content = {
                **{key: row[key] for key in ("total", "counts", "revision")},
                "matching": matching,
                "frames": [frame_of(one, [who["name"] for who in presence.of(project, one["hash"])]) for one in found],
            }
            return JSONResponse(content, headers={"etag": tag, "cache-control": "no-cache"})

        return await done(told)  # type: ignore[no-any-return]

    @app.post(
        "/v1/projects/{project}/frames", tags=["frames of a project"], status_code=201,
        responses={
            200: {"model": answers.AnnotatedFrame, "description": "It is there already"},
            **described(answers.AnnotatedFrame, *BODY, 404, 409, 507, status=201),
        },
    )  # fmt: skip
    async def add(
        project: str,
        frame: Annotated[UploadFile, File(description="The frame")],
        name: Annotated[str, Form(description="What to call it")],
    ) -> Response:
        """Add a frame; one whose content is there already is told."""

        def kept() -> Response:
            store.project(project, deleted=False)
            pixels = frames.read(frame, "frame")
            frame.file.seek(0)
            row, fresh = store.add(project, picture_of(name, pixels, frame.file.read()))
            return frame_answer(row, 201 if fresh else 200)

        return await done(kept)  # type: ignore[no-any-return]

    at = "/v1/projects/{project}/frames/{hash}"

    @app.get(at, tags=["frames of a project"], responses=described(answers.AnnotatedFrame, 404))
    async def frame_(project: str, hash: str) -> Response:
        """One frame."""
        return frame_answer(await done(store.frame, project, hash))

    @app.delete(at, tags=["frames of a project"], responses=removable(answers.AnnotatedFrame))
    async def delete(
        project: str, hash: str, for_good: Annotated[bool, Query(description="Only of a deleted one")] = False
    ) -> Response:
        """Delete a frame; it can be restored until it is removed for good, with its versions."""
        await done(store.delete, project, hash, for_good)
        return Response(status_code=204) if for_good else frame_answer(await done(store.frame, project, hash))

    @app.post(f"{at}/restore", tags=["frames of a project"], responses=described(answers.AnnotatedFrame, 404, 507))
    async def restore(project: str, hash: str) -> Response:
        """Restore a deleted frame."""
        await done(store.restore, project, hash)
        return frame_answer(await done(store.frame, project, hash))

    @app.get(
        f"{at}/image", tags=["frames of a project"], response_class=FileResponse,
        responses={
            200: {"content": {kind: {"schema": BINARY} for kind in TYPES.values()}, "description": "The picture"},
            206: {"content": {"*/*": {"schema": BINARY}}, "description": "The bytes that Range asks for"},
            **refusals(400, 404, 416),
        },
    )  # fmt: skip
    async def image(
        project: str,
        hash: str,
        format: Annotated[Literal["sent", "png"], Query(description="As it was sent, or PNG")] = "sent",
    ) -> Response:
        """The picture of a frame."""
        path = await done(store.image, project, hash)
        if format == "png" and path.suffix != ".png":
            content = await done(lambda: png(store.pixels(store.frame(project, hash))[..., ::-1]))
            return Response(content, media_type="image/png")
        return FileResponse(path, media_type=TYPES.get(path.suffix, "image/png"))

    @app.get(
        f"{at}/thumbnail", tags=["frames of a project"], response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {"schema": BINARY}}, "description": "With the outline of its mask"},
            304: {"description": "As If-None-Match has it"}, **refusals(404),
        },
    )  # fmt: skip
    async def thumbnail(request: Request, project: str, hash: str) -> Response:
        """A small picture of a frame, with the outline of its newest mask."""
        row = await done(store.frame, project, hash)
        tag = f'"{row["version"]}-{(row["predicted"] or "none")[:16]}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(await done(store.thumbnail, project, hash), media_type="image/jpeg", headers=headers)

    @app.get(
        f"{at}/mask", tags=["frames of a project"], response_class=FileResponse,
        responses={
            200: {"content": {"image/png": {"schema": BINARY}}, "description": "0 and 255, of the frame's size"},
            206: {"content": {"*/*": {"schema": BINARY}}, "description": "The bytes that Range asks for"},
            **refusals(400, 404, 416),
        },
    )  # fmt: skip
    async def mask_(
        project: str, hash: str,
        version: Annotated[int | None, Query(ge=0, le=10**9, description="0: the prediction; else the newest")] = None,
    ) -> Response:  # fmt: skip
        """The mask of a version."""
        path = await done(store.mask_path, project, hash, version)
        return FileResponse(path, media_type="image/png")

    # ---- versions ----------------------------------------------------------------------------------------

    @app.get(f"{at}/versions", tags=["versions"], responses=described(list[answers.Version], 404))
    async def versions(project: str, hash: str) -> Response:
        """The versions of a frame, the newest first."""
        return JSONResponse([version_of(row) for row in await done(store.versions, project, hash)])

    saved = {
        200: {"model": answers.AnnotatedFrame, "description": "It is so already"},
        **described(answers.AnnotatedFrame, *BODY, 404, 507, status=201),
        409: {"model": answers.Superseded, "description": "Somebody else saved since, or it is deleted"},
    }

    @app.post(f"{at}/versions", tags=["versions"], status_code=201, responses=saved)
    async def save(
        request: Request,
        project: str,
        hash: str,
        based_on: Annotated[int, Form(ge=0, le=10**9, description="The version that it was made from")],
        state: Annotated[FrameState, Form(description="Of the frame")],
        mask: Annotated[UploadFile | None, File(description="White on black; the newest version's by default")] = None,
        polyps: Annotated[
            str | None, Form(description="JSON: [{at: [x, y], class, attributes}], a region each")
        ] = None,
    ) -> Response:
        """Save what somebody made of a frame, as a new version."""
        given = None if polyps is None else polyps_of(polyps, annotating.labels.default)

        def kept() -> Response:
            store.frame(project, hash)
            drawn = None if mask is None else frames.read_mask(mask)
            row, fresh = store.save(project, hash, Save(based_on, state, drawn, given), author_of(request))
            return frame_answer(row, 201 if fresh else 200)

        return await done(kept)  # type: ignore[no-any-return]

    @app.post(f"{at}/versions/{{version}}/restore", tags=["versions"], status_code=201, responses=saved)
    async def take_back(
        request: Request,
        project: str,
        hash: str,
        version: int,
        based_on: Annotated[int, Form(ge=0, le=10**9, description="The newest version that is known")],
    ) -> Response:
        """Take an older version back, as a new one."""
        if not 0 <= version <= 10**9:
            raise HTTPException(404, "the frame has no such version")
        row, fresh = await done(store.take_back, project, hash, version, based_on, author_of(request))
        return frame_answer(row, 201 if fresh else 200)

    @app.post(f"{at}/presence", tags=["versions"], responses=described(answers.Here, *BODY, 404))
    async def here(
        request: Request,
        project: str,
        hash: str,
        client: Annotated[str, Form(pattern="^[A-Za-z0-9_-]{1,64}$", description="A random name of the page's own")],
        leave: Annotated[bool, Form(description="It is closed")] = False,
    ) -> Response:
        """Say that a page has a frame open, every ten seconds; who else has, and its newest version."""
        row = await done(store.frame, project, hash)
        if leave:
            presence.leave(client)
        else:
            presence.enter(project, hash, client, author_of(request), now())
        kept = {key: row[key] for key in ("version", "author", "time")}
        return JSONResponse({**kept, "others": presence.of(project, hash, but=client)})

    # ---- fine-tuning -------------------------------------------------------------------------------------

    @app.post(
        "/v1/projects/{project}/training", tags=["fine-tuning"], status_code=202,
        responses=described(answers.FineTuning, *BODY, 404, 409, 501, 507, status=202),
    )  # fmt: skip
    async def train(
        request: Request,
        project: str,
        epochs: Annotated[int, Form(ge=1, le=MOST_EPOCHS, description="Passes over the frames")] = 10,
    ) -> Response:
        """Fine-tune the service's model on the frames that were looked at, in the background; one at a time."""
        return JSONResponse(await done(training.begin, project, epochs, author_of(request)), 202)

    @app.get("/v1/training", tags=["fine-tuning"], responses=described(answers.FineTuning))
    async def trained() -> Response:
        """How far the newest fine-tuning is, and its curve."""
        return JSONResponse(await done(training.told))

    @app.delete("/v1/training", tags=["fine-tuning"], responses=described(answers.FineTuning, 409, 507))
    async def cancel() -> Response:
        """Cancel the fine-tuning that runs."""
        return JSONResponse(await done(training.cancel))


def author_of(request: Request) -> str:
    """Who sent a request."""
    return str(request.scope.get(AUTHOR, LOCAL))


def described(model: Any, *statuses: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """A route's responses: what it gives, and its refusals."""
    return {**refusals(*statuses), status: {"model": model}}


def removable(model: Any) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that deletes."""
    return {204: {"description": "Removed for good"}, **described(model, 404, 409, 507)}


def polyps_of(text: str, default: str) -> list[Given]:
    """What a form says of regions.

    Raises:
        HTTPException: 422 it is no list of them.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, list) or len(content) > MOST_LABELLED:
            raise ValueError
        found = []
        for one in content:
            x, y = one["at"]
            label, attributes = one.get("class", default), one.get("attributes", {})
            whole = type(x) is int and type(y) is int
            texts = isinstance(label, str) and all(isinstance(value, str) for value in attributes.values())
            if not whole or not texts or set(one) - {"at", "class", "attributes", "box", "area"}:
                raise ValueError
            found.append(Given((x, y), label, dict(attributes)))
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise HTTPException(
            422, 'polyps: must be JSON as [{"at": [x, y], "class": "polyp", "attributes": {}}], at in whole pixels'
        ) from None
