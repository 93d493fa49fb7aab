"""A client's session outlives its daemons: what each side is told when one goes, and what is never told twice."""

import json
import os
import select
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon import pump
from daemon.conversation import Conversation
from tests.daemon.test_bridge import FakeDaemon, ask, bridged, daemon, heard, received, said

__all__ = ["daemon"]  # the fixture

INITIALIZE = b'{"method":"initialize","params":{"protocolVersion":"2025-11-25"},"jsonrpc":"2.0","id":0}\n'
INITIALIZED = b'{"method":"notifications/initialized","jsonrpc":"2.0"}\n'
GREETING = b'{"jsonrpc":"2.0","id":0,"result":{"serverInfo":{"name":"imaged"}}}\n'
CALL = b'{"method":"tools/call","params":{"name":"generate_image"},"jsonrpc":"2.0","id":7}\n'
MODERN_META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}


def line(**message: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"


def next_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout
    got = b""
    while not got.endswith(b"\n"):
        piece = received(process, 1)
        assert piece, got
        got += piece
    parsed: dict[str, Any] = json.loads(got)
    return parsed


def greeted(process: subprocess.Popen[bytes], fake: FakeDaemon) -> socket.socket:
    connection, _ = fake.accept()
    ask(process, INITIALIZE)
    heard(connection, INITIALIZE)
    connection.sendall(GREETING)
    assert next_line(process)["id"] == 0
    ask(process, INITIALIZED)
    heard(connection, INITIALIZED)
    return connection


def nobody_comes(fake: FakeDaemon) -> bool:
    return not select.select([fake.listener], [], [], 0.3)[0]


def test_the_next_daemon_is_told_how_the_conversation_began_when_the_client_says_more(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        greeted(process, daemon).close()
        assert nobody_comes(daemon), "whoever stopped the daemon may want none"
        more = line(id=1, method="tools/list")
        ask(process, more)
        connection, hello = daemon.accept()
        assert hello["door"] == "mcp"
        heard(connection, INITIALIZE)
        assert not select.select([connection], [], [], 0.2)[0], "the rest waits for the answer, as clients do"
        connection.sendall(GREETING)
        heard(connection, INITIALIZED + more)
        connection.sendall(line(id=1, result={"tools": []}))
        assert next_line(process) == {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}, "it has been greeted before"


@pytest.mark.parametrize(
    ("request_id", "meta"),
    [(7, {}), ("7", {}), ("狐 \"'\\", {}), (10**30, {}), (-1, {}), (7, MODERN_META)],
)
def test_a_call_under_way_is_answered_and_never_told_to_another_daemon(
    request_id: object, meta: dict[str, str], daemon: FakeDaemon, tmp_path: Path
) -> None:
    params = {"name": "generate_image", **({"_meta": meta} if meta else {})}
    call = line(id=request_id, method="tools/call", params=params)
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        ask(process, call)
        heard(connection, call)
        connection.close()  # without a word: it may have ordered the picture all the same
        answer = next_line(process)
        assert answer["id"] == request_id and type(answer["id"]) is type(request_id)
        assert answer["result"]["isError"] and "list_jobs" in answer["result"]["content"][0]["text"]
        assert answer["result"]["structuredContent"]["error"]["code"] == "daemon_ended"
        assert (answer["result"].get("resultType") == "complete") is bool(meta)
        ask(process, line(id="next", method="ping"))
        connection, _ = daemon.accept()
        heard(connection, line(id="next", method="ping"))


def test_what_only_reads_is_asked_again_at_once(daemon: FakeDaemon, tmp_path: Path) -> None:
    listing, reading = line(id=1, method="tools/list"), line(id=2, method="resources/read", params={"uri": "x"})
    with bridged(tmp_path) as process:
        connection = greeted(process, daemon)
        ask(process, listing + CALL + reading)
        heard(connection, listing + CALL + reading)
        connection.sendall(line(id=2, result={}))
        assert next_line(process)["id"] == 2
        connection.close()
        assert next_line(process)["id"] == 7
        connection, _ = daemon.accept()
        heard(connection, INITIALIZE)
        connection.sendall(GREETING)
        heard(connection, INITIALIZED + listing)
        ask(process, b"\n")
        heard(connection, b"\n")


def test_a_daemon_that_goes_before_it_greets_is_followed_by_one_that_does(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        ask(process, INITIALIZE)
        heard(connection, INITIALIZE)
        connection.close()
        connection, _ = daemon.accept()
        heard(connection, INITIALIZE)
        connection.sendall(GREETING)
        assert next_line(process)["result"]["serverInfo"]["name"] == "imaged"


@pytest.mark.parametrize("length", [1, 20, 40])
def test_the_client_never_sees_half_a_line(length: int, daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        ask(process, CALL)
        heard(connection, CALL)
        connection.sendall(line(id=7, result={"content": [{"type": "text", "text": "a picture"}]})[:length])
        connection.close()
        assert next_line(process)["result"]["isError"]


def test_a_long_line_that_is_cut_is_ended_and_its_request_answered_once(daemon: FakeDaemon, tmp_path: Path) -> None:
    for whole in (True, False):
        answer = line(id=7, result={"data": "x" * (pump.BUFFER_BYTES_MAX * 2)})
        with bridged(tmp_path) as process:
            connection, _ = daemon.accept()
            ask(process, CALL)
            heard(connection, CALL)
            told = answer if whole else answer[: pump.BUFFER_BYTES_MAX + 5]
            telling = threading.Thread(target=lambda: (connection.sendall(told), connection.close()))  # noqa: B023
            telling.start()
            assert received(process, len(told)) == told
            telling.join()
            if not whole:
                assert received(process, 1) == b"\n" and next_line(process)["result"]["isError"]
            ask(process, line(id=8, method="ping"))
            connection, _ = daemon.accept()
            connection.sendall(line(id=8, result={}))
            assert next_line(process)["id"] == 8


def test_a_cancelled_request_is_not_answered(daemon: FakeDaemon, tmp_path: Path) -> None:
    cancel = line(method="notifications/cancelled", params={"requestId": 7})
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        ask(process, CALL + cancel)
        heard(connection, CALL + cancel)
        connection.close()
        ask(process, line(id=8, method="ping"))
        connection, _ = daemon.accept()
        connection.sendall(line(id=8, result={}))
        assert next_line(process)["id"] == 8


def test_half_a_line_of_the_client_is_told_whole_to_the_next_daemon(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection = greeted(process, daemon)
        ask(process, CALL[:30])
        connection.close()
        ask(process, CALL[30:])
        connection, _ = daemon.accept()
        heard(connection, INITIALIZE)
        connection.sendall(GREETING)
        heard(connection, INITIALIZED + CALL)


def test_what_a_daemon_does_not_take_any_more_waits_for_the_next_one(daemon: FakeDaemon, tmp_path: Path) -> None:
    """One that ends takes no new words, and still answers the old ones."""
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        ask(process, CALL)
        heard(connection, CALL)
        connection.shutdown(socket.SHUT_RD)
        later = line(id=8, method="tools/call", params={"name": "list_jobs"})
        ask(process, later)
        assert nobody_comes(daemon)
        connection.sendall(line(id=7, result={"content": []}))
        assert next_line(process)["id"] == 7
        connection.close()
        connection, _ = daemon.accept()
        heard(connection, later)
        connection.sendall(line(id=8, result={"content": []}))
        assert next_line(process) == {"jsonrpc": "2.0", "id": 8, "result": {"content": []}}


def test_a_client_that_leaves_while_there_is_no_daemon_starts_none(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        greeted(process, daemon).close()
        assert process.stdin
        process.stdin.close()
        assert said(process) == (0, "") and nobody_comes(daemon)


def test_what_could_not_be_followed_ends_the_bridge_with_its_daemon(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection = greeted(process, daemon)
        long = line(id=9, method="tools/call", params={"name": "edit_image", "image": "x" * pump.BUFFER_BYTES_MAX})
        ask(process, long)
        heard(connection, long)
        connection.close()
        status, text = said(process)
        assert status == 1 and "list_jobs" in text


@pytest.mark.parametrize(
    "odd",
    [
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"[1]\n",
        b'{"id":1}\n',
        b'{"id":null,"method":"x"}\n',
        b'{"id":{},"method":"tools/call"}\n',
        b'{"id":1.5e999,"method":[]}\n',
        b'{"method":"initialize"}\n',
        b'{"method":"notifications/cancelled","params":[]}\n',
        b'{"method":"notifications/cancelled","params":{"requestId":[]}}\n',
        b'{"id":' + b"9" * 5000 + b',"method":"ping"}\n',
        b'{"id":NaN,"method":"ping","params":{"_meta":1}}\n',
        b'{"jsonrpc":"2.0","id":\n',
        b'{"jsonrpc":"2.0","id":1\n',
        b'{"jsonrpc":"2.0","id":{"a":1},"result":1}\n',
        os.urandom(300).replace(b"\n", b" ") + b"\n",
    ],
)
def test_nothing_that_either_side_says_confuses_it(odd: bytes) -> None:
    conversation = Conversation()
    conversation.client_said(INITIALIZE)
    assert conversation.daemon_said(GREETING)
    conversation.client_said(odd)
    assert conversation.daemon_said(odd)
    for answer in conversation.answers().splitlines():
        json.loads(answer, parse_int=str)
    conversation.opening()
    conversation.rest()
    assert not conversation.daemon_said(GREETING) or odd == b'{"method":"initialize"}\n'


def test_answers_are_told_from_what_only_looks_like_one() -> None:
    conversation = Conversation()
    conversation.client_said(line(id=1, method="ping"))
    conversation.daemon_said(line(id=1, method="elicitation/create", params={"result": 1}))
    conversation.daemon_said(b'{"jsonrpc":"2.0","id":"1","result":{}}\n')
    assert conversation.has_to_ask_again
    conversation.daemon_said(b'{"result":{"later":"order"},"jsonrpc":"2.0","id":1}\n')
    assert not conversation.has_to_ask_again


def test_more_than_a_daemon_takes_at_once_is_not_followed() -> None:
    conversation = Conversation()
    for number in range(1000):
        conversation.client_said(line(id=number, method="ping"))
    assert conversation.is_followed
    conversation.client_said(line(id=1000, method="ping"))
    assert not conversation.is_followed
