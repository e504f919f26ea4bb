"""What ``benchmarks/serving.py`` runs Locust with: users that post frames and keep every answer.

By the environment: FRAMES, a folder of images; ANSWERS, the JSON lines to write, ``[name, seconds, status, answer]``
each; RATE, requests a second of each user, 0 for as many as are answered; USERS, how many there are.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, task

HEAD = b'--frame\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'
HEADERS = {"Content-Type": "multipart/form-data; boundary=frame"}
FRAMES = sorted(Path(os.environ["FRAMES"]).iterdir())
BODIES = itertools.cycle(
    [(file.name, HEAD % file.name.encode() + file.read_bytes() + b"\r\n--frame--\r\n") for file in FRAMES]
)
ANSWERS = Path(os.environ["ANSWERS"]).open("w", encoding="utf-8")  # noqa: SIM115
RATE, USERS = float(os.environ["RATE"]), int(os.environ["USERS"])
NUMBERS = itertools.count()


def next_in(then: float) -> float:
    """Seconds until a time of ``time.perf_counter``."""
    return max(0.0, then - time.perf_counter())


class User(FastHttpUser):
    connection_timeout = network_timeout = 60.0

    def on_start(self) -> None:
        self._next = time.perf_counter()
        if RATE:  # Locust starts all users at once, and they would stay in step
            self._next += next(NUMBERS) / (USERS * RATE)
            gevent.sleep(next_in(self._next))

    def wait_time(self) -> float:
        """Seconds until the next request: evenly spaced, whatever the last one took."""
        self._next += 1 / RATE if RATE else 0
        return next_in(self._next)

    @task
    def segment(self) -> None:
        name, body = next(BODIES)
        began = time.perf_counter()
        with self.client.post("/v1/segment", data=body, headers=HEADERS, catch_response=True) as response:
            seconds = time.perf_counter() - began
            ANSWERS.write(json.dumps([name, seconds, response.status_code, response.text]) + "\n")
            ANSWERS.flush()
