"""Jobs by the real program: started, found again by a key, waited for and cancelled."""

import threading
from pathlib import Path
from typing import Any

import pytest

from daemon import client
from daemon.errors import NotRunning
from tests.program import SECONDS_MAX, Program, Stdio, running, wait_until
from tests.standin import Behaviour, Request, StandIn, draw
from tests.tools.pictures_for_tests import picture

KEY = "sk-test-canary-0123456789"


def api(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, **more}


def start(program: Program, **arguments: object) -> dict[str, Any]:
    asked: dict[str, object] = {"tool_name": "generate_image", "prompt": "a fox", "quality": "low", **arguments}
    return program.ask("start_generation_job", **asked)


def state(program: Program, job_id: str) -> str:
    found: str = program.ask("check_job_status", job_id=job_id)["result"]["state"]
    return found


class Gate:
    """A behaviour that draws once it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, request: Request) -> None:
        self.reached.set()
        assert self.opened.wait(SECONDS_MAX)
        draw(request)


def test_a_key_orders_one_picture_however_often_and_from_how_many_threads_it_comes(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        answers: list[dict[str, Any]] = []
        threads = [threading.Thread(target=lambda: answers.append(start(program, idempotency_key="order 7"))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS_MAX)
        (job_id,) = {answer["result"]["job_id"] for answer in answers}
        wait_until(lambda: state(program, job_id) == "completed", "the picture")
        again = start(program, idempotency_key="order 7")["result"]
        assert again["job_id"] == job_id and again["state"] == "completed" and "ordered before" in again["warnings"][0]
        assert start(program, idempotency_key="order 8")["result"]["job_id"] != job_id
        wait_until(lambda: len(standin.requests) == 2, "the second order")


def test_a_key_is_remembered_across_a_crash_and_refused_for_another_picture(tmp_path: Path) -> None:
    with StandIn() as standin:
        with running(tmp_path, **api(standin.url)) as program:
            job_id = start(program, idempotency_key="k")["result"]["job_id"]
            wait_until(lambda: state(program, job_id) == "completed", "the picture")
            program.kill()
        with running(tmp_path, **api(standin.url)) as program:
            assert start(program, idempotency_key="k")["result"]["job_id"] == job_id
            said = start(program, idempotency_key="k", prompt="a cat")["refused"]
            assert said["code"] == "key_reused" and job_id in said["message"]
            assert len(standin.requests) == 1


def test_a_key_belongs_to_one_account_one_place_and_one_picture(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        first = start(program, idempotency_key="k")["result"]["job_id"]
        elsewhere = {**program.environment, "OPENAI_API_KEY": KEY + "-of-somebody-else"}
        asked = {"tool_name": "generate_image", "prompt": "a fox", "quality": "low", "idempotency_key": "k"}
        other = client.ask(program.places, "start_generation_job", asked, elsewhere)["result"]
        assert other["job_id"] != first
        trial = {**program.environment, "IMAGED_BACKEND": "offline"}
        assert client.ask(program.places, "start_generation_job", asked, trial)["result"]["job_id"] not in (
            first,
            other["job_id"],
        )
        assert start(program, idempotency_key="k", output_path="another.png")["refused"]["code"] == "key_reused"


def test_a_key_is_refused_for_an_edit_of_another_picture(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        program.pictures.mkdir()
        for name in ("red.png", "blue.png"):
            (program.pictures / name).write_bytes(picture("png"))
        edit = {"tool_name": "edit_image", "idempotency_key": "k"}
        job_id = start(program, **edit, reference_images=["red.png"])["result"]["job_id"]
        assert start(program, **edit, reference_images=["red.png"])["result"]["job_id"] == job_id
        for other in (["blue.png"], ["red.png", "blue.png"]):
            assert start(program, **edit, reference_images=other)["refused"]["code"] == "key_reused"
        wait_until(lambda: state(program, job_id) == "completed", "the picture")
        assert len(standin.requests) == 1


def test_a_key_whose_order_failed_says_how_to_ask_again(tmp_path: Path) -> None:
    no: Behaviour = lambda request: request.error(401, "invalid_api_key")  # noqa: E731
    with StandIn(no) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = start(program, idempotency_key="k")["result"]["job_id"]
        wait_until(lambda: state(program, job_id) == "failed", "the refusal")
        told = start(program, idempotency_key="k")["result"]
        assert told["job_id"] == job_id and told["warnings"][0].endswith("It failed; retry_job orders the picture again.")
        retried = program.ask("retry_job", job_id=job_id)["result"]["job_id"]
        wait_until(lambda: state(program, retried) == "completed", "the picture")
        told = start(program, idempotency_key="k")["result"]
        assert told["job_id"] == retried and job_id in told["warnings"][0] and "retry_job orders" not in told["warnings"][0]
        assert len(standin.requests) == 2


def test_a_wait_that_the_api_asked_for_outlives_a_restart_and_ends_with_a_cancel(tmp_path: Path) -> None:
    later: Behaviour = lambda request: request.error(429, "rate_limit_exceeded", "later", retry_after="300")  # noqa: E731
    with StandIn(later) as standin:
        with running(tmp_path, **api(standin.url)) as program:
            job_id = start(program)["result"]["job_id"]
            wait_until(
                lambda: program.ask("check_job_status", job_id=job_id)["result"]["retry_at"], "the time of the next attempt"
            )
            program.kill()
        with running(tmp_path, **api(standin.url)) as program:
            with Stdio({**program.environment, **api(standin.url), "OPENAI_API_KEY": "sk-test-another-key-0123456789"}) as other:
                other.initialize()
                drawn = other.call("generate_image", prompt="another", quality="low", size="1024x1024")
            assert drawn["structuredContent"]["state"] == "completed"
            assert len(standin.requests) == 2
            cancelled = program.ask("cancel_job", job_id=job_id)["result"]
            assert (cancelled["state"], cancelled["retry_at"], cancelled["next_step"]) == ("cancelled", None, "")


def test_a_tool_that_does_not_take_an_argument_refuses_it(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        said = start(program, reference_image_path="fox.png")["refused"]
        assert said["argument"] == "reference_image_path" and "generate_image takes no" in said["message"]
        said = start(program, tool_name="transform_image", mask_image_path="fox.png")["refused"]
        assert said["argument"] == "mask_image_path"
        assert program.ask("list_jobs")["result"]["total"] == 0


def test_cancelling_a_waiting_job_costs_nothing_and_sends_nothing(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url, IMAGED_MAX_CONCURRENT="1")) as program:
        first = start(program)["result"]["job_id"]
        assert gate.reached.wait(SECONDS_MAX)
        second = start(program, prompt="another")["result"]["job_id"]
        cancelled = program.ask("cancel_job", job_id=second)["result"]
        assert (cancelled["state"], cancelled["billed"]) == ("cancelled", "no")
        gate.opened.set()
        wait_until(lambda: state(program, first) == "completed", "the first picture")
        assert len(standin.requests) == 1 and state(program, second) == "cancelled"


def test_cancelling_a_running_job_closes_the_connection_and_says_that_it_may_be_billed(tmp_path: Path) -> None:
    closed = threading.Event()

    def wait_for_the_close(request: Request) -> None:
        request.handler.connection.settimeout(SECONDS_MAX)
        assert request.handler.connection.recv(1) == b""
        closed.set()
        request.handler.close_connection = True

    behaviours: list[Behaviour] = [wait_for_the_close]
    with StandIn(*behaviours) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = start(program)["result"]["job_id"]
        wait_until(lambda: standin.requests, "the request")
        cancelled = program.ask("cancel_job", job_id=job_id)["result"]
        assert (cancelled["state"], cancelled["billed"]) == ("cancelled", "unknown")
        assert "may still be billed" in cancelled["message"]
        assert closed.wait(SECONDS_MAX)
        again = program.ask("cancel_job", job_id=job_id)["refused"]
        assert again["code"] == "already_over" and "been cancelled" in again["message"]
        assert program.ask("cancel_job", job_id="nobody")["refused"]["code"] == "no_such_job"
        assert len(standin.requests) == 1


def test_a_finished_job_cannot_be_cancelled_any_more(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        job_id = program.ask("generate_image", prompt="a fox")["result"]["job_id"]
        said = program.ask("cancel_job", job_id=job_id)["refused"]
        assert said["code"] == "already_over" and "Its pictures are kept." in said["message"]
        assert state(program, job_id) == "completed"


def test_waiting_for_jobs_answers_when_one_changes_and_when_all_are_over(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = start(program)["result"]["job_id"]
        assert gate.reached.wait(SECONDS_MAX)
        now = program.ask("wait_for_jobs", job_ids=[job_id], after=0)["result"]
        assert [job["state"] for job in now["jobs"]] == ["running"]
        still = program.ask("wait_for_jobs", job_ids=[job_id], after=now["position"], wait_seconds=0)["result"]
        assert [job["state"] for job in still["jobs"]] == ["running"]
        threading.Timer(0.2, gate.opened.set).start()
        while now["jobs"][0]["state"] == "running":
            now = program.ask("wait_for_jobs", job_ids=[job_id], after=now["position"], wait_seconds=30)["result"]
        assert now["jobs"][0]["state"] == "completed"
        over = program.ask("wait_for_jobs", job_ids=[job_id], after=10**9, wait_seconds=30)["result"]
        assert over["jobs"][0]["state"] == "completed"
        assert program.ask("wait_for_jobs", job_ids=["nobody"])["refused"]["code"] == "no_such_job"


def test_a_connection_of_the_command_line_starts_the_daemon_and_another_when_that_one_ends(tmp_path: Path) -> None:
    program = Program(tmp_path)
    command = "import sys; from daemon import client, config; " + (
        "places = config.default_places()\n"
        "with client.connected(places, {'IMAGED_BACKEND': 'offline'}) as daemon:\n"
        "    for _ in range(3): print(daemon.ask('get_status')['result']['pid'])\n"
        "    daemon.ask('stop_daemon')\n"
        "    print(daemon.ask('get_status')['result']['pid'])\n"
        "    daemon.ask('stop_daemon')\n"
    )
    import subprocess
    import sys

    environment = {**program.environment, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", command],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, third, other = done.stdout.split()
    assert first == second == third != other

    def gone() -> bool:
        try:
            client.ask(program.places, "get_status", {})
        except NotRunning:
            return True
        return False

    wait_until(gone, "the daemon to end")


@pytest.mark.parametrize("tool", ["generate_image", "edit_image"])
def test_a_refused_start_records_no_job(tool: str, tmp_path: Path) -> None:
    with running(tmp_path) as program:
        assert "refused" in start(program, tool_name=tool, size="123x456")
        assert program.ask("list_jobs")["result"]["total"] == 0
