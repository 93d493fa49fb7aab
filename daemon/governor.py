"""When each account may ask OpenAI again: learned from its answers, kept to by all its jobs together.

Rule: in memory, and on trio's clock, so that a clock that is set changes nothing; the times told to people are of the
wall clock. What one job was told to wait for is a fact of that job, from which the wait goes on after a restart.
"""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import trio

from eventlog.values import Account


class Pause(NamedTuple):
    """`until` is on trio's clock, `resumes_at` the same in UTC as far as could be told; `why` is a sentence."""

    until: float
    resumes_at: datetime
    why: str


class Governor:
    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._pauses: dict[Account, Pause] = {}

    def pause(self, account: Account, seconds: float, why: str) -> None:
        """Nothing is asked for so long; a pause that lasts longer stays. Offline accounts are never paused."""
        until = trio.current_time() + seconds
        known = self._pauses.get(account)
        if account.backend != "offline" and seconds > 0 and (known is None or known.until < until):
            self._pauses[account] = Pause(until, self._now() + timedelta(seconds=seconds), why)

    def paused(self, account: Account) -> Pause | None:
        """The pause that lasts at this moment."""
        pause = self._pauses.get(account)
        if pause is not None and pause.until <= trio.current_time():
            del self._pauses[account]
            return None
        return pause

    def all_paused(self) -> dict[Account, Pause]:
        return {account: pause for account in tuple(self._pauses) if (pause := self.paused(account))}

    def next_end(self) -> float:
        """When the next pause ends, on trio's clock; infinity without one."""
        return min((pause.until for pause in self.all_paused().values()), default=math.inf)
