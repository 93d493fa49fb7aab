"""OpenAI's Images API without the network: requests as bytes, answers as values, failures by what they mean.

Rule: `build` is deterministic, so that the digest of a request can be checked years later; `read` believes
nothing: valid base64, whole images of the right kind, size and number, or it is a failure. Every failure
says whether it may have been billed. Source of codes and classes: OpenAI's error guide and openai-python
3.54.0, with measurements of third parties (2026-11).
"""

import base64
import binascii
import email.utils
import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from eventlog.values import Billed, ImageRequest, Rendered, Usage
from tools.pictures import BadPicture, measure

MESSAGE_CHARACTERS_MAX = 500
RETRY_AFTER_SECONDS_MAX = 86_400.0  # whoever asks for more is not waited for anyway
TOKENS_MAX = 10**12  # a larger count is a mistake, and would not fit the index
CATEGORIES_MAX = 10

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
_KEY = re.compile(r"\b(sk-|Bearer )[A-Za-z0-9_*.+/=-]{8,}")
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
    created: int | None = None


class Failure(NamedTuple):
    """`retry` later: it may be sent again without being paid twice. `kept`: bytes of a reply that may be paid for.

    `message` has at most 500 printable characters. `categories` are moderation's, if it named any.
    """

    code: str
    message: str
    billed: Billed
    retry: Retry = "never"
    retry_after_seconds: float | None = None
    status: int | None = None
    request_id: str = ""
    kept: bytes = b""
    usage: Usage | None = None
    categories: tuple[str, ...] = ()


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


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
_NOTHING = msgspec.Raw(b"null")


class _TokenDetails(msgspec.Struct):
    text_tokens: _Tokens | None = None
    image_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    """Without the two sums it is no usage: a missing count is unknown, not zero."""

    input_tokens: _Tokens
    output_tokens: _Tokens
    total_tokens: _Tokens | None = None
    input_tokens_details: _TokenDetails | None = None
    output_tokens_details: _TokenDetails | None = None


class _Answer(msgspec.Struct):
    """What is not the pictures is `Raw`: an oddity in it must not cost a picture that is paid for."""

    data: list[_Datum] | None = None
    created: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    background: msgspec.Raw = _NOTHING
    output_format: msgspec.Raw = _NOTHING
    quality: msgspec.Raw = _NOTHING
    size: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


class _Moderation(msgspec.Struct):
    moderation_stage: str | None = None
    categories: list[str] | None = None


class _Error(msgspec.Struct):
    message: msgspec.Raw = _NOTHING
    type: msgspec.Raw = _NOTHING
    param: msgspec.Raw = _NOTHING
    code: msgspec.Raw = _NOTHING
    moderation_details: msgspec.Raw = _NOTHING


class _ErrorBody(msgspec.Struct):
    error: _Error


class _Said(NamedTuple):
    """OpenAI's error object. Empty where it says nothing."""

    message: str
    type: str
    param: str
    code: str
    moderation: _Moderation


T = TypeVar("T")


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
    usage = _usage(answer)
    try:
        images = _images(request, answer)
    except BadPicture as exc:
        message = _sentence(f"OpenAI answered, and charged, but not with what was asked: {exc}")
        return Failure("bad_reply", message, "yes", status=status, request_id=request_id, kept=body, usage=usage)
    return Reply(images, usage, _rendered(answer), request_id, _as(int, answer.created))


def transport_failure(kind: Literal["not_sent", "outcome_unknown"], why: str) -> Failure:
    """For whoever carries: a request that never left, or one whose answer never came whole."""
    if kind == "not_sent":
        return Failure("not_sent", _sentence(f"OpenAI could not be reached: {why}"), "no", retry="later")
    message = f"The answer did not come whole, so OpenAI may have charged for it: {why}"
    return Failure("outcome_unknown", _sentence(message), "unknown")


def next_step(code: str) -> str:
    return NEXT_STEPS.get(code, "")


def printable(text: str) -> str:
    """Text from outside, bounded, without what acts on a terminal, hides from a reader, or looks like a key."""
    clean = "".join(c if c.isprintable() else " " for c in text[: 2 * MESSAGE_CHARACTERS_MAX])
    return _KEY.sub(r"\1…", clean)[: MESSAGE_CHARACTERS_MAX - 1].strip().rstrip(".")


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
    if base64.b64encode(data[-(len(data) % 3 or 3) :]).decode() != datum.b64_json[-4:]:
        raise BadPicture(f"picture {number} is not base64 as it should be: bits are left over at its end")
    found = measure(data)
    if found.format != request.output_format:
        raise BadPicture(f"picture {number} is {found.format} where {request.output_format} was ordered")
    if request.size != "auto" and found.format != "svg" and request.size != f"{found.width}x{found.height}":
        raise BadPicture(f"picture {number} is {found.width}x{found.height} where {request.size} was ordered")
    return ReplyImage(data, found.format, found.width, found.height)


