"""What is set for the whole process: what is logged, and which warnings of the libraries are not shown."""

from __future__ import annotations

import logging
import sys
import warnings


def set_up() -> None:
    """Log to standard error, and leave out warnings of libraries about what is done on purpose."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("polypseg").setLevel(logging.INFO)
    # Pillow's warning of a large picture starts above our own limit, which refuses it in one line. The category by its
    # message: importing Pillow here would cost `polypseg --help` a tenth of a second.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
