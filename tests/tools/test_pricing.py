"""Money: every published figure is reproduced, bounds hold, and unknown is never zero."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.values import CostRange, ImageRequest, MicroUSD, Picture, Sha256, Usage
from tools import pricing
from tools.models import catalogue
from tools.pricing import breakdown, cost, estimate, input_tokens, output_tokens, show, show_range, table

SIZES = ("1024x1024", "1536x1024", "2048x2048", "2560x1440", "3840x2160")
PUBLISHED = {
    ("gpt-image-2", "low"): (196, 158, 397, 205, 371),
    ("gpt-image-2.5-flare", "low"): (196, 158, 397, 205, 371),
    ("gpt-image-2.5-flare", "medium"): (439, 343, 892, 478, 865),
    ("gpt-image-2", "medium"): (1756, 1372, 3568, 1843, 3336),
    ("gpt-image-2.6-flare", "high"): (1756, 1372, 3568, 1843, 3336),
    ("gpt-image-2.5-sunburst", "xhigh"): (3122, 2459, 6343, 3276, 5930),
    ("gpt-image-2", "high"): (7024, 5488, 14272, 7370, 13342),
    ("gpt-image-2.6-sunburst", "max"): (7024, 5488, 14272, 7370, 13342),
}
RANGES_26 = {  # USD, as measured
    "low": ((0.018, 0.026), (0.014, 0.021), (0.036, 0.054), (0.018, 0.028), (0.033, 0.050)),
    "medium": ((0.040, 0.059), (0.031, 0.046), (0.080, 0.120), (0.043, 0.065), (0.078, 0.117)),
}


def order(**changes: object) -> ImageRequest:
    given: dict[str, object] = {"tool": "generate_image", "model": "gpt-image-2", **changes}
    return ImageRequest(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "quality"), PUBLISHED)
def test_the_formula_gives_every_published_token_count(model: str, quality: str) -> None:
    assert tuple(output_tokens(model, size, quality) for size in SIZES) == PUBLISHED[model, quality]


@pytest.mark.parametrize("quality", RANGES_26)
def test_ranges_that_were_measured_lie_within_ours(quality: str) -> None:
    for size, (low, high) in zip(SIZES, RANGES_26[quality], strict=True):
        ours = estimate(order(model="gpt-image-2.6-flare", size=size, quality=quality), "x")
        assert ours.low is not None and ours.high is not None
        assert ours.low <= round(low * 1_000_000) + 500 and ours.high >= round(high * 1_000_000) - 500


@pytest.mark.parametrize(
    ("quality", "tokens"), [("low", (272, 400, 408)), ("medium", (1056, 1568, 1584)), ("high", (4160, 6208, 6240))]
)
def test_older_models_have_a_table(quality: str, tokens: tuple[int, ...]) -> None:
    found = tuple(output_tokens("gpt-image-1.5", size, quality) for size in ("1024x1024", "1536x1024", "1024x1536"))
    assert found == tokens


def test_an_estimate_is_for_all_pictures_of_the_request() -> None:
    one = estimate(order(size="1024x1024", quality="high"), "x")
    ten = estimate(order(size="1024x1024", quality="high", count=10), "x")
    assert one.low is not None and ten.low is not None
    assert ten.low >= 10 * 7024 * 30 > 9 * one.low


def test_auto_is_bounded_by_the_dearest_there_is() -> None:
    open_ = estimate(order(), "x")
    assert open_.high is not None
    for size in ("1024x1024", "1536x1024", "2048x2048"):
        for quality in ("low", "medium", "high"):
            named = estimate(order(size=size, quality=quality), "x")
            assert named.high is not None and named.high <= open_.high


@given(st.text(max_size=200))
def test_the_upper_bound_covers_a_token_for_every_byte_of_the_prompt(prompt: str) -> None:
    request = order(size="1024x1024", quality="low")
    bare, bound = estimate(request, ""), estimate(request, prompt)
    assert bare.high is not None and bound.high is not None
    assert bound.high - bare.high >= 5 * len(prompt.encode())


def test_the_prompt_is_bounded_as_if_each_picture_were_billed_for_it() -> None:
    one, ten = (estimate(order(size="1024x1024", quality="low", count=n), "x" * 1000) for n in (1, 10))
    assert one.high is not None and ten.high == 10 * one.high


def test_a_cost_never_exceeds_the_upper_end_of_its_estimate() -> None:
    prompt = "雨の京都 🦊" * 100
    bound = estimate(order(size="1536x1024", quality="high", count=3), prompt).high
    told = usage(input_tokens=6 + len(prompt), output_tokens=3 * 5488, input_text_tokens=6 + len(prompt), input_image_tokens=0)
    real = cost("gpt-image-2", told, backend="openai").amount
    assert real is not None and bound is not None and 0 < real <= bound


@pytest.mark.parametrize(
    "changes", [{"model": "gpt-image-9"}, {"size": "big", "quality": "low"}, {"quality": "ultra", "size": "1024x1024"}]
)
def test_without_a_price_the_estimate_is_unknown_not_zero(changes: dict[str, object]) -> None:
    found = estimate(order(**changes), "x")
    assert (found.low, found.high) == (None, None)
    assert "unknown" in show_range(found)


def test_a_fraction_of_a_micro_dollar_is_rounded_up_in_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "prices.json"
    odd.write_text(pricing.DATA.read_text("utf-8").replace('"30.00"', '"30.00001"'), "utf-8")
    monkeypatch.setattr(pricing, "DATA", odd)
    table.cache_clear()
    try:
        found = estimate(order(size="1024x1024", quality="high"), "")
    finally:
        table.cache_clear()
    assert (found.low, found.high) == (7024 * 30 + 6 * 5, 7024 * 30 + 6 * 5 + 1)


def usage(**changes: int | None) -> Usage:
    return Usage(**{"input_tokens": 50, "output_tokens": 1756, "total_tokens": 1806, **changes})  # type: ignore[arg-type]


def test_a_cost_is_each_kind_of_token_at_its_own_rate() -> None:
    found = cost("gpt-image-2", usage(input_text_tokens=10, input_image_tokens=40, output_image_tokens=1756), backend="openai")
    assert (found.amount, found.basis) == (10 * 5 + 40 * 8 + 1756 * 30, "usage")


def test_tokens_of_an_unknown_kind_count_at_the_dearer_rate() -> None:
    assert cost("gpt-image-2", usage(), backend="openai").amount == 50 * 8 + 1756 * 30


def test_a_rate_below_a_micro_dollar_is_rounded_once_at_the_end() -> None:
    few = usage(input_tokens=3, output_tokens=0, input_text_tokens=0, input_image_tokens=3)
    assert cost("gpt-image-1-mini", few, backend="openai").amount == 8  # 7.5 micro-dollars


def test_text_output_without_a_rate_makes_the_cost_unknown() -> None:
    found = cost("gpt-image-2", usage(output_text_tokens=1), backend="openai")
    assert (found.amount, found.basis) == (None, "unknown")
    assert cost("gpt-image-1.5", usage(output_text_tokens=1), backend="openai").amount is not None


def test_without_usage_or_price_the_cost_is_unknown() -> None:
    assert cost("gpt-image-2", None, backend="openai").basis == "unknown"
    assert cost("gpt-image-9", usage(), backend="openai").amount is None


def test_offline_costs_nothing_and_says_what_it_would_be() -> None:
    found = cost("gpt-image-2", usage(), backend="offline")
    assert (found.amount, found.basis, found.would_be) == (0, "offline", 50 * 8 + 1756 * 30)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(None, "unknown"), (0, "$0.0000"), (7, "$0.000007"), (99, "$0.000099"), (149, "$0.0001"), (52_680, "$0.0527"),
     (999_950, "$1.0000"), (1_234_567, "$1.2346"), (12_000_000, "$12.0000")],
)  # fmt: skip
def test_money_is_shown_without_lying(amount: int | None, text: str) -> None:
    assert show(None if amount is None else MicroUSD(amount)) == text


def test_a_range_shows_both_ends() -> None:
    assert show_range(CostRange(low=MicroUSD(100), high=MicroUSD(20_000), table="t")) == "$0.0001 to $0.0200"


def test_every_price_has_a_date_and_a_source_and_every_living_model_a_price() -> None:
    assert all(price.source and price.confidence for price in table().models)
    priced = {price.name for price in table().models}
    assert set(catalogue().usable_names(date(2026, 11, 22))) <= priced
    assert table().age_days(date(2026, 11, 25)) == 3
    assert not table().is_stale(date(2027, 2, 20)) and table().is_stale(date(2027, 2, 21))


def source(width: int, height: int) -> Picture:
    return Picture(sha256=Sha256("ab" * 32), size_bytes=9, width=width, height=height, format="png")


@pytest.mark.parametrize(
    ("model", "size", "fidelity", "tokens"),
    [
        ("gpt-image-2", (512, 512), None, 1024),
        ("gpt-image-2.6-flare", (1024, 1024), None, 1024),
        ("gpt-image-2.5-flare", (1536, 1024), None, 1536),
        ("gpt-image-2", (3840, 2160), None, 1536),
        ("gpt-image-2", (16, 16), None, 1),
        ("gpt-image-1.5", (1024, 1024), None, 194),
        ("gpt-image-1.5", (1024, 1024), "high", 194 + 4160),
        ("gpt-image-1.5", (1536, 1024), "high", 65 + 2 * 129 + 6240),
        ("gpt-image-1-mini", (1024, 1024), "low", 194),
    ],
)
def test_source_pictures_cost_the_published_tokens(model: str, size: tuple[int, int], fidelity: str | None, tokens: int) -> None:
    assert input_tokens(model, *size, fidelity) == tokens


def test_the_sources_of_an_edit_are_in_its_estimate_once_at_least_and_for_each_picture_at_most() -> None:
    plain = order(size="1024x1024", quality="low", count=3)
    edited = order(
        tool="edit_image", size="1024x1024", quality="low", count=3, sources=(source(1024, 1024),), mask=source(1024, 1024)
    )
    without, with_sources = estimate(plain, "x"), estimate(edited, "x")
    assert without.low is not None and with_sources.low == without.low + 1024 * 8
    assert without.high is not None and with_sources.high == without.high + 3 * 2 * 1536 * 8


def test_sources_of_a_model_without_a_price_make_the_estimate_unknown() -> None:
    assert estimate(order(tool="edit_image", model="gpt-image-9", sources=(source(9, 9),)), "x").high is None
    assert input_tokens("gpt-image-9", 9, 9, None) is None


def test_the_lines_of_a_bill_add_up_to_its_sum() -> None:
    usage = Usage(input_tokens=1034, output_tokens=1756, total_tokens=2790, input_text_tokens=10, input_image_tokens=1024)
    lines = breakdown("gpt-image-2", usage)
    assert [(line.kind, line.tokens, line.amount) for line in lines] == [
        ("text in", 10, 50),
        ("image in", 1024, 8192),
        ("image out", 1756, 52680),
    ]
    assert sum(line.amount for line in lines) == cost("gpt-image-2", usage, backend="openai").amount


def test_there_is_no_bill_without_every_rate_and_every_count() -> None:
    silent = Usage(input_tokens=1, output_tokens=2, total_tokens=3)
    assert breakdown("gpt-image-2", silent) == breakdown("gpt-image-2", None) == ()
    known = Usage(input_tokens=1, output_tokens=2, total_tokens=3, input_text_tokens=1, input_image_tokens=0)
    assert breakdown("gpt-image-9", known) == ()
    assert (
        breakdown(
            "gpt-image-2.6-flare", Usage(**{**{f: getattr(known, f) for f in known.__struct_fields__}, "output_text_tokens": 1})
        )
        == ()
    )


@pytest.mark.parametrize("kind", ["gif", "svg"])
def test_what_is_billed_by_unpublished_figures_has_no_estimate(kind: str) -> None:
    assert estimate(order(model="gpt-image-2.6-flare", output_format=kind), "x").high is None
