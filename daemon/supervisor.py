"""The whole daemon, top to bottom: read this first.

Start-up is nesting, and shutdown is the same read backwards:

    lock ─ sockets listen ─ index ─ log recovered ─ writer ─ interrupted work put right, forgetting finished
         └─ workers ─ scheduler ─ doors open … doors close ─ workers end ─ last fact ─ log closed

A client may connect from the second step on; it is served once everything behind the doors is true.
"""

import codecs
import logging
import os
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec
import trio

from daemon import bridge, config, control, decisions, doors, executable, forgetting, readiness, scheduler, starting
from daemon.config import Places
from daemon.ending import SHUTDOWN_SECONDS_MAX
from daemon.errors import AlreadyRunning, BadConfiguration
from daemon.house import House
from daemon.keyring import Keyring
from daemon.ledger import Ledger, RunBlocking
from daemon.post import Post
from daemon.version import VERSION
from daemon.worker import Worker
from eventlog.errors import LogLocked
from eventlog.events import ReplyReceived
from eventlog.history import History
from eventlog.jobs import Job, Stage
from eventlog.log import EventLog, Recovery
from eventlog.values import JobState
from tools import decoder, models, pricing
from tools.errors import FileFailed
from tools.store import Store

IDLE_LOOK_SECONDS = 1.0
FILES_OPEN_MAX = 4096
WARM_UP_SECONDS = 5.0
LAST_ANSWERS_SECONDS_MAX = 3.0  # for what was waited for while the jobs ended; some clients read slowly
HANDOVER_SECONDS_MAX = 600.0  # twice the longest that a picture takes
HANDOVER_LOOK_SECONDS = 0.1
# Python reads a codec when it is first named: of host names, of EXIF, of what other programs have written into files.
CODECS = (
    *("ascii", "latin-1", "cp1252", "unicode_escape", "idna", "punycode"),
    *("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"),
)
PROMPTS_AT_ONCE = 20  # some 10 ms
# Taken apart, stored and put in place. More threads would keep the event loop from its turn: each has Python for 5 ms.
PICTURES_AT_ONCE = 4
LETTER_SECONDS = 0.02  # between some and the next, of a long history
LETTER_AGAIN_SECONDS = 2.0
IDLE_SECONDS_MIN = 2.0  # a bridge that has just started us needs a moment to come in

T = TypeVar("T")
logger = logging.getLogger(__name__)


async def serve(places: Places, *, exit_when_idle: bool, idle_exit_seconds: float, offline_seconds: float) -> None:
    """Runs the daemon until it is told to stop, or has been idle for long enough.

    Raises:
        AlreadyRunning: another daemon serves this home.
        EventLogError: the log cannot be read, or a write failed; the sentence says what to do.
    """
    os.umask(0o077)  # nothing of ours is anybody else's
    os.chdir("/")  # a daemon keeps no folder of a client busy, and no relative path means anything
    _raise_file_limit()
    log = EventLog(places.events, software=VERSION)
    await _lock(log, places)
    with closing(log):
        control_listener = doors.listen(places.run, control.SOCKET_NAME)
        listener = doors.listen(places.run)  # the last: whoever starts a daemon looks whether somebody is here
        async with (
            control_listener,
            listener,
            _house(places, log, idle_exit_seconds, control_listener) as (house, recovery),
        ):
            await house.ledger.record(decisions.start_daemon(VERSION, recovery.torn_bytes))
            await put_right(house.ledger, house.store)
            await forgetting.finish(house)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_listen_to_signals, house)
                # The control API goes on while the jobs end, and tells whoever asks that the daemon is ending.
                async with Post.open(offline_seconds=offline_seconds) as post, control.open_door(control_listener, house):
                    await _work(house, post, listener, exit_when_idle=exit_when_idle)
                nursery.cancel_scope.cancel()
            await house.ledger.record(decisions.stop_daemon(house.ending.reason))
            logger.info("stopped", extra={"reason": house.ending.reason})


