"""What ``benchmarks/serving.py`` runs Locust with: users that post frames and keep every answer.

By the environment: FRAMES, a folder of images; ANSWERS, the JSON lines to write, ``[name, seconds, status, answer]``
each; RATE, requests a second of each user, 0 for as many as are answered.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

from locust import FastHttpUser, constant, constant_throughput, task

HEAD = b'--frame\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'
HEADERS = {"Content-Type": "multipart/form-data; boundary=frame"}
FRAMES = sorted(Path(os.environ["FRAMES"]).iterdir())
BODIES = itertools.cycle(
    [(file.name, HEAD % file.name.encode() + file.read_bytes() + b"\r\n--frame--\r\n") for file in FRAMES]
)
ANSWERS = open(os.environ["ANSWERS"], "w", encoding="utf-8")  # noqa: SIM115
RATE = float(os.environ["RATE"])


class User(FastHttpUser):
    wait_time = constant_throughput(RATE) if RATE else constant(0)
    connection_timeout = network_timeout = 60.0

    @task
    def segment(self) -> None:
        name, body = next(BODIES)
        began = time.perf_counter()
        with self.client.post("/v1/segment", data=body, headers=HEADERS, catch_response=True) as response:
            seconds = time.perf_counter() - began
            ANSWERS.write(json.dumps([name, seconds, response.status_code, response.text]) + "\n")
            ANSWERS.flush()