def _as(kind: type[T], raw: msgspec.Raw) -> T | None:
    """None for whatever is not of that kind."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _usage(answer: _Answer) -> Usage | None:
    usage = _as(_Usage, answer.usage)
    if usage is None:
        return None
    into, out = usage.input_tokens_details or _TokenDetails(), usage.output_tokens_details or _TokenDetails()
    total = usage.total_tokens
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens if total is None else total,
        input_text_tokens=into.text_tokens,
        input_image_tokens=into.image_tokens,
        output_text_tokens=out.text_tokens,
        output_image_tokens=out.image_tokens,
    )


def _rendered(answer: _Answer) -> Rendered:
    def short(raw: msgspec.Raw) -> str:
        return printable(_as(str, raw) or "")[:20]

    return Rendered(
        size=short(answer.size),
        quality=short(answer.quality),
        background=short(answer.background),
        output_format=short(answer.output_format),
    )


def _said(body: bytes) -> _Said | None:
    """None if it is not OpenAI's JSON: a gateway's page, or an object that says nothing."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    message, kind, param, code = (_as(str, raw) or "" for raw in (error.message, error.type, error.param, error.code))
    if not (message or code):
        return None
    return _Said(message, kind, param, code, _as(_Moderation, error.moderation_details) or _Moderation())


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    said = _said(body)
    if said is None:
        return _not_openai(status, headers)
    message = _sentence(said.message or said.code)
    if said.code in _MODERATION:
        return _moderated(said, status)
    if 400 <= status < 500 and (said.code in _BILLING or said.type == "insufficient_quota"):
        return Failure("quota_exhausted", message, "no", status=status)
    if status == 429:
        wait = _retry_after(headers, said.message)
        return Failure("rate_limited", message, "no", retry="later", retry_after_seconds=wait, status=status)
    if status in _SURELY_OPENAI:
        wait = _retry_after(headers, "")
        return Failure("server_error", message, "no", retry="later", retry_after_seconds=wait, status=status)
    if status >= 500 or status in (200, 408):
        return Failure("outcome_unknown", message, "unknown", status=status)
    return Failure(_client_error(status, said), message, "no", status=status)


def _moderated(said: _Said, status: int) -> Failure:
    stage = said.moderation.moderation_stage
    categories = tuple(printable(category)[:40] for category in (said.moderation.categories or [])[:CATEGORIES_MAX])
    why = f" (at the {printable(stage)[:40]} stage)" if stage else ""
    why += f" (categories: {', '.join(categories)})" if categories else ""
    text = printable(said.message or said.code)[: max(0, MESSAGE_CHARACTERS_MAX - len(why) - 1)]
    return Failure("moderation_blocked", _sentence(text + why), "no", status=status, categories=categories)


def _client_error(status: int, said: _Said) -> str:
    if status == 401:
        return "invalid_key"
    if status == 403:
        # There is no code for it: the word in the message is all there is.
        return "org_unverified" if "verified" in said.message.lower() else "not_permitted"
    if status == 404 or said.code == "model_not_found" or (said.param == "model" and said.code == "invalid_value"):
        return "model_unavailable"
    return "bad_request"


def _not_openai(status: int, headers: Mapping[str, str]) -> Failure:
    kind = printable(headers.get("content-type", "no content type"))
    said = _sentence(f"HTTP {status} came with {kind[:80]} instead of OpenAI's JSON")
    if status == 429:
        wait = _retry_after(headers, "")
        return Failure("rate_limited", said, "no", retry="later", retry_after_seconds=wait, status=status)
    if status == 401:
        return Failure("invalid_key", said, "no", status=status)
    if 400 <= status < 500 and status != 408:
        return Failure("bad_request", said, "no", status=status)
    return Failure("outcome_unknown", said + " The picture may have been paid for.", "unknown", status=status)


def _sentence(text: str) -> str:
    return printable(text) + "."


def _retry_after(headers: Mapping[str, str], message: str) -> float | None:
    """Seconds; None if nobody said. Headers first, then the hint in the message of image limits."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if seconds >= 0 and not math.isnan(seconds):
            return min(seconds, RETRY_AFTER_SECONDS_MAX)
    date = _seconds_between(headers.get("date", ""), headers.get("retry-after", ""))
    if date is not None:
        return date
    hint = re.search(r"try again in (?:(\d{1,4})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,6})?)(ms|s))?", message)
    if hint is None or not any(hint.groups()):
        return None
    hours, minutes, rest, unit = hint.groups()
    seconds = float(rest or 0) * (0.001 if unit == "ms" else 1.0) + 60.0 * int(minutes or 0) + 3600.0 * int(hours or 0)
    return min(seconds, RETRY_AFTER_SECONDS_MAX)


def _seconds_between(start: str, end: str) -> float | None:
    """Of two HTTP dates. The server's own clock says what its date means, so ours does not matter."""
    try:
        seconds = (email.utils.parsedate_to_datetime(end) - email.utils.parsedate_to_datetime(start)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), RETRY_AFTER_SECONDS_MAX)
