"""What operations take: msgspec structs, their JSON schemas, and the sentence for an argument that does not fit.

Rule: the struct is the schema. Nothing is validated twice, and nothing passes that the schema does not show.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tools.errors import Refused
from tools.failures import UNREADABLE
from tools.models import catalogue, known_models

VALUE_SHOWN_MAX = 80  # characters of a wrong value that the refusal repeats

ToolName = Literal["generate_image", "edit_image", "transform_image"]
State = Literal["pending", "running", "completed", "failed", "cancelled", "interrupted"]
Limit = Annotated[int, Meta(ge=1, le=100, description="How many to return.")]
Offset = Annotated[int, Meta(ge=0, le=2**31, description="How many of the newest to skip.")]
JobIdText = Annotated[str, Meta(min_length=1, max_length=64, description="The job's id, as the drawing tool gave it.")]
ToolFilter = Annotated[ToolName | None, Meta(description="Only what this tool made.")]


ReturnBase64 = Annotated[
    bool, Meta(description="Also return the picture itself; one that is too large comes as a reduced preview.")
]
IncludeThumbnail = Annotated[
    bool | None, Meta(description="Also return a small JPEG preview. Left out: OPENAI_IMAGE_THUMBNAIL decides.")
]


_LIMITS = catalogue().limits
_SIZE = _LIMITS.custom_size


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every operation's arguments."""


class NoArguments(Arguments, frozen=True):
    pass


class GenerateImage(Arguments, frozen=True):
    prompt: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=_LIMITS.prompt_characters_max,
            description=f"What to draw, in any language. Up to {_LIMITS.prompt_characters_max:,} characters.",
        ),
    ]
    output_path: Annotated[
        str,
        Meta(
            description=(
                "File name for the picture, relative to the output directory or absolute inside it. Never overwrites: "
                "a taken name becomes name_1.png, name_2.png, … The extension follows output_format."
            )
        ),
    ] = "generated_image.png"
    model: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | None,
        Meta(
            description=(
                f"Model name. Left out: OPENAI_IMAGE_MODEL, or else {catalogue().default}. Known: {known_models()}. "
                "Newer names are passed through."
            ),
            examples=["gpt-image-2.6-flare", "gpt-image-2"],
        ),
    ] = None
    size: Annotated[
        str,
        Meta(
            pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$",
            description=(
                "WIDTHxHEIGHT in pixels, or auto. Popular: 1024x1024, 1024x1536, 1536x1024, 2048x2048, 2048x1152, "
                "1152x2048, 3840x2160, 2160x3840. From gpt-image-2 on any size whose edges are multiples of "
                f"{_SIZE.multiple_of} and at most {_SIZE.edge_max}, not longer than {_SIZE.ratio_max}:1, with "
                f"{_SIZE.pixels_min:,} to {_SIZE.pixels_max:,} pixels."
            ),
            examples=["auto", "1024x1024", "1536x1024"],
        ),
    ] = "auto"
    quality: Annotated[
        Literal["low", "medium", "high", "xhigh", "max", "auto"],
        Meta(description="Higher costs more. xhigh and max: gpt-image-2.5 and 2.6 only."),
    ] = "auto"
    output_format: Annotated[Literal["png", "jpeg", "webp"], Meta(description="File format.")] = "png"
    transparent_background: Annotated[bool, Meta(description="Transparent background; png or webp only.")] = False
    moderation: Annotated[Literal["auto", "low"], Meta(description="How strictly OpenAI filters.")] = "auto"
    sample_count: Annotated[
        int, Meta(ge=1, le=_LIMITS.count_max, description="How many pictures. All are drawn in one request and billed together.")
    ] = 1
    return_base64: ReturnBase64 = False
    include_thumbnail: IncludeThumbnail = None


class ListHistory(Arguments, frozen=True):
    limit: Limit = 20
    offset: Offset = 0
    tool_name: ToolFilter = None
    query: Annotated[
        Annotated[str, Meta(max_length=1000)] | None,
        Meta(description="Only prompts that contain this text; case and width do not matter."),
    ] = None
    since: Annotated[
        str | None,
        Meta(description="Only what was asked for at or after this UTC time, such as 2026-11-22 or 2026-11-22T09:30."),
    ] = None
    until: Annotated[str | None, Meta(description="Only what was asked for before this UTC time.")] = None


class GetHistoryByUuid(Arguments, frozen=True):
    uuid: Annotated[str, Meta(min_length=1, max_length=64, description="The generation's UUID, which is its job's id.")]


