"""The verb ``serve``."""

from __future__ import annotations

import os
from pathlib import Path

from polypseg.cli.checks import check_models
from polypseg.cli.verb import Verb
from polypseg.inference.augmentation import Augmented
from polypseg.names import Precision, Runtime


def serve(  # noqa: PLR0913  (an option each)
    model: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    state: str = "polypseg-state",
    token: str | None = None,
    tokens: str | None = None,
    labels: str | None = None,
    runtime: Runtime = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    tta: Augmented | None = None,
    queue: int = 32,
    batch_size: int = 4,
    timeout: float = 30.0,
    max_mib: int = 32,
    max_pixels: int = 20_000_000,
    max_job_mib: int = 4096,
    max_video_seconds: float = 14400.0,
    keep_days: float | None = None,
    keep_video_mib: int = 0,
    streams: int = 8,
    socket: str | None = None,
) -> None:
    """Serve a model to programs and, as a page, to people, on this computer; needs the extra polypseg[serve].

    Prints its address. Ctrl-C ends it.

    Args:
        model: a bundle's or a run's folder; given several times, several models, each called as its folder is, or NAME
            in NAME=FOLDER; requests that name none get the first; the model that ships by default. SIGHUP opens them
            anew.
        host: address to listen on; any other than this computer's own needs a token.
        port: TCP port; 0 takes a free one.
        state: folder for jobs, their files, and corrections.
        token: what requests must carry (Authorization: Bearer TOKEN), 16 characters or more; better given as
            POLYPSEG_TOKEN, as other users of this computer see command lines.
        tokens: file with a name and a token on each line; whoever has one is let in, and versions bear the name.
        labels: file of the classes and attributes that a polyp may have, YAML or JSON.
        runtime: what computes the network; auto takes the fastest that is there, and says why.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: views that are averaged (test-time augmentation), for up to four times the work; the bundle's own by
            default.
        queue: frames that may be waited for at once; more requests get 429.
        batch_size: frames computed at once, if so many wait; none waits for others.
        timeout: seconds from a frame's arrival to its prediction; longer gets 504.
        max_mib: largest file of a frame, MiB.
        max_pixels: most pixels of a frame, whether alone, in a DICOM file or in a video.
        max_job_mib: most that the files of one job may contain, MiB.
        max_video_seconds: longest video, seconds.
        keep_days: days after which a job that has ended is removed, with its results; kept by default.
        keep_video_mib: uploaded videos of at most so many MiB stay with their job, so that the page shows their frames
            after a reload too; 0 keeps none.
        streams: live streams at once; more are refused.
        socket: path of a Unix socket for live streams of programs on this computer.
    """
    from polypseg.serve.settings import MIB, Settings, named

    check_models(named(model or ()).values())
    from polypseg.serve.annotations.labels import Labels, read_labels
    from polypseg.serve.people import read_tokens
    from polypseg.serve.run import serve as run

    settings = Settings(
        Path(state), token or os.environ.get("POLYPSEG_TOKEN") or None, queue, batch_size, timeout, max_mib * MIB,
        max_pixels, max_job_mib * MIB, max_video_seconds, keep_days, streams,
        None if socket is None else Path(socket),
        {} if tokens is None else read_tokens(Path(tokens)), Labels() if labels is None else read_labels(Path(labels)),
        keep_video_mib * MIB,
    )  # fmt: skip
    run(settings, host, port, model or (), runtime, device, precision, threads, tta)


VERB = Verb(
    serve,
    examples=(
        "polypseg serve",
        "polypseg serve --model runs/two-cores --host 0.0.0.0 --port 8080   # POLYPSEG_TOKEN is set",
    ),
    see=(("Serve a model", "../how-to/serve.md"), ("Service", "service.md")),
)