def _raise_file_limit() -> None:
    """All doors full take about 500 descriptors, and some systems begin with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OPEN_MAX if hard == resource.RLIM_INFINITY else min(FILES_OPEN_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _lock(log: EventLog, places: Places) -> None:
    """Another daemon that lets nobody in any more is about to end, as soon as its jobs have: it is waited for.

    Raises:
        AlreadyRunning
    """
    give_up_at = trio.current_time() + HANDOVER_SECONDS_MAX
    waited = False
    while True:
        try:
            log.lock()
            return
        except LogLocked as exc:
            if _is_served(places) or trio.current_time() >= give_up_at:
                readiness.notify(config.process_environment(), readiness.SERVED_BY_ANOTHER)
                raise AlreadyRunning(str(exc)) from exc
        if not waited:
            logger.info("another daemon is ending; this one takes its place then")
            waited = True
        await trio.sleep(HANDOVER_LOOK_SECONDS)


def _is_served(places: Places) -> bool:
    try:
        connection = bridge.try_to_connect(str(places.home))
    except bridge.Trouble as exc:
        raise AlreadyRunning(str(exc)) from exc
    if connection is None:
        return False
    connection.close()
    return True


@asynccontextmanager
async def _house(
    places: Places, log: EventLog, idle_exit_seconds: float, control_listener: trio.SocketListener
) -> AsyncIterator[tuple[House, Recovery]]:
    reading = starting.Reading(places.events)
    async with starting.open_door(control_listener, reading):
        index, recovery = await trio.to_thread.run_sync(starting.read, places, log, reading)
    with closing(index), closing(History(places.index)) as history:
        ledger = Ledger(log, index, now=_now, salt=_salt, run_blocking=in_threads(1))
        async with ledger.writing():
            house = House(
                places=places,
                log=log,
                index=index,
                ledger=ledger,
                history=history,
                store=Store.open(places.store),
                keyring=Keyring(),
                now=_now,
                started_at=_now(),
                idle_exit_seconds=idle_exit_seconds,
            )
            yield house, recovery


def _now() -> datetime:
    return datetime.now(UTC)


def _salt() -> str:
    return secrets.token_hex(16)


def in_threads(at_once: int) -> RunBlocking:
    """So many threads of their own: in the shared limiter the log would wait behind picture files."""
    limiter = trio.CapacityLimiter(at_once)

    async def run_blocking(function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=limiter)

    return run_blocking


async def put_right(ledger: Ledger, store: Store) -> None:
    """Attempts that were open when the last daemon died: a reply that was spooled is finished, others are unknown."""
    for job in tuple(ledger.board):
        if job.stage is Stage.ATTEMPTING:
            reply = _spooled(store, job)
            await ledger.record(decisions.recover(job.id, reply))
            logger.info("put right after a crash", extra={"job": job.id, "reply_kept": reply is not None})


def _spooled(store: Store, job: Job) -> ReplyReceived | None:
    """What the worker kept of this job's reply, if it came so far. A damaged file must not keep the daemon from starting."""
    try:
        kept = store.spooled(job.client_request_id)
        return None if kept is None else msgspec.json.decode(kept, type=ReplyReceived)
    except (msgspec.DecodeError, FileFailed) as exc:
        logger.warning("a kept reply cannot be read", extra={"job": job.id, "why": str(exc)})
        return None


async def _work(house: House, post: Post, listener: trio.SocketListener, *, exit_when_idle: bool) -> None:
    worker = Worker(house.ledger, post, house.keyring, house.store, run_blocking=in_threads(PICTURES_AT_ONCE))
    async with trio.open_nursery() as sessions, trio.open_nursery() as workers:
        async with trio.open_nursery() as open_doors:
            open_doors.start_soon(_start_jobs, house, worker, workers)
            open_doors.start_soon(_serve_clients, house, listener, sessions)
            open_doors.start_soon(_warm_up, post)
            open_doors.start_soon(_sweep)
            open_doors.start_soon(_letter, house)
            if exit_when_idle:
                open_doors.start_soon(_leave_when_idle, house)
            readiness.notify(config.process_environment(), readiness.READY)
            logger.info("ready", extra={"home": str(house.places.home), "position": house.ledger.position})
            await house.ending.wait()
            readiness.notify(config.process_environment(), readiness.STOPPING)
            open_doors.cancel_scope.cancel()
        await listener.aclose()  # who comes now starts the next daemon, which waits for us
        house.closing.begin()
        house.ledger.wake()  # who waits for a picture that is not begun any more is told so
        if running := sum(job.state is JobState.RUNNING for job in house.ledger.board):
            logger.info("running jobs have a moment to end", extra={"jobs": running, "seconds": SHUTDOWN_SECONDS_MAX})
        with trio.move_on_after(SHUTDOWN_SECONDS_MAX):
            await _wait_until_none_runs(house)
        sessions.cancel_scope.deadline = trio.current_time() + LAST_ANSWERS_SECONDS_MAX
        workers.cancel_scope.cancel()


