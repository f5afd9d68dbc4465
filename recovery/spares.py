"""Warm spares of a child: lives that were started ahead and have no state yet.

A spare that is taken, or lost, is replaced in the background; spares that keep being lost are given up, which costs
time at the child's next failure and nothing else. A spare that is silent, or on a node to keep away from, is not used;
one that is still being started is waited for, since it is nearer to being ready than a new one.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from recovery.incarnation import Incarnation, first_line
from recovery.supervision import Intensity, SupervisionSettings


class Spares:
    """Keeps `count` lives ready. `start` returns one that answers; `budget` limits how many may be lost."""

    def __init__(
        self,
        count: int,
        start: Callable[[], Awaitable[Incarnation]],
        budget: Intensity,
        settings: SupervisionSettings,
        emit: Callable[..., None],
    ) -> None:
        self.count, self.start, self.budget, self.settings, self.emit = count, start, budget, settings, emit
        self._ready: list[Incarnation] = []
        self._refilling: asyncio.Task[None] | None = None
        self._arrival = asyncio.Event()
        self._wanted = asyncio.Event()  # at once
        self._closed = False

    @property
    def ready(self) -> int:
        """How many can take over at once."""
        return len(self._ready)

    async def take(self, bad_nodes: frozenset[str]) -> Incarnation | None:
        """Return a spare that can be used, None where there is none."""
        while self._ready or self._refilling is not None:
            if not self._ready:
                self._arrival.clear()
                self._wanted.set()
                await self._arrival.wait()
                continue
            spare = self._ready.pop(0)
            silent = spare.pulse is not None and spare.pulse.silence > self.settings.freeze_seconds
            if spare.node not in bad_nodes and not silent:
                self.emit("spare_used")
                return spare
            await spare.kill()
        return None

    def refill(self) -> None:
        """Start what is missing in the background, a little later: a start takes CPU time from the child's own."""
        if len(self._ready) < self.count and self._refilling is None and not self._closed:
            self._wanted.clear()
            self._refilling = asyncio.create_task(self._refill())

    def lost(self, process: Incarnation, error: BaseException) -> None:
        """Replace a spare that has died; any other process is none of its business."""
        if process in self._ready:
            self._ready.remove(process)
            self.emit("spare_down", cause=first_line(error))
            if self.budget.spend():
                self.refill()

    def forgive(self, seconds: float) -> None:
        """Leave out a time during which nobody listened to their signs of life."""
        for spare in self._ready:
            if spare.pulse is not None:
                spare.pulse.forgive(seconds)

    async def close(self) -> None:
        """Stop them all, and those that are being started."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        ready, self._ready = self._ready, []
        for spare in ready:
            await spare.kill()

    async def _refill(self) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self.settings.spare_pause_seconds)
            while len(self._ready) < self.count:
                try:
                    self._ready.append(await self.start())
                    self._arrival.set()
                except Exception as error:
                    self.emit("spare_down", cause=first_line(error))
                    if not self.budget.spend():
                        return
        finally:
            self._refilling = None
            self._arrival.set()
