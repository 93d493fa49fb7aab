"""OpenAI's Images API without the network: requests as bytes, answers as values, failures by what they mean.

Rule: `build` is deterministic, so that the digest of a request can be checked years later; `read` believes
nothing: valid base64, whole images of the right kind, size and number, or it is a failure. Every failure
says whether it may have been billed. Source of codes and classes: OpenAI's error guide and openai-python
3.54.0, with measurements of third parties (2026-11).
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from eventlog.values import Billed, ImageRequest, Rendered, Usage
from tools.pictures import BadPicture, measure

MESSAGE_CHARACTERS_MAX = 500
RETRY_AFTER_SECONDS_MAX = 3600.0

Retry = Literal["never", "later"]

NEXT_STEPS: Mapping[str, str] = {
    "invalid_key": "Check OPENAI_API_KEY in the client's configuration and restart the client.",
    "org_unverified": "Verify the organization at platform.openai.com (settings, general); it takes up to 15 minutes.",
    "not_permitted": "Check that the key's project may use this model from your country.",
    "moderation_blocked": "OpenAI's safety system refused it; change the prompt.",
    "rate_limited": "OpenAI asked to slow down for longer than we waited; try again in a few minutes.",
    "quota_exhausted": "Add credit or raise the limit at platform.openai.com/settings/organization/billing.",
    "model_unavailable": "This key cannot use the model; choose another one or another project.",
    "bad_request": "Change what OpenAI names and ask again.",
    "server_error": "OpenAI had trouble; try again later.",
    "not_sent": "Nothing was sent and nothing charged; check the network and OPENAI_BASE_URL, then ask again.",
    "outcome_unknown": "Look at your OpenAI usage page before you ask again.",
    "bad_reply": "OpenAI answered with something else than the picture; its bytes are kept in the store.",
    "not_saved": "Make the output directory usable; the picture is in the store already.",
}
_BILLING = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
}
_MODERATION = {"moderation_blocked", "content_policy_violation"}
_SURELY_OPENAI = {500, 503}  # with OpenAI's own JSON error; 502, 504 and 52x come from gateways before it


class ApiRequest(NamedTuple):
    """`path` is below the base URL. The headers carry no key."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class ReplyImage(NamedTuple):
    data: bytes
    format: str
    width: int
    height: int


class Reply(NamedTuple):
    images: tuple[ReplyImage, ...]
    usage: Usage | None
    rendered: Rendered
    request_id: str


class Failure(NamedTuple):
    """`retry` later: it may be sent again without being paid twice. `kept`: bytes of a reply that may be paid for."""

    code: str
    message: str
    billed: Billed
    retry: Retry = "never"
    retry_after_seconds: float | None = None
    status: int | None = None
    request_id: str = ""
    kept: bytes = b""
    usage: Usage | None = None


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """/images/generations, exactly the documented keys."""

    model: str
    prompt: str
    n: int | msgspec.UnsetType = msgspec.UNSET
    size: str | msgspec.UnsetType = msgspec.UNSET
    quality: str | msgspec.UnsetType = msgspec.UNSET
    background: str | msgspec.UnsetType = msgspec.UNSET
    output_format: str | msgspec.UnsetType = msgspec.UNSET
    output_compression: int | msgspec.UnsetType = msgspec.UNSET
    moderation: str | msgspec.UnsetType = msgspec.UNSET


class _Datum(msgspec.Struct):
    b64_json: str | None = None


class _TokenDetails(msgspec.Struct):
    text_tokens: int | None = None
    image_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: _TokenDetails | None = None
    output_tokens_details: _TokenDetails | None = None


class _Answer(msgspec.Struct):
    data: list[_Datum] | None = None
    usage: _Usage | None = None
    background: str | None = None
    output_format: str | None = None
    quality: str | None = None
    size: str | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Moderation(msgspec.Struct):
    moderation_stage: str | None = None
    categories: list[str] | None = None


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None
    moderation_details: _Moderation | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


def build(request: ImageRequest, prompt: str) -> ApiRequest:
    """The same request is the same bytes, always. Size and quality are named even when `auto`: they are the price."""
    unset = msgspec.UNSET
    body = _Body(
        model=request.model,
        prompt=prompt,
        n=request.count,
        size=request.size,
        quality=request.quality,
        background=request.background if request.background != "auto" else unset,
        output_format=request.output_format,
        output_compression=unset if request.output_compression is None else request.output_compression,
        moderation=request.moderation if request.moderation != "auto" else unset,
    )
    headers = {"Content-Type": "application/json"}
    return ApiRequest("POST", "/images/generations", headers, msgspec.json.encode(body))


