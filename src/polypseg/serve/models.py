"""The models that are served, by their names, and how they are opened anew without dropping a request."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.serve.engine import Engine
from polypseg.serve.log import without_values

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

log = logging.getLogger("polypseg.serve")


class Served:
    """A model that frames are given to.

    Attributes:
        name: what requests call it.
        segmenter: the model.
        engine: what computes its frames.
    """

    def __init__(self, name: str, segmenter: Segmenter, engine: Engine) -> None:
        self.name, self.segmenter, self.engine = name, segmenter, engine
        self._users = 0
        self._replaced = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """As long as the block lasts, it is not closed, whatever takes its place. For the event loop's thread."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self._replaced = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._replaced and not self._users:
            threading.Thread(target=self.engine.close, daemon=True).start()


class Models:
    """Models by name; the first is what a request gets that names none. Apart from ``opened``, for the event loop.

    Args:
        sources: what opens each, by its name: ``reload`` calls it again.
        batch_size: of their engines.
        together: called with the number of frames that waited, whenever some are taken up.
        timed: called with a model's name and the seconds that computing a frame took.

    Raises:
        PolypsegError: a model cannot be opened.
    """

    def __init__(
        self,
        sources: Mapping[str, Callable[[], Segmenter]],
        batch_size: int,
        together: Callable[[int], object] = lambda _: None,
        timed: Callable[[str, float], object] = lambda _, __: None,
    ) -> None:
        self._sources, self._batch_size, self._together, self._timed = dict(sources), batch_size, together, timed
        self._served = {name: self._made(name, source()) for name, source in self._sources.items()}
        self._reloading = asyncio.Lock()
        self.changed: Callable[[Served], object] = lambda _: None  # called with what takes the place of another

    def start(self) -> None:
        """Make every model ready; takes a while."""
        for one in self._served.values():
            one.engine.start()

    def close(self) -> None:
        """Compute what waits, then end."""
        for one in self._served.values():
            one.engine.close()

    @property
    def alive(self) -> bool:
        """Whether frames are taken and computed."""
        return all(one.engine.alive for one in self._served.values())

    @property
    def default(self) -> Served:
        """The first."""
        return next(iter(self._served.values()))

    @property
    def all(self) -> Sequence[Served]:
        """In their order."""
        return list(self._served.values())

    def get(self, name: str | None = None) -> Served:
        """The model of a name, the first without one.

        Raises:
            HTTPException: 422 there is none of that name.
        """
        if name is None:
            return self.default
        if name not in self._served:
            raise HTTPException(422, f"model: there is none of that name; there are {', '.join(self._served)}")
        return self._served[name]

    async def reload(self) -> None:
        """Open each model anew; one whose files changed takes its predecessor's place once it is ready.

        Requests that are in work end with the model they began with, and so does a stream. A model that cannot be
        opened leaves its predecessor where it is, with a line in the log.
        """
        async with self._reloading:
            for name, source in self._sources.items():
                before = self._served[name]
                try:
                    new = await asyncio.to_thread(self._opened_anew, name, source, before)
                except Exception as error:  # noqa: BLE001  (any: the one that is there continues)
                    why = {"why": str(error)} if isinstance(error, PolypsegError) else without_values(error)
                    log.error("reload failed", extra={"fields": {"model": name, **why}})
                    continue
                if new is not None:
                    self._served[name] = new
                    self.changed(new)
                    before.retire()
                fields = {"model": name, "changed": new is not None, "hash": self._served[name].segmenter.hash}
                log.info("reload", extra={"fields": fields})

    def _opened_anew(self, name: str, source: Callable[[], Segmenter], before: Served) -> Served | None:
        """The model, ready, where it is another than before."""
        segmenter = source()
        if segmenter.settings == before.segmenter.settings:
            return None
        new = self._made(name, segmenter)
        new.engine.start()
        return new

    def _made(self, name: str, segmenter: Segmenter) -> Served:
        return Served(name, segmenter, Engine(segmenter, self._batch_size, self._together, partial(self._timed, name)))
