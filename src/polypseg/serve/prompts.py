"""The routes that help to draw: clicks and boxes to regions, and a mask carried to the neighbouring frames."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import numpy as np
from fastapi import FastAPI, File, Form, UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.export import medsam
from polypseg.inference.medsam import Encoded, MedSam
from polypseg.inference.prompting import Box, Click, box_of, check_box, grow, grow_in_box
from polypseg.inference.propagation import MIN_SURENESS, Propagation
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation
from polypseg.serve.corrections import png
from polypseg.serve.models import Models
from polypseg.serve.responses import BODY, Polyp, refusals
from polypseg.serve.settings import Settings

log = logging.getLogger("polypseg.serve")

REMEMBERED = 16  # frames whose probability, and encoding, are kept for further prompts
MOST_CLICKS = 64
MOST_FRAMES = 33  # that a mask is carried through at once, its own among them
AT_ONCE = 2  # prompts that are computed side by side
PREPARING = 10  # seconds after which to ask again
Method = Literal["model", "sam"]
State = Literal["ready", "unprepared", "preparing", "missing"]
Mask = NDArray[np.bool_]
Map = NDArray[np.float32]


class Reading(Protocol):
    """What decodes uploads."""

    def read(self, upload: UploadFile, name: str | None) -> NDArray[np.uint8]:
        """The frame of an upload."""

    def read_mask(self, upload: UploadFile) -> Mask:
        """The mask of an upload."""


# ---- responses --------------------------------------------------------------------------------------------


class PromptMethod(BaseModel):
    """One way to answer prompts."""

    name: Method
    state: State
    reason: str | None = Field(description="One line: why it is missing")
    takes: list[Literal["box", "points"]]


class PromptMethods(BaseModel):
    """The ways to answer prompts."""

    methods: list[PromptMethod]


class Prompted(BaseModel):
    """The region that a box or clicks mark."""

    frame: str = Field(description="Names the frame in further prompts, as long as it is remembered")
    method: Method
    width: int = Field(description="Pixels, as are all coordinates")
    height: int
    mask: str = Field(description="Base64 of a grey PNG of the frame's size, 0 and 255")
    polyps: list[Polyp] = Field(description="The regions of the mask, the largest first")
    threshold: float | None = Field(description="Of the model's region: probability down to which it last grew")


class CarriedFrame(BaseModel):
    """A frame that a mask was carried to, or not."""

    index: int = Field(description="Among the frames sent, from 0")
    sureness: float | None = Field(description="0 to 1; null beyond a frame that was not sure enough")
    sure: bool
    mask: str | None = Field(description="Base64 of a grey PNG, 0 and 255; null where it is not sure")
    polyps: list[Polyp]


class Carried(BaseModel):
    """A mask on the neighbours of its frame."""

    at: int
    width: int
    height: int
    min_sureness: float
    frames: list[CarriedFrame]


# ---- the work ---------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """A frame that prompts may name again; of its pixels only what LiteMedSAM may still need is kept."""

    model: str  # its hash
    pixels: NDArray[np.uint8] | None
    height: int
    width: int
    probability: Map
    encoded: Encoded | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encoding(self, network: MedSam) -> Encoded:
        with self.lock:
            if self.encoded is None:
                assert self.pixels is not None
                self.encoded, self.pixels = network.encode(self.pixels), None
            return self.encoded


class Sam:
    """LiteMedSAM, exported when it is first asked for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._network: MedSam | None = None
        self._maker: threading.Thread | None = None
        self._failure: str | None = None

    @property
    def state(self) -> PromptMethod:
        """Whether it can be asked."""
        reason = self._failure or (None if self._network else medsam.why_not())
        state: State
        if reason:
            state = "missing"
        elif self._maker is not None and self._maker.is_alive():
            state = "preparing"
        else:
            state = "ready" if self._network or medsam.is_made() else "unprepared"
        return PromptMethod(name="sam", state=state, reason=reason, takes=["box", "points"])

    def opened(self) -> MedSam:
        """The network.

        Raises:
            HTTPException: 501 it is not installed, or its export failed; 503 it is being exported.
        """
        with self._lock:
            if self._network is not None:
                return self._network
            state = self.state
            if state.reason:
                raise HTTPException(501, f"sam: {state.reason}")
            if not medsam.is_made():
                if state.state == "unprepared":
                    self._maker = threading.Thread(target=self._make, name="polypseg-litemedsam", daemon=True)
                    self._maker.start()
                raise HTTPException(
                    503, "sam: LiteMedSAM is being prepared, once on this computer; come again in a minute",
                    {"retry-after": str(PREPARING)},
                )  # fmt: skip
            try:
                self._network = MedSam(medsam.folder())
            except PolypsegError as error:
                self._failure = "LiteMedSAM cannot be opened; the service's log says more"
                log.error("LiteMedSAM", extra={"fields": {"error": str(error)}})
                raise HTTPException(501, f"sam: {self._failure}") from error
            return self._network

    def _make(self) -> None:
        try:
            medsam.make()
        except (PolypsegError, OSError) as error:
            log.error("LiteMedSAM", extra={"fields": {"error": str(error)}})
            self._failure = "LiteMedSAM could not be prepared; the service's log says more"


