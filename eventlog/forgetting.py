"""What the log holds of some jobs: found before anything is forgotten, and again where a crash came between.

Rule: this only reads. Words that are forgotten stand outside the hash chain, so that `EventLog.forget` can put
spaces in their place; the facts themselves - models, sizes, money, digests, times - stay for ever.

All that a job's own commits say goes with it. Of requests that ordered nothing - refused ones, questions, searches -
goes what tells of the job, and nothing that another person may need for another reason:

- Whoever repeated its prompt, the name of one of its files or its idempotency key: anywhere in an argument if that is
  so long (`TELLING_BYTES_MIN`) that it does not stand there by chance. Shorter ones have to be the whole argument, or
  one whole component of a path, and not where only a choice or a figure can stand: a prompt "e" is in every sentence,
  and a picture "low.png" has nothing to do with a quality.
- Whoever searched for a part of its prompt that no generation which stays has in its own: that would tell what was
  drawn. The others tell as much of those, and go with the last of them.

Names that the program gives by itself, and the ids of generations, are nobody's words. Case, width and the space
between words do not matter.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from eventlog.disk import Disk
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    FactOfJob,
    JobCompleted,
    JobRequested,
    PartialReceived,
    ReplyReceived,
    RequestReceived,
    WordsForgotten,
)
from eventlog.jobs import Job, JobBoard, wordless
from eventlog.searching import folded
from eventlog.segments import Located, Mark, beginning, read_log
from eventlog.stub import Stub
from eventlog.values import JobId, Position, Sha256, Words

TELLING_BYTES_MIN = 16  # three words, or six characters of Japanese; few single words are so long
SEARCH_BYTES_MIN = 3  # one character of Japanese tells something, one or two letters are in every prompt
NO_WORDS = frozenset(  # arguments that take choices and figures only
    (
        *("background", "input_fidelity", "moderation", "output_format", "quality", "qualities", "size", "tool_name"),
        *("model", "models", "by", "outcome", "status", "since", "until", "after", "limit", "offset", "n", "wait_seconds"),
        *("amount_usd", "files", "include_thumbnail", "output_compression", "partial_images", "return_base64", "sample_count"),
        *("transparent_background", "again", "approve", "dry_run", "job_id", "job_ids", "uuid"),
    )
)
_GENERATION = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(/[0-9]+)?")
_NUMBER = re.compile(r"_[0-9]+$")


class Traces(NamedTuple):
    """`lines` are the commits whose words still stand, `jobs` tell what those words say.

    `blobs` stand in the store for these jobs alone, `shared` for another job, too, whose words are not forgotten.
    `attempts` are the names under which replies may still be spooled. `archived` are those of the jobs whose words stand in
    the stub of the log, and may stand wherever its beginning was moved to.
    """

    jobs: tuple[Job, ...]
    lines: tuple[Mark, ...]
    blobs: frozenset[Sha256]
    shared: frozenset[Sha256]
    attempts: tuple[str, ...]
    archived: frozenset[JobId] = frozenset()


class _Texts(NamedTuple):
    """What only somebody who knows the jobs' words can have written: prompts, keys and, apart, the names of files."""

    said: frozenset[str]
    names: frozenset[str]
    telling: frozenset[str]

    def are_in(self, words: Words) -> bool:
        for argument, raw in words.arguments.items():
            for value in map(_plain, _strings(msgspec.json.decode(raw))):
                if any(text in value for text in self.telling):
                    return True
                if argument not in NO_WORDS and (value in self.said or not self.names.isdisjoint(value.split("/"))):
                    return True
        return False


class _Reading:
    """The first look: what the jobs themselves have said, and what has ever been searched for or is to be gone."""

    def __init__(self, jobs: Collection[JobId]) -> None:
        self.jobs = jobs
        self.board = JobBoard()
        self.lines: list[Mark] = []
        self.blobs: set[Sha256] = set()
        self.attempts: list[str] = []
        self.keys: set[str] = set()
        self.queries: set[str] = set()
        self.forgotten = set(jobs)
        self.recorded: set[Position] = set()  # that a fact says are forgotten; a crash may have left them standing
        self.archived: set[JobId] = set()

    def begin_with(self, stub: Stub) -> None:
        """Its own of these jobs, and what was forgotten of all others."""
        own = []
        for job, blobs, words_gone in stub.kept():
            if job.forgotten_at is not None:
                self.forgotten.add(job.id)
            if job.id not in self.jobs:
                continue
            own.append(job)
            self.blobs |= set(blobs)
            self.attempts += [job.client_request_id] if job.client_request_id else []
            if not words_gone and job != wordless(job):
                self.archived.add(job.id)
        self.board = JobBoard(own)

    def read(self, located: Located) -> None:
        commit = located.commit
        for event in commit.events:
            if isinstance(event, WordsForgotten):
                self.forgotten.add(event.job)
                self.recorded |= set(event.positions) if event.job in self.jobs else set()
        if commit.words is not None and _only_asks(located):
            self.queries.add(_query_in(commit.words))
        own = tuple(event for event in commit.events if isinstance(event, FactOfJob) and event.job in self.jobs)
        if not own:
            return
        self.board.apply(msgspec.structs.replace(commit, events=own))
        self.blobs |= {digest for event in own for digest in stored_by(event)}
        self.attempts += [event.client_request_id for event in own if isinstance(event, AttemptStarted)]
        if commit.words is not None:
            self.lines.append(located.mark)
            self.keys |= set(_strings(msgspec.json.decode(commit.words.arguments.get("idempotency_key", b'""'))))


