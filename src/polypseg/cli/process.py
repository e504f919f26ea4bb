"""What is set for the whole process: what is logged, and which warnings of the libraries are not shown."""

from __future__ import annotations

import gc
import logging
import sys
import warnings

from polypseg.errors import one_line


class _OneLine(logging.Formatter):
    """The message in one line; where an exception is logged, its traceback below."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(record.message)


def set_up() -> None:
    """Log to standard error, and leave out warnings of libraries about what is done on purpose."""
    # Half a million objects stay when the libraries of a training are loaded. With Python's own thresholds the garbage
    # collector walks over all of them again and again: a tenth of the time that loading takes.
    gc.set_threshold(10_000, 20, 20)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("polypseg").setLevel(logging.INFO)
    # Pillow's warning of a large picture starts above our own limit, which refuses it in one line. The category by its
    # message: importing Pillow here would cost `polypseg --help` a tenth of a second.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
