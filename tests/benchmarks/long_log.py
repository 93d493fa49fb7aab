"""A home with a long, believable log, made quickly and kept for the next run.

.venv/bin/python -m tests.benchmarks.long_log HOME [COMMITS]     1,000,000 unless told; about 1.1 GB and half a minute
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlog.events import (
    FORMAT,
    AttemptFailed,
    AttemptStarted,
    Commit,
    DaemonStarted,
    Event,
    JobCompleted,
    JobFailed,
    JobRequested,
    JobStarted,
    LogCreated,
    ReplyReceived,
    RequestReceived,
)
from eventlog.framing import NO_HASH, draft, seal
from eventlog.log import SEGMENT_BYTES
from eventlog.segments import Mark, segment_name
from eventlog.values import (
    Account,
    Client,
    Cost,
    CostRange,
    ImageFile,
    ImageRequest,
    JobId,
    MicroUSD,
    Picture,
    Position,
    Rendered,
    Sha256,
    Tool,
    Usage,
    Words,
)

COMMITS = 1_000_000
BUFFER_BYTES = 8 * 1024 * 1024
DAWN = datetime(2025, 1, 1, tzinfo=UTC)
SECONDS_BETWEEN_JOBS = 300
TABLE = "2026-11-22"
TOOLS: tuple[Tool, ...] = ("generate_image", "edit_image", "transform_image")
MODELS = ("gpt-image-2.5-flare", "gpt-image-2.5", "gpt-image-2")
CLIENTS = (
    Client(name="claude-code", version="2.1"),
    Client(name="cursor", version="1.9"),
    Client(name="imaged", version="0.1.0"),
)
RARE = "capybara"
RARE_ONE_IN = 20_000  # prompts
TEXT = (
    "a fox in the snow at dawn, soft light from the left, long shadows, film grain, a red scarf on a wooden fence, quiet street "
    "with neon signs after rain, isometric icon of a paper lamp, watercolour of the harbour, portrait of an old fisherman, "
    "minimal poster with bold type, product photo of a ceramic cup on linen, macro of dew on moss, children's book illustration"
)
LATIN = TEXT.split(" ")
JAPANESE = (
    "逆光の猫",
    "冬の朝",
    "ガラスの鳥",
    "雨上がりの路地",
    "和紙のランプ",
    "港の水彩画",
    "桜の下で",
    "赤いマフラー",
    "静かな湖面",
    "、",
    "の上に",
)


class Made(NamedTuple):
    """What a log holds; `last` is the mark of its last commit."""

    commits: int
    jobs: int
    bytes: int
    last: Mark


def make(home: Path, commits: int) -> Made:
    """The log below `home`, at least as long as told; one that is there already and was made alike is taken as it is."""
    said = home / f"made-{commits}.json"
    if said.exists():
        return msgspec.json.decode(said.read_bytes(), type=Made)
    events = home / "imaged" / "events"
    events.mkdir(parents=True, mode=0o700)
    made = _written(events, commits)
    said.write_bytes(msgspec.json.encode(made))
    return made


def _written(events: Path, commits: int) -> Made:
    chance = random.Random(1)  # so that a shorter log is the beginning of a longer one
    previous, offset, start, batch, jobs, last = NO_HASH, 0, 0, 1, 0, Mark(0, Position(0), NO_HASH)
    buffer: list[bytes] = []
    held = 0
    file = (events / segment_name(0)).open("wb")
    for commit in _commits(chance):
        if chance.random() < 0.7:  # the others were waiting when the sync before them ended
            batch = commit.position
            if offset - start >= SEGMENT_BYTES:
                file.writelines(buffer)
                buffer, held, start = [], 0, offset
                file.close()
                file = (events / segment_name(start)).open("wb")
        sealed = seal(draft(commit), previous, Position(batch))
        last = Mark(offset, commit.position, sealed.hash)
        previous = sealed.hash
        offset += len(sealed.line)
        held += len(sealed.line)
        buffer.append(sealed.line)
        ends = isinstance(commit.events[-1], JobCompleted | JobFailed)
        jobs += ends
        if held > BUFFER_BYTES:
            file.writelines(buffer)
            buffer, held = [], 0
        if ends and commit.position >= commits:
            break
    file.writelines(buffer)
    file.close()
    return Made(last.position, jobs, offset, last)


def _commits(chance: random.Random) -> Iterator[Commit]:
    position, at = 0, DAWN

    def commit(*events: Event, words: Words | None = None) -> Commit:
        nonlocal position, at
        position += 1
        at += timedelta(milliseconds=chance.randrange(1, 2000))
        return Commit(position=Position(position), at=at, events=events, words=words)

    yield commit(LogCreated(format=FORMAT, software="0.1.0"))
    yield commit(DaemonStarted(software="0.1.0"))
    number = 0
    while True:
        at += timedelta(seconds=chance.randrange(SECONDS_BETWEEN_JOBS))
        for events, words in _generation(chance, number):
            yield commit(*events, words=words)
        number += 1
        if chance.random() < 0.5:
            asked = RequestReceived(operation="list_history", door="mcp", client=chance.choice(CLIENTS))
            yield commit(asked, words=Words(salt=f"{chance.getrandbits(128):032x}", arguments={"limit": msgspec.Raw(b"20")}))


def _generation(chance: random.Random, number: int) -> Iterator[tuple[tuple[Event, ...], Words | None]]:
    time = f"{0x0194_0000_0000 + number:012x}"
    job = JobId(f"{time[:8]}-{time[8:]}-7000-8000-{chance.getrandbits(48):012x}")
    tool, model, client = chance.choice(TOOLS), chance.choice(MODELS), chance.choice(CLIENTS)
    salt = f"{chance.getrandbits(128):032x}"
    low = MicroUSD(9_000)
    requested = JobRequested(
        job=job,
        request=ImageRequest(tool=tool, model=model, size="1024x1024", quality="medium"),
        account=Account(backend="openai", key="f3abf2a6cc4f"),
        client=client,
        estimate=CostRange(low=low, high=MicroUSD(13_000), table=TABLE),
    )
    asked = RequestReceived(operation=tool, door="mcp", client=client)
    yield (asked, requested), Words(salt=salt, prompt=prompt(chance, number), output_path="", output_dir="/home/ann/Pictures")
    yield (JobStarted(job=job),), None
    body = _digest(chance)
    yield (AttemptStarted(job=job, attempt=1, client_request_id=f"imaged-{job}-1", body_sha256=body),), None
    if chance.random() < 0.04:
        failed = AttemptFailed(
            job=job, attempt=1, code="moderation_blocked", billed="no", status=400, request_id="req_0123456789"
        )
        yield (failed, JobFailed(job=job, code="moderation_blocked", billed="no")), Words(salt=salt, message="Not drawn.")
        return
    size = chance.randrange(900_000, 2_500_000)
    received, saved = _digest(chance), _digest(chance)
    out = chance.randrange(1000, 1800)
    yield (
        (
            ReplyReceived(
                job=job,
                attempt=1,
                pictures=(Picture(sha256=received, size_bytes=size, width=1024, height=1024, format="png"),),
                cost=Cost(amount=MicroUSD(out * 8), basis="usage", table=TABLE),
                usage=Usage(
                    input_tokens=60, output_tokens=out, total_tokens=60 + out, input_text_tokens=60, output_image_tokens=out
                ),
                rendered=Rendered(size="1024x1024", quality="medium", background="opaque", output_format="png"),
                request_id=f"req_{chance.getrandbits(96):024x}",
            ),
        ),
        None,
    )
    image = ImageFile(sha256=saved, size_bytes=size + 1200, width=1024, height=1024, format="png", original=received)
    path = f"/home/ann/Pictures/picture-{number}.png"
    yield (JobCompleted(job=job, images=(image,)),), Words(salt=salt, paths=(path,))


def prompt(chance: random.Random, number: int) -> str:
    """30 to 300 characters, a third of them Japanese; one in `RARE_ONE_IN` names what no other does."""
    rare = f" {RARE}" if number % RARE_ONE_IN == RARE_ONE_IN // 2 else ""
    if chance.random() < 1 / 3:
        return "".join(chance.choices(JAPANESE, k=chance.randrange(6, 40))) + rare
    return " ".join(chance.choices(LATIN, k=chance.randrange(6, 50))) + rare


def _digest(chance: random.Random) -> Sha256:
    return Sha256(hashlib.sha256(chance.randbytes(8)).hexdigest())


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else COMMITS))
