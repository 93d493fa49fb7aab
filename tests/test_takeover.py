"""A later version comes: the daemon that runs finishes what it draws, serves everybody meanwhile, and makes way."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon import bridge
from daemon.version import VERSION
from eventlog.events import DaemonStopped, JobCompleted, JobRequested, JobStarted
from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until

FOX = {"prompt": "a fox", "return_base64": True}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "later", "version": "1"}},
}


@contextmanager
def connected(program: Program, software: str) -> Iterator[socket.socket]:
    """As the bridge of that version, which says its first line and what its client has said, all at once."""
    found = bridge.try_to_connect(str(program.places.home))
    assert found is not None
    with closing(socket.socket(fileno=found.detach())) as connection:
        connection.settimeout(SECONDS_MAX)
        hello = {"imaged": 1, "software": software, "door": "mcp", "settings": bridge.settings_of(program.environment)}
        connection.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in (hello, INITIALIZE)))
        yield connection


def facts(program: Program, *kinds: type) -> list[Any]:
    return [event for commit in program.log() for event in commit.events if isinstance(event, kinds)]


def order(program: Program) -> str:
    job_id: str = program.ask("start_generation_job", tool_name="generate_image", prompt="a fox", again=True)["result"]["job_id"]
    return job_id


def test_an_idle_daemon_makes_way_at_once_and_says_that_it_has_not_listened(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        with connected(program, "999.0.0") as connection:
            assert json.loads(connection.recv(100)) == {"imaged": 1, "leaving": True} and connection.recv(100) == b""
            assert bridge.try_to_connect(str(program.places.home)) is None, "who comes now must find the next daemon"
        assert program.wait_for_end() == 0
        (stopped,) = facts(program, DaemonStopped)
        assert stopped.reason == "imaged 999.0.0 takes over"


@pytest.mark.parametrize("software", ["0.0.9", "unknown", ""])
def test_who_is_not_later_is_served(software: str, tmp_path: Path) -> None:
    with running(tmp_path) as program:
        with connected(program, software) as connection:
            assert b'"serverInfo"' in connection.recv(100_000)
        assert program.answers()


def test_what_is_drawn_is_finished_and_what_waits_is_left_to_the_next_daemon(tmp_path: Path) -> None:
    settings = {"IMAGED_OFFLINE_SECONDS": "2", "IMAGED_MAX_CONCURRENT": "1"}
    with running(tmp_path, **settings) as program, Stdio(environment(tmp_path, **settings)) as client:
        client.initialize()
        drawn = order(program)
        wait_until(lambda: facts(program, JobStarted), "the first job to start")
        waiting = client.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "waits"}})
        for_the_first = client.request("tools/call", {"name": "get_job_result", "arguments": {"job_id": drawn}})
        client.answer(for_the_first)
        with connected(program, "999.0.0") as connection:
            with connection.makefile("rb") as said:
                assert json.loads(said.readline()) == {"imaged": 1, "makes_way": True}
                assert b'"serverInfo"' in said.readline(), "it is served while the picture is drawn"
            left = order(program)
            told = client.answer(waiting)["result"]
            assert not told.get("isError") and told["structuredContent"]["state"] == "pending"
            assert connection.recv(100_000) == b""
        assert program.wait_for_end() == 0
        assert [fact.job for fact in facts(program, JobStarted)] == [drawn] == [fact.job for fact in facts(program, JobCompleted)]
        assert {fact.job for fact in facts(program, JobRequested)} == {drawn, left, told["structuredContent"]["job_id"]}
        with running(tmp_path) as after:
            wait_until(lambda: len(facts(after, JobCompleted)) == 3, "the next daemon to draw the others")


def test_who_waits_for_a_picture_that_is_drawn_gets_it_from_a_daemon_that_was_told_to_stop(tmp_path: Path) -> None:
    settings = {"IMAGED_OFFLINE_SECONDS": "1.5"}
    with running(tmp_path, **settings) as program, Stdio(environment(tmp_path, **settings)) as client:
        client.initialize()
        waiting = client.request(
            "tools/call", {"name": "generate_image", "arguments": {"prompt": "a fox", "return_base64": True}}
        )
        wait_until(lambda: facts(program, JobStarted), "the job to start")
        with connected(program, VERSION) as silent:
            assert b'"serverInfo"' in silent.recv(100_000)
            program.ask("stop_daemon")
            assert silent.recv(100) == b"" and not facts(program, JobCompleted), "who waits for nothing is let go at once"
        answer = client.answer(waiting)["result"]
        assert answer["structuredContent"]["state"] == "completed" and answer["content"][1]["type"] == "image"
        assert program.wait_for_end() == 0


def test_a_later_command_makes_the_daemon_leave_and_hears_so(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        for software, leaves in (("imaged/0.0.1", False), ("curl/999.0.0", False), ("imaged/999.0.0", True)):
            found = bridge.try_to_connect(str(program.places.home), "control.sock")
            assert found is not None
            with closing(socket.socket(fileno=found.detach())) as connection:
                connection.settimeout(SECONDS_MAX)
                connection.sendall(f"GET /v1/status HTTP/1.1\r\nHost: imaged\r\nUser-Agent: {software}\r\n\r\n".encode())
                head, _, body = connection.recv(100_000).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200") and json.loads(body)["draining"] is leaves
        assert program.wait_for_end() == 0
