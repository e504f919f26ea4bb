"""The one error that a user can cause, told in one line."""

from __future__ import annotations

import unicodedata


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
    """A text that shows on one line, whatever a file's name in it holds: control characters are written as ``\\n``."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
    )
