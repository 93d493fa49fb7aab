"""MCP as it is on the wire: both eras, wrong arguments, wrong lines, many sessions, one daemon."""

import base64
import json
import threading
from pathlib import Path

import pytest

from daemon.operations import OPERATIONS
from tests.program import Program, Stdio, environment, running, wait_until

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "modern-client", "version": "2"},
}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_the_handshake_answers_in_the_version_that_was_asked(version: str, tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        said = client.initialize(version)
        assert said["protocolVersion"] == version
        assert said["serverInfo"]["name"] == "imaged"
        assert len(said["instructions"].encode()) <= 2048


def test_a_modern_client_needs_no_handshake(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        listed = client.answer(client.request("tools/list", {"_meta": MODERN}))["result"]
        assert {tool["name"] for tool in listed["tools"]} == {o.name for o in OPERATIONS.values() if not o.for_people}
        assert listed["ttlMs"] > 0
        call = {"name": "list_jobs", "_meta": MODERN}
        assert client.answer(client.request("tools/call", call))["result"]["structuredContent"]["total"] == 0


@pytest.mark.parametrize("then", ["initialize", "modern"])
def test_a_probe_decides_nothing(then: str, tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        probed = client.answer(client.request("server/discover", {"_meta": MODERN}))
        assert "2026-07-28" in probed["result"]["supportedVersions"]
        assert "error" in client.answer(client.request("server/discover"))
        if then == "initialize":
            assert client.initialize()["protocolVersion"] == "2025-11-25"
            assert client.call("list_history")["structuredContent"]["total"] == 0
        else:
            assert "result" in client.answer(client.request("tools/list", {"_meta": MODERN}))


def test_every_tool_carries_all_that_a_careful_client_looks_for(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        for tool in client.answer(client.request("tools/list"))["result"]["tools"]:
            assert tool["title"] and tool["description"]
            assert tool["inputSchema"]["additionalProperties"] is False
            assert tool["inputSchema"]["type"] == tool["outputSchema"]["type"] == "object"
            required = set(tool["inputSchema"].get("required", ()))
            assert all("default" in p or n in required for n, p in tool["inputSchema"]["properties"].items())
            assert all(p.get("description") for p in tool["inputSchema"]["properties"].values())
            draws = ("generate_image", "edit_image", "transform_image", "start_generation_job", "retry_job")
            assert tool["annotations"]["readOnlyHint"] is (tool["name"] not in (*draws, "cancel_job"))
            assert tool["annotations"]["openWorldHint"] is (tool["name"] in draws)


def test_the_list_of_tools_is_the_same_bytes_for_everybody(tmp_path: Path) -> None:
    with running(tmp_path):
        seen = set()
        for more in ({}, {"OPENAI_IMAGE_MODEL": "gpt-image-2", "IMAGED_BACKEND": "openai"}):
            with Stdio(environment(tmp_path, **more)) as client:
                client.initialize()
                seen.add(json.dumps(client.answer(client.request("tools/list"))["result"]))
        assert len(seen) == 1


def test_omitted_arguments_mean_none(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        result = client.answer(client.request("tools/call", {"name": "list_history"}))["result"]
        assert not result["isError"]
        assert result["content"][0]["text"] == "No generations found."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs the argument prompt"),
        ({"prompt": "x", "colour": "red"}, 'no argument "colour"'),
        ({"prompt": 7}, "prompt is 7"),
        ({"prompt": ""}, 'prompt is ""; allowed is text of 1 to 32000 characters'),
        ({"prompt": "x", "quality": "HIGH"}, 'quality is "HIGH"; allowed is one of'),
        ({"prompt": "x", "sample_count": 11}, "sample_count is 11; allowed is a whole number from 1 to 10"),
        ({"prompt": "x", "sample_count": 1.5}, "sample_count is 1.5"),
        ({"prompt": "x", "size": "big"}, 'size is "big"; allowed is text such as auto'),
        ({"prompt": "x", "size": "1000x1000"}, "1000x1000"),
        ({"prompt": "x", "model": "gpt-image-1"}, "gpt-image-2.6"),
        ({"prompt": "x", "output_path": "../x.png"}, "output_path"),
    ],
)
def test_a_wrong_argument_is_answered_with_one_sentence(arguments: dict[str, object], sentence: str, shared: Stdio) -> None:
    result = shared.call("generate_image", **arguments)
    assert result["isError"]
    assert sentence in result["content"][0]["text"]
    assert result["structuredContent"]["error"]["message"] == result["content"][0]["text"]
    assert shared.call("list_jobs")["structuredContent"]["total"] == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    home = tmp_path_factory.mktemp("shared")
    with running(home), Stdio(environment(home)) as client:
        client.initialize()
        yield client


@pytest.mark.parametrize(
    ("line", "code", "id_"),
    [
        (b"{oops", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[]", -32600, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, None),
        (b'{"jsonrpc":"2.0","id":"a","method":7}', -32600, "a"),
        (b'{"jsonrpc":"2.0","id":"b","method":"tools/call","params":[1]}', -32600, "b"),
        (b'{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"\\ud800"}}', None, "c"),
        (b'{"jsonrpc":"2.0","id":"d","method":"no/such"}', -32601, "d"),
        (b'{"jsonrpc":"2.0","id":"e","method":"tools/call","params":{"name":"nope"}}', -32602, "e"),
    ],
)
def test_a_wrong_line_is_answered_and_nothing_ends(line: bytes, code: int | None, id_: object, shared: Stdio) -> None:
    shared.send(line)
    said = shared.receive()
    assert said["error"]["code"] == code or (code is None and said["error"]["code"] in (-32700, -32600))
    assert said.get("id") == id_ or (code is None and said.get("id") is None)
    assert "result" in shared.answer(shared.request("ping"))


def test_an_id_that_is_still_open_is_refused_and_the_first_call_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="1"), Stdio(environment(tmp_path)) as client:
        client.initialize()
        call = {"jsonrpc": "2.0", "id": 77, "method": "tools/call"}
        call["params"] = {"name": "generate_image", "arguments": {"prompt": "x", "quality": "low"}}
        client.send(json.dumps(call).encode())
        for same in (b"77", b'"77"'):  # what carries the messages takes both for one
            client.send(b'{"jsonrpc":"2.0","id":%s,"method":"ping"}' % same)
            said = client.receive()
            assert "still open" in said["error"]["message"] and json.dumps(said["id"]).encode() == same
        assert not client.receive()["result"]["isError"]


def test_ten_parallel_pictures_with_one_name_from_two_clients_are_ten_files(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(environment(tmp_path)) as one, Stdio(environment(tmp_path)) as two:
        one.initialize()
        two.initialize()
        asked = [(c, c.request("tools/call", drawing(f"{n} of {c.process.pid}"))) for n in range(5) for c in (one, two)]
        paths = [c.answer_any()["structuredContent"]["images"][0]["path"] for c, _ in asked]
        assert len(set(paths)) == 10
        assert all(Path(path).read_bytes() for path in paths)
        assert program.ask("list_history")["result"]["total"] == 10


def drawing(prompt: str) -> dict[str, object]:
    arguments = {"prompt": prompt, "output_path": "same.png", "quality": "low", "size": "1024x1024"}
    return {"name": "generate_image", "arguments": arguments}


def test_two_clients_with_different_settings_share_a_daemon_without_mixing(tmp_path: Path) -> None:
    other = str(tmp_path / "elsewhere")
    with running(tmp_path), Stdio(environment(tmp_path)) as one:
        with Stdio(environment(tmp_path, OPENAI_IMAGE_OUTPUT_DIR=other, OPENAI_IMAGE_MODEL="gpt-image-2")) as two:
            one.initialize()
            two.initialize()
            mine = one.call("generate_image", prompt="mine", quality="low")["structuredContent"]
            theirs = two.call("generate_image", prompt="theirs", quality="low")["structuredContent"]
        assert mine["images"][0]["path"] == str(tmp_path / "pictures" / "generated_image.png")
        assert theirs["images"][0]["path"] == f"{other}/generated_image.png"
        assert (mine["model"], theirs["model"]) == ("gpt-image-2.5-flare", "gpt-image-2")
        assert one.call("list_history")["structuredContent"]["total"] == 2


def test_without_a_key_drawing_says_how_to_set_one_and_history_works(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path, IMAGED_BACKEND="openai")) as client:
        client.initialize()
        refused = client.call("generate_image", prompt="x")
        assert refused["isError"] and "OPENAI_API_KEY" in refused["content"][0]["text"]
        assert refused["structuredContent"]["error"]["code"] == "no_key"
        assert not client.call("list_history")["isError"]


def test_a_call_that_takes_long_answers_with_its_job_and_the_picture_still_comes(tmp_path: Path) -> None:
    slow = environment(tmp_path, IMAGED_SYNC_WAIT_SECONDS="0.2")
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="1.5"), Stdio(slow) as client:
        client.initialize()
        said = client.call("generate_image", prompt="slow", quality="low")
        assert not said["isError"]
        job = said["structuredContent"]["job_id"]
        assert said["structuredContent"]["state"] == "running" and job in said["content"][0]["text"]
        wait_until(lambda: client.call("get_job_result", job_id=job)["structuredContent"]["state"] == "completed", "the picture")


@pytest.mark.parametrize("leaving", ["disconnects", "cancels"])
def test_a_client_that_leaves_does_not_stop_its_picture(leaving: str, tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="1") as program, Stdio(environment(tmp_path)) as client:
        client.initialize()
        meta = {"progressToken": "p"}
        asked = client.request("tools/call", {**drawing("left behind"), "_meta": meta})
        while "drawing" not in client.receive()["params"]["message"]:
            pass
        if leaving == "cancels":
            client.notify("notifications/cancelled", {"requestId": asked, "reason": "bored"})
            assert "result" in client.answer(client.request("ping"))
        else:
            client.process.kill()
        wait_until(lambda: program.ask("list_history")["result"]["total"] == 1, "the picture")


def test_progress_comes_to_a_client_that_asked_for_it_and_only_grows(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="0.3"), Stdio(environment(tmp_path)) as client:
        client.initialize()
        client.answer(client.request("tools/call", {**drawing("x"), "_meta": {"progressToken": 5}}))
        told = [m["params"] for m in client.heard if m.get("method") == "notifications/progress"]
        assert told and all(p["progressToken"] == 5 for p in told)
        assert [p["progress"] for p in told] == sorted({p["progress"] for p in told})


def test_thumbnails_and_pictures_come_when_they_are_asked_for(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        said = client.call("generate_image", prompt="x", quality="low", include_thumbnail=True, return_base64=True)
        thumbnail, picture = said["content"][1:3]
        assert thumbnail["mimeType"] == "image/jpeg" and len(base64.b64decode(thumbnail["data"])) < 20_000
        assert picture["mimeType"] == "image/png" and base64.b64decode(picture["data"]).startswith(b"\x89PNG")


def test_what_is_drawn_offline_says_so_everywhere(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        report = client.call("generate_image", prompt="x", quality="low")["structuredContent"]
        assert report["backend"] == "offline"
        assert report["cost"]["basis"] == "offline" and report["cost"]["micro_usd"] == 0
        assert report["cost"]["would_be_micro_usd"] > 0
        assert b"MCP-Backend" in Path(report["images"][0]["path"]).read_bytes()


def test_twelve_bridges_at_once_start_one_daemon(tmp_path: Path) -> None:
    found: list[int] = []
    everything = environment(tmp_path, IMAGED_IDLE_EXIT_SECONDS="0")

    def come_in() -> None:
        with Stdio(everything) as client:
            client.initialize()
            found.append(client.call("list_jobs")["structuredContent"]["total"])

    threads = [threading.Thread(target=come_in) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [0] * 12
    program = Program(tmp_path)
    started = [event for commit in program.log() for event in commit.events if type(event).__name__ == "DaemonStarted"]
    assert len(started) == 1
    wait_until(
        lambda: any(type(event).__name__ == "DaemonStopped" for commit in program.log() for event in commit.events),
        "the idle daemon to leave",
    )
