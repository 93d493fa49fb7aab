"""Resources, prompts and completion as they are on the wire, in both eras, and the links that drawing answers carry."""

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mcp
import msgspec
import pytest
import trio
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from daemon import mcp_server, resources
from daemon.errors import Refused
from daemon.request_words import ARGUMENT_BYTES_MAX
from eventlog.errors import IndexUnavailable, LogDead
from eventlog.events import RequestReceived
from eventlog.values import digest
from tests.program import IMAGED, SECONDS_MAX, Program, Stdio, environment, running, wait_until
from tests.test_mcp import MODERN
from tools.errors import FileFailed

LEGACY: dict[str, Any] = {}
ERAS = {"2025-11-25": LEGACY, "2026-07-28": {"_meta": MODERN}}
NOT_FOUND = {"2025-11-25": -32002, "2026-07-28": -32602}
IMAGE = {"type": "ref/resource", "uri": resources.IMAGE}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """With one generation of two pictures."""
    with running(tmp_path_factory.mktemp("resources")) as program:
        with Stdio(program.environment) as client:
            client.initialize()
            drawn = client.call(
                "generate_image", prompt="A red \u202e kite", quality="low", sample_count=2, output_path="kite.png"
            )
            assert not drawn["isError"]
        yield program


class Asking:
    """One client of one era."""

    def __init__(self, client: Stdio, era: str) -> None:
        self.client = client
        self.era = era
        if era in MODERN.values():
            return
        self.capabilities = client.initialize(era)["capabilities"]

    def message(self, method: str, **params: object) -> dict[str, Any]:
        return self.client.answer(self.client.request(method, {**params, **ERAS.get(self.era, LEGACY)}))

    def result(self, method: str, **params: object) -> dict[str, Any]:
        message = self.message(method, **params)
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result

    def error(self, method: str, **params: object) -> dict[str, Any]:
        error: dict[str, Any] = self.message(method, **params)["error"]
        return error


@pytest.fixture(params=ERAS)
def asking(request: pytest.FixtureRequest, program: Program) -> Iterator[Asking]:
    with Stdio(program.environment) as client:
        yield Asking(client, request.param)


def generation(program: Program) -> dict[str, Any]:
    (summary,) = program.ask("list_history")["result"]["generations"]
    result: dict[str, Any] = program.ask("get_history_by_uuid", uuid=summary["job_id"])["result"]
    return result


def test_both_eras_are_told_of_what_there_is_and_of_nothing_else(program: Program) -> None:
    with Stdio(program.environment) as client:
        discovered = client.answer(client.request("server/discover", {"_meta": MODERN}))["result"]["capabilities"]
        for told in (discovered, Asking(client, "2025-11-25").capabilities):
            assert set(told) - {"extensions"} == {"tools", "resources", "prompts", "completions"}
            assert not any(told["resources"].get(what) for what in ("subscribe", "listChanged"))
            assert not told["prompts"].get("listChanged")
        assert client.answer(client.request("resources/subscribe", {"uri": "imaged://generation/x"}))["error"]["code"] == -32601


def test_generations_and_pictures_are_listed_and_read(program: Program, asking: Asking) -> None:
    report = generation(program)
    job = report["job_id"]
    listed = asking.result("resources/list")
    record, first, second = listed["resources"]
    assert "nextCursor" not in listed
    assert [one["uri"] for one in (record, first, second)] == [
        f"imaged://generation/{job}",
        f"imaged://image/{job}/1",
        f"imaged://image/{job}/2",
    ]
    assert record["name"] == "A red \\u{202e} kite" and record["mimeType"] == "application/json" and "size" not in record
    assert first["name"] == "kite_1.png" and first["description"] == str(program.pictures / "kite_1.png")
    for one in (record, first, second):
        assert one["title"] and 0 < one["annotations"]["priority"] < 1
        assert one["annotations"]["audience"] == ["user", "assistant"]
        assert one["annotations"]["lastModified"] == report["updated_at"]

    (read,) = asking.result("resources/read", uri=first["uri"])["contents"]
    data = base64.b64decode(read["blob"], validate=True)
    assert read["mimeType"] == "image/png" and read["uri"] == first["uri"] and len(data) == first["size"]
    assert digest(data) == report["images"][0]["original_sha256"] != digest((program.pictures / "kite_1.png").read_bytes())
    (read,) = asking.result("resources/read", uri=record["uri"])["contents"]
    assert read["mimeType"] == "application/json" and json.loads(read["text"]) == report


