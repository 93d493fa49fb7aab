"""What a soak promised its clients, against the log, the store, the files and the index that it left behind."""

import random
import sqlite3
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from daemon.config import Places
from eventlog.audit import verify
from eventlog.events import AttemptFailed, AttemptStarted, Commit, JobCompleted, JobRequested, ReplyReceived, WordsForgotten
from eventlog.index import Index
from eventlog.segments import read_log
from eventlog.values import JobId, Sha256, digest
from tests.standin import Request
from tools.errors import FileFailed
from tools.store import Store

NEWEST = 50  # jobs that somebody may come back to


class Told:
    """What clients were told. Used by all of them at once."""

    def __init__(self) -> None:
        self.completed: dict[str, dict[str, str]] = {}
        """By job: the digest of the file at each path."""
        self.of_keys: defaultdict[str, set[str]] = defaultdict(set)
        self._known: dict[str, None] = {}
        self._lock = threading.Lock()

    def hear(self, tool: str, arguments: Mapping[str, object], result: Mapping[str, Any]) -> None:
        job = result.get("job_id")
        if tool == "forget" or not isinstance(job, str):
            return
        with self._lock:
            self._known[job] = None
            if key := arguments.get("idempotency_key"):
                self.of_keys[str(key)].add(job)
            if result.get("state") == "completed":
                self.completed[job] = {image["path"]: image["sha256"] for image in result.get("images", ()) if image["path"]}

    def some_job(self, chance: random.Random) -> str | None:
        with self._lock:
            newest = list(islice(reversed(self._known), NEWEST))
        return chance.choice(newest) if newest else None


def audit(home: Path, places: Places, told: Told, requests: Sequence[Request], key: str) -> list[str]:
    """Every promise that was broken, in sentences. No daemon may run."""
    found = verify(places.events)
    if found.fault is not None:
        return [f"the log is damaged: {found.fault.sentence}"]
    broken = [f"words of job {one.job} stand at {one.standing}" for one in found.forgotten if one.standing]
    commits = [located.commit for located in read_log(places.events, None)]
    facts = [event for commit in commits for event in commit.events]
    print("facts: " + ", ".join(f"{count} {kind.__name__}" for kind, count in Counter(map(type, facts)).most_common()))
    broken += _requests(requests, facts)
    broken += _pictures(places, facts)
    broken += _promises(told, commits)
    broken += _unexplained_files(home / "pictures", commits)
    broken += _index(places)
    broken += [f"{path} holds the key" for path in home.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    kept = sum(len(images) for images in told.completed.values())
    print(f"{len(requests)} requests, {len(told.completed)} jobs told as completed with {kept} files, {len(told.of_keys)} keys")
    return broken


def _requests(requests: Sequence[Request], facts: Sequence[object]) -> Iterator[str]:
    attempts = {fact.client_request_id: fact for fact in facts if isinstance(fact, AttemptStarted)}
    for name, times in Counter(request.headers["x-client-request-id"] for request in requests).items():
        if times > 1:
            yield f"attempt {name} was sent {times} times"
    for request in requests:
        started = attempts.get(request.headers["x-client-request-id"])
        cut = len(request.body) < int(request.headers["content-length"])  # the daemon was killed while it sent it
        if started is None:
            yield f"request {request.headers['x-client-request-id']} was sent without a durable fact"
        elif not cut and started.body_sha256 != digest(request.body):
            yield f"request {started.client_request_id} is not what the log says it was"


def _pictures(places: Places, facts: Sequence[object]) -> Iterator[str]:
    store = Store.open(places.store)
    gone = {fact.job for fact in facts if isinstance(fact, WordsForgotten)}
    for fact in facts:
        if isinstance(fact, ReplyReceived) and fact.job not in gone:
            for picture in fact.pictures:
                try:
                    whole = digest(store.get(picture.sha256)) == picture.sha256
                except FileFailed as exc:
                    yield f"a picture that was received for job {fact.job} cannot be had: {exc}"
                else:
                    if not whole:
                        yield f"a picture that was received for job {fact.job} is damaged"


def _promises(told: Told, commits: Sequence[Commit]) -> Iterator[str]:
    completed = {event.job: event for commit in commits for event in commit.events if isinstance(event, JobCompleted)}
    for job, files in told.completed.items():
        fact = completed.get(JobId(job))
        if fact is None or not set(files.values()) <= {image.sha256 for image in fact.images}:  # fewer: forgotten since
            yield f"job {job} was told as completed, but the log says otherwise"
        for path, expected in files.items():
            if not Path(path).exists() or digest(Path(path).read_bytes()) != expected:
                yield f"the file of job {job} is not at {path} as it was told"
    ordered = [event for commit in commits for event in commit.events if isinstance(event, JobRequested)]
    for digest_of_key, times in Counter(event.request_key for event in ordered if event.request_key).items():
        if times > 1:
            yield f"{times} jobs were ordered under one key, whose digest is {digest_of_key}"
    in_place_of = {event.job: event.retry_of for event in ordered}
    for key, jobs in told.of_keys.items():
        # Who asks again for one that came to nothing is told of the one that `retry_job` has put in its place.
        if len({_first(JobId(job), in_place_of) for job in jobs}) > 1:
            yield f"the key {key!r} was given {len(jobs)} jobs: {', '.join(sorted(jobs))}"


def _first(job: JobId, in_place_of: Mapping[JobId, JobId | None]) -> JobId:
    while (earlier := in_place_of.get(job)) is not None:
        job = earlier
    return job


def _unexplained_files(pictures: Path, commits: Sequence[Commit]) -> Iterator[str]:
    """Made twice, or left half made."""
    digests: Counter[Sha256] = Counter()
    for commit in commits:
        for event in commit.events:
            if isinstance(event, JobCompleted):
                digests.update(image.sha256 for image in event.images)
    for path in pictures.rglob("*"):
        if path.is_file():
            found = digest(path.read_bytes())
            digests[found] -= 1
            if digests[found] < 0:
                yield f"nothing in the log explains {path}"


def _index(places: Places) -> Iterator[str]:
    """The one that followed the log from daemon to daemon says what one says that is made anew."""
    with tempfile.TemporaryDirectory() as folder:
        anew = Index.open(Path(folder) / "index.sqlite")
        anew.fold(list(read_log(places.events, None)))
        anew.close()
        rows = [_rows(path) for path in (places.index, Path(folder) / "index.sqlite")]
    for table, live, fresh in ((table, rows[0][table], rows[1][table]) for table in rows[0]):
        if live != fresh:
            yield f"the index's table {table} differs from one made anew in {len(live ^ fresh)} rows: {list(live ^ fresh)[:2]}"
    settled = sum(row[4] for row in rows[0]["spending"])
    billed = sum(_amount(event) for located in read_log(places.events, None) for event in located.commit.events)
    if settled != billed:
        yield f"spending says {settled} micro-dollars, the facts add up to {billed}"


def _amount(event: object) -> int:
    if isinstance(event, ReplyReceived) or (isinstance(event, AttemptFailed) and event.billed == "yes"):
        return (event.cost.amount or 0) if event.cost is not None else 0
    return 0


def _rows(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    with sqlite3.connect(path) as db:
        return {table: set(db.execute(f"SELECT * FROM {table}")) for table in ("job", "spending", "suspicion", "image")}
