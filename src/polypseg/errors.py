"""The one error that a user can cause, reported in one line."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 10_000  # characters


class PolypsegError(Exception):
    """Something outside the program is wrong: a file, an argument, the disk, the network.

    The message is one line that says which file, what is wrong and what to do. The command line prints it
    and exits with status 1; programs catch this one class.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(PolypsegError):
    """The arguments themselves are wrong; the command line exits with status 2."""


def one_line(text: str) -> str:
    """A text that shows on one line of sensible length, whatever a file's name or value in it holds.

    Control characters are written as Python does, and the middle of more than ``LONGEST_LINE`` characters is left out.
    """
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
    )
