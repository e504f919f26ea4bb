"""Speed: what each runtime and precision takes for a bundle's network and for whole predictions, side by side.

Every way of running is a process of its own, so that load time and peak memory are its own and no runtime's threads
disturb another's. The processes take turns, round after round, so that a drift of the machine hits all of them alike;
one that waits for its turn computes nothing.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg import zoo
from polypseg.bundle import ModelBundle, versions
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write, commit, disk_error, write_json
from polypseg.inference.choice import check_threads

if TYPE_CHECKING:
    from polypseg.catalog import Catalog
    from polypseg.inference.segmenter import Segmenter

RUNTIMES = ("torch", "compile", "openvino", "onnx")
USUAL = ("torch", "openvino", "onnx")  # torch.compile takes minutes to start
ROUNDS = 5
WARM_UP = 2  # calls of each kind before the timed ones, in every turn
# Seconds of work at the start of every turn: the system may have taken memory away from a process that waited.
AWAKE = 1.0
IN_FLIGHT = 4  # frames at once in a stream, as in videos
FRAMES = 4  # different ones, taken in turns
MAX_SIDE = 16384  # pixels


@dataclass(frozen=True)
class Way:
    """One way of running a bundle: the arguments of a Segmenter.

    Attributes:
        runtime: ``torch``, ``openvino`` or ``onnx``.
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        channels_last: PyTorch's memory layout.
        compile: by ``torch.compile``.
    """

    runtime: str
    device: str
    precision: str
    channels_last: bool = False
    compile: bool = False

    @property
    def variant(self) -> str:
        """What distinguishes it from others of the same runtime, device and precision."""
        if self.runtime != "torch":
            return ""
        layout = "channels_last" if self.channels_last else "default layout"
        return f"{layout}, {'compiled' if self.compile else 'eager'}"


NAIVE = Way("torch", "cpu", "fp32")  # what a notebook does; all others are compared with it


def ways(bundle: ModelBundle, runtimes: Sequence[str] = USUAL) -> list[Way]:
    """The ways in which this machine can run a bundle, the naive one first.

    A runtime that the bundle has no export for is among them too, with what its fp32 export would be; a Segmenter says
    how to make it. PyTorch is left out where it is not installed, unless nothing else is asked for.

    Args:
        bundle: an opened bundle.
        runtimes: some of ``RUNTIMES``.
    """
    found = []
    by_torch = {"torch", "compile"} & set(runtimes)
    if by_torch and (find_spec("torch") is not None or by_torch == set(runtimes)):
        from polypseg.models.device import choose_device, gains_from_bf16

        for device in dict.fromkeys(("cpu", choose_device("auto").type)):
            precisions = ("fp32", "bf16") if gains_from_bf16(device) else ("fp32",)
            if "torch" in runtimes:
                found.append(Way("torch", device, "fp32"))
                found += [Way("torch", device, precision, channels_last=True) for precision in precisions]
            if "compile" in runtimes:
                found.append(Way("torch", device, precisions[-1], channels_last=True, compile=True))
    for runtime in ("openvino", "onnx"):
        if runtime in runtimes:
            of_each = [[one.precision for one in net.exports if one.runtime == runtime] for net in bundle.networks]
            exported = [one for one in of_each[0] if all(one in others for others in of_each)]
            found += [Way(runtime, "cpu", precision) for precision in exported or ["fp32"]]
    return found


class Worker:
    """A process that measures one way of running, and replies to each request, a line of JSON, with another.

    Args:
        command: what starts it; ``START`` for ours. It reads its job, then requests, from standard input.
        job: the first line: what it is to load. Its reply contains ``load_s``.

    Raises:
        PolypsegError: it could not load; the message says why, in one line.
    """

    def __init__(self, command: Sequence[str], job: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed with the process)
        # A session of its own: Ctrl-C is for the parent, who ends it.
        self._process = subprocess.Popen(  # noqa: S603  (our own program, and no shell)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        try:
            self.loaded = self.ask(**job)
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its reply to a request.

        Raises:
            PolypsegError: it replied that it cannot, or died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise PolypsegError(self._epitaph())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PolypsegError(reply["error"])
        return reply

    def _epitaph(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        last = f" ({said[-1].strip()[:200]})" if said else ""
        return f"its process ended with status {status}{last}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -P: the folder that the user works in contains no modules of ours. The clock starts before anything is imported.
START = (
    sys.executable, "-P", "-c",
    "import time; started = time.perf_counter(); from polypseg.benchmark.speed import work; work(started)",
)  # fmt: skip


def work(started: float) -> None:
    """The process of a ``Worker``: loads a Segmenter, then times or scores it, until standard input ends.

    Requests are ``{"repeats": n}``, replied to as by ``timed``, and ``{"data": …, "split": …, "split_file": …}``,
    replied to with ``{"dice": …}``.

    Args:
        started: ``time.perf_counter()`` when the process began.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no reply
    segmenter: Segmenter | None = None
    frames = np.empty(0, np.uint8)
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if segmenter is None:
                segmenter = _load(request)
                reply = {"load_s": time.perf_counter() - started, "threads": segmenter.runtime.threads}
                frames = np.load(request["frames"])
            elif "repeats" in request:
                reply = timed(segmenter, list(frames), request["repeats"])
            else:
                reply = {"dice": _dice(segmenter, _selected(segmenter.bundle, **request)[0])}
        except Exception as error:  # noqa: BLE001  (any: a way that fails is a row that says so)
            told = " ".join(str(error).split())[:400]
            reply = {"error": told if isinstance(error, PolypsegError) else f"{type(error).__name__}: {told}"}
        print(json.dumps(reply), file=replies, flush=True)


