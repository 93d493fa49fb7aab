"""What a request may cost before it is sent, and what a reply did cost.

Rule: integer micro-dollars and exact fractions, never floats. What has no published price is unknown (None),
never zero. Rates, token tables and the token formula stand in `prices.json` with date and source.
"""

import re
from collections.abc import Mapping
from datetime import date
from fractions import Fraction
from functools import cache
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlog.values import Backend, Cost, CostRange, ImageRequest, MicroUSD, Usage
from tools.models import catalogue

DATA = Path(__file__).with_name("prices.json")
MICRO = 6  # digits behind the point of a dollar
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class _Factor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`times` widens the formula's result to a range where it is not published."""

    factor: int
    times: tuple[str, str] = ("1", "1")


class _Patches(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="patches", tag_field="kind"):
    """A token for every patch of the picture; one that is small is magnified first, a large one made smaller."""

    source: str
    patch_px: int
    patches_max: int
    magnified_below_px: int
    magnified_max: int


class _Tiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tiles", tag_field="kind"):
    """Tokens for every tile of the picture, scaled so that its shorter edge is one tile, and more at high fidelity."""

    source: str
    base_tokens: int
    tile_tokens: int
    tile_px: int
    high_fidelity_square_tokens: int
    high_fidelity_oblong_tokens: int