class Prompting:
    """Answers prompts and carries masks.

    Args:
        reading: what decodes uploads.
        models: the first of them gives the probabilities.
        settings: limits.
    """

    def __init__(self, reading: Reading, models: Models, settings: Settings) -> None:
        self._reading, self._models, self._settings = reading, models, settings
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._computing = asyncio.Semaphore(AT_ONCE)
        self._admitted = 0
        self.sam = Sam()

    async def prompt(
        self, file: UploadFile | None, frame: str | None, method: Method, box: Box | None,
        clicks: Sequence[Click], threshold: float | None,
    ) -> Prompted:  # fmt: skip
        """The region that a box or clicks mark.

        Raises:
            HTTPException: as the route says.
        """
        async with self._admission():
            network = await asyncio.to_thread(self.sam.opened) if method == "sam" else None
            name, known = await self._frame(file, frame)
            try:
                mask, grown = await asyncio.to_thread(_region, known, network, box, clicks, threshold)
            except ValueError as error:
                raise HTTPException(422, str(error)) from error
            picture, polyps = await asyncio.to_thread(self._told, mask, known.probability)
            return Prompted(
                frame=name, method=method, width=known.width, height=known.height, mask=picture, polyps=polyps,
                threshold=None if network or grown is None else round(grown, 4),
            )  # fmt: skip

    async def carry(self, files: Sequence[UploadFile], mask: UploadFile, at: int, least: float) -> Carried:
        """A mask on the neighbours of its frame.

        Raises:
            HTTPException: as the route says.
        """
        if not 2 <= len(files) <= MOST_FRAMES:
            raise HTTPException(422, f"file: are {len(files)} frames; send 2 to {MOST_FRAMES}")
        if at >= len(files):
            raise HTTPException(422, f"at: is {at}, but there are {len(files)} frames, counted from 0")
        async with self._admission():
            first = await asyncio.to_thread(self._reading.read, files[at], None)
            drawn = await asyncio.to_thread(self._reading.read_mask, mask)
            _check_size("mask", drawn.shape, first.shape)
            if not drawn.any():
                raise HTTPException(422, "mask: is empty; there is nothing to carry")
            probability = await self._probability(first)
            told = [
                CarriedFrame(index=one, sureness=None, sure=False, mask=None, polyps=[]) for one in range(len(files))
            ]
            told[at] = await asyncio.to_thread(self._carried, at, drawn, 1.0, probability)
            for places in (range(at - 1, -1, -1), range(at + 1, len(files))):
                moving = await asyncio.to_thread(Propagation, first, probability, drawn)
                for place in places:
                    frame = await asyncio.to_thread(self._reading.read, files[place], None)
                    _check_size(f"file {place}", frame.shape, first.shape)
                    seen = await self._probability(frame)
                    found = await asyncio.to_thread(moving.step, frame, seen)
                    if found.sureness < least or not found.mask.any():
                        told[place].sureness = round(found.sureness, 4)
                        break
                    told[place] = await asyncio.to_thread(self._carried, place, found.mask, found.sureness, seen)
            height, width = drawn.shape
            return Carried(at=at, width=width, height=height, min_sureness=least, frames=told)

    @asynccontextmanager
    async def _admission(self) -> AsyncIterator[None]:
        if self._admitted >= self._settings.queue:
            raise HTTPException(429, "too many prompts wait; come again in 2 s", {"retry-after": "2"})
        self._admitted += 1
        try:
            async with asyncio.timeout(self._settings.timeout), self._computing:
                yield
        except TimeoutError:
            line = f"it took more than {self._settings.timeout:g} s; send fewer frames, or come again later"
            raise HTTPException(504, line) from None
        finally:
            self._admitted -= 1

    async def _probability(self, frame: NDArray[np.uint8]) -> Map:
        served = self._models.default
        with served.used():
            return await served.engine.probability(frame)

    async def _frame(self, file: UploadFile | None, name: str | None) -> tuple[str, _Known]:
        if (file is None) == (name is None):
            raise HTTPException(422, "file: send it or, of a frame that was sent already, frame; not both")
        if file is not None:
            name = await asyncio.to_thread(_digest, file)
        assert name is not None
        model = self._models.default.segmenter.hash
        known = self._known.get(name)
        if known is not None and known.model != model:  # another has taken its place
            known = None
        if known is None and file is None:
            raise HTTPException(404, "frame: is not remembered; send the file")
        if known is None:
            assert file is not None
            pixels = await asyncio.to_thread(self._reading.read, file, None)
            height, width = pixels.shape[:2]
            known = _Known(model, pixels, height, width, await self._probability(pixels))
            self._known[name] = known
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return name, known

    def _told(self, mask: Mask, probability: Map) -> tuple[str, list[Polyp]]:
        point = OperatingPoint(confidence=self._models.default.segmenter.operating_point.confidence)
        found = Segmentation(mask, Enlarged(probability, *mask.shape), point)
        return base64.b64encode(png(mask.astype(np.uint8) * 255)).decode(), [
            Polyp(**polyp.to_dict()) for polyp in found.polyps
        ]

    def _carried(self, index: int, mask: Mask, sureness: float, probability: Map) -> CarriedFrame:
        picture, polyps = self._told(mask, probability)
        return CarriedFrame(index=index, sureness=round(sureness, 4), sure=True, mask=picture, polyps=polyps)


