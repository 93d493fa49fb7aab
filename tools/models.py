"""The catalogue of models: what each can do, until when, and what takes its place.

Rule: numbers and dates stand in `models.json` with their source; what is not known there (null) is passed
through to the API, never refused and never claimed. A model that is not in the catalogue is passed through
with a warning, because new ones appear.
"""

import re
from datetime import date
from functools import cache
from pathlib import Path

import msgspec

from eventlog.values import ImageRequest
from tools.errors import Refused

DATA = Path(__file__).with_name("models.json")
COMPRESSED = ("jpeg", "webp")
NEVER_STREAMED = ("gif", "svg")
CAN_BE_TRANSPARENT = ("png", "webp")
BACKGROUNDS = ("auto", "opaque", "transparent")
MODERATIONS = ("auto", "low")
FORMATS = ("png", "webp", "jpeg", "gif", "svg")  # what `pictures` can vet; nothing else is ordered, whatever the model
SHOWN_CHARACTERS_MAX = 60
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class CustomSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pixels. `ratio_max` is the longer edge over the shorter."""

    multiple_of: int
    edge_max: int
    ratio_max: int
    pixels_min: int
    pixels_max: int
    experimental_above_pixels: int


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`edit_input_pixels_max` is ours, OpenAI names none: the 50-megapixel pictures of telephones. To turn one upright
    takes 8 bytes for each pixel of a JPEG or PNG, and 30 for a WebP.
    """

    source: str
    prompt_characters_max: int
    count_max: int
    edit_inputs_max: int
    edit_input_bytes_max: int
    edit_input_pixels_max: int
    mask_bytes_max: int
    partial_images_max: int
    popular_sizes: tuple[str, ...]
    custom_size: CustomSize


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one model can do. None: unknown. An empty tuple: it has no such parameter.

    `released` is a day or a month. `gone_from` is the first day on which it no longer answers; None: not announced.
    `qualities` and `complexity` go from the cheapest to the dearest. `formats_unconfirmed` may work.
    """

    name: str
    source: str
    released: str | None
    custom_sizes: bool
    sizes: tuple[str, ...]
    qualities: tuple[str, ...]
    formats: tuple[str, ...]
    formats_unconfirmed: tuple[str, ...]
    transparent: bool | None
    input_fidelity: tuple[str, ...] | None
    markup: bool | None
    complexity: tuple[str, ...] | None
    streaming: bool | None
    aliases: tuple[str, ...] = ()
    gone_from: date | None = None
    replacement: str = ""
    notes: dict[str, str] = {}

    @property
    def dearest_quality(self) -> str | None:
        return self.qualities[-1] if self.qualities else None


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: str
    as_of: date
    default: str
    limits: Limits
    models: tuple[Model, ...]

    def find(self, name: str) -> Model | None:
        """By name or snapshot."""
        return next((model for model in self.models if name == model.name or name in model.aliases), None)

    def sizes(self, model: Model) -> tuple[str, ...]:
        """Sizes to offer: all of them, or the usual ones of a model that takes any size."""
        return self.limits.popular_sizes if model.custom_sizes else model.sizes

    def usable_names(self, today: date) -> tuple[str, ...]:
        return tuple(m.name for m in self.models if m.gone_from is None or today < m.gone_from)


@cache
def catalogue() -> Catalogue:
    return msgspec.json.decode(DATA.read_bytes(), type=Catalogue)


def known_models() -> str:
    """The models that answer on the catalogue's own date, for people to choose from; those about to go with their day."""
    today = catalogue().as_of
    staying = [model.name for model in catalogue().models if model.gone_from is None]
    going = [f"{m.name} (until {m.gone_from})" for m in catalogue().models if m.gone_from and today < m.gone_from]
    return ", ".join(staying + going)


def check(request: ImageRequest, prompt: str, today: date) -> tuple[str, ...]:
    """What a user should know about the request although it may be sent.

    Raises:
        Refused: it cannot succeed; the sentence names the value, what is allowed and what to take instead.
    """
    _check_prompt(prompt)
    _check_plain_parameters(request)
    model = catalogue().find(request.model)
    if model is None:
        shown = _shown(request.model)
        return (f"The model {shown} is not in the catalogue of {catalogue().as_of}; it is passed on as it is.",)
    return (
        *_check_age(model, today),
        *_check_capabilities(model, request),
        *_check_edit(model, request),
        *_check_streaming(model, request),
        *_check_size(model, request),
    )


