"""Writes the golden log of a version: `python -m tests.golden.write 0.1.0`, once, before that version is released.

Rule: what a released version wrote is never written again. Every later version must read the log and tell the
same as the dump beside it; facts and fields that came later are not in the dump, and do not matter.
"""

import sys
from datetime import timedelta
from pathlib import Path

import msgspec

from eventlog.events import (
    FORMAT,
    AttemptFailed,
    Commit,
    DaemonStarted,
    DaemonStopped,
    JobCancelled,
    JobCancelRequested,
    JobFailed,
    JobInterrupted,
    JobStarted,
    LogCreated,
    RequestReceived,
)
from eventlog.framing import NO_HASH, draft, seal
from eventlog.jobs import JobBoard
from eventlog.segments import read_log, segment_name
from eventlog.spending import Spending
from eventlog.values import Blob, Client, Position, Words
from tests.eventlog.builders import (
    DAWN,
    DIGEST,
    PROMPTS,
    SALT,
    attempt,
    commit,
    completed,
    job_id,
    one_job,
    reply,
    requested,
    said,
)

HERE = Path(__file__).parent
SEGMENT_COMMITS = 12


def story(version: str) -> list[Commit]:
    """Every kind of fact, every end of a job, words of every kind."""
    a, b, c, d = (job_id(number) for number in (2, 3, 4, 5))
    asked = Words(salt=SALT, arguments={"limit": msgspec.Raw(b"10"), "text": msgspec.Raw('"逆光 and spaces"'.encode())})
    after = [
        (RequestReceived(operation="list_history", door="mcp", client=Client(name="a client", version="1")),),
        (requested(a, tool=1, offline=True),),
        (JobStarted(job=a), attempt(a)),
        (reply(a, amount=None, basis="offline"), completed(a)),
        (requested(b, model=1, high=None), JobStarted(job=b), attempt(b)),
        (AttemptFailed(job=b, attempt=1, code="cut", billed="unknown", status=502, kept=Blob(sha256=DIGEST, size_bytes=3)),),
        (attempt(b, 2), JobInterrupted(job=b)),
        (requested(c, tool=2), JobStarted(job=c), attempt(c), JobCancelRequested(job=c)),
        (JobCancelled(job=c, billed="unknown"),),
        (requested(d, client="another"), JobFailed(job=d, code="not_allowed", billed="no")),
        (requested(job_id(6)), JobStarted(job=job_id(6)), attempt(job_id(6))),
        (DaemonStopped(reason="two words"),),
    ]
    words = {0: asked, 1: said(prompt=PROMPTS[1], output_dir="/a b"), 3: said(paths=("/a b/c.png",)), 9: said(message="no.\n")}
    started = commit(2, DaemonStarted(software=version, torn_bytes=7))
    first = [commit(1, LogCreated(format=FORMAT, software=version), at=DAWN), started, *one_job(3)]
    return first + [
        commit(8 + number, *events, words=words.get(number), at=DAWN + timedelta(minutes=number))
        for number, events in enumerate(after)
    ]


def lines_of(commits: list[Commit]) -> list[bytes]:
    """Batches of three; a segment begins with a batch."""
    previous, lines = NO_HASH, []
    for number, one in enumerate(commits):
        sealed = seal(draft(one), previous, Position(number - number % 3 + 1))
        lines.append(sealed.line)
        previous = sealed.hash
    return lines


def told(events: Path) -> dict[str, object]:
    """What a log says, in plain JSON values."""
    board, spending, head = JobBoard(), Spending(), ""
    for one, mark, _ in read_log(events, None):
        board.apply(one)
        spending.apply(one)
        head = mark.hash
    views = {
        "head": head,
        "jobs": [msgspec.structs.asdict(job) for job in board],
        "spending": [{"period": period, "amounts": amounts} for period, amounts in spending.rows()],
        "reserved": spending.reserved,
    }
    plain: dict[str, object] = msgspec.json.decode(msgspec.json.encode(views))
    return plain


def write(version: str) -> None:
    events = HERE / version / "events"
    events.mkdir(parents=True)
    lines, offset = lines_of(story(version)), 0
    for start in range(0, len(lines), SEGMENT_COMMITS):
        data = b"".join(lines[start : start + SEGMENT_COMMITS])
        (events / segment_name(offset)).write_bytes(data)
        offset += len(data)
    dump = msgspec.json.format(msgspec.json.encode(told(events)), indent=1)
    (HERE / version / "dump.json").write_bytes(dump + b"\n")


if __name__ == "__main__":
    write(sys.argv[1])
