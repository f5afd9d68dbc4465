"""How agents talk to the data flow of their run: a client that outlives the flow's actor, publishers and receivers.

Every call may be made again: what a publisher repeats is known by its number, and what a receiver gets again is known
to its inbox. So a call during which the flow's actor died is simply made to the next one, as soon as there is one.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from actors.agent import NAMESPACE, flow_name
from recovery.classify import Classifier
from recovery.commits import FencedError
from recovery.inbox import Delivery, Inbox, Message, Receipt
from recovery.taxonomy import ErrorClass

_WAIT_SECONDS = 5.0


class FlowClient:
    """Calls the flow of a run, for up to `patience` seconds while there is none; then raises what the last call did."""

    def __init__(self, run: str, patience: float = 120.0) -> None:
        self.name, self.patience = flow_name(run), patience
        self._handle: Any = None
        self._classify = Classifier().classify

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return what a method of `DataFlow` returns. Raises what it raises, as Ray wraps it."""
        attempts = AsyncRetrying(
            retry=retry_if_exception(self._is_gone),
            wait=wait_exponential(multiplier=0.02, max=1.0),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                if self._handle is None:
                    self._handle = ray.get_actor(self.name, NAMESPACE)
                return await getattr(self._handle, method).remote(*arguments, **options)

    async def publish(self, topic: str, bodies: Sequence[bytes], *, source: str, first: int, priority: int = 0) -> int:
        """See `DataFlow.publish`."""
        new: int = await self.call("publish", topic, bodies, source=source, first=first, priority=priority)
        return new

    async def receive(
        self, receiver: str, inbox: Inbox, handler: Callable[[Message], bytes], stop: asyncio.Event
    ) -> None:
        """Handle a receiver's messages in a thread, batch by batch, until `stop` is set; then send the last receipt."""
        receipt: Receipt | None = None
        while not stop.is_set():
            delivery: Delivery | None = await self.call("pull", receiver, wait=_WAIT_SECONDS, receipt=receipt)
            receipt = await asyncio.to_thread(inbox.handle, delivery, handler) if delivery else None
        if receipt is not None:
            await self.call("acknowledge", receiver, receipt)

    def _is_gone(self, error: BaseException) -> bool:
        """Say whether the flow's actor is dead, unreachable or taken over; the next call looks it up again."""
        if isinstance(error, RayTaskError):
            gone = isinstance(error.cause, FencedError)
        else:
            gone = self._classify(error) in (ErrorClass.TRANSIENT, ErrorClass.CRASH)
        if gone:
            self._handle = None
        return gone


class Publisher:
    """Numbers the messages of one source, from where the source left off. One process per source at a time.

    A source that was restarted goes on with the message of `next_number`; those before are durable.
    """

    def __init__(self, client: FlowClient, source: str) -> None:
        self._client, self.source = client, source
        self._next: int | None = None
        self._turn = asyncio.Lock()

    async def publish(self, topic: str, bodies: Sequence[bytes], priority: int = 0) -> None:
        """Publish, and return when it is durable. After an exception, the same messages may be published again."""
        async with self._turn:
            first = await self.next_number()
            await self._client.publish(topic, bodies, source=self.source, first=first, priority=priority)
            self._next = first + len(bodies)

    async def next_number(self) -> int:
        """Return the number that the next message gets."""
        if self._next is None:
            self._next = int(await self._client.call("next_number", self.source))
        return self._next
