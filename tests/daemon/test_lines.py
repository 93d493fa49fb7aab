"""Lines out of bytes: bounded, linear, and what cannot be a message is answered."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp_types import jsonrpc_message_adapter

from daemon.lines import DEPTH_MAX, LineReader, Reject

GOOD = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def read(*pieces: bytes, max_bytes: int = 1000) -> list[bytes | Reject]:
    reader = LineReader(max_bytes)
    return [line for piece in pieces for line in reader.feed(piece)] + list(reader.finish())


def errors(found: list[bytes | Reject]) -> list[tuple[int, object]]:
    replies = [json.loads(line.reply) for line in found if isinstance(line, Reject)]
    assert all(reply["jsonrpc"] == "2.0" and reply["error"]["message"] for reply in replies)
    return [(reply["error"]["code"], reply["id"]) for reply in replies]


def test_messages_come_out_as_they_went_in() -> None:
    answer = b'{"jsonrpc":"2.0","id":"x","result":{}}'
    note = b'{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}'
    assert read(GOOD + b"\n" + answer + b"\r\n\n  \n" + note + b"\n") == [GOOD, answer + b"\r", note]


def test_the_last_line_needs_no_end() -> None:
    assert read(GOOD) == [GOOD]


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", -32700, None),
        (b"hello", -32700, None),
        (b"\x00", -32700, None),
        (b"\xff\xfe{\x00}\x00", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"a\xc3\x28"}', -32700, None),
        (b"[]", -32600, None),
        (b"[" + GOOD + b"]", -32600, None),
        (b"3", -32600, None),
        (b"null", -32600, None),
        (b"{}", -32600, None),
        (b'{"jsonrpc":"1.0","id":4,"method":"x"}', -32600, 4),
        (b'{"jsonrpc":"2.0","id":5}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":6,"method":7}', -32600, 6),
        (b'{"jsonrpc":"2.0","id":"s","method":"x","params":[1]}', -32600, "s"),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":{},"method":"x"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"c","method":"x","params":{"n":"\\ud800"}}', -32600, "c"),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"x"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":9,"method":"x","params":{"n":NaN}}', -32600, 9),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","more":"\xff"}', -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"\xed\xa0\x80":1}}', -32700, None),
        (b'{"jsonrpc":"2.0","id":"d","method":"x","more":"\\udc00"}', -32600, "d"),
        (b'{"jsonrpc":"2.0","id":2,"method":"x","params":{"n":"a\x00b"}}', -32700, None),
        (b'{"jsonrpc":"2.0","id":3,"method":"x"} {}', -32700, None),
        (b"[1,2", -32700, None),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"ping"}', -32700, None),
        ('{"jsonrpc":"2.0","id":1,"method":"x"}'.encode("utf-16-be").replace(b"\n", b""), -32700, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 30 + b',"method":"x"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"line\\nfeed","method":7}', -32600, "line\nfeed"),
        (b'{"jsonrpc":"2.0","id":"","method":7}', -32600, ""),
    ],
)
def test_what_cannot_be_a_message_is_answered(line: bytes, code: int, request_id: object) -> None:
    assert errors(read(line + b"\n" + GOOD + b"\n")) == [(code, request_id)]


def test_nesting_without_end_is_answered() -> None:
    deep = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + b"[" * 200_000
    assert errors(read(deep + b"]" * 200_000 + b"}}\n", max_bytes=10**6)) == [(-32600, None)]


@pytest.mark.parametrize(("depth", "errors_expected"), [(DEPTH_MAX, []), (DEPTH_MAX + 1, [(-32600, 1)]), (500, [(-32600, 1)])])
def test_nesting_has_a_limit_and_who_passes_it_is_told(depth: int, errors_expected: list[tuple[int, object]]) -> None:
    inner = depth - 2  # the message and its params are two
    line = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + b"[" * inner + b"]" * inner + b"}}"
    assert errors(read(line, max_bytes=10_000)) == errors_expected


def test_brackets_inside_text_or_side_by_side_are_not_nesting() -> None:
    text = json.dumps('[{"' * 500 + "\\" * 3 + '"').encode()
    line = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + text + b',"b":[' + b"[]," * 500 + b"{}]}}"
    assert read(line, max_bytes=10_000) == [line]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","id":5,"result":{"a":"\\ud800"}}',
        b'{"jsonrpc":"2.0","id":5,"error":{"message":"\\ud800"}}',
        b'{"jsonrpc":"1.0","id":5,"result":{}}',
        b'{"jsonrpc":"2.0","id":5,"result":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_a_broken_answer_is_not_taken_for_a_request_of_the_same_number(answer: bytes) -> None:
    assert errors(read(answer)) == [(-32600, None)]


def test_a_notification_may_say_that_it_has_no_id() -> None:
    line = b'{"jsonrpc":"2.0","id":null,"method":"notifications/initialized","params":null}'
    assert read(line) == [line]


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_a_line_beyond_the_limit_is_skipped_and_the_next_one_read(pieces: int) -> None:
    data = b"x" * 5000 + b"\n" + GOOD + b"\n"
    step = max(1, len(data) // pieces)
    found = read(*(data[i : i + step] for i in range(0, len(data), step)))
    assert errors(found) == [(-32600, None)] and found[1] == GOOD


def test_a_line_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    for pieces in ([GOOD], [GOOD[:7], GOOD[7:]], [GOOD[:-1], GOOD[-1:]]):
        assert read(*pieces, b"\n", max_bytes=len(GOOD)) == [GOOD]
        assert errors(read(*pieces, b"\n", max_bytes=len(GOOD) - 1)) == [(-32600, None)]


@pytest.mark.parametrize(("piece", "limit", "held_bytes_max"), [(b"x" * 1000, 100_000, 10_000), (b"x", 100_000, 200_000)])
def test_room_is_bounded_by_the_limit_and_a_skipped_line_takes_none(piece: bytes, limit: int, held_bytes_max: int) -> None:
    reader = LineReader(limit)
    tracemalloc.start()
    try:
        for _ in range(90_000):
            assert list(reader.feed(piece)) == []
        held, peak = tracemalloc.get_traced_memory()
        assert held < held_bytes_max and peak < 3 * limit
    finally:
        tracemalloc.stop()


def test_a_line_beyond_the_limit_is_answered_even_if_it_never_ends() -> None:
    assert errors(read(b"x" * 2000)) == errors(read(b"x" * 600, b"x" * 600)) == [(-32600, None)]


def test_a_hundred_thousand_empty_lines_are_nothing() -> None:
    assert read(b"\n" * 100_000 + GOOD + b"\n") == [GOOD]


LINE = st.sampled_from([GOOD, b"", b"{", b"[]", b"x" * 60, b'{"jsonrpc":"2.0","id":2}', b"\xff"]) | st.binary(max_size=80)


@settings(deadline=None)
@given(st.lists(LINE, max_size=8), st.lists(st.integers(1, 40), max_size=30))
def test_how_the_bytes_are_split_changes_nothing(lines: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(lines)
    pieces = []
    rest = data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert read(*pieces, rest, max_bytes=50) == read(data, max_bytes=50)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_every_line_is_either_a_message_or_answered(data: bytes) -> None:
    found = read(data)
    assert len(found) == sum(bool(line.strip()) for line in data.split(b"\n"))


TEXT = st.text('a0 \t\n\0"\\[]{}/\x7f京\U0001f98a\ud800\udfff\uffff', max_size=4)
MESSAGE = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "1.0"])},
    optional={
        "id": st.integers() | TEXT | st.sampled_from([None, True, 1.5, [], {}]),
        "method": st.sampled_from(["ping", "tools/call", "notifications/initialized", "\ud800", 7, None]),
        "params": st.none() | st.dictionaries(TEXT, st.none() | TEXT | st.integers() | st.lists(TEXT, max_size=2), max_size=3),
        "more": TEXT,
    },
)


@settings(deadline=None)
@given(MESSAGE, st.booleans(), st.integers(0, 60), st.binary(max_size=2))
def test_what_passes_is_understood_by_the_parser_behind_it(message: object, escaped: bool, at: int, noise: bytes) -> None:
    line = json.dumps(message, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    line = line[:at] + noise.replace(b"\n", b"") + line[at:]
    for passed in read(line, max_bytes=10_000):
        if not isinstance(passed, Reject):
            jsonrpc_message_adapter.validate_json(passed, by_name=False)
