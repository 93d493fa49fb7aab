"""What a home can prove: verification, replay to a moment, export, rebuilt requests, seals. For the command line.

Rule: nothing here takes a lock or changes a file of the home, so all of it works beside a running daemon and on a
copy. Plain blocking functions that return values; nothing prints.
"""

import csv
import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import msgspec

from daemon import audit_page, results
from daemon.audit_page import Generation
from daemon.audit_request import request_of
from daemon.config import Places
from daemon.errors import Refused
from eventlog import audit
from eventlog.audit import Fault, Forgetting, Told
from eventlog.disk import Disk
from eventlog.errors import EventLogError
from eventlog.events import Event, FactOfJob, HistoryImported, JobCompleted
from eventlog.forgetting import stored_by
from eventlog.history import History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.segments import Located
from eventlog.values import JobId, JobState, MicroUSD, Position, Sha256, Words
from tools import decoder, old_history, pricing
from tools.errors import FileFailed
from tools.files import Store
from tools.pictures import BadPicture

__all__ = ["export", "history_as_of", "paced", "replay", "request_of", "seal", "verify"]

FOLD_COMMITS = 1000
PAGE_JOBS = 200
PAUSE_SECONDS_MAX = 5.0  # of a story that is told in time: a night in which nothing was drawn does not take a night
GENERATIONS_TOLD_MAX = 20
THUMBNAIL_EDGE_PX = 192  # some 6 kB each: a page with a thousand of them stays below 10 MB
THUMBNAIL_QUALITY = 60
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # spreadsheets would calculate it

Until = Position | datetime | None
Kind = Literal["html", "jsonl", "csv"]
FileState = Literal["unchanged", "changed", "gone"]


class Seal(msgspec.Struct, frozen=True):
    """Kept elsewhere, it proves later that the log was not shortened or rewritten. `at` is the time of that commit."""

    position: Position
    head_hash: Sha256
    at: datetime


class BlobFinding(msgspec.Struct, frozen=True):
    """What commit `position` put into the store, and why it is not there as it was."""

    position: Position
    job: JobId
    sha256: Sha256
    sentence: str