class ListJobs(Arguments, frozen=True):
    status: Annotated[State | None, Meta(description="Only jobs in this state.")] = None
    tool_name: ToolFilter = None
    limit: Limit = 20
    offset: Offset = 0


class JobOnly(Arguments, frozen=True):
    job_id: JobIdText


class GetJobResult(JobOnly, frozen=True):
    return_base64: ReturnBase64 = False
    include_thumbnail: IncludeThumbnail = None


class Stop(Arguments, frozen=True):
    reason: Annotated[str, Meta(max_length=200)] = "asked to stop"


A = TypeVar("A", bound=Arguments)


def parse(operation: str, given: Mapping[str, Any], kind: type[A]) -> A:
    """The arguments as a struct.

    Raises:
        Refused: one sentence with the argument, the value and what is allowed.
    """
    try:
        return msgspec.convert(_unpacked(given, kind), kind)
    except msgspec.ValidationError as exc:
        raise _refusal(operation, given, kind, str(exc)) from None


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON schema with an object at its root; msgspec's own has a bare `$ref` there, which clients refuse."""
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    shape: dict[str, Any] = definitions.pop(root["$ref"].rsplit("/", 1)[1])
    shape.pop("title", None)
    shape.pop("description", None)
    if definitions:
        shape["$defs"] = definitions
    return shape


def _unpacked(given: Mapping[str, Any], kind: type[Arguments]) -> dict[str, Any]:
    """Some clients send lists, objects, numbers and booleans as JSON text; take them for what they are."""
    properties = schema(kind)["properties"] if given else {}
    out = dict(given)
    for name, value in given.items():
        shape = properties.get(name)
        if isinstance(value, str) and shape and not _takes_text(shape):
            try:
                out[name] = msgspec.json.decode(value)
            except UNREADABLE:
                continue
    return out


def _takes_text(shape: Mapping[str, Any]) -> bool:
    choices = shape.get("anyOf", [shape])
    return any(choice.get("type") == "string" or "enum" in choice for choice in choices)


def _refusal(operation: str, given: Mapping[str, Any], kind: type[Arguments], complaint: str) -> Refused:
    shape = schema(kind)
    properties: dict[str, Any] = shape["properties"]
    for name in given:
        if name not in properties:
            known = ", ".join(properties) or "no arguments"
            return _no(f"{operation} has no argument {_shown(name)}; it takes {known}.", name)
    for name in shape.get("required", []):
        if name not in given:
            meaning = properties[name].get("description", "")
            return _no(f"{operation} needs the argument {name}. {meaning}".strip(), name)
    for name, value in given.items():
        if not _fits(kind, name, _unpacked({name: value}, kind)[name], given):
            return _no(f"{name} is {_shown(value)}; {_allowed(properties[name])}.", name)
    return _no(f"The arguments of {operation} do not fit: {complaint}.", "")


def _fits(kind: type[Arguments], name: str, value: Any, given: Mapping[str, Any]) -> bool:
    """Whether this one argument is acceptable by itself."""
    field = next(field for field in msgspec.structs.fields(kind) if field.name == name)
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError:
        return False
    return True


def _no(sentence: str, argument: str) -> Refused:
    return Refused(sentence, code="bad_arguments", argument=argument)


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_SHOWN_MAX else text[:VALUE_SHOWN_MAX] + "…"


def _allowed(shape: Mapping[str, Any]) -> str:
    choices = [choice for choice in shape.get("anyOf", [shape]) if choice.get("type") != "null"]
    return "allowed is " + " or ".join(_one_allowed(choice, shape) for choice in choices)


def _one_allowed(choice: Mapping[str, Any], outer: Mapping[str, Any]) -> str:
    if "enum" in choice:
        return "one of " + ", ".join(str(item) for item in choice["enum"] if item is not None)
    limits = {**outer, **choice}
    match choice.get("type"):
        case "integer" if "minimum" in limits and "maximum" in limits:
            return f"a whole number from {limits['minimum']} to {limits['maximum']}"
        case "integer" if "minimum" in limits:
            return f"a whole number of at least {limits['minimum']}"
        case "boolean":
            return "true or false"
        case "string" if "pattern" in limits:
            examples = ", ".join(limits.get("examples", ()))
            return f"text such as {examples}"
        case "string" if "maxLength" in limits:
            return f"text of {limits.get('minLength', 0)} to {limits['maxLength']} characters"
        case "string":
            return "text"
        case other:
            return str(other)
