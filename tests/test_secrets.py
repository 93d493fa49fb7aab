"""A key goes over the wire to the API, and nowhere else: whatever goes wrong, and whatever the API says back."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.program import IMAGED, SECONDS_MAX, Program, Stdio, running
from tests.standin import Behaviour, Request, StandIn
from tests.test_faults import FINAL, RETRIED, api, changed, says, with_data

KEYS = ("sk-test-canary-0123456789abcdef", "a-proxy's own canary / 7Jt9")
"""One as OpenAI makes them, one as a proxy of somebody's company may."""


def page(status: int, content_type: str = "text/html") -> Behaviour:
    """What a proxy in debug mode shows of the request that it could not pass on."""
    return lambda request: request.reply(status, f"<html>{request.headers}</html>".encode(), content_type=content_type)


def whole_request_as_json(request: Request) -> None:
    request.reply(200, json.dumps({"data": [], "request": request.headers}).encode())


def as_its_number(request: Request) -> None:
    request.reply(400, b'{"error":{"message":"no","code":"x"}}', x_request_id=request.headers["authorization"])


def as_its_stream(request: Request) -> None:
    event = json.dumps({"type": "error", "error": {"code": "server_error", "message": str(request.headers)}})
    request.reply(200, f"event: error\ndata: {event}\n\n".encode(), content_type="text/event-stream")


def repeats(key: str) -> list[Behaviour]:
    return [
        *(says(status, "invalid_api_key", f"Incorrect API key provided: {key}.") for status in (400, 401, 403, 404, 422)),
        says(400, key),
        says(429, "rate_limit_exceeded", f"Rate limit of {key}. Please try again in 1ms.", retry_after="0"),
        *(page(status) for status in (200, 400, 401, 500, 502, 504)),
        page(200, "application/json"),
        page(200, "text/event-stream"),
        whole_request_as_json,
        as_its_number,
        as_its_stream,
        with_data(key),
        changed(data=[{"b64_json": "AAAA", "revised_prompt": key}]),
        changed(output_format=key),
        changed(size=key, quality=key, background=key),
    ]


@pytest.fixture(scope="module", params=KEYS, ids=["OpenAI's", "a proxy's"])
def lives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Lives"]:
    lived = Lives(tmp_path_factory.mktemp("secrets"), request.param)
    lived.go_through_everything()
    yield lived


class Lives:
    """What a daemon with this key said, and where one could have seen it say so."""

    def __init__(self, home: Path, key: str) -> None:
        self.home = home
        self.key = key
        self.said: list[str] = []
        self.processes: dict[str, bytes] = {}
        self.core_limits: set[str] = set()
        self.requests: list[Request] = []

    def go_through_everything(self) -> None:
        with StandIn() as standin:
            settings = {**api(standin.url), "OPENAI_API_KEY": self.key}
            with running(self.home, **settings) as program:
                for behaviour in [*(row[1] for row in FINAL), *(b for row in RETRIED for b in row[1]), *repeats(self.key)]:
                    standin.will(behaviour)
                    self._ask(program, "generate_image", prompt="A fox", quality="low", size="1024x1024")
                    self._look_at(program.pid)
                standin.will(as_its_stream, page(502))
                self._ask(program, "generate_image", prompt="A fox", quality="low", partial_images=2)
                standin.will()
                self._ask(program, "generate_image", prompt="A fox", output_path="fox.png", quality="low")
                self._ask(program, "edit_image", prompt="A wolf", reference_image_path="fox.png", quality="low")
                self._look_at(program.pid)
                self._be_a_client_of_mcp(program, standin)
                self._be_killed(program, standin)
            with running(self.home, **settings) as program:
                for operation in ("get_status", "list_history", "get_spending", "list_jobs", "list_models"):
                    self._ask(program, operation)
                for command in (
                    ["status"],
                    ["doctor"],
                    ["history"],
                    ["events"],
                    ["jobs", "list"],
                    ["spending"],
                    ["audit", "verify"],
                ):
                    self._run(program, command)
                assert program.end() == 0
            self.requests = standin.requests

    def _ask(self, program: Program, operation: str, **arguments: object) -> None:
        self.said.append(json.dumps(program.ask(operation, **arguments), ensure_ascii=False))

    def _run(self, program: Program, command: list[str]) -> None:
        ran = subprocess.run([*IMAGED, *command], env=program.environment, capture_output=True, timeout=SECONDS_MAX, check=False)
        assert ran.returncode in (0, 1) and ran.stdout, (command, ran.stderr)
        self.said.append((ran.stdout + ran.stderr).decode())

    def _be_a_client_of_mcp(self, program: Program, standin: StandIn) -> None:
        with Stdio(program.environment) as client:
            client.initialize()
            standin.will(*repeats(self.key))
            for _ in range(4):
                self.said.append(json.dumps(client.call("generate_image", prompt="A fox"), ensure_ascii=False))
            self._look_at(client.process.pid)
            client.process.kill()
            _, heard = client.process.communicate(timeout=SECONDS_MAX)
            self.said.append(heard.decode())

    def _be_killed(self, program: Program, standin: StandIn) -> None:
        arrived = threading.Event()

        def die(request: Request) -> None:
            arrived.set()
            request.reply_half_then(program.kill)

        standin.will(die)
        program.ask("start_generation_job", tool_name="generate_image", prompt="A fox")
        assert arrived.wait(SECONDS_MAX)
        program.wait_for_end()

    def _look_at(self, top: int) -> None:
        """Each of its processes: what everybody may see of it, and what it has been given."""
        for pid in descendants(top):
            try:
                self.processes[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
                if pid != top:
                    self.processes[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
                limits = Path(f"/proc/{pid}/limits").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            self.core_limits.update(line.split(maxsplit=4)[4] for line in limits.splitlines() if "core file" in line)


def descendants(top: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
    found = [top]
    for pid in found:
        found += parents.get(pid, [])
    return found


def test_the_api_saw_the_key_each_time(lives: Lives) -> None:
    assert len(lives.requests) > 40
    assert {request.headers["authorization"] for request in lives.requests} == {f"Bearer {lives.key}"}


def test_no_file_of_the_house_holds_the_key(lives: Lives) -> None:
    files = [path for path in lives.home.rglob("*") if path.is_file()]
    kept = [path for path in files if "/store/" in str(path)]
    assert len(kept) > 10, "useless replies are kept too"
    assert not [path for path in files if lives.key.encode() in path.read_bytes()]


def test_nobody_is_told_the_key(lives: Lives) -> None:
    assert len(lives.said) > 40
    assert not [said for said in lives.said if lives.key in said or json.dumps(lives.key)[1:-1] in said]


def test_no_process_shows_the_key_and_no_child_is_given_it(lives: Lives) -> None:
    assert any(name.startswith("environment") for name in lives.processes), "pictures are decoded in a process of its own"
    assert not [name for name, shown in lives.processes.items() if lives.key.encode() in shown]


def test_no_core_file_can_hold_it(lives: Lives) -> None:
    assert {tuple(limit.split()[:2]) for limit in lives.core_limits} == {("1", "1")}, "0 does not stop a program that asks for it"
