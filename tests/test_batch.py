"""`imaged batch` whole: the real command, the real daemon, a counting stand-in; stopped, killed and started again."""

import base64
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daemon import client
from daemon.config import Places
from daemon.errors import NotRunning
from tests.program import IMAGED, SECONDS_MAX, Program, environment, running, wait_until
from tests.standin import Behaviour, Request, StandIn
from tests.tools.pictures_for_tests import picture

EXAMPLES = Path(__file__).parent / "examples"
KEY = "sk-test-canary-0123456789"


def api(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, **more}


class Command:
    """One `imaged batch`, its file in the working directory. Killed, if need be, at the end of its block or wait."""

    def __init__(self, home: Path, settings: dict[str, str], *options: str) -> None:
        self.place = home / "here"
        self.place.mkdir(exist_ok=True)
        self._out, self._err = (home / f"{name}.txt" for name in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*IMAGED, "batch", "batch.json", *options],
                env=settings,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(signal.SIGKILL)

    def end(self) -> int:
        with self:
            return self._process.wait(SECONDS_MAX)

    def stop(self, number: int) -> int:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        return self._process.wait(SECONDS_MAX)

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8")

    @property
    def document(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


def write(home: Path, *jobs: Any, **rest: Any) -> None:
    (home / "here").mkdir(exist_ok=True)
    (home / "here" / "batch.json").write_text(json.dumps({"jobs": jobs, **rest}))


def foxes(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Fox number {number}", "size": "1024x640", "quality": "low", **more} for number in range(count)]


def done(home: Path, settings: dict[str, str], *options: str) -> tuple[int, dict[str, Any]]:
    command = Command(home, settings, "--format", "json", *options)
    status = command.end()
    assert "Traceback" not in command.err, command.err
    return status, command.document


def prompts(standin: StandIn) -> list[str]:
    return sorted(request.json["prompt"] for request in standin.requests)


def says(status: int, code: str, **headers: str) -> Behaviour:
    return lambda request: request.error(status, code, **headers)


def reset(request: Request) -> None:
    request.reply_half_then(lambda: None)


class Gate:
    """A behaviour that answers when it is opened, with a picture."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, request: Request) -> None:
        assert self._open.wait(SECONDS_MAX)
        request.reply(200, request.good_reply())

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[tuple[Program, StandIn]]:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        yield program, standin


def stopped(settings: dict[str, str]) -> None:
    """Ends a daemon that a command has started."""
    places = Places(Path(settings["IMAGED_HOME"]))
    client.ask(places, "stop_daemon", {"reason": "the test is over"})

    def is_gone() -> bool:
        try:
            client.ask(places, "get_status", {})
        except NotRunning:
            return True
        return False

    wait_until(is_gone, "the daemon to end")


@contextmanager
def no_daemon_yet(home: Path, **more: str) -> Iterator[dict[str, str]]:
    """Settings of a home where the command has to start the daemon itself."""
    settings = environment(home, **more)
    yield settings
    if (home / "imaged").exists():
        stopped(settings)


def test_a_batch_starts_the_daemon_draws_everything_and_a_rerun_finds_it_done(tmp_path: Path) -> None:
    with no_daemon_yet(tmp_path) as settings:
        write(tmp_path, *json.loads((EXAMPLES / "basic.json").read_bytes())["jobs"])
        status, first = done(tmp_path, settings)
        assert (status, first["total"], first["succeeded"]) == (0, 3, 3)
        assert [Path(result["output_path"]).name for result in first["results"]] == ["batch_1.png", "city.png", "fuji.png"]
        files = sorted((tmp_path / "pictures").iterdir())
        assert sorted(Path(result["output_path"]) for result in first["results"]) == files
        status, second = done(tmp_path, settings)
        assert status == 0 and sorted((tmp_path / "pictures").iterdir()) == files
        assert all(result["done_before"] for result in second["results"])
        assert [r["history_uuid"] for r in second["results"]] == [r["job_id"] for r in first["results"]]
        text = Command(tmp_path, settings)
        assert text.end() == 0 and text.out.startswith("3 jobs: 3 completed; 3 of them before this run\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_stopped_anywhere_goes_on_without_paying_twice(house: tuple[Program, StandIn], number: int) -> None:
    program, standin = house
    gate = Gate()
    standin.will(gate, gate, gate)
    write(program.home, *foxes(6), max_concurrent=2)
    with Command(program.home, program.environment) as command:
        wait_until(lambda: len(standin.requests) == 2, "two requests")
        status = command.stop(number)
    assert status == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert command.out.startswith("6 jobs: 2 running, 4 waiting\n")
        assert "go on being drawn (2)" in command.err and "give the same command again" in command.err
        assert "Traceback" not in command.err
    gate.open()
    status, document = done(program.home, program.environment)
    assert (status, document["succeeded"]) == (0, 6)
    assert prompts(standin) == [f"Fox number {number}" for number in range(6)]


def test_an_interrupted_batch_still_prints_one_json_document(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    gate = Gate()
    standin.will(gate)
    write(program.home, *foxes(2), max_concurrent=1)
    with Command(program.home, program.environment, "--format", "json") as command:
        wait_until(lambda: standin.requests, "a request")
        assert command.stop(signal.SIGINT) == 130
    assert [result["status"] for result in command.document["results"]] == ["running", "waiting"]
    assert (command.document["unfinished"], command.document["total_cost"]) == (2, None)
    gate.open()


def test_when_the_time_is_up_nothing_more_is_requested(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    gate = Gate()
    standin.will(*[gate] * 9)
    write(program.home, *foxes(5), timeout=1000, max_concurrent=2)
    status, document = done(program.home, program.environment)
    assert (status, document["timed_out"], document["cancelled"]) == (1, True, 5)
    assert [result["billed"] for result in document["results"]] == ["unknown"] * 2 + ["no"] * 3
    gate.open()
    for _ in range(3):  # a picture of another client passes, so the daemon is alive and could have drawn ours
        program.ask("generate_image", prompt="Another client's owl", size="1024x640", quality="low")
    assert [prompt for prompt in prompts(standin) if "Fox" in prompt] == ["Fox number 0", "Fox number 1"]
    standin.will()
    status, document = done(program.home, program.environment, "--timeout", "60000")
    assert (status, document["succeeded"], document["cancelled"]) == (1, 3, 2)
    status, document = done(program.home, program.environment, "--timeout", "60000", "--retry-unknown")
    assert (status, document["succeeded"], document["cost_unknown_jobs"]) == (0, 5, 2)


class Together:
    """Answers only when so many requests are here at once, and remembers the most there ever were."""

    def __init__(self, count: int) -> None:
        self._all_here = threading.Barrier(count)
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, request: Request) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._all_here.wait(SECONDS_MAX)
        reply = request.good_reply()
        with self._lock:
            self.now -= 1
        request.reply(200, reply)


@pytest.mark.parametrize(
    ("in_file", "environ", "options", "at_once"),
    [
        ({}, {}, (), 2),
        ({}, {"OPENAI_BATCH_MAX_CONCURRENT": "3"}, (), 3),
        ({"max_concurrent": 6}, {"OPENAI_BATCH_MAX_CONCURRENT": "3"}, (), 6),
        ({"max_concurrent": 6}, {"OPENAI_BATCH_MAX_CONCURRENT": "3"}, ("--max-concurrent", "1"), 1),
    ],
)
def test_so_many_are_drawn_at_once_as_were_asked_for(
    tmp_path: Path, in_file: dict[str, int], environ: dict[str, str], options: tuple[str, ...], at_once: int
) -> None:
    together = Together(at_once)
    with StandIn(*[together] * 6) as standin, running(tmp_path, **api(standin.url)) as program:
        write(tmp_path, *foxes(6), **in_file)
        status, _ = done(tmp_path, {**program.environment, **environ}, *options)
        assert (status, together.most, len(standin.requests)) == (0, at_once, 6)


def test_a_job_that_was_not_billed_is_asked_for_again_as_the_file_says(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    standin.will(*[says(429, "rate_limit_exceeded", retry_after="0")] * 8)  # as often as one job tries by itself
    write(program.home, *foxes(1), retry_policy={"retry_delay_ms": 100})
    status, document = done(program.home, program.environment)
    assert (status, document["results"][0]["tries"], len(standin.requests)) == (0, 2, 9)


def test_what_is_final_is_asked_for_once_and_after_a_change_of_heart_again(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    standin.will(says(400, "moderation_blocked"))
    write(program.home, *foxes(1))
    status, document = done(program.home, program.environment)
    assert (status, document["failed"], document["results"][0]["error_code"]) == (1, 1, "moderation_blocked")
    assert (document["total_cost"], len(standin.requests)) == (0, 1)
    status, document = done(program.home, program.environment)
    assert (status, len(standin.requests)) == (0, 2)


def test_what_may_have_been_charged_is_asked_for_again_only_on_demand(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    standin.will(reset)
    write(program.home, *foxes(2), max_concurrent=1)
    command = Command(program.home, program.environment)
    assert command.end() == 1
    assert "1 completed, 1 interrupted" in command.out and "1 job may have been charged" in command.err
    assert done(program.home, program.environment)[0] == 1
    assert len(standin.requests) == 2
    assert done(program.home, program.environment, "--retry-unknown")[0] == 0
    assert len(standin.requests) == 3


def test_again_draws_everything_once_more_and_can_be_continued(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    write(program.home, *foxes(2))
    assert done(program.home, program.environment)[0] == 0
    status, document = done(program.home, program.environment, "--again")
    assert (status, len(standin.requests)) == (0, 4)
    status, continued = done(program.home, program.environment, "--run", document["run"])
    assert (status, len(standin.requests)) == (0, 4)
    assert [r["output_path"] for r in continued["results"]] == [r["output_path"] for r in document["results"]]
    for options in (("--run", document["run"] + "0"), ("--run", document["run"] + "0", "--estimate-only")):
        mistyped = Command(program.home, program.environment, *options)
        assert (mistyped.end(), len(standin.requests)) == (2, 4)
        assert f"--run is '{document['run']}0', but no job" in mistyped.err and "--again to draw" in mistyped.err


def test_what_was_tried_offline_is_drawn_when_it_is_asked_for_in_earnest(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    write(program.home, *foxes(1))
    assert done(program.home, {**program.environment, "IMAGED_BACKEND": "offline"})[0] == 0
    assert standin.requests == []
    assert done(program.home, program.environment)[0] == 0
    assert len(standin.requests) == 1


def test_two_runs_of_one_file_at_the_same_time_draw_it_once(house: tuple[Program, StandIn], tmp_path: Path) -> None:
    program, standin = house
    gate = Gate()
    standin.will(*[gate] * 4)
    write(program.home, *foxes(4))
    (tmp_path / "second").mkdir()
    write(tmp_path / "second", *foxes(4))
    with Command(program.home, program.environment) as first, Command(tmp_path / "second", program.environment) as second:
        wait_until(lambda: len(standin.requests) >= 2, "two requests")
        gate.open()
        assert (first.end(), second.end()) == (0, 0)
    assert prompts(standin) == [f"Fox number {number}" for number in range(4)]


def test_a_daemon_that_is_killed_is_replaced_and_the_rest_is_drawn(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate) as standin, no_daemon_yet(tmp_path, **api(standin.url)) as settings:
        program = Program(tmp_path, **api(standin.url)).start().ready()
        write(tmp_path, *foxes(3), max_concurrent=1)
        with Command(tmp_path, settings, "--format", "json") as command:
            wait_until(lambda: standin.requests, "a request")
            program.kill()
            gate.open()
            assert command.end() == 1
        statuses = [result["status"] for result in command.document["results"]]
        assert statuses == ["interrupted", "completed", "completed"], command.err
        assert len(standin.requests) == 3


def test_a_file_with_faults_draws_nothing_starts_nothing_and_names_them_all(tmp_path: Path) -> None:
    with StandIn() as standin, no_daemon_yet(tmp_path, **api(standin.url)) as settings:
        impossible = [{"prompt": "x", "model": "gpt-image-2", "size": "5000x16"}, {"prompt": "x", "moderation": "high"}]
        write(tmp_path, *foxes(2), *impossible)
        command = Command(tmp_path, settings)
        assert command.end() == 2
        assert "jobs[2]: size 5000x16 is not possible" in command.err
        assert 'jobs[3].moderation is "high"; allowed is auto, low.' in command.err
        assert (command.out, standin.requests, (tmp_path / "imaged").exists()) == ("", [], False)


@pytest.mark.parametrize(
    "options", [("--timeout", "999"), ("--max-concurrent", "11"), ("--format", "xml"), ("--again", "--run", "x")]
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    write(tmp_path, *foxes(1))
    command = Command(tmp_path, environment(tmp_path), *options)
    assert command.end() == 2 and "imaged: argument --" in command.err


def test_an_estimate_needs_no_key_and_no_daemon(tmp_path: Path) -> None:
    settings = environment(tmp_path, IMAGED_BACKEND="openai")
    write(tmp_path, *foxes(2, model="gpt-image-2"))
    status, document = done(tmp_path, settings, "--estimate-only")
    assert status == 0 and document["low_micro_usd"] > 0 and document["unknown_jobs"] == 0
    text = Command(tmp_path, settings, "--estimate-only")
    assert text.end() == 0 and text.out.startswith("2 jobs, estimated $")
    assert not (tmp_path / "imaged").exists()
    without_key = Command(tmp_path, settings)
    assert without_key.end() == 2 and "No OpenAI API key is set" in without_key.err
    assert not (tmp_path / "imaged").exists()


def test_an_edit_starts_from_the_pictures_of_the_working_directory(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "inputs").mkdir(parents=True)
    for name in ("landscape", "owl"):
        (here / "inputs" / f"{name}.png").write_bytes(picture("png", 640, 480))
    Image.new("RGBA", (640, 480)).save(here / "inputs" / "landscape-sky-mask.png")
    (here / "batch.json").write_bytes((EXAMPLES / "edit.json").read_bytes())
    with running(tmp_path) as program:
        status, document = done(tmp_path, program.environment)
        assert (status, document["succeeded"]) == (0, 3), document
        drawn = [path for result in document["results"] for path in result["output_paths"]]
        assert [Path(path).name for path in drawn] == [
            "landscape-aurora.png",
            "landscape-watercolour_1.png",
            "landscape-watercolour_2.png",
            "landscape-owl.jpg",
        ]
        assert all(Path(path).parent == here / "edited-images" for path in drawn)
        (here / "inputs" / "landscape.png").write_bytes(picture("png", 640, 480, "L"))
        status, document = done(tmp_path, program.environment)
        assert status == 0 and not any(result["done_before"] for result in document["results"])


def test_everything_may_be_read_and_written_if_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "owl.png").write_bytes(picture("png", 640, 480))
    job = {"prompt": "x", "operation": "transform", "reference_image_path": str(tmp_path / "elsewhere/owl.png")}
    write(tmp_path, {**job, "output_path": str(tmp_path / "elsewhere/out.png")})
    with running(tmp_path) as program:
        refused = Command(tmp_path, program.environment)
        assert refused.end() == 2 and "outside" in refused.err
        status, document = done(tmp_path, program.environment, "--allow-any-path")
        assert (status, document["results"][0]["output_path"]) == (0, str(tmp_path / "elsewhere/out.png"))


def test_pictures_are_returned_where_they_are_wanted_and_written_where_they_should_be(tmp_path: Path) -> None:
    write(tmp_path, *foxes(1, return_base64=True, sample_count=2), *foxes(1), output_dir="in-file")
    with running(tmp_path) as program:
        status, document = done(tmp_path, program.environment, "--output-dir", "asked")
        first, second = document["results"]
        assert status == 0 and "base64" not in second
        assert [base64.b64decode(text) for text in first["base64"]] == [Path(path).read_bytes() for path in first["output_paths"]]
        assert {Path(path).parent for path in first["output_paths"]} == {tmp_path / "here" / "asked"}


def test_the_longest_prompt_passes(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    write(program.home, {"prompt": "🦊" * 32_000, "size": "1024x640", "quality": "low"})
    assert done(program.home, program.environment)[0] == 0
    assert standin.requests[0].json["prompt"] == "🦊" * 32_000


def test_every_parameter_reaches_openai(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    (job, *_) = json.loads((EXAMPLES / "everything.json").read_bytes())["jobs"]
    write(program.home, job)
    assert done(program.home, program.environment)[0] == 0
    assert standin.requests[0].json == {
        "model": "gpt-image-2.5-flare",
        "prompt": "A paper crane",
        "n": 2,
        "size": "1024x1536",
        "quality": "medium",
        "background": "transparent",
        "output_format": "webp",
        "output_compression": 90,
        "moderation": "low",
    }
