"""The routes: requests and responses."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, File, Form, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request

from polypseg.bundle import INTENDED_USE
from polypseg.drawing import overlay
from polypseg.errors import PolypsegError
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.quality import judge
from polypseg.inference.segmenter import Segmenter
from polypseg.io.outputs import frame_record
from polypseg.operating_point import OperatingPoint
from polypseg.serve import responses
from polypseg.serve.annotations.routes import Annotating, add_routes, author_of
from polypseg.serve.annotations.store import content_hash
from polypseg.serve.compressed import Compressed
from polypseg.serve.decoding import Decoders
from polypseg.serve.forms import StrictRoute, open_to_head
from polypseg.serve.guard import Guard
from polypseg.serve.jobs import Jobs
from polypseg.serve.log import without_values
from polypseg.serve.models import Models, Served
from polypseg.serve.observe import Metrics, Observed
from polypseg.serve.prompts import Prompting
from polypseg.serve.prompts import add_routes as add_prompts
from polypseg.serve.responses import BINARY, BODY, encoded, encoded_maps, refusals
from polypseg.serve.settings import MIB, Settings
from polypseg.serve.state import STATES, Job, Table, is_full
from polypseg.serve.stream import Streams
from polypseg.serve.uploads import own_name, read_still, read_still_mask, stored
from polypseg.serve.websocket import add_stream
from polypseg.version import __version__

log = logging.getLogger("polypseg.serve")

PAGE = Path(__file__).parent / "page"
TYPES = ("application/json", "image/png", "image/jpeg")  # of a response about a frame; the first is the default
OVERHEAD = MIB // 4  # bytes of a form besides its files
MEDIA_TYPES = {
    ".mp4": "video/mp4", ".jsonl": "application/x-ndjson", ".json": "application/json", ".png": "image/png",
    ".jpg": "image/jpeg", ".csv": "text/csv",
}  # fmt: skip
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
INTAKES = 4  # jobs and corrections that are taken in at once
STOP_WAIT = 10.0  # seconds for the present frame of a job, when the service stops

T = TypeVar("T")


def create_app(  # noqa: C901  (a function a route)
    models: Models, settings: Settings, table: Table, metrics: Metrics
) -> FastAPI:
    """The application around models; it starts and ends with the server's lifespan.

    Args:
        models: what computes; jobs are the first one's.
        settings: limits, and the state folder.
        table: of jobs, as ``open_state`` gives it for that folder.
        metrics: what is counted.
    """
    decoders = Decoders(settings.decode_seconds, settings.decode_memory)
    jobs = Jobs(models.default.segmenter, settings, table, decoders, counted=metrics.job_frames.inc)
    annotating = Annotating(models.default.segmenter, settings, decoders)

    def replaced(new: Served) -> None:
        if new is models.default:
            jobs.use(new.segmenter)
            annotating.use(new.segmenter)

    models.changed = replaced
    streams = Streams(models, settings, metrics)
    corrections = annotating.store.corrections
    temporary = settings.state / "temporary"
    # None of these waits for another: for what is decoded, for what comes in, and for a query of the table.
    working = ThreadPoolExecutor(2 * settings.batch_size, "polypseg-frames")
    intake = ThreadPoolExecutor(INTAKES, "polypseg-intake")
    looking = ThreadPoolExecutor(2, "polypseg-table")
    frames = Frames(working, settings, temporary, decoders)
    for state in STATES:
        metrics.jobs.labels(state).set_function(partial(jobs.count, state))
    metrics.admitted.set_function(lambda: frames.admitted)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start()
        await asyncio.to_thread(decoders.call, "nothing", min, (0, 1))  # which starts what the others are forked from
        jobs.start()
        await asyncio.to_thread(annotating.start)
        yield
        # No request is open any more.
        models.close()
        await asyncio.to_thread(annotating.stop, STOP_WAIT)
        await asyncio.to_thread(jobs.stop, STOP_WAIT)
        decoders.close()
        streams.close()
        for pool in (working, intake, looking):
            pool.shutdown()

    app = FastAPI(
        title="polypseg", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"Polyp segmentation in colonoscopy frames and videos. {INTENDED_USE}",
    )  # fmt: skip

    app.state.models, app.state.streams = models, streams
    app.router.route_class = StrictRoute

    @app.exception_handler(HTTPException)
    async def refused(_: Request, refusal: HTTPException) -> JSONResponse:
        return responses.error(refusal.status_code, str(refusal.detail), refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        what = "must be a file, with a file name" if "UploadFile" in first["msg"] else first["msg"]
        return responses.error(422, f"{where}: {what}")

    @app.exception_handler(PolypsegError)
    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    async def failed(_: Request, problem: Exception) -> JSONResponse:
        """What is wrong on this computer; its paths are its own affair."""
        log.error("cannot write", extra={"fields": without_values(problem)})
        if is_full(problem):
            return responses.error(507, "the disk of the service is full; ask who runs it")
        return responses.error(503, "the service cannot write its files; ask who runs it")

    async def in_thread(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    # ---- the page and the service itself -----------------------------------------------------------------

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (PAGE / "index.html").is_file():
            raise HTTPException(404, "this service has no page; see /openapi.json")
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def routes() -> Response:
        return FileResponse(PAGE / "routes.html", headers={"cache-control": "no-cache"})

    theme = ("polypseg.visualization", "theme")
    app.mount("/static", StaticFiles(directory=PAGE, packages=[theme], check_dir=False), name="static")

    @app.get("/health/live", tags=["service"])
    async def live() -> responses.Status:
        """Whether the process responds."""
        return responses.Status(status="ok")

    @app.get("/health/ready", tags=["service"], responses={503: {"model": responses.Status}})
    async def ready() -> Response:
        """Whether frames and jobs are worked on."""
        if not (models.alive and jobs.alive):
            return JSONResponse({"status": "starting or stopping"}, 503)
        if jobs.trouble:
            return JSONResponse({"status": "jobs wait: the disk refuses"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/v1/model", tags=["service"], responses=refusals())
    async def model(model: Annotated[str | None, Query(description=MODEL)] = None) -> responses.Model:
        """A model, what computes it, and what is taken in."""
        served = models.get(model)
        segmenter = served.segmenter
        return responses.Model(
            served_as=served.name,
            models=[one.name for one in models.all],
            name=segmenter.bundle.name,
            hash=segmenter.hash,
            threshold=segmenter.threshold,
            width=segmenter.preprocessing.width,
            height=segmenter.preprocessing.height,
            operating_point=responses.OperatingPoint(**asdict(segmenter.operating_point)),
            runtime=segmenter.runtime.name,
            device=segmenter.device,
            precision=segmenter.precision,
            reason=segmenter.reason,
            version=__version__,
            intended_use=INTENDED_USE,
            limits=responses.Limits(
                max_bytes=settings.max_bytes,
                max_pixels=settings.max_pixels,
                max_job_bytes=settings.max_job_bytes,
                max_video_seconds=settings.max_video_seconds,
            ),
        )

    @app.get(
        "/metrics", tags=["service"], response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "In Prometheus' text format"}, **refusals()},
    )  # fmt: skip
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # ---- one frame ---------------------------------------------------------------------------------------

    @app.post(
        "/v1/segment", tags=["frames"], response_model=None,
        responses={
            200: {
                "model": responses.Frame,
                "content": {"image/png": {"schema": BINARY}, "image/jpeg": {"schema": BINARY}},
                "description": "As Accept asks: JSON, the mask (PNG, 0 and 255) or the overlay (JPEG)",
                "headers": HEADERS,
            },
            **refusals(*BODY, 406, 429, 504, 507),
        },
        openapi_extra={"requestBody": {"content": {kind: {"schema": BINARY} for kind in RAW}}},
    )  # fmt: skip
    async def segment(
        request: Request,
        point: Point,
        file: Annotated[UploadFile, File(description="JPEG, PNG, TIFF, BMP, WebP, JPEG 2000, or DICOM of one frame")],
        probability: Annotated[bool, Query(description="Add the probability map to the JSON")] = False,
        model: Annotated[str | None, Query(description=MODEL)] = None,
        model_field: Annotated[str | None, Form(alias="model", description=MODEL)] = None,
    ) -> Response:
        """Segment one frame: a form, or the picture alone as the body.

        Threshold, min_confidence, min_area and model may stand in the URL or in the form, which goes before.
        """
        media_type = preferred(request.headers.get("accept", "*/*"))
        if media_type is None:
            raise HTTPException(406, f"the response can be {', '.join(TYPES)}; name one in Accept")
        served = models.get(model if model_field is None else model_field)
        with served.used():
            there = served.segmenter.operating_point.override(**point)
            return await frames.answer(file, media_type, probability, served, there)

    # ---- videos and batches ------------------------------------------------------------------------------

    def told(job: Job) -> responses.Job:
        """In a thread: it may look at the disk."""
        point = responses.OperatingPoint(**asdict(jobs.point(job)))
        return responses.Job(**job.to_dict(), upload=jobs.upload(job) is not None, operating_point=point)

    @app.post("/v1/jobs", tags=["jobs"], status_code=202, responses=refusals(*BODY, 429, 503, 507))
    async def submit(
        point: Point,
        file: Annotated[list[UploadFile], File(description="Videos, images or DICOM files")],
        smoothing: Annotated[
            float, Form(ge=0, lt=1, description="Videos: weight of the earlier frames in each frame's prediction")
        ] = 0.0,
    ) -> responses.Job:
        """Take in a video, or a batch of files, to be worked through."""
        uploads = [(one.filename, one.file) for one in file]
        return await in_thread(intake, lambda: told(jobs.submit(uploads, smoothing, point)))

    @app.get("/v1/jobs", tags=["jobs"], responses=refusals(404))
    async def listed(
        request: Request,
        response: Response,
        limit: Annotated[int, Query(ge=1, le=1000, description="Jobs, for the most")] = 100,
        after: Annotated[str | None, Query(description="Id of the last job that is known: those after it")] = None,
    ) -> list[responses.Job]:
        """Jobs, the oldest first; where there are more, the header Link names the next page."""
        found = await in_thread(looking, jobs.page, limit + 1, after)
        if len(found) > limit:
            response.headers["link"] = f'<{request.url.path}?limit={limit}&after={found[limit - 1].id}>; rel="next"'
        return await in_thread(looking, lambda: [told(job) for job in found[:limit]])

    @app.get("/v1/jobs/{id}", tags=["jobs"], responses=refusals(404))
    async def job(id: str) -> responses.Job:
        """One job: its state, its progress and its complete outputs."""
        return await in_thread(looking, lambda: told(jobs.get(id)))

    @app.delete(
        "/v1/jobs/{id}", tags=["jobs"], response_model=responses.Job,
        responses={204: {"description": "Removed, with its files"}, **refusals(404, 409)},
    )  # fmt: skip
    async def cancel(
        id: str, cancel_only: Annotated[bool, Query(description="Leave one that has ended as it is (409)")] = False
    ) -> Response | responses.Job:
        """Cancel a job that has not ended; remove one that has, with its files."""
        cancelled = await in_thread(intake, jobs.cancel, id, cancel_only)
        return Response(status_code=204) if cancelled is None else await in_thread(looking, told, cancelled)

    @app.post("/v1/jobs/{id}/again", tags=["jobs"], status_code=202, responses=refusals(*BODY, 404, 409, 429, 503, 507))
    async def again(
        id: str,
        point: Point,
        file: Annotated[
            UploadFile | None, File(description="The job's video itself, where the service does not keep it")
        ] = None,
        replace: Annotated[bool, Form(description="Remove the job when the new one is done")] = False,
    ) -> responses.Job:
        """Follow a job's video anew, at another operating point: a new job."""
        upload = None if file is None else file.file
        return await in_thread(intake, lambda: told(jobs.again(id, point, upload, replace)))

    @app.get(
        "/v1/jobs/{id}/files/{name}", tags=["jobs"], response_class=FileResponse,
        responses={
            200: {"content": {kind: {"schema": BINARY} for kind in MEDIA_TYPES.values()}, "description": "All of it"},
            206: {"content": {"*/*": {"schema": BINARY}}, "description": "The bytes that Range asks for"},
            **refusals(400, 404, 416),
        },
    )  # fmt: skip
    async def output(id: str, name: str) -> Response:
        """One complete output of a job; in parts too, by Range."""
        path = await in_thread(looking, jobs.file, id, name)
        if not path.is_file():
            raise HTTPException(404, "the job has no such file any more")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])

    @app.get(
        "/v1/jobs/{id}/upload", tags=["jobs"], response_class=FileResponse,
        responses={
            200: {"content": {"*/*": {"schema": BINARY}}, "description": "All of it"},
            206: {"content": {"*/*": {"schema": BINARY}}, "description": "The bytes that Range asks for"},
            **refusals(400, 404, 416),
        },
    )  # fmt: skip
    async def upload(id: str) -> Response:
        """The video of a job itself, where it is kept; in parts too, by Range."""
        path = await in_thread(looking, lambda: jobs.upload(jobs.get(id)))
        if path is None:
            raise HTTPException(404, "the job's upload is not kept; --keep_video_mib says which videos are")
        return FileResponse(path, media_type=VIDEO_TYPES.get(path.suffix.lower(), "application/octet-stream"))

    # ---- corrections -------------------------------------------------------------------------------------

    @app.post("/v1/corrections", tags=["corrections"], status_code=201, responses=refusals(*BODY, 503, 507))
    async def correct(
        request: Request,
        frame: Annotated[UploadFile, File(description="The frame")],
        mask: Annotated[UploadFile, File(description="Its mask, of the same size: white on black")],
        name: Annotated[str, Form(description="What to call the pair")],
    ) -> responses.Correction:
        """Keep a corrected mask with its frame, in the data set of corrections."""

        def store() -> str:
            pixels, drawn = frames.read(frame, "frame"), frames.read_mask(mask)
            return annotating.store.correct(name, pixels, drawn, author_of(request))

        return responses.Correction(name=await in_thread(intake, store))

    @app.get("/v1/corrections", tags=["corrections"], responses=refusals())
    async def corrected() -> responses.Corrections:
        """What the data set of corrections contains."""
        names = await in_thread(looking, corrections.names)
        return responses.Corrections(count=len(names), names=names)

    @app.get(
        "/v1/corrections.zip", tags=["corrections"], response_class=FileResponse,
        responses={200: {"content": {"application/zip": {"schema": BINARY}}}, **refusals()},
    )  # fmt: skip
    async def archive() -> Response:
        """The data set of corrections: images/ and masks/, as `polypseg train --data` reads it."""
        with tempfile.NamedTemporaryFile(dir=temporary, suffix=".zip", delete=False) as file:
            path = Path(file.name)
        try:
            await in_thread(intake, corrections.write_zip, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return FileResponse(
            path, media_type="application/zip", filename="corrections.zip",
            background=BackgroundTask(path.unlink, missing_ok=True),
        )  # fmt: skip

    add_routes(app, annotating, frames, temporary)
    add_prompts(app, Prompting(frames, models, settings))

    def limit(path: str) -> int:
        bodies = {
            "jobs": settings.max_job_bytes,
            "again": settings.max_job_bytes,
            "imports": settings.max_job_bytes,
            "corrections": 2 * settings.max_bytes,
            "propagate": 4 * settings.max_bytes,
        }
        return bodies.get(path.rpartition("/")[2], settings.max_bytes) + OVERHEAD

    add_stream(app, streams)
    open_to_head(app)
    app.add_middleware(Compressed)
    app.add_middleware(Guard, token=settings.token, limit=limit, named=settings.tokens)
    app.add_middleware(Observed, metrics=metrics)
    return app


RAW = ("image/jpeg", "image/png", "application/dicom")  # examples of what a body may be instead of a form
HEADERS = {
    "Server-Timing": {"description": "Milliseconds: decode, wait, inference, render", "schema": {"type": "string"}},
    "Polypseg-Model": {"description": "Name and hash of the model", "schema": {"type": "string"}},
    "Polypseg-Version": {"description": "Of polypseg", "schema": {"type": "string"}},
}
SHARE: dict[str, Any] = {"ge": 0, "le": 1}
BELOW_ONE: dict[str, Any] = {"ge": 0, "lt": 1}
THRESHOLD = "A pixel belongs to a region if its probability is at least this; the model's own by default"
MIN_AREA = "A region smaller than this share of the frame is removed; the model's own by default"
MODEL = "Name of a model, as /v1/model lists them; the first by default"
MIN_CONFIDENCE = "A region is a polyp if its confidence is at least this; the model's own by default"


def asked_point(
    threshold: Annotated[float | None, Query(**SHARE, description=THRESHOLD)] = None,
    min_confidence: Annotated[float | None, Query(**SHARE, description=MIN_CONFIDENCE)] = None,
    min_area: Annotated[float | None, Query(**BELOW_ONE, description=MIN_AREA)] = None,
    threshold_field: Annotated[float | None, Form(alias="threshold", **SHARE, description=THRESHOLD)] = None,
    min_confidence_field: Annotated[
        float | None, Form(alias="min_confidence", **SHARE, description=MIN_CONFIDENCE)
    ] = None,
    min_area_field: Annotated[float | None, Form(alias="min_area", **BELOW_ONE, description=MIN_AREA)] = None,
) -> dict[str, float]:
    """What a request says of the operating point, in the URL or in the form, which goes before."""
    said = {
        "threshold": (threshold, threshold_field),
        "min_confidence": (min_confidence, min_confidence_field),
        "min_area": (min_area, min_area_field),
    }
    return {name: value for name, values in said.items() for value in values if value is not None}


Point = Annotated[dict[str, float], Depends(asked_point)]


class Frames:
    """From the upload of a frame to the response about it.

    Attributes:
        admitted: requests that are being worked on or wait; never more than ``Settings.queue``.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        settings: Settings,
        temporary: Path,
        decoders: Decoders,
    ) -> None:
        self._pool, self._decoders = pool, decoders
        self._settings, self._temporary = settings, temporary
        self._decoded = asyncio.Semaphore(2 * settings.batch_size)  # frames that are in memory at once
        self._pace = 0.1  # seconds a frame lately
        self.admitted = 0

    async def answer(
        self, upload: UploadFile, media_type: str, probability: bool, served: Served, point: OperatingPoint
    ) -> Response:
        """The response about a frame, as one of ``TYPES``.

        Raises:
            HTTPException: as ``read_still``; 429 too many wait, 504 it took too long.
        """
        if self.admitted >= self._settings.queue:
            later = max(1, math.ceil(self.admitted * self._pace))
            raise HTTPException(429, f"too many frames wait; come again in {later} s", {"retry-after": str(later)})
        self.admitted += 1
        arrived = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.timeout):
                async with self._decoded:
                    times = [time.monotonic()]
                    frame = await loop.run_in_executor(self._pool, self.read, upload, None)
                    times.append(time.monotonic())
                    found, seconds = await served.engine.timed(frame)
                    times.append(time.monotonic())
                    content = await loop.run_in_executor(
                        self._pool,
                        self._render,
                        served.segmenter,
                        frame,
                        found,
                        own_name(upload.filename),
                        media_type,
                        probability,
                        point,
                    )
                    times.append(time.monotonic())
                    self._pace += 0.1 * ((times[3] - times[0]) / self._settings.batch_size - self._pace)
                    decode, compute, render = (later - earlier for earlier, later in pairwise(times))
                    wait = times[0] - arrived + compute - seconds
                    timing = {"decode": decode, "wait": wait, "inference": seconds, "render": render}
                    return Response(content, media_type=media_type, headers=_headers(served, timing))
        except TimeoutError:
            raise HTTPException(504, f"it took more than {self._settings.timeout:g} s; come again later") from None
        finally:
            self.admitted -= 1

    def read(self, upload: UploadFile, name: str | None) -> NDArray[np.uint8]:
        """The frame of an upload: H×W×3 uint8 RGB. Its refusal calls it ``name``, else by its own name."""
        name = name or own_name(upload.filename)
        with stored(upload.file, self._temporary) as path:
            frame: NDArray[np.uint8] = self._decoders.call(name, read_still, path, name, self._settings.max_pixels)
            return frame

    def read_mask(self, upload: UploadFile) -> NDArray[np.bool_]:
        """The mask of an upload, H×W bool. Refused as a frame is, and where it is not black and white."""
        with stored(upload.file, self._temporary) as path:
            mask: NDArray[np.bool_] = self._decoders.call(
                "mask", read_still_mask, path, "mask", self._settings.max_pixels
            )
            return mask

    def _render(
        self,
        segmenter: Segmenter,
        frame: NDArray[np.uint8],
        found: NDArray[np.float32],
        name: str,
        media_type: str,
        probability: bool,
        point: OperatingPoint,
    ) -> bytes:
        outside = outside_of(frame)
        predicted = segmenter.segmentation(found, *frame.shape[:2], outside=outside, point=point)
        if media_type == "image/png":
            return encoded(".png", predicted.mask.astype(np.uint8) * 255)
        if media_type == "image/jpeg":
            boxes = [polyp.box for polyp in predicted.polyps]
            return encoded(".jpg", overlay(frame, predicted.mask, boxes=boxes)[..., ::-1])
        record = frame_record(predicted, source=name, model=segmenter.hash)
        record["operating_point"] = asdict(predicted.point)
        record["quality"] = judge(frame).to_dict()
        if probability:
            record["hash"] = content_hash(frame)
            record |= encoded_maps(found, outside)
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _headers(served: Served, seconds: Mapping[str, float]) -> dict[str, str]:
    """What computed a frame, and how long each step took."""
    return {
        "server-timing": ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in seconds.items()),
        "polypseg-model": f"{served.name} {served.segmenter.hash}",
        "polypseg-version": __version__,
    }


def preferred(accept: str) -> str | None:
    """Which of ``TYPES`` an Accept header likes best, the earlier of equals; None where it takes none of them."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 1.0

    def weight_of(kind: str) -> float:
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((weights[name] for name in names if name in weights), 0.0)

    best = max(TYPES, key=weight_of)
    return best if weight_of(best) > 0 else None
