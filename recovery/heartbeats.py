"""Heartbeats as datagrams of 24 bytes: a token that names the sender, and its counter of progress.

A call for each beat would cost a tenth of a core for fifty senders; a plain thread that sends and a reader that takes
all that has arrived at once, when it is time to judge, cost about a twentieth of that. What a datagram cannot promise
is not asked of it: one that is lost is made up for by the next, and where none arrive the supervisor asks. The token is
known to the two ends only, so that nobody else can keep a dead sender alive.
"""

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable

from recovery.supervision import Pulse

_TOKEN_BYTES = 16
_COUNTER = struct.Struct("<q")


class Heartbeats:
    """Receives the heartbeats for many pulses on a port of `host`, an address of this machine."""

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(_family(host), socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((host, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._pulses: dict[bytes, Pulse] = {}

    def listen(self, pulse: Pulse) -> bytes:
        """Return the token that heartbeats for `pulse` carry."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._pulses[token] = pulse
        return token

    def forget(self, token: bytes) -> None:
        """Drop what still comes with a token."""
        self._pulses.pop(token, None)

    def read(self) -> None:
        """Note all that has arrived; nothing once it is closed."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.fileno() >= 0:
                datagram = self._socket.recv(64)
                pulse = self._pulses.get(datagram[:_TOKEN_BYTES])
                if pulse is not None and len(datagram) == _TOKEN_BYTES + _COUNTER.size:
                    pulse.seen(_COUNTER.unpack_from(datagram, _TOKEN_BYTES)[0])

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()


def send_beats(
    address: tuple[str, int], token: bytes, seconds: float, beats: Callable[[], int], stop: threading.Event
) -> None:
    """Send `beats()` every so many seconds until `stop` is set; for a thread of its own.

    It wakes with cold caches, so every line costs: `contextlib.suppress` in place of `try` made a beat 60% dearer, and
    waiting for `stop` instead of looking at it afterwards twice as dear.
    """
    with socket.socket(_family(address[0]), socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(address)
        send, pack, sleep, stopped = sender.send, _COUNTER.pack, time.sleep, stop.is_set
        while not stopped():
            try:
                send(token + pack(beats()))
            except OSError:
                continue  # what this beat does not tell, the next does
            finally:
                sleep(seconds)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
