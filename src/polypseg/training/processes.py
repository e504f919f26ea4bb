"""The processes that train together, on one machine or several: who started them, and how they agree."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import lightning as L
import torch.distributed as dist
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from polypseg.errors import PolypsegError, UsageError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process is the one that speaks and writes; sure once the Trainer is made."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def launched() -> tuple[int, int] | None:
    """Processes on each machine, and machines, as torchrun or SLURM's srun started them; None where neither did."""
    if TorchElasticEnvironment.detect():
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    if SLURMEnvironment.detect():
        machines = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // machines, machines
    return None


def check_restartable(overwrite: bool) -> None:
    """Refuse ``overwrite`` under torchrun, which starts the same command again when a process has died.

    Raises:
        UsageError: each such start would throw away what the last one had trained.
    """
    if overwrite and TorchElasticEnvironment.detect():
        raise UsageError(
            "--overwrite: torchrun starts the command again after a failure, which would throw away the epochs trained "
            "by then; give --resume and another --out, or remove the old run first"
        )


def join(trainer: L.Trainer) -> None:
    """Connect the processes that torchrun or srun started, so that they can agree before the work starts.

    Those that Lightning itself starts connect later, in ``fit``.

    Raises:
        PolypsegError: they do not find each other.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or trainer.world_size == 1 or launched() is None:
        return
    try:
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        trainer.strategy.setup_environment()
    except (RuntimeError, ValueError) as error:
        raise PolypsegError(
            f"process {trainer.global_rank} of {trainer.world_size} on {socket.gethostname()}: does not find the "
            f"others ({first_sentence(error)}); see that all machines started and reach the first one"
        ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, a ``PolypsegError`` of one process is raised in all; else the others would wait for it."""
    failure: PolypsegError | None = None
    try:
        yield
    except PolypsegError as error:
        failure = error
    try:
        reports = _gather((socket.gethostname(), failure and str(failure)))
    except PolypsegError as lost:
        raise failure or lost from lost.__cause__
    if failure is not None:
        raise failure
    for rank, (host, message) in enumerate(reports):
        if message is not None:
            raise PolypsegError(f"stopped, because process {rank} on {host} cannot start: {message}")


def from_first(value: T) -> T:
    """What the first process gives here, in every process."""
    first: T = _gather(value)[0]
    return first


def agree(value: T, error: str) -> None:
    """Raise ``PolypsegError(error)``, in every process, where one has another value than the first."""
    same = value == from_first(value)
    with together():
        if not same:
            raise PolypsegError(error)


def lost_another(error: BaseException) -> bool:
    """Whether an error of a training says that another of its processes has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _gather(value: Any) -> list[Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise gone(error) from error
    return values


def gone(error: BaseException) -> PolypsegError:
    """The one line for an error by which ``lost_another``."""
    return PolypsegError(
        f"{socket.gethostname()}: another process of this training has gone ({first_sentence(error)}); its own last "
        "line says why; --resume continues from the last complete epoch"
    )


def first_sentence(error: BaseException) -> str:
    """An error's first sentence, on one line, without the place in gloo's source that it may begin with."""
    return re.sub(r"^\[[^\]]*\] ", "", " ".join(str(error).split())).partition(". ")[0][:200]
