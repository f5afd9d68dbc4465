"""Which lives are ended by their signs of life, on a clock that is turned by hand."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from recovery.children import Child, ChildSpec, Down, Life, Loss
from recovery.incarnation import Incarnation
from recovery.spares import Spares
from recovery.supervision import Intensity, Pulse, SupervisionSettings
from recovery.vigil import Vigil

SETTINGS = SupervisionSettings(beat_seconds=0.001, freeze_seconds=1, hang_seconds=20, stall_seconds=100)


class Silent(Incarnation):
    """Sends no heartbeats; whether it answers and what its process is like is set from outside."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.pulse: Pulse = Pulse(SETTINGS, world)
        self.answer = asyncio.Event()
        self.beats, self.stopped, self.asked = 0, False, 0

    def invoke(self, method: str, /, *arguments: Any, **options: Any) -> Awaitable[Any]:
        raise NotImplementedError

    async def death(self) -> BaseException:
        raise NotImplementedError

    async def kill(self) -> None:
        raise NotImplementedError

    async def ask(self) -> int:
        self.asked += 1
        await self.answer.wait()
        return self.beats

    async def frozen(self) -> bool:
        return self.stopped

    async def snapshot(self) -> Any:
        return {"beats": self.beats}


class World:
    """A child under watch."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard = False
        self.losses: list[Down] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.events: list[str] = []
        self.vigil = Vigil("s", SETTINGS, self, self.emit, self.listen, self.lost, self.background)
        self.process = Silent(self)
        self.child = Child(ChildSpec("a", self.start), Intensity(1, 1))
        self.child.spares = Spares(0, self.new, Intensity(1, 1), 1, lambda *_, **__: None)
        self.life = self.child.life = Life(self.process, saved_at=self.now)

    def __call__(self) -> float:
        return self.now

    def emit(self, kind: str, **_: Any) -> None:
        self.events.append(kind)

    def listen(self) -> None:
        if self.heard:
            self.process.pulse.seen(0)

    async def start(self, _: frozenset[str]) -> Incarnation:
        raise NotImplementedError

    async def new(self) -> Incarnation:
        raise NotImplementedError

    def lost(self, child: Child, life: Life, down: Down) -> None:
        self.losses.append(down)
        child.life = None

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def pass_time(self, seconds: float, late: float = 0.0) -> list[Loss]:
        """Let time pass, look, and return how the life was ended, if it was."""
        self.now += seconds
        if self.child.life is not None:
            self.vigil.look(self.child, self.life, late)
        await asyncio.sleep(0.005)
        return [down.loss for down in self.losses]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_a_silent_child_whose_process_is_stopped_is_hung() -> None:
    async def scenario() -> None:
        world = World()
        world.process.stopped = True
        assert await world.pass_time(1.0) == []
        assert await world.pass_time(0.1) == [Loss.HUNG]

    run(scenario())


def test_a_silent_child_that_answers_is_left_alone() -> None:
    async def scenario() -> None:
        world = World()
        world.process.answer.set()
        for _ in range(50):
            assert await world.pass_time(1.1) == []
        assert world.process.asked == 50

    run(scenario())


def test_a_silent_child_that_does_not_answer_but_runs_has_longer() -> None:
    async def scenario() -> None:
        world = World()
        for _ in range(20):
            assert await world.pass_time(1.0) == []
        assert world.process.asked == 1
        assert await world.pass_time(0.1) == [Loss.HUNG]

    run(scenario())


def test_time_in_which_nobody_listened_is_no_silence() -> None:
    async def scenario() -> None:
        world = World()
        world.process.stopped = True
        assert await world.pass_time(60.0, late=59.5) == []
        assert world.process.asked == 0
        assert await world.pass_time(0.6) == [Loss.HUNG]

    run(scenario())


@pytest.mark.parametrize(("working", "expected"), [(True, [Loss.STUCK]), (False, [])])
def test_a_counter_that_stands_still_is_stuck_only_while_it_works(working: bool, expected: list[Loss]) -> None:
    async def scenario() -> None:
        world = World()
        world.now += 500
        if working:
            world.life.begin(asyncio.get_running_loop().create_future())  # time without work does not count
        for _ in range(100):
            world.process.pulse.seen(7)
            assert await world.pass_time(1.0) == []
        world.process.pulse.seen(7)
        assert await world.pass_time(0.9) == expected

    run(scenario())


def test_progress_is_saved_but_not_more_often_than_it_should() -> None:
    async def scenario() -> None:
        world = World()
        for beats in range(1, 10):
            world.process.beats = beats
            world.process.pulse.seen(beats)
            await world.pass_time(0.25)
        assert world.child.snapshot == {"beats": 8}
        assert len(world.tasks) == 2
        await world.pass_time(0.75)
        assert world.child.snapshot == {"beats": 9}

    run(scenario())


def test_the_loop_measures_by_how_much_it_was_late() -> None:
    async def scenario() -> None:
        world = World()
        world.process.stopped = True
        keeping = asyncio.create_task(world.vigil.keep({"a": world.child}))
        await asyncio.sleep(0)
        for _ in range(20):  # each time the clock jumps, the loop finds itself late by as much
            world.now += 5
            await asyncio.sleep(0.002)
        assert world.losses == []
        keeping.cancel()

    run(scenario())


def test_what_has_arrived_is_read_before_it_is_judged() -> None:
    async def scenario() -> None:
        world = World()
        world.heard = True
        keeping = asyncio.create_task(world.vigil.keep({"a": world.child}))
        for _ in range(20):
            world.life.process.pulse.forgive(-5)  # type: ignore[union-attr]
            await asyncio.sleep(0.002)
        assert world.events == []
        keeping.cancel()

    run(scenario())
