"""``python -m polypseg.cli``."""

import sys

from polypseg.cli import main

sys.exit(main())
