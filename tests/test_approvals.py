"""Above IMAGED_CONFIRM_USD a person says yes - in the client or at a terminal - or nothing is drawn."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.approvals import KEPT_MAX, SECONDS_MAX, Approvals
from daemon.budgets import needs_approval, strictest
from eventlog.events import JobRequested
from eventlog.values import Caps, MicroUSD
from tests.program import IMAGED, Program, Stdio, running
from tests.standin import StandIn
from tests.test_cli_terminal import Screen

FOX = {"prompt": "a fox", "size": "1024x1024", "quality": "low"}
Scene = tuple[Program, Stdio, StandIn]
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
    "io.modelcontextprotocol/clientInfo": {"name": "modern-client", "version": "2"},
}


@contextmanager
def scene(home: Path, **more: str) -> Iterator[Scene]:
    with StandIn() as standin:
        settings = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": standin.url}
        settings |= {"IMAGED_CONFIRM_USD": "0.001", **more}
        with running(home, **settings) as program, Stdio({**program.environment, **settings}) as client:
            yield program, client, standin


def initialize(client: Stdio, **capabilities: object) -> None:
    introduced = {"name": "test-client", "version": "1"}
    asked = {"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": introduced}
    client.answer(client.request("initialize", asked))
    client.notify("notifications/initialized")


def ask_and_say(client: Stdio, said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the person was asked, and how the call ended."""
    asked = client.request("tools/call", {"name": "generate_image", "arguments": FOX})
    question = client.receive()
    assert question["method"] == "elicitation/create"
    client.send(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": said}).encode())
    return question["params"]["message"], client.answer(asked)["result"]


def approved_by(program: Program) -> list[str]:
    return [event.approved_by for commit in program.log() for event in commit.events if isinstance(event, JobRequested)]


def refusal(answer: dict[str, Any]) -> tuple[str, str]:
    error = answer["structuredContent"]["error"]
    return error["code"], error["message"]


YES = {"action": "accept", "content": {"draw": True}}


def test_a_client_with_a_dialogue_asks_its_user_and_the_log_tells_so(tmp_path: Path) -> None:
    with scene(tmp_path) as (program, client, standin):
        initialize(client, elicitation={})
        question, answer = ask_and_say(client, YES)
        assert '"a fox"' in question and "test-client wants to draw" in question and "$0.001" in question
        assert answer["structuredContent"]["state"] == "completed" and len(standin.requests) == 1
        for said, code in (
            ({"action": "decline", "content": {"draw": True}}, "not_approved"),
            ({"action": "accept", "content": {"draw": False}}, "not_approved"),
            ({"action": "accept"}, "not_approved"),
            ({"action": "accept", "content": {"draw": "true"}}, "not_approved"),
            ({"action": "cancel"}, "needs_approval"),
        ):
            assert refusal(ask_and_say(client, said)[1])[0] == code
        assert len(standin.requests) == 1 and approved_by(program) == ["elicitation"]


def modern_call(client: Stdio, arguments: dict[str, Any] = FOX, **more: object) -> dict[str, Any]:
    call = {"name": "generate_image", "arguments": arguments, "_meta": MODERN, **more}
    answer: dict[str, Any] = client.answer(client.request("tools/call", call))["result"]
    return answer


def test_a_modern_client_is_answered_with_the_question_and_repeats_the_call_with_the_answer(tmp_path: Path) -> None:
    with scene(tmp_path) as (program, client, standin):
        asked = modern_call(client)
        assert asked["resultType"] == "input_required"
        [(name, question)] = asked["inputRequests"].items()
        assert question["method"] == "elicitation/create" and '"a fox"' in question["params"]["message"]
        said, state = {name: YES}, asked["requestState"]
        for strange in ({"requestState": "0" * 16}, {"requestState": "ü"}, {}):
            assert modern_call(client, inputResponses=said, **strange)["resultType"] == "input_required"
        other = modern_call(client, {**FOX, "prompt": "two foxes"}, inputResponses=said, requestState=state)
        assert other["resultType"] == "input_required" and not standin.requests
        drawn = modern_call(client, inputResponses=said, requestState=state)
        assert drawn["structuredContent"]["state"] == "completed" and len(standin.requests) == 1
        again = modern_call(client, {**FOX, "again": True}, inputResponses=said, requestState=state)
        assert again["resultType"] == "input_required" and again["requestState"] != state  # it was for once
        no = modern_call(
            client, {**FOX, "again": True}, inputResponses={name: {"action": "decline"}}, requestState=again["requestState"]
        )
        assert refusal(no)[0] == "not_approved"
        assert len(standin.requests) == 1 and approved_by(program) == ["elicitation"]


def test_without_a_dialogue_a_person_approves_at_a_terminal_this_very_order_once(tmp_path: Path) -> None:
    with scene(tmp_path) as (program, client, standin):
        initialize(client)
        code, message = refusal(client.call("generate_image", **FOX))
        assert code == "needs_approval" and "imaged approve " in message
        approval = message.partition("imaged approve ")[2].partition("`")[0]
        assert refusal(client.call("generate_image", **FOX))[1] == message  # the same question
        assert program.ask("approve_order", code="0" * 16)["refused"]["code"] == "no_such_approval"
        for typed, expected in ((b"no", 1), (b"yes", 0)):
            with Screen(program, "approve", approval) as screen:
                assert screen.until(b"Type yes:").type(typed + b"\n").end() == expected
                assert "a fox" in screen.lines[0]
        assert not standin.requests
        assert refusal(client.call("generate_image", **{**FOX, "prompt": "two foxes"}))[0] == "needs_approval"
        assert client.call("generate_image", **FOX)["structuredContent"]["state"] == "completed"
        assert refusal(client.call("generate_image", **FOX))[0] == "needs_approval"
        assert len(standin.requests) == 1 and approved_by(program) == ["terminal"]


def test_who_is_not_at_a_terminal_approves_nothing(tmp_path: Path) -> None:
    with scene(tmp_path) as (program, client, _):
        initialize(client)
        approval = refusal(client.call("generate_image", **FOX))[1].partition("imaged approve ")[2].partition("`")[0]
        ended = subprocess.run(
            [*IMAGED, "approve", approval], env=program.environment, input=b"yes\n", capture_output=True, timeout=60
        )
        assert ended.returncode == 2 and b"at a terminal" in ended.stderr
        assert refusal(client.call("generate_image", **FOX))[0] == "needs_approval"


def test_a_rehearsal_asks_nobody_and_says_who_will_be_asked(tmp_path: Path) -> None:
    with scene(tmp_path) as (_, client, standin):
        initialize(client, elicitation={})
        told = client.call("generate_image", **FOX, dry_run=True)["structuredContent"]
        assert told["state"] == "dry_run" and "The user will be asked" in " ".join(told["warnings"])
        assert not standin.requests


def test_below_the_amount_nobody_is_asked(tmp_path: Path) -> None:
    with scene(tmp_path, IMAGED_CONFIRM_USD="5") as (program, client, _):
        initialize(client, elicitation={})
        assert client.call("generate_image", **FOX)["structuredContent"]["state"] == "completed"
        assert approved_by(program) == [""]


@pytest.mark.parametrize(
    ("confirm", "high", "asked"), [(None, 10**9, False), (5, 5, False), (5, 6, True), (5, None, True), (0, 1, True)]
)
def test_a_person_is_asked_about_more_than_the_amount_or_about_what_nobody_knows(
    confirm: int | None, high: int | None, asked: bool
) -> None:
    caps = Caps(confirm=None if confirm is None else MicroUSD(confirm))
    assert bool(needs_approval(caps, None if high is None else MicroUSD(high))) is asked
    assert strictest(caps, Caps(confirm=MicroUSD(3))).confirm == min(3, 3 if confirm is None else confirm)


def in_time(main: Callable[[Approvals], Any]) -> None:
    async def run() -> None:
        await main(Approvals())

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_neither_a_question_nor_an_approval_lasts() -> None:
    async def main(approvals: Approvals) -> None:
        code = approvals.ask(("order",), "this?")
        await trio.sleep(SECONDS_MAX - 1)
        assert approvals.text(code) == "this?"
        approvals.approve(code, "terminal")
        await trio.sleep(1)
        assert approvals.text(code) is None and approvals.take(("order",)) == ""
        assert approvals.ask(("order",), "this?") != code

    in_time(main)


def test_the_oldest_of_too_many_questions_is_forgotten() -> None:
    async def main(approvals: Approvals) -> None:
        codes = [approvals.ask((number,), f"{number}?") for number in range(KEPT_MAX + 1)]
        assert approvals.text(codes[0]) is None and approvals.text(codes[-1]) == f"{KEPT_MAX}?"
        assert len(approvals._questions) <= KEPT_MAX

    in_time(main)
