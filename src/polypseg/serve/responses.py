"""The service's responses, in the shapes that its OpenAPI description names."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


def encoded(suffix: str, pixels: NDArray[np.uint8]) -> bytes:
    """A picture as a file of that ending: H×W, or H×W×3 BGR, uint8.

    Raises:
        HTTPException: 422 the format takes no picture of its size.
    """
    done, content = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    if not done:
        raise HTTPException(422, "the frame has too many rows or columns for this format; ask for application/json")
    return content.tobytes()


def encoded_maps(probability: NDArray[np.float32], outside: NDArray[np.bool_] | None) -> dict[str, str]:
    """A probability map, and where there is such what shows nothing of the patient: PNGs in base64, by their keys."""
    maps = {"probability": np.rint(probability * np.float32(255)).astype(np.uint8)}
    if outside is not None:
        maps["outside"] = outside.astype(np.uint8) * np.uint8(255)
    return {name: base64.b64encode(encoded(".png", levels)).decode() for name, levels in maps.items()}


def error(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal: ``{"error": line}``."""
    return JSONResponse({"error": " ".join(line.split())}, status, headers)


class Error(BaseModel):
    """A refusal."""

    error: str = Field(description="One line: what is wrong, and what to do")


class Status(BaseModel):
    """The service's state."""

    status: Literal["ok", "starting or stopping", "jobs wait: the disk refuses"]


class Limits(BaseModel):
    """What the service accepts at most."""

    max_bytes: int = Field(description="Of a frame's file")
    max_pixels: int = Field(description="Of a frame")
    max_job_bytes: int = Field(description="Of all files of a job")
    max_video_seconds: float = Field(description="Of a video")


class OperatingPoint(BaseModel):
    """What makes polyps of probabilities."""

    threshold: float = Field(description="A pixel belongs to a region if its probability is at least this, 0 to 1")
    min_confidence: float = Field(description="A region is a polyp if its confidence is at least this, 0 to 1")
    confidence: Literal["peak", "mean"] = Field(
        description="What a region's confidence is: the highest probability inside it, or the mean"
    )
    min_area: float = Field(description="Regions smaller than this share of the frame are removed, 0 to 1")
    fill_holes: bool = Field(description="Whether holes inside a region become part of it")


class Model(BaseModel):
    """A model that the service computes with."""

    name: str
    served_as: str = Field(description="What requests call it")
    models: list[str] = Field(description="What they may call it and the others; the first is the default")
    hash: str = Field(description="SHA-256 over all that decides a prediction")
    threshold: float = Field(description="The operating point's")
    width: int = Field(description="Of the network's input, pixels")
    height: int
    operating_point: OperatingPoint = Field(description="What makes polyps of the probabilities")
    runtime: str
    device: str
    precision: str
    reason: str = Field(description="Why this runtime, device and precision were taken")
    version: str = Field(description="Of polypseg")
    intended_use: str
    limits: Limits


class Polyp(BaseModel):
    """A polyp of a frame, in its pixels."""

    box: list[int] = Field(description="xmin, ymin, xmax, ymax in pixels; the maxima are exclusive")
    area: int = Field(description="Pixels")
    confidence: float = Field(description="Highest or mean probability inside, by the operating point, 0 to 1")
    contour: list[list[int]] = Field(description="x, y of the pixels along its outer boundary")


class Quality(BaseModel):
    """Whether a frame shows enough to look for a polyp in it."""

    judgeable: bool = Field(description="False: what the model outlines there is not to be trusted")
    reason: Literal["dark", "glare", "blurred", "outside"] | None = Field(description="Why not; null where it is")
    lit: float = Field(description="Share of the frame that is lit, 0 to 1")
    glare: float = Field(description="Share of what is lit that is washed out, 0 to 1")
    sharpness: float = Field(description="In levels, of the frame shrunk to 160 pixels")
    red: float = Field(description="Share of what is lit that is redder than green, 0 to 1")


class Frame(BaseModel):
    """A frame's prediction."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})
    source: str = Field(description="The upload's own name, without any path")
    frame: int | None = Field(description="null for a still")
    time: float | None = Field(description="null for a still")
    width: int = Field(description="Pixels, EXIF orientation applied")
    height: int
    threshold: float
    operating_point: OperatingPoint = Field(description="What made polyps of the probabilities")
    model: str = Field(description="The model's hash")
    quality: Quality = Field(description="Whether the frame can be judged")
    polyps: list[Polyp] = Field(description="The largest first")
    probability: str = Field(
        default="",
        description="With ?probability=true: base64 of an 8-bit grey PNG of the network's size, 255 being 1.0",
    )
    hash: str = Field(
        default="", description="With ?probability=true: SHA-256 of the frame's size and decoded pixels, by which "
        "projects know it",
    )  # fmt: skip
    outside: str = Field(
        default="",
        description="With ?probability=true, where there is such: base64 of a grey PNG, to be stretched over the "
        "frame, 255 where that shows nothing of the patient, as in a black border",
    )


class Job(BaseModel):
    """A video, or a batch of stills, that is predicted in the background."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    kind: Literal["video", "batch"]
    names: list[str] = Field(description="The uploads' own names, told apart, in their order; results are called so")
    done: int = Field(description="Frames")
    total: int | None = Field(description="Frames; null where a video does not say, and not to be relied on")
    error: str | None = Field(description="One line: what could not be read, or why all failed")
    created: str = Field(description="ISO 8601")
    ended: str | None = Field(description="ISO 8601; null before")
    files: list[str] = Field(description="Outputs that are complete")
    upload: bool = Field(description="Whether the video itself is kept, by --keep_video_mib")
    operating_point: OperatingPoint = Field(description="What makes polyps of the probabilities")
    replaces: str | None = Field(description="Id of the job that is removed when this one is done; null for none")


class Corrections(BaseModel):
    """The corrected masks that are stored."""

    count: int
    names: list[str]


class Correction(BaseModel):
    """A corrected mask that was stored."""

    name: str = Field(description="The stem that it was stored under")


BINARY = {"type": "string", "format": "binary"}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, for the description of a route."""
    meanings = {
        400: "No form that can be read", 401: "No token, or a wrong one", 403: "Asked by another site's page",
        404: "There is none of that name", 406: "Nothing of what Accept names can be sent",
        408: "The body came too slowly",
        409: "Not possible as things are", 413: "Too many bytes, pixels or seconds", 415: "Of no kind that can be read",
        416: "There are no such bytes", 421: "Not addressed to localhost, and there is no token",
        422: "Damaged, or a field is wrong or unknown", 429: "Too much is waiting; Retry-After says when to come again",
        431: "The head is too large",
        501: "What it needs is not installed", 503: "Starting or stopping, or too much at once",
        504: "It took too long", 507: "The disk is full",
    }  # fmt: skip
    always = (401, 403, 421, 422, 431, 503)
    return {status: {"model": Error, "description": meanings[status]} for status in (*always, *statuses)}


BODY = (400, 408, 413, 415, 422)  # what may be wrong with any form