class _Formula(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    text: str
    pixels_offset: int
    divisor: int


class _Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rates in USD per million tokens, which are micro-dollars per token."""

    name: str
    as_of: date
    source: str
    confidence: str
    text_in: str | None
    image_in: str | None
    image_out: str | None
    text_out: str | None
    factors: dict[str, _Factor] = {}
    tokens: dict[str, dict[str, int]] = {}
    inputs: _Patches | _Tiles | None = None


class PriceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: str
    as_of: date
    unit: str
    stale_after_days: int
    prompt_overhead_tokens: int
    overhead_source: str
    partial_image_tokens: int
    partial_image_source: str
    sizes_when_auto: tuple[str, ...]
    formula: _Formula
    legacy_tokens_source: str
    models: tuple[_Price, ...]

    def age_days(self, today: date) -> int:
        return (today - self.as_of).days

    def is_stale(self, today: date) -> bool:
        return self.age_days(today) > self.stale_after_days


@cache
def table() -> PriceTable:
    return msgspec.json.decode(DATA.read_bytes(), type=PriceTable)


def estimate(request: ImageRequest, prompt: str) -> CostRange:
    """The least and the most that the request may cost. None where there is no published bound.

    The upper bound holds for every choice that `auto` leaves to the API among the qualities of the model and
    the usual sizes. It counts a token for every UTF-8 byte of the prompt, because no tokenizer makes more, and the
    prompt once for every picture, because whether it is billed once or for each of them is not published. The same
    goes for the sources of an edit, each with the most tokens that a picture can have, and for its mask. Partial pictures
    are in it for every picture; fewer may come, so the lower bound is without them.
    """
    price = _price(request.model)
    if request.output_format in ("gif", "svg"):
        price = None  # a gif is billed as the sheet of its frames, an svg also for the model that writes it: no published figures
    images = _image_tokens(price, request) if price else None
    into = _input_tokens(price, request) if price else None
    if price is None or images is None or into is None or price.image_out is None or price.text_in is None:
        return CostRange(low=None, high=None, table=table().version)
    if price.image_in is None and request.sources:
        return CostRange(low=None, high=None, table=table().version)
    overhead = table().prompt_overhead_tokens
    text_most = overhead + len(prompt.encode("utf-8", "surrogatepass"))
    out, text, image = Fraction(price.image_out), Fraction(price.text_in), Fraction(price.image_in or 0)
    least = request.count * images[0] * out + overhead * text + into[0] * image
    partials = request.partial_images * table().partial_image_tokens
    most = request.count * ((images[1] + partials) * out + text_most * text + into[1] * image)
    return CostRange(low=MicroUSD(floor(least)), high=MicroUSD(ceil(most)), table=table().version)


def cost(model: str, usage: Usage | None, *, backend: Backend) -> Cost:
    """From the tokens that the API counted. An offline reply costs nothing, and says what it would be."""
    amount = None if usage is None else _from_usage(model, usage)
    if backend == "offline":
        return Cost(amount=MicroUSD(0), basis="offline", table=table().version, would_be=amount)
    return Cost(amount=amount, basis="unknown" if amount is None else "usage", table=table().version)


class Line(NamedTuple):
    """One part of a bill: how many tokens of which kind, and what they cost, in micro-dollars rounded each for itself."""

    kind: str
    tokens: int
    amount: MicroUSD


def breakdown(model: str, usage: Usage | None) -> tuple[Line, ...]:
    """What the sum of `cost` is made of; empty where the API did not say, or no price is known."""
    price = _price(model)
    if usage is None or price is None or usage.input_text_tokens is None or usage.input_image_tokens is None:
        return ()
    text_out = usage.output_text_tokens or 0
    image_out = usage.output_tokens - text_out if usage.output_image_tokens is None else usage.output_image_tokens
    parts = (
        ("text in", usage.input_text_tokens, price.text_in),
        ("image in", usage.input_image_tokens, price.image_in),
        ("text out", text_out, price.text_out),
        ("image out", image_out, price.image_out),
    )
    if any(rate is None and tokens for _, tokens, rate in parts):
        return ()
    return tuple(
        Line(kind, tokens, MicroUSD(floor(tokens * Fraction(rate or 0) + Fraction(1, 2))))
        for kind, tokens, rate in parts
        if tokens
    )


def output_tokens(model: str, size: str, quality: str) -> int | None:
    """Tokens of one picture; the upper end where only a range is known, None where nothing is."""
    price = _price(model)
    found = _tokens(price, size, quality) if price else None
    return None if found is None else ceil(found[1])


def input_tokens(model: str, width: int, height: int, fidelity: str | None) -> int | None:
    """Tokens of one source picture of an edit; None where nothing is known."""
    price = _price(model)
    return None if price is None or price.inputs is None else _tokens_of_input(price.inputs, width, height, fidelity)


def span(model: str | None = None) -> CostRange:
    """The least and the most that one picture costs, at the usual sizes, prompt left out: of one model, or of those that
    are in use. None where no price is known.
    """
    names = catalogue().usable_names(table().as_of) if model is None else (model,)
    costs = [
        tokens * Fraction(price.image_out)
        for price in table().models
        if price.image_out is not None and price.name in names
        for quality in (*price.factors, *price.tokens)
        for size in table().sizes_when_auto
        for tokens in _tokens(price, size, quality) or ()
    ]
    if not costs:
        return CostRange(low=None, high=None, table=table().version)
    return CostRange(low=MicroUSD(floor(min(costs))), high=MicroUSD(ceil(max(costs))), table=table().version)


def show(amount: MicroUSD | None) -> str:
    """Four decimals or, for less than a hundredth of a cent, six; "unknown" for None."""
    if amount is None:
        return "unknown"
    if amount and amount < 100:
        return f"$0.{amount:06}"
    hundredths, rest = divmod(amount, 100)
    hundredths += rest >= 50
    return f"${hundredths // 10_000}.{hundredths % 10_000:04}"


def micro_usd(text: str) -> MicroUSD:
    """Of dollars as people write them: digits, and up to six more behind a point."""
    whole, _, fraction = text.partition(".")
    return MicroUSD(int(whole) * 10**MICRO + int(fraction.ljust(MICRO, "0")))


def show_range(costs: CostRange) -> str:
    if costs.low is None or costs.high is None:
        return f"unknown (no price in table {costs.table})"
    if costs.low == costs.high:
        return show(costs.low)
    return f"{show(costs.low)} to {show(costs.high)}"


def _price(model: str) -> _Price | None:
    known = catalogue().find(model)
    name = known.name if known else model
    return next((price for price in table().models if price.name == name), None)


def _from_usage(model: str, usage: Usage) -> MicroUSD | None:
    price = _price(model)
    if price is None or price.text_in is None or price.image_in is None or price.image_out is None:
        return None
    text_out = usage.output_text_tokens or 0
    if text_out and price.text_out is None:
        return None
    if usage.input_text_tokens is None or usage.input_image_tokens is None:
        # The API did not say of which kind the input was: the dearer one is a bound.
        into = usage.input_tokens * max(Fraction(price.text_in), Fraction(price.image_in))
    else:
        into = usage.input_text_tokens * Fraction(price.text_in) + usage.input_image_tokens * Fraction(price.image_in)
    image_out = usage.output_tokens - text_out if usage.output_image_tokens is None else usage.output_image_tokens
    out = image_out * Fraction(price.image_out) + text_out * Fraction(price.text_out or 0)
    return MicroUSD(floor(into + out + Fraction(1, 2)))


def _image_tokens(price: _Price, request: ImageRequest) -> tuple[Fraction, Fraction] | None:
    """Least and most for one picture, over everything that `auto` leaves open."""
    qualities = tuple(price.factors) or tuple(price.tokens)
    wanted = qualities if request.quality == "auto" else (request.quality,)
    sizes = table().sizes_when_auto if request.size == "auto" else (request.size,)
    found = [_tokens(price, size, quality) for size in sizes for quality in wanted]
    known = [tokens for tokens in found if tokens is not None]
    if not known or (len(known) < len(found) and request.size != "auto"):
        return None
    return min(low for low, _ in known), Fraction(max(ceil(high) for _, high in known))


def _tokens(price: _Price, size: str, quality: str) -> tuple[Fraction, Fraction] | None:
    by_size: Mapping[str, int] = price.tokens.get(quality, {})
    if size in by_size:
        return Fraction(by_size[size]), Fraction(by_size[size])
    shape = price.factors.get(quality)
    if shape is None:
        return None
    edges = _SIZE.fullmatch(size)
    if edges is None:
        return None
    tokens = _formula(shape.factor, int(edges[1]), int(edges[2]))
    return tokens * Fraction(shape.times[0]), tokens * Fraction(shape.times[1])


def _input_tokens(price: _Price, request: ImageRequest) -> tuple[int, int] | None:
    """Least and most for all sources of one picture, as far as they are billed."""
    if not request.sources:
        return 0, 0
    rule = price.inputs
    if rule is None:
        return None
    least = [_tokens_of_input(rule, source.width, source.height, request.input_fidelity) for source in request.sources]
    if isinstance(rule, _Patches):
        return sum(least), rule.patches_max * (len(least) + (request.mask is not None) + (request.markup is not None))
    return sum(least), sum(least) + (least[0] if request.mask is not None else 0)


def _tokens_of_input(rule: _Patches | _Tiles, width: int, height: int, fidelity: str | None) -> int:
    if isinstance(rule, _Patches):
        times = max(Fraction(1), min(Fraction(rule.magnified_max), Fraction(rule.magnified_below_px, max(width, height))))
        return min(rule.patches_max, ceil(width * times / rule.patch_px) * ceil(height * times / rule.patch_px))
    short, long = sorted((width, height))
    tokens = rule.base_tokens + rule.tile_tokens * ceil(Fraction(long, short))
    if fidelity == "high":
        tokens += rule.high_fidelity_square_tokens if short == long else rule.high_fidelity_oblong_tokens
    return tokens


def _formula(factor: int, width: int, height: int) -> int:
    formula = table().formula
    short, long = sorted((width, height))
    second = floor(Fraction(factor * short, long) + Fraction(1, 2))
    return ceil(Fraction(factor * second * (formula.pixels_offset + width * height), formula.divisor))
