"""The verb ``dicom``."""

from __future__ import annotations

import os
from pathlib import Path

from polypseg.cli.checks import check_models
from polypseg.cli.verb import Verb
from polypseg.inference.augmentation import Augmented
from polypseg.names import Precision, Runtime


def dicom(  # noqa: PLR0913  (an option each)
    to: str,
    model: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 11112,
    ae_title: str = "POLYPSEG",
    allow: list[str] | None = None,
    state: str = "polypseg-dicom",
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_ca: str | None = None,
    to_tls: bool = False,
    commitment: bool = False,
    plane: bool = False,
    runtime: Runtime = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    tta: Augmented | None = None,
    threshold: float | None = None,
    min_confidence: float | None = None,
    min_area: float | None = None,
    fill_holes: bool | None = None,
    associations: int = 16,
    max_mib: int = 4096,
    max_pixels: int = 20_000_000,
    keep_days: float = 30.0,
) -> None:
    """Receive DICOM images by C-STORE, segment them, and send the segmentations on; needs the extra polypseg[dicom].

    Answers C-ECHO too. Prints its AE title and address. Ctrl-C ends it; what is not done by then is done when it is
    started again.

    Args:
        to: where segmentations go: an AE as AE@host:port (C-STORE), or a DICOMweb server as https://host/dicom-web
            (STOW-RS; POLYPSEG_DICOMWEB_AUTHORIZATION is sent as its Authorization).
        model: a bundle's or a run's folder; given several times, an ensemble; the model that ships by default.
        host: address to listen on; any other than this computer's own needs --allow or --tls_ca.
        port: TCP port; 0 takes a free one.
        ae_title: the own AE title; calls for another one are rejected.
        allow: who may call, as ENDO1@10.0.0.7, *@10.0.0.0/24 or PACS@orthanc; several by --allow each; everybody by
            default.
        state: folder for the worklist and the images in it; private, as they are a patient's.
        tls_cert: PEM file of the own certificate; with it, callers must use TLS.
        tls_key: PEM file of its private key.
        tls_ca: PEM file of the certificates that are trusted; with it, callers must show one that is.
        to_tls: send segmentations by TLS; for an AE.
        commitment: ask the AE whether it keeps them (storage commitment), and send again what it does not; it reports
            to --ae_title at --port.
        plane: place segmentations in a plane that is made up (pixels of 1 mm), as viewers made for CT and MR want it,
            OHIF among them.
        runtime: what computes the network; auto takes the fastest that is there, and says why.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: views that are averaged (test-time augmentation), for up to four times the work; the bundle's own by
            default.
        threshold: probability at and above which a pixel belongs to a region, 0..1; the bundle's own by default.
        min_confidence: a region's least confidence to be a polyp, 0..1; the bundle's own by default.
        min_area: a region's least size, share of the frame; the bundle's own by default.
        fill_holes: whether holes in a region are filled; the bundle's own by default.
        associations: that may be open at once; more are rejected, and callers try again.
        max_mib: largest object, MiB.
        max_pixels: most pixels of a frame.
        keep_days: for which it is remembered what was sent; the same object is not segmented twice in that time.
    """
    check_models(model or ())
    from polypseg.pipeline.options import PredictOptions
    from polypseg.serve.dicom_network.run import serve
    from polypseg.serve.dicom_network.settings import MIB, DicomSettings

    cert, key, authority = (None if file is None else Path(file) for file in (tls_cert, tls_key, tls_ca))
    settings = DicomSettings(
        Path(state), to, ae_title, tuple(allow or ()), cert, key, authority, to_tls, commitment,
        os.environ.get("POLYPSEG_DICOMWEB_AUTHORIZATION") or None, plane, associations,
        max_mib * MIB, max_pixels, keep_days,
    )  # fmt: skip
    options = PredictOptions(
        runtime=runtime, device=device, precision=precision, threads=threads, tta=tta, threshold=threshold,
        min_confidence=min_confidence, min_area=min_area, fill_holes=fill_holes,
    )  # fmt: skip
    serve(settings, host, port, options, model or ())


VERB = Verb(
    dicom,
    examples=(
        "polypseg dicom --to PACS@10.0.0.5:104 --host 0.0.0.0 --allow PACS@10.0.0.5 --allow ENDO1@10.0.0.7",
        "polypseg dicom --to https://pacs.example/dicom-web --port 11112",
    ),
    see=(("DICOM network", "../how-to/dicom-network.md"), ("DICOM files", "../how-to/dicom.md")),
)
