"""A clock that tests move."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """An event loop's clock and timers; time goes on when it is told to."""

    def __init__(self) -> None:
        self.now, self._timers = 100.0, {}

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Clock.Timer:
        timer = Clock.Timer(self._timers)
        self._timers[timer] = (self.now + delay_s, callback)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [(at, timer) for timer, (at, _) in self._timers.items() if at <= end]:
            self.now, timer = min(due, key=lambda entry: entry[0])
            self._timers.pop(timer)[1]()
        self.now = end

    class Timer:
        def __init__(self, timers: dict) -> None:
            self._timers = timers

        def cancel(self) -> None:
            self._timers.pop(self, None)
