"""OpenAI's Images API without the network: requests as bytes, answers as values, failures by what they mean.

What is drawn from words alone goes to /images/generations as JSON, what starts from pictures to /images/edits as
multipart/form-data, the form in which custom sizes are documented.

Rule: `build` is deterministic, so that the digest of a request can be checked years later; `read` believes
nothing: valid base64, whole images of the right kind, size and number, or it is a failure. Every failure
says whether it may have been billed (`failures`). Source of keys: openai-python 3.54.0 and openai-node 7.57.0.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from eventlog.values import ImageRequest, Rendered, Sha256, Usage, digest
from tools import streaming
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
    "ReplyPartial",
    "build",
    "kind",
    "next_step",
    "printable",
    "read",
    "read_partial",
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


Octets = bytes | bytearray


class ReplyImage(NamedTuple):
    """A picture that is known to be whole. `encoded` is its base64 where it stands in the answer, so that of ten large ones
    only the one that somebody looks at is in memory twice.
    """

    encoded: memoryview
    format: str
    width: int
    height: int

    @property
    def data(self) -> bytes:
        """Decoded anew each time: some 2 ms for 3 MB."""
        return binascii.a2b_base64(self.encoded)


class ReplyPartial(NamedTuple):
    """A picture that is not ready yet. `partial_index` counts from 0, as the API does."""

    partial_index: int
    image: ReplyImage


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
    stream: bool | msgspec.UnsetType = msgspec.UNSET
    partial_images: int | msgspec.UnsetType = msgspec.UNSET


class _Datum(msgspec.Struct):
    b64_json: msgspec.Raw = NOTHING


_Index = Annotated[int, msgspec.Meta(ge=0, le=100)]
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


class _Streamed(msgspec.Struct):
    """One event of a stream. `partial_image_index` is of partial pictures only, `error` of errors."""

    type: msgspec.Raw = NOTHING
    b64_json: msgspec.Raw = NOTHING
    partial_image_index: msgspec.Raw = NOTHING
    created_at: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    background: msgspec.Raw = NOTHING
    output_format: msgspec.Raw = NOTHING
    quality: msgspec.Raw = NOTHING
    size: msgspec.Raw = NOTHING
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
        stream=True if request.partial_images else unset,
        partial_images=request.partial_images or unset,
    )
    if not request.sources:
        return ApiRequest("POST", GENERATIONS, {"Content-Type": "application/json"}, msgspec.json.encode(body))
    return _multipart(request, msgspec.to_builtins(body), inputs)


def _multipart(request: ImageRequest, fields: Mapping[str, str | int | bool], inputs: Mapping[Sha256, bytes]) -> ApiRequest:
    """The boundary is a digest over everything between the boundaries, so no picture can contain it."""
    files = [("image[]", f"image-{number}", source) for number, source in enumerate(request.sources, start=1)]
    files += [("mask", "mask", request.mask)] if request.mask else []
    files += [("markup", "markup", request.markup)] if request.markup else []
    named = msgspec.json.encode([fields, [picture.sha256 for _, _, picture in files]])
    boundary = f"imaged-{digest(named)}".encode()
    pieces = []
    for name, value in fields.items():
        pieces += [b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, name.encode())]
        pieces += [str(value).lower().encode() if isinstance(value, bool) else str(value).encode(), b"\r\n"]
    for name, stem, picture in files:
        disposition = f'form-data; name="{name}"; filename="{stem}.{picture.format}"'
        head = f"Content-Disposition: {disposition}\r\nContent-Type: image/{picture.format}\r\n\r\n"
        pieces += [b"--%b\r\n" % boundary, head.encode(), inputs[picture.sha256], b"\r\n"]
    pieces.append(b"--%b--\r\n" % boundary)
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    return ApiRequest("POST", EDITS, {"Content-Type": kind}, b"".join(pieces))


def read(request: ImageRequest, status: int, headers: Mapping[str, str], body: Octets) -> Reply | Failure:
    """A complete HTTP answer, header names in lower case. Blocking: decodes the pictures' base64."""
    request_id = printable(headers.get("x-request-id", ""))[:100]
    if status != 200:
        return refused(status, headers, body)._replace(request_id=request_id)
    if streaming.is_stream(headers.get("content-type", "")):
        return _read_stream(request, headers, body)._replace(request_id=request_id)
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except UNREADABLE:
        return Failure(
            "outcome_unknown",
            "OpenAI answered 200 with something that is not its JSON; the picture may have been paid for.",
            "unknown",
            status=status,
            request_id=request_id,
            kept=bytes(body),
        )
    if answer.data is None and bytes(answer.error) != b"null":
        failure = refused(status, headers, body)
        blocked = failure.code == "moderation_blocked"
        return failure._replace(billed="no" if blocked else "unknown", retry="never", request_id=request_id, kept=bytes(body))
    return _checked(request, answer, body)._replace(request_id=request_id)


def kind(event: streaming.StreamEvent) -> str:
    """ "partial_image", "completed", "error", or whatever else it calls itself; empty if it cannot be read."""
    said = _said(event)
    return "" if said is None else _kind(event, said)


