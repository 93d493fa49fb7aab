"""The daemon's heart on a disk that loses power: ledger, board, index, store, scheduler and worker, over and over.

A `World` is one disk and one OpenAI. It is lived in by one daemon after another; each is a `Life`: orders, cancels and
retries, faults of the disk, and an end, mostly a violent one. Every daemon recovers as the supervisor does, and then the
witness holds all that was ever promised against what is there. Everything is drawn from a seed and runs on one thread
and a clock of its own, so that the same seed is the same world.

Crashes are the power cut and the kill. A daemon that a broken disk has ended is none: it could say so. Not simulated: two
blocking calls at the very same time, doors and sessions, httpx, and an index that SQLite itself has to mend.

By hand: python -m tests.simulation --crashes 1000000 --seed 1
"""

import argparse
import contextlib
import errno
import logging
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import trio
import trio.testing
from trio._core import _run as trio_run

from daemon import decisions, forgetting, scheduler, supervisor
from daemon.config import Secret
from daemon.ending import SHUTDOWN_SECONDS_MAX
from daemon.errors import Refused
from daemon.house import House
from daemon.keyring import Keyring
from daemon.ledger import Decision
from daemon.worker import Worker
from eventlog import log as log_module
from eventlog import searching, tables
from eventlog.errors import LogDead, LogFull
from eventlog.events import JobRequested, JobResolved, RequestReceived
from eventlog.index import Index
from eventlog.jobs import Job, Stage
from eventlog.log import EventLog
from eventlog.values import Account, Client, Cost, CostRange, Embedding, ImageRequest, JobId, JobState, MicroUSD, Picture, Words
from tests.eventlog.disks import PowerCut, SimulatedDisk, fail
from tests.simulation_api import KINDS, MODEL, Answer, picture, price
from tests.simulation_witness import (
    CAPS,
    EVENTS,
    PLACES,
    Recovered,
    Violation,
    WatchedLedger,
    WatchedStore,
    Witness,
    insist,
    secret_of,
)
from tools.errors import FileFailed
from tools.store import Store

T = TypeVar("T")

PAYING = Account(backend="openai", key="0123456789ab", base_url="https://api.openai.com/v1")
OFFLINE = Account(backend="offline")
CLIENT = Client(name="simulation")
DAWN = datetime(2020, 1, 1, tzinfo=UTC)  # long past, so that no worker waits for the machine's own clock
SEGMENT_BYTES = 3_000  # a few jobs
RESERVE_BYTES = 2_048
LIVES = range(6, 13)  # of one world; a longer history makes each look at it slower and no stranger
STEPS_MAX = 6
OPERATIONS = 70  # within which bad luck strikes; an order that goes well takes about 25
CLOCK_IS_SET = 0.05  # whenever somebody looks at it
CLOCK_DAYS = 28  # of one month: the budget that is watched is a month's
LIFE_SECONDS_MAX = 100_000.0  # on the clock that jumps: what takes longer hangs
SOURCES = range(1_000_000, 1_000_003)  # pictures that nobody draws; several orders start from the same
FAULTS = (errno.EIO, errno.ENOSPC, errno.ENOSPC, errno.EROFS)
DEEDS = {"order": 10, "cancel": 3, "retry": 2, "resolve": 1, "forget": 2, "wait": 1}
PAUSES = (0.0, 0.0, 1.0, 5.0, 60.0)
ANSWER_SECONDS = (0.0, 1.0, 3.0, 30.0)


class Step(NamedTuple):
    """Something a client does, and the seconds until the next. `choice` says to which job, or how."""

    deed: str
    choice: int
    pause: float


class Fault(NamedTuple):
    """The operation of this number fails, or with `forever` all from there on."""

    operation: int
    number: int
    forever: bool


class Life(NamedTuple):
    """One daemon, from its start to its end.

    `ends_at` is the operation at which it ends, before it is carried out or `after`; beyond the last of them it ends when
    the steps are done. `end` is a cut of the "power", a "kill" or an orderly "stop". `found` says which copy of the index
    there is: the "last" one, an "older" one or "none". `key`: a session brings the API key. `seed` decides what a power cut
    takes, and in which order tasks run.
    """

    steps: tuple[Step, ...]
    answers: tuple[Answer, ...]
    faults: tuple[Fault, ...]
    end: str
    ends_at: int
    after: bool
    found: str
    key: bool
    seed: int

    @classmethod
    def drawn(cls, chance: random.Random) -> "Life":
        deeds, weights = list(DEEDS), list(DEEDS.values())
        return cls(
            steps=tuple(
                Step(chance.choices(deeds, weights)[0], chance.randrange(1000), chance.choice(PAUSES))
                for _ in range(chance.randrange(STEPS_MAX))
            ),
            answers=tuple(
                Answer("drawn" if chance.random() < 0.5 else chance.choice(list(KINDS)), chance.choice(ANSWER_SECONDS))
                for _ in range(3)
            ),
            faults=tuple(
                Fault(chance.randrange(1, OPERATIONS), chance.choice(FAULTS), chance.random() < 0.3)
                for _ in range(chance.choice((0, 0, 0, 1, 2)))
            ),
            end=chance.choices(["power", "kill", "stop"], [7, 3, 1])[0],
            ends_at=chance.randrange(1, OPERATIONS),
            after=chance.random() < 0.5,
            found=chance.choices(["last", "older", "none"], [4, 2, 1])[0],
            key=chance.random() < 0.9,
            seed=chance.randrange(2**32),
        )


