"""The one door for facts.

`record` decides, stamps, applies to the views and hands the commit to the writer in one stretch without an
`await`; then it waits until the commit is durable. Memory may be ahead of the disk for a moment, the world
never: whoever answers, sends or names a file first waits with `durable`. A failed write ends the daemon,
and memory with it.

One writer task takes all that is pending, appends it as one batch with one sync in its own thread, folds it
into the index and wakes the waiters; what arrives meanwhile is the next batch.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import trio

from daemon.errors import Refused
from eventlog.errors import EventLogError, LogDead, LogFull
from eventlog.events import Commit, Event
from eventlog.framing import Draft, draft
from eventlog.index import Index
from eventlog.jobs import JobBoard
from eventlog.log import EventLog
from eventlog.recent import RecentOrders
from eventlog.segments import Located
from eventlog.spending import Spending
from eventlog.values import Position, Words

PENDING_MAX = 10_000  # commits in memory while a sync is under way; only a dead disk gets this far
RIDE_SECONDS_MAX = 1.0  # how long a fact that nobody waits for may stay in memory only

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking function elsewhere; tests run it inline."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


class Views(NamedTuple):
    """What decisions look at. `log_full`: no room on the disk, only work under way may go on."""

    board: JobBoard
    spending: Spending
    recent: RecentOrders
    log_full: bool = False


class Facts(NamedTuple):
    """What a decision decided. Its words are stamped with a salt by the ledger."""

    events: tuple[Event, ...]
    words: Words | None = None


Decision = Callable[[Views], Facts]
NOTHING = Facts(())


class Ledger:
    """Owns the live views. `run_blocking` must run one function at a time, in order."""

    def __init__(
        self,
        log: EventLog,
        index: Index,
        *,
        now: Callable[[], datetime],
        salt: Callable[[], str],
        run_blocking: RunBlocking,
    ) -> None:
        self._log = log
        self._index = index
        self._now = now
        self._salt = salt
        self._run_blocking = run_blocking
        self.board = JobBoard(index.board)
        self.spending = index.spending.copy()
        self.recent = RecentOrders()
        self.position = log.head.position
        self._durable = log.head.position
        self._demanded = log.head.position
        self._pending: list[tuple[Commit, Draft]] = []
        self._failure: BaseException | None = None
        self._closing = False
        self._changed = trio.Event()  # the views moved, or somebody wants everybody to look again
        self._synced = trio.Event()  # more is durable; apart, because a hundred may wait for one sync
        self._work = trio.Event()

    async def record(self, decide: Decision) -> tuple[Event, ...]:
        """The facts that were decided, durable when this returns; `()` if there was nothing to say.

        Cancelling it stops the waiting, not the fact.

        Raises:
            Refused: by the decision; nothing has happened.
            LogDead: the disk failed; the daemon is about to end.
        """
        facts = await self._accept_or_look_for_room(decide)
        if facts.events:
            self._demanded = position = self.position
            self._work.set()
            await self.durable(position)
        return facts.events

    def consider(self, decide: Decision) -> None:
        """Ask a decision and let it rest: nothing is recorded.

        Raises:
            Refused: by the decision.
        """
        decide(self._views())

    async def post(self, decide: Decision) -> None:
        """Like `record`, but the fact rides along with the next sync and nobody waits for it."""
        while len(self._pending) >= PENDING_MAX:
            await self.wait_beyond(self.position)
        await self._accept_or_look_for_room(decide)

    async def settled(self) -> None:
        """Everything that was recorded before this call is durable, and with it all that views can show."""
        await self.durable(self._demanded)

    async def durable(self, position: Position) -> None:
        while self._durable < position:
            self._raise_if_broken()
            await self._synced.wait()
        self._raise_if_broken()

    async def wait_beyond(self, seen: Position) -> None:
        """Sleep until the views have moved past `seen`, or somebody called `wake`."""
        if self.position > seen:
            return
        self._raise_if_broken()
        await self._changed.wait()
        self._raise_if_broken()

    def wake(self) -> None:
        """Let everybody look again: something that is not a fact has changed, such as a key that arrived."""
        self._changed.set()
        self._changed = trio.Event()

    async def between_writes(self, function: Callable[[], T]) -> T:
        """Run this in the writer's thread, where nothing is appended and nothing is folded meanwhile.

        Raises:
            LogDead, and whatever else `function` raises; the first ends the daemon.
        """
        self._raise_if_broken()
        try:
            return await self._run_blocking(function)
        except LogDead as exc:
            self._break(exc)
            raise

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Runs the writer for as long as the body lasts; what is pending at the end is still written."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, name="log writer")
            try:
                yield
            finally:
                self._closing = True
                self._work.set()
                self.wake()

    async def _accept_or_look_for_room(self, decide: Decision) -> Facts:
        """A log that was full may have room again, and the append that would notice is perhaps this refusal's own."""
        try:
            return self._accept(decide)
        except Refused:
            if not self._log.full:
                raise
        await self.between_writes(self._log.look_for_room)
        return self._accept(decide)

    def _accept(self, decide: Decision) -> Facts:
        self._raise_if_broken()
        facts = decide(self._views())
        if not facts.events:
            return facts
        words = facts.words and msgspec.structs.replace(facts.words, salt=self._salt())
        commit = Commit(position=Position(self.position + 1), at=self._now(), events=facts.events, words=words)
        line = draft(commit)  # what cannot be written fails here, before anything has changed
        self.board.apply(commit)
        self.spending.apply(commit)
        self.recent.apply(commit)
        self.position = commit.position
        self._pending.append((commit, line))
        self.wake()
        return facts

    def _views(self) -> Views:
        return Views(self.board, self.spending, self.recent, self._log.full)

    async def _write(self) -> None:
        # Shielded: last words of cancelled jobs must reach the disk. Bounded by `_closing` and what is then pending.
        with trio.CancelScope(shield=True):
            while True:
                while not self._pending:
                    if self._closing:
                        return
                    await self._changed.wait()
                if self._demanded <= self._durable and not self._closing:
                    with trio.move_on_after(RIDE_SECONDS_MAX):
                        await self._work.wait()
                self._work = trio.Event()
                batch, self._pending = self._pending, []
                await self._write_batch(batch)

    async def _write_batch(self, batch: Sequence[tuple[Commit, Draft]]) -> None:
        last = batch[-1][0].position
        try:
            await self._run_blocking(partial(self._append, batch))
        except (EventLogError, LogFull) as exc:
            self._break(exc)
            raise
        self._durable = last
        self.board.drop_over(self._index.reached)
        self._tell_waiters()

    def _append(self, batch: Sequence[tuple[Commit, Draft]]) -> None:
        """In the writer's thread."""
        marks = self._log.append([line for _, line in batch])
        self._index.fold([Located(commit, mark) for (commit, _), mark in zip(batch, marks, strict=True)])

    def _tell_waiters(self) -> None:
        self._synced.set()
        self._synced = trio.Event()
        self.wake()

    def _break(self, failure: BaseException) -> None:
        self._failure = failure
        self._tell_waiters()

    def _raise_if_broken(self) -> None:
        if self._failure is not None:
            raise LogDead(f"the event log takes nothing more: {self._failure}") from self._failure
