"""Supervision after Erlang/OTP, over asyncio: children that die, hang or get stuck are replaced, within limits.

A strategy says which children are restarted with a failed one, an intensity how often; beyond it the supervisor stops
all of them in reverse order and ends with an error of its own, for whoever supervises it: a supervisor is itself an
`Incarnation`. Calls go through it: each has a deadline, fails at once when the child's life ends, and waits for the
next life where there is none. The supervisor does no work and knows no Ray; a child knows nothing of its supervisor.
"""

import asyncio
import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Self

from phases.errors import ConfigError, ForgeError
from recovery.children import (
    Child,
    ChildGivenUpError,
    ChildSpec,
    DeadlineError,
    Down,
    Life,
    Loss,
    RestartStrategy,
    SupervisorGaveUpError,
    UnstartableError,
    affected,
)
from recovery.incarnation import Incarnation, first_line
from recovery.spares import Spares
from recovery.supervision import Intensity, SupervisionSettings
from recovery.vigil import Vigil


class Supervisor(Incarnation):
    """Keeps children alive. Events go to `emit(kind, **data)`; `clock` is in seconds.

    `listen` is called before each look at the children, to read what signs of life have arrived.
    """

    def __init__(
        self,
        name: str,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: RestartStrategy = RestartStrategy.ONE_FOR_ONE,
        settings: SupervisionSettings = SupervisionSettings(),  # noqa: B008 - immutable
        emit: Callable[..., None] = lambda *_, **__: None,
        listen: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.strategy, self.settings, self.emit, self.clock = name, strategy, settings, emit, clock
        self._children: dict[str, Child] = {}
        self._intensity = self._new_intensity()
        self._turn = asyncio.Lock()
        self._vigil = Vigil(name, settings, clock, emit, listen, self._lost, self._background)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._kills: set[asyncio.Task[Any]] = set()
        self._ended: ForgeError | None = None
        self._over = asyncio.Event()
        for spec in children:
            self._register(spec)

    async def start(self) -> Self:
        """Start all children, and return when they answer. Raises `SupervisorGaveUpError` where they do not."""
        self._background(self._vigil.keep(self._children))
        children = list(self._children.values())
        groups = [[child] for child in children] if self._independent else [children]
        if children:
            await asyncio.wait([self._background(self._bring_up(group)) for group in groups])
        if self._ended is not None:
            await self._over.wait()
            raise self._ended
        return self

    def add(self, spec: ChildSpec) -> None:
        """Start one more child, after all others, without waiting for it; calls do."""
        self._background(self._bring_up([self._register(spec)]))

    async def remove(self, name: str) -> None:
        """Stop a child for good, also one that is still being started."""
        child = self._find(name)
        del self._children[name]
        await self._dismiss(child, Down(Loss.STOPPED, "it was removed").error(name))

    async def restart(self, name: str) -> None:
        """Give a child, and those that are restarted with it, a new life, without waiting for it; calls do.

        This does not count as a failure.
        """
        child = self._find(name)
        async with self._lock(child):
            group = self._group(child)
            for member in reversed(group):
                await self._halt(member, Down(Loss.STOPPED, "it is restarted"))
        self._background(self._bring_up(group))

    async def stop(self) -> None:
        """Stop all children, the last started first."""
        if self._ended is None:
            await self._finish(ForgeError(f"{self.name}: was stopped"))
        await self._over.wait()

    async def call(self, child: str, method: str, /, *arguments: Any, timeout: float, **options: Any) -> Any:
        """Return what a child's method does, within `timeout` seconds, waiting for a next life included.

        Raises what the method raises, `ChildDownError` when the child's life ends meanwhile, `DeadlineError`, and
        `ChildGivenUpError` or `SupervisorGaveUpError` where there is no next life.
        """
        member = self._find(child)
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                life = member.life or await self._living(member)
                return await self._answer(member, life, method, arguments, options)
        except TimeoutError as error:
            if deadline.expired():
                raise DeadlineError(f"{child}.{method}: no answer within {timeout:g} s") from error
            raise

    @property
    def names(self) -> frozenset[str]:
        """The names of the children, also of those that are given up."""
        return frozenset(self._children)

    def alive(self, name: str) -> bool:
        """Say whether a child has a life at present."""
        return self._find(name).life is not None

    def spares_of(self, name: str) -> int:
        """Return how many spares of a child are ready."""
        return self._find(name).spares.ready

    def snapshot_of(self, name: str) -> Any:
        """Return the state that a child's next life would start with, None where there is none yet."""
        return self._find(name).snapshot

    # As the child of another supervisor

    def invoke(self, method: str, /, *arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        """Call a child's method, given as `child.method`; the deadline is the caller's."""
        child, _, own = method.partition(".")
        return self.call(child, own, *arguments, timeout=math.inf, **options)

    def is_death(self, error: BaseException) -> bool:
        """Say whether it has given up."""
        return isinstance(error, SupervisorGaveUpError)

    async def death(self) -> BaseException:
        """Wait until it has given up, or was stopped, and return why."""
        await self._over.wait()
        assert self._ended is not None
        return self._ended

    async def kill(self) -> None:
        """Stop it with all its children."""
        await self.stop()

    # Lives

    async def _answer(
        self, child: Child, life: Life, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        answer = asyncio.ensure_future(life.process.invoke(method, *arguments, **options))
        life.begin(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if life.down is None or _cancelling():
                raise
            raise life.down.error(child.name) from life.down.cause
        except Exception as error:
            if not life.process.is_death(error):
                raise
            self._lost(child, life, Down(Loss.DIED, first_line(error), error))
            raise Down(Loss.DIED, first_line(error)).error(child.name) from error
        finally:
            life.pending.discard(answer)

    async def _living(self, child: Child) -> Life:
        while child.life is None:
            if child.ended is not None:
                raise copy.copy(child.ended) from child.ended.__cause__
            await child.awake.wait()
        return child.life

    async def _watch(self, child: Child, process: Incarnation) -> None:
        """Wait for the death of a process, whether it is in use or spare."""
        error = await process.death()
        if child.life is not None and child.life.process is process:
            self._lost(child, child.life, Down(Loss.DIED, first_line(error), error))
        else:
            child.spares.lost(process, error)

    def _lost(self, child: Child, life: Life, down: Down) -> None:
        """Note that a life is over; calls to it end, its process is killed, and a new one is started."""
        if child.life is not life:
            return
        self._end(child, life, down)
        child.failures.append((self.clock(), life.process.node))
        self.emit("child_down", supervisor=self.name, child=child.name, loss=down.loss.value, cause=down.detail)
        self._background(self._recover(child))
        self._kill(life.process)

    def _end(self, child: Child, life: Life, down: Down) -> None:
        child.life, child.last = None, down
        child.awake.clear()
        life.end(down)

    async def _halt(self, child: Child, down: Down) -> None:
        """Stop the present life of a child on purpose."""
        if (life := child.life) is not None:
            self._end(child, life, down)
            await life.process.kill()

    async def _dismiss(self, child: Child, error: ForgeError) -> None:
        """Stop a child for good, with its spares and whatever is being started for it; later calls raise `error`."""
        child.ended = error
        if child.starting is not None:
            child.starting.cancel()
        await self._halt(child, Down(Loss.STOPPED, str(error)))
        child.awake.set()
        await child.spares.close()

    # Restarts

    async def _recover(self, child: Child) -> None:
        async with self._lock(child):
            if child.life is None and child.ended is None:
                await self._restart(child)

    async def _bring_up(self, group: list[Child]) -> None:
        async with self._lock(group[0]):
            if failed := await self._launch(group):
                await self._restart(failed)

    async def _restart(self, failed: Child | None) -> None:
        """Restart a failed child with those that its failure affects, until all are up or the intensity is spent."""
        while failed is not None and failed.ended is None:
            group, budget = self._group(failed), self._intensity if failed.spec.significant else failed.budget
            if not isinstance(failed.last.cause, UnstartableError) and budget.spend():
                for member in reversed(group):
                    await self._halt(member, Down(Loss.STOPPED, f"it is restarted together with {failed.name}"))
            elif failed.spec.significant:
                return await self._finish(self._gave_up(failed))
            else:
                error = ChildGivenUpError(f"{failed.name}: given up{self._why(failed)}")
                error.__cause__ = failed.last.error(failed.name)
                self.emit("child_given_up", supervisor=self.name, child=failed.name, cause=failed.last.detail)
                await self._dismiss(failed, error)
            failed = await self._launch(group)

    async def _launch(self, group: list[Child]) -> Child | None:
        """Start those of a group that are down, in order; return the first that does not start."""
        for child in group:
            if child.life is None and child.ended is None:
                try:
                    await self._begin(child)
                except Exception as error:
                    child.last = Down(Loss.UNSTARTED, first_line(error), error)
                    self.emit("child_not_started", supervisor=self.name, child=child.name, cause=child.last.detail)
                    return child
        return None

    async def _begin(self, child: Child) -> None:
        child.starting = starting = asyncio.create_task(self._obtain(child))
        try:
            process = await starting
        except asyncio.CancelledError:
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                self._kill(starting.result())
            if child.ended is not None and not _cancelling():
                return  # dismissed while it was being started
            raise
        finally:
            child.starting = None
        if child.ended is not None:
            return await process.kill()
        child.life = Life(process, saved_at=self.clock())
        child.awake.set()
        self.emit("child_started", supervisor=self.name, child=child.name, node=process.node)
        self._background(self._watch(child, process))  # from now on, so that a death in between is told, too
        child.spares.refill()

    async def _obtain(self, child: Child) -> Incarnation:
        """Return a process with the child's state: a spare where there is one, else a new one."""
        async with asyncio.timeout(child.spec.start_seconds):
            bad = self._bad_nodes(child)
            process = await child.spares.take(bad) or await child.spec.start(bad)
            if child.snapshot is not None:
                try:
                    await process.restore(child.snapshot)
                except BaseException:
                    await process.kill()
                    raise
            return process

    async def _start_spare(self, child: Child) -> Incarnation:
        spare = await child.spec.start(self._bad_nodes(child))
        self._background(self._watch(child, spare))
        return spare

    async def _finish(self, error: ForgeError) -> None:
        """Stop everything, the last started child first."""
        if self._ended is not None:
            return
        self._ended = error
        self.emit("supervisor_ended", supervisor=self.name, cause=str(error))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._kills, return_exceptions=True)
        for child in reversed(self._children.values()):
            await self._dismiss(child, error)
        self._over.set()

    def _kill(self, process: Incarnation) -> None:
        """Kill a process in the background; unlike other work, this is not given up when the supervisor ends."""
        task = asyncio.create_task(process.kill())
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    def _background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        """Forget a task; one that fails is a defect of the supervision itself, which then cannot go on."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._ended is None:
            failure = SupervisorGaveUpError(f"{self.name}: {first_line(error)}")
            failure.__cause__ = error
            self._background(self._finish(failure))

    def _register(self, spec: ChildSpec) -> Child:
        if self._ended is not None:
            raise self._ended
        if spec.name in self._children:
            raise ConfigError.of("child", spec.name, "is supervised already", "give it another name")
        child = Child(spec, self._new_intensity())
        facts = {"supervisor": self.name, "child": spec.name}
        child.spares = Spares(
            spec.spares,
            start=lambda: self._start_spare(child),
            budget=self._new_intensity(),
            settings=self.settings,
            emit=lambda kind, **data: self.emit(kind, **facts, **data),
        )
        self._children[spec.name] = child
        return child

    def _find(self, name: str) -> Child:
        if name not in self._children:
            known = ", ".join(self._children)
            raise ConfigError.of("child", name, f"is not supervised by {self.name}", f"known are {known}")
        return self._children[name]

    def _group(self, child: Child) -> list[Child]:
        names = affected(self.strategy, list(self._children), child.name)
        return [self._children[name] for name in names if self._children[name].ended is None]

    def _bad_nodes(self, child: Child) -> frozenset[str]:
        """Return the nodes on which a child has failed too often of late, if there are others."""
        since = self.clock() - self.settings.period_seconds
        child.failures = [(at, node) for at, node in child.failures if at >= since]
        counts = Counter(node for _, node in child.failures if node)
        bad = frozenset(node for node, count in counts.items() if count >= self.settings.node_failures)
        return child.spec.avoidable(bad) if bad else bad

    def _gave_up(self, child: Child) -> SupervisorGaveUpError:
        error = SupervisorGaveUpError(f"{self.name}: gave up{self._why(child)}")
        error.__cause__ = child.last.cause
        return error

    def _new_intensity(self) -> Intensity:
        return Intensity(self.settings.restarts, self.settings.period_seconds, self.clock)

    def _lock(self, child: Child) -> asyncio.Lock:
        return child.turn if self._independent else self._turn

    @property
    def _independent(self) -> bool:
        return self.strategy is RestartStrategy.ONE_FOR_ONE

    def _why(self, child: Child) -> str:
        """Return after what, and for what, a child is given up."""
        told = f"{child.name} {child.last.loss}: {child.last.detail}"
        if isinstance(child.last.cause, UnstartableError):
            return f"; {told}"
        return f" after {self.settings.restarts} restarts in {self.settings.period_seconds:g} s; {told}"


def _cancelling() -> bool:
    """Say whether it is this task that is cancelled, and not what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
