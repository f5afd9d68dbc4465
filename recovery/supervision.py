"""When an actor counts as hung or stuck: deadlines on its signs of life.

Ray reports a dead actor within milliseconds where it does not restart it, and never one that is frozen. So an agent
sends a heartbeat with its counter of progress: silence means that the process does not run, a counter that no longer
grows means that the work does not. Silence alone is only a suspicion, since on a busy machine it is common: after
`freeze_seconds` the agent is asked and its process looked at, and only a stopped one is given up then; any other has
`hang_seconds`. Time during which the supervisor itself did not get to listen does not count as silence.
"""

import time
from collections import deque
from collections.abc import Callable

from pydantic import Field

from phases.settings import Settings


class SupervisionSettings(Settings):
    """Deadlines. They are generous: a false alarm costs a restart, and on a busy machine silence is common."""

    poll_seconds: float = Field(default=0.5, gt=0, description="between two looks at an agent's progress")
    beat_seconds: float = Field(default=0.6, gt=0, description="between two heartbeats of an agent")
    freeze_seconds: float = Field(
        default=1.0, gt=0, description="without an answer, its process stopped: hung; more than a beat and a look"
    )
    hang_seconds: float = Field(default=20.0, gt=0, description="without an answer: the agent counts as hung")
    stall_seconds: float = Field(default=900.0, gt=0, description="without progress: its work counts as stuck")
    snapshot_seconds: float = Field(default=1.0, gt=0, description="at least, between two snapshots of an agent")
    restarts: int = Field(
        default=5, ge=0, description="that a supervisor makes within `period_seconds`; then it gives up"
    )
    period_seconds: float = Field(default=60.0, gt=0, description="over which restarts are counted")
    node_failures: int = Field(
        default=2, ge=1, description="of an agent on a node within the period: it goes elsewhere"
    )
    spares: int = Field(default=0, ge=0, description="of each agent, started ahead; each holds its CPUs and GPUs")
    spare_pause_seconds: float = Field(default=1.0, ge=0, description="after an agent's start, until its spares'")
    pipeline_restarts: int = Field(default=3, ge=0, description="of the pipeline's own actor, per run of the driver")


class Pulse:
    """The signs of life of one actor; `clock` is in seconds."""

    def __init__(self, settings: SupervisionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self.beats = -1
        self._heard = self._moved = clock()

    def seen(self, beats: int) -> None:
        """Note an answer with the actor's counter of progress."""
        self._heard = self.clock()
        if beats != self.beats:
            self.beats, self._moved = beats, self._heard

    def rouse(self) -> None:
        """Note that work begins: the counter may have stood still until now."""
        self._moved = self.clock()

    def forgive(self, seconds: float) -> None:
        """Leave out a time during which nobody listened."""
        self._heard += seconds
        self._moved += seconds

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return self.clock() - self._heard

    @property
    def stuck(self) -> bool:
        """Whether the counter has stood still for too long."""
        return self.clock() - self._moved > self.settings.stall_seconds


class Intensity:
    """OTP's restart intensity: at most `most` events within `seconds`."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self._times = deque[float]()

    def spend(self) -> bool:
        """Count an event; return False where it is one too many."""
        now = self.clock()
        while self._times and now - self._times[0] > self.seconds:
            self._times.popleft()
        self._times.append(now)
        return len(self._times) <= self.most
