"""What is kept of a stream while it comes, without a socket."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import trio

from daemon.ledger import Decision, Ledger
from daemon.previews import Previews
from eventlog.errors import LogDead
from eventlog.events import AttemptStarted
from eventlog.values import ImageRequest, JobId, Sha256
from tests.tools.test_streaming import completed, part
from tools.store import Store

T = TypeVar("T")
STARTED = AttemptStarted(job=JobId("j"), attempt=1, client_request_id="c", body_sha256=Sha256("0" * 64))


class DeadLedger:
    async def post(self, decide: Decision) -> None:
        raise LogDead("the event log takes nothing more")


async def at_once(function: Callable[[], T]) -> T:
    return function()


def previews(store: Path, *, count: int = 1) -> Previews:
    request = ImageRequest(tool="generate_image", model="gpt-image-2", count=count, partial_images=1)
    return Previews(cast(Ledger, DeadLedger()), Store.open(store), request, STARTED, at_once)


def test_all_is_there_when_every_picture_has_come_and_not_before(tmp_path: Path) -> None:
    async def main() -> list[bool]:
        two = previews(tmp_path, count=2)
        return [await two.hear(piece) for piece in (completed(), completed()[:-1], b"\n", b"")]

    assert trio.run(main) == [False, False, True, True]


def test_a_log_that_is_dead_does_not_end_a_stream_whose_picture_is_paid_for(tmp_path: Path) -> None:
    async def main() -> bool:
        return await previews(tmp_path).hear(part() + completed())

    assert trio.run(main)
