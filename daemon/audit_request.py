"""The request of one job, rebuilt from the log and the store byte for byte, as a command that sends it again.

Rule: never a key, only the name of the variable that holds it; and the text says whether its body is the one that was
sent, by the digest that was durable before its first byte left.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from daemon.config import OPENAI_URL, Places
from daemon.errors import Refused
from eventlog.disk import Disk
from eventlog.events import AttemptStarted, FactOfJob
from eventlog.jobs import Job, JobBoard
from eventlog.segments import beginning, read_log
from eventlog.values import JobId, digest
from tools import openai_api
from tools.errors import FileFailed
from tools.openai_api import ApiRequest
from tools.store import Store

Shape = Literal["curl", "python"]
Piece = bytes | Path
"""Of a body: bytes as they are, or a file of the store."""


def request_of(home: Path, uuid: str, kind: Shape) -> str:
    """A shell or Python script. Running it draws, and pays, once more.

    Raises:
        Refused: there is no such job, it was imported, or its words or sources are forgotten.
        EventLogError: the log is damaged or too new.
    """
    places = Places(home)
    job, sent = _job(places.events, JobId(uuid))
    if job.imported:
        raise Refused(f"Generation {job.id} was imported from {job.imported}; what it asked for is not known.", code="imported")
    if job.prompt is None:
        raise Refused(f"The words of job {job.id} are forgotten, and its request with them.", code="forgotten")
    store = Store(places.store, Disk())
    wanted = [one for one in (*job.request.sources, job.request.mask, job.request.markup) if one is not None]
    try:
        inputs = {picture.sha256: store.get(picture.sha256) for picture in wanted}
    except FileFailed as exc:
        raise Refused(f"The request of job {job.id} cannot be rebuilt: {exc}", code=exc.code) from exc
    request = openai_api.build(job.request, job.prompt, inputs)
    pieces = tuple(_pieces(request.body, [(inputs[one.sha256], store.path(one.sha256)) for one in wanted]))
    notes = [f"The request of job {job.id}, rebuilt from the log. To run it COSTS MONEY.", *_proof(job, request.body, sent)]
    return _curl(job, request, pieces, notes) if kind == "curl" else _python(job, request, pieces, notes)


def _job(events: Path, uuid: JobId) -> tuple[Job, list[AttemptStarted]]:
    board, sent = JobBoard(), []
    with beginning(events) as stub:
        if stub is not None and any(kept.job.id == uuid for kept in stub.kept()):
            raise Refused(
                f"What was sent for job {uuid} is archived. Name the archive, with the pictures it was made from in its store: "
                "--home DIR",
                code="archived",
                argument="uuid",
            )
    for commit, _, _ in read_log(events, None):
        own = tuple(event for event in commit.events if isinstance(event, FactOfJob) and event.job == uuid)
        if own:
            board.apply(msgspec.structs.replace(commit, events=own))
            sent += [event for event in own if isinstance(event, AttemptStarted)]
    job = board.get(uuid)
    if job is None:
        raise Refused(f"There is no job or generation {uuid[:64]} in {events}.", code="no_such_job", argument="uuid")
    return job, sent


def _proof(job: Job, body: bytes, sent: Sequence[AttemptStarted]) -> Iterator[str]:
    rebuilt = digest(body)
    yield f"SHA-256 of its body, {len(body):,} bytes: {rebuilt}"
    if not sent:
        yield "Nothing was ever sent for this job."
    for attempt in sent:
        same = "exactly this body" if attempt.body_sha256 == rebuilt else f"ANOTHER body, SHA-256 {attempt.body_sha256}"
        yield f"Attempt {attempt.attempt}, X-Client-Request-Id {attempt.client_request_id}: {same} was sent."
    if job.account.backend == "offline":
        yield "It was drawn offline: the stand-in got the body, OpenAI nothing."


def _pieces(body: bytes, files: Sequence[tuple[bytes, Path]]) -> Iterator[Piece]:
    at = 0
    for data, path in files:
        start = body.index(data, at)
        yield body[at:start]
        yield path
        at = start + len(data)
    yield body[at:]


def _headers(job: Job, request: ApiRequest) -> dict[str, str]:
    headers = dict(request.headers)
    if job.account.organization:
        headers["OpenAI-Organization"] = job.account.organization
    if job.account.project:
        headers["OpenAI-Project"] = job.account.project
    return headers


def _url(job: Job, request: ApiRequest) -> str:
    return (job.account.base_url or OPENAI_URL) + request.path


def _curl(job: Job, request: ApiRequest, pieces: Sequence[Piece], notes: Sequence[str]) -> str:
    """The body goes through a pipe: it may be longer than an argument, and hold line ends that a terminal changes."""
    lines = ["#!/bin/bash", *(f"# {note}" for note in notes), "{"]
    for piece in pieces:
        if isinstance(piece, Path):
            lines.append(f"cat {shlex.quote(str(piece))}")
        else:
            text = piece.decode().replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\\0000")
            lines.append(f"printf '%b' {shlex.quote(text)}")
    lines.append(f"}} | curl --request {request.method} {shlex.quote(_url(job, request))} \\")
    lines.append('  --header "Authorization: Bearer $OPENAI_API_KEY" \\')
    lines += [f"  --header {shlex.quote(f'{name}: {value}')} \\" for name, value in _headers(job, request).items()]
    lines.append("  --data-binary @-")
    return "\n".join(lines) + "\n"


def _python(job: Job, request: ApiRequest, pieces: Sequence[Piece], notes: Sequence[str]) -> str:
    parts = [f"Path({str(piece)!r}).read_bytes()" if isinstance(piece, Path) else repr(piece) for piece in pieces]
    headers = "".join(f"    {name!r}: {value!r},\n" for name, value in _headers(job, request).items())
    body = "".join(f"    {part},\n" for part in parts)
    comments = "".join(f"# {note}\n" for note in notes)
    return (
        f"{comments}import hashlib\nimport os\nimport urllib.request\nfrom pathlib import Path\n\n"
        f'body = b"".join([\n{body}])\n'
        f"assert hashlib.sha256(body).hexdigest() == {str(digest(request.body))!r}\n"
        f'headers = {{\n    "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],\n{headers}}}\n'
        f"request = urllib.request.Request({_url(job, request)!r}, data=body, headers=headers, method={request.method!r})\n"
        "with urllib.request.urlopen(request, timeout=600) as reply:\n    print(reply.read().decode())\n"
    )