def nearest_size(model: Model, width: int, height: int) -> str:
    """The allowed size closest in shape and number of pixels."""
    if not model.custom_sizes:
        shape = width / height
        return min(model.sizes, key=lambda size: abs(_edges(size)[0] / _edges(size)[1] - shape), default="auto")
    rule = catalogue().limits.custom_size
    step = rule.multiple_of
    ratio = max(1 / rule.ratio_max, min(rule.ratio_max, width / height))
    pixels = max(rule.pixels_min, min(rule.pixels_max, width * height))
    candidates = []
    for w in range(step, rule.edge_max + 1, step):
        for h in {round(w / ratio / step) * step, -(-round(w / ratio) // step) * step}:
            if _fault(w, h) is None:
                candidates.append((abs(w * h - pixels) / pixels + abs(w / h - ratio) / ratio, w, h))
    _, w, h = min(candidates)
    return f"{w}x{h}"


def _check_prompt(prompt: str) -> None:
    characters_max = catalogue().limits.prompt_characters_max
    if not prompt.strip():
        raise _no("prompt is empty; say what to draw.", "prompt")
    if len(prompt) > characters_max:
        raise _no(f"prompt has {len(prompt):,} characters; at most {characters_max:,} are allowed.", "prompt")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise _no("prompt contains half of a surrogate pair, which no text can hold; send it as valid Unicode.", "prompt")


def _check_plain_parameters(request: ImageRequest) -> None:
    """What holds for every model, also for one that we do not know."""
    if not (request.model and request.model.isascii() and request.model.isprintable()):
        raise _no(f"model is {_shown(request.model)!r}; give a name such as {catalogue().default}.", "model")
    count_max = catalogue().limits.count_max
    if not 1 <= request.count <= count_max:
        raise _no(f"sample_count is {request.count}; allowed is 1 to {count_max}.", "sample_count")
    if request.size != "auto" and _SIZE.fullmatch(request.size) is None:
        raise Refused(
            f"size is {_shown(request.size)!r}; write it as WIDTHxHEIGHT, such as 1024x1024, or auto.",
            code="unsupported_size",
            argument="size",
        )
    for value, allowed, argument in (
        (request.output_format, FORMATS, "output_format"),
        (request.background, BACKGROUNDS, "background"),
        (request.moderation, MODERATIONS, "moderation"),
    ):
        if value not in allowed:
            raise _no(f"{argument} is {_shown(value)!r}; allowed is {', '.join(allowed)}.", argument)
    _check_format(request)
    _check_inputs(request)
    _check_partial_images(request)


def _check_inputs(request: ImageRequest) -> None:
    inputs_max = catalogue().limits.edit_inputs_max
    if len(request.sources) > inputs_max:
        raise _no(f"{len(request.sources)} reference images were given; at most {inputs_max} are allowed.", "reference_images")
    if request.tool != "generate_image" and not request.sources:
        raise _no(
            f"{request.tool} needs a picture to start from; give reference_image_path, reference_image_base64 or "
            "reference_images.",
            "reference_image_path",
        )
    if request.mask is not None and request.markup is not None:
        raise _no("A mask and a markup were given; OpenAI takes one of them.", "markup_image_path")
    if request.mask is not None and request.output_format == "gif":
        raise _no("A mask cannot be used with output_format gif; choose png, jpeg or webp.", "output_format")


def _check_format(request: ImageRequest) -> None:
    if request.background == "transparent" and request.output_format not in CAN_BE_TRANSPARENT:
        raise _no(f"A transparent background needs output_format png or webp, not {request.output_format}.", "output_format")
    compression = request.output_compression
    if compression is not None and (request.output_format not in COMPRESSED or not 0 <= compression <= 100):
        raise _no(
            f"output_compression is {compression} with {request.output_format}; it is 0 to 100, for jpeg and webp.",
            "output_compression",
        )
    if request.output_format == "svg" and request.count != 1:
        raise _no(f"sample_count is {request.count}; svg is drawn one at a time.", "sample_count")


def _check_partial_images(request: ImageRequest) -> None:
    previews_max = catalogue().limits.partial_images_max
    if not 0 <= request.partial_images <= previews_max:
        raise _no(f"partial_images is {request.partial_images}; allowed is 0 to {previews_max}.", "partial_images")
    if request.partial_images and request.output_format in NEVER_STREAMED:
        raise _no(
            f"partial_images is {request.partial_images}, but OpenAI streams no {request.output_format}; choose png, jpeg or "
            "webp, or leave it out.",
            "partial_images",
        )


def _check_streaming(model: Model, request: ImageRequest) -> tuple[str, ...]:
    if not request.partial_images or model.streaming:
        return ()
    if model.streaming is None:
        return (f"Whether {model.name} sends partial pictures is not known; OpenAI may refuse it.",)
    raise Refused(
        f"{model.name} sends no partial pictures; leave partial_images out or use {catalogue().default}.",
        code="unsupported_streaming",
        argument="partial_images",
    )


def _check_age(model: Model, today: date) -> tuple[str, ...]:
    if model.gone_from is None:
        return ()
    if today >= model.gone_from:
        raise Refused(
            f"The model {model.name} was shut down by OpenAI on {model.gone_from}; use {model.replacement} instead.",
            code="model_retired",
            argument="model",
        )
    return (f"OpenAI shuts {model.name} down on {model.gone_from}; change to {model.replacement} before that.",)


def _check_capabilities(model: Model, request: ImageRequest) -> tuple[str, ...]:
    if request.quality != "auto" and request.quality not in model.qualities:
        raise Refused(
            f"{model.name} has no quality {_shown(request.quality)}; it has {', '.join(model.qualities)} and auto.",
            code="unsupported_quality",
            argument="quality",
        )
    if request.output_format not in model.formats + model.formats_unconfirmed:
        raise Refused(
            f"{model.name} does not draw {request.output_format}; it draws {', '.join(model.formats)}.",
            code="unsupported_format",
            argument="output_format",
        )
    warnings = []
    if request.output_format in model.formats_unconfirmed:
        warnings.append(f"Whether {model.name} draws {request.output_format} is not known; OpenAI may refuse it.")
    if request.output_format in model.notes:
        warnings.append(f"{request.output_format} with {model.name}: {model.notes[request.output_format]}.")
    if request.background == "transparent":
        if model.transparent is False:
            raise Refused(
                f"{model.name} cannot draw a transparent background; use {catalogue().default}.",
                code="unsupported_background",
                argument="background",
            )
        if model.transparent is None:
            warnings.append(f"Whether {model.name} draws transparent backgrounds is not known; OpenAI may refuse it.")
        if "transparent" in model.notes:
            warnings.append(f"A transparent background with {model.name}: {model.notes['transparent']}.")
    return tuple(warnings)


def _check_edit(model: Model, request: ImageRequest) -> tuple[str, ...]:
    warnings = []
    fidelity = request.input_fidelity
    if fidelity is not None and model.input_fidelity is not None and fidelity not in model.input_fidelity:
        why = (
            f"it takes {' and '.join(model.input_fidelity)} only"
            if model.input_fidelity
            else "it always keeps to its sources as closely as it can, and OpenAI refuses the parameter; leave it out"
        )
        raise Refused(
            f"input_fidelity {_shown(fidelity)} is not possible with {model.name}: {why}.",
            code="unsupported_input_fidelity",
            argument="input_fidelity",
        )
    if fidelity is not None and model.input_fidelity is None:
        warnings.append(f"Whether {model.name} takes input_fidelity is not known; OpenAI may refuse it.")
    if request.markup is not None and model.markup is False:
        able = ", ".join(other.name for other in catalogue().models if other.markup and other.gone_from is None)
        raise Refused(
            f"{model.name} takes no markup; use {able}, or a mask.", code="unsupported_markup", argument="markup_image_path"
        )
    if request.markup is not None and model.markup is None:
        warnings.append(f"Whether {model.name} takes a markup is not known; OpenAI may refuse it.")
    return tuple(warnings)


def _check_size(model: Model, request: ImageRequest) -> tuple[str, ...]:
    if request.size == "auto":
        return ()
    width, height = _edges(request.size)
    if not model.custom_sizes:
        if request.size in model.sizes:
            return ()
        allowed = ", ".join(model.sizes)
        raise _no_size(f"{model.name} draws {allowed} and auto", request, nearest_size(model, width, height))
    fault = _fault(width, height)
    if fault is not None:
        raise _no_size(fault, request, nearest_size(model, width, height))
    if width * height > catalogue().limits.custom_size.experimental_above_pixels:
        return (f"{request.size} is larger than 2560x1440; OpenAI calls such sizes experimental.",)
    return ()


def _no_size(why: str, request: ImageRequest, nearest: str) -> Refused:
    return Refused(
        f"size {request.size} is not possible: {why}. The nearest possible size is {nearest}.",
        code="unsupported_size",
        argument="size",
    )


def _fault(width: int, height: int) -> str | None:
    rule = catalogue().limits.custom_size
    pixels = width * height
    if width % rule.multiple_of or height % rule.multiple_of:
        return f"both edges must be multiples of {rule.multiple_of}"
    if max(width, height) > rule.edge_max:
        return f"the longer edge may have at most {rule.edge_max} pixels"
    if max(width, height) > rule.ratio_max * min(width, height):
        return f"the longer edge may be at most {rule.ratio_max} times the shorter"
    if pixels < rule.pixels_min:
        return f"it has {pixels:,} pixels and needs at least {rule.pixels_min:,}"
    if pixels > rule.pixels_max:
        return f"it has {pixels:,} pixels and may have at most {rule.pixels_max:,}"
    return None


def _edges(size: str) -> tuple[int, int]:
    """Of a size that has the shape of one."""
    width, _, height = size.partition("x")
    return int(width), int(height)


def _no(sentence: str, argument: str) -> Refused:
    return Refused(sentence, code="bad_arguments", argument=argument)


def _shown(value: str) -> str:
    """Bounded and without what acts on a terminal; it goes into a sentence."""
    cut = value if len(value) <= SHOWN_CHARACTERS_MAX else value[:SHOWN_CHARACTERS_MAX] + "…"
    return "".join(c if c.isprintable() else "?" for c in cut)