def read(request: ImageRequest, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
    """A complete HTTP answer, header names in lower case. Blocking: decodes the pictures' base64."""
    request_id = printable(headers.get("x-request-id", ""))[:100]
    if status != 200:
        return _refused(status, headers, body)._replace(request_id=request_id)
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failure(
            "outcome_unknown",
            "OpenAI answered 200 with something that is not its JSON; the picture may have been paid for.",
            "unknown",
            status=status,
            request_id=request_id,
            kept=body,
        )
    if answer.data is None and bytes(answer.error) != b"null":
        failure = _refused(status, headers, body)
        blocked = failure.code == "moderation_blocked"
        return failure._replace(billed="no" if blocked else "unknown", retry="never", request_id=request_id, kept=body)
    try:
        images = _images(request, answer)
    except BadPicture as exc:
        message = f"OpenAI answered, and charged, but not with what was asked: {exc}."
        usage = _usage(answer.usage)
        return Failure("bad_reply", message, "yes", status=status, request_id=request_id, kept=body, usage=usage)
    return Reply(images, _usage(answer.usage), _rendered(answer), request_id)


def transport_failure(kind: Literal["not_sent", "outcome_unknown"], why: str) -> Failure:
    """For whoever carries: a request that never left, or one whose answer never came whole."""
    if kind == "not_sent":
        return Failure("not_sent", f"OpenAI could not be reached: {printable(why)}.", "no", retry="later")
    message = f"The connection ended before the answer was complete ({printable(why)}), so OpenAI may have charged for it."
    return Failure("outcome_unknown", message, "unknown")


def next_step(code: str) -> str:
    return NEXT_STEPS.get(code, "")


def printable(text: str) -> str:
    """Text from outside, bounded, without what acts on a terminal or hides from a reader."""
    return "".join(c if c.isprintable() else " " for c in text[:MESSAGE_CHARACTERS_MAX]).strip().rstrip(".")


def _images(request: ImageRequest, answer: _Answer) -> tuple[ReplyImage, ...]:
    data = answer.data or []
    if len(data) != request.count:
        raise BadPicture(f"{len(data)} pictures came where {request.count} were ordered")
    return tuple(_image(request, datum, number) for number, datum in enumerate(data, start=1))


def _image(request: ImageRequest, datum: _Datum, number: int) -> ReplyImage:
    if datum.b64_json is None:
        raise BadPicture(f"picture {number} came without its bytes")
    try:
        data = base64.b64decode(datum.b64_json, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadPicture(f"picture {number} is not base64 ({exc})") from exc
    found = measure(data)
    if found.format != request.output_format:
        raise BadPicture(f"picture {number} is {found.format} where {request.output_format} was ordered")
    if request.size != "auto" and found.format != "svg" and request.size != f"{found.width}x{found.height}":
        raise BadPicture(f"picture {number} is {found.width}x{found.height} where {request.size} was ordered")
    return ReplyImage(data, found.format, found.width, found.height)


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    into, out = usage.input_tokens_details or _TokenDetails(), usage.output_tokens_details or _TokenDetails()
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        input_text_tokens=into.text_tokens,
        input_image_tokens=into.image_tokens,
        output_text_tokens=out.text_tokens,
        output_image_tokens=out.image_tokens,
    )


def _rendered(answer: _Answer) -> Rendered:
    return Rendered(
        size=printable(answer.size or "")[:20],
        quality=printable(answer.quality or "")[:20],
        background=printable(answer.background or "")[:20],
        output_format=printable(answer.output_format or "")[:20],
    )


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _not_openai(status, headers)
    code = error.code or ""
    said = printable(error.message or "no reason given")
    if code in _MODERATION:
        return Failure("moderation_blocked", said + _categories(error), "no", status=status)
    if status == 429:
        if code in _BILLING or error.type == "insufficient_quota":
            return Failure("quota_exhausted", said, "no", status=status)
        wait = _retry_after(headers, error.message or "")
        return Failure("rate_limited", said, "no", retry="later", retry_after_seconds=wait, status=status)
    if status in _SURELY_OPENAI:
        wait = _retry_after(headers, "")
        return Failure("server_error", said, "no", retry="later", retry_after_seconds=wait, status=status)
    if status >= 500 or status in (200, 408):
        return Failure("outcome_unknown", said, "unknown", status=status)
    return Failure(_client_error(status, error), said, "no", status=status)


def _client_error(status: int, error: _Error) -> str:
    message = (error.message or "").lower()
    if status == 401:
        return "invalid_key"
    if status == 403:
        # There is no code for it: the word in the message is all there is.
        return "org_unverified" if "verified" in message else "not_permitted"
    if status == 404 or error.code == "model_not_found" or (error.param == "model" and error.code == "invalid_value"):
        return "model_unavailable"
    return "bad_request"


def _not_openai(status: int, headers: Mapping[str, str]) -> Failure:
    kind = printable(headers.get("content-type", "no content type"))
    said = f"HTTP {status} came with {kind} instead of OpenAI's JSON"
    if status == 429:
        wait = _retry_after(headers, "")
        return Failure("rate_limited", said, "no", retry="later", retry_after_seconds=wait, status=status)
    if status == 401:
        return Failure("invalid_key", said, "no", status=status)
    if 400 <= status < 500 and status != 408:
        return Failure("bad_request", said, "no", status=status)
    return Failure("outcome_unknown", said + "; the picture may have been paid for", "unknown", status=status)


def _categories(error: _Error) -> str:
    details = error.moderation_details
    if details is None or not (details.categories or details.moderation_stage):
        return ""
    categories = ", ".join(printable(category) for category in (details.categories or [])[:10])
    return f" (at the {printable(details.moderation_stage or 'unknown')} stage: {categories or 'no category given'})"


def _retry_after(headers: Mapping[str, str], message: str) -> float | None:
    """Seconds; None if nobody said. Headers first, then the hint in the message of image limits."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if 0 <= seconds < RETRY_AFTER_SECONDS_MAX * 24:
            return seconds
    hint = re.search(r"try again in (\d{1,6}(?:\.\d{1,3})?)(ms|s|m)\b", message)
    if hint is None:
        return None
    return float(hint[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[hint[2]]
