"""Ray: many workers at once, on this machine or a cluster. Ray Data hands them the partitions, and starts them anew."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from typing import Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.runtimes import usable_cores
from polypseg.pipeline.archive.rows import Done
from polypseg.pipeline.archive.worker import Job, Worker
from polypseg.pipeline.options import PredictOptions

log = logging.getLogger("polypseg")

PATIENCE = 30  # seconds until a cluster must have responded
STARTS = 2  # of Ray on this machine, which gives up early where that is busy
ATTEMPTS = 4  # at a partition: what kills a worker so often will kill the next one too
IN_QUEUE = 2  # partitions that a worker is given ahead
BLOCKS = 10_000  # Ray Data's own books grow with these; more partitions share them
OBJECTS = 80 * 2**20  # bytes: nothing but numbers of partitions passes through Ray's memory


def run(ray: Any, job: Job, todo: Sequence[int], add: Callable[[Done], object]) -> None:
    """Have partitions predicted by workers.

    Args:
        ray: as ``started`` gives it.
        job: what a worker needs to know.
        todo: the partitions' numbers.
        add: called with each one that is written, in the order in which that happens.

    Raises:
        PolypsegError: the cluster has no room for a worker, or a worker cannot continue: what it said.
    """
    gpus, workers = _share(ray, job.options)
    threads = job.options.threads or 1
    options = replace(job.options, threads=threads, device="cuda" if gpus else job.options.device)
    log.info("ray: %d worker%s, %s each", workers, "s" * (workers > 1),
             "one GPU" if gpus else f"{threads} thread{'s' * (threads > 1)}")  # fmt: skip
    # There is no other way to say max_task_retries.
    warnings.filterwarnings("ignore", ".*ray_remote_args", DeprecationWarning)
    data = ray.data.from_items([{"partition": number} for number in todo],
                               override_num_blocks=min(len(todo), BLOCKS))  # fmt: skip
    results = data.map_batches(
        _Actor,
        fn_constructor_args=(replace(job, options=options),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo)), max_tasks_in_flight_per_actor=IN_QUEUE),
        num_cpus=threads,
        num_gpus=1 if gpus else None,
        max_task_retries=ATTEMPTS - 1,
    )
    try:
        for result in results.iter_rows():
            if result["trouble"]:
                raise PolypsegError(result["trouble"])
            add(Done(**{name: value for name, value in result.items() if name != "trouble"}))
    except PolypsegError:
        raise
    except Exception as error:  # whatever Ray raises of a worker that it gave up
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())[:300]
        raise PolypsegError(f"--engine ray: a worker failed ({reason}); run it again with --resume") from error


@contextlib.contextmanager
def started(address: str | None, cpus: int, at_once: bool) -> Iterator[Callable[[], Any]]:
    """Ray, for as long as it is needed. It takes seconds to start, in which the caller can do something else.

    Args:
        address: of a cluster; else ``RAY_ADDRESS``; without either, Ray is started here for this run.
        cpus: started here, it has at least so many.
        at_once: start now, and not only when it is asked for.

    Yields:
        What gives the ``ray`` package when Ray is there.

    Raises:
        UsageError: the address is none.
        PolypsegError: at once, Ray is not installed, or nothing listens there; by what is yielded, it does not start,
            or the cluster does not respond.
    """
    ray = import_ray()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address:
        _reach(address)
    ours = not ray.is_initialized()  # else it is the program's that we are called from
    with ThreadPoolExecutor(1, "polypseg-ray") as thread:
        starting: list[Future[None]] = []

        def begin() -> None:
            if ours and not starting:
                starting.append(thread.submit(_connect, ray, address, cpus))

        def ready() -> Any:
            begin()
            for one in starting:
                one.result()
            return ray

        if at_once:
            begin()
        try:
            yield ready
        finally:
            if starting:
                wait(starting)
                ray.shutdown()


class _Actor:
    """A worker in a process of Ray's. What goes wrong is a result, not an exception: it needs no second attempt."""

    def __init__(self, job: Job) -> None:
        import cv2

        cv2.setNumThreads(job.options.threads)
        self._trouble = ""
        try:
            self._worker = Worker(job)
        except PolypsegError as error:
            self._trouble = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (number,) = batch["partition"].tolist()
        done = Done(number, 0, 0, 0, 0)
        trouble = self._trouble
        if not trouble:
            try:
                done = self._worker.commit(number)
            except PolypsegError as error:
                trouble = str(error)
        return {name: [value] for name, value in {**asdict(done), "trouble": trouble}.items()}


def import_ray() -> Any:
    """The ``ray`` package with ``ray.data``, silent, and without its usage reports: nothing here phones home.

    Raises:
        PolypsegError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it has to say comes as exceptions too
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; says so itself otherwise
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PolypsegError(f"--engine ray: Ray is not installed ({error}); pip install 'polypseg[ray]'") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    """Join the cluster at an address, or start Ray on this machine, with at least so many CPUs."""
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": False}
    if address is None:
        os.environ.setdefault("RAY_enable_autoscaler_v2", "1")  # the first one takes a second to end
        here = {"include_dashboard": False, "object_store_memory": OBJECTS, "_node_ip_address": "127.0.0.1"}
        for attempt in range(STARTS):
            try:
                ray.init("local", num_cpus=max(usable_cores(), cpus), **here, **quiet)
                break
            except (Exception, SystemExit) as error:
                ray.shutdown()
                if attempt == STARTS - 1:
                    reason = " ".join(str(error).split())[:200]
                    raise PolypsegError(f"--engine ray: Ray cannot be started on this machine ({reason})") from error
    else:
        _in_time(lambda: ray.init(address, **quiet), address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def _reach(address: str) -> None:
    """Raise if nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        if address != "auto":
            raise UsageError(f"--address {address}: is none; write host:6379, or auto")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise PolypsegError(f"{address}: no Ray cluster responds there ({error.strerror or error})") from error


def _in_time(connect: Callable[[], object], address: str) -> None:
    """Connect, or raise when that takes too long."""
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            connect()
        except BaseException as error:  # noqa: BLE001  (raised again by the thread that waits)
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        raise PolypsegError(f"{address}: no Ray cluster responds there (in {PATIENCE} s)")
    if failed:
        reason = " ".join(str(failed[0]).split())[:200]
        raise PolypsegError(f"{address}: no Ray cluster responds there ({reason})") from failed[0]


def _share(ray: Any, options: PredictOptions) -> tuple[bool, int]:
    """Whether workers have a GPU each, and how many there are.

    Raises:
        PolypsegError: not one finds room.
    """
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    device = options.device
    on_gpu = device.startswith("cuda") or (device == "auto" and options.runtime in ("auto", "torch") and gpus > 0)
    if on_gpu and not gpus:
        raise PolypsegError("--device cuda: the cluster has no GPU; use --device cpu")
    room = gpus if on_gpu else cpus // (options.threads or 1)
    if not room:
        raise PolypsegError(f"--threads {options.threads}: the cluster has {cpus} CPUs")
    return on_gpu, options.workers or room
