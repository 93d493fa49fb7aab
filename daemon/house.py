"""What the operations work with: one of each, built by the supervisor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import trio

from daemon.config import Places
from daemon.keyring import Keyring
from daemon.ledger import Ledger
from eventlog.history import History
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.log import EventLog
from eventlog.values import JobId
from tools.files import Store


class Ending:
    """Why the daemon ends, once somebody wants it to."""

    def __init__(self) -> None:
        self.reason = ""
        self._wanted = trio.Event()

    def want(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._wanted.set()

    async def wait(self) -> None:
        await self._wanted.wait()


@dataclass
class House:
    """`sessions` counts the connected clients; `idle_exit_seconds` is what the latest of them asked for."""

    places: Places
    log: EventLog
    index: Index
    ledger: Ledger
    history: History
    store: Store
    keyring: Keyring
    now: Callable[[], datetime]
    started_at: datetime
    idle_exit_seconds: float
    ending: Ending = field(default_factory=Ending)
    sessions: int = 0

    async def find_job(self, job_id: str) -> Job | None:
        """As the views show it now, live or over; what is on disk may be a moment behind."""
        live = self.ledger.board.get(JobId(job_id))
        if live is not None:
            return live
        await self.ledger.settled()
        return await trio.to_thread.run_sync(self.history.job, JobId(job_id))