def find(directory: Path, jobs: Collection[JobId], disk: Disk | None = None, *, given: Collection[str] = ()) -> Traces:
    """Reads the whole log twice, without a lock: what repeats a job's words may stand before it, and behind.

    `given` are file names that the program gives by itself; numbers behind them, and extensions, do not matter. What a
    fact already says is forgotten of these jobs is among the lines for as long as its words stand.

    Raises:
        LogCorrupt, LogTooNew
    """
    first = _Reading(jobs)
    with beginning(directory, disk) as stub:
        if stub is not None:
            first.begin_with(stub)
    for located in read_log(directory, None, disk):
        first.read(located)
    found = tuple(first.board)
    prompts = [job.prompt for job in found if job.prompt]
    texts = _texts([*prompts, *first.keys], _names(found, given))
    searches = {query for query in first.queries if query and any(query in folded(prompt) for prompt in prompts)}
    lines, searched, shared = set(first.lines), list[tuple[Mark, str]](), set[Sha256]()
    with beginning(directory, disk) as stub:
        for kept in () if stub is None else stub.kept():
            if kept.job.id not in first.forgotten:
                shared |= first.blobs.intersection(kept.blobs)
                searches -= _parts_of(kept.job.prompt or "", searches)
    for located in read_log(directory, None, disk):
        words, standing = located.commit.words, _others(located, first.forgotten)
        shared |= {digest for event in standing for digest in stored_by(event)} & first.blobs
        if words is None:
            continue
        if standing and words.prompt is not None:
            searches -= _parts_of(words.prompt, searches)
        if located.mark.position in first.recorded or (_only_asks(located) and texts.are_in(words)):
            lines.add(located.mark)
        elif _only_asks(located):
            searched.append((located.mark, _query_in(words)))
    lines |= {mark for mark, query in searched if query in searches}
    blobs = frozenset(first.blobs)
    attempts, archived = tuple(dict.fromkeys(first.attempts)), frozenset(first.archived)
    return Traces(found, tuple(sorted(lines)), blobs - shared, frozenset(shared), attempts, archived)


def stored_by(event: Event) -> Iterator[Sha256]:
    """The blobs that the store holds because of this fact. What was imported is not in the store."""
    match event:
        case JobRequested(request=request, kept=kept_pictures):
            yield from (picture.sha256 for picture in kept_pictures)
            yield from (one.sha256 for one in (*request.sources, request.mask, request.markup) if one is not None)
        case AttemptFailed(kept=kept) if kept is not None:
            yield kept.sha256
        case PartialReceived(picture=picture):
            yield picture.sha256
        case ReplyReceived(pictures=pictures):
            yield from (picture.sha256 for picture in pictures)
        case JobCompleted(images=images):
            yield from (image.original for image in images)


def _only_asks(located: Located) -> bool:
    return all(isinstance(event, RequestReceived) for event in located.commit.events)


def _others(located: Located, forgotten: Collection[JobId]) -> tuple[Event, ...]:
    return tuple(event for event in located.commit.events if isinstance(event, FactOfJob) and event.job not in forgotten)


def _parts_of(prompt: str, searches: Collection[str]) -> set[str]:
    whole = folded(prompt) if searches else ""
    return {query for query in searches if query in whole}


def _query_in(words: Words) -> str:
    """What was searched for, as searches compare it. Empty: nothing, or so little that every prompt has it."""
    query = msgspec.json.decode(words.arguments.get("query", b'""'))
    text = folded(query) if isinstance(query, str) else ""
    return text if len(text.strip().encode()) >= SEARCH_BYTES_MIN else ""


def _texts(said: Iterable[str], names: Iterable[str]) -> _Texts:
    plain, parts = _all_plain(said), _all_plain(names)
    return _Texts(plain, parts, frozenset(text for text in plain | parts if len(text.encode()) >= TELLING_BYTES_MIN))


def _names(jobs: Collection[Job], given: Collection[str]) -> set[str]:
    paths = [path for job in jobs for image in job.images for path in (image.path, image.sidecar)]
    for job in jobs:
        paths += [job.output_path, *job.missing, *(name for name in job.source_names if not _GENERATION.fullmatch(name))]
    names = {PurePath(path).name for path in paths if path}
    stems = {PurePath(name).stem for name in given}
    return {name for name in names if _NUMBER.sub("", PurePath(name.removesuffix(".xmp")).stem) not in stems}


def _plain(text: str) -> str:
    return " ".join(folded(text).split())


def _all_plain(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_plain, texts)) - {""}


def _strings(value: object) -> Iterator[str]:
    """Also those of lists and objects that a client has sent as JSON text. Without recursion: that may be nested deeply."""
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                yield text
                if text.lstrip()[:1] in ("[", "{"):
                    with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                        left.append(msgspec.json.decode(text))
            case dict() as fields:
                left += fields.values()
            case list() as items:
                left += items
