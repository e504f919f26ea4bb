"""What a service writes of itself: lines of JSON, in which no value stands that came with what was sent."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from typing import Any

LOGGER = "polypseg.serve"  # whose messages are our own words
QUOTING = ("pydicom", "highdicom", "pynetdicom", "libav", "py.warnings")  # which quote what they read


def log_as_json() -> None:
    """Have the whole process log to standard error as lines of JSON, and keep quiet what quotes others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("polypseg").setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in QUOTING:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def without_values(crash: BaseException) -> dict[str, Any]:
    """Of an error its kind and where it arose; not its words, which may quote what it worked on."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(crash.__traceback__)]
    return {"error": type(crash).__name__, "at": places[-8:]}


class JsonLines(logging.Formatter):
    """A record as a line of JSON: ``time``, ``level``, ``event`` and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, Any] = {"time": now.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        # Of others' messages only what stands in their source: what is filled in may be a file's name.
        own = record.name == LOGGER
        entry["event"] = record.getMessage() if own else f"{record.name}: {str(record.msg).partition(chr(10))[0]}"
        entry |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            entry |= without_values(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False)