async def _start_jobs(house: House, worker: Worker, workers: trio.Nursery) -> None:
    """Until the daemon ends, or makes way: then what runs is finished, and what waits is left to the next daemon."""
    async with trio.open_nursery() as starting:
        starting.start_soon(scheduler.run, house.ledger, house.keyring, worker, workers)
        await house.ending.wait_to_make_way()
        logger.info("making way as soon as nothing runs", extra={"reason": house.ending.reason})
        starting.cancel_scope.cancel()
    with trio.move_on_after(HANDOVER_SECONDS_MAX):
        await _wait_until_none_runs(house)
    house.ending.want(house.ending.reason)


async def _serve_clients(house: House, listener: trio.SocketListener, sessions: trio.Nursery) -> None:
    """Sessions outlast the listening, for their last answers."""
    await trio.serve_listeners(partial(doors.welcome, house=house), [listener], handler_nursery=sessions)


async def _warm_up(post: Post) -> None:
    """A daemon that was started at login has time; one that a client has started is asked before that.

    From then on nothing is read of the program's own files: installers replace them under a daemon that runs.
    """
    await trio.sleep(WARM_UP_SECONDS)
    await doors.load_protocol()
    try:
        await post.call_courier()
    except BadConfiguration as exc:
        logger.warning("nothing can be drawn", extra={"why": str(exc)})
    await trio.to_thread.run_sync(_load_what_is_left)
    logger.info("everything is loaded")


def _load_what_is_left() -> None:
    """What is read, and what libraries import, when a format or a host's name is first met. Blocks."""
    for codec in CODECS:
        codecs.lookup(codec)
    from daemon import offline

    decoder.load()
    offline.load()
    models.catalogue()
    pricing.table()


async def _sweep() -> None:
    """What killed processes of the single-file form have left behind; it may be gigabytes."""
    for place in await trio.to_thread.run_sync(executable.sweep):
        logger.info("swept what was left behind", extra={"path": str(place)})


async def _leave_when_idle(house: House) -> None:
    """Nobody connected and nothing to do for long enough. Jobs that wait for a key do not keep a daemon alive.

    Nor does whoever only looks at it now and then, as those do that watch over daemons; but all else that is asked at the
    control door begins the time anew, and nothing that is being answered is cut off.
    """
    quiet_since = trio.current_time()
    while True:
        if house.sessions > 0 or house.has_work():
            quiet_since = trio.current_time()
        quiet_since = max(quiet_since, house.conversed_at)
        quiet_seconds = trio.current_time() - quiet_since
        if quiet_seconds >= max(IDLE_SECONDS_MIN, house.idle_exit_seconds) and not house.answering:
            house.ending.want(f"idle for {house.idle_exit_seconds:g} s")
            return
        await trio.sleep(IDLE_LOOK_SECONDS)


async def _wait_until_none_runs(house: House) -> None:
    while True:
        seen = house.ledger.position
        running = [job for job in house.ledger.board if job.state is JobState.RUNNING]
        if not any(house.keyring.can_draw(job.account) for job in running):
            return
        await house.ledger.wait_beyond(seen)


async def _letter(house: House) -> None:
    """Lets the search's indexes follow, a little at a time: facts wait while they do."""
    while True:
        seen = house.ledger.position
        if await house.ledger.between_writes(partial(house.index.letter, PROMPTS_AT_ONCE)):
            await trio.sleep(LETTER_SECONDS)
            continue
        await house.ledger.wait_beyond(seen)
        await trio.sleep(LETTER_AGAIN_SECONDS)


async def _listen_to_signals(house: House) -> None:
    """The first signal asks, the second insists: what is unfinished is then found at the next start."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        asked = False
        async for number in received:
            name = signal.Signals(number).name
            if asked:
                logger.warning("leaving at once", extra={"signal": name})
                os._exit(128 + number)
            asked = True
            house.ending.want(name)
