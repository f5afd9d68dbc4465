"""Looking at the signs of life of a supervisor's children, and taking snapshots of those that have moved.

One task looks at all of them several times a second; the deadlines are those of `recovery/supervision.py`. A silent
child is first asked and its process looked at, in a task of its own, so that nothing here ever waits for a child.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from recovery.children import Child, Down, Life, Loss
from recovery.incarnation import Incarnation, first_line
from recovery.supervision import Pulse, SupervisionSettings

_LOOK_SECONDS = 0.25  # at most, between two looks
_PUNCTUAL_SECONDS = 0.01  # by which a look may be late without being counted so


class Vigil:
    """Calls `lost(child, life, down)` for a life that has to end; longer work goes to `background`."""

    def __init__(
        self,
        supervisor: str,
        settings: SupervisionSettings,
        clock: Callable[[], float],
        emit: Callable[..., None],
        listen: Callable[[], None],
        lost: Callable[[Child, Life, Down], None],
        background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.supervisor, self.settings, self.clock, self.emit = supervisor, settings, clock, emit
        self._listen, self._lost, self._background = listen, lost, background

    async def keep(self, children: Mapping[str, Child]) -> None:
        """Look at all children for ever; the time by which this loop itself was late is no silence of theirs."""
        period = min(_LOOK_SECONDS, self.settings.beat_seconds / 2)
        before = self.clock()
        while True:
            await asyncio.sleep(period)
            now = self.clock()
            late, before = now - before - period, now
            late = late if late > _PUNCTUAL_SECONDS else 0.0
            self._listen()
            for child in list(children.values()):
                if late:
                    child.spares.forgive(late)
                if child.life is not None:
                    self.look(child, child.life, late)

    def look(self, child: Child, life: Life, late: float = 0.0) -> None:
        """Judge a life by what was heard of it."""
        settings, pulse = self.settings, life.process.pulse
        if pulse is None:
            return
        if late:
            pulse.forgive(late)
        if (silence := pulse.silence) > settings.hang_seconds:
            self._lost(child, life, Down(Loss.HUNG, f"no sign of life in {settings.hang_seconds:g} s"))
        elif silence > settings.freeze_seconds:
            if not life.examined:
                life.examined = True
                self._background(self._examine(child, life))
        elif life.pending and pulse.stuck:
            self._lost(child, life, Down(Loss.STUCK, f"no progress in {settings.stall_seconds:g} s"))
        elif pulse.beats != life.saved_beats and self.clock() - life.saved_at >= settings.snapshot_seconds:
            life.saved_beats, life.saved_at = pulse.beats, self.clock()
            self._background(self._save(child, life))

    async def _examine(self, child: Child, life: Life) -> None:
        """Ask a silent child and look at its process, until it answers, is given up or is heard again."""
        process, pulse = life.process, life.process.pulse
        assert pulse is not None
        self.emit("child_silent", supervisor=self.supervisor, child=child.name, seconds=round(pulse.silence, 3))
        asked = asyncio.create_task(_ask(process, pulse))
        try:
            while child.life is life and not asked.done() and pulse.silence > self.settings.freeze_seconds:
                if await process.frozen():
                    return self._lost(child, life, Down(Loss.HUNG, "its process is stopped"))
                await asyncio.wait({asked}, timeout=self.settings.beat_seconds)
        finally:
            asked.cancel()
            life.examined = False

    async def _save(self, child: Child, life: Life) -> None:
        """Take a snapshot for the next life, if the child lives to give it."""
        try:
            async with asyncio.timeout(self.settings.hang_seconds):
                snapshot = await life.process.snapshot()
        except Exception as error:
            if child.life is life:
                self.emit("snapshot_failed", supervisor=self.supervisor, child=child.name, cause=first_line(error))
        else:
            if child.life is life:
                child.snapshot = snapshot


async def _ask(process: Incarnation, pulse: Pulse) -> None:
    with contextlib.suppress(Exception):  # where it does not answer because it is dead, its death is told elsewhere
        pulse.seen(await process.ask())
