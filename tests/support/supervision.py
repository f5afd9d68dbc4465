"""Children made of nothing, whose lives start, fail and end when a test says so."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from recovery.children import ChildSpec
from recovery.incarnation import Incarnation
from recovery.supervision import SupervisionSettings

QUICK = SupervisionSettings(restarts=2, period_seconds=10, spare_pause_seconds=0)


class Fake(Incarnation):
    """A life that ends when `die` is called; `wait` calls are answered when `answers` is set."""

    def __init__(self, world: "World", name: str, number: int, node: str) -> None:
        self.world, self.name, self.number, self.node = world, name, number, node
        self.end = asyncio.Event()
        self.answers = asyncio.Event()
        self.state: Any = None

    def invoke(self, method: str, /, *arguments: Any, **options: Any) -> Awaitable[Any]:
        answer: Awaitable[Any] = getattr(self, method)(*arguments, **options)
        return answer

    async def number_of_life(self) -> int:
        return self.number

    async def get_state(self) -> Any:
        return self.state

    async def wait(self) -> str:
        await self.answers.wait()
        return "done"

    async def fail(self, error: Exception) -> None:
        raise error

    def die(self) -> None:
        self.world.living.remove(self)
        self.end.set()

    async def death(self) -> BaseException:
        await self.end.wait()
        return EOFError("gone")

    def is_death(self, error: BaseException) -> bool:
        return isinstance(error, EOFError)

    async def kill(self) -> None:
        if self in self.world.living:
            self.world.log.append(f"kill {self.name}")
            self.die()

    async def restore(self, snapshot: Any) -> None:
        self.state = snapshot
        if self.world.mortal.pop(self.number, False):
            self.die()


class World:
    """Makes child specs and remembers what was started and killed."""

    def __init__(self) -> None:
        self.living: list[Fake] = []
        self.log: list[str] = []
        self.starts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # starts that will fail
        self.mortal: dict[int, bool] = {}  # lives that end as soon as they have taken over
        self.avoided: list[frozenset[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def child(self, name: str, **options: Any) -> ChildSpec:
        async def start(bad_nodes: frozenset[str]) -> Incarnation:
            self.avoided.append(bad_nodes)
            await self.gate.wait()
            if self.refusals[name]:
                self.refusals[name] -= 1
                raise OSError("no room")
            self.starts[name] += 1
            self.log.append(f"start {name}")
            self.living.append(Fake(self, name, self.starts[name], "bad" if "bad" not in bad_nodes else "good"))
            return self.living[-1]

        return ChildSpec(name, start, **options)

    def children(self, names: str, **options: Any) -> list[ChildSpec]:
        return [self.child(name, **options) for name in names]

    def life(self, name: str) -> Fake:
        """Return the oldest living process of a child; those after it are spares."""
        return next(life for life in self.living if life.name == name)

    def news(self) -> list[str]:
        news, self.log[:] = list(self.log), []
        return news


async def settle() -> None:
    """Let everything happen that waits for nothing outside."""
    for _ in range(60):
        await asyncio.sleep(0)
