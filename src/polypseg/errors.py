"""The one error that a user can cause, reported in one line."""

from __future__ import annotations


class PolypsegError(Exception):
    """Something outside the program is wrong: a file, an argument, the disk, the network.

    The message is one line that says which file, what is wrong and what to do. The command line prints it
    and exits with status 1; programs catch this one class.
    """


class UsageError(PolypsegError):
    """The arguments themselves are wrong; the command line exits with status 2."""
