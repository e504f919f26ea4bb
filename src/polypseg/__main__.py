"""``python -m polypseg``, where the ``polypseg`` program is not on the path."""

import sys

from polypseg.cli import main

sys.exit(main())
