"""Ready requests that a person picks by name in the client: a few words go in, a message for the model comes out.

Rule: a message names the tool and its arguments as JSON, so that nothing is left to guess, and the price before
anything is drawn more than once. What the catalogue refuses is refused here already. Asking for one draws nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import msgspec

from daemon import resources
from daemon.errors import Refused
from daemon.house import House
from daemon.resources import Choices
from eventlog.audit import visible
from eventlog.values import CostRange, ImageRequest, MicroUSD, Tool
from tools import models, pricing
from tools.models import catalogue

STYLES = (
    "watercolour",
    "oil painting",
    "pencil sketch",
    "ink drawing",
    "woodblock print",
    "flat vector illustration",
    "isometric 3D render",
    "pixel art",
    "paper cut-out",
    "photograph, natural light",
)
VARIANTS_MAX = 10  # more is not a comparison any more, and a price that nobody expects
QUALITIES_COMPARED = ("low", "medium", "high")  # every model in the catalogue has them
QUALITY_OF_MODELS_COMPARED = "medium"

AFTERWARDS = (
    "When it is done, show me the absolute path of the file as the answer gives it, and what it cost. If the answer is only a "
    "job's id, the picture is still being drawn and will be paid for: ask `wait_for_job` with that id; do not "
    "draw it again."
)


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    description: str
    required: bool = False


class Situation(NamedTuple):
    """For whom a message is written: the model that is drawn with if none is named, and whether that costs nothing."""

    model: str
    offline: bool
    today: date


Asked = Mapping[str, str]
"""The arguments that were given, without empty ones."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    description: str
    arguments: tuple[Argument, ...]
    write: Callable[[Asked, Situation], str]


def message(name: str, given: Mapping[str, str], situation: Situation) -> str:
    """What the user says to the model.

    Raises:
        Refused: no such prompt, an argument that is missing or unknown, or a picture that cannot be drawn.
    """
    prompt = find(name)
    known = [argument.name for argument in prompt.arguments]
    for argument in given:
        if argument not in known:
            raise _no(f'{name} has no argument "{visible(argument)}"; it takes {", ".join(known)}.')
    asked = {argument: text.strip() for argument, text in given.items() if text.strip()}
    for needed in prompt.arguments:
        if needed.required and needed.name not in asked:
            raise _no(f"{name} needs the argument {needed.name}. {needed.description}")
    return prompt.write(asked, situation)


def find(name: str) -> Prompt:
    """
    Raises:
        Refused: there is none of this name.
    """
    if name not in PROMPTS:
        raise _no(f'There is no prompt "{visible(name)}"; there are {", ".join(PROMPTS)}.')
    return PROMPTS[name]


async def complete(house: House, name: str, argument: str, typed: str) -> Choices:
    """
    Raises:
        Refused: there is no such prompt, or it has no such argument.
        IndexUnavailable, EventLogError
    """
    known = [argument.name for argument in find(name).arguments]
    if argument not in known:
        raise _no(f'{name} has no argument "{visible(argument)}"; it takes {", ".join(known)}.')
    names = catalogue().usable_names(house.now().date())
    match argument:
        case "picture":
            return await resources.complete_uuid(house, typed)
        case "style":
            return Choices.among(STYLES, typed)
        case "size":
            return Choices.among(("auto", *catalogue().limits.popular_sizes), typed)
        case "models":
            return _among_several(names, typed)
        case "qualities":
            return _among_several(_qualities(names), typed)
        case _:
            return resources.NOTHING


def _among_several(values: Sequence[str], typed: str) -> Choices:
    """For a list with commas: what is named already stays, the last one is completed."""
    *named, last = [part.strip() for part in typed.split(",")]
    fitting = Choices.among(tuple(value for value in values if value not in named), last)
    return Choices(tuple(", ".join((*named, value)) for value in fitting.values), fitting.total)


def _qualities(names: Sequence[str]) -> tuple[str, ...]:
    """Of the models in use, the cheapest first."""
    found = [model for name in names if (model := catalogue().find(name))]
    return tuple(dict.fromkeys(quality for model in found for quality in model.qualities))


def _generate(asked: Asked, situation: Situation) -> str:
    size = asked.get("size", "auto")
    prompt = asked["subject"] + (f"\nStyle: {asked['style']}" if "style" in asked else "")
    notes = _checked(_request(situation.model, size=size), prompt, situation)
    arguments = {"prompt": prompt, **({"size": size} if "size" in asked else {})}
    return _paragraphs("Draw a picture for me.", _call("generate_image", arguments), *notes, AFTERWARDS)


def _edit(asked: Asked, situation: Situation) -> str:
    prompt = f"{asked['change']}\nKeep everything else exactly as it is."
    return _from_a_picture("Change a picture for me.", "edit_image", asked["picture"], prompt)


def _restyle(asked: Asked, situation: Situation) -> str:
    prompt = f"Redraw this picture in this style: {asked['style']}\nKeep its subject, its composition and its proportions."
    return _from_a_picture("Redraw a picture of mine in another style.", "transform_image", asked["picture"], prompt)


def _from_a_picture(wish: str, tool: Tool, picture: str, prompt: str) -> str:
    arguments = {"reference_images": [picture], "prompt": prompt}
    return _paragraphs(wish, _call(tool, arguments), "The picture itself stays as it is: the result is a new file.", AFTERWARDS)