class Luck:
    """What a life's plan does to the disk. `struck` once anything went wrong, `over` once the daemon is gone."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._operation = 0
        self.struck = False
        self.over = False

    def before(self, operation: str) -> None:
        if self.over:
            raise PowerCut
        self._operation += 1
        if self._operation == self._life.ends_at and not self._life.after:
            self.end()
        for fault in self._life.faults:
            if self._operation == fault.operation or (fault.forever and self._operation > fault.operation):
                self.struck = True
                raise fail(fault.number)

    def after(self, operation: str) -> None:
        if self._operation == self._life.ends_at and self._life.after:
            self.end()

    def end(self) -> None:
        if self._life.end != "stop":
            self.struck = self.over = True
            raise PowerCut


class World:
    """`ended` counts its lives by how they ended."""

    def __init__(self, *, free: int = 0) -> None:
        self.disk = SimulatedDisk(free=free)
        self.witness = Witness()
        self.ended: Counter[str] = Counter()
        self._indexes: list[bytes] = []
        self._orders = 0
        self._at = DAWN
        self._luck = Luck(PEACE)

    def live(self, life: Life) -> None:
        """
        Raises:
            Violation: something that was promised is not so.
        """
        self._luck = luck = Luck(life)
        self.disk.before, self.disk.after = luck.before, luck.after
        random.seed(life.seed)
        trio_run._r.seed(life.seed)
        self.witness.api.be_told(life.answers)
        try:
            trio.run(self._daemon, life, clock=trio.testing.MockClock(autojump_threshold=0))
            ended = "stop"
        except BaseException as exc:  # noqa: BLE001 - a power cut is one
            self._insist_on_a_fitting_end(exc, luck)
            ended = life.end if luck.over else "broken disk"
        if ended == "power" or (ended == "broken disk" and life.end == "power"):
            self.disk.cut_power(random.Random(life.seed))
        else:
            self.disk.end_process()
        self.ended[ended] += 1

    def _insist_on_a_fitting_end(self, exc: BaseException, luck: Luck) -> None:
        leaves = list(_leaves(exc))
        for leaf in leaves:
            if isinstance(leaf, Violation):
                raise leaf
        for leaf in leaves:
            if not luck.struck or not isinstance(leaf, PowerCut | LogDead | LogFull | FileFailed):
                raise Violation(f"a daemon ended by {type(leaf).__name__}: {leaf}") from exc

    async def _daemon(self, life: Life) -> None:
        """As `supervisor.serve`, without doors."""
        log = EventLog(EVENTS, software="simulation", disk=self.disk, segment_bytes=SEGMENT_BYTES)
        log.lock()
        with closing(log), self._index(life) as index, trio.fail_after(LIFE_SECONDS_MAX):
            recovery = log.recover(index.mark, index.fold)
            ledger = WatchedLedger(log, index, now=self._now, salt=lambda: "00" * 16, run_blocking=self._in_writer)
            ledger.watch(self.witness)
            async with ledger.writing():
                store = WatchedStore.open(PLACES.store, self.disk)
                assert isinstance(store, WatchedStore)
                store.watch(self.witness)
                house = self._house(log, index, ledger, store)
                await ledger.record(decisions.start_daemon("simulation", recovery.torn_bytes))
                await supervisor.put_right(ledger, store)
                await forgetting.finish(house)
                self.witness.spend_by(ledger)
                recovered = Recovered.read(self.disk, ledger, index, store)
                self.witness.inspect(recovered)
                insist(bool(life.faults) or not recovered.unfinished, "what is to be forgotten was not finished on a good disk")
                await self._work(life, house)
                await ledger.record(decisions.stop_daemon("told to"))

    def _house(self, log: EventLog, index: Index, ledger: WatchedLedger, store: WatchedStore) -> "SimulatedHouse":
        return SimulatedHouse(
            places=PLACES,
            log=log,
            index=index,
            ledger=ledger,
            history=None,  # type: ignore[arg-type]
            store=store,
            keyring=Keyring(),
            now=self._now,
            started_at=DAWN,
            idle_exit_seconds=0.0,
            disk=self.disk,
            run_blocking=self._in_thread,
        )

    async def _work(self, life: Life, house: "SimulatedHouse") -> None:
        ledger, store, keyring = house.ledger, house.store, house.keyring
        if life.key:
            keyring._keys[PAYING] = Secret("sk-simulated")
        api = self.witness.api
        worker = Worker(ledger, api, keyring, store, disk=self.disk, run_blocking=self._in_thread)  # type: ignore[arg-type]
        async with trio.open_nursery() as workers:
            async with trio.open_nursery() as doors:
                doors.start_soon(scheduler.run, ledger, keyring, worker, workers)
                for step in life.steps:
                    doors.start_soon(self._ask, step, house)
                    await trio.sleep(step.pause)
                self._luck.end()
                doors.cancel_scope.cancel()
            with trio.move_on_after(SHUTDOWN_SECONDS_MAX):
                while any(job.state is JobState.RUNNING and keyring.can_draw(job.account) for job in ledger.board):
                    await ledger.wait_beyond(ledger.position)
            workers.cancel_scope.cancel()

    async def _ask(self, step: Step, house: "SimulatedHouse") -> None:
        with contextlib.suppress(Refused):
            if step.deed != "forget" and _has_source(step.choice):
                async with house.keeping:  # as daemon/ordering.py does
                    await self._do(step, house)
            else:
                await self._do(step, house)

    async def _do(self, step: Step, house: "SimulatedHouse") -> None:
        if step.deed == "forget":
            await self._forget(step.choice, house)
        elif (decide := await self._decision(step, house)) is not None:
            await house.ledger.record(decide)

    async def _forget(self, choice: int, house: "SimulatedHouse") -> None:
        if over := self.witness.over:
            asked = forgetting.Forget(uuid=over[choice % len(over)].id, files=choice % 2 == 0)
            await forgetting.forget(house, None, asked)  # type: ignore[arg-type]

    async def _decision(self, step: Step, house: "SimulatedHouse") -> Decision | None:
        match step.deed:
            case "order":
                return await self._order(step.choice, house.store)
            case "retry" if lost := [job.id for job in self.witness.over if job.stage is not Stage.COMPLETED]:
                return await self._order(step.choice, house.store, retry_of=lost[step.choice % len(lost)])
            case "cancel" if live := [job.id for job in house.ledger.board]:
                return decisions.cancel_job(live[step.choice % len(live)])
            case "resolve" if doubts := list(house.ledger.spending.suspicions):
                return self._resolve(doubts[step.choice % len(doubts)])
        return None

    async def _order(self, choice: int, store: Store, retry_of: JobId | None = None) -> Decision | None:
        self._orders += 1
        job = JobId(f"job{self._orders}")
        source = await self._source(choice, store) if _has_source(choice) else ()
        if source is None:
            return None
        count = 2 if choice % 7 == 0 and not source else 1
        high = price(count)
        embedding: Embedding = "off" if choice % 4 == 0 else "standard"
        requested = JobRequested(
            job=job,
            request=ImageRequest(tool="generate_image", model=MODEL, count=count, sources=source),
            account=OFFLINE if choice % 13 == 0 else PAYING,
            client=CLIENT,
            estimate=CostRange(low=MicroUSD(0), high=high, table="simulation"),
            embedding=embedding,
            sidecar=choice % 11 == 0,
            retry_of=retry_of,
        )
        folder = f"series{choice % 2}/" if choice % 3 == 0 else ""
        words = Words(salt="", prompt=secret_of(job), output_path=f"{folder}fox.png", output_dir="/home/pictures")
        received = RequestReceived(operation="generate_image", door="mcp", client=CLIENT)
        return decisions.request_job(received, requested, words, decisions.Terms(self._now(), caps=CAPS))

    async def _source(self, choice: int, store: Store) -> tuple[Picture, ...] | None:
        """What an edit starts from is in the store before the order is recorded; None if the disk does not take it."""
        data = picture(SOURCES[choice % len(SOURCES)])
        try:
            blob = await self._in_thread(partial(store.put, data))
        except FileFailed:
            return None
        return (Picture(sha256=blob.sha256, size_bytes=blob.size_bytes, width=1, height=1, format="png"),)

    def _resolve(self, job_id: JobId) -> Decision:
        """By the bill, which is right."""
        billed = sum(sent.billed for sent in self.witness.api.sent if sent.id.startswith(f"imaged-{job_id}-"))
        cost = Cost(amount=MicroUSD(billed), basis="resolved", table="simulation") if billed else None
        return decisions.resolve_job(JobResolved(job=job_id, billed="yes" if billed else "no", client=CLIENT, cost=cost))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """As a real thread: it may be cancelled before it begins, its result arrives whatever happens then, and others
        have their turns meanwhile, who knows how many.
        """
        await trio.lowlevel.checkpoint()
        for _ in range(random.randrange(4)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        result = function()
        for _ in range(random.randrange(1, 4)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    async def _in_writer(self, function: Callable[[], T]) -> T:
        """The same; the end comes as a dead log, or whoever waits for the writer would wait for ever."""
        try:
            return await self._in_thread(function)
        except PowerCut as cut:
            raise LogDead("the daemon is gone") from cut

    def _now(self) -> datetime:
        """Of a machine that sleeps, and whose clock is set, back as often as forth."""
        if random.random() < CLOCK_IS_SET:
            self._at = DAWN + timedelta(days=random.randrange(CLOCK_DAYS))
        self._at += timedelta(minutes=7)  # some worlds see midnight
        return self._at

    @contextmanager
    def _index(self, life: Life) -> Iterator[Index]:
        images = {"last": self._indexes[-1:], "older": self._indexes[-3:-1], "none": []}[life.found]
        index = _index_in_memory(images[0] if images else _empty_index())
        try:
            yield index
        finally:
            self._indexes = [*self._indexes[-2:], index._db.serialize()]
            index._db.close()


def _has_source(choice: int) -> bool:
    return choice % 5 == 0


class SimulatedHouse(House):
    """Looks a job up where the index is written: in memory nobody else can read it."""

    async def find_job(self, job_id: str) -> Job | None:
        live = self.ledger.board.get(JobId(job_id))
        if live is not None:
            return live
        await self.ledger.settled()
        row = self.index._db.execute("SELECT body FROM job WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Job)


def _index_in_memory(image: bytes) -> Index:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.deserialize(image)
    return Index(Path("/home/index.sqlite"), db)


@cache
def _empty_index() -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(f"BEGIN; {tables.SCHEMA} {searching.SCHEMA} COMMIT;")
        db.executescript(searching.INDEXES)
        return bytes(db.serialize())


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


PEACE = Life(
    steps=(), answers=(Answer("drawn", 1.0),), faults=(), end="stop", ends_at=0, after=False, found="last", key=True, seed=0
)


@contextmanager
def small_world() -> Iterator[None]:
    """A reserve as small as everything else here, and a scheduler of tasks that a seed decides."""
    before = log_module.RESERVE_BYTES, log_module.RESERVE_AGAIN_BYTES, trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    log_module.RESERVE_BYTES, log_module.RESERVE_AGAIN_BYTES = RESERVE_BYTES, 2 * RESERVE_BYTES
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        log_module.RESERVE_BYTES, log_module.RESERVE_AGAIN_BYTES, trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before


def lived_through(seed: int) -> World:
    """One world, from its first daemon to a last one that ends in peace.

    Raises:
        Violation: names the seed.
    """
    chance = random.Random(seed)
    world = World(free=chance.choice((0, 2 * RESERVE_BYTES)))
    with small_world():
        try:
            for _ in range(chance.choice(LIVES)):
                world.live(Life.drawn(chance))
            world.live(PEACE)
        except Violation as exc:
            again = f"python -m tests.simulation --crashes 1 --seed {seed}"
            raise Violation(f"world {seed}, daemon {world.ended.total() + 1}: {exc}; again with {again}") from exc
    return world


def worlds(first_seed: int, crashes: int) -> Counter[str]:
    """World after world from this seed on until so many daemons have crashed; how all of them ended."""
    ended: Counter[str] = Counter()
    seed = first_seed
    while ended["power"] + ended["kill"] < crashes:
        ended += lived_through(seed).ended
        ended["worlds"] += 1
        seed += 1
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what the daemons say of their broken disks
    print(f"seed {asked.seed}", flush=True)
    ended: Counter[str] = Counter()
    begun = time.monotonic()
    while (left := asked.crashes - ended["power"] - ended["kill"]) > 0:
        ended += worlds(asked.seed + ended["worlds"], min(left, 1000))
        crashed = ended["power"] + ended["kill"]
        print(f"{crashed:,} crashes, {time.monotonic() - begun:.0f} s, next seed {asked.seed + ended['worlds']}", flush=True)
    print(", ".join(f"{count:,} x {how}" for how, count in ended.most_common()), flush=True)


if __name__ == "__main__":
    main()
