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


_OUTPUT_PATH = (
    "File name for the picture, relative to the output directory or absolute inside it. Never overwrites: a taken name "
    "becomes name_1.png, name_2.png, … The extension follows output_format."
)
OutputPath = Annotated[str, Meta(description=_OUTPUT_PATH)]

_LIMITS = catalogue().limits
_SIZE = _LIMITS.custom_size


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every operation's arguments."""


class NoArguments(Arguments, frozen=True):
    pass


class Draw(Arguments, frozen=True, kw_only=True):
    """What every drawing tool takes."""

    prompt: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=_LIMITS.prompt_characters_max,
            description=f"What to draw, in any language. Up to {_LIMITS.prompt_characters_max:,} characters.",
        ),
    ]
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
    output_format: Annotated[
        Literal["png", "jpeg", "webp", "gif", "svg"],
        Meta(description="File format. gif and svg: gpt-image-2.6 only, and only with access to their preview."),
    ] = "png"
    output_compression: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(description="Percent of quality kept, for jpeg and webp; left out: 100."),
    ] = None
    background: Annotated[
        Literal["auto", "opaque", "transparent"], Meta(description="transparent needs output_format png or webp.")
    ] = "auto"
    transparent_background: Annotated[bool, Meta(description="The same as background: transparent.")] = False
    moderation: Annotated[Literal["auto", "low"], Meta(description="How strictly OpenAI filters.")] = "auto"
    sample_count: Annotated[
        int, Meta(ge=1, le=_LIMITS.count_max, description="How many pictures. All are drawn in one request and billed together.")
    ] = 1
    partial_images: Annotated[
        int,
        Meta(
            ge=0,
            le=_LIMITS.partial_images_max,
            description="How many previews to show while it is drawn, at most; each adds to the cost. Not for gif and svg.",
        ),
    ] = 0
    return_base64: ReturnBase64 = False
    include_thumbnail: IncludeThumbnail = None
    idempotency_key: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(description="A key of your own: asked again with the same key, the same job answers and nothing is drawn twice."),
    ] = None
    again: Annotated[
        bool, Meta(description="Draw another one although the same order is still under way. Left out: that one answers.")
    ] = False
    dry_run: Annotated[bool, Meta(description="Draw nothing: check everything and say what it would cost. Free.")] = False


class GenerateImage(Draw, frozen=True, kw_only=True):
    output_path: OutputPath = "generated_image.png"


class Redraw(Draw, frozen=True, kw_only=True):
    """What starts from pictures."""

    reference_image_path: Annotated[
        str | None,
        Meta(
            description=(
                "The picture to start from: a file below the input or output directory, relative or absolute; png, jpeg or "
                "webp, recognised by its bytes. Its metadata (place, camera) is left out of what is sent."
            )
        ),
    ] = None
    reference_image_base64: Annotated[
        str | None, Meta(description="The picture to start from, as base64 or a data URL. Used where no path is given.")
    ] = None
    reference_images: Annotated[
        Annotated[tuple[str, ...], Meta(max_length=_LIMITS.edit_inputs_max)] | None,
        Meta(
            description=(
                f"Up to {_LIMITS.edit_inputs_max} pictures to start from, in order: each a file path, the UUID of a generation "
                "(uuid/2 for its second picture), or base64 or a data URL."
            )
        ),
    ] = None
    input_fidelity: Annotated[
        Literal["low", "high"] | None,
        Meta(description="How closely to keep to the sources. gpt-image-1.5 only; later models always do, and refuse it."),
    ] = None


class Retouch(Redraw, frozen=True, kw_only=True):
    """What starts from pictures and may be confined to a part of the first."""

    mask_image_path: Annotated[
        str | None,
        Meta(description="A png as large as the first picture; where it is transparent, the picture is edited."),
    ] = None
    mask_image_base64: Annotated[str | None, Meta(description="The mask as base64 or a data URL.")] = None
    markup_image_path: Annotated[
        str | None,
        Meta(
            description=(
                "A transparent png as large as the first picture, with the changes drawn on it. From gpt-image-2.5 on, and "
                "not together with a mask."
            )
        ),
    ] = None
    markup_image_base64: Annotated[str | None, Meta(description="The markup as base64 or a data URL.")] = None


class EditImage(Retouch, frozen=True, kw_only=True):
    output_path: OutputPath = "edited_image.png"


class TransformImage(Redraw, frozen=True, kw_only=True):
    output_path: OutputPath = "transformed_image.png"


class StartGenerationJob(Retouch, frozen=True, kw_only=True):
    """Everything that the three drawing tools take."""

    tool_name: Annotated[ToolName, Meta(description="Which of the drawing tools to run.")]
    output_path: Annotated[str | None, Meta(description=_OUTPUT_PATH)] = None


class ListGeneratedImages(Arguments, frozen=True):
    directory: Annotated[
        str | None, Meta(description="A folder below the output or an input directory. Left out: the output directory.")
    ] = None
    limit: Limit = 20
    offset: Offset = 0


class GetMetadataFromImage(Arguments, frozen=True):
    image_path: Annotated[
        str, Meta(min_length=1, description="A picture below the output or an input directory, relative or absolute.")
    ]


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


class WaitForJob(GetJobResult, frozen=True):
    wait_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=600)] | None,
        Meta(description="How long to wait at most. Left out: the server's waiting time, IMAGED_SYNC_WAIT_SECONDS."),
    ] = None


class WaitForJobs(Arguments, frozen=True):
    """`after` is the log position that the asker has seen; 0 for none."""

    job_ids: Annotated[tuple[JobIdText, ...], Meta(min_length=1, max_length=200)]
    after: Annotated[int, Meta(ge=0)] = 0
    wait_seconds: Annotated[float, Meta(ge=0, le=30)] = 30.0


class ImportHistory(Arguments, frozen=True):
    path: Annotated[
        str | None,
        Meta(
            description=(
                "The old database, an absolute path. Left out: HISTORY_DB_PATH, data/openai-gpt-image.db in the output "
                "directory, or ~/.openai-gpt-image/history.db, whichever is there first."
            )
        ),
    ] = None


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


def schema_of_answer(result: type[msgspec.Struct], refusal: type[msgspec.Struct]) -> dict[str, Any]:
    """Of structured content: the result, or `error` with why there is none. Clients check either against it."""
    shape, refused = schema(result), schema(refusal)
    own = shape["properties"].get("error")  # a job's own sentence stands under the same name
    shape["properties"] = {**shape["properties"], "error": {"anyOf": [own, refused]} if own else refused}
    shape["anyOf"] = [{"required": shape.pop("required", [])}, {"required": ["error"]}]
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
