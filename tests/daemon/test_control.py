"""The control API's clocks and its peers, behind a real socket, on a clock that jumps."""

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from daemon import control, decisions, doors, supervisor
from daemon.config import Places
from daemon.control import (
    BODY_SECONDS_MAX,
    CONNECTIONS_MAX,
    HEAD_SECONDS_MAX,
    IDLE_SECONDS_MAX,
    LAST_ANSWERS_SECONDS_MAX,
    WRITE_SECONDS_MAX,
)
from daemon.control_events import HEARTBEAT_SECONDS
from daemon.house import House
from daemon.keyring import Keyring
from daemon.ledger import RunBlocking
from daemon.strict_json import DEPTH_MAX, NotStrict, read_object
from eventlog.history import History
from tests.daemon.fakes import inline, opened, run
from tools.store import Store

T = TypeVar("T")
LOOK = b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\n\r\n"
ASK = b"GET /v1/operations HTTP/1.1\r\nHost: imaged\r\n\r\n"
FOLLOW = b"GET /v1/events?after=1&follow=1 HTTP/1.1\r\nHost: imaged\r\n\r\n"
DRAW = b"POST /v1/generate_image HTTP/1.1\r\nHost: imaged\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


@contextmanager
def furnished(home: Path, run_blocking: RunBlocking) -> Iterator[House]:
    with opened(home, run_blocking) as below:
        yield House(
            places=Places(home),
            log=below.log,
            index=below.index,
            ledger=below.ledger,
            history=History(home / "index.sqlite"),
            store=Store.open(home / "store"),
            keyring=Keyring(),
            now=below.calendar,
            started_at=datetime.now(UTC),
            idle_exit_seconds=900,
        )


@asynccontextmanager
async def door(home: Path, run_blocking: RunBlocking = inline) -> AsyncIterator[House]:
    with furnished(home, run_blocking) as house:
        listener = doors.listen(house.places.run, control.SOCKET_NAME)
        async with house.ledger.writing(), control.open_door(listener, house):
            yield house


