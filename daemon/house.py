"""What the operations work with: one of each, built by the supervisor."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import trio

from daemon.approvals import Approvals
from daemon.config import Places
from daemon.ending import Closing, Ending
from daemon.keyring import Keyring
from daemon.ledger import Ledger, RunBlocking
from daemon.untold import Untold
from eventlog.disk import Disk
from eventlog.history import History
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.log import EventLog
from eventlog.values import Caps, JobId, StoredImage, digest
from tools import decoder, inputs
from tools.errors import FileFailed, Refused
from tools.store import Store


class ImportDesk:
    """One import of an old history at a time, and what the last looks for something to import have found."""

    def __init__(self) -> None:
        self.importing = trio.Lock()
        self.imports = 0
        self.offering = trio.CapacityLimiter(1)
        self.offers: dict[object, int] = {}


@dataclass
class House:
    """`sessions` counts the connected clients; `idle_exit_seconds` is what the latest of them asked for.

    `answering` counts what is being answered at the control door, where nobody has a session; `conversed_at`, on trio's
    clock, is when the last of it ended that was more than a look at the daemon.

    `keyed_orders` is held from looking for a job of some key to ordering it. `closing` begins when nobody listens at the
    MCP door any more: whoever is let go from then on finds the next daemon. `caps_known` are those that this daemon has
    recorded, by the client's name. `keeping` is held from putting an order's sources into the store to recording the order,
    and while that is removed from the store which no order needs any more.

    `disk` and `run_blocking` are what forgetting works with, apart from the log and the store, which have their own.
    """

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
    closing: Closing = field(default_factory=Closing)
    sessions: int = 0
    answering: int = 0
    conversed_at: float = -math.inf
    keyed_orders: trio.Lock = field(default_factory=trio.Lock)
    keeping: trio.Lock = field(default_factory=trio.Lock)
    untold: Untold = field(default_factory=Untold)
    approvals: Approvals = field(default_factory=Approvals)
    caps_known: dict[str, Caps] = field(default_factory=dict)
    vetting: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(decoder.AT_ONCE_MAX))
    desk: ImportDesk = field(default_factory=ImportDesk)
    disk: Disk = field(default_factory=Disk)
    run_blocking: RunBlocking = trio.to_thread.run_sync

    def has_work(self) -> bool:
        """Jobs that wait for a key are none."""
        return any(not job.state.is_over and self.keyring.can_draw(job.account) for job in self.ledger.board)

    @contextmanager
    def conversation(self, *, only_a_look: bool = False) -> Iterator[None]:
        """Somebody without a session is being answered."""
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1
            if not only_a_look:
                self.conversed_at = trio.current_time()

    def original(self, job: Job, image: StoredImage, roots: Sequence[Path] = ()) -> bytes:
        """A picture as it was received. Blocking. Of what was imported the file itself, as long as it is what it was and
        lies below one of the asker's `roots`: an old database may name any file of this machine.

        Raises:
            FileFailed: the bytes are gone, or not for this asker.
        """
        if not job.imported:
            return self.store.get(image.original)
        try:
            data = inputs.read(image.path or "", roots, name="uuid", bytes_max=image.size_bytes)
        except Refused as refused:
            raise FileFailed(str(refused), code="not_there") from refused
        if digest(data) != image.sha256:
            raise FileFailed(f"The imported file {image.path} is not what it was when it was imported.", code="not_there")
        return data

    async def find_job(self, job_id: str) -> Job | None:
        """As the views show it now, live or over; what is on disk may be a moment behind."""
        live = self.ledger.board.get(JobId(job_id))
        if live is not None:
            return live
        await self.ledger.settled()
        return await trio.to_thread.run_sync(self.history.job, JobId(job_id))

    async def find_job_of_key(self, request_key: str) -> Job | None:
        """The job that was ordered under this digest of its asker's key. What leaves the board is in the index by then."""
        for job in self.ledger.board:
            if job.request_key == request_key:
                return job
        await self.ledger.settled()
        return await trio.to_thread.run_sync(self.history.job_of_key, request_key)
