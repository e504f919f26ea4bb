"""Every input of ../shared/cases through a running service: a right answer, or a line that says what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.real

STRICT = {  # what a mask that is not black and white is refused with
    "alpha": "has an alpha channel that is not opaque",
    "classes-0-1": "contains the values 0 and 1, no white",
    "colour-red-green": "is in colour",
    "sixteen-bit-0-1": "contains the 16-bit values 0 and 1, no white",
    "sixteen-bit-0-255": "contains the 16-bit values 0 and 255, no white",
}
REFUSED = {"claims-50-million-frames": r"its header says 50,000,000 frames", "scan-bomb": r"5001 scans, 100 at most"}


@pytest.fixture(scope="session")
def cases(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, drawn."""
    script = real_data.parent / "cases" / "make.py"
    if not script.is_file():
        pytest.skip(f"no real data: {script} is missing")
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def service(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with the limits that it has without options."""
    return start(tmp_path_factory.mktemp("cases-service") / "state")


def send(service: Any, route: str, **files: Path) -> Any:
    sent = {field: (path.name, path.read_bytes()) for field, path in files.items()}
    answer = service.web.post(route, files=sent, data={"name": "a"} if "mask" in files else None)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        line = answer.json()["error"]
        assert "\n" not in line and not re.search(r"/tmp|temporary|site-packages|upload-", line), line
    return answer


def test_every_frame_is_segmented_and_every_mask_read_strictly(service: Any, cases: Path) -> None:
    for folder in sorted(path for path in (cases / "data").iterdir() if path.is_dir()):
        frames, masks = (sorted((folder / kind).iterdir()) for kind in ("images", "masks"))
        for frame, mask in zip(frames[-1:], masks[-1:], strict=True):
            answer = send(service, "/v1/segment", file=frame)
            assert answer.status_code == 200 and (answer.json()["width"], answer.json()["height"]) == (160, 120)
            answer = send(service, "/v1/corrections", frame=frame, mask=mask)
            if folder.name in STRICT:
                assert answer.status_code == 422 and STRICT[folder.name] in answer.json()["error"], answer.text
            else:
                assert answer.status_code == 201
                stored = service.state / "corrections" / "masks" / f"{answer.json()['name']}.png"
                assert np.array_equal(np.asarray(Image.open(stored)), np.asarray(Image.open(mask)))


def test_every_still_is_read_or_refused_at_once(service: Any, cases: Path) -> None:
    mask = cases / "data" / "my-clinic" / "masks" / "0004.png"
    plain = send(service, "/v1/segment", file=cases / "dicom" / "plain.dcm").json()
    for path in [*sorted((cases / "dicom").iterdir()), cases / "scan-bomb.jpg"]:
        answer, corrected = (
            send(service, "/v1/segment", file=path),
            send(service, "/v1/corrections", frame=path, mask=mask),
        )
        if path.stem in REFUSED:
            assert answer.status_code == corrected.status_code == 422, path
            assert re.search(REFUSED[path.stem], answer.json()["error"]), answer.text
            continue
        assert (answer.status_code, corrected.status_code) == (200, 201), path
        if path.stem not in ("rescale-empty", "jpeg-no-planar"):  # of other pixels
            assert answer.json()["polyps"] == plain["polyps"], path


def test_every_video_becomes_a_job_that_tells_of_damage(service: Any, cases: Path) -> None:
    jobs = {}
    for path in sorted((cases / "video").iterdir()):
        assert send(service, "/v1/segment", file=path).status_code == 415
        answer = send(service, "/v1/jobs", file=path)
        if answer.status_code == 422:  # not one frame
            assert "cut-10" in path.name and "contains no frame" in answer.json()["error"], answer.text
            continue
        jobs[path.name] = answer.json()["id"]
    for name, identity in jobs.items():
        job = service.wait_for(identity, lambda job: job["state"] not in ("queued", "running"), 120)
        assert job["state"] == "done", job
        if name.startswith("a."):
            assert job["error"] is None and job["done"] == 120
        else:
            assert re.match(rf"{re.escape(name)}: is (cut off after {job['done']} frames|damaged at)", job["error"]), (
                job
            )


def test_the_log_has_no_traceback(service: Any) -> None:
    """Of all that was sent before."""
    assert "Traceback" not in service.log.read_text() and service.process.poll() is None