async def connect(house: House) -> trio.SocketStream:
    # Through the descriptor: a test's directory may be longer than a socket's address.
    directory = os.open(house.places.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = trio.socket.socket(socket.AF_UNIX)
        await connection.connect(doors.address(house.places.run, directory, control.SOCKET_NAME))
    finally:
        os.close(directory)
    return trio.SocketStream(connection)


async def left_when_idle(house: House) -> float:
    """The moment at which the daemon has been idle for long enough."""
    await supervisor._leave_when_idle(house)
    return trio.current_time()


async def everything(stream: trio.SocketStream) -> bytes:
    said = b""
    while piece := await stream.receive_some(1 << 16):
        said += piece
    return said


@pytest.mark.parametrize(
    ("sent", "seconds", "said"),
    [
        (b"", IDLE_SECONDS_MAX, b""),
        (b"GET /v1/st", HEAD_SECONDS_MAX, b"408"),
        (b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\n", HEAD_SECONDS_MAX, b"408"),
        (DRAW + b"{", BODY_SECONDS_MAX, b"408"),
    ],
)
def test_a_peer_that_says_too_little_is_let_go(sent: bytes, seconds: float, said: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer:
            await peer.send_all(sent)
            began = trio.current_time()
            heard = await peer.receive_some()
            assert trio.current_time() - began == pytest.approx(seconds)
            assert heard[9:12] == said
            assert await everything(peer) == b"" or said

    run(main)


def test_a_head_that_drips_is_let_go_however_often_it_drips(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer:
            for letter in b"GET /":
                await peer.send_all(bytes([letter]))
                await trio.sleep(HEAD_SECONDS_MAX / 5.001)
            assert (await everything(peer))[9:12] == b"408"

    run(main)


def test_a_connection_between_two_requests_may_wait_a_minute(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer:
            for _ in range(2):
                await peer.send_all(b"GET /nowhere HTTP/1.1\r\nHost: imaged\r\n\r\n")
                assert (await peer.receive_some())[9:12] == b"404"
                await trio.sleep(IDLE_SECONDS_MAX - 1)

    run(main)


def test_a_peer_that_takes_nothing_is_let_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer:
            await peer.send_all(ASK * 50)  # some megabytes of answers, more than a socket holds
            began = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await trio.sleep(1)
                    await peer.send_all(b"x")
            assert trio.current_time() - began == pytest.approx(WRITE_SECONDS_MAX, abs=1.5)

    run(main)


@pytest.mark.parametrize(("accept", "heartbeat"), [(b"", b"\n"), (b"Accept: text/event-stream\r\n", b": still here\n\n")])
def test_a_follower_hears_a_sign_of_life_and_counts_until_it_is_gone(accept: bytes, heartbeat: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house:
            async with await connect(house) as peer:
                await peer.send_all(FOLLOW.replace(b"\r\n\r\n", b"\r\n" + accept + b"\r\n"))
                assert (await peer.receive_some())[9:12] == b"200"
                began = trio.current_time()
                assert house.sessions == 1
                for times in (1, 2):
                    assert heartbeat in await peer.receive_some()
                    assert trio.current_time() - began == pytest.approx(times * HEARTBEAT_SECONDS)
            await trio.sleep(3 * HEARTBEAT_SECONDS)
            assert house.sessions == 0

    run(main)


def test_a_door_that_closes_lets_followers_and_idle_ones_go_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with door(tmp_path) as house:
                follower, idle, half = [await connect(house) for _ in range(3)]
                await follower.send_all(FOLLOW)
                assert (await follower.receive_some())[9:12] == b"200"
                await half.send_all(b"GET /v1")
                await trio.testing.wait_all_tasks_blocked()
                began = trio.current_time()
            assert trio.current_time() - began <= LAST_ANSWERS_SECONDS_MAX
            assert (await everything(follower)).endswith(b"0\r\n\r\n")
            assert await everything(idle) == b""
            nursery.cancel_scope.cancel()
        for stream in (follower, idle, half):
            await stream.aclose()

    run(main)


def test_a_follower_that_has_heard_all_makes_room_in_good_order(tmp_path: Path) -> None:
    ended: list[bytes] = []

    async def follow(peer: trio.SocketStream) -> None:
        await peer.send_all(FOLLOW)
        ended.append(await everything(peer))

    async def main() -> None:
        async with door(tmp_path) as house, AsyncExitStack() as peers, trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS_MAX):
                nursery.start_soon(follow, await peers.enter_async_context(await connect(house)))
            await trio.testing.wait_all_tasks_blocked()
            assert house.sessions == CONNECTIONS_MAX
            async with await connect(house) as one_more:
                await one_more.send_all(ASK)
                assert (await one_more.receive_some())[9:12] == b"200"
                await trio.testing.wait_all_tasks_blocked()
                assert len(ended) == 1 and house.sessions == CONNECTIONS_MAX - 1
            assert b"\r\nconnection: close\r\n" in ended[0] and ended[0].endswith(b"\r\n0\r\n\r\n")
            nursery.cancel_scope.cancel()

    run(main)


def test_a_conversation_without_a_session_keeps_the_daemon_and_a_look_now_and_then_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer, trio.open_nursery() as nursery:
            house.idle_exit_seconds = 4
            nursery.start_soon(left_when_idle, house)
            for _ in range(20):
                await peer.send_all(FOLLOW.replace(b"&follow=1", b""))
                said = b""
                while not said.endswith(b"\r\n0\r\n\r\n"):
                    said += await peer.receive_some()
                last_asked_at = trio.current_time()
                await trio.sleep(1)
            assert not house.ending.wanted
            while not house.ending.wanted:
                await peer.send_all(LOOK)
                assert b"200" in await peer.receive_some()
                await trio.sleep(0.5)
                assert trio.current_time() - last_asked_at < 60
            assert trio.current_time() - last_asked_at == pytest.approx(4, abs=1.6)

    run(main)


def test_nothing_that_is_being_answered_is_cut_off_by_idleness(tmp_path: Path) -> None:
    """Neither while it is worked on, here for as long as a disk takes, nor while the answer is taken slowly."""

    async def slow_disk(function: Callable[[], T]) -> T:
        await trio.sleep(20)
        return function()

    async def main() -> None:
        async with door(tmp_path, slow_disk) as house, await connect(house) as peer, trio.open_nursery() as nursery:
            house.idle_exit_seconds = 4
            nursery.start_soon(house.ledger.record, decisions.start_daemon("x", 0))
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(LOOK)
            await trio.testing.wait_all_tasks_blocked()
            assert await left_when_idle(house) == pytest.approx(20, abs=1.1)
        async with door(tmp_path) as house, await connect(house) as peer:
            house.idle_exit_seconds = 4
            began = trio.current_time()
            await peer.send_all(ASK * 50)  # some megabytes of answers, more than a socket holds
            await trio.testing.wait_all_tasks_blocked()
            left = await left_when_idle(house) - began
            assert left == pytest.approx(WRITE_SECONDS_MAX + house.idle_exit_seconds, abs=1.1)

    run(main)


def test_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with door(tmp_path) as house:
            mine = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
            async with await connect(house) as peer:
                with pytest.raises(trio.BrokenResourceError):
                    await peer.send_all(ASK)
                    assert await everything(peer) == b""
                    await peer.send_all(ASK)
            monkeypatch.undo()
            async with await connect(house) as peer:
                await peer.send_all(ASK)
                assert (await peer.receive_some())[9:12] == b"200"

    run(main)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"[]", "not an object"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": {"b": 1, "b": 2}}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": "\n"}', "not JSON"),
        (b'{"a":' * DEPTH_MAX + b"[]" + b"}" * DEPTH_MAX, "deeper"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper"),
    ],
)
def test_json_that_two_readers_could_understand_differently_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(NotStrict, match=complaint):
        read_object(data)


def test_other_json_is_what_it_is() -> None:
    assert read_object(b"") == read_object(b" \n") == read_object(b"{}") == {}
    assert read_object('{"狐": ["\\ud83e\\udd8a", 1.5, null]}'.encode()) == {"狐": ["🦊", 1.5, None]}
    deep = b'{"a":' * (DEPTH_MAX - 1) + b"[1]" + b"}" * (DEPTH_MAX - 1)
    assert list(read_object(deep)) == ["a"]


def test_bodies_are_read_as_strictly(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as house, await connect(house) as peer:
            await peer.send_all(DRAW + b"{]")
            said = await peer.receive_some()
            while b'"billed":"no"' not in said:
                said += await peer.receive_some()
            assert said[9:12] == b"400" and b'"code":"bad_json"' in said

    trio.run(partial(within, 60, main))


async def within(seconds: float, main: object) -> None:
    with trio.fail_after(seconds):
        await main()  # type: ignore[operator]
