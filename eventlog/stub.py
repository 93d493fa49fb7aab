"""What stays of segments that were moved out of the log: how things stood where the log goes on, as a file of lines.

    line  := hash (64 hex) SPACE json [ SPACE words (json) ]      as in the log: the hash is that of the json's bytes,
                                                                  which name the hash of the line before
    first :  the head: the last commit that was moved out
    second:  what was spent, and what may have been
    then  :  a job each, in the order in which they were requested

Rule: `archived-<20 digits>.jsonl` stands for every segment before that byte. It counts once it and the segment of the same
digits are there; older segments are then ghosts. Its last hash stands in the `LogArchived` that the log goes on with. Words
stand outside the hashes here, too, and may go.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import NamedTuple

import msgspec

from eventlog.disk import Disk
from eventlog.errors import LogCorrupt, LogTooNew
from eventlog.jobs import Job, wordless
from eventlog.spending import Amounts, Period, Spending, Suspicion, reservations_of
from eventlog.values import JobId, Position, Sha256, StoredImage, Value

FORMAT = 1
READ_BYTES = 1024 * 1024
TEMPORARY = "archiving-"
NO_HASH = Sha256("0" * 64)


class Head(Value, frozen=True):
    """`offset`, `position` and `hash` are the mark of the last commit that was moved out, and `at` its time; the log goes on
    at byte `end`. `jobs` counts the lines that follow.
    """

    format: int
    end: int
    offset: int
    position: Position
    hash: Sha256
    at: datetime
    jobs: int


class Spent(Value, frozen=True):
    amounts: tuple[tuple[Period, Amounts], ...] = ()
    suspicions: tuple[tuple[JobId, tuple[Suspicion, ...]], ...] = ()


class Kept(NamedTuple):
    """A job as it stood then. `blobs` are those that facts moved out put into the store; `words_gone`: it had words once."""

    job: Job
    blobs: tuple[Sha256, ...]
    words_gone: bool = False


class _Words(Value, frozen=True, omit_defaults=True):
    salt: str
    prompt: str | None = None
    output_path: str | None = None
    output_dir: str | None = None
    error: str = ""
    source_names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    paths: tuple[str | None, ...] = ()
    sidecars: tuple[str | None, ...] = ()


class _Line(Value, frozen=True, omit_defaults=True):
    previous: Sha256
    head: Head | None = None
    spent: Spent | None = None
    job: Job | None = None
    blobs: tuple[Sha256, ...] = ()
    words: Sha256 | None = None


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_words = msgspec.json.Decoder(_Words).decode
_NO_WORDS = _Words(salt="")


def stub_name(end: int) -> str:
    return f"archived-{end:020}.jsonl"


def stub_ends(names: Iterable[str]) -> list[int]:
    """Where the log goes on behind each stub among these names."""
    numbers = [name[9:29] for name in names if len(name) == 35 and name.startswith("archived-") and name.endswith(".jsonl")]
    return sorted(int(number) for number in numbers if number.isdigit())


class Stub:
    """One stub of an open directory, read whenever it is asked. Blocking; what reads it raises LogCorrupt or LogTooNew."""

    def __init__(self, disk: Disk, directory: int, end: int, name: str = "") -> None:
        """`name` is that of one that does not count yet."""
        self._disk = disk
        self._directory = directory
        self._end = end
        self.name = name or stub_name(end)
        self.head = self._head()

    def kept(self) -> Iterator[Kept]:
        """Every job. The whole of it is proved by the time the last one has come."""
        return (kept for _, kept in self._lines() if kept is not None)

    def live(self) -> list[Job]:
        """The jobs that were not over."""
        return [kept.job for kept in self.kept() if not kept.job.state.is_over]

    def spending(self, live: Iterable[Job]) -> Spending:
        """With the reservations of the jobs that were not over."""
        second = next(islice(self._raw(), 1, None), b"")
        spent = self._proved(second)[1].spent
        if spent is None:
            raise self._damaged("it does not say what was spent")
        return Spending(dict(spent.amounts), reservations_of(live), dict(spent.suspicions))

    def hash(self) -> Sha256:
        """The last one; it stands for all lines, but for their words."""
        last = NO_HASH
        for last, _ in self._lines():  # noqa: B007
            pass
        return last

    def without_words(self, jobs: Collection[JobId]) -> None:
        """Writes it anew without the words of these jobs: a crash leaves the old one or the new one."""
        temporary = f"{TEMPORARY}{self.name}"
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._directory, temporary)
        lines = (self._proved(raw)[0] + b"\n" if self._job_of(raw) in jobs else raw + b"\n" for raw in self._raw())
        write_file(self._disk, self._directory, temporary, lines)
        self._disk.replace(self._directory, temporary, self.name)
        self._disk.sync_directory(self._directory)

    def _job_of(self, raw: bytes) -> JobId | None:
        job = self._proved(raw)[1].job
        return None if job is None else job.id

    def _head(self) -> Head:
        first = next(self._raw(), b"")
        head = self._proved(first)[1].head
        if head is None or head.end != self._end:
            raise self._damaged("its head is that of another")
        if head.format > FORMAT:
            raise LogTooNew(f"{self.name} has format {head.format}; upgrade imaged, do not repair.")
        return head

    def _lines(self) -> Iterator[tuple[Sha256, Kept | None]]:
        previous, jobs = NO_HASH, 0
        for raw in self._raw():
            _, line, words = self._proved(raw)
            if line.previous != previous:
                raise self._damaged("a line does not follow the one before it")
            previous = Sha256(raw[:64].decode())
            if line.job is None:
                yield previous, None
                continue
            jobs += 1
            yield previous, Kept(_with_words(line.job, words or _NO_WORDS), line.blobs, line.words is not None and words is None)
        if jobs != self.head.jobs:
            raise self._damaged(f"it has {jobs} jobs in place of {self.head.jobs}")

    def _proved(self, raw: bytes) -> tuple[bytes, _Line, _Words | None]:
        """The line without its words, what it says, and its words if they stand."""
        end = raw.find(b" ", 65)
        body = raw[65:] if end < 0 else raw[65:end]
        if raw[64:65] != b" " or hashlib.sha256(body).hexdigest().encode() != raw[:64]:
            raise self._damaged("a hash does not fit")
        try:
            line = _decode_line(body)
            if end < 0:
                return raw, line, None
            if hashlib.sha256(raw[end + 1 :]).hexdigest() != line.words:
                raise self._damaged("words do not fit their digest")
            return raw[:end], line, _decode_words(raw[end + 1 :])
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise LogTooNew(f"{self.name} was written by a newer imaged ({exc}); upgrade, do not repair.") from exc

    def _raw(self) -> Iterator[bytes]:
        file = self._disk.open(self._directory, self.name)
        try:
            offset, rest = 0, b""
            while piece := self._disk.pread(file, READ_BYTES, offset):
                offset += len(piece)
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
        finally:
            self._disk.close(file)
        if rest:
            raise self._damaged("it does not end with a line")

    def _damaged(self, why: str) -> LogCorrupt:
        return LogCorrupt(
            f"{self.name}, which stands for what was archived, is damaged ({why}). Nothing was changed; restore it from a "
            "backup, or put the archived segments back beside the others and move it away.",
            position=1,
            offset=self._end,
        )


def lines_of(head: Head, spent: Spent, jobs: Iterable[Kept], salt: Callable[[], str]) -> Iterator[bytes]:
    """A whole stub, newlines and all. `salt` makes a new one for the words of each job."""
    first = _sealed(_Line(previous=NO_HASH, head=head), None)
    sealed = _sealed(_Line(previous=Sha256(first[:64].decode()), spent=spent), None)
    yield first + sealed
    for job, blobs, _ in jobs:
        said = _words_of(job, salt())
        words = None if said == _Words(salt=said.salt) else _encode(said)
        digest = None if words is None else Sha256(hashlib.sha256(words).hexdigest())
        line = _Line(previous=Sha256(sealed[:64].decode()), job=wordless(job), blobs=blobs, words=digest)
        sealed = _sealed(line, words)
        yield sealed


def write_file(disk: Disk, directory: int, name: str, pieces: Iterable[bytes]) -> None:
    """A new file of these pieces, whose bytes are durable when this returns, or none; its name is not durable yet."""
    file = disk.open(directory, name, create=True)
    try:
        offset, held = 0, bytearray()
        for piece in pieces:
            held += piece
            if len(held) >= READ_BYTES:
                disk.pwrite(file, bytes(held), offset)
                offset += len(held)
                held.clear()
        disk.pwrite(file, bytes(held), offset)
        disk.sync(file)
    except (OSError, LogCorrupt, LogTooNew):
        disk.unlink(directory, name)
        raise
    finally:
        disk.close(file)


def _sealed(line: _Line, words: bytes | None) -> bytes:
    body = _encode(line).replace(b" ", b"\\u0020")  # so that the first space ends it
    tail = b"" if words is None else b" " + words
    return hashlib.sha256(body).hexdigest().encode() + b" " + body + tail + b"\n"


def _words_of(job: Job, salt: str) -> _Words:
    paths, sidecars = tuple(image.path for image in job.images), tuple(image.sidecar for image in job.images)
    return _Words(
        salt=salt,
        prompt=job.prompt,
        output_path=job.output_path,
        output_dir=job.output_dir,
        error=job.error,
        source_names=job.source_names,
        missing=job.missing,
        paths=paths if any(paths) else (),
        sidecars=sidecars if any(sidecars) else (),
    )


def _with_words(job: Job, words: _Words) -> Job:
    nothing = (None,) * len(job.images)
    images = zip(job.images, words.paths or nothing, words.sidecars or nothing, strict=True)
    return msgspec.structs.replace(
        job,
        prompt=words.prompt,
        output_path=words.output_path,
        output_dir=words.output_dir,
        error=words.error,
        source_names=words.source_names,
        missing=words.missing,
        images=tuple(_placed(image, path, sidecar) for image, path, sidecar in images),
    )


def _placed(image: StoredImage, path: str | None, sidecar: str | None) -> StoredImage:
    return msgspec.structs.replace(image, path=path, sidecar=sidecar)