def _load(job: Mapping[str, Any]) -> Segmenter:
    from polypseg.inference.segmenter import Segmenter

    if job["threads"]:
        cv2.setNumThreads(job["threads"])
    return Segmenter(job["bundle"], threads=job["threads"], **job["way"])


def timed(segmenter: Segmenter, frames: Sequence[NDArray[np.uint8]], repeats: int) -> dict[str, Any]:
    """One turn of a Segmenter.

    Args:
        segmenter: what is timed, a CPU's or GPU's.
        frames: H×W×3 uint8 RGB each, of one size; taken in turns.
        repeats: timed calls of each kind.

    Returns:
        Seconds of each call: ``network`` (from one resized frame to logits), ``before`` (the resize), ``after`` (from
        the probability map to the mask and its polyps) and ``end_to_end`` (from a frame to its polyps);
        ``network_stream`` and ``stream``, seconds a frame of the network and of all with ``IN_FLIGHT`` frames at once;
        ``polyps``, their mean number; ``memory_mb``, the process's peak so far, None where the system does not say.
    """
    height, width = frames[0].shape[:2]
    resized = [segmenter.preprocessing.resize_frame(frame) for frame in frames]
    maps = [segmenter.probability(frame) for frame in frames]

    def seconds(call: Callable[[int], Any]) -> list[float]:
        spent = []
        for number in range(WARM_UP + repeats):
            start = time.perf_counter()
            call(number % len(frames))
            spent.append(time.perf_counter() - start)
        return spent[WARM_UP:]

    def streamed(count: int, some: Sequence[NDArray[np.uint8]], results: Callable[..., Iterable[Any]]) -> float:
        start = time.perf_counter()
        for _ in results((some[index % len(some)] for index in range(count)), IN_FLIGHT):
            pass
        return (time.perf_counter() - start) / count

    def found(*of: Any) -> Iterator[Any]:
        return (one.polyps for one in segmenter.stream(*of))

    streamed(IN_FLIGHT, frames, found)  # warm-up
    count = max(repeats, 2 * IN_FLIGHT)
    start = time.perf_counter()
    while time.perf_counter() - start < AWAKE:
        segmenter.segment(frames[0])
    return {
        "network": seconds(lambda index: segmenter.logits(resized[index][None])),
        "before": seconds(lambda index: segmenter.preprocessing.resize_frame(frames[index])),
        "after": seconds(lambda index: segmenter.segmentation(maps[index], height, width).polyps),
        "end_to_end": seconds(lambda index: segmenter.segment(frames[index]).polyps),
        "network_stream": streamed(count, resized, segmenter.probabilities),
        "stream": streamed(count, frames, found),
        "polyps": float(np.mean([len(segmenter.segmentation(one, height, width).polyps) for one in maps])),
        "memory_mb": _peak_memory(),
    }


