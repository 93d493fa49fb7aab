"""The one door: what is decided is applied at once and durable before anybody is told."""

import errno
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from daemon import decisions
from daemon.errors import Refused
from daemon.ledger import RIDE_SECONDS_MAX, Facts, Views
from eventlog.disk import Disk
from eventlog.errors import IllegalTransition, LogDead
from eventlog.events import RequestReceived
from eventlog.log import RESERVE_AGAIN_BYTES
from eventlog.segments import read_log
from eventlog.values import Client, JobId, Words
from tests.daemon.fakes import Opened, opened, requested, run, say, started
from tests.eventlog.disks import MemoryDisk, fail, fail_nth

T = TypeVar("T")


def positions(home: Path) -> list[int]:
    return [located.commit.position for located in read_log(home / "events", None)]


def test_a_fact_is_on_disk_when_record_returns(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                await house.ledger.record(say(requested("a"), prompt="Katze"))
                assert positions(tmp_path) == [1, 2]
                assert house.ledger.board.get(JobId("a")) is not None

    run(main)


def test_a_cancel_during_the_append_comes_too_late(tmp_path: Path) -> None:
    async def slow_disk(function: Callable[[], T]) -> T:
        result = function()
        await trio.sleep(1)
        return result

    async def main() -> None:
        with opened(tmp_path, slow_disk) as house:
            async with house.ledger.writing():
                with trio.move_on_after(0.5) as impatient:
                    await house.ledger.record(say(requested("a")))
                assert impatient.cancelled_caught
            assert house.ledger.position == 2
        assert positions(tmp_path) == [1, 2]

    run(main)


def test_what_is_decided_while_a_batch_is_written_shares_the_next_one(tmp_path: Path) -> None:
    async def slow_disk(function: Callable[[], T]) -> T:
        await trio.sleep(1)
        return function()

    async def main() -> None:
        with opened(tmp_path, slow_disk) as house:
            async with house.ledger.writing(), trio.open_nursery() as nursery:
                for name in "abcde":
                    nursery.start_soon(house.ledger.record, say(requested(name)))
                    await trio.testing.wait_all_tasks_blocked()
        batches = [line.split(b'"batch":')[1].split(b",")[0] for line in raw_lines(tmp_path)]
        assert batches == [b"1", b"2", b"3", b"3", b"3", b"3"]

    run(main)


def raw_lines(home: Path) -> list[bytes]:
    return (home / "events" / "00000000000000000000.jsonl").read_bytes().splitlines()


def test_a_refusal_changes_nothing(tmp_path: Path) -> None:
    def refuse(views: Views) -> Facts:
        raise Refused("no", code="no")

    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                with pytest.raises(Refused):
                    await house.ledger.record(refuse)
                assert house.ledger.position == 1
        assert positions(tmp_path) == [1]

    run(main)


@pytest.mark.parametrize("wrong", ["impossible fact", "unwritable word"])
def test_what_cannot_be_said_changes_neither_views_nor_disk(wrong: str, tmp_path: Path) -> None:
    decide = say(started("nobody")) if wrong == "impossible fact" else say(requested("a"), prompt="half a \ud800 character")

    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                with pytest.raises((IllegalTransition, ValueError)):
                    await house.ledger.record(decide)
                assert house.ledger.position == 1 and len(house.ledger.board) == 0
                await house.ledger.record(say(requested("b")))
        assert positions(tmp_path) == [1, 2]

    run(main)


def test_nothing_to_say_is_said_without_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                assert await house.ledger.record(lambda views: Facts(())) == ()
                assert house.ledger.position == 1

    run(main)


def test_a_posted_fact_rides_along_and_is_written_soon_in_any_case(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path) as house:
            async with house.ledger.writing():
                await house.ledger.post(say(requested("a")))
                await trio.sleep(RIDE_SECONDS_MAX / 2)
                assert positions(tmp_path) == [1]
                await trio.sleep(RIDE_SECONDS_MAX)
                assert positions(tmp_path) == [1, 2]
                await house.ledger.post(say(requested("b")))
                await house.ledger.record(say(requested("c")))
                assert positions(tmp_path) == [1, 2, 3, 4]

    run(main)


def test_what_is_pending_at_the_end_is_still_written(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path) as house, trio.CancelScope() as everything:
            async with house.ledger.writing():
                await house.ledger.post(say(requested("a")))
                everything.cancel()
                await trio.sleep_forever()
        assert positions(tmp_path) == [1, 2]

    run(main)


class DyingDisk(Disk):
    """Its sync fails from a certain call on."""

    def __init__(self, syncs: int) -> None:
        super().__init__()
        self.syncs = syncs

    def sync(self, fd: int) -> None:
        self.syncs -= 1
        if self.syncs < 0:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def test_a_failed_sync_tells_everybody_and_ends_the_writer(tmp_path: Path) -> None:
    answered: list[str] = []

    async def ask(house: object, name: str) -> None:
        try:
            await house.ledger.record(say(requested(name)))  # type: ignore[attr-defined]
        except LogDead:
            return
        answered.append(name)

    async def main() -> None:
        with opened(tmp_path, disk=DyingDisk(syncs=3)) as house:
            with pytest.RaisesGroup(LogDead, flatten_subgroups=True):
                async with house.ledger.writing(), trio.open_nursery() as nursery:
                    for name in "abcdef":
                        nursery.start_soon(ask, house, name)
                        await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(LogDead):
                await house.ledger.record(say(requested("later")))

    run(main)
    kept = {
        event.job
        for located in read_log(tmp_path / "events", None)
        for event in located.commit.events[:1]
        if hasattr(event, "job")
    }
    assert set(answered) <= kept


def test_whoever_waits_is_woken_by_the_next_fact(tmp_path: Path) -> None:
    async def main() -> None:
        woken = []

        async def wait(house: object) -> None:
            await house.ledger.wait_beyond(house.ledger.position)  # type: ignore[attr-defined]
            woken.append(house.ledger.position)  # type: ignore[attr-defined]

        with opened(tmp_path) as house:
            async with house.ledger.writing(), trio.open_nursery() as nursery:
                nursery.start_soon(wait, house)
                await trio.testing.wait_all_tasks_blocked()
                assert not woken
                await house.ledger.record(say(requested("a")))
        assert woken == [2]

    run(main)


def test_nobody_is_told_before_the_batch_of_his_own_is_written(tmp_path: Path) -> None:
    async def slow_disk(function: Callable[[], T]) -> T:
        await trio.sleep(1)
        return function()

    async def ask(house: Opened, name: str) -> None:
        decision = say(requested(name))
        await house.ledger.record(decision)
        job = house.ledger.board.get(JobId(name))
        assert job is not None and job.position in positions(tmp_path)

    async def main() -> None:
        with opened(tmp_path, slow_disk) as house:
            async with house.ledger.writing(), trio.open_nursery() as nursery:
                for name in "abcde":
                    nursery.start_soon(ask, house, name)
                    await trio.testing.wait_all_tasks_blocked()

    run(main)


class LookedAtDisk(MemoryDisk):
    looked = 0

    def names(self, directory: int) -> list[str]:
        self.looked += 1
        return super().names(directory)


@pytest.mark.parametrize("door", ["record", "post"])
def test_the_first_order_after_there_is_room_again_is_taken(door: str, tmp_path: Path) -> None:
    """The refusal's own fact would be the first that finds the room; so it is looked for before."""
    received = RequestReceived(operation="generate_image", door="mcp", client=Client(name="c"))
    terms = decisions.Terms(datetime(2026, 11, 22, tzinfo=UTC))

    async def main() -> None:
        disk = LookedAtDisk(free=RESERVE_AGAIN_BYTES)
        with opened(tmp_path, disk=disk) as house:
            order = partial(getattr(house.ledger, door), decisions.request_job(received, requested("a"), Words(salt=""), terms))
            async with house.ledger.writing():
                disk.before, disk.free = fail_nth(1, fail(errno.ENOSPC), only="pwrite"), RESERVE_AGAIN_BYTES - 1
                await house.ledger.record(say(requested("b")))
                for _ in range(2):
                    with pytest.raises(Refused, match="is full"):
                        await order()
                disk.free = RESERVE_AGAIN_BYTES
                await order()
                assert house.ledger.board.get(JobId("a")) is not None and not house.log.full
                looked = disk.looked
                with pytest.raises(Refused, match="no job"):
                    await house.ledger.record(decisions.cancel_job(JobId("none")))
                assert disk.looked == looked, "a disk that has room is not asked about each refusal"

    run(main)
