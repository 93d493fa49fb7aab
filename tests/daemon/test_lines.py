"""Lines out of bytes: bounded, linear, and what cannot be a message is answered."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.lines import LineReader, Reject

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
    ],
)
def test_what_cannot_be_a_message_is_answered(line: bytes, code: int, request_id: object) -> None:
    assert errors(read(line + b"\n" + GOOD + b"\n")) == [(code, request_id)]


def test_nesting_without_end_is_answered() -> None:
    deep = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + b"[" * 200_000
    assert errors(read(deep + b"]" * 200_000 + b"}}\n", max_bytes=10**6)) == [(-32600, None)]


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_a_line_beyond_the_limit_is_skipped_and_the_next_one_read(pieces: int) -> None:
    data = b"x" * 5000 + b"\n" + GOOD + b"\n"
    step = max(1, len(data) // pieces)
    found = read(*(data[i : i + step] for i in range(0, len(data), step)))
    assert errors(found) == [(-32600, None)] and found[1] == GOOD


def test_a_line_that_is_skipped_takes_no_room() -> None:
    reader = LineReader(1000)
    for _ in range(1000):
        assert list(reader.feed(b"x" * 1000)) == []
    assert reader._held == 0 and reader._pieces == []


def test_a_hundred_thousand_empty_lines_are_nothing() -> None:
    assert read(b"\n" * 100_000 + GOOD + b"\n") == [GOOD]


LINE = st.sampled_from([GOOD, b"", b"{", b"[]", b"x" * 60, b'{"jsonrpc":"2.0","id":2}', b"\xff"]) | st.binary(max_size=80)


@given(st.lists(LINE, max_size=8), st.lists(st.integers(1, 40), max_size=30))
def test_how_the_bytes_are_split_changes_nothing(lines: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(lines)
    pieces = []
    rest = data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert read(*pieces, rest, max_bytes=50) == read(data, max_bytes=50)


@given(st.binary(max_size=300))
def test_every_line_is_either_a_message_or_answered(data: bytes) -> None:
    found = read(data)
    assert len(found) == sum(bool(line.strip()) for line in data.split(b"\n"))
