"""The wire protocol without a wire: deterministic requests, strictly read replies, failures by what they mean."""

import base64
import email.parser
import email.policy
import json
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.values import ImageRequest, Picture, digest
from tests.tools.pictures_for_tests import picture
from tools.openai_api import NEXT_STEPS, Failure, Reply, build, next_step, printable, read, transport_failure


def order(**changes: object) -> ImageRequest:
    given: dict[str, object] = {"tool": "generate_image", "model": "gpt-image-2", "size": "48x32", **changes}
    return ImageRequest(**given)  # type: ignore[arg-type]


def good(count: int = 1, kind: str = "png", **changes: object) -> bytes:
    data = [{"b64_json": base64.b64encode(picture(kind)).decode()} for _ in range(count)]
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 1756,
        "output_tokens_details": {"image_tokens": 1756, "text_tokens": 0},
        "total_tokens": 1806,
    }
    reply: dict[str, object] = {"created": 1, "data": data, "usage": usage, "quality": "high", "size": "48x32", **changes}
    return json.dumps(reply).encode()


def failure(status: int, body: bytes, **headers: str) -> Failure:
    found = read(order(), status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
    assert isinstance(found, Failure)
    return found


def error(code: str | None = None, message: str = "said no", **more: object) -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code, **more}}).encode()


def test_a_request_holds_the_documented_keys_and_no_others() -> None:
    request = build(
        order(count=2, quality="high", background="transparent", moderation="low", output_format="webp", output_compression=80),
        "狐",
    )
    assert (request.method, request.path) == ("POST", "/images/generations")
    assert json.loads(request.body) == {
        "model": "gpt-image-2",
        "prompt": "狐",
        "n": 2,
        "size": "48x32",
        "quality": "high",
        "background": "transparent",
        "output_format": "webp",
        "output_compression": 80,
        "moderation": "low",
    }


def test_size_and_quality_are_named_even_when_they_are_left_open() -> None:
    sent = json.loads(build(order(size="auto"), "x").body)
    assert (sent["size"], sent["quality"]) == ("auto", "auto")
    assert not {"background", "moderation", "output_compression"} & set(sent)


def source(data: bytes, width: int = 48, height: int = 32, kind: str = "png") -> Picture:
    return Picture(sha256=digest(data), size_bytes=len(data), width=width, height=height, format=kind)


