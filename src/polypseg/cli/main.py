"""``polypseg``: finds the verb, runs it, and turns what went wrong into a line and an exit status.

What a verb needs is imported inside it, so that ``polypseg --help`` prints at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from polypseg.errors import PolypsegError, UsageError
from polypseg.extras import naming_extras
from polypseg.version import __version__

INTERRUPTED = 130  # the status of a program that Ctrl-C ended, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``polypseg`` with these arguments, or the process's own; return the exit status.

    0: done. 1: the work failed, with one line that says which file and why. 2: the arguments are wrong. 130: Ctrl-C.
    """
    try:
        from polypseg.cli.process import set_up

        set_up()
        given = list(sys.argv[1:] if arguments is None else arguments)
        for word in given:
            _check_utf8(word)
        return run(given)
    except UsageError as error:
        print(f"polypseg: {error}", file=sys.stderr)
        return 2
    except PolypsegError as error:
        print(f"polypseg: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "polypseg: interrupted; what was complete is kept, train and predict resume with --resume, tune as it is",
            file=sys.stderr,
        )
        return INTERRUPTED


def run(words: Sequence[str]) -> int:
    """Run one command line; return its exit status.

    Raises:
        PolypsegError: as the verb does.
        UsageError: the arguments are wrong.
    """
    if words and words[0] == "--version":
        print(f"polypseg {__version__}")
        return 0
    from polypseg.cli import help, parser
    from polypseg.cli.verbs import VERBS

    if words and words[0] in ("-h", "--help", "help"):
        print(help.overview(VERBS))
        return 0
    if len(words) > 1 and words[1] in ("-h", "--help") and words[0] not in VERBS:
        inner = {name: verb for name, verb in VERBS.items() if name.startswith(f"{words[0]} ")}
        if inner:
            print(help.overview(inner, words[0]))
            return 0
    name, rest = parser.find(words, VERBS)
    verb = VERBS[name]
    if "-h" in rest or "--help" in rest:
        print(help.of_verb(verb))
        return 0
    with naming_extras():
        return verb.run(**parser.parse(verb, rest)) or 0


def _check_utf8(word: str) -> None:
    """Refuse a name that could neither be printed nor be written into a JSON file."""
    shown = os.fsencode(word).decode("utf-8", "backslashreplace")
    if shown != word:
        raise UsageError(f"{shown}: is not UTF-8; rename it")
