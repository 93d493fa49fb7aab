"""One daemon after the other: nobody who comes in between is turned away, and no job is lost."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from daemon import bridge, client
from eventlog.events import AttemptStarted, DaemonStarted, JobCompleted, JobInterrupted, JobRequested
from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until


def end_the_other(program: Program) -> None:
    """The daemon that a bridge has started in the place of ours."""
    status = client.ask(program.places, "get_status", {})
    os.kill(status["result"]["pid"], signal.SIGKILL)


def test_who_started_it_at_login_hears_when_its_doors_are_open_and_when_they_close(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(str(tmp_path / "notify"))
        system.settimeout(SECONDS_MAX)
        with running(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as program:
            assert system.recv(100) == b"READY=1" and (program.places.run / "mcp.sock").exists()
            second = Program(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")).start()
            assert second.wait_for_end() == 75 and system.recv(100).startswith(b"READY=1\n")
            assert program.end() == 0 and system.recv(100) == b"STOPPING=1"


def test_who_comes_while_a_daemon_ends_is_served_by_the_next_one_and_the_job_is_finished(tmp_path: Path) -> None:
    slowly = {"IMAGED_OFFLINE_SECONDS": "1.5"}
    with running(tmp_path, **slowly) as program:
        job_id = program.ask("start_generation_job", tool_name="generate_image", prompt="a fox")["result"]["job_id"]
        wait_until(lambda: program.ask("check_job_status", job_id=job_id)["result"]["state"] == "running", "the job to run")
        program.ask("stop_daemon")
        with Stdio(environment(tmp_path, **slowly)) as asker:
            try:
                assert asker.initialize()["serverInfo"]["name"] == "imaged"
                assert asker.call("get_job_result", job_id=job_id)["structuredContent"]["state"] == "completed"
            finally:
                end_the_other(program)
        assert program.wait_for_end() == 0
        facts = [event for commit in program.log() for event in commit.events]
        assert sum(isinstance(fact, DaemonStarted) for fact in facts) == 2
        assert any(isinstance(fact, JobCompleted) for fact in facts)
        assert not any(isinstance(fact, JobInterrupted) for fact in facts)


STOPS_BETWEEN_ITS_DOORS = """
import os, sys, threading
from daemon import cli, doors

def slowly(*door):
    listener = listen(*door)
    if not os.path.exists(sys.argv[2]):
        os.mkdir(sys.argv[1])
        os.mkdir(sys.argv[2])
    while os.path.exists(sys.argv[1]): threading.Event().wait(0.01)
    return listener

listen, doors.listen = doors.listen, slowly
sys.exit(cli.main(["serve"]))
"""


def test_where_somebody_lets_clients_in_the_control_api_answers_too(tmp_path: Path) -> None:
    """Who has started a daemon asks it as soon as it lets anybody in."""
    between, begun = tmp_path / "between", tmp_path / "begun"
    program = Program(tmp_path, [sys.executable, "-c", STOPS_BETWEEN_ITS_DOORS, str(between), str(begun)]).start()
    try:
        wait_until(begun.exists, "the first door")
        assert bridge.try_to_connect(str(program.places.home)) is None
        between.rmdir()
        assert program.ready().end() == 0
    finally:
        program.kill()


def facts(program: Program, *kinds: type) -> list[Any]:
    return [event for commit in program.log() for event in commit.events if isinstance(event, kinds)]


def test_a_session_outlives_a_daemon_that_is_killed_and_nothing_is_ordered_twice(tmp_path: Path) -> None:
    slowly = {"IMAGED_OFFLINE_SECONDS": "5"}
    with running(tmp_path, **slowly) as program, Stdio(environment(tmp_path)) as client, Stdio(environment(tmp_path)) as modern:
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
        client.initialize()
        assert modern.answer(modern.request("tools/list", {"_meta": meta}))["result"]["resultType"] == "complete"
        waiting = client.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "a fox"}})
        also = modern.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "a hare"}, "_meta": meta})
        wait_until(lambda: len(facts(program, AttemptStarted)) == 2, "both pictures to be drawn")
        program.kill()
        try:
            for asker, request in ((client, waiting), (modern, also)):
                result = asker.answer(request)["result"]
                assert result["isError"] and "list_jobs" in result["content"][0]["text"]
            assert client.call("list_jobs")["structuredContent"]["total"] == 2
            listed = modern.request("tools/call", {"name": "list_jobs", "arguments": {"status": "interrupted"}, "_meta": meta})
            assert modern.answer(listed)["result"]["structuredContent"]["total"] == 2
            assert len(facts(program, JobRequested)) == len(facts(program, AttemptStarted)) == 2
            assert len(facts(program, DaemonStarted)) == 2
        finally:
            end_the_other(program)


def test_a_first_call_that_a_killed_daemon_had_heard_is_not_made_again(tmp_path: Path) -> None:
    """Clients of 2026-07-28 may begin with a call, and nothing has been said to them when the daemon goes."""
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="5") as program, Stdio(environment(tmp_path)) as client:
        waiting = client.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "a fox"}, "_meta": meta})
        wait_until(lambda: facts(program, AttemptStarted), "the picture to be drawn")
        program.kill()
        assert client.answer(waiting)["result"]["isError"]
        assert len(facts(program, JobRequested)) == 1 and program.places.run.exists()


def test_a_client_that_says_nothing_starts_no_daemon_in_the_place_of_one_that_was_stopped(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(environment(tmp_path)) as client:
        client.initialize()
        program.ask("stop_daemon")
        assert program.wait_for_end() == 0
        with running(tmp_path) as after:  # it would be refused if another one served this home
            assert client.call("list_jobs")["structuredContent"]["total"] == 0
            assert after.ask("get_status")["result"]["pid"] == after.pid
