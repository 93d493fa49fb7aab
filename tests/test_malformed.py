"""What strangers send to an MCP server: each line gets its one clear answer, or silence, and nothing ends."""

import json
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemon.mcp_server import LINE_BYTES_MAX
from tests.program import SECONDS_MAX, Program, Stdio, environment, running, wait_until

CORPUS = Path(__file__).parent / "corpus" / "malformed.toml"
PARSE_ERROR, INVALID_REQUEST = -32700, -32600
CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "stranger", "version": "1"}}
MODERN = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}

PING_7 = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'
PINGS = count()


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the head of the corpus explains it."""

    name: str
    sent: str
    code: int | None = None
    before: int | None = None
    id: int | str | None = None
    about: str = ""

    @property
    def data(self) -> bytes:
        return unfolded(self.sent).encode("latin-1")

    def expected(self, *, before: bool) -> tuple[int, int | str | None] | None:
        """The code and the id of the answer; None: there is none."""
        code = self.before if before and self.before is not None else self.code
        return None if code is None else (code, unfolded(self.id) if isinstance(self.id, str) else self.id)


def unfolded(text: str) -> str:
    return re.sub("«(.+?)×([0-9]+)»", lambda found: found[1] * int(found[2]), text, flags=re.DOTALL)


LINES = msgspec.convert(tomllib.loads(CORPUS.read_text("utf-8"))["lines"], list[Line])


class Direct(Stdio):
    """The same client without a bridge in between: it says the first line itself."""

    def __init__(self, program: Program) -> None:
        self._buffer = b""
        self._id = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS_MAX)
        self._socket.connect(str(program.places.run / "mcp.sock"))
        self.send(json.dumps({"imaged": 1, "settings": program.environment}).encode())

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, line: bytes) -> None:
        self._socket.sendall(line + b"\n")

    def receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            piece = self._socket.recv(1 << 20)
            assert piece, "the daemon closed the connection"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        parsed: dict[str, Any] = json.loads(line)
        return parsed


def bridged(program: Program) -> Stdio:
    return Stdio(environment(program.home))


ROUTES = pytest.mark.parametrize("route", [bridged, Direct], ids=["through the bridge", "straight to the socket"])
Route = Callable[[Program], Stdio]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("malformed"), IMAGED_OFFLINE_SECONDS="5") as program:
        yield program


def answers(client: Stdio, data: bytes, others: int) -> list[dict[str, Any]]:
    """What comes until a ping behind `data` is answered and `others` more are; one too many is found by the next ping."""
    ping = f"ping {next(PINGS)}"
    client.send(data + b"\n" + json.dumps({"jsonrpc": "2.0", "id": ping, "method": "ping"}).encode())
    said: list[dict[str, Any]] = []
    pinged = False
    while not pinged or len(said) < others:
        message = client.receive()
        if message.get("id") == ping:
            pinged = True
        else:
            said.append(message)
    return said


def shown(message: dict[str, Any]) -> tuple[int, object]:
    assert ("result" in message) != ("error" in message) and message["jsonrpc"] == "2.0"
    if "result" in message:
        return 0, message["id"]
    assert isinstance(message["error"]["message"], str) and message["error"]["message"]
    return message["error"]["code"], message["id"]


def check(client: Stdio, line: Line, *, before: bool) -> None:
    expected = line.expected(before=before)
    said = answers(client, line.data, 0 if expected is None else 1)
    assert [shown(message) for message in said] == ([] if expected is None else [expected]), line.name
    assert all(line.about in message.get("error", {}).get("message", "") for message in said), line.name


def unharmed(house: Program) -> bool:
    """Still the same daemon, and nothing in it was surprised."""
    status = house.ask("get_status")["result"]
    return status["pid"] == house.pid and "Traceback" not in house.said()


@ROUTES
def test_after_the_handshake_each_line_has_its_one_answer(route: Route, house: Program) -> None:
    drawn = house.ask("list_jobs")["result"]["total"]
    with route(house) as client:
        client.initialize()
        for line in LINES:
            check(client, line, before=False)
        assert answers(client, b"", 0) == []
        assert "tools" in client.answer(client.request("tools/list"))["result"]
    assert unharmed(house)
    assert house.ask("list_jobs")["result"]["total"] == drawn


@ROUTES
def test_before_the_handshake_it_has_one_too_and_the_handshake_is_still_to_come(route: Route, house: Program) -> None:
    with route(house) as client:
        for line in LINES:
            check(client, line, before=True)
        assert client.initialize()["protocolVersion"] == "2025-11-25"
        assert not client.call("list_jobs")["isError"]
    assert unharmed(house)


def test_as_the_first_of_a_connection_it_has_one_too(house: Program) -> None:
    for line in LINES:
        with Direct(house) as client:
            check(client, line, before=True)
            assert answers(client, b"", 0) == []
    assert unharmed(house)


def test_on_a_connection_without_handshakes_what_is_no_message_is_answered_the_same(house: Program) -> None:
    asked = json.dumps({"jsonrpc": "2.0", "id": "modern", "method": "prompts/list", "params": {"_meta": MODERN}}).encode()
    with Direct(house) as client:
        assert shown(answers(client, asked, 1)[0]) == (0, "modern")
        for line in LINES:
            if line.code in (None, PARSE_ERROR, INVALID_REQUEST):
                check(client, line, before=True)
        assert shown(answers(client, asked, 1)[0]) == (0, "modern")
    assert unharmed(house)


@ROUTES
def test_a_line_of_exactly_the_limit_is_read_and_one_byte_more_is_refused(route: Route, house: Program) -> None:
    start, end = b'{"jsonrpc":"2.0","id":"long","method":"ping","params":{"x":"', b'"}}'
    padding = b"7" * (LINE_BYTES_MAX - len(start) - len(end))
    with route(house) as client:
        client.initialize()
        assert [shown(said) for said in answers(client, start + padding + end, 1)] == [(0, "long")]
        (refused,) = answers(client, start + padding + b"7" + end, 1)
        assert shown(refused) == (INVALID_REQUEST, None) and str(LINE_BYTES_MAX) in refused["error"]["message"]
        assert answers(client, b"", 0) == []
    assert unharmed(house)


@ROUTES
def test_an_id_that_is_open_is_not_taken_twice_and_is_free_once_it_is_cancelled(route: Route, house: Program) -> None:
    drawing = {"name": "generate_image", "arguments": {"prompt": "x", "quality": "low", "size": "1024x640"}}
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": drawing}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    with route(house) as client:
        client.initialize()
        client.send(json.dumps(call).encode())

        def pinged() -> bool:
            (said,) = answers(client, PING_7, 1)
            assert said.get("result", {}) == {}  # never the picture: a call that was cancelled has no answer
            return "result" in said

        (refused,) = answers(client, PING_7, 1)
        assert shown(refused) == (INVALID_REQUEST, 7) and "still open" in refused["error"]["message"]
        assert [shown(said) for said in answers(client, b'{"jsonrpc":"2.0","id":"8","method":"ping"}', 1)] == [(0, "8")]
        assert answers(client, b"\n".join([json.dumps(cancel).encode()] * 2), 0) == []
        wait_until(pinged, "the id to be free again")
    assert unharmed(house)


@ROUTES
def test_a_second_handshake_is_answered_and_the_session_goes_on(route: Route, house: Program) -> None:
    again = json.dumps({"jsonrpc": "2.0", "id": "again", "method": "initialize", "params": CLIENT}).encode()
    with route(house) as client:
        client.initialize()
        assert [said["id"] for said in answers(client, again, 1)] == ["again"]
        assert not client.call("list_jobs")["isError"]
    assert unharmed(house)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METHODS = ["ping", "tools/list", "tools/call", "prompts/get", "resources/read", "completion/complete", "initialize", "no/such"]
NOTICES = ["notifications/initialized", "notifications/progress", "notifications/no_such"]
MESSAGE = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0"] * 9) | JSON, "method": st.sampled_from(METHODS + NOTICES) | JSON},
    optional={"id": JSON | st.integers(0, 9), "params": JSON | st.dictionaries(st.sampled_from(["name", "uri", "_meta"]), JSON)},
)
ANSWER = st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": st.integers(0, 9), "result": st.dictionaries(st.text(), JSON)})


def awaited(message: object) -> list[object]:
    """The ids of the answers to one line: none, or one."""
    if not isinstance(message, dict):
        return [None]
    if "method" not in message and isinstance(message.get("result"), dict):
        return []
    given_id, method = message.get("id"), message.get("method")
    sound = message.get("jsonrpc") == "2.0" and isinstance(method, str) and isinstance(message.get("params", {}), dict | None)
    if sound and given_id is None and ("id" not in message or str(method).startswith("notifications/")):
        return []
    is_whole = isinstance(given_id, int) and not isinstance(given_id, bool) and -(2**63) <= given_id < 2**63
    return [given_id if is_whole or isinstance(given_id, str) else None]


def test_whatever_json_is_sent_has_one_answer_or_none_as_the_rules_say(house: Program) -> None:
    with Direct(house) as client:
        client.initialize()

        @settings(
            max_examples=120,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(MESSAGE | MESSAGE | MESSAGE | ANSWER | JSON, min_size=1, max_size=8))
        def attempt(messages: list[object]) -> None:
            expected = Counter(json.dumps(each) for message in messages for each in awaited(message))
            said = answers(client, b"\n".join(json.dumps(message).encode() for message in messages), expected.total())
            assert Counter(json.dumps(shown(message)[1]) for message in said) == expected

        attempt()
        assert answers(client, b"", 0) == []
    assert unharmed(house)
