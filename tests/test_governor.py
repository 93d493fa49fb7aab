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

from daemon.config import Secret
from daemon.governor import Governor
from daemon.keyring import Keyring
from daemon.worker import JOB_SECONDS_MAX, Worker, seconds_left
from eventlog.audit import narrate
from eventlog.events import Commit
from eventlog.jobs import JobBoard
from eventlog.values import Account, JobId, Position
from tests.daemon.fakes import OFFLINE, PAYING, attempt, failed_attempt, opened, requested, say, started
from tests.program import SECONDS_MAX, Program, Stdio, running, wait_until
from tests.standin import Request, StandIn, draw
from tools.store import Store

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


class Crowd:
    """Draws only when the gate is open, and counts how many wait before it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def draw(self, request: Request) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(SECONDS_MAX)
        with self._lock:
            self.now -= 1
        draw(request)


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
    crowd = Crowd()
    standin.will(*[crowd.draw] * 9)
    with running(tmp_path, **api(standin.url)) as program, client(program, standin, "sk-test-two") as other:
        other.initialize()
        theirs = [
            other.call("start_generation_job", tool_name="generate_image", prompt=f"hare {n}", size="1024x1024", quality="low")
            for n in range(3)
        ]
        ours = [start(program, f"fox {n}") for n in range(3)]
        wait_until(lambda: crowd.now == 4, "four attempts to be under way")
        status = program.ask("get_status")["result"]
        assert (status["jobs_running"], status["jobs_pending"]) == (4, 2)
        crowd.gate.set()
        jobs = [*ours, *(answer["structuredContent"]["job_id"] for answer in theirs)]
        wait_until(lambda: all(state(program, job)["state"] == "completed" for job in jobs), "all to be drawn")
    assert crowd.most == 4


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


def test_who_is_between_two_attempts_waits_as_well_when_another_is_told_to(tmp_path: Path, standin: StandIn) -> None:
    gate = threading.Event()

    def trouble(request: Request) -> None:
        gate.wait(SECONDS_MAX)
        request.error(500, "server_error", retry_after="0")

    with running(tmp_path, **api(standin.url)) as program:
        standin.will(trouble, lambda request: request.error(429, "rate_limit_exceeded", retry_after="600"))
        first = start(program, "a fox")
        wait_until(lambda: len(standin.requests) == 1, "the first to be sent")
        second = start(program, "a hare")
        wait_until(lambda: state(program, second).get("retry_at"), "the second to be told to wait")
        gate.set()
        wait_until(lambda: state(program, first)["error_code"] == "server_error", "the first to hear of the trouble")
        assert "as all pictures of this key do" in str(state(program, first)["message"])
        assert len(standin.requests) == 2


def test_what_waits_alone_is_begun_when_the_wait_is_over(tmp_path: Path, standin: StandIn) -> None:
    with running(tmp_path, **api(standin.url)) as program:
        spent = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "300ms"}
        standin.will(lambda request: request.reply(200, request.good_reply(), **spent))
        program.ask("generate_image", prompt="a fox", size="1024x1024", quality="low")
        start(program, "a hare")
        # Nothing is asked meanwhile: a question is a fact, and facts let everybody look again.
        wait_until(lambda: len(standin.requests) == 2, "the second to be sent")


def test_who_goes_on_waits_for_a_place_that_others_have_taken_meanwhile(tmp_path: Path, standin: StandIn) -> None:
    crowd = Crowd()
    standin.will(lambda request: request.error(429, "rate_limit_exceeded", "Please try again in 1s."), *[crowd.draw] * 5)
    with running(tmp_path, **api(standin.url)) as program, client(program, standin, "sk-test-two") as other:
        other.initialize()
        first = start(program, "a fox")
        wait_until(lambda: state(program, first).get("retry_at"), "the first to be told to wait")
        for number in range(4):
            other.call("start_generation_job", tool_name="generate_image", prompt=f"hare {number}", quality="low")
        wait_until(lambda: crowd.now == 4, "the others to take all places")
        wait_until(lambda: not program.ask("get_status")["result"]["waiting_keys"], "the wait to be over")
        assert state(program, first)["state"] == "running"
        crowd.gate.set()
        wait_until(lambda: state(program, first)["state"] == "completed", "the first to be drawn")
    assert crowd.most == 4


def test_a_client_that_orders_one_picture_does_not_stand_behind_all_of_another(tmp_path: Path, standin: StandIn) -> None:
    gate = threading.Event()

    def first_of_all(request: Request) -> None:
        gate.wait(SECONDS_MAX)
        draw(request)

    standin.will(first_of_all)
    settings = api(standin.url) | {"IMAGED_MAX_CONCURRENT": "1"}
    with running(tmp_path, **settings) as program, Stdio({**program.environment, **settings}) as other:
        other.initialize()
        loud = [start(program, f"loud {number}") for number in range(3)]
        wait_until(lambda: len(standin.requests) == 1, "the first to be sent")
        other.call("start_generation_job", tool_name="generate_image", prompt="quiet", quality="low", size="1024x1024")
        gate.set()
        wait_until(lambda: state(program, loud[-1])["state"] == "completed", "all to be drawn")
    assert [request.json["prompt"] for request in standin.requests] == ["loud 0", "quiet", "loud 1", "loud 2"]


def test_a_pause_that_outlasts_the_patience_of_a_job_ends_it_unbilled(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(SECONDS_MAX), opened(tmp_path) as house:
            async with house.ledger.writing():
                await house.ledger.record(say(requested("a"), prompt="x", output_path="x.png", output_dir=str(tmp_path)))
                await house.ledger.record(say(started("a")))
                keyring = Keyring()
                keyring._keys[PAYING] = Secret("sk-test")
                keyring.governor.pause(PAYING, JOB_SECONDS_MAX + 60, "Slow down.")
                worker = Worker(house.ledger, None, keyring, Store.open(tmp_path / "store"))  # type: ignore[arg-type]
                await worker.run(JobId("a"))

    trio.run(main)
    assert "failed: rate_limited, billed: no" in "\n".join(narrate(tmp_path / "events", JobId("a")))
