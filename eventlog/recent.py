"""What was ordered through the MCP door of late: a view over the facts since the daemon started, for stopping runaways.

Rule: counts orders as they are recorded, whatever becomes of them. What costs nothing is not counted: the offline
stand-in, and pictures that are only put in their place again.
"""

import hashlib
from collections import deque
from datetime import datetime, timedelta
from typing import NamedTuple

from eventlog.events import Commit, JobRequested, RequestReceived
from eventlog.values import Client, ImageRequest, Words

KEPT = timedelta(hours=1)
KEPT_MAX = 10_000  # orders; far more than any cap allows in that time


class Recent(NamedTuple):
    """`subject` is the same for the same prompt about the same source pictures, whatever the size and the place."""

    at: datetime
    client: Client
    pictures: int
    subject: bytes


class RecentOrders:
    def __init__(self) -> None:
        self._orders: deque[Recent] = deque(maxlen=KEPT_MAX)

    def apply(self, commit: Commit) -> None:
        if not any(isinstance(event, RequestReceived) and event.door == "mcp" for event in commit.events):
            return
        for event in commit.events:
            if isinstance(event, JobRequested) and event.account.backend != "offline" and not event.kept:
                self._forget(commit.at)
                about = subject(event.request, commit.words)
                self._orders.append(Recent(commit.at, event.client, event.request.count, about))

    def since(self, client: Client, age: timedelta, now: datetime) -> tuple[Recent, ...]:
        """Oldest first. What lies in the future, because the clock was set back, does not count."""
        return tuple(order for order in self._orders if order.client == client and now - age < order.at <= now)

    def _forget(self, now: datetime) -> None:
        while self._orders and not now - KEPT < self._orders[0].at <= now:
            self._orders.popleft()


def subject(request: ImageRequest, words: Words | None) -> bytes:
    digest = hashlib.sha256(((words and words.prompt) or "").encode())
    for picture in request.sources:
        digest.update(picture.sha256.encode())
    return digest.digest()
