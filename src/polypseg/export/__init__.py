"""Exports of a bundle's network for other runtimes. The package can be called: ``polypseg.export(run, …)``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from polypseg.extras import naming_extras

if TYPE_CHECKING:
    from polypseg.bundle import Export


class _Callable(ModuleType):
    """This package, which is also the function: importing a part of it would take the function's place otherwise."""

    def __call__(self, *arguments: Any, **options: Any) -> Export:
        """As ``polypseg.export.run.export``."""
        with naming_extras("export"):
            from polypseg.export.run import export

            return export(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
