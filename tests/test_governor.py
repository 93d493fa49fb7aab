"""All pictures of a key wait together when OpenAI asks one of them to, those of other keys go on, and everybody is told why."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from msgspec import structs

from daemon.governor import Governor
from daemon.worker import seconds_left
from eventlog.events import Commit
from eventlog.jobs import JobBoard
from eventlog.values import Account, JobId, Position
from tests.daemon.fakes import OFFLINE, PAYING, attempt, failed_attempt, requested, started
from tests.program import SECONDS_MAX, Program, Stdio, running, wait_until
from tests.standin import Request, StandIn, draw

OTHER = Account(backend="openai", key="ffffffffffff", base_url="https://api.openai.com/v1")


def api(url: str, key: str = "sk-test-one") -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": key, "OPENAI_BASE_URL": url}


def start(program: Program, prompt: str) -> str:
    job_id: str = program.ask("start_generation_job", tool_name="generate_image", prompt=prompt, size="1024x1024", quality="low")[
        "result"
    ]["job_id"]
    return job_id


def client(program: Program, standin: StandIn, key: str) -> Stdio:
    return Stdio({**program.environment, **api(standin.url, key=key)})


def state(program: Program, job_id: str) -> dict[str, object]:
    return msgspec.convert(program.ask("get_job_result", job_id=job_id)["result"], dict[str, object])


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as standin:
        yield standin


def test_a_429_makes_every_picture_of_the_key_wait_and_says_until_when_and_why(tmp_path: Path, standin: StandIn) -> None:
    with running(tmp_path, **api(standin.url)) as program:
        standin.will(lambda request: request.error(429, "rate_limit_exceeded", "Limit 5, Used 5. Please try again in 600s."))
        first = start(program, "a fox")
        wait_until(lambda: state(program, first).get("retry_at"), "the first to be told to wait")
        second = start(program, "a hare")
        told = state(program, second)
        assert told["state"] == "pending" and "as all pictures of this key do" in str(told["message"])
        assert "Limit 5, Used 5" in str(told["message"])
        [pause] = program.ask("get_status")["result"]["waiting_keys"]
        assert pause["reason"].startswith("Limit 5, Used 5") and pause["until"] > datetime.now(UTC).isoformat()
        assert len(standin.requests) == 1
        program.ask("cancel_job", job_id=second)
        with client(program, standin, "sk-test-two") as other:
            other.initialize()
            answer = other.call("generate_image", prompt="a bear", size="1024x1024", quality="low")
        assert answer["structuredContent"]["state"] == "completed"
        assert len(standin.requests) == 2


def test_what_waits_still_waits_in_the_next_daemon(tmp_path: Path, standin: StandIn) -> None:
    with running(tmp_path, **api(standin.url)) as program:
        standin.will(lambda request: request.error(429, "rate_limit_exceeded", retry_after="600"))
        first = start(program, "a fox")
        wait_until(lambda: state(program, first).get("retry_at"), "the first to be told to wait")
        program.kill()
        program.start().ready()
        second = start(program, "a hare")
        assert "as all pictures of this key do" in str(state(program, second)["message"])
        assert len(standin.requests) == 1


def test_a_picture_that_uses_up_a_limit_makes_the_next_one_wait(tmp_path: Path, standin: StandIn) -> None:
    with running(tmp_path, **api(standin.url)) as program:
        spent = {"x_ratelimit_remaining_images": "0", "x_ratelimit_reset_images": "10m0s"}
        standin.will(lambda request: request.reply(200, request.good_reply(), **spent))
        assert program.ask("generate_image", prompt="a fox", size="1024x1024", quality="low")["result"]["state"] == "completed"
        told = state(program, start(program, "a hare"))
        assert told["state"] == "pending" and "limit on images per minute" in str(told["message"])


def test_when_the_wait_is_over_all_go_on(tmp_path: Path, standin: StandIn) -> None:
    with running(tmp_path, **api(standin.url)) as program:
        standin.will(lambda request: request.error(429, "rate_limit_exceeded", "Please try again in 300ms."))
        jobs = [start(program, f"fox {number}") for number in range(3)]
        wait_until(lambda: all(state(program, job)["state"] == "completed" for job in jobs), "all to be drawn")
        assert program.ask("get_status")["result"]["waiting_keys"] == []


def test_no_more_attempts_than_allowed_are_under_way_over_all_keys(tmp_path: Path, standin: StandIn) -> None:
    gate, lock = threading.Event(), threading.Lock()
    at_once = [0, 0]

    def slowly(request: Request) -> None:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        gate.wait(SECONDS_MAX)
        with lock:
            at_once[0] -= 1
        draw(request)

    standin.will(*[slowly] * 9)
    with running(tmp_path, **api(standin.url)) as program, client(program, standin, "sk-test-two") as other:
        other.initialize()
        theirs = [
            other.call("start_generation_job", tool_name="generate_image", prompt=f"hare {n}", size="1024x1024", quality="low")
            for n in range(3)
        ]
        ours = [start(program, f"fox {n}") for n in range(3)]
        wait_until(lambda: at_once[0] == 4, "four attempts to be under way")
        status = program.ask("get_status")["result"]
        assert (status["jobs_running"], status["jobs_pending"]) == (4, 2)
        gate.set()
        jobs = [*ours, *(answer["structuredContent"]["job_id"] for answer in theirs)]
        wait_until(lambda: all(state(program, job)["state"] == "completed" for job in jobs), "all to be drawn")
    assert at_once[1] == 4


NOW = datetime(2026, 11, 23, tzinfo=UTC)


def test_a_pause_is_only_ever_made_longer_and_ends_by_itself() -> None:
    async def main() -> None:
        governor = Governor(lambda: NOW)
        governor.pause(PAYING, 10, "slow down")
        governor.pause(PAYING, 5, "not so fast")
        governor.pause(OFFLINE, 99, "never")
        pause = governor.paused(PAYING)
        assert pause and pause.why == "slow down" and pause.resumes_at == NOW + timedelta(seconds=10)
        assert governor.paused(OTHER) is None and governor.paused(OFFLINE) is None
        assert governor.next_end() == pause.until == trio.current_time() + 10
        await trio.sleep(10)
        assert governor.paused(PAYING) is None and governor.next_end() == float("inf")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("clock_moved_by", "left"), [(0, 60), (20, 40), (90, 0), (-86_400, 60)])
def test_a_wait_is_never_longer_than_it_was_told_whatever_the_clock_says(clock_moved_by: int, left: int) -> None:
    board = JobBoard()
    failed = structs.replace(failed_attempt("a"), wait_seconds=60.0)
    for position, fact in enumerate([requested("a"), started("a"), attempt("a"), failed], start=1):
        board.apply(Commit(position=Position(position), at=NOW, events=(fact,)))
    job = board.get(JobId("a"))
    assert job and seconds_left(job, NOW + timedelta(seconds=clock_moved_by)) == left
