"""What one client does to its own connection harms nobody else, and never the daemon."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.mcp_server import REQUESTS_OPEN_MAX
from eventlog.events import RequestReceived
from eventlog.values import Words
from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "rude", "version": "1"}},
}
READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
DRAW = {
    "jsonrpc": "2.0",
    "id": 3,
    "method": "tools/call",
    "params": {
        "name": "generate_image",
        "arguments": {"prompt": "x", "quality": "low", "size": "1024x1024"},
        "_meta": {"progressToken": 1},
    },
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("rude"), IMAGED_OFFLINE_SECONDS="0.2") as program:
        yield program


def connected(program: Program, hello: bytes | None = None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS_MAX)
    connection.connect(str(program.places.run / "mcp.sock"))
    if hello is None:
        hello = json.dumps({"imaged": 1, "settings": program.environment}).encode() + b"\n"
    connection.sendall(hello)
    return connection


def lines(*messages: object) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


@pytest.mark.parametrize("cut", [0, 10, 200, 250, 300, 400, 500, 650])
def test_a_client_may_vanish_at_any_byte(cut: int, house: Program) -> None:
    everything = lines(INITIALIZE, READY, LIST, DRAW)
    for reset in (False, True):
        connection = connected(house)
        connection.sendall(everything[:cut] if cut < 650 else everything)
        if reset:
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert house.answers()


@pytest.mark.parametrize(
    "hello",
    [b"", b"\n", b"{}\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'{"imaged":2}\n', b'{"imaged":1,"door":7}\n',
     b'{"imaged":1,"settings":{"IMAGED_BACKEND":"moon"}}\n', b'{"imaged":1,"settings":[]}\n',
        b'{"imaged":1,"software":"\xff"}\n',
        b'{"imaged":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'{"imaged":1,"settings":{"OPENAI_BASE_URL":"https://[abc"}}\n',
     b"\xff" * 100 + b"\n", b"x" * 300_000],
)  # fmt: skip
def test_a_wrong_first_line_is_refused_with_a_sentence(hello: bytes, house: Program) -> None:
    with connected(house, hello) as connection:
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while piece := connection.recv(1 << 16):
            said += piece
    assert json.loads(said)["refused"]
    assert house.answers()


def test_a_client_that_never_reads_stops_at_its_own_limit(house: Program) -> None:
    with connected(house) as connection:
        connection.sendall(lines(INITIALIZE, READY))
        connection.settimeout(0.5)
        request = dict(LIST)
        sent = 0
        with pytest.raises(TimeoutError):
            for number in range(100_000):
                request["id"] = number + 10
                connection.sendall(lines(request))
                sent = number
        assert sent >= REQUESTS_OPEN_MAX
        with Stdio(environment(house.home)) as polite:
            polite.initialize()
            assert polite.call("list_jobs")["structuredContent"]["limit"] == 20


def test_more_open_calls_than_allowed_are_refused_one_by_one(house: Program) -> None:
    with Stdio(environment(house.home, IMAGED_MAX_CONCURRENT="64")) as client:
        client.initialize()
        ids = [
            client.request(
                "tools/call", {"name": "generate_image", "arguments": {"prompt": str(n), "quality": "low", "size": "1024x640"}}
            )
            for n in range(REQUESTS_OPEN_MAX + 10)
        ]
        replies = {}
        while len(replies) < len(ids):
            message = client.receive()
            if "result" in message or "error" in message:
                replies[message["id"]] = message
        refused = [message for message in replies.values() if "error" in message]
        assert 1 <= len(refused) <= 10
        assert all("wait for some answers" in message["error"]["message"] for message in refused)


def test_a_hundred_silent_connections_disturb_nobody(house: Program) -> None:
    silent = [connected(house, b"") for _ in range(50)] + [connected(house) for _ in range(50)]
    try:
        with Stdio(environment(house.home)) as polite:
            polite.initialize()
            assert not polite.call("generate_image", prompt="undisturbed", quality="low")["isError"]
    finally:
        for connection in silent:
            connection.close()
    assert house.answers()


def test_cancelling_what_is_not_there_is_ignored(house: Program) -> None:
    with Stdio(environment(house.home)) as client:
        client.initialize()
        for request_id in (999, "x", None, 1.5, [], {}):
            client.notify("notifications/cancelled", {"requestId": request_id})
        assert "result" in client.answer(client.request("ping"))


def test_a_message_of_many_megabytes_is_read_or_refused_but_answered(house: Program) -> None:
    with connected(house) as connection:
        connection.sendall(lines(INITIALIZE, READY))
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: said.extend(iter(lambda: connection.recv(1 << 16), b"")), daemon=True)
        reader.start()
        connection.sendall(
            b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"generate_image","arguments":{"prompt":"'
        )
        for _ in range(66):
            connection.sendall(b"x" * (1 << 20))
        connection.sendall(b'"}}}\n' + lines({"jsonrpc": "2.0", "id": 6, "method": "ping"}))
        connection.shutdown(socket.SHUT_WR)
        reader.join(SECONDS_MAX)
    replies = [json.loads(line) for line in b"".join(said).splitlines()]
    assert any(reply.get("error", {}).get("code") == -32600 for reply in replies)
    assert any(reply.get("id") == 6 and "result" in reply for reply in replies)


def test_every_request_is_a_fact_with_who_asked_and_through_which_door(house: Program) -> None:
    with Stdio(environment(house.home)) as client:
        client.initialize()
        client.call("list_history", query="ぜんぶ")
        client.call("generate_image", prompt="x", nonsense=True)

    def received() -> list[tuple[RequestReceived, Words]]:
        commits = house.log()
        found = [(e, c.words) for c in commits for e in c.events if isinstance(e, RequestReceived) and c.words]
        return found if any("nonsense" in words.arguments for _, words in found) else []

    facts = wait_until(received, "the last request to be written")
    assert ("list_history", "mcp", "test-client") in [(e.operation, e.door, e.client.name) for e, _ in facts]
    (query,) = [words.arguments["query"] for event, words in facts if event.operation == "list_history" and words.arguments]
    assert bytes(query).decode() == '"ぜんぶ"'


def test_files_and_folders_of_the_house_are_the_users_alone(house: Program) -> None:
    for path in house.places.home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert path.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("door", ["cli", "control", "window"])
def test_at_this_socket_is_no_door_but_that_of_mcp(door: str, house: Program) -> None:
    hello = json.dumps({"imaged": 1, "door": door, "settings": {}}).encode() + b"\n"
    with connected(house, hello + b'{"operation": "get_status"}\n') as connection:
        connection.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert f"The door '{door}' is not at this socket" in json.loads(said)["refused"]


def test_a_second_daemon_leaves_the_first_alone(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        second = Program(tmp_path).start()
        assert second.wait_for_end() == 75
        assert first.answers() and "Another imaged is running" in second.said()


def test_a_daemon_whose_log_has_lost_its_durable_end_says_so_and_touches_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        program.ask("generate_image", prompt="x", quality="low")
        program.end()
    (segment,) = (tmp_path / "imaged" / "events").glob("*.jsonl")
    data = bytearray(segment.read_bytes())
    data[-50] ^= 1
    segment.write_bytes(data)
    broken = Program(tmp_path).start()
    assert broken.wait_for_end() == 1
    assert "was durable once" in broken.said() and "Traceback" not in broken.said()
    assert segment.read_bytes() == bytes(data)
