"""One daemon after the other: nobody who comes in between is turned away, and no job is lost."""

import os
import signal
import socket
from pathlib import Path

from daemon import client
from eventlog.events import DaemonStarted, JobCompleted, JobInterrupted
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
