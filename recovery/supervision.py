"""When an actor counts as hung or stuck: deadlines on its signs of life.

Ray reports a dead actor within milliseconds where it does not restart it, and never one that is frozen. An agent's
`progress` is answered from a concurrency group of its own, so silence means that the process does not run; an answer
whose counter no longer grows means that the work does not.
"""

import time
from collections.abc import Callable

from pydantic import Field

from phases.settings import Settings


class SupervisionSettings(Settings):
    """Deadlines. They are generous: a false alarm costs a restart, and on a busy machine silence is common."""

    poll_seconds: float = Field(default=0.5, gt=0, description="between two looks at an agent")
    hang_seconds: float = Field(default=20.0, gt=0, description="without an answer: the agent counts as hung")
    stall_seconds: float = Field(default=900.0, gt=0, description="without progress: its work counts as stuck")
    pipeline_restarts: int = Field(default=3, ge=0, description="of the pipeline's own actor, per run of the driver")


class Pulse:
    """The signs of life of one actor; `clock` is in seconds."""

    def __init__(self, settings: SupervisionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self._beats = -1
        self._moved = clock()

    def seen(self, beats: int) -> None:
        """Note an answer with the actor's counter of progress."""
        if beats != self._beats:
            self._beats, self._moved = beats, self.clock()

    @property
    def stuck(self) -> bool:
        """Whether the counter has stood still for too long."""
        return self.clock() - self._moved > self.settings.stall_seconds
