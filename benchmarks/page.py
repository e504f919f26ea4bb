"""How fast the page answers in a real browser: a stroke, a slider's step, a change of frame, a list of 1000 frames.

Each is timed inside the page, from the event to after the next picture on the screen, so that what the browser itself
draws is part of it. The frames are phantom frames enlarged to 1080p and 4K; the service runs beside the browser on the
same computer, and is idle while a step is timed.

    pip install -e '.[serve,test]'
    python benchmarks/page.py --model runs/realtime
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
from playwright.sync_api import sync_playwright
from results import add_rows, processor

from polypseg.data import phantom, read
from polypseg.files import commit
from polypseg.inference.runtimes import usable_cores

SIZES = {"1080p": (1920, 1080), "4K": (3840, 2160)}
FRAMES = 4
START = "import sys; from polypseg.cli import main; sys.exit(main())"

# Inside the page: `timed(run)` gives the milliseconds from run() to after the next picture.
TIMED = """
window.painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done();
    channel.port2.postMessage(null);
}));
window.timed = async (run, until = null) => {
    await painted();
    const began = performance.now();
    const there = until?.();
    run();
    await there;
    await painted();
    return performance.now() - began;
};
window.pointer = (type, x, y) => {
    const canvas = document.getElementById("canvas");
    const { left, top } = canvas.getBoundingClientRect();
    const options = { bubbles: true, pointerId: 1, button: 0, buttons: 1, isPrimary: true };
    canvas.dispatchEvent(new PointerEvent(type, { ...options, clientX: left + x, clientY: top + y }));
};
HTMLCanvasElement.prototype.setPointerCapture = () => {};  // there is no such pointer
"""

SLIDER = """async (count) => {
    const slider = document.getElementById("threshold");
    const times = [];
    for (let index = 0; index < count; index++) {
        times.push(await timed(() => {
            slider.value = 0.3 + 0.4 * (index / count);
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }));
    }
    return times;
}"""

FRAME = """async (count) => {
    const { when, state } = await import("/static/state.js");
    const times = [];
    for (let index = 0; index < count; index++) {
        const way = index % 2 ? "previous" : "next";
        await new Promise((done) => setTimeout(done, 1500));  // the next one is opened ahead
        times.push(await timed(
            () => document.getElementById(way).click(),
            () => new Promise((done) => when("scene", () => state.scene && done())),
        ));
    }
    return times;
}"""

STROKE = """async (count) => {
    document.getElementById("edit").click();
    await painted();
    const { clientWidth: width, clientHeight: height } = document.getElementById("canvas");
    const place = (index) => [width * (0.35 + 0.3 * (index / count)), height * (0.5 + 0.1 * Math.sin(index))];
    const times = { "a stroke's beginning": [], "a stroke's step": [], "a stroke's end": [], "undo": [] };
    for (let stroke = 0; stroke < 5; stroke++) {
        times["a stroke's beginning"].push(await timed(() => pointer("pointerdown", ...place(0))));
        for (let index = 1; index < count; index++) {
            times["a stroke's step"].push(await timed(() => pointer("pointermove", ...place(index))));
        }
        times["a stroke's end"].push(await timed(() => pointer("pointerup", ...place(count))));
        times["undo"].push(await timed(() => document.getElementById("undo").click()));
    }
    return times;
}"""

LIST = """async () => {
    const canvas = new OffscreenCanvas(64, 64);
    canvas.getContext("2d").fillRect(0, 0, 64, 64);
    const blob = await canvas.convertToBlob();
    const transfer = new DataTransfer();
    for (let index = 0; index < 1000; index++) {
        transfer.items.add(new File([blob], `frame-${index}.png`, { type: "image/png" }));
    }
    const input = document.getElementById("files");
    input.files = transfer.files;
    return timed(() => input.dispatchEvent(new Event("change", { bubbles: true })), async () => {
        while (document.getElementById("list").children.length < 5) await painted();
    });
}"""


@contextmanager
def service(model: str, folder: Path) -> Iterator[str]:
    """The address of a service."""
    command = [sys.executable, "-c", START, "serve", "--model", model, "--state", str(folder / "state"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "the service did not start"
            yield found[0]
        finally:
            process.terminate()


def enlarged(folder: Path, width: int, height: int) -> list[Path]:
    """Phantom frames of a size, as JPEG files."""
    catalog = read(phantom.write(folder / "phantom", FRAMES, seed=5))
    paths = []
    for index in range(FRAMES):
        frame = cv2.resize(catalog.frame(index), (width, height), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"frame-{index}.jpg")
        cv2.imwrite(str(paths[-1]), frame[..., ::-1])
    return paths


def measured(browser: Any, address: str, size: str, folder: Path, count: int) -> dict[str, list[float]]:
    """Milliseconds of each step with frames of a size."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.evaluate(TIMED)
    page.set_input_files("#files", enlarged(folder, *SIZES[size]))
    page.locator("#list .state", has_text=re.compile("polyp|judged")).nth(FRAMES - 1).wait_for()
    page.locator("#stage-facts", has_text="pixels").wait_for()
    times = {"a slider's step": page.evaluate(SLIDER, count), "a change of frame": page.evaluate(FRAME, 6)}
    times |= page.evaluate(STROKE, count)
    page.close(run_before_unload=False)
    return times


def listed(browser: Any, address: str) -> list[float]:
    """Milliseconds until 1000 frames are listed."""
    times = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.get_by_text(" on cpu").wait_for()
        page.evaluate(TIMED)
        page.evaluate("() => { window.fetch = () => new Promise(() => {}); }")  # frames wait for ever
        times.append(page.evaluate(LIST))
        page.close(run_before_unload=False)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="polypseg-realtime")
    parser.add_argument("--count", type=int, default=20, help="steps of each kind")
    parser.add_argument("--out", type=Path, default=Path("results/page.csv"))
    options = parser.parse_args()
    program = os.environ.get("POLYPSEG_CHROMIUM") or shutil.which("chromium")
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with service(options.model, folder) as address:
            found["-", "a list of 1000 frames"] = listed(browser, address)
            for size in SIZES:
                (folder / size).mkdir()
                for step, times in measured(browser, address, size, folder / size, options.count).items():
                    found[size, step] = times
        version = browser.version
        browser.close()
    rows = [
        {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "size": size, "step": step, "n": len(times),
            "median_ms": round(statistics.median(times), 1), "worst_ms": round(max(times), 1), "browser": version,
            "processor": processor(), "cores": usable_cores(), "commit": commit(),
        }
        for (size, step), times in found.items()
    ]  # fmt: skip
    for row in rows:
        times = f"median {row['median_ms']:7.1f} ms   worst {row['worst_ms']:7.1f} ms   n {row['n']}"
        print(f"{row['size']:>6}  {row['step']:<24} {times}")
    add_rows(options.out, rows)


if __name__ == "__main__":
    main()
