"""Heartbeats arrive by their token, and nothing else does."""

import socket
import threading
import time
from functools import partial

from recovery.heartbeats import Heartbeats, send_beats
from recovery.supervision import Pulse, SupervisionSettings


def test_beats_reach_their_pulse_and_strangers_reach_none() -> None:
    heartbeats, stop = Heartbeats("127.0.0.1"), threading.Event()
    pulses = [Pulse(SupervisionSettings()) for _ in range(3)]
    tokens = [heartbeats.listen(pulse) for pulse in pulses]
    heartbeats.forget(tokens[2])
    threads = [
        threading.Thread(target=send_beats, args=(heartbeats.address, token, 0.001, partial(int, 10 + number), stop))
        for number, token in enumerate(tokens)
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for datagram in (b"", b"x" * 24, tokens[0], tokens[0] + b"short", tokens[0] + b"far too long"):
            stranger.sendto(datagram, heartbeats.address)
    heartbeats.read()
    assert [pulse.beats for pulse in pulses] == [-1, -1, -1]
    for thread in threads:
        thread.start()
    while [pulse.beats for pulse in pulses[:2]] != [10, 11]:
        heartbeats.read()
    time.sleep(0.01)
    heartbeats.read()
    assert pulses[2].beats == -1
    heartbeats.close()
    heartbeats.read()
    time.sleep(0.01)  # senders outlive whoever listens
    assert all(thread.is_alive() for thread in threads)
    stop.set()
    for thread in threads:
        thread.join()