def test_what_is_not_there_is_said_in_the_words_of_the_era(program: Program, asking: Asking) -> None:
    job = generation(program)["job_id"]
    for uri in ("imaged://generation/nobody", f"imaged://image/{job}/3", "http://example.org/"):
        error = asking.error("resources/read", uri=uri)
        assert error["code"] == NOT_FOUND[asking.era] and error["data"] == {"uri": uri}
        assert error["message"].endswith(".")
    error = asking.error("resources/list", cursor="next")
    assert error["code"] == -32602 and "begin again" in error["message"]
    assert asking.error("resources/read")["code"] == -32602


def test_pages_of_resources_follow_one_another(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(program.environment) as client:
        asking = Asking(client, "2025-11-25")
        drawing = [client.request("tools/call", draw(f"kite {n}")) for n in range(resources.GENERATIONS_A_PAGE + 1)]
        for _ in drawing:
            client.answer_any()
        page = asking.result("resources/list")
        assert len(page["resources"]) == 2 * resources.GENERATIONS_A_PAGE
        client.call("generate_image", prompt="one more", quality="low")
        rest = asking.result("resources/list", cursor=page["nextCursor"])
        uris = {one["uri"] for one in page["resources"] + rest["resources"]}
        assert len(rest["resources"]) == 2 and len(uris) == 2 * len(drawing) and "nextCursor" not in rest


def draw(prompt: str) -> dict[str, object]:
    return {"name": "generate_image", "arguments": {"prompt": prompt, "quality": "low"}}


def test_templates_say_how_to_name_a_resource(asking: Asking) -> None:
    templates = asking.result("resources/templates/list")["resourceTemplates"]
    assert [template["uriTemplate"] for template in templates] == [resources.GENERATION, resources.IMAGE, resources.PREVIEW]
    assert all(template["name"] and template["title"] and template["description"] for template in templates)


def test_only_what_never_changes_may_be_kept_by_a_client(program: Program) -> None:
    with Stdio(program.environment) as client:
        asking = Asking(client, "2026-07-28")
        for method in ("tools/list", "prompts/list", "resources/templates/list"):
            kept = asking.result(method)
            assert kept["ttlMs"] > 0 and kept["cacheScope"] == "public"
        uri = f"imaged://generation/{generation(program)['job_id']}"
        for fresh in (asking.result("resources/list"), asking.result("resources/read", uri=uri)):
            assert fresh["ttlMs"] == 0 and fresh["cacheScope"] == "private"


def test_a_picture_that_was_drawn_is_linked_behind_the_text_and_the_pictures(program: Program, asking: Asking) -> None:
    report = generation(program)
    call = {"name": "get_job_result", "arguments": {"job_id": report["job_id"], "include_thumbnail": True}}
    content = asking.result("tools/call", **call)["content"]
    assert [block["type"] for block in content] == ["text", "image", "image", "resource_link", "resource_link"]
    for n, (link, image) in enumerate(zip(content[3:], report["images"], strict=True), 1):
        assert link["uri"] == f"imaged://image/{report['job_id']}/{n}"
        assert link["name"] == f"kite_{n}.png" and link["description"] == image["path"] and link["mimeType"] == "image/png"
        (read,) = asking.result("resources/read", uri=link["uri"])["contents"]
        assert len(base64.b64decode(read["blob"])) == link["size"]


def test_a_drawing_answer_carries_its_link_and_a_refused_one_none(tmp_path: Path) -> None:
    slow = {"IMAGED_SYNC_WAIT_SECONDS": "0", "IMAGED_OFFLINE_SECONDS": "0.5"}
    with running(tmp_path), Stdio(environment(tmp_path)) as client, Stdio(environment(tmp_path, **slow)) as hasty:
        client.initialize()
        hasty.initialize()
        drawn = client.call("generate_image", prompt="x", quality="low")
        assert [block["type"] for block in drawn["content"]] == ["text", "resource_link"]
        assert [block["type"] for block in client.call("generate_image", prompt="")["content"]] == ["text"]
        assert [block["type"] for block in client.call("list_history")["content"]] == ["text"]
        assert [block["type"] for block in hasty.call("generate_image", prompt="x")["content"]] == ["text"]


@pytest.mark.parametrize(("version", "knows_links"), [("2024-11-05", False), ("2025-03-26", False), ("2025-06-18", True)])
def test_a_client_that_is_older_than_links_gets_none(version: str, knows_links: bool, program: Program) -> None:
    with Stdio(program.environment) as client:
        asking = Asking(client, version)
        call = {"name": "get_job_result", "arguments": {"job_id": generation(program)["job_id"]}}
        kinds = {block["type"] for block in asking.result("tools/call", **call)["content"]}
        assert kinds == ({"text", "resource_link"} if knows_links else {"text"})


def test_half_typed_variables_and_arguments_are_completed(program: Program, asking: Asking) -> None:
    job = generation(program)["job_id"]

    def complete(ref: object, name: str, value: str, **chosen: str) -> object:
        extra = {"context": {"arguments": chosen}} if chosen else {}
        return asking.result("completion/complete", ref=ref, argument={"name": name, "value": value}, **extra)["completion"]

    assert complete(IMAGE, "uuid", job[:6]) == {"values": [job], "total": 1, "hasMore": False}
    assert complete(IMAGE, "n", "", uuid=job) == {"values": ["1", "2"], "total": 2, "hasMore": False}
    assert complete(IMAGE, "n", "") == {"values": [], "total": 0, "hasMore": False}
    prompt = {"type": "ref/prompt", "name": "generate"}
    assert complete(prompt, "size", "3840") == {"values": ["3840x2160"], "total": 1, "hasMore": False}
    for ref in ({"type": "ref/prompt", "name": "paint"}, {"type": "ref/resource", "uri": "imaged://paint/{uuid}"}):
        error = asking.error("completion/complete", ref=ref, argument={"name": "uuid", "value": ""})
        assert error["code"] == -32602 and "There is no" in error["message"]


def test_prompts_are_listed_and_written(asking: Asking) -> None:
    listed = {prompt["name"]: prompt for prompt in asking.result("prompts/list")["prompts"]}
    assert set(listed) == {"generate", "edit", "restyle", "compare_variants"}
    required = {name: [a["name"] for a in prompt["arguments"] if a["required"]] for name, prompt in listed.items()}
    assert required["edit"] == ["picture", "change"] and required["compare_variants"] == ["subject"]
    said = asking.result("prompts/get", name="generate", arguments={"subject": "a fox", "style": "ink"})
    (message,) = said["messages"]
    assert said["description"] and message["role"] == "user" and "`generate_image`" in message["content"]["text"]
    offline = asking.result("prompts/get", name="compare_variants", arguments={"subject": "a fox"})
    assert "nothing is charged" in offline["messages"][0]["content"]["text"]
    error = asking.error("prompts/get", name="generate")
    assert error["code"] == -32602 and "needs the argument subject" in error["message"]


def test_a_prompt_speaks_of_the_model_of_its_session(program: Program) -> None:
    with Stdio({**program.environment, "OPENAI_IMAGE_MODEL": "gpt-image-2", "IMAGED_BACKEND": "openai"}) as client:
        said = Asking(client, "2025-11-25").result("prompts/get", name="compare_variants", arguments={"subject": "a fox"})
        text = said["messages"][0]["content"]["text"]
        assert '"model":"gpt-image-2"' in text and "tell me the price: $" in text


def test_what_is_read_or_said_is_a_fact_and_what_is_only_listed_is_none(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(program.environment) as client:
        asking = Asking(client, "2025-11-25")
        for method in ("resources/list", "resources/templates/list", "prompts/list"):
            asking.result(method)
        asking.result("completion/complete", ref=IMAGE, argument={"name": "uuid", "value": ""})
        asking.error("resources/read", uri="imaged://generation/nobody")
        asking.error("resources/read", uri="x" * ARGUMENT_BYTES_MAX)
        asking.result("prompts/get", name="edit", arguments={"picture": "data:image/png;base64,iVBO", "change": "x"})
        asking.result("prompts/get", name="generate", arguments={"subject": "a fox"})

        def facts() -> list[tuple[str, dict[str, Any]]]:
            return [
                (event.operation, {name: msgspec.json.decode(raw) for name, raw in commit.words.arguments.items()})
                for commit in program.log()
                for event in commit.events
                if isinstance(event, RequestReceived) and event.client.name == "test-client" and commit.words
            ]

        wait_until(lambda: len(facts()) >= 4, "the last request to be written")
        first, second, third, fourth = facts()
        assert first == ("resources/read", {"uri": "imaged://generation/nobody"})
        assert set(second[1]["uri"]) == {"sha256", "size_bytes"}
        assert third[1]["name"] == "edit" and set(third[1]["arguments"]["picture"]) == {"sha256", "size_bytes"}
        assert fourth == ("prompts/get", {"name": "generate", "arguments": {"subject": "a fox"}})


@pytest.mark.parametrize(
    ("trouble", "legacy", "modern"),
    [
        (LogDead("the disk"), -32603, -32603),
        (IndexUnavailable("The index cannot be read."), -32603, -32603),
        (FileFailed("The picture is damaged.", code="io_error"), -32603, -32603),
        (Refused("No.", code="bad_arguments"), -32602, -32602),
        (Refused("Gone.", code=resources.NO_SUCH_RESOURCE), -32002, -32602),
    ],
)
def test_every_trouble_has_its_code_and_its_sentence(trouble: Exception, legacy: int, modern: int) -> None:
    for version, code in (("2025-11-25", legacy), ("2026-07-28", modern)):
        with pytest.raises(MCPError) as raised, mcp_server._refusals_as_errors(SimpleNamespace(protocol_version=version)):  # type: ignore[arg-type]
            raise trouble
        assert raised.value.error.code == code
        told = raised.value.error.message
        assert told == str(trouble) or (isinstance(trouble, LogDead) and "imaged is stopping" in told)


async def look_with_python(settings: dict[str, str], job: str, mode: str) -> None:
    server = StdioServerParameters(command=IMAGED[0], args=[*IMAGED[1:], "mcp"], env=settings, cwd="/")
    with trio.fail_after(SECONDS_MAX):
        async with mcp.Client(server, mode=mode) as client:  # type: ignore[arg-type]
            listed = await client.list_resources()
            assert listed.resources[0].uri == f"imaged://generation/{job}"
            assert len((await client.list_resource_templates()).resource_templates) == 3
            (picture,) = (await client.read_resource(f"imaged://image/{job}/2")).contents
            assert base64.b64decode(picture.blob).startswith(b"\x89PNG")  # type: ignore[union-attr]
            (record,) = (await client.read_resource(f"imaged://generation/{job}")).contents
            assert json.loads(record.text)["job_id"] == job  # type: ignore[union-attr]
            with pytest.raises(MCPError, match="no generation nobody"):
                await client.read_resource("imaged://generation/nobody")
            assert len((await client.list_prompts()).prompts) == 4
            said = await client.get_prompt("restyle", {"picture": job, "style": "ink"})
            assert "`transform_image`" in said.messages[0].content.text  # type: ignore[union-attr]
            variable = ResourceTemplateReference(uri=resources.IMAGE)
            found = await client.complete(variable, {"name": "n", "value": ""}, {"uuid": job})
            assert found.completion.values == ["1", "2"]
            offered = await client.complete(PromptReference(name="edit"), {"name": "picture", "value": job[:4]})
            assert offered.completion.values == [job]


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
def test_the_official_python_client_reads_completes_and_gets_prompts(mode: str, program: Program) -> None:
    trio.run(partial(look_with_python, program.environment, generation(program)["job_id"], mode))
