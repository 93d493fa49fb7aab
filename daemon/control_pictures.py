"""A picture over HTTP: its bytes exactly as they were received, whole or a range, and only if they are still the same.

Rule: bytes leave only after their digest has been compared, for the digest is the ETag. They are read from the file in
pieces while they are sent.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import trio

from daemon import decisions
from daemon.house import House
from daemon.replies import Problem, Reply, Send
from eventlog.errors import IndexUnavailable
from eventlog.events import RequestReceived
from eventlog.jobs import Job
from eventlog.values import Client, JobState, Sha256, StoredImage, Words
from tools.errors import FileFailed

PIECE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_MEDIA = {"svg": "image/svg+xml"}
_EXTENSION = {"jpeg": "jpg"}


class Wanted(NamedTuple):
    """`n` counts from 1. Names of headers are in lower case."""

    job_id: str
    n: int
    headers: Mapping[str, str]


async def reply(house: House, client: Client, roots: Sequence[Path], wanted: Wanted) -> Reply:
    """What was imported is read only from below one of the asker's `roots`.

    Raises:
        Problem: there is no such picture, its bytes are gone or damaged, or the range lies outside of it.
        EventLogError
    """
    words = Words(
        salt="", arguments={"uuid": msgspec.Raw(msgspec.json.encode(wanted.job_id)), "n": msgspec.Raw(b"%d" % wanted.n)}
    )
    received = RequestReceived(operation="read_image", door="control", client=client)
    await house.ledger.post(decisions.receive_request(received, words))
    job, image = await _found(house, wanted)
    digest = image.sha256 if job.imported else image.original
    headers = {
        "etag": f'"{digest}"',
        "cache-control": "private, no-cache",
        "content-security-policy": "sandbox; default-src 'none'",
        "content-disposition": f'inline; filename="{job.id}-{wanted.n}.{_EXTENSION.get(image.format, image.format)}"',
        "accept-ranges": "bytes",
    }
    media_type = _MEDIA.get(image.format, f"image/{image.format}")
    if _is_known(wanted.headers.get("if-none-match", ""), digest):
        return Reply(304, media_type, headers=headers)
    try:
        file = await trio.to_thread.run_sync(_opened, house, job, image, roots)
    except FileFailed as exc:
        code = "no_such_resource" if exc.code == "not_there" else exc.code
        raise Problem(code, f"Picture {wanted.n} of {job.id} cannot be read: {exc}") from exc
    size = file.seek(0, SEEK_END)
    asked_range = wanted.headers.get("range", "") if wanted.headers.get("if-range", f'"{digest}"') == f'"{digest}"' else ""
    try:
        part = _part(asked_range, size)
    except Problem:
        file.close()
        raise
    if part is None:
        return Reply(200, media_type, headers=headers, stream=partial(_stream, file, 0, size), length_bytes=size)
    start, end = part
    headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    return Reply(206, media_type, headers=headers, stream=partial(_stream, file, start, end), length_bytes=end - start)


async def _found(house: House, wanted: Wanted) -> tuple[Job, StoredImage]:
    """
    Raises:
        Problem: it is not there.
    """
    try:
        job = await house.find_job(wanted.job_id)
    except IndexUnavailable as exc:
        raise Problem("index_unavailable", str(exc)) from exc
    if job is None:
        raise Problem("no_such_resource", f"There is no generation {wanted.job_id}; list_history shows those there are.")
    await house.ledger.durable(job.position)
    if not (job.state is JobState.COMPLETED or job.images):
        raise Problem("no_such_resource", f"Job {job.id} is {job.state.value}, so it has no pictures to read.")
    if wanted.n > len(job.images):
        raise Problem("no_such_resource", f"Generation {job.id} has no picture {wanted.n}; it has {len(job.images)}.")
    return job, job.images[wanted.n - 1]


def _opened(house: House, job: Job, image: StoredImage, roots: Sequence[Path]) -> BinaryIO:
    """Blocking. The whole picture has been read once, and is what it was.

    Raises:
        FileFailed: it is gone, or damaged.
    """
    if not job.imported:
        try:
            file = house.store.path(image.original).open("rb")
        except OSError:
            return BytesIO(house.original(job, image, roots))  # fails, in the store's own words
        if hashlib.file_digest(file, "sha256").hexdigest() == image.original:
            return file
        file.close()
    return BytesIO(house.original(job, image, roots))


async def _stream(file: BinaryIO, start: int, end: int, send: Send) -> None:
    with file:
        file.seek(start)
        while start < end:
            piece = await trio.to_thread.run_sync(file.read, min(PIECE_BYTES, end - start))
            if not piece:
                raise Problem("io_error", "The picture became shorter while it was sent; ask again.")
            start += len(piece)
            await send(piece)


def _is_known(given: str, digest: Sha256) -> bool:
    return any(tag.strip().removeprefix("W/") in ("*", f'"{digest}"') for tag in given.split(","))


def _part(given: str, size: int) -> tuple[int, int] | None:
    """First byte and the one behind the last. None: the whole, for what is no single range of bytes is passed over.

    Raises:
        Problem: nothing of the picture lies in the range.
    """
    parts = _RANGE.fullmatch(given.strip())
    if parts is None or parts[1] == parts[2] == "" or (parts[1] and parts[2] and int(parts[2]) < int(parts[1])):
        return None
    if parts[1]:
        start, end = int(parts[1]), min(size, int(parts[2]) + 1) if parts[2] else size
    else:
        start, end = max(0, size - int(parts[2])), size
    if start >= end:
        sentence = f"The picture has {size} bytes; ask for a range inside of it."
        raise Problem("bad_range", sentence, headers={"content-range": f"bytes */{size}"})
    return start, end
