"""Fine-tuning as a job: its curve, a restart in between, the model that comes of it; cancelling."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra polypseg[train] is not installed")


def until(service: Any, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        told = service.web.get("/v1/training").json()
        if reached(told):
            return dict(told)
        time.sleep(0.1)
    raise AssertionError(told)


@pytest.mark.slow
def test_a_project_fine_tunes_the_model_across_a_restart(
    start: Callable[..., Any], phantom_folder: Path, tmp_path: Path
) -> None:
    service = start(tmp_path / "state")
    none = service.web.get("/v1/training").json()
    assert none["state"] == "none" and none["curve"] == []
    assert service.web.delete("/v1/training").status_code == 409
    few = service.web.post("/v1/projects/corrections/training")
    assert few.status_code == 409 and few.json()["error"] == "0 frames were looked at; 10 or more are needed"
    service.web.post("/v1/projects", data={"name": "P"})
    files = [
        ("file", (f"set/{kind}/{path.name}", path.read_bytes()))
        for kind in ("images", "masks") for path in sorted((phantom_folder / kind).iterdir())
    ]  # fmt: skip
    identity = service.web.post("/v1/projects/p/imports", files=files).json()["id"]
    end = time.monotonic() + 60
    while not service.web.get(f"/v1/projects/p/imports/{identity}").json()["ended"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    begun = service.web.post("/v1/projects/p/training", data={"epochs": "3"})
    assert begun.status_code == 202 and (begun.json()["state"], begun.json()["frames"]) == ("running", 40)
    again = service.web.post("/v1/projects/p/training")
    assert again.status_code == 409 and "a fine-tuning is running" in again.json()["error"]
    until(service, lambda told: told["epoch"] >= 1)
    assert service.end() == 0  # and the training with it

    service = start(tmp_path / "state")
    told = until(service, lambda told: told["state"] != "running")
    assert told["state"] == "done", told
    assert [one["epoch"] for one in told["curve"]] == [1, 2, 3] and told["epoch"] == 3
    assert all(0 <= one["dice"] <= 1 and one["loss"] > 0 for one in told["curve"])
    from polypseg.bundle import ModelBundle

    bundle = ModelBundle.load(tmp_path / "state" / told["bundle"])
    origin = ModelBundle.load(Path(service.process.args[service.process.args.index("--model") + 1]))
    assert bundle.architecture == origin.architecture and bundle.hash != origin.hash

    assert service.web.post("/v1/projects/p/training").status_code == 202
    cancelled = service.web.delete("/v1/training").json()
    assert cancelled["state"] == "cancelled" and cancelled["ended"]
    while len(list((tmp_path / "state" / "training").glob("*/run"))) > 1:
        assert time.monotonic() < end + 240
        time.sleep(0.1)
    assert service.end() == 0
