"""Heartbeats arrive by their token, and nothing else does."""

import asyncio
import socket

from recovery.heartbeats import Heartbeats, send_beats
from recovery.supervision import Pulse, SupervisionSettings


def test_beats_reach_their_pulse_and_strangers_reach_none() -> None:
    async def scenario() -> None:
        heartbeats = Heartbeats("127.0.0.1")
        pulses = [Pulse(SupervisionSettings()) for _ in range(3)]
        tokens = [heartbeats.listen(pulse) for pulse in pulses]
        heartbeats.forget(tokens[2])
        senders = [
            asyncio.create_task(send_beats(heartbeats.address, token, 0.001, lambda number=number: 10 + number))
            for number, token in enumerate(tokens)
        ]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for datagram in (b"", b"x" * 24, tokens[0], tokens[0] + b"short", tokens[0] + b"far too long"):
                stranger.sendto(datagram, heartbeats.address)
        while [pulse.beats for pulse in pulses[:2]] != [10, 11]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert [pulse.beats for pulse in pulses] == [10, 11, -1]
        heartbeats.close()
        await asyncio.sleep(0.005)  # senders outlive whoever listens
        assert not any(sender.done() for sender in senders)
        for sender in senders:
            sender.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 20))