def _peak_memory() -> float | None:
    """The largest resident memory of this process so far, MB."""
    try:  # getrusage would give the parent's on Linux, where a new process inherits it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        return None if peak is None else int(peak[1]) * 1024 / 1e6
    except OSError:
        if sys.platform != "darwin":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _selected(
    bundle: ModelBundle, data: Sequence[str], split: str, split_file: str | None
) -> tuple[Catalog, dict[str, Any]]:
    from polypseg.data import read_all
    from polypseg.evaluation.selection import select

    return select(read_all(data), split, split_file, bundle)


def _dice(segmenter: Segmenter, catalog: Catalog) -> float | None:
    """As ``dice`` of ``evaluation.scoring``, without PyTorch, which not every runtime has loaded."""
    from polypseg.metrics.lesions import shows_polyp
    from polypseg.metrics.overlap import dice

    predicted = segmenter.stream(catalog.frame(index) for index in range(len(catalog)))
    pairs = ((one.mask, catalog.mask(index)) for index, one in enumerate(predicted))
    scores = [dice(mask, truth) for mask, truth in pairs if shows_polyp(truth)]
    return float(np.mean(scores)) if scores else None


@dataclass
class Contender:
    """A worker's command and job, and what it measured.

    Attributes:
        command: see ``Worker``.
        job: see ``Worker``.
        labels: the first columns of its row.
        score: the request for its mean Dice, as ``work`` takes it, made once the timing is done; None for none.
        loaded: the reply to the job.
        turns: the replies of its turns, as ``timed``.
        dice: mean Dice, once scored.
        reason: why numbers are missing; empty where all are there.
    """

    command: Sequence[str]
    job: Mapping[str, Any]
    labels: Mapping[str, Any]
    score: Mapping[str, Any] | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    dice: float | None = None
    reason: str = "interrupted before its turn"

    def row(self, naive: Contender | None) -> dict[str, Any]:
        """Its labels and numbers; percentiles are of all timed calls, speed-ups the median over rounds."""

        def percentile(kind: str, share: float) -> float | None:
            calls = [seconds for turn in self.turns for seconds in turn.get(kind, ())]
            return 1000 * float(np.percentile(calls, share)) if calls else None

        def median(kind: str) -> float | None:
            values = [turn[kind] for turn in self.turns if turn.get(kind) is not None]
            return float(np.median(values)) if values else None

        def speedup(kind: str) -> float | None:
            pairs = zip(naive.turns if naive is not None else [], self.turns, strict=False)
            ratios = [np.median(one[kind]) / np.median(other[kind]) for one, other in pairs if other.get(kind)]
            return float(np.median(ratios)) if ratios else None

        network, before, after = (percentile(kind, 50) for kind in ("network", "before", "after"))
        share = None if network is None or before is None or after is None else (before + after) / network
        network_stream, stream = median("network_stream"), median("stream")
        memory = [turn["memory_mb"] for turn in self.turns if turn.get("memory_mb")]
        numbers = {
            "network_p50_ms": network,
            "network_p95_ms": percentile("network", 95),
            "network_speedup": speedup("network"),
            "before_ms": before,
            "after_ms": after,
            "before_and_after_share": share,
            "end_to_end_p50_ms": percentile("end_to_end", 50),
            "end_to_end_p95_ms": percentile("end_to_end", 95),
            "end_to_end_speedup": speedup("end_to_end"),
            "network_stream_fps": None if network_stream is None else 1 / network_stream,
            "stream_fps": None if stream is None else 1 / stream,
            "load_s": self.loaded.get("load_s"),
            "memory_mb": max(memory, default=None),
            "polyps": median("polyps"),
            "dice": self.dice,
        }
        return {
            **self.labels,
            "threads": self.loaded.get("threads"),
            "calls": sum(len(turn["network"]) for turn in self.turns),
            **{name: None if value is None else float(f"{value:.6g}") for name, value in numbers.items()},
            "reason": self.reason,
        }