def parts_of(content_type: str, body: bytes) -> list[tuple[str, str | None, str, bytes]]:
    """Name, file name, type and bytes of every part, as a reader that is not ours takes them apart."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    found = []
    for part in message.iter_parts():
        disposition = part["content-disposition"].params
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        found.append((disposition["name"], disposition.get("filename"), part.get_content_type(), data))
    return found


def test_an_edit_is_multipart_with_every_source_as_an_image_of_its_kind() -> None:
    png, jpeg, mask = picture("png"), picture("jpeg"), picture("png", mode="RGBA")
    request = order(
        tool="edit_image",
        sources=(source(png), source(jpeg, kind="jpeg")),
        mask=source(mask),
        input_fidelity="high",
        output_format="webp",
        output_compression=0,
        background="opaque",
        moderation="low",
    )
    inputs = {digest(data): data for data in (png, jpeg, mask)}
    built = build(request, "Mehr Schnee,\r\nbitte 雪", inputs)
    assert (built.method, built.path) == ("POST", "/images/edits")
    assert parts_of(built.headers["Content-Type"], built.body) == [
        ("model", None, "text/plain", b"gpt-image-2"),
        ("prompt", None, "text/plain", "Mehr Schnee,\r\nbitte 雪".encode()),
        ("n", None, "text/plain", b"1"),
        ("size", None, "text/plain", b"48x32"),
        ("quality", None, "text/plain", b"auto"),
        ("background", None, "text/plain", b"opaque"),
        ("output_format", None, "text/plain", b"webp"),
        ("output_compression", None, "text/plain", b"0"),
        ("moderation", None, "text/plain", b"low"),
        ("input_fidelity", None, "text/plain", b"high"),
        ("image[]", "image-1.png", "image/png", png),
        ("image[]", "image-2.jpeg", "image/jpeg", jpeg),
        ("mask", "mask.png", "image/png", mask),
    ]
    assert build(request, "Mehr Schnee,\r\nbitte 雪", inputs) == built


def test_a_single_source_is_an_array_too_and_markup_has_a_part_of_its_own() -> None:
    png, markup = picture("png"), picture("png", mode="RGBA")
    request = order(tool="transform_image", sources=(source(png),), markup=source(markup))
    built = build(request, "x", {digest(png): png, digest(markup): markup})
    names = [name for name, *_ in parts_of(built.headers["Content-Type"], built.body)]
    assert names[-2:] == ["image[]", "markup"]
    assert build(msgspec.structs.replace(request, markup=None), "x", {digest(png): png}).headers != built.headers


def test_the_same_request_is_the_same_bytes() -> None:
    assert build(order(), "x").body == build(order(), "x").body


def test_a_good_reply_is_pictures_tokens_and_what_was_used() -> None:
    found = read(order(count=2), 200, {"x-request-id": "req_1"}, good(2))
    assert isinstance(found, Reply)
    assert [image.data for image in found.images] == [picture("png")] * 2
    assert (found.images[0].width, found.images[0].height, found.images[0].format) == (48, 32, "png")
    assert found.usage is not None and found.usage.output_image_tokens == 1756
    assert (found.rendered.quality, found.rendered.size, found.request_id) == ("high", "48x32", "req_1")


def test_an_open_size_takes_what_comes() -> None:
    assert isinstance(read(order(size="auto"), 200, {}, good()), Reply)


@pytest.mark.parametrize(
    "body",
    [
        good(2),
        good(0),
        good(kind="jpeg"),
        good(data=None),
        good(data=[{}]),
        good(data=[{"b64_json": "AAA\nA"}]),
        good(data=[{"b64_json": base64.b64encode(picture("png")).decode()[:-1]}]),
        good(data=[{"b64_json": base64.b64encode(picture("png")[:-5]).decode()}]),
        good(data=[{"b64_json": base64.b64encode(picture("png", 32, 32)).decode()}]),
    ],
    ids=["two", "none", "jpeg", "null", "no bytes", "newline", "cut base64", "cut picture", "other size"],
)
def test_a_readable_reply_without_the_picture_is_billed_and_kept(body: bytes) -> None:
    found = failure(200, body)
    assert (found.code, found.billed, found.retry, found.kept) == ("bad_reply", "yes", "never", body)
    assert found.usage is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"created":1,"data":[',
        b"[]",
        b"\xff",
        b'{"x":' + b"[" * 200_000,
        b'{"data":[],"size":' + b'{"a":' * 200_000,
    ],
    ids=["empty", "page", "cut", "list", "not utf-8", "deep", "deep beside the data"],
)
def test_an_unreadable_200_may_be_billed_and_is_kept(body: bytes) -> None:
    found = failure(200, body)
    assert (found.code, found.billed, found.retry, found.kept) == ("outcome_unknown", "unknown", "never", body)


ERRORS = [
    (400, error("invalid_value"), "bad_request", "no", "never"),
    (400, error("invalid_value", param="model"), "model_unavailable", "no", "never"),
    (400, error("moderation_blocked"), "moderation_blocked", "no", "never"),
    (400, error("content_policy_violation"), "moderation_blocked", "no", "never"),
    (400, b"<html>", "bad_request", "no", "never"),
    (401, error("invalid_api_key"), "invalid_key", "no", "never"),
    (401, b"", "invalid_key", "no", "never"),
    (403, error(None, "Your organization must be verified"), "org_unverified", "no", "never"),
    (403, error("unsupported_country_region_territory"), "not_permitted", "no", "never"),
    (404, error("model_not_found"), "model_unavailable", "no", "never"),
    (408, error(), "outcome_unknown", "unknown", "never"),
    (408, b"<html>", "outcome_unknown", "unknown", "never"),
    (413, b"<html>", "bad_request", "no", "never"),
    (422, error(), "bad_request", "no", "never"),
    (429, error("rate_limit_exceeded"), "rate_limited", "no", "later"),
    (429, error("slow_down"), "rate_limited", "no", "later"),
    (429, b"<html>", "rate_limited", "no", "later"),
    (400, error("billing_hard_limit_reached"), "quota_exhausted", "no", "never"),
    (409, error(), "bad_request", "no", "never"),
    (500, b'{"error":' + b"[" * 200_000, "outcome_unknown", "unknown", "never"),
    (400, error("moderation_blocked", moderation_details=[1]), "moderation_blocked", "no", "never"),
    (500, b'{"error":{}}', "outcome_unknown", "unknown", "never"),
    (429, b'{"error":{"message":"m","code":7,"param":[]}}', "rate_limited", "no", "later"),
    (429, error("insufficient_quota"), "quota_exhausted", "no", "never"),
    (429, error("billing_hard_limit_reached"), "quota_exhausted", "no", "never"),
    (429, error("project_spend_limit_exceeded"), "quota_exhausted", "no", "never"),
    (429, error("new_code", type="insufficient_quota"), "quota_exhausted", "no", "never"),
    (500, error("server_error"), "server_error", "no", "later"),
    (503, error("server_is_overloaded"), "server_error", "no", "later"),
    (500, b"<html>", "outcome_unknown", "unknown", "never"),
    (502, error("server_error"), "outcome_unknown", "unknown", "never"),
    (504, b"", "outcome_unknown", "unknown", "never"),
    (524, b"<html>", "outcome_unknown", "unknown", "never"),
    (200, error("server_error"), "outcome_unknown", "unknown", "never"),
    (200, error("moderation_blocked"), "moderation_blocked", "no", "never"),
    (302, b"", "outcome_unknown", "unknown", "never"),
]


@pytest.mark.parametrize(("status", "body", "code", "billed", "retry"), ERRORS)
def test_every_error_has_its_class(status: int, body: bytes, code: str, billed: str, retry: str) -> None:
    found = failure(status, body)
    assert (found.code, found.billed, found.retry) == (code, billed, retry)
    assert found.message and found.status == status and next_step(found.code)


@given(st.integers(100, 599), st.binary(max_size=300))
def test_whatever_comes_is_read_without_a_crash_and_only_the_harmless_is_retried(status: int, body: bytes) -> None:
    found = read(order(), status, {}, body)
    assert isinstance(found, Failure) and len(found.message) <= 500 and found.message.isprintable()
    assert found.retry == "never" or found.billed == "no"
    assert found.code in NEXT_STEPS


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry_after": "12"}, "", 12),
        ({"retry_after_ms": "1500", "retry_after": "9"}, "", 1.5),
        ({}, "Limit 5, Used 5, Requested 1. Please try again in 12s.", 12),
        ({}, "Please try again in 250ms.", 0.25),
        ({}, "Please try again in 1m12.5s.", 72.5),
        ({}, "Please try again in 2h.", 7200),
        ({}, "Please try again in 3m.", 180),
        ({"retry_after": "Sun, 22 Nov 2026 10:00:20 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"}, "", 20),
        ({"retry_after": "Sun, 22 Nov 2026 09:00:00 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"}, "", 0),
        ({"retry_after": "Sun, 22 Nov 2026 10:00:20 GMT"}, "", None),
        ({"retry_after": "inf"}, "", 86_400),
        ({"retry_after": "999999999"}, "", 86_400),
        ({"retry_after": "-1"}, "", None),
        ({"retry_after": "nan"}, "", None),
        ({"retry_after": "soon"}, "", None),
        ({}, "later", None),
    ],
)
def test_how_long_to_wait_is_taken_from_whoever_says_it(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert failure(429, error("rate_limit_exceeded", message), **headers).retry_after_seconds == seconds


def test_moderation_names_its_stage_and_categories() -> None:
    details = {"moderation_stage": "output", "categories": ["violence", "self-harm"]}
    said = failure(400, error("moderation_blocked", moderation_details=details)).message
    assert "output" in said and "violence, self-harm" in said
    crowd = {"moderation_stage": "o" * 900, "categories": ["c" * 900] * 50}
    loud = failure(400, error("moderation_blocked", "m" * 9000, moderation_details=crowd))
    assert len(loud.message) <= 500 and len(loud.categories) == 10


@pytest.mark.parametrize(
    "usage",
    [None, {}, "x", {"input_tokens": 5}, {"input_tokens": -5, "output_tokens": 1}, {"input_tokens": 1, "output_tokens": 10**30}],
)
def test_a_paid_picture_is_not_lost_to_odd_figures_and_their_cost_is_unknown_not_zero(usage: object) -> None:
    found = read(order(), 200, {}, good(usage=usage, size=5, quality=[], created="now", background={}))
    assert isinstance(found, Reply) and found.images[0].data == picture("png")
    assert found.usage is None and found.created is None
    assert found.rendered.size == found.rendered.quality == ""


def test_a_total_that_is_missing_is_the_sum() -> None:
    found = read(order(), 200, {}, good(usage={"input_tokens": 5, "output_tokens": 7}))
    assert isinstance(found, Reply) and found.usage is not None and found.usage.total_tokens == 12


@given(st.integers(0, 9), st.text("ABab01+/=-_ \n", min_size=1, max_size=3))
def test_base64_is_believed_only_in_its_one_canonical_spelling(end: int, junk: str) -> None:
    text = base64.b64encode(picture("gif", 2, 2)).decode()
    cut = len(text) - end
    spelled = text[:cut] + junk + text[cut:]
    found = read(order(size="2x2", output_format="gif"), 200, {}, good(data=[{"b64_json": spelled}]))
    if isinstance(found, Reply):
        assert base64.b64encode(found.images[0].data).decode() == spelled


def test_left_over_bits_in_base64_are_seen() -> None:
    data = picture("png", 2, 2)
    while len(data) % 3 != 1:  # a comment chunk of growing length moves the end over a base64 boundary
        text = b"tEXt" + b"a\0" + b"b" * (len(data) % 3)
        data = data[:33] + (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big") + data[33:]
    spelled = base64.b64encode(data).decode()
    assert spelled.endswith("==") and isinstance(read(order(size="2x2"), 200, {}, good(data=[{"b64_json": spelled}])), Reply)
    other = spelled[:-3] + chr(ord(spelled[-3]) + 1) + "=="
    assert base64.b64decode(other, validate=True) == data
    found = read(order(size="2x2"), 200, {}, good(data=[{"b64_json": other}]))
    assert isinstance(found, Failure) and found.code == "bad_reply" and "left over" in found.message


def test_what_looks_like_a_key_is_not_repeated() -> None:
    said = failure(
        401, error("invalid_api_key", "Incorrect API key provided: sk-proj-abcdefgh12345678. Bearer abcdefgh1234")
    ).message
    assert "abcdefgh" not in said and "sk-…" in said


def test_text_from_outside_is_short_and_harmless() -> None:
    said = failure(400, error("x", "\x1b[31mred\u202e \U000e0041" + "y" * 100_000)).message
    assert len(said) <= 500 and said.isprintable()
    assert printable("a\0b") == "a b"


def test_a_request_that_never_left_may_be_sent_again_and_a_lost_answer_may_not() -> None:
    assert transport_failure("not_sent", "refused")[2:4] == ("no", "later")
    assert transport_failure("outcome_unknown", "reset")[2:4] == ("unknown", "never")


def test_a_reply_that_another_model_drew_along_for_has_no_known_price() -> None:
    plain = read(order(), 200, {}, good())
    along = read(order(), 200, {}, good(svg_usage={"model": "gpt-5.6", "total_tokens": 63_000}))
    assert isinstance(plain, Reply) and isinstance(along, Reply)
    assert not plain.unpriced and along.unpriced and along.images == plain.images


def test_base64_whose_slashes_are_escaped_is_the_same_picture() -> None:
    data = next(found for edge in range(2, 99) if b"/" in base64.b64encode(found := picture("png", edge, edge)))
    body = good(data=[{"b64_json": base64.b64encode(data).decode()}]).replace(b"/", b"\\/")
    found = read(order(size="auto"), 200, {}, body)
    assert b"\\/" in body and isinstance(found, Reply) and found.images[0].data == data


@pytest.mark.parametrize("odd", [7, 123456, ["AAAA"], {"a": "AAAA"}, "", "null", True])
def test_a_picture_that_is_no_text_is_a_bad_reply_that_was_paid_for(odd: object) -> None:
    found = read(order(), 200, {}, good(data=[{"b64_json": odd}]))
    assert isinstance(found, Failure) and (found.code, found.billed) == ("bad_reply", "yes") and found.kept
