"""What decides how the service behaves."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polypseg.errors import UsageError
from polypseg.io.pictures import MAX_PIXELS
from polypseg.serve.annotations.labels import Labels
from polypseg.serve.people import TOKEN

MIB = 1 << 20
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a model: fit for a header and a label


@dataclass(frozen=True)
class Settings:
    """Limits of the service, and where it keeps what it must not forget.

    Args:
        state: folder for the table of jobs, their files, and corrections.
        token: what a request must carry as ``Authorization: Bearer``; None lets everyone in.
        queue: requests to segment that are taken in at once; more get 429.
        batch_size: frames that are computed at once, for the most.
        timeout: seconds from a frame's arrival to its response, at most.
        max_bytes: of a frame's file.
        max_pixels: of a frame, whether alone, in a DICOM file or in a video.
        max_job_bytes: of all files of a job.
        max_video_seconds: of a video.
        keep_days: that a job is kept after it ended, with its results; None keeps it until it is removed.
        streams: live streams at once.
        socket: path of a Unix socket for streams of this computer; None for none.
        tokens: the token of each person by name; whoever has one is let in too, and versions bear that name.
        labels: what polyps may be called.
        keep_video_bytes: uploaded videos of at most so many stay with their job; 0 keeps none.

    Raises:
        UsageError: a value is out of its range.
    """

    state: Path
    token: str | None = None
    queue: int = 32
    batch_size: int = 4
    timeout: float = 30.0
    max_bytes: int = 32 * MIB
    max_pixels: int = 20_000_000
    max_job_bytes: int = 4096 * MIB
    max_video_seconds: float = 4 * 3600
    keep_days: float | None = None
    streams: int = 8
    socket: Path | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    keep_video_bytes: int = 0

    def __post_init__(self) -> None:
        for option in (
            "queue",
            "batch_size",
            "timeout",
            "max_mib",
            "max_pixels",
            "max_job_mib",
            "max_video_seconds",
            "streams",
        ):
            if not getattr(self, option.replace("mib", "bytes")) > 0:
                raise UsageError(f"--{option}: must be above 0")
        if self.keep_video_bytes < 0:
            raise UsageError("--keep_video_mib: must be 0 or above")
        if self.keep_days is not None and not 0 < self.keep_days <= 36_500:
            raise UsageError(f"--keep_days {self.keep_days:g}: must be above 0 and at most 36500")
        if self.max_pixels > MAX_PIXELS:
            raise UsageError(f"--max_pixels {self.max_pixels}: frames of more than {MAX_PIXELS} are never read")
        if self.token is not None and not TOKEN.fullmatch(self.token):
            raise UsageError("--token: must be 16 ASCII characters or more, without spaces; as of openssl rand -hex 16")
        if self.token in self.tokens.values():
            raise UsageError("--token: is that of a name in --tokens; give another, or leave it out")

    @property
    def locked(self) -> bool:
        """Whether a token is needed."""
        return self.token is not None or bool(self.tokens)

    @property
    def decode_seconds(self) -> float:
        """That one frame may take to decode, for the most."""
        return min(self.timeout, 15.0)

    @property
    def decode_memory(self) -> int:
        """Bytes that decoding one frame may take, for the most: of a DICOM frame, two copies of 64-bit RGB and more."""
        return 512 * MIB + 64 * self.max_pixels


def named(models: Sequence[str]) -> dict[str, str]:
    """What ``--model`` names, each ``NAME=MODEL`` or a model that is called as its folder is: models by name.

    Raises:
        UsageError: a name is given twice, or is no name.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, model = given.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, model = _short(given), given
        if not NAME.fullmatch(name):
            raise UsageError(f"--model {given}: say what to call it, as --model NAME={given}")
        if name in found:
            raise UsageError(
                f"--model {given}: there is a {name} already; say what to call it, as --model NAME={given}"
            )
        found[name] = model
    return found


def _short(model: str) -> str:
    """The last part of a path or of ``hf://owner/name@revision``; of a run's bundle the run's."""
    parts = [part for part in re.split(r"[/\\]", model.partition("@")[0]) if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "bundle" else parts[-1] if parts else ""


def is_loopback(host: str) -> bool:
    """Whether an address is this computer's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
