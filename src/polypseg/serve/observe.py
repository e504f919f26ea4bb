"""What the service reports of itself: a line of JSON a request, and numbers for Prometheus; no name of any file."""

from __future__ import annotations

import logging
import secrets
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypseg.serve.log import LOGGER, without_values
from polypseg.serve.responses import error

log = logging.getLogger(LOGGER)

# The page has no script, style or font of elsewhere, and may talk to nobody else.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Metrics:
    """The service's numbers; ``registry`` contains them all."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("polypseg_requests", "Requests done", ["method", "route", "status"], registry=registry)
        self.seconds = Histogram(
            "polypseg_request_seconds", "From a request's head to its response's end", ["route"], registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip
        self.admitted = Gauge("polypseg_segment_requests", "Frames being waited for", registry=registry)
        self.together = Histogram(
            "polypseg_frames_together", "Frames that waited when computing began", registry=registry,
            buckets=(1, 2, 4, 8, 16),
        )  # fmt: skip
        self.inference = Histogram(
            "polypseg_inference_seconds", "The network's time for a frame", ["model"], registry=registry,
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5),
        )  # fmt: skip
        self.streams = Gauge("polypseg_streams", "Live streams", registry=registry)
        self.stream_frames = Counter(
            "polypseg_stream_frames", "Frames of streams by what became of them", ["outcome"], registry=registry
        )
        self.stream_seconds = Histogram(
            "polypseg_stream_seconds", "From a frame's capture to its prediction", registry=registry,
            buckets=(0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1),
        )  # fmt: skip
        self.job_frames = Counter("polypseg_job_frames", "Frames of jobs computed", registry=registry)
        self.jobs = Gauge("polypseg_jobs", "Jobs by their state", ["state"], registry=registry)

    def computed(self, model: str, seconds: float) -> None:
        """Count a frame that a model computed."""
        self.inference.labels(model).observe(seconds)


class _Broken(Exception):
    """The client broke the connection off, or HTTP's rules, so that nothing can be sent any more."""


class Observed:
    """Around the whole application: identifies, times, counts and logs requests, sets headers, responds for crashes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, and log and count what becomes of it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        identity = secrets.token_hex(8)
        started = time.perf_counter()
        status = 0
        sent = 0

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                added = {**HEADERS, "x-request-id": identity, "cache-control": "no-store"}
                pairs = ((name.encode(), value.encode()) for name, value in added.items())
                message["headers"] = [*message["headers"], *(pair for pair in pairs if pair[0] not in own)]
            else:
                sent += len(message.get("body", b""))
            try:
                await send(message)
            except Exception as error:  # what was sent is sound, so it is the connection
                raise _Broken from error

        try:
            await self._app(scope, receive, sending)
        except _Broken:
            log.info("connection broken", extra={"fields": {"id": identity}})
        except Exception as crash:  # noqa: BLE001  (any: it is logged, and the client gets a line)
            log.error("crash", extra={"fields": {"id": identity, **without_values(crash)}})
            if not status:
                line = f"the service failed at this; its log says more under {identity}"
                await error(500, line)(scope, receive, sending)
        seconds = time.perf_counter() - started
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
        route = getattr(scope.get("route"), "path", "") or "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {"id": identity, "method": method, "route": route, "status": status, "bytes": sent}
        log.info("request", extra={"fields": {**fields, "ms": round(1000 * seconds, 1)}})
