"""What a supervisor can ask one life of a child, whatever the child is made of.

It may be a process, a Ray actor (`actors/supervised.py`) or another supervisor. Only its death has to be told; what has
no pulse is not judged by signs of life, and what gives no snapshot starts each life without a state.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any

from recovery.supervision import Pulse


class Incarnation(ABC):
    """One life of a child, as its supervisor sees it."""

    node: str = ""  # where it runs, "" where that does not matter
    pulse: Pulse | None = None  # its signs of life; where there are none, only its death is noticed

    @abstractmethod
    def invoke(self, method: str, /, *arguments: Any, **options: Any) -> Awaitable[Any]:
        """Call one of its methods."""

    @abstractmethod
    async def death(self) -> BaseException:
        """Wait for its end, however long, and return the cause."""

    @abstractmethod
    async def kill(self) -> None:
        """Stop it, at once and for good; nothing happens where it is gone already."""

    def is_death(self, error: BaseException) -> bool:
        """Say whether what a call raised means that this life has ended."""
        return False

    async def ask(self) -> int:
        """Return its counter of progress, from itself."""
        return 0

    async def frozen(self) -> bool:
        """Say whether its process is known to be stopped."""
        return False

    async def snapshot(self) -> Any:
        """Return the state that the next life is to start with; None for none."""
        return None

    async def restore(self, snapshot: Any) -> None:
        """Take over the state of an earlier life. Raises `NotImplementedError` where there are no snapshots."""
        raise NotImplementedError(f"{type(self).__name__} has no state")


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
