"""Lines: what is written is read back, and nothing else is."""

import hashlib
import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.errors import LogTooNew
from eventlog.events import FORMAT, DaemonStopped, LogCreated
from eventlog.framing import LINE_BYTES_MAX, NO_HASH, Unsound, draft, read, seal
from eventlog.values import Position, Sha256, Words
from tests.eventlog.builders import commit, commits_of, one_job, said

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def line_of(body: bytes, words: bytes = b"") -> bytes:
    """A sound line around any body, as another version might write it."""
    return hashlib.sha256(body).hexdigest().encode() + b" " + body + (b" " + words if words else b"")


@given(choices=st.lists(st.integers(0, 4095), min_size=1, max_size=12), reason=TEXT, prompt=TEXT)
def test_what_is_written_is_read_back(choices: list[int], reason: str, prompt: str) -> None:
    commits = commits_of(choices)
    commits.append(commit(len(commits) + 2, DaemonStopped(reason=reason), words=said(prompt=prompt, message=reason)))
    previous = NO_HASH
    for one in commits:
        sealed = seal(draft(one), previous, Position(2))
        assert sealed.line.endswith(b"\n") and sealed.line.count(b"\n") == 1
        line = read(sealed.line[:-1])
        assert (line.commit, line.hash, line.previous, line.batch) == (one, sealed.hash, previous, 2)
        previous = sealed.hash


def test_a_line_has_its_hash_first_its_commit_without_a_space_and_its_words_last() -> None:
    one = commit(7, DaemonStopped(reason="two words"), words=said(prompt="three more words"))
    line = seal(draft(one), NO_HASH, Position(6)).line
    proof, body, words = line[:-1].split(b" ", 2)
    assert proof.decode() == hashlib.sha256(body).hexdigest()
    told = json.loads(body)
    assert list(told) == ["previous", "position", "batch", "at", "words", "events"]
    assert (told["previous"], told["position"], told["batch"]) == ("0" * 64, 7, 6)
    assert told["at"] == "2026-11-22T17:00:00.000007Z"
    assert told["events"] == [{"type": "DaemonStopped", "reason": "two words"}]
    assert told["words"] == hashlib.sha256(words).hexdigest()
    assert json.loads(words)["prompt"] == "three more words"


def test_every_single_bit_matters() -> None:
    for one in (commit(2), one_job()[0]):
        line = seal(draft(one), NO_HASH, Position(2)).line[:-1]
        for bit in range(len(line) * 8):
            damaged = bytearray(line)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Unsound):
                read(bytes(damaged))


@given(st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_unsound(data: bytes) -> None:
    with pytest.raises(Unsound):
        read(data)


def test_words_overwritten_with_spaces_are_forgotten_and_the_chain_still_holds() -> None:
    sealed = seal(draft(one_job()[0]), NO_HASH, Position(2))
    proof, body, words = sealed.line[:-1].split(b" ", 2)
    line = read(b" ".join((proof, body, b" " * len(words))))
    assert line.words_forgotten and line.commit.words is None and line.hash == sealed.hash
    with pytest.raises(Unsound):
        read(b" ".join((proof, body)))
    with pytest.raises(Unsound):
        read(b" ".join((proof, body, b" " * (len(words) - 1) + b"x")))


def test_a_commit_without_words_has_nothing_behind_it() -> None:
    line = seal(draft(commit(2)), NO_HASH, Position(2)).line[:-1]
    assert not read(line).words_forgotten
    for tail in (b" ", b"  ", b" {}"):
        with pytest.raises(Unsound):
            read(line + tail)


@pytest.mark.parametrize(
    "words",
    [
        said(arguments={"a": msgspec.Raw(b"[1,\n2]")}),
        said(arguments={"a": msgspec.Raw(b"{")}),
        said(arguments={"a": msgspec.Raw(b"")}),
        said(arguments={"a": msgspec.Raw(b'"\xff"')}),
        said(arguments={"a": msgspec.Raw(b'"\\ud800"')}),
        said(arguments={"a": msgspec.Raw(b'1},"prompt":"forged","b":{"c":2')}),
        said(prompt="\ud800"),
        said(prompt="x" * LINE_BYTES_MAX),
    ],
    ids=["newline", "broken", "empty", "not-utf8", "half-a-surrogate", "breaks-out", "surrogate", "too-long"],
)
def test_a_commit_that_could_not_be_read_again_is_not_written(words: Words) -> None:
    with pytest.raises(ValueError):
        draft(commit(2, words=words))


def test_a_time_without_a_zone_is_not_written() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        draft(commit(2, at=datetime(2026, 11, 22)))  # noqa: DTZ001 - what is refused


def test_raw_arguments_are_kept_as_they_were_asked() -> None:
    raw = msgspec.Raw(b'{"size": "1024x1024", "n": [1, 2]}')
    line = read(seal(draft(commit(2, words=said(arguments={"asked": raw}))), NO_HASH, Position(2)).line[:-1])
    assert line.commit.words is not None and line.commit.words.arguments["asked"] == raw


NOW = json.dumps(datetime(2026, 11, 22, tzinfo=UTC).isoformat())
BODY = '{"previous":"%s","position":5,"batch":5,"at":%s,"words":%s,"events":[%s]}'


@pytest.mark.parametrize(
    "events",
    [
        '{"type":"PictureDreamt","job":"x"}',
        '{"type":"DaemonStopped","reason":{"code":1}}',
        json.dumps({"type": "LogCreated", "format": FORMAT + 1, "software": "9.0.0"}).replace(" ", ""),
    ],
    ids=["unknown-fact", "field-of-another-shape", "newer-format"],
)
def test_a_sound_line_of_a_newer_version_asks_for_an_upgrade_and_not_for_a_repair(events: str) -> None:
    body = BODY % ("0" * 64, NOW, "null", events)
    with pytest.raises(LogTooNew, match="upgrade"):
        read(line_of(body.encode()))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"[" * 5000, b'{"previous":', b'{"previous":"\xff"}', b'"\\ud800"'])
def test_a_sound_line_of_no_shape_we_know_is_too_new_and_never_another_error(body: bytes) -> None:
    with pytest.raises(LogTooNew):
        read(line_of(body))


def test_words_of_a_newer_shape_are_too_new() -> None:
    words = b'{"salt":1}'
    body = BODY % ("0" * 64, NOW, json.dumps(hashlib.sha256(words).hexdigest()), '{"type":"DaemonStopped","reason":"x"}')
    with pytest.raises(LogTooNew):
        read(line_of(body.encode(), words))


def test_fields_that_a_newer_version_added_are_ignored() -> None:
    body = BODY % ("0" * 64, NOW, "null", '{"type":"LogCreated","format":1,"software":"0.2.0","colour":"blue"}')
    line = read(line_of(body.encode()))
    assert line.commit.events == (LogCreated(format=1, software="0.2.0"),)
    assert line.previous == Sha256("0" * 64)
