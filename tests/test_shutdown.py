"""A daemon that is told to stop: what it still does, what it leaves, and what is found afterwards."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.ending import SHUTDOWN_SECONDS_MAX
from eventlog.audit import verify
from eventlog.events import DaemonStopped
from tests.program import SECONDS_MAX, Program, altered, running, wait_until
from tests.standin import Behaviour, Request, StandIn
from tests.test_faults import api

ORDER = {"tool_name": "generate_image", "prompt": "a fox", "quality": "low"}


@pytest.fixture
def holds() -> Iterator[Behaviour]:
    """Does not answer before the test is over."""
    over = threading.Event()

    def hold(_: Request) -> None:
        over.wait(SECONDS_MAX)

    yield hold
    over.set()


def test_the_daemon_leaves_with_a_fact_and_status_zero(tmp_path: Path) -> None:
    program = Program(tmp_path).start().ready()
    assert program.ask("stop_daemon", reason="enough")["result"]["message"]
    assert program.wait_for_end() == 0
    assert type(program.log()[-1].events[0]).__name__ == "DaemonStopped"
    again = Program(tmp_path).start().ready()
    assert again.end() == 0
    assert program.log()[-1].events[0].reason == "SIGTERM"  # type: ignore[union-attr]


def test_a_stop_while_jobs_are_starting_does_not_wait_for_workers_that_never_came(tmp_path: Path) -> None:
    for number in range(4):
        home = tmp_path / str(number)
        home.mkdir()
        program = Program(home, IMAGED_SYNC_WAIT_SECONDS="0", IMAGED_MAX_CONCURRENT="2").start().ready()
        for prompt in "abcdefgh":
            program.ask("generate_image", prompt=prompt, quality="low", size="1024x640")
        before = program.log()[-1].at
        assert program.end() == 0
        assert (program.log()[-1].at - before).total_seconds() < SHUTDOWN_SECONDS_MAX


def test_a_stopping_daemon_lets_its_picture_end(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="1", IMAGED_SYNC_WAIT_SECONDS="0") as program:
        job = program.ask("generate_image", prompt="last words", quality="low")["result"]["job_id"]
        assert program.end() == 0
        with running(tmp_path) as again:
            report = again.ask("get_history_by_uuid", uuid=job)["result"]
            assert report["state"] == "completed" and Path(report["images"][0]["path"]).exists()
            assert report["attempts"] == 1


def test_what_does_not_end_in_time_is_left_as_interrupted_and_the_status_is_zero(holds: Behaviour, tmp_path: Path) -> None:
    with StandIn(holds) as standin:
        program = Program(tmp_path, altered("supervisor.SHUTDOWN_SECONDS_MAX = 0.2"), **api(standin.url)).start().ready()
        job = program.ask("start_generation_job", **ORDER)["result"]["job_id"]
        wait_until(lambda: standin.requests, "the request to arrive")
        assert program.end() == 0
        assert isinstance(program.log()[-1].events[-1], DaemonStopped)
        assert "running jobs have a moment to end" in program.said() and "0.2" in program.said()
        with running(tmp_path, **api(standin.url)) as again:
            told = again.ask("check_job_status", job_id=job)["result"]
            assert (told["state"], told["error_code"]) == ("interrupted", "outcome_unknown")
            assert again.ask("get_spending")["result"]["unresolved_total"] == 1
        assert len(standin.requests) == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_the_next_daemon_puts_things_right(
    second: signal.Signals, holds: Behaviour, tmp_path: Path
) -> None:
    with StandIn(holds) as standin:
        program = Program(tmp_path, **api(standin.url)).start().ready()
        job = program.ask("start_generation_job", **ORDER)["result"]["job_id"]
        wait_until(lambda: standin.requests, "the request to arrive")
        program.signal(signal.SIGTERM)
        wait_until(lambda: "running jobs have a moment to end" in program.said(), "the first signal to be heard")
        assert program.end(second) == 128 + second
        assert "leaving at once" in program.said()
        with running(tmp_path, **api(standin.url)) as again:
            assert again.ask("check_job_status", job_id=job)["result"]["state"] == "interrupted"
        assert len(standin.requests) == 1
        assert verify(program.places.events).fault is None