def take_turns(
    contenders: Sequence[Contender],
    repeats: int,
    rounds: int = ROUNDS,
    progress: bool = False,
) -> None:
    """Start every contender, let them take turns, and fill in what they measured.

    Args:
        contenders: what is compared; one that fails says so in its ``reason``, and the others continue.
        repeats: timed calls of each kind in each turn.
        rounds: turns of each.
        progress: show a progress bar.
    """
    with ExitStack() as stack:
        workers: list[tuple[Contender, Worker]] = []
        steps = len(contenders) * (2 + rounds)
        bar = stack.enter_context(tqdm(total=steps, desc="measuring", unit="turn", disable=not progress, leave=False))
        for one in contenders:
            try:
                workers.append((one, stack.enter_context(Worker(one.command, one.job))))
                one.loaded = workers[-1][1].loaded
            except PolypsegError as error:
                one.reason = str(error)
            bar.update()
        for turn in range(rounds + 1):
            for one, worker in list(workers):
                try:
                    if turn < rounds:
                        one.turns.append(worker.ask(repeats=repeats))
                        one.reason = ""
                    elif one.score is not None:
                        one.dice = worker.ask(**one.score)["dice"]
                except PolypsegError as error:
                    one.reason = str(error)
                    workers.remove((one, worker))
                bar.update()


def contenders(
    bundle: ModelBundle,
    runtimes: Sequence[str],
    threads: int,
    frames: str | Path,
    score: Mapping[str, Any] | None = None,
    **labels: Any,
) -> list[Contender]:
    """One Contender for each of ``ways(bundle, runtimes)``.

    Args:
        bundle: an opened bundle.
        runtimes: some of ``RUNTIMES``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        frames: a ``.npy`` of N×H×W×3 uint8 RGB, what is timed.
        score: as in ``Contender``.
        labels: further first columns of the rows.
    """
    return [
        Contender(
            START,
            {"bundle": str(bundle.folder), "threads": threads, "way": asdict(way), "frames": str(frames)},
            {
                **labels,
                "runtime": way.runtime,
                "device": way.device,
                "precision": way.precision,
                "variant": way.variant,
            },
            score,
        )
        for way in ways(bundle, runtimes)
    ]


def benchmark(
    bundle: str | Path | None = None,
    *,
    data: Sequence[str | Path] = (),
    split: str = "val",
    split_file: str | Path | None = None,
    out: str | Path = "benchmark",
    threads: int = 0,
    frame_size: str = "1280x720",
    repeats: int = 10,
    runtimes: Sequence[str] = USUAL,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Time a bundle in every way that this machine can run it, and write ``benchmark.csv`` and ``benchmark.json``.

    Interrupted, it writes what was measured until then.

    Args:
        bundle: a bundle's or a run's folder; the shipped model by default.
        data: folders of data sets, to time on their frames and report the mean Dice; phantom frames without any.
        split: ``train``, ``val``, ``test`` or ``all``.
        split_file: a CSV; by default the split that the bundle was trained with.
        out: folder for the two files.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        frame_size: width x height of the frames that are timed, pixels.
        repeats: timed calls of each kind in each of the ``ROUNDS`` rounds.
        runtimes: some of ``RUNTIMES``.
        progress: show a progress bar; by default where standard error is a terminal.

    Returns:
        The content of ``benchmark.json``: ``provenance``, and ``rows`` with the columns of ``benchmark.csv``.

    Raises:
        UsageError: an option is out of its range.
        PolypsegError: the bundle, the data or the folder stands in the way, or nothing at all could be measured.
    """
    width, height = _size(frame_size)
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: must be 1 or more")
    check_threads(threads)
    for name in runtimes:
        if name not in RUNTIMES:
            raise UsageError(f"--runtimes {name}: is unknown; choose from {', '.join(RUNTIMES)}")
    opened = zoo.open(bundle)
    score: dict[str, Any] | None = None
    catalog: Catalog | None = None
    origin: dict[str, Any] = {}
    if data:
        score = {
            "data": [str(source) for source in data],
            "split": split,
            "split_file": None if split_file is None else str(split_file),
        }
        catalog, origin = _selected(opened, **score)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # now, not after the work
    except OSError as error:
        raise disk_error(folder, error) from error
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "frames.npy"
        np.save(file, frames_of(catalog, width, height))
        runners = contenders(opened, runtimes, threads, file, score)
        facts = {
            **provenance(width, height),
            "bundle": opened.name,
            "bundle_hash": opened.hash,
            "network_size": f"{opened.preprocessing.width}x{opened.preprocessing.height}",
            "rounds": ROUNDS,
            "frames": "phantom" if catalog is None else " ".join(sorted(set(catalog.frames["dataset"]))),
            "n": 0 if catalog is None else len(catalog),
            "split": origin.get("split"),
        }
        try:
            take_turns(runners, repeats, progress=sys.stderr.isatty() if progress is None else progress)
        finally:
            naive = next((one for one in runners if one.job["way"] == asdict(NAIVE)), None)
            report = {"provenance": facts, "rows": [one.row(naive) for one in runners]}
            if any(one.turns for one in runners):
                write(report, folder)
    if not any(one.turns for one in runners):
        raise PolypsegError(f"{opened.folder}: nothing could be measured: {runners[0].reason}")
    return report


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None or not all(0 < int(side) <= MAX_SIDE for side in found.groups()):
        raise UsageError(f"--frame_size {text}: is no WIDTHxHEIGHT in pixels, 1 to {MAX_SIDE}, as 1280x720")
    return int(found[1]), int(found[2])


def frames_of(catalog: Catalog | None, width: int, height: int) -> NDArray[np.uint8]:
    """``FRAMES`` frames of a Catalog, at equal steps over all, or phantom ones: N×height×width×3 uint8 RGB."""
    if catalog is None:
        from polypseg.data import phantom

        frames = [phantom.draw(seed, height, width)[0] for seed in range(FRAMES)]
    else:
        chosen = np.linspace(0, len(catalog) - 1, FRAMES).astype(int)
        frames = [
            np.asarray(cv2.resize(catalog.frame(int(index)), (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            for index in chosen
        ]
    return np.stack(frames)


def provenance(width: int, height: int) -> dict[str, Any]:
    """Where and when it is measured, on frames of ``width``×``height`` pixels."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),  # asleep, threads of PyTorch are slower
        "frame_size": f"{width}x{height}",
        "versions": versions("openvino", "nncf", "onnxruntime", "opencv-python-headless"),
    }


