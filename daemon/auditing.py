"""What a home can tell of any moment: replay, export, rebuilt requests. For the command line.

Rule: nothing here takes a lock or changes a file of the home, so all of it works beside a running daemon and on a
copy. Plain blocking functions that return values; nothing prints.
"""

import csv
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
from daemon.errors import Refused
from daemon.retention import places_of
from eventlog import audit
from eventlog.audit import Told
from eventlog.disk import Disk
from eventlog.history import History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.segments import Located, beginning
from eventlog.stub import Head
from eventlog.values import JobState, MicroUSD, Position
from tools import decoder, old_history, pricing
from tools.errors import FileFailed
from tools.pictures import BadPicture
from tools.store import Store

__all__ = ["export", "history_as_of", "paced", "replay", "request_of"]

FOLD_COMMITS = 1000
PAGE_JOBS = 200
PAUSE_SECONDS_MAX = 5.0  # of a story that is told in time: a night in which nothing was drawn does not take a night
GENERATIONS_TOLD_MAX = 20
THUMBNAIL_EDGE_PX = 192  # some 6 kB each: a page with a thousand of them stays below 10 MB
THUMBNAIL_QUALITY = 60
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # spreadsheets would calculate it

Until = Position | datetime | None
Kind = Literal["html", "jsonl", "csv"]


class Exported(NamedTuple):
    generations: int
    head: Position


def replay(home: Path, until: Until = None) -> Iterator[Told]:
    """Every generation as it happened, fact by fact, and then how things stood at that moment.

    Raises:
        Refused: there is no log.
        EventLogError: it is damaged or too new; what was told before stands.
    """
    yield from audit.tell(places_of(home).events, until)
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
    places = places_of(home)
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


@contextmanager
def _views_as_of(home: Path, until: Until) -> Iterator[tuple[Index, History]]:
    places = places_of(home)
    with tempfile.TemporaryDirectory(prefix="imaged-replay-") as folder:
        path = Path(folder) / "index.sqlite"
        with closing(Index.open(path)) as index:
            with index.in_bulk():
                with beginning(places.events) as stub:
                    if stub is not None:
                        _insist_on_not_archived(stub.head, until)
                        index.restore(stub)
                pending: list[Located] = []
                for one in audit.commits(places.events, until):
                    pending.append(one)
                    if len(pending) >= FOLD_COMMITS:
                        index.fold(pending)
                        pending = []
                index.fold(pending)
            with closing(History(path)) as history:
                yield index, history


def _insist_on_not_archived(head: Head, until: Until) -> None:
    if until is not None and (until < head.at if isinstance(until, datetime) else until < head.position):
        raise Refused(
            f"That moment is archived: the log goes on behind commit {head.position} of {results.time(head.at)}. Name the "
            "archive with --home.",
            code="archived",
            argument="until",
        )


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