class FileFinding(msgspec.Struct, frozen=True):
    """A file that commit `position` says was saved. It is its owner's to change or remove, so this is no fault."""

    position: Position
    job: JobId
    path: str
    state: FileState


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`fault` is the first one of the chain, with its position and byte; `broken_seal` says why the seal does not hold.

    `files` are those that are not as they were saved; `forgotten` what was removed, when, and what is not gone yet.
    """

    commits: int
    segments: int
    head_hash: Sha256
    unfinished_bytes: int
    fault: Fault | None
    forgotten: tuple[Forgetting, ...]
    broken_seal: str
    blobs_checked: int
    blobs: tuple[BlobFinding, ...]
    files_unchanged: int
    files: tuple[FileFinding, ...]

    @property
    def is_sound(self) -> bool:
        return self.fault is None and not self.broken_seal and not self.blobs


class Exported(NamedTuple):
    generations: int
    head: Position


def verify(home: Path, against: Seal | None = None) -> Verdict:
    """Every hash, transition, blob and saved file. After a fault of the chain, what stands before it.

    Raises:
        Refused: there is no log.
        OSError: the disk cannot be read.
    """
    places = _places(home)
    found = audit.verify(places.events)
    forgotten = {one.job for one in found.forgotten}
    blobs: dict[Sha256, tuple[Position, JobId]] = {}
    files: list[FileFinding] = []
    sealed: Sha256 | None = None
    for commit, mark, _ in _sound_commits(places.events, found.head):
        if against is not None and mark.position == against.position:
            sealed = mark.hash
        for event in commit.events:
            if not isinstance(event, FactOfJob):
                continue
            files += _files(event, commit.words or Words(salt=""), commit.position)
            if event.job not in forgotten:
                for sha256 in stored_by(event):
                    blobs.setdefault(sha256, (commit.position, event.job))
    damaged = tuple(_damaged_blobs(Store(places.store, Disk()), blobs))
    return Verdict(
        commits=found.commits,
        segments=found.segments,
        head_hash=found.head_hash,
        unfinished_bytes=found.unfinished_bytes,
        fault=found.fault,
        forgotten=found.forgotten,
        broken_seal="" if against is None else _broken_seal(against, sealed, found.head),
        blobs_checked=len(blobs),
        blobs=damaged,
        files_unchanged=sum(one.state == "unchanged" for one in files),
        files=tuple(one for one in files if one.state != "unchanged"),
    )


def seal(home: Path) -> Seal:
    """The head of a sound log.

    Raises:
        Refused: there is no log, or it is not sound.
    """
    places = _places(home)
    found = audit.verify(places.events)
    if found.fault is not None:
        raise Refused(f"The log is not sound, so it is not sealed: {found.fault.sentence}", code="log_damaged")
    at = None
    for commit, _, _ in _sound_commits(places.events, found.head):
        at = commit.at
    if at is None:
        raise Refused(f"The log in {places.events} is empty; there is nothing to seal.", code="no_log")
    return Seal(found.head, found.head_hash, at)


def replay(home: Path, until: Until = None) -> Iterator[Told]:
    """Every generation as it happened, fact by fact, and then how things stood at that moment.

    Raises:
        Refused: there is no log.
        EventLogError: it is damaged or too new; what was told before stands.
    """
    yield from audit.tell(_places(home).events, until)
    with _views_as_of(home, until) as (index, history):
        counts = [(state.value, history.jobs(JobQuery(limit=1, state=state)).total) for state in JobState]
        told = ", ".join(f"{count} {state}" for state, count in counts if count) or "none"
        settled = sum(amounts.settled for _, amounts in index.spending.rows())
        suspected = sum(amounts.possibly_billed for _, amounts in index.spending.rows())
        money = f"{pricing.show(MicroUSD(settled))} spent, {pricing.show(MicroUSD(suspected))} possibly billed besides."
        yield Told(index.reached, None, None, f"As of commit {index.reached}: jobs: {told}; {money}")
        for state in JobState:
            page = history.jobs(JobQuery(limit=GENERATIONS_TOLD_MAX, state=state))
            for job in page.jobs:
                yield Told(index.reached, None, job.id, f"  {state.value}: {job.id} {audit.visible(job.prompt)}")
            if page.total > len(page.jobs):
                yield Told(index.reached, None, None, f"  {state.value}: and {page.total - len(page.jobs):,} older ones")


def paced(
    story: Iterable[Told],
    speed: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Told]:
    """The same story with the pauses between its facts as they were, divided by `speed`, none over PAUSE_SECONDS_MAX.

    What the reader of a fact takes for it counts as part of the pause behind it. A clock that went back makes no pause.
    """
    earlier: datetime | None = None
    told_at = now()
    for told in story:
        if earlier is not None and told.at is not None:
            pause = min((told.at - earlier).total_seconds() / speed, PAUSE_SECONDS_MAX)
            sleep(max(0.0, told_at + pause - now()))
        earlier, told_at = told.at, now()
        yield told


@contextmanager
def history_as_of(home: Path, until: Until = None) -> Iterator[History]:
    """Answers every question as it would have been answered then; folded anew from the log into a temporary folder.

    What was forgotten since then is forgotten in it, too.

    Raises:
        Refused: there is no log.
        EventLogError: it is damaged before that moment, or too new.
    """
    with _views_as_of(home, until) as (_, history):
        yield history


def export(home: Path, kind: Kind, out: BinaryIO) -> Exported:
    """Every job, newest first, as the log tells it; a job that is being drawn as it stands now. HTML and JSON Lines with
    thumbnails.

    Raises:
        Refused: there is no log.
        EventLogError: it is damaged or too new.
        OSError: `out` cannot be written.
    """
    places = _places(home)
    store = Store(places.store, Disk())
    with _views_as_of(home, None) as (index, history):
        total = history.jobs(JobQuery(limit=1)).total
        rows = (_generation(job, store, with_thumbnails=kind != "csv") for job in _all_jobs(history))
        match kind:
            case "html":
                pieces = audit_page.pieces(rows, total, index.reached, index.mark.hash if index.mark else "")
            case "jsonl":
                pieces = (msgspec.json.encode(row) + b"\n" for row in rows)
            case "csv":
                pieces = _csv(rows)
        for piece in pieces:
            out.write(piece)
        return Exported(total, index.reached)


def _places(home: Path) -> Places:
    places = Places(home)
    if not any(places.events.glob("*.jsonl")):
        raise Refused(f"There is no event log in {places.events}; name the home of an imaged, or a copy of one.", code="no_log")
    return places


def _sound_commits(events: Path, head: Position) -> Iterator[Located]:
    """Those that were found sound; a daemon may have written more since, or the fault may stand behind them."""
    try:
        yield from audit.commits(events, head)
    except EventLogError:
        return


def _broken_seal(against: Seal, found: Sha256 | None, head: Position) -> str:
    if found == against.head_hash:
        return ""
    if found is None:
        return f"The log ends at commit {head}, but commit {against.position} was sealed: what followed was cut off."
    return f"Commit {against.position} is not the one that was sealed: the log was written anew up to there, or is another."


def _damaged_blobs(store: Store, blobs: dict[Sha256, tuple[Position, JobId]]) -> Iterator[BlobFinding]:
    for sha256, (position, job) in blobs.items():
        try:
            store.get(sha256)
        except FileFailed as exc:
            yield BlobFinding(position, job, sha256, str(exc))


def _files(event: Event, words: Words, position: Position) -> Iterator[FileFinding]:
    if isinstance(event, JobCompleted | HistoryImported):
        for image, path in zip(event.images, words.paths, strict=False):
            if image is not None:
                yield FileFinding(position, event.job, path, _state(path, image.sha256))


def _state(path: str, sha256: Sha256) -> FileState:
    try:
        with Path(path).open("rb") as file:
            return "unchanged" if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else "changed"
    except FileNotFoundError:
        return "gone"
    except (OSError, ValueError):  # a folder, or nothing that may be read: not what was saved
        return "changed"


@contextmanager
def _views_as_of(home: Path, until: Until) -> Iterator[tuple[Index, History]]:
    places = _places(home)
    with tempfile.TemporaryDirectory(prefix="imaged-replay-") as folder:
        path = Path(folder) / "index.sqlite"
        with closing(Index.open(path)) as index:
            with index.in_bulk():
                pending: list[Located] = []
                for one in audit.commits(places.events, until):
                    pending.append(one)
                    if len(pending) >= FOLD_COMMITS:
                        index.fold(pending)
                        pending = []
                index.fold(pending)
            with closing(History(path)) as history:
                yield index, history


def _all_jobs(history: History) -> Iterator[Job]:
    offset = 0
    while page := history.jobs(JobQuery(limit=PAGE_JOBS, offset=offset)).jobs:
        yield from page
        offset += len(page)


def _generation(job: Job, store: Store, *, with_thumbnails: bool) -> Generation:
    return Generation(
        report=results.report(job),
        positions=(job.requested_position, job.position),
        forgotten_at=None if job.forgotten_at is None else results.time(job.forgotten_at),
        thumbnails=tuple(_thumbnail(job, number, store) for number in range(len(job.images))) if with_thumbnails else (),
    )


def _thumbnail(job: Job, number: int, store: Store) -> bytes:
    image = job.images[number]
    try:
        if job.imported and image.path is not None:
            data = old_history.unchanged(image.path, image.sha256)
        else:
            data = store.get(image.original)
        return decoder.preview(data, (THUMBNAIL_EDGE_PX,), THUMBNAIL_QUALITY, bytes_max=len(data))[0]
    except (FileFailed, BadPicture):
        return b""


_COLUMNS = [  # line by line those of `_cells`
    *("job_id", "state", "tool", "created_at", "updated_at", "prompt", "model", "size"),
    *("quality", "output_format", "background", "images"),
    *("files", "sha256", "original_sha256", "sources"),
    *("client", "key_fingerprint", "backend", "billed", "cost_usd", "cost_basis"),
    *("input_tokens", "output_tokens", "total_tokens"),
    *("attempts", "openai_request_id", "error_code", "error", "imported", "forgotten_at"),
    *("requested_at_commit", "changed_at_commit"),
]


def _csv(rows: Iterator[Generation]) -> Iterator[bytes]:
    """With a byte order mark, without which spreadsheets spoil every letter that is not ASCII."""
    yield b"\xef\xbb\xbf" + _csv_line(_COLUMNS)
    for row in rows:
        yield _csv_line([_harmless_cell(cell) for cell in _cells(row)])


def _cells(row: Generation) -> list[str | int | None]:
    told, usage = row.report, row.report.usage
    return [
        *(told.job_id, told.state, told.tool, told.created_at, told.updated_at, told.prompt, told.model, told.size),
        *(told.quality, told.output_format, told.background, told.image_count),
        *(
            " ".join(part or "(forgotten)" for part in parts)
            for parts in (
                [image.path for image in told.images],
                [image.sha256 for image in told.images],
                [image.original_sha256 for image in told.images],
                [source.sha256 for source in told.sources],
            )
        ),
        *(told.client, told.key_fingerprint, told.backend, told.billed, _dollars(told.cost.micro_usd), told.cost.basis),
        *((None, None, None) if usage is None else (usage.input_tokens, usage.output_tokens, usage.total_tokens)),
        *(told.attempts, told.openai_request_id, told.error_code, told.error, told.imported, row.forgotten_at),
        *row.positions,
    ]


def _dollars(micro_usd: int | None) -> str | None:
    return None if micro_usd is None else f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06}"


def _harmless_cell(cell: str | int | None) -> str | int | None:
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(FORMULA_STARTS) else cell


def _csv_line(cells: list[str | int | None] | list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode("utf-8", "replace")
