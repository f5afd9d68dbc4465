"""Time that passes when a test says so."""


class Clock:
    """Seconds, as a function without arguments returns them."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