def read_partial(event: streaming.StreamEvent) -> ReplyPartial:
    """Blocking: decodes the picture's base64.

    Raises:
        BadPicture: it brings no whole picture.
    """
    said = _said(event)
    if said is None:
        raise BadPicture("a partial picture cannot be read")
    index = decoded(_Index, said.partial_image_index)
    if index is None:
        raise BadPicture("a partial picture came without its number")
    encoded, data = _decoded(said.b64_json, f"the partial picture {index}")
    found = measure(data)
    return ReplyPartial(index, ReplyImage(encoded, found.format, found.width, found.height))


def _read_stream(request: ImageRequest, headers: Mapping[str, str], body: Octets) -> Reply | Failure:
    """A stream to its end, or as far as it came. An event that is not whole is none: what is missing shows in their number."""
    completed: list[_Streamed] = []
    error, drawing = b"", False
    for event in streaming.events(body):
        said = _said(event)
        if said is None:
            continue
        told = _kind(event, said)
        if told == "completed":
            completed.append(said)
        elif told == "error" or bytes(said.error) != b"null":
            error = event.data if bytes(said.error) != b"null" else b'{"error":%b}' % event.data
        drawing = drawing or told == "partial_image"
    if len(completed) >= request.count:
        return _checked(request, _as_one(completed), body)
    if error:
        failure = refused(200, headers, error)
        # A refusal of the prompt costs nothing. Whether a picture costs that was begun and then blocked is not published.
        free = failure.code == "moderation_blocked" and not drawing and not completed
        return failure._replace(billed="no" if free else "unknown", retry="never", kept=bytes(body))
    message = f"OpenAI's stream ended after {len(completed)} of {request.count} pictures, and may have charged for all of them"
    return Failure("outcome_unknown", sentence(message), "unknown", status=200, kept=bytes(body))


def _said(event: streaming.StreamEvent) -> _Streamed | None:
    try:
        return msgspec.json.decode(event.data, type=_Streamed)
    except UNREADABLE:
        return None


def _kind(event: streaming.StreamEvent, said: _Streamed) -> str:
    """Without what is drawn, a generation or an edit, in front of the dot."""
    return (decoded(str, said.type) or event.name).rpartition(".")[2]


def _as_one(completed: Sequence[_Streamed]) -> _Answer:
    """The answer that the same pictures would have been without a stream.

    Of several pictures each brings its event. Whether a usage in every one of them is that picture's or the sum so far
    is not published, so it counts only where one of them has any.
    """
    usages = [said.usage for said in completed if bytes(said.usage) != b"null"]
    last = completed[-1]
    return _Answer(
        data=[_Datum(said.b64_json) for said in completed],
        created=last.created_at,
        usage=usages[0] if len(usages) == 1 else NOTHING,
        background=last.background,
        output_format=last.output_format,
        quality=last.quality,
        size=last.size,
    )


def _checked(request: ImageRequest, answer: _Answer, body: Octets) -> Reply | Failure:
    usage = _usage(answer)
    try:
        images = _images(request, answer)
    except BadPicture as exc:
        message = sentence(f"OpenAI answered, and charged, but not with what was asked: {exc}")
        return Failure("bad_reply", message, "yes", status=200, kept=bytes(body), usage=usage)
    return Reply(images, usage, _rendered(answer), "", decoded(int, answer.created), bytes(answer.svg_usage) != b"null")


def _images(request: ImageRequest, answer: _Answer) -> tuple[ReplyImage, ...]:
    """Fewer than ordered are what was paid for, and better than none."""
    data = answer.data or []
    if not 0 < len(data) <= request.count:
        raise BadPicture(f"{len(data)} pictures came where {request.count} were ordered")
    return tuple(_image(request, datum, number) for number, datum in enumerate(data, start=1))


def _image(request: ImageRequest, datum: _Datum, number: int) -> ReplyImage:
    encoded, data = _decoded(datum.b64_json, f"picture {number}")
    found = measure(data)
    if found.format != request.output_format:
        raise BadPicture(f"picture {number} is {found.format} where {request.output_format} was ordered")
    # The size of a gif is that of its frames or of the sheet they are cut from: which, is not published.
    if request.size != "auto" and found.format not in ("svg", "gif") and request.size != f"{found.width}x{found.height}":
        raise BadPicture(f"picture {number} is {found.width}x{found.height} where {request.size} was ordered")
    return ReplyImage(encoded, found.format, found.width, found.height)


def _decoded(said: msgspec.Raw, what: str) -> tuple[memoryview, bytes]:
    """Base64 where it stands in the answer, unless some of it is escaped, and what it says."""
    whole = memoryview(said)
    if bytes(whole[:5]) == b"null":
        raise BadPicture(f"{what} came without its bytes")
    encoded = whole[1:-1]
    try:
        try:
            data = binascii.a2b_base64(encoded, strict_mode=True)
        except binascii.Error:
            encoded = memoryview(msgspec.json.decode(said, type=str).encode())
            data = binascii.a2b_base64(encoded, strict_mode=True)
    except (*UNREADABLE, UnicodeEncodeError, binascii.Error) as exc:
        raise BadPicture(f"{what} is not base64 ({exc})") from exc
    if base64.b64encode(data[-(len(data) % 3 or 3) :]) != bytes(encoded[-4:]):
        raise BadPicture(f"{what} is not base64 as it should be: bits are left over at its end")
    return encoded, data


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
