"""Reads the log and believes nothing: verification, and the story of a job. Beside a running daemon or on a copy."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from eventlog.disk import Disk
from eventlog.errors import IllegalTransition, LogCorrupt, LogTooNew
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    DaemonStarted,
    DaemonStopped,
    FactOfJob,
    FactOfOver,
    HistoryImported,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    JobStarted,
    LaterEvent,
    LogArchived,
    PartialReceived,
    ReplyReceived,
    WordsForgotten,
)
from eventlog.jobs import JobBoard
from eventlog.segments import START, Located, Mark, Scan, beginning, mark_of, read_log, segment_name, segment_starts
from eventlog.spending import Spending
from eventlog.stub import Stub
from eventlog.values import CostRange, JobId, MicroUSD, Position, Sha256, Words

PROMPT_SHOWN_MAX = 200
IDEOGRAPHIC_SPACE = "\u3000"  # between Japanese words; Python does not call it printable


class Fault(NamedTuple):
    position: int
    offset: int
    sentence: str


class Told(NamedTuple):
    """One fact in words. `job` is None for what the daemon itself did, `at` where it is no fact but how things stood."""

    position: Position
    at: datetime | None
    job: JobId | None
    text: str


class Forgetting(NamedTuple):
    """Words that a fact says are forgotten. `standing` are commits that have them still: that is unfinished."""

    job: JobId
    position: Position
    at: datetime
    words: int
    standing: tuple[Position, ...]


class Verification(NamedTuple):
    """`fault` is the first one found; what stands before it is sound.

    `mark` is the last commit that was read; those up to `archived` were moved out, and only their stub was read.
    `unfinished_bytes` follow the last sound line: a write under way, or
    the torn end that the next start sets aside.
    """

    commits: int
    segments: int
    mark: Mark
    unfinished_bytes: int
    fault: Fault | None
    forgotten: tuple[Forgetting, ...] = ()
    archived: Position = Position(0)

    @property
    def head(self) -> Position:
        return self.mark.position

    @property
    def head_hash(self) -> Sha256:
        return self.mark.hash


def verify(directory: Path, disk: Disk | None = None) -> Verification:
    """Every hash, every link of the chain, every word against its digest, every transition of every job.

    Raises:
        OSError: there is no log at `directory`, or the disk cannot be read.
    """
    disk = disk or Disk()
    descriptor = disk.open_directory(directory)
    try:
        segments = segment_starts(disk.names(descriptor))
        scan = Scan(disk, descriptor, segments, None)
        words, stub = _SpokenWords(), _ArchivedBefore()
        mark, fault = _follow(scan, words, stub)
        unfinished = 0
        if fault is None and segments:
            unfinished = max(0, segments[-1] + _size(disk, descriptor, segments[-1]) - scan.end)
    finally:
        disk.close(descriptor)
    return Verification(mark.position, len(segments), mark, unfinished, fault, tuple(words.forgotten), stub.up_to)


class _SpokenWords:
    """Which words stand and which are gone: the fact that says why stands behind them."""

    def __init__(self) -> None:
        self.forgotten: list[Forgetting] = []
        self._stand = bytearray(1)  # by position; a set of a million numbers would be seventy times as large
        self._gone: dict[Position, Mark] = {}
        self._archived: dict[JobId, Mark] = {}  # jobs without the words that they had

    def begin_with(self, stub: Stub) -> None:
        self._stand = bytearray(stub.head.position + 1)
        self._archived = {one.job.id: mark_of(stub) for one in stub.kept() if one.words_gone}

    def follow(self, found: Located) -> None:
        commit, mark, gone = found
        self._stand.append(commit.words is not None)
        if gone:
            self._gone[mark.position] = mark
        for event in commit.events:
            if isinstance(event, WordsForgotten):
                known = [position for position in event.positions if 0 < position < len(self._stand)]
                standing = tuple(position for position in known if self._stand[position])
                self.forgotten.append(Forgetting(event.job, commit.position, commit.at, len(event.positions), standing))
                for position in known:
                    self._gone.pop(position, None)
                self._archived.pop(event.job, None)

    def fault(self) -> Fault | None:
        for mark in self._gone.values():
            return Fault(mark.position, mark.offset, f"the words of commit {mark.position} are gone, and no fact says why")
        for job, mark in self._archived.items():
            return Fault(mark.position, mark.offset, f"the words of job {job}, archived, are gone, and no fact says why")
        return None


class _ArchivedBefore:
    """The stub that the log begins with, if it does, and whether the log itself speaks of it."""

    def __init__(self) -> None:
        self.up_to = Position(0)
        self._wanted: tuple[Position, Sha256, int, Sha256] | None = None

    def begin_with(self, stub: Stub) -> None:
        self.up_to = stub.head.position
        self._wanted = (stub.head.position, stub.head.hash, stub.head.end, stub.hash())

    def follow(self, commit: Commit) -> None:
        for event in commit.events:
            if isinstance(event, LogArchived) and (event.up_to, event.hash, event.offset, event.stub) == self._wanted:
                self._wanted = None

    def fault(self) -> Fault | None:
        if self._wanted is None:
            return None
        position, _, end, _ = self._wanted
        return Fault(position, end, f"the stub that stands for commits 1 to {position} is not the one that the log speaks of")


def _follow(scan: Scan, words: _SpokenWords, before: _ArchivedBefore) -> tuple[Mark, Fault | None]:
    board, spending = JobBoard(), Spending()
    mark = START
    try:
        if (stub := scan.stub()) is not None:
            live, mark = stub.live(), mark_of(stub)
            board, spending = JobBoard(live), stub.spending(live)
            words.begin_with(stub)
            before.begin_with(stub)
        for found in scan:
            commit, mark, _ = found.located
            words.follow(found.located)
            before.follow(commit)
            board.apply(commit)
            spending.apply(commit)
            board.drop_over(commit.position)
    except IllegalTransition as exc:
        return mark, Fault(mark.position, mark.offset, str(exc))
    except LogCorrupt as exc:
        return mark, Fault(exc.position, exc.offset, str(exc))
    except LogTooNew as exc:
        return mark, Fault(mark.position + 1, scan.end, str(exc))
    return mark, before.fault() or words.fault()


def _size(disk: Disk, directory: int, segment: int) -> int:
    descriptor = disk.open(directory, segment_name(segment))
    try:
        return disk.size(descriptor)
    finally:
        disk.close(descriptor)


def commits(directory: Path, until: Position | datetime | None = None) -> Iterator[Located]:
    """Every commit that is in the log, up to and with a position, or before the first one that is later than a time; None: all
    of them.

    Raises:
        LogCorrupt, LogTooNew
    """
    for one in read_log(directory, None):
        if until is not None and (one.commit.at > until if isinstance(until, datetime) else one.mark.position > until):
            return
        yield one


def narrate(directory: Path, job: JobId | None = None, until: Position | datetime | None = None) -> Iterator[str]:
    """One line for each fact of one job, or of all of them and of the daemon that drew them, in the order of the log.

    Raises:
        LogCorrupt, LogTooNew
    """
    for told in tell(directory, until):
        if job in (None, told.job):
            yield line(told, whose=job is None)


def tell(directory: Path, until: Position | datetime | None = None) -> Iterator[Told]:
    """What `narrate` says of all jobs, in its parts; harmless in a terminal.

    Raises:
        LogCorrupt, LogTooNew
    """
    with beginning(directory) as stub:
        if stub is not None:
            head = stub.head
            yield Told(head.position, head.at, None, f"what stands up to here is archived: {head.jobs:,} jobs")
    for commit, _, _ in commits(directory, until):
        for event in commit.events:
            if isinstance(event, LogArchived):
                yield Told(commit.position, commit.at, None, f"commits 1 to {event.up_to} were archived")
            elif isinstance(event, FactOfJob | FactOfOver):
                yield Told(commit.position, commit.at, event.job, harmless(_told(event, commit)))
            elif isinstance(event, DaemonStarted):
                yield Told(commit.position, commit.at, None, harmless(f"imaged {event.software} started"))
            elif isinstance(event, DaemonStopped):
                yield Told(commit.position, commit.at, None, harmless(f"imaged stopped: {event.reason}"))


def line(told: Told, *, whose: bool) -> str:
    """`whose` names the job, where there is one."""
    if told.at is None:
        return harmless(told.text)
    at = told.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    job = f"{told.job} " if whose and told.job else ""
    return harmless(f"{at} #{told.position} {job}{told.text}")


def _told(event: JobEvent | LaterEvent, commit: Commit) -> str:
    words = commit.words or Words(salt="")
    match event:
        case HistoryImported(images=images):
            found = sum(image is not None for image in images)
            return (
                f"imported from {event.source}, which dates it {event.created_at:%Y-%m-%d %H:%M:%S} UTC: "
                f"{event.request.model}, {found} of {len(images)} files found; “{visible(words.prompt)}”"
            )
        case JobRequested(retry_of=earlier) if event.kept:
            count = len(event.kept)
            pictures = "1 picture" if count == 1 else f"{count} pictures"
            return f"requested by {event.client.name}: {pictures} of job {earlier} to be put in place; “{visible(words.prompt)}”"
        case JobRequested(request=r):
            pictures = "1 picture" if r.count == 1 else f"{r.count} pictures"
            return (
                f"requested by {event.client.name}: {pictures}, {r.model}, {r.size}, {r.quality}, {r.output_format}; "
                f"estimate {_range(event.estimate)}; “{visible(words.prompt)}”"
            )
        case JobStarted():
            return "started"
        case AttemptStarted():
            return f"attempt {event.attempt} started, as {event.client_request_id}; body {event.body_sha256[:16]}…"
        case AttemptFailed():
            return f"attempt {event.attempt} failed: {event.code}, billed: {event.billed}; {visible(words.message)}"
        case PartialReceived():
            return f"preview {event.index + 1} of an unfinished picture is in the store"
        case ReplyReceived():
            cost = f"{_money(event.cost.amount)} ({event.cost.basis})"
            return f"reply received: {len(event.pictures)} in the store, cost {cost}"
        case JobCompleted():
            return "completed: " + ", ".join(visible(path) for path in words.paths)
        case JobFailed():
            return f"failed: {event.code}, billed: {event.billed}; {visible(words.message)}"
        case JobCancelRequested():
            return "somebody asked to cancel it"
        case JobCancelled():
            return f"cancelled, billed: {event.billed}"
        case JobInterrupted():
            return f"interrupted: {event.code}; {visible(words.message)}"
        case JobResolved():
            cost = "" if event.cost is None else f", cost {_money(event.cost.amount)} ({event.cost.basis})"
            return f"resolved by {event.client.name}: billed: {event.billed}{cost}"
        case WordsForgotten():
            return f"forgotten: the words of {len(event.positions)} commits"


def _range(estimate: CostRange) -> str:
    if estimate.low == estimate.high:
        return _money(estimate.high)
    return f"{_money(estimate.low)} to {_money(estimate.high)}"


def _money(amount: MicroUSD | None) -> str:
    if amount is None:
        return "unknown"
    fraction = f"{amount % 1_000_000:06}".rstrip("0").ljust(2, "0")
    return f"${amount // 1_000_000}.{fraction}"


def visible(text: str | None) -> str:
    """Text from outside, short and harmless in a terminal."""
    if text is None:
        return "(forgotten)"
    return harmless(text[:PROMPT_SHOWN_MAX]) + ("…" if len(text) > PROMPT_SHOWN_MAX else "")


def harmless(text: str) -> str:
    """What would act instead of print - control, bidi and tag characters - is shown as its code point."""
    return "".join(c if c.isprintable() or c == IDEOGRAPHIC_SPACE else f"\\u{{{ord(c):x}}}" for c in text)
