"""Who may use the service: a token for each by name, or one for all."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from polypseg.errors import UsageError

TOKEN = re.compile("[!-~]{16,}")
NAME = re.compile(r"[^\s:,\"']{1,40}")
LOCAL, SHARED = "local", "shared"  # whoever needs no token, and whoever has the one for all
_OWN = (LOCAL, SHARED, "folder", "import")


def read_tokens(path: Path) -> dict[str, str]:
    """The token of each name: a line a person, the name and the token; ``#`` begins a remark.

    Raises:
        UsageError: it cannot be read, a line is no such pair, or a name or a token stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokens {path}: cannot be read ({getattr(error, 'strerror', 'no text')})") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = [] if line.lstrip().startswith("#") else line.split()
        if not words:
            continue
        where = f"--tokens {path}: line {number}"
        if len(words) != 2 or not NAME.fullmatch(words[0]):
            raise UsageError(f"{where}: must be a name without spaces, and a token")
        name, token = words
        if name in _OWN:
            raise UsageError(f"{where}: the name {name} has a meaning of its own; choose another")
        if not TOKEN.fullmatch(token):
            raise UsageError(f"{where}: the token must be 16 ASCII characters or more; as of openssl rand -hex 16")
        if name in tokens or token in tokens.values():
            raise UsageError(f"{where}: the name or the token stands twice; each person needs one of his own")
        tokens[name] = token
    if not tokens:
        raise UsageError(f"--tokens {path}: names nobody; write a name and a token on each line")
    return tokens


def name_of(given: str, tokens: Mapping[str, str]) -> str | None:
    """Whose token it is; None if nobody's. Takes as long for a wrong one as for a right one."""
    found = None
    for name, token in tokens.items():
        if hmac.compare_digest(given.encode(), token.encode()):
            found = name
    return found
