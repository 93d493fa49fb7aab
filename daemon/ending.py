"""That the daemon is to end, and why; and that a door closes, for whoever waits behind it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

SHUTDOWN_SECONDS_MAX = 30.0  # for running jobs to end by themselves; most pictures take less


class Ending:
    """Wanted now, or as soon as nothing runs: for a successor, which the doors stay open for and no job is begun before."""

    def __init__(self) -> None:
        self.reason = ""
        self._wanted = trio.Event()
        self._making_way = trio.Event()

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    def want(self, reason: str) -> None:
        if not self.wanted:
            self.reason = reason
        self._wanted.set()

    async def wait(self) -> None:
        await self._wanted.wait()

    def make_way(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._making_way.set()

    async def wait_to_make_way(self) -> None:
        await self._making_way.wait()


class Closing:
    """That a door closes, for whoever would otherwise wait for ever behind it."""

    def __init__(self) -> None:
        self.begun = False
        self._waits: set[trio.CancelScope] = set()

    def begin(self) -> None:
        self.begun = True
        for wait in self._waits:
            wait.cancel()

    async def wait(self) -> None:
        with self.ends_a_wait():
            await trio.sleep_forever()

    @contextmanager
    def ends_a_wait(self, seconds_max: float = math.inf) -> Iterator[trio.CancelScope]:
        """The body is left when the door closes or the time is up; `cancelled_caught` then says so."""
        with trio.move_on_after(seconds_max) as wait:
            self._waits.add(wait)
            if self.begun:
                wait.cancel()
            try:
                yield wait
            finally:
                self._waits.discard(wait)