def processor() -> str:
    """The processor's name, as /proc/cpuinfo or the platform gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``benchmark.json``, and ``benchmark.csv`` with the provenance in every row."""
    facts = {
        name: value if value is None or isinstance(value, int | float | str) else json.dumps(value)
        for name, value in report["provenance"].items()
    }
    rows = [{**row, **facts} for row in report["rows"]]
    with atomic_write(folder / "benchmark.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "benchmark.json", report)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a report as lines of text."""
    columns = {  # the field of each, and how it is written
        "network ms": ("network_p50_ms", "{:.1f}"),
        "p95": ("network_p95_ms", "{:.1f}"),
        "speed-up": ("network_speedup", "{:.1f}x"),
        "before": ("before_ms", "{:.2f}"),
        "after": ("after_ms", "{:.2f}"),
        "of net": ("before_and_after_share", "{:.0%}"),
        "whole ms": ("end_to_end_p50_ms", "{:.1f}"),
        " p95": ("end_to_end_p95_ms", "{:.1f}"),
        "net fps": ("network_stream_fps", "{:.1f}"),
        "whole fps": ("stream_fps", "{:.1f}"),
        "load s": ("load_s", "{:.2f}"),
        "MB": ("memory_mb", "{:.0f}"),
        "Dice": ("dice", "{:.4f}"),
    }

    def cells_of(row: Mapping[str, Any]) -> list[str]:
        values = ("-" if row[field] is None else form.format(row[field]) for field, form in columns.values())
        return [f"{row['runtime']} {row['device']} {row['precision']} {row['variant']}".strip(), *values]

    titles = ["how", *columns]
    cells = [cells_of(row) for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(titles)]

    def aligned(line: Iterable[str]) -> str:
        return "  ".join(f"{one:{'>' if at else '<'}{widths[at]}}" for at, one in enumerate(line))

    lines = [aligned(titles)]
    for row, line in zip(rows, cells, strict=True):
        if row["calls"]:
            lines.append(aligned(line))
        if row["reason"]:
            lines.append(f"{line[0]:{widths[0]}}  {row['reason']}")
    return "\n".join(lines)