def _compare_variants(asked: Asked, situation: Situation) -> str:
    size = catalogue().limits.popular_sizes[0]
    requests = [_request(model, quality=quality, size=size) for model, quality in _variants(asked, situation)]
    notes = dict.fromkeys(note for request in requests for note in _checked(request, asked["subject"], situation))
    costs = [pricing.estimate(request, asked["subject"]) for request in requests]
    lines = [
        f"{number}. {_json({'model': request.model, 'quality': request.quality, 'size': size})} - {pricing.show_range(cost)}"
        for number, (request, cost) in enumerate(zip(requests, costs, strict=True), 1)
    ]
    return _paragraphs(
        f"Draw the same subject in {len(requests)} variants for me, so that I can compare them.",
        _price_first(costs, offline=situation.offline),
        f"Then call `generate_image` once for each of these lines, every time also with this prompt: {_json(asked['subject'])}",
        "\n".join(lines),
        *notes,
        "Show me the absolute path and the cost of each picture beside its model and quality, and say in a few sentences how "
        "they differ. If an answer is only a job's id, that picture is still being drawn and will be paid for: ask "
        "`wait_for_job` with that id; do not draw it again.",
    )


def _variants(asked: Asked, situation: Situation) -> list[tuple[str, str]]:
    """Every model with every quality. What is not named: the usual model, the usual qualities."""
    named, qualities = _several(asked.get("models", "")), _several(asked.get("qualities", ""))
    if not qualities:
        qualities = (QUALITY_OF_MODELS_COMPARED,) if len(named) > 1 else QUALITIES_COMPARED
    variants = [(model, quality) for model in named or (situation.model,) for quality in qualities]
    if len(variants) == 1:
        raise _no("compare_variants has one model and one quality, so nothing to compare; name two of either.")
    if len(variants) > VARIANTS_MAX:
        raise _no(f"compare_variants would draw {len(variants)} pictures; at most {VARIANTS_MAX} are drawn. Name fewer models.")
    return variants


def _several(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _price_first(costs: Sequence[CostRange], *, offline: bool) -> str:
    """Unknown is said as unknown: a sum without it would be too small."""
    if offline:
        return f"Tell me first that these {len(costs)} pictures are drawn offline and that nothing is charged."
    known = [cost for cost in costs if cost.low is not None and cost.high is not None]
    together = CostRange(
        low=MicroUSD(sum(cost.low or 0 for cost in known)),
        high=MicroUSD(sum(cost.high or 0 for cost in known)),
        table=pricing.table().version,
    )
    if not known:
        price = "nobody can say what they cost"
    elif len(known) == len(costs):
        price = f"{pricing.show_range(together)} for all {len(costs)} together"
    else:
        price = f"{pricing.show_range(together)} for {len(known)} of them; what the others cost is not known"
    return (
        f"Before you draw anything, tell me the price: {price}, charged to my OpenAI account (prices of "
        f"{pricing.table().as_of}). Go on only when I agree."
    )


def _request(model: str, *, size: str, quality: str = "auto") -> ImageRequest:
    return ImageRequest(tool="generate_image", model=model, size=size, quality=quality)


def _checked(request: ImageRequest, prompt: str, situation: Situation) -> tuple[str, ...]:
    return tuple(f"Note: {warning}" for warning in models.check(request, prompt, situation.today))


def _call(tool: Tool, arguments: Mapping[str, object]) -> str:
    return f"Call `{tool}` once, with these arguments and no others:\n{_json(arguments)}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _paragraphs(*paragraphs: str) -> str:
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _no(sentence: str) -> Refused:
    return Refused(sentence, code="bad_arguments")


_SUBJECT = Argument(name="subject", title="Subject", description="What the picture shows, in any language.", required=True)
_PICTURE = Argument(
    name="picture",
    title="Picture",
    description="Its path, or the UUID of the generation that made it (uuid/2 for its second picture).",
    required=True,
)
_SIZE = Argument(name="size", title="Size", description="WIDTHxHEIGHT in pixels, or auto. Left out: auto.")

PROMPTS: Mapping[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt(
            name="generate",
            title="Draw a picture",
            description="One picture of a subject, in a style and size if you name them.",
            arguments=(
                _SUBJECT,
                Argument(name="style", title="Style", description="How it is drawn, such as watercolour."),
                _SIZE,
            ),
            write=_generate,
        ),
        Prompt(
            name="edit",
            title="Change a picture",
            description="One change to a picture of yours; everything else stays. The result is a new file.",
            arguments=(
                _PICTURE,
                Argument(name="change", title="Change", description="What is to be different afterwards.", required=True),
            ),
            write=_edit,
        ),
        Prompt(
            name="restyle",
            title="Redraw a picture in another style",
            description="The same subject and composition in a style of your choice. The result is a new file.",
            arguments=(
                _PICTURE,
                Argument(name="style", title="Style", description="How it is redrawn, such as woodblock print.", required=True),
            ),
            write=_restyle,
        ),
        Prompt(
            name="compare_variants",
            title="Compare models or qualities",
            description="One subject drawn several times, by several models or in several qualities. The price comes first.",
            arguments=(
                _SUBJECT,
                Argument(
                    name="models",
                    title="Models",
                    description="Model names with commas between them. Left out: the model that is usual for you.",
                ),
                Argument(
                    name="qualities",
                    title="Qualities",
                    description=(
                        "Qualities with commas between them. Left out: medium for several models, "
                        f"{', '.join(QUALITIES_COMPARED)} for one."
                    ),
                ),
            ),
            write=_compare_variants,
        ),
    )
}
