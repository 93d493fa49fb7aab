"""Ready requests: exact calls, the price before more than one picture, and a sentence for what cannot be drawn."""

import json
import re
from datetime import date
from typing import Any

import msgspec
import pytest

from daemon import arguments, prompts
from daemon.errors import Refused
from daemon.prompts import PROMPTS, Situation
from tools import pricing

TODAY = date(2026, 11, 22)
PAYING = Situation(model="gpt-image-2.5-flare", offline=False, today=TODAY)
OFFLINE = PAYING._replace(offline=True)


def calls(text: str) -> list[dict[str, Any]]:
    return [json.loads(found) for found in re.findall(r"(\{.*\})", text)]


def test_every_prompt_and_argument_says_what_it_is() -> None:
    assert set(PROMPTS) == {"generate", "edit", "restyle", "compare_variants"}
    for prompt in PROMPTS.values():
        assert prompt.title and prompt.description
        assert all(argument.title and argument.description for argument in prompt.arguments)


def test_generate_names_the_tool_and_exactly_its_arguments() -> None:
    text = prompts.message("generate", {"subject": ' a "fox"\n猫 ', "style": "ink", "size": "1536x1024"}, PAYING)
    assert "`generate_image` once" in text and "absolute path" in text and "`wait_for_job`" in text
    (call,) = calls(text)
    assert call == {"prompt": 'a "fox"\n猫\nStyle: ink', "size": "1536x1024"}
    arguments.parse("generate_image", call, arguments.GenerateImage)
    (plain,) = calls(prompts.message("generate", {"subject": "a fox", "style": " ", "size": ""}, PAYING))
    assert plain == {"prompt": "a fox"}


@pytest.mark.parametrize(
    ("name", "words", "tool"),
    [("edit", {"change": "a red hat"}, "edit_image"), ("restyle", {"style": "woodblock print"}, "transform_image")],
)
@pytest.mark.parametrize("picture", ["/p/fox.png", "01a20000-0000-7000-8000-000000000001", "imaged://image/x/2"])
def test_a_picture_is_changed_by_the_tool_for_it(name: str, words: dict[str, str], tool: str, picture: str) -> None:
    text = prompts.message(name, {"picture": picture, **words}, PAYING)
    assert f"`{tool}` once" in text and "absolute path" in text
    (call,) = calls(text)
    assert set(call) == {"reference_images", "prompt"} and call["reference_images"] == [picture]
    assert next(iter(words.values())) in call["prompt"]


def test_variants_begin_with_their_price_and_name_every_call() -> None:
    text = prompts.message("compare_variants", {"subject": "a fox", "models": "gpt-image-2,gpt-image-2.6-flare,"}, PAYING)
    requests = calls(text)
    assert [request["model"] for request in requests] == ["gpt-image-2", "gpt-image-2.6-flare"]
    assert {request["quality"] for request in requests} == {"medium"}
    for request in requests:
        arguments.parse("generate_image", {"prompt": "a fox", **request}, arguments.GenerateImage)
    price = re.search(r"tell me the price: \$([0-9.]+) to \$([0-9.]+) for all 2 together", text)
    assert price is not None and text.index("the price") < text.index("`generate_image`")
    each = [
        pricing.estimate(msgspec.convert({"tool": "generate_image", **request}, prompts.ImageRequest), "a fox")
        for request in requests
    ]
    assert round(float(price[2]) * 1_000_000, -2) == round(sum(cost.high or 0 for cost in each), -2)
    assert "Go on only when I agree" in text and '"a fox"' in text


def test_one_model_is_compared_with_itself_in_several_qualities() -> None:
    requests = calls(prompts.message("compare_variants", {"subject": "a fox"}, PAYING))
    assert [(r["model"], r["quality"]) for r in requests] == [(PAYING.model, q) for q in ("low", "medium", "high")]
    several = calls(
        prompts.message("compare_variants", {"subject": "x", "models": "gpt-image-2", "qualities": "high, low"}, PAYING)
    )
    assert [(r["model"], r["quality"]) for r in several] == [("gpt-image-2", "high"), ("gpt-image-2", "low")]


def test_a_price_that_is_not_known_is_said_as_unknown() -> None:
    text = prompts.message("compare_variants", {"subject": "x", "models": "gpt-image-2, tomorrow", "qualities": "low"}, PAYING)
    assert "for 1 of them; what the others cost is not known" in text
    assert "tomorrow is not in the catalogue" in text
    text = prompts.message("compare_variants", {"subject": "x", "models": "tomorrow, after"}, PAYING)
    assert "nobody can say what they cost" in text


def test_offline_nobody_is_frightened_with_a_price() -> None:
    text = prompts.message("compare_variants", {"subject": "x"}, OFFLINE)
    assert "nothing is charged" in text and "OpenAI account" not in text


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("paint", {}, 'There is no prompt "paint"; there are generate, edit'),
        ("generate", {}, "generate needs the argument subject. What the picture shows"),
        ("generate", {"subject": "  "}, "needs the argument subject"),
        ("edit", {"picture": "/p.png"}, "edit needs the argument change"),
        ("edit", {"change": "x"}, "edit needs the argument picture"),
        ("restyle", {"picture": "/p.png"}, "restyle needs the argument style"),
        ("generate", {"subject": "x", "colour\x1b": "red"}, 'generate has no argument "colour\\u{1b}"; it takes subject, style'),
        ("generate", {"subject": "x", "size": "10x10"}, "nearest possible size is"),
        ("generate", {"subject": "x" * 32_001}, "at most 32,000 are allowed"),
        ("compare_variants", {"subject": "x", "models": "dall-e-3, gpt-image-2"}, "was shut down by OpenAI"),
        (
            "compare_variants",
            {"subject": "x", "models": "gpt-image-2", "qualities": "low, max"},
            "gpt-image-2 has no quality max",
        ),
        ("compare_variants", {"subject": "x", "models": "gpt-image-2", "qualities": "low"}, "nothing to compare"),
        ("compare_variants", {"subject": "x", "models": ",".join("abcdefghijk")}, "would draw 11 pictures; at most 10"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(name: str, given: dict[str, str], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        prompts.message(name, given, PAYING)
    assert sentence in str(refused.value)
