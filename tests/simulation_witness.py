"""What the simulated daemon has promised, and whether it holds after a crash.

Each check is one function whose name says the promise and whose refusal says how it was broken. The witness
believes what it has seen itself - facts as they were acknowledged, replies as they were spooled, requests as
they went out - and holds the log, the views and the store against it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemon.config import Places
from daemon.ledger import Decision, Facts, Ledger, Views
from eventlog.audit import verify
from eventlog.errors import IllegalTransition
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    ReplyReceived,
    WordsForgotten,
)
from eventlog.index import Index
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.segments import Located, Mark, read_log
from eventlog.spending import Spending
from eventlog.values import Caps, JobId, MicroUSD, Picture, Position, Sha256, digest
from tests.eventlog.disks import SimulatedDisk
from tests.simulation_api import Api, Sent, price
from tools.errors import FileFailed
from tools.store import Store

PLACES = Places(Path("/home"))
EVENTS = PLACES.events
CAPS = Caps(month=MicroUSD(7 * price(1)))  # most worlds reach it
ENDINGS = (JobCompleted, JobFailed, JobCancelled, JobInterrupted)


class Violation(AssertionError):
    """A promise was broken."""


def insist(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


class WatchedLedger(Ledger):
    """Tells the witness what it has acknowledged, and where it should stand."""

    def watch(self, witness: "Witness") -> None:
        self._witness = witness

    async def record(self, decide: Decision) -> tuple[Event, ...]:
        position = Position(0)

        def noted(views: Views) -> Facts:
            nonlocal position
            position = Position(self.position + 1)
            return decide(views)

        events = await super().record(noted)
        if events:
            self._witness.acknowledged[position] = events
        return events


class WatchedStore(Store):
    """Tells the witness which replies it has spooled."""

    def watch(self, witness: "Witness") -> None:
        self._witness = witness

    def spool(self, name: str, data: bytes) -> None:
        super().spool(name, data)
        self._witness.spooled[name] = data


@dataclass(frozen=True)
class Recovered:
    """What a recovery has built. `located` is the whole log, `board` and `spending` are that log replayed.

    `forgotten` are the jobs of which a fact says that their words are to be gone, `unfinished` those where the disk refused.
    """

    disk: SimulatedDisk
    ledger: Ledger
    index: Index
    store: Store
    located: tuple[Located, ...]
    board: JobBoard
    spending: Spending
    forgotten: frozenset[JobId]
    unfinished: frozenset[JobId]

    @classmethod
    def read(cls, disk: SimulatedDisk, ledger: Ledger, index: Index, store: Store) -> "Recovered":
        board, spending = JobBoard(), Spending()
        located = tuple(read_log(EVENTS, None, disk))
        for commit, _, _ in located:
            try:
                board.apply(commit)
                spending.apply(commit)
            except IllegalTransition as exc:
                raise Violation(f"commit {commit.position} does not follow: {exc}") from exc
        events = (event for one in located for event in one.commit.events)
        forgotten = frozenset(event.job for event in events if isinstance(event, WordsForgotten))
        unfinished = frozenset(event.job for event in index.forgetting())
        return cls(disk, ledger, index, store, located, board, spending, forgotten, unfinished)

    def facts(self) -> list[tuple[Position, Event]]:
        return [(one.commit.position, event) for one in self.located for event in one.commit.events]


class Witness:
    """`acknowledged` are commits that `record` returned, `spooled` the replies that the store said were durable."""

    def __init__(self) -> None:
        self.acknowledged: dict[Position, tuple[Event, ...]] = {}
        self.spooled: dict[str, bytes] = {}
        self.api = Api(self.look_at_request)
        self.over: tuple[Job, ...] = ()
        self._seen: tuple[Mark, ...] = ()
        self._spending: Callable[[], Spending] = Spending

    def spend_by(self, ledger: Ledger) -> None:
        self._spending = lambda: ledger.spending

    def look_at_request(self, sent: Sent) -> None:
        """As it leaves."""
        insist(sent.id not in {before.id for before in self.api.sent}, f"{sent.id} was sent twice")
        job = _job_of(sent)
        for before in self.api.sent:
            insist(_job_of(before) != job or not before.billed, f"{before.id} may be billed, and {sent.id} asks again unbidden")
        self._no_budget_can_be_exceeded(sent)

    def _no_budget_can_be_exceeded(self, sent: Sent) -> None:
        """All that may be billed is reserved before it is asked for; and with what was ever billed it fits under the cap."""
        billed = sum(before.billed for before in self.api.sent) + sent.billed
        insist(CAPS.month is not None and billed <= CAPS.month, f"{sent.id} exceeds the budget: {billed} may be billed by now")
        under_way = sum(before.billed for before in self.api.sent if before.under_way) + sent.billed
        reserved = self._spending().reserved
        insist(reserved >= under_way, f"{sent.id} leaves with {reserved} reserved, and {under_way} may be billed")

    def inspect(self, found: Recovered) -> None:
        """After a recovery, before anything new is begun."""
        self._acknowledged_facts_are_present(found)
        self._what_a_log_has_shown_stays(found)
        self._the_log_verifies(found)
        self._requests_follow_durable_facts(found)
        self._replies_are_obtainable(found)
        self._spooled_replies_are_in_the_log(found)
        self._facts_name_files_that_are_there(found)
        self._what_is_forgotten_is_gone(found)
        self._no_job_is_in_two_states(found)
        self._views_are_the_log_replayed(found)
        self._reservations_cover_what_is_billed(found)
        self.over = tuple(job for job in found.board if job.state.is_over)

    def _acknowledged_facts_are_present(self, found: Recovered) -> None:
        for position, events in self.acknowledged.items():
            insist(position <= len(found.located), f"commit {position} was acknowledged and is lost")
            there = found.located[position - 1].commit.events
            insist(there == events, f"commit {position} was acknowledged with other facts")
        self.acknowledged = {}  # from here on `_what_a_log_has_shown_stays` has them, by their hashes

    def _what_a_log_has_shown_stays(self, found: Recovered) -> None:
        marks = tuple(one.mark for one in found.located)
        insist(marks[: len(self._seen)] == self._seen, "the log has lost or changed what an earlier recovery has shown")
        self._seen = marks

    def _the_log_verifies(self, found: Recovered) -> None:
        verified = verify(EVENTS, found.disk)
        insist(verified.fault is None, f"the log does not verify: {verified.fault}")
        insist(verified.unfinished_bytes == 0, f"{verified.unfinished_bytes} bytes follow the log's end after a recovery")

    def _requests_follow_durable_facts(self, found: Recovered) -> None:
        started = {event.client_request_id: event for _, event in found.facts() if isinstance(event, AttemptStarted)}
        insist(len(self.api.sent) <= len(started), f"{len(self.api.sent)} requests follow {len(started)} AttemptStarted")
        for sent in self.api.sent:
            insist(sent.id in started, f"{sent.id} was sent, and no durable fact says so")
            insist(started[sent.id].body_sha256 == sent.body, f"{sent.id} was sent with another body than the log says")

    def _replies_are_obtainable(self, found: Recovered) -> None:
        drawn = {sent.id: sent.drawn for sent in self.api.sent}
        for _, event in found.facts():
            if isinstance(event, ReplyReceived):
                job = self._job(found, event.job)
                insist(job.pictures == event.pictures, f"{event.job} does not show the pictures of its reply")
                digests = tuple(picture.sha256 for picture in job.pictures)
                insist(digests == drawn[job.client_request_id], f"{event.job} shows other pictures than it was sent")
                if event.job not in found.forgotten:
                    _insist_on_pictures(found.store, event.pictures, f"the reply of {event.job}")

    def _spooled_replies_are_in_the_log(self, found: Recovered) -> None:
        received = {(event.job, event.attempt) for _, event in found.facts() if isinstance(event, ReplyReceived)}
        for name, data in self.spooled.items():
            reply = msgspec.json.decode(data, type=ReplyReceived)
            insist((reply.job, reply.attempt) in received, f"the reply {name} was spooled, and its job does not have it")
        self.spooled = {}  # from here on the log has them

    def _facts_name_files_that_are_there(self, found: Recovered) -> None:
        """Forgetting a job takes nothing from the others, even where it is the same picture."""
        for one in found.located:
            for event in one.commit.events:
                match event:
                    case JobRequested() if event.job not in found.forgotten:
                        _insist_on_pictures(found.store, event.request.sources, f"the order of {event.job}")
                    case AttemptFailed(kept=kept) if kept is not None and event.job not in found.forgotten:
                        _insist_on_blob(found.store, kept.sha256, f"the failure of {event.job}")
                    case JobCompleted() if event.job not in found.forgotten:
                        paths = one.commit.words.paths if one.commit.words else ()
                        for image, path in zip(event.images, paths, strict=True):
                            data = found.disk.content_of(Path(path))
                            insist(data is not None, f"{event.job} is completed, and {path} is not there")
                            insist(digest(data or b"") == image.sha256, f"{event.job} is completed, and {path} is something else")

    def _what_is_forgotten_is_gone(self, found: Recovered) -> None:
        files = {name: found.disk.content_of(EVENTS / name) or b"" for name in found.disk.names_in(EVENTS)}
        files["the index"] = found.index._db.serialize()
        for job in found.forgotten - found.unfinished:
            for name, data in files.items():
                insist(secret_of(job).encode() not in data, f"the words of {job} are forgotten, and stand in {name}")

    def _no_job_is_in_two_states(self, found: Recovered) -> None:
        endings = Counter(event.job for _, event in found.facts() if isinstance(event, ENDINGS))
        for job, count in endings.items():
            insist(count == 1, f"{job} ended {count} times")

    def _views_are_the_log_replayed(self, found: Recovered) -> None:
        insist(_live(found.ledger.board) == _live(found.board), "the board is not the log replayed")
        insist(found.ledger.spending == found.spending, "the spending is not the log replayed")
        rows = {body.id: body for body in _rows(found.index)}
        insist(rows == {job.id: job for job in found.board}, "the index is not the log replayed")

    def _reservations_cover_what_is_billed(self, found: Recovered) -> None:
        """Job by job: what OpenAI has billed is settled, suspected or still reserved."""
        settled: Counter[JobId] = Counter()
        for _, event in found.facts():
            if isinstance(event, ReplyReceived | AttemptFailed | JobResolved) and event.cost is not None:
                settled[event.job] += event.cost.amount or 0
        billed: Counter[JobId] = Counter()
        for sent in self.api.sent:
            billed[_job_of(sent)] += sent.billed
        for job_id, amount in billed.items():
            job = self._job(found, job_id)
            open_ = _reserved_for(job)
            suspected = sum(doubt.high or 0 for doubt in found.spending.suspicions.get(job_id, ()))
            covered = settled[job_id] + suspected + open_
            insist(covered >= amount, f"{job_id} was billed {amount}, of which {covered} are settled, suspected or reserved")
        in_sum = sum(amounts.settled for _, amounts in found.spending.rows())
        insist(in_sum == sum(settled.values()), f"{in_sum} are settled in all, where the facts add up to {sum(settled.values())}")
        doubts = sum(doubt.high or 0 for all_of_it in found.spending.suspicions.values() for doubt in all_of_it)
        possibly = sum(amounts.possibly_billed for _, amounts in found.spending.rows())
        insist(possibly == doubts, f"{possibly} are possibly billed in all, where single doubts add up to {doubts}")
        reserved = sum(map(_reserved_for, found.board))
        insist(found.spending.reserved == reserved, f"{found.spending.reserved} are reserved, where the jobs want {reserved}")

    def _job(self, found: Recovered, job_id: JobId) -> Job:
        job = found.board.get(job_id)
        if job is None:
            raise Violation(f"{job_id} is not in the log")
        return job


def secret_of(job: JobId) -> str:
    """Its prompt, which stands nowhere else."""
    return f"secret<{job}>"


def _job_of(sent: Sent) -> JobId:
    return JobId(sent.id.removeprefix("imaged-").rpartition("-")[0])


def _reserved_for(job: Job) -> int:
    """Until it is answered, or over; an offline picture costs nothing."""
    waits = not job.state.is_over and job.stage is not Stage.REPLIED
    return (job.estimate.high or 0) if waits and job.account.backend == "openai" else 0


def _live(board: JobBoard) -> dict[JobId, Job]:
    return {job.id: job for job in board if not job.state.is_over}


def _rows(index: Index) -> list[Job]:
    return [msgspec.json.decode(body, type=Job) for (body,) in index._db.execute("SELECT body FROM job")]


def _insist_on_pictures(store: Store, pictures: Sequence[Picture], of: str) -> None:
    for picture in pictures:
        _insist_on_blob(store, picture.sha256, of)


def _insist_on_blob(store: Store, sha256: Sha256, of: str) -> None:
    try:
        store.get(sha256)
    except FileFailed as exc:
        raise Violation(f"{of} names a picture that cannot be had: {exc}") from exc
