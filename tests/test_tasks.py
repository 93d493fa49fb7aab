"""A client that knows the tasks extension has its drawing calls answered at once; what it then asks is the job itself."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until
from tests.standin import Request, StandIn, draw

EXTENSION = "io.modelcontextprotocol/tasks"
Capabilities = dict[str, Any]
OFFERED: Capabilities = {"extensions": {EXTENSION: {}}}


class Task(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """DetailedTask as the specification of 2026-07-28 has it: github.com/modelcontextprotocol/ext-tasks."""

    result_type: Literal["task", "complete"]
    task_id: Annotated[str, msgspec.Meta(min_length=1)]
    status: Literal["working", "input_required", "completed", "cancelled", "failed"]
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int | None = None
    status_message: str | None = None
    result: dict[str, Any] | None = None
    meta: dict[str, Any] | None = msgspec.field(default=None, name="_meta")

    def __post_init__(self) -> None:
        assert (self.result is not None) == (self.status == "completed")


def meta(capabilities: Capabilities = OFFERED) -> dict[str, Any]:
    return {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        "io.modelcontextprotocol/clientInfo": {"name": "modern-client", "version": "2"},
    }


def call(client: Stdio, tool: str, capabilities: Capabilities = OFFERED, **arguments: object) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments, "_meta": meta(capabilities)}
    answer: dict[str, Any] = client.answer(client.request("tools/call", params))["result"]
    return answer


def ask(client: Stdio, method: str, task_id: str, capabilities: Capabilities = OFFERED, **more: object) -> dict[str, Any]:
    return client.answer(client.request(f"tasks/{method}", {"taskId": task_id, "_meta": meta(capabilities), **more}))


def get(client: Stdio, task_id: str) -> Task:
    return msgspec.convert(ask(client, "get", task_id)["result"], Task)


def finished(client: Stdio, task_id: str) -> Task:
    task: Task = wait_until(lambda: (now := get(client, task_id)).status != "working" and now, "the task to end")
    return task


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stdio]:
    home = tmp_path_factory.mktemp("tasks")
    with running(home), Stdio(environment(home)) as client:
        yield client


def test_a_drawing_call_becomes_a_task_and_its_result_is_that_of_the_call(client: Stdio) -> None:
    begun = msgspec.convert(call(client, "generate_image", prompt="a fox", include_thumbnail=True), Task)
    assert (begun.result_type, begun.status, begun.ttl_ms) == ("task", "working", None)
    assert begun.poll_interval_ms and begun.status_message
    ended = finished(client, begun.task_id)
    assert (ended.result_type, ended.status, ended.created_at) == ("complete", "completed", begun.created_at)
    assert ended.result and ended.result["structuredContent"]["job_id"] in begun.task_id
    waited = call(client, "wait_for_job", job_id=ended.result["structuredContent"]["job_id"], include_thumbnail=True)
    kinds = [part["type"] for part in ended.result["content"]]
    assert kinds == [part["type"] for part in waited["content"]] and "image" in kinds and "resource_link" in kinds
    assert ended.result["structuredContent"] == waited["structuredContent"]
    assert not ended.result["isError"]


def test_what_the_call_did_not_ask_for_does_not_come_with_its_result(client: Stdio) -> None:
    ended = finished(client, call(client, "generate_image", prompt="a hare")["taskId"])
    assert ended.result and [part["type"] for part in ended.result["content"]] == ["text", "resource_link"]
    ended = finished(client, call(client, "generate_image", prompt="a hare", return_base64=True)["taskId"])
    assert ended.result and [part["type"] for part in ended.result["content"]] == ["text", "image", "resource_link"]


def test_what_costs_nothing_to_wait_for_is_answered_directly(client: Stdio) -> None:
    assert call(client, "list_history")["resultType"] == "complete"
    assert call(client, "generate_image", prompt="a fox", dry_run=True)["structuredContent"]["state"] == "dry_run"
    refused = call(client, "generate_image", prompt="")
    assert refused["isError"] and refused["resultType"] == "complete"
    assert call(client, "start_generation_job", tool_name="generate_image", prompt="a bear")["resultType"] == "complete"
    key = {"prompt": "a wolf", "idempotency_key": "wolf"}
    finished(client, call(client, "generate_image", **key)["taskId"])
    assert call(client, "generate_image", **key)["structuredContent"]["state"] == "completed"  # over already


@pytest.mark.parametrize("capabilities", [{}, {"extensions": {}}, {"extensions": {"io.modelcontextprotocol/ui": {}}}])
def test_a_client_that_does_not_offer_it_waits_as_ever(client: Stdio, capabilities: Capabilities) -> None:
    drawn = call(client, "generate_image", capabilities, prompt="a fox", again=True)
    assert drawn["resultType"] == "complete" and drawn["structuredContent"]["state"] == "completed"
    for method in ("get", "update", "cancel"):
        error = ask(client, method, drawn["structuredContent"]["job_id"], capabilities)["error"]
        assert error["code"] == -32021 and error["data"] == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}


def test_the_server_offers_it_to_modern_clients_only(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        found = client.answer(client.request("server/discover", {"_meta": meta()}))["result"]
        assert found["capabilities"]["extensions"] == {EXTENSION: {}}
        assert "extensions" not in client.initialize()["capabilities"]
        assert client.call("generate_image", prompt="a fox")["structuredContent"]["state"] == "completed"
        assert client.answer(client.request("tasks/get", {"taskId": "x"}))["error"]["code"] in (-32021, -32601)


@pytest.mark.parametrize(
    "task_id", ["", "x", "../x", "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000.q"]
)
def test_an_unknown_task_is_an_error_that_says_so(client: Stdio, task_id: str) -> None:
    for method in ("get", "update", "cancel"):
        error = ask(client, method, task_id)["error"]
        assert (
            (error["code"] == -32602 and "no task" in error["message"])
            or "no job" in error["message"]
            or "generation" in error["message"]
        )


def test_an_update_and_a_late_cancel_are_acknowledged_and_change_nothing(client: Stdio) -> None:
    task_id = call(client, "generate_image", prompt="an owl")["taskId"]
    ended = finished(client, task_id)
    for answer in (ask(client, "update", task_id, inputResponses={"x": {"action": "accept"}}), ask(client, "cancel", task_id)):
        assert {name: value for name, value in answer["result"].items() if name != "_meta"} == {"resultType": "complete"}
    assert get(client, task_id).result == ended.result


def paying(url: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url}


def test_a_task_can_be_cancelled_and_one_that_fails_is_a_result_that_says_so(tmp_path: Path) -> None:
    gate = threading.Event()

    def slowly(request: Request) -> None:
        gate.wait(SECONDS_MAX)
        draw(request)

    with (
        StandIn(slowly) as standin,
        running(tmp_path, **paying(standin.url)) as program,
        Stdio({**program.environment, **paying(standin.url)}) as client,
    ):
        task_id = call(client, "generate_image", prompt="a fox")["taskId"]
        wait_until(lambda: standin.requests, "the request")
        ask(client, "cancel", task_id)
        assert finished(client, task_id).status == "cancelled"
        gate.set()
        standin.will(lambda request: request.error(400, "moderation_blocked"))
        failed = finished(client, call(client, "generate_image", prompt="a hare")["taskId"])
        assert failed.status == "completed" and failed.result and failed.result["isError"]
        assert failed.result["structuredContent"]["error_code"] == "moderation_blocked"


def test_a_task_outlives_the_daemon_and_says_what_it_waits_for(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **paying(standin.url)) as program:
        client = Stdio({**program.environment, **paying(standin.url)})
        with client:
            standin.will(lambda request: request.error(429, "rate_limit_exceeded", "Please try again in 600s."))
            task_id = call(client, "generate_image", prompt="a fox", include_thumbnail=True)["taskId"]
            wait_until(lambda: "Waiting until" in str(get(client, task_id).status_message), "the job to be told to wait")
            restarted(program)
            assert get(client, task_id).status == "working"
            ask(client, "cancel", task_id)
            assert finished(client, task_id).status == "cancelled"


def restarted(program: Program) -> None:
    program.kill()
    program.start().ready()
