"""What a prediction is asked for, the same of pictures, DICOM, videos, cameras, archives and the service's jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypseg import renamed
from polypseg.errors import UsageError
from polypseg.io.outputs import DEFAULT_OUTPUTS, Output
from polypseg.operating_point import OperatingPoint

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

PARTITION = 128  # frames
MOST_FRAMES = 1_000_000  # of a partition
MEMORY = 512  # MiB
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class PredictOptions:
    """The options of ``polypseg predict``, by the same names and defaults.

    Attributes:
        save: the outputs; by default ``mask`` and ``json`` of frames, and the overlay of videos.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation, as ``Segmenter`` takes it; None is the bundle's own.
        threshold: of the operating point, likewise ``min_confidence``, ``min_area`` and ``fill_holes``; None is the
            bundle's own.
        batch_size: frames that are computed at once, 1 or more; None is 1 of pictures, 4 of a video, and of an archive
            what suits the device. Of several, a frame's prediction may differ by its company, in the last digits.
        smoothing: videos only, weight of the past in an exponential average of the probability maps, 0 (none) to below
            1.
        resume: keep what is complete and was made of the same file by the same model; continue with what is not.
        overwrite: replace outputs that are there already.
        live: drop late frames and print latency, as it is done with a camera anyway.
        engine: ``local`` or ``ray`` make an archive's results of the sources; None only of manifests and URLs.
        address: Ray only, of a cluster, as ``host:6379`` or ``auto``; else ``RAY_ADDRESS``; else this machine.
        workers: Ray only; 0 takes one a GPU, or as many as the CPUs allow.
        partition: archives only, frames of a partition.
        memory: archives only, what the frames in flight in one worker may take, MiB.
        progress: show how far it is on stderr, if that is a terminal.

    Raises:
        UsageError: one is out of its range, or two contradict each other.
    """

    save: Sequence[Output] | None = None
    runtime: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    tta: str | None = None
    threshold: float | None = None
    min_confidence: float | None = None
    min_area: float | None = None
    fill_holes: bool | None = None
    batch_size: int | None = None
    smoothing: float = 0.0
    resume: bool = False
    overwrite: bool = False
    live: bool = False
    engine: str | None = None
    address: str | None = None
    workers: int = 0
    partition: int = PARTITION
    memory: int = MEMORY
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tta", renamed.value("tta", self.tta))
        OperatingPoint().override(**self.point)
        if self.engine not in (None, *ENGINES):
            raise UsageError(f"--engine {self.engine}: is unknown; choose {' or '.join(ENGINES)}")
        if self.engine != "ray" and (self.address is not None or self.workers):
            raise UsageError(f"--{'address' if self.address is not None else 'workers'}: is for --engine ray")
        for name, least in (("partition", 1), ("memory", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} {value}: must be {least} or more")
        if self.partition > MOST_FRAMES:
            raise UsageError(f"--partition {self.partition}: must be {MOST_FRAMES} or less")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"--smoothing {self.smoothing:g}: must be at least 0 and below 1")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite: one keeps what is there, the other replaces it; choose one")

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What is written of frames and of the whole run."""
        return DEFAULT_OUTPUTS if self.save is None else tuple(self.save)

    @property
    def overlay(self) -> bool:
        """Whether videos get an overlay."""
        return self.save is None or "overlay" in self.save

    @property
    def point(self) -> dict[str, Any]:
        """What of the operating point is not the bundle's own."""
        named = {name: getattr(self, name) for name in ("threshold", "min_confidence", "min_area", "fill_holes")}
        return {name: value for name, value in named.items() if value is not None}

    def load(self, model: Sequence[str | Path] = ()) -> Segmenter:
        """The Segmenter of these bundles, an ensemble if there are several; of none, that of the model that ships.

        Raises:
            PolypsegError: as ``Segmenter``.
        """
        from polypseg.inference.segmenter import Segmenter

        return Segmenter(
            list(model) or None, self.runtime, self.device, self.precision, self.threads, self.tta, **self.point
        )
