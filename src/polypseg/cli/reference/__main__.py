"""``python -m polypseg.cli.reference FOLDER``."""

import sys

from polypseg.cli.reference import write

write(sys.argv[1])
