"""OpenAI's Images API without the network: requests as bytes, answers as values, failures by what they mean.

What is drawn from words alone goes to /images/generations as JSON, what starts from pictures to /images/edits as
multipart/form-data, the form in which custom sizes are documented.

Rule: `build` is deterministic, so that the digest of a request can be checked years later; `read` believes
nothing: valid base64, whole images of the right kind, size and number, or it is a failure. Every failure
says whether it may have been billed (`failures`). Source of keys: openai-python 3.54.0 and openai-node 7.57.0.
"""

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from eventlog.values import ImageRequest, Rendered, Sha256, Usage, digest
from tools.failures import (
    NEXT_STEPS,
    NOTHING,
    UNREADABLE,
    Failure,
    decoded,
    next_step,
    printable,
    refused,
    sentence,
    transport_failure,
)
from tools.pictures import BadPicture, measure

__all__ = [
    "NEXT_STEPS",
    "ApiRequest",
    "Failure",
    "Reply",
    "ReplyImage",
    "build",
    "next_step",
    "printable",
    "read",
    "transport_failure",
]

GENERATIONS = "/images/generations"
EDITS = "/images/edits"
TOKENS_MAX = 10**12  # a larger count is a mistake, and would not fit the index


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
    """`unpriced`: another model drew along, and its tokens, which no table has a price for, are billed besides."""

    images: tuple[ReplyImage, ...]
    usage: Usage | None
    rendered: Rendered
    request_id: str
    created: int | None = None
    unpriced: bool = False


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly the documented keys, for both endpoints; `input_fidelity` is of edits only."""

    model: str
    prompt: str
    n: int | msgspec.UnsetType = msgspec.UNSET
    size: str | msgspec.UnsetType = msgspec.UNSET
    quality: str | msgspec.UnsetType = msgspec.UNSET
    background: str | msgspec.UnsetType = msgspec.UNSET
    output_format: str | msgspec.UnsetType = msgspec.UNSET
    output_compression: int | msgspec.UnsetType = msgspec.UNSET
    moderation: str | msgspec.UnsetType = msgspec.UNSET
    input_fidelity: str | msgspec.UnsetType = msgspec.UNSET


class _Datum(msgspec.Struct):
    b64_json: str | None = None


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


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
    created: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    background: msgspec.Raw = NOTHING
    output_format: msgspec.Raw = NOTHING
    quality: msgspec.Raw = NOTHING
    size: msgspec.Raw = NOTHING
    svg_usage: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING


def build(request: ImageRequest, prompt: str, inputs: Mapping[Sha256, bytes] = MappingProxyType({})) -> ApiRequest:
    """The same request is the same bytes, always. Size and quality are named even when `auto`: they are the price.

    `inputs` holds the bytes of the request's sources, mask and markup by their digests.
    """
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
        input_fidelity=unset if request.input_fidelity is None else request.input_fidelity,
    )
    if not request.sources:
        return ApiRequest("POST", GENERATIONS, {"Content-Type": "application/json"}, msgspec.json.encode(body))
    return _multipart(request, msgspec.to_builtins(body), inputs)


def _multipart(request: ImageRequest, fields: Mapping[str, str | int], inputs: Mapping[Sha256, bytes]) -> ApiRequest:
    """The boundary is a digest over everything between the boundaries, so no picture can contain it."""
    files = [("image[]", f"image-{number}", source) for number, source in enumerate(request.sources, start=1)]
    files += [("mask", "mask", request.mask)] if request.mask else []
    files += [("markup", "markup", request.markup)] if request.markup else []
    named = msgspec.json.encode([fields, [picture.sha256 for _, _, picture in files]])
    boundary = f"imaged-{digest(named)}".encode()
    pieces = []
    for name, value in fields.items():
        pieces += [b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, name.encode())]
        pieces += [str(value).encode(), b"\r\n"]
    for name, stem, picture in files:
        disposition = f'form-data; name="{name}"; filename="{stem}.{picture.format}"'
        head = f"Content-Disposition: {disposition}\r\nContent-Type: image/{picture.format}\r\n\r\n"
        pieces += [b"--%b\r\n" % boundary, head.encode(), inputs[picture.sha256], b"\r\n"]
    pieces.append(b"--%b--\r\n" % boundary)
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    return ApiRequest("POST", EDITS, {"Content-Type": kind}, b"".join(pieces))


def read(request: ImageRequest, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
    """A complete HTTP answer, header names in lower case. Blocking: decodes the pictures' base64."""
    request_id = printable(headers.get("x-request-id", ""))[:100]
    if status != 200:
        return refused(status, headers, body)._replace(request_id=request_id)
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except UNREADABLE:
        return Failure(
            "outcome_unknown",
            "OpenAI answered 200 with something that is not its JSON; the picture may have been paid for.",
            "unknown",
            status=status,
            request_id=request_id,
            kept=body,
        )
    if answer.data is None and bytes(answer.error) != b"null":
        failure = refused(status, headers, body)
        blocked = failure.code == "moderation_blocked"
        return failure._replace(billed="no" if blocked else "unknown", retry="never", request_id=request_id, kept=body)
    usage = _usage(answer)
    try:
        images = _images(request, answer)
    except BadPicture as exc:
        message = sentence(f"OpenAI answered, and charged, but not with what was asked: {exc}")
        return Failure("bad_reply", message, "yes", status=status, request_id=request_id, kept=body, usage=usage)
    return Reply(images, usage, _rendered(answer), request_id, decoded(int, answer.created), bytes(answer.svg_usage) != b"null")


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
    # The size of a gif is that of its frames or of the sheet they are cut from: which, is not published.
    if request.size != "auto" and found.format not in ("svg", "gif") and request.size != f"{found.width}x{found.height}":
        raise BadPicture(f"picture {number} is {found.width}x{found.height} where {request.size} was ordered")
    return ReplyImage(data, found.format, found.width, found.height)


def _usage(answer: _Answer) -> Usage | None:
    usage = decoded(_Usage, answer.usage)
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
        return printable(decoded(str, raw) or "")[:20]

    return Rendered(
        size=short(answer.size),
        quality=short(answer.quality),
        background=short(answer.background),
        output_format=short(answer.output_format),
    )
