"""Between the paid answer and the stored picture: no stop, no full disk and no damaged spool takes it away."""

import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import trio
from PIL import Image

from daemon import courier, offline, scheduler, supervisor, worker
from daemon.keyring import Keyring
from daemon.ledger import Ledger
from daemon.post import RawReply
from daemon.worker import Worker
from eventlog.audit import narrate
from eventlog.disk import Disk
from eventlog.values import JobId
from tests.daemon.fakes import OFFLINE, attempt, opened, requested, say, started
from tests.program import SECONDS_MAX
from tools.openai_api import ApiRequest
from tools.store import Store

T = TypeVar("T")
A = JobId("a")


class StoppedAtTheAnswer:
    """A courier whose answer comes at the very moment at which somebody stops everything."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop

    async def send(self, request: ApiRequest, *_: object) -> RawReply:
        self.stop()
        return RawReply(200, {}, offline.answer("POST", "/v1" + request.path, request.body).body)


class FullDisk(Disk):
    """Has no room for the next so many writes."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pwrite(fd, data, offset)


def drawn(home: Path, disk: Disk | None = None, *, stopped: bool = False, name: str = "x.png") -> str:
    """What the log tells of a job after a worker has drawn it."""

    async def main() -> None:
        with trio.fail_after(SECONDS_MAX), opened(home) as house:
            async with house.ledger.writing():
                order = requested(A, OFFLINE, size="1024x1024", quality="low")
                await house.ledger.record(say(order, prompt="x", output_path=name, output_dir=str(home / "pictures")))
                await house.ledger.record(say(started(A)))
                with trio.CancelScope() as scope:
                    hand = StoppedAtTheAnswer(scope.cancel if stopped else lambda: None)
                    store = Store.open(home / "store", disk)
                    await Worker(house.ledger, hand, Keyring(), store).run(A)  # type: ignore[arg-type]

    trio.run(main)
    return "\n".join(narrate(home / "events", A))


def test_a_stop_at_the_answer_does_not_cost_the_picture(tmp_path: Path) -> None:
    assert " completed: " in drawn(tmp_path, stopped=True)
    assert (tmp_path / "pictures" / "x.png").exists()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STORE_WAIT_SECONDS", 0)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_full_for_a_moment_still_gets_the_picture(tmp_path: Path) -> None:
    assert " completed: " in drawn(tmp_path, FullDisk(3))


@pytest.mark.usefixtures("impatient")
def test_what_a_full_store_does_not_take_is_put_straight_into_its_place(tmp_path: Path) -> None:
    told = drawn(tmp_path, FullDisk(10**6))
    picture = tmp_path / "pictures" / "x.png"
    assert "failed: not_stored, billed: " in told and str(picture) in told
    with Image.open(picture) as image:
        image.load()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_has_room_again_after_minutes_still_gets_what_nothing_else_takes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "late").write_text("a file where the folder should be", "utf-8")
    told = drawn(tmp_path, FullDisk(100), name="late/x.png")
    assert "reply received: 1 in the store" in told and "failed: not_saved, billed: no" in told


def test_what_no_disk_takes_for_so_long_is_told_as_paid_and_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STORE_SECONDS_MAX", 0)
    (tmp_path / "pictures").write_text("a file where the folder should be", "utf-8")
    told = drawn(tmp_path, FullDisk(10**6))
    assert "failed: not_stored, billed: " in told and "could not be kept" in told


@pytest.mark.usefixtures("impatient")
def test_a_stop_while_the_store_is_full_puts_the_picture_into_its_place(tmp_path: Path) -> None:
    told = drawn(tmp_path, FullDisk(10**6), stopped=True)
    assert "failed: not_stored" in told and (tmp_path / "pictures" / "x.png").exists()


class StoppedAtTheLastByte(httpx.AsyncByteStream):
    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"the whole "
        self.stop()
        yield b"body"

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def test_a_stop_at_the_last_byte_does_not_cost_the_body() -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            reply = await courier._whole(httpx.Response(200, stream=StoppedAtTheLastByte(scope.cancel)), None, [])
            assert reply.body == b"the whole body"
            return
        raise AssertionError("the stop took the body with it")

    trio.run(main)


class Noted:
    """A worker that only notes what it was given."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    async def run(self, job_id: JobId) -> None:
        await trio.lowlevel.checkpoint()
        self.jobs.append(job_id)


def test_a_job_that_is_recorded_as_started_has_a_worker_whatever_stops_the_scheduler(tmp_path: Path) -> None:
    scopes: list[trio.CancelScope] = []

    async def stopping_disk(function: Callable[[], T]) -> T:
        result = function()
        for scope in scopes:
            scope.cancel()
        await trio.lowlevel.checkpoint()
        return result

    async def main() -> None:
        noted = Noted()
        with trio.fail_after(SECONDS_MAX), opened(tmp_path, stopping_disk) as house:
            async with house.ledger.writing(), trio.open_nursery() as workers:
                await house.ledger.record(say(requested(A, OFFLINE)))
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    await schedule(house.ledger, noted, workers)
        assert noted.jobs == [A]

    trio.run(main)


async def schedule(ledger: Ledger, noted: Noted, workers: trio.Nursery) -> None:
    await scheduler.run(ledger, Keyring(), noted, workers)  # type: ignore[arg-type]


def test_a_damaged_spool_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                for fact in (requested(A), started(A), attempt(A)):
                    await house.ledger.record(say(fact))
                job = house.ledger.board.get(A)
                assert job is not None
                store = Store.open(tmp_path / "store")
                assert supervisor._spooled(store, job) is None
                store.spool(job.client_request_id, b'{"type":"ReplyRec')
                assert supervisor._spooled(store, job) is None

    trio.run(main)
