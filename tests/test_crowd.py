"""Hundreds of connections that say nothing, or one byte after the other, take nothing from those who work."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from daemon import control, doors
from eventlog.events import RequestReceived
from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until

SILENT = SLOW = 200
ROUNDS = 25  # of one byte from each of the slow, between two steps of those who work
SPARE_DESCRIPTORS = 16  # of the daemon, for the work itself
# What the slow say: at once, and byte by byte. A first line that takes its time; the head of a request, and its body.
HELLO = [(b"", b'{"imaged": 1, "software": "' + b"x" * 10_000)]
REQUESTS = [
    (b"", b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\nX-Slow: " + b"x" * 10_000),
    (
        b"POST /v1/list_jobs HTTP/1.1\r\nHost: imaged\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n",
        b" " * 10_000,
    ),
]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "idle", "version": "1"}},
}


class Crowd:
    """The silent and the slow come in turn."""

    def __init__(self, path: Path, slow_words: list[tuple[bytes, bytes]]) -> None:
        self._slow: list[tuple[socket.socket, Iterator[int]]] = []
        self._peers: list[socket.socket] = []
        for number in range(SLOW):
            at_once, slowly = slow_words[number % len(slow_words)]
            self._peers += [connected(path), connected(path, at_once)]
            self._peers[-1].setblocking(False)
            self._slow.append((self._peers[-1], iter(slowly)))
        assert len(self._peers) == SILENT + SLOW

    def go_on(self) -> None:
        for _ in range(ROUNDS):
            for peer, words in self._slow:
                with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # the last two: it was let go
                    peer.send(bytes([next(words)]))

    def held(self) -> int:
        """How many the daemon has not let go."""
        poll = select.poll()
        for peer in self._peers:
            poll.register(peer, 0)
        return len(self._peers) - len(poll.poll(0))

    def leave(self) -> None:
        for peer in self._peers:
            peer.close()


@contextmanager
def crowd(path: Path, slow_words: list[tuple[bytes, bytes]]) -> Iterator[Crowd]:
    found = Crowd(path, slow_words)
    try:
        yield found
    finally:
        found.leave()


def connected(path: Path, words: bytes = b"") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS_MAX)
    connection.connect(str(path))
    with suppress(BrokenPipeError):  # it was let go in the meantime
        connection.sendall(words)
    return connection


def descriptors(program: Program) -> int:
    return len(list(Path(f"/proc/{program.pid}/fd").iterdir()))


def draw(client: Stdio) -> bool:
    answer = client.call("generate_image", prompt="undisturbed", quality="low", size="1024x640")
    return not answer["isError"] and Path(answer["structuredContent"]["images"][0]["path"]).stat().st_size > 0


def status(http: httpx.Client) -> int:
    return http.get("/v1/status").status_code


@contextmanager
def asking(program: Program) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(program.places.run / control.SOCKET_NAME))
    with httpx.Client(transport=transport, base_url="http://imaged", timeout=SECONDS_MAX) as http:
        yield http


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("crowd")) as program:
        with Stdio(environment(program.home)) as client:  # what is opened once is open from here on
            client.initialize()
            assert draw(client)
        yield program


@pytest.mark.parametrize(
    ("name", "slow_words", "places"),
    [(doors.SOCKET_NAME, HELLO, doors.STRANGERS_MAX), (control.SOCKET_NAME, REQUESTS, control.CONNECTIONS_MAX)],
)
def test_a_crowd_at_a_door_disturbs_nobody_and_leaves_nothing_behind(
    name: str, slow_words: list[tuple[bytes, bytes]], places: int, house: Program
) -> None:
    quiet = wait_until(lambda: at_rest(house), "the daemon to be alone")
    with Stdio(environment(house.home)) as early, asking(house) as early_http:
        early.initialize()
        assert status(early_http) == 200
        with crowd(house.places.run / name, slow_words) as others:
            others.go_on()
            wait_until(lambda: others.held() <= places, "no more of them to be held than there are places")
            assert others.held() > places - SPARE_DESCRIPTORS  # and no fewer: nobody is let go without need
            assert status(early_http) == 200
            with Stdio(environment(house.home)) as client, asking(house) as http:
                client.initialize()
                others.go_on()
                assert client.answer(client.request("tools/list"))["result"]["tools"]
                others.go_on()
                assert draw(client) and draw(early)
                assert status(http) == 200
                others.go_on()
                assert status(http) == status(early_http) == 200
                assert descriptors(house) <= quiet + places + SPARE_DESCRIPTORS
    wait_until(lambda: descriptors(house) <= quiet, "the descriptors of the crowd to be closed")


def at_rest(program: Program) -> int:
    """The number of open descriptors, once it no longer changes from one question to the next."""
    counted = [descriptors(program) for _ in range(2) if program.answers()]
    return counted[0] if counted[0] == counted[1] else 0


def test_who_has_only_said_its_first_line_makes_room_for_who_speaks(house: Program) -> None:
    hello = json.dumps({"imaged": 1, "settings": house.environment}).encode() + b"\n"
    with ExitStack() as mute:
        path = house.places.run / doors.SOCKET_NAME
        first, *_ = [mute.enter_context(connected(path, hello)) for _ in range(doors.SESSIONS_MAX)]
        wait_until(lambda: house.ask("get_status")["result"]["sessions"] == doors.SESSIONS_MAX, "all of them to be in")
        with Stdio(environment(house.home)) as client:
            client.initialize()
            assert draw(client)
        said = b"".join(iter(lambda: first.recv(1 << 16), b""))
        assert "had not said anything" in json.loads(said)["refused"]
    wait_until(lambda: house.ask("get_status")["result"]["sessions"] == 0, "all of them to be gone")


def test_sessions_keep_their_places_however_idle_and_one_more_is_told_so(house: Program) -> None:
    hello = {"imaged": 1, "settings": house.environment}
    words = b"".join(json.dumps(message).encode() + b"\n" for message in (hello, INITIALIZE))
    with ExitStack() as idle:
        path = house.places.run / doors.SOCKET_NAME
        sessions = [idle.enter_context(connected(path, words)) for _ in range(doors.SESSIONS_MAX)]
        assert all(b'"protocolVersion"' in session.recv(1 << 16) for session in sessions)
        with Stdio(environment(house.home)) as refused:
            _, complaint = refused.process.communicate(timeout=SECONDS_MAX)
        assert refused.process.returncode != 0
        assert complaint.decode() == f"imaged: {doors.SESSIONS_MAX} clients are connected; close some of them.\n"
        sessions[7].close()
        wait_until(lambda: house.ask("get_status")["result"]["sessions"] < doors.SESSIONS_MAX, "a place to be free")
        with Stdio(environment(house.home)) as client:
            client.initialize()
            assert draw(client)
        sessions[0].sendall(b'{"jsonrpc":"2.0","id":2,"method":"ping"}\n')
        assert json.loads(sessions[0].recv(1 << 16)) == {"jsonrpc": "2.0", "id": 2, "result": {}}


def test_calls_at_work_in_all_places_do_not_keep_the_daemon_from_being_looked_at_and_stopped(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="600") as program, ExitStack() as peers:
        path = program.places.run / control.SOCKET_NAME
        order = {"tool_name": "generate_image", "prompt": "slow", "quality": "low", "size": "1024x640"}
        job = program.ask("start_generation_job", **order)["result"]["job_id"]
        body = json.dumps({"job_ids": [job], "after": 10**6, "wait_seconds": 30}).encode()
        head = "POST /v1/wait_for_jobs HTTP/1.1\r\nHost: imaged\r\nContent-Type: application/json\r\nContent-Length: "
        for _ in range(control.CONNECTIONS_MAX):
            peers.enter_context(connected(path, f"{head}{len(body)}\r\n\r\n".encode() + body))
        wait_until(lambda: waiting(program) == control.CONNECTIONS_MAX, "all of them to be at work")
        with asking(program) as http:
            refused = http.post("/v1/list_jobs", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_connections")
        assert "all of them are at work" in refused.json()["detail"] and refused.headers["connection"] == "close"
        silent = [peers.enter_context(connected(path)) for _ in range(2 * control.KEPT_PLACES)]
        with asking(program) as http:
            assert status(http) == status(http) == 200
        assert program.ask("get_status")["result"]["jobs_running"] == 1
        assert silent[0].recv(1 << 16).startswith(b"HTTP/1.1 503 "), "who has made room for them is told why"
        assert "stopping" in program.ask("stop_daemon")["result"]["message"]
        wait_until(lambda: program.ask("get_status").get("refused"), "it to be ending")


def waiting(program: Program) -> int:
    """How many calls have begun to wait for jobs."""
    events = [event for commit in program.log() for event in commit.events]
    return sum(isinstance(event, RequestReceived) and event.operation == "wait_for_jobs" for event in events)