def _region(
    known: _Known, network: MedSam | None, box: Box | None, clicks: Sequence[Click], threshold: float | None
) -> tuple[Mask, float | None]:
    """The region, and down to which probability the model's own grew.

    Raises:
        ValueError: the box or a click does not lie in the frame.
    """
    size = known.height, known.width
    if network is not None and box is not None:
        return network.segment(known.encoding(network), check_box(box, *size)), None
    if box is not None:
        grown = grow_in_box(known.probability, *size, box)
    else:
        grown = grow(known.probability, *size, clicks, threshold)
    around = None if network is None else box_of(grown.mask)  # LiteMedSAM takes no clicks: the box of what they mark
    if network is None or around is None:
        return grown.mask, grown.threshold
    return network.segment(known.encoding(network), around), None


def _digest(file: UploadFile) -> str:
    file.file.seek(0)
    digest = hashlib.file_digest(file.file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.file.seek(0)
    return digest


def _check_size(name: str, size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if size[:2] != expected[:2]:
        raise HTTPException(
            422, f"{name}: is {size[1]}×{size[0]}, but the frame of the mask is {expected[1]}×{expected[0]}"
        )


# ---- what a form says ---------------------------------------------------------------------------------------


def box_from(text: str | None) -> Box | None:
    """``[xmin, ymin, xmax, ymax]``.

    Raises:
        HTTPException: 422 it is something else.
    """
    if text is None:
        return None
    values = _numbers("box", text, [4], "[xmin, ymin, xmax, ymax]")
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


def clicks_from(text: str | None) -> list[Click]:
    """``[[x, y, 1 or 0], …]``.

    Raises:
        HTTPException: 422 it is something else.
    """
    if text is None:
        return []
    form = "[[x, y, 1], [x, y, 0], …], 1 where it adds and 0 where it takes away"
    values = _numbers("points", text, [None, 3], form)
    if len(values) > MOST_CLICKS:
        raise HTTPException(422, f"points: are {len(values)}; {MOST_CLICKS} at most")
    if not np.isin(values[:, 2], (0, 1)).all():
        raise HTTPException(422, f"points: must be {form}")
    return [Click(float(x), float(y), bool(adds)) for x, y, adds in values]


def _numbers(name: str, text: str, shape: list[int | None], form: str) -> NDArray[np.float64]:
    try:
        values = np.array(json.loads(text), np.float64)
        whole = values.ndim == len(shape) and values.size > 0 and bool(np.isfinite(values).all())
    except (ValueError, TypeError, RecursionError, OverflowError):
        whole = False
    if not whole or any(length not in (None, found) for length, found in zip(shape, values.shape, strict=True)):
        raise HTTPException(422, f"{name}: must be {form}")
    return values


def add_routes(app: FastAPI, prompting: Prompting) -> None:
    """Serve prompts and propagation."""

    @app.get("/v1/prompt", tags=["prompts"], responses=refusals())
    async def methods() -> PromptMethods:
        """What answers prompts here."""
        model = PromptMethod(name="model", state="ready", reason=None, takes=["box", "points"])
        return PromptMethods(methods=[model, await asyncio.to_thread(lambda: prompting.sam.state)])

    @app.post("/v1/prompt", tags=["prompts"], responses=refusals(*BODY, 404, 429, 501, 504, 507))
    async def prompt(
        file: Annotated[UploadFile | None, File(description="The frame, as of /v1/segment")] = None,
        frame: Annotated[str | None, Form(description="In place of the file: its name in an earlier response")] = None,
        method: Annotated[Method, Form(description="The model's own probability, or LiteMedSAM")] = "model",
        box: Annotated[str | None, Form(description="JSON: [xmin, ymin, xmax, ymax], pixels, maxima exclusive")] = None,
        points: Annotated[str | None, Form(description="JSON: [[x, y, 1], …], pixels; 1 adds, 0 takes away")] = None,
        threshold: Annotated[
            float | None, Form(ge=0, le=1, description="Down to which clicks grow; by default each one's own")
        ] = None,
    ) -> Prompted:
        """The region of a frame that a box or clicks mark."""
        asked, clicks = box_from(box), clicks_from(points)
        if (asked is None) == (not clicks):
            raise HTTPException(422, "box: send it or points; one of the two")
        return await prompting.prompt(file, frame, method, asked, clicks, threshold)

    @app.post("/v1/propagate", tags=["prompts"], responses=refusals(*BODY, 429, 504, 507))
    async def propagate(
        file: Annotated[list[UploadFile], File(description="Neighbouring frames, of one size, in their order")],
        mask: Annotated[UploadFile, File(description="The mask of one of them: white on black")],
        at: Annotated[int, Form(ge=0, description="Number of that one, from 0")],
        min_sureness: Annotated[
            float, Form(ge=0, le=1, description="Less sure masks are not given, nor any beyond")
        ] = MIN_SURENESS,
    ) -> Carried:
        """A corrected mask, carried to the neighbouring frames."""
        return await prompting.carry(file, mask, at, min_sureness)
