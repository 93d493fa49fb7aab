"""Streams of events: the same bytes say the same however they arrive, and only a completed picture is a picture."""

import base64
import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.values import ImageRequest
from tests.tools.pictures_for_tests import picture
from tools import openai_api
from tools.openai_api import Failure, Reply
from tools.pictures import BadPicture
from tools.streaming import EventParser, StreamEvent, events, is_stream

ORDER = ImageRequest(tool="generate_image", model="gpt-image-2", output_format="png", partial_images=2)
DRAWN = picture("PNG")
PICTURE = base64.b64encode(DRAWN).decode()
USAGE = {"input_tokens": 10, "output_tokens": 1956, "total_tokens": 1966, "input_tokens_details": {"text_tokens": 10}}
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_1"}


def sent(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def part(index: object = 0, picture: str | None = PICTURE) -> bytes:
    kind = "image_generation.partial_image"
    return sent(kind, type=kind, b64_json=picture, partial_image_index=index)


def completed(**more: Any) -> bytes:
    kind = "image_generation.completed"
    return sent(kind, **{"type": kind, "b64_json": PICTURE, "usage": USAGE, "created_at": 7, "quality": "high", **more})


def read(body: bytes, **changes: Any) -> Reply | Failure:
    request = msgspec.structs.replace(ORDER, **changes)
    return openai_api.read(request, 200, HEADERS, body)


LINES = st.sampled_from(
    [b"event: a", b"data: {}", b"data:x", b": comment", b"", b"\r", b"data: [DONE]", b"id: 1", b"odd", b"data: a\r"]
)


@given(st.lists(LINES, max_size=12), st.sampled_from([b"", b"\n"]), st.lists(st.integers(0, 80), max_size=8))
def test_every_split_of_the_bytes_gives_the_same_events(lines: list[bytes], end: bytes, cuts: list[int]) -> None:
    body = b"\n".join(lines) + end
    parser = EventParser()
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    found = [event for a, b in itertools.pairwise(bounds) for event in parser.feed(body[a:b])]
    assert (*found, *parser.finish()) == events(body)


def test_an_event_is_its_name_and_its_data_up_to_an_empty_line() -> None:
    body = b": hello\r\nevent: a\r\ndata: 1\r\ndata: 2\r\n\r\nevent: nothing\n\ndata: [DONE]\n\ndata:last"
    assert events(body) == (StreamEvent("a", b"1\n2"), StreamEvent("", b"last"))


def test_only_an_event_stream_is_read_as_one() -> None:
    assert is_stream("Text/Event-Stream;charset=utf-8")
    assert not is_stream("application/json")


def test_a_completed_stream_is_the_reply_that_the_same_picture_would_have_been() -> None:
    reply = read(part(0) + part(1) + completed() + b"data: [DONE]\n\n")
    assert isinstance(reply, Reply)
    assert [image.data for image in reply.images] == [DRAWN]
    assert reply.usage is not None and reply.usage.output_tokens == 1956
    assert (reply.request_id, reply.created, reply.rendered.quality) == ("req_1", 7, "high")


def test_a_picture_that_is_whole_is_not_lost_for_the_empty_line_behind_it() -> None:
    assert isinstance(read(completed().rstrip(b"\n")), Reply)


@pytest.mark.parametrize("body", [b"", part(0), completed()[:-20], part(0) + b"event: x\ndata: nonsense\n\n"])
def test_a_stream_without_completed_is_an_unknown_outcome_and_what_came_is_kept(body: bytes) -> None:
    failure = read(body)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.billed, failure.retry, failure.kept) == ("outcome_unknown", "unknown", "never", body)


def test_of_two_pictures_one_alone_is_not_the_answer_and_their_usages_are_not_guessed_at() -> None:
    failure = read(completed(), count=2)
    assert isinstance(failure, Failure) and failure.code == "outcome_unknown"
    both = read(completed() + completed(), count=2)
    assert isinstance(both, Reply) and len(both.images) == 2 and both.usage is None
    once = read(completed(usage=None) + completed(), count=2)
    assert isinstance(once, Reply) and once.usage is not None


def test_more_pictures_than_ordered_or_a_broken_one_are_charged_and_kept() -> None:
    for body in (completed() + completed(), completed(b64_json="AAAA"), completed(b64_json=None)):
        failure = read(body)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.billed, failure.kept) == ("bad_reply", "yes", body)


BLOCKED = {"message": "blocked", "code": "moderation_blocked", "moderation_details": {"moderation_stage": "output"}}
LIMITED = {"message": "slow down", "code": "rate_limit_exceeded"}


@pytest.mark.parametrize("shape", ["nested", "typed", "flat"])
@pytest.mark.parametrize(
    ("before", "said", "code", "billed"),
    [
        (b"", BLOCKED, "moderation_blocked", "no"),
        (part(0), BLOCKED, "moderation_blocked", "unknown"),
        (b"", LIMITED, "outcome_unknown", "unknown"),
    ],
)
def test_an_error_in_a_stream_may_be_billed_once_something_was_drawn(
    shape: str, before: bytes, said: dict[str, Any], code: str, billed: str
) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "nested": {"error": said},
        "typed": {"type": "error", "error": said},
        "flat": {"type": "error", **said},
    }
    data = shapes[shape]
    failure = read(before + sent("error", **data))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.billed, failure.retry) == (code, billed, "never")
    assert said["message"] in failure.message


def test_a_partial_picture_is_told_from_other_events_and_from_no_picture() -> None:
    (good,) = events(part(1))
    found = openai_api.read_partial(good)
    assert openai_api.kind(good) == "partial_image" and (found.partial_index, found.image.data, found.image.format) == (
        1,
        DRAWN,
        "png",
    )
    assert openai_api.kind(events(completed())[0]) == "completed"
    assert openai_api.kind(StreamEvent("image_edit.completed", b"{}")) == "completed"
    assert openai_api.kind(StreamEvent("image_edit.completed", b"{")) == ""
    for bad in (part(0, "AAAA"), part(0, "!"), part(0, None), part(None), part(-1), b"data: nonsense"):
        with pytest.raises(BadPicture):
            openai_api.read_partial(events(bad)[0])


def test_a_server_that_answers_json_instead_of_a_stream_is_read_as_ever() -> None:
    body = json.dumps({"data": [{"b64_json": PICTURE}], "usage": USAGE}).encode()
    assert isinstance(openai_api.read(ORDER, 200, {"content-type": "application/json"}, body), Reply)


def test_the_request_asks_for_a_stream_only_where_previews_are_wanted() -> None:
    plain = ImageRequest(tool="generate_image", model="gpt-image-2")
    assert b"stream" not in openai_api.build(plain, "a fox").body and b"partial" not in openai_api.build(plain, "a fox").body
    assert json.loads(openai_api.build(ORDER, "a fox").body).items() >= {"stream": True, "partial_images": 2}.items()
