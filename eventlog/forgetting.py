"""What the log holds of some jobs: found before anything is forgotten, and again where a crash came between.

Rule: this only reads. Words that are forgotten stand outside the hash chain, so that `EventLog.forget` can put
spaces in their place; the facts themselves - models, sizes, money, digests, times - stay for ever.
"""

from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from eventlog.disk import Disk
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    JobCompleted,
    JobEvent,
    JobRequested,
    ReplyReceived,
    RequestReceived,
    WordsForgotten,
)
from eventlog.index import folded
from eventlog.jobs import Job, JobBoard
from eventlog.segments import Located, Mark, read_log
from eventlog.values import JobId, Sha256, Words


class Traces(NamedTuple):
    """`lines` are the commits whose words still stand, `jobs` tell what those words say.

    `blobs` stand in the store for these jobs alone, `shared` for another job, too, whose words are not forgotten.
    `attempts` are the names under which replies may still be spooled.
    """

    jobs: tuple[Job, ...]
    lines: tuple[Mark, ...]
    blobs: frozenset[Sha256]
    shared: frozenset[Sha256]
    attempts: tuple[str, ...]


class _Texts(NamedTuple):
    """What only somebody who knows the jobs' words can have written. `prompts` are folded, as searches are."""

    anywhere: frozenset[str]
    prompts: frozenset[str]

    def are_in(self, words: Words) -> bool:
        for name, raw in words.arguments.items():
            for said in _strings(msgspec.json.decode(raw)):
                if any(text in said for text in self.anywhere):
                    return True
                if name == "query" and any(folded(said) in prompt for prompt in self.prompts):
                    return True
        return False


def find(directory: Path, jobs: Collection[JobId], disk: Disk | None = None) -> Traces:
    """Reads the whole log twice, without a lock: what repeats a job's words may stand before it, and behind.

    A request that repeats a prompt, the name of one of the files or a key, or looked for a text that the prompt holds,
    is one of the lines. One that only names a job's id is not: every fact of the job names it, and stays.

    Raises:
        LogCorrupt, LogTooNew
    """
    lines, blobs, attempts, texts, forgotten = [], set[Sha256](), [], set[str](), set[JobId](jobs)
    board = JobBoard()
    for commit, mark, _ in read_log(directory, None, disk):
        forgotten |= {event.job for event in commit.events if isinstance(event, WordsForgotten)}
        own = tuple(event for event in commit.events if isinstance(event, JobEvent) and event.job in jobs)
        if not own:
            continue
        board.apply(msgspec.structs.replace(commit, events=own))
        blobs |= {digest for event in own for digest in stored_by(event)}
        attempts += [event.client_request_id for event in own if isinstance(event, AttemptStarted)]
        if commit.words is not None:
            lines.append(mark)
            texts |= _key_in(commit.words)
    found = tuple(board)
    spoken = _Texts(frozenset(texts | _names(found)), frozenset(folded(job.prompt) for job in found if job.prompt))
    shared = set()
    for located in read_log(directory, None, disk):
        for event in located.commit.events:
            if isinstance(event, JobEvent) and event.job not in forgotten:
                shared |= blobs.intersection(stored_by(event))
        if _only_asks(located) and spoken.are_in(located.commit.words or Words(salt="")):
            lines.append(located.mark)
    return Traces(found, tuple(sorted(lines)), frozenset(blobs - shared), frozenset(shared), tuple(attempts))


def stored_by(event: Event) -> Iterator[Sha256]:
    """The blobs that the store holds because of this fact. What was imported is not in the store."""
    match event:
        case JobRequested(request=request):
            yield from (one.sha256 for one in (*request.sources, request.mask, request.markup) if one is not None)
        case AttemptFailed(kept=kept) if kept is not None:
            yield kept.sha256
        case ReplyReceived(pictures=pictures):
            yield from (picture.sha256 for picture in pictures)
        case JobCompleted(images=images):
            yield from (image.original for image in images)


def _only_asks(located: Located) -> bool:
    return all(isinstance(event, RequestReceived) for event in located.commit.events)


def _names(jobs: Collection[Job]) -> set[str]:
    names: set[str] = set()
    for job in jobs:
        paths = [path for image in job.images for path in (image.path, image.sidecar)]
        paths += [job.output_path, *job.missing, *job.source_names]
        names |= {PurePath(path).name for path in paths if path} | {job.prompt or ""}
    return names - {""}


def _key_in(words: Words) -> set[str]:
    return set(_strings(msgspec.json.decode(words.arguments.get("idempotency_key", b'""')))) - {""}


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)
