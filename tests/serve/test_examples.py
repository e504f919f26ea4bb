"""The examples in other languages on docs/how-to/integrate.md, run as written against a service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import pytest

from polypseg.io.pictures import read_frame

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "integrate.md"


def blocks(language: str, server: Any) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return [block.replace("localhost:8000", f"127.0.0.1:{server.port}") for block in found]


def run(folder: Path, frames: list[Path], *command: str) -> str:
    content = cv2.imencode(".jpg", read_frame(frames[1])[..., ::-1])[1].tobytes()
    (folder / "frame.jpg").write_bytes(content)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_javascript(server: Any, frames: list[Path], tmp_path: Path, node: str) -> None:
    one, stream = blocks("javascript", server)
    (tmp_path / "one.mjs").write_text(one)
    printed = run(tmp_path, frames, node, "one.mjs")
    files = {"file": ("a.jpg", (tmp_path / "frame.jpg").read_bytes())}
    boxes = [polyp["box"] for polyp in server.web.post("/v1/segment", files=files).json()["polyps"]]
    shown = [[int(number) for number in re.findall(r"\d+", line)] for line in re.findall(r"\[(.*?)\]", printed)]
    assert boxes and shown == boxes and "decode;dur=" in printed
    (tmp_path / "stream.mjs").write_text(stream)
    printed = run(tmp_path, frames, node, "stream.mjs")
    assert [line[:2] for line in printed.splitlines() if line[:1].isdigit()] == ["0 ", "1 ", "2 "]
    assert "closed 1000" in printed or "closed 1005" in printed


def test_csharp(server: Any, frames: list[Path], tmp_path: Path) -> None:
    compiler, runtime = shutil.which("mcs"), shutil.which("mono")
    if compiler is None or runtime is None:
        pytest.skip("mono is not installed: apt-get install mono-mcs libmono-system-net-http4.0-cil")
    (block,) = blocks("csharp", server)
    (tmp_path / "one.cs").write_text(block)
    subprocess.run([compiler, "-r:System.Net.Http.dll", "one.cs"], cwd=tmp_path, check=True, timeout=60)
    assert json.loads(run(tmp_path, frames, runtime, "one.exe"))["source"] == "frame"
