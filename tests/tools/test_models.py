"""The catalogue: what each model takes, until when, and what a refusal says."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import DEFAULT_MODEL
from eventlog.values import ImageRequest, Picture, Sha256
from tools.errors import Refused
from tools.models import catalogue, check, nearest_size

TODAY = date(2026, 11, 22)


def order(**changes: object) -> ImageRequest:
    given: dict[str, object] = {"tool": "generate_image", "model": "gpt-image-2", **changes}
    return ImageRequest(**given)  # type: ignore[arg-type]


def refusal(today: date = TODAY, prompt: str = "x", **changes: object) -> Refused:
    with pytest.raises(Refused) as caught:
        check(order(**changes), prompt, today)
    return caught.value


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-2", "dall-e-3"])
def test_a_retired_model_is_refused_with_its_replacement(model: str) -> None:
    said = refusal(model=model)
    assert said.code == "model_retired" and "gpt-image-2.6-flare" in str(said) and said.argument == "model"


@pytest.mark.parametrize("model", ["gpt-image-1.5", "gpt-image-1.5-2025-12-16", "gpt-image-1-mini", "chatgpt-image-latest"])
def test_the_day_decides_about_models_that_are_about_to_go(model: str) -> None:
    (warning,) = check(order(model=model), "x", date(2026, 11, 30))
    assert "2026-12-01" in warning
    assert refusal(date(2026, 12, 1), model=model).code == "model_retired"


def test_an_unknown_model_is_passed_on_with_a_warning() -> None:
    (warning,) = check(order(model="gpt-image-9", quality="ultra", size="640x480"), "x", TODAY)
    assert "gpt-image-9" in warning and str(catalogue().as_of) in warning


def test_the_default_model_is_in_the_catalogue_and_stays() -> None:
    model = catalogue().find(DEFAULT_MODEL)
    assert model is not None and model.gone_from is None
    assert catalogue().default == DEFAULT_MODEL


@pytest.mark.parametrize("size", ["1024x1024", "1024x640", "3840x2160", "2160x3840", "2880x2880", "480x1440", "auto"])
def test_sizes_within_the_rule_are_allowed(size: str) -> None:
    check(order(size=size), "x", TODAY)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ("1000x1000", "multiples of 16"),
        ("3856x1280", "at most 3840"),
        ("464x1440", "3 times"),
        ("1024x576", "655,360"),
        ("2896x2896", "8,294,400"),
        ("big", "WIDTHxHEIGHT"),
        ("0x16", "WIDTHxHEIGHT"),
        ("１０２４x1024", "WIDTHxHEIGHT"),
        ("01024x1024", "WIDTHxHEIGHT"),
        ("1024X1024", "WIDTHxHEIGHT"),
        ("9" * 5000 + "x16", "WIDTHxHEIGHT"),
    ],
)
def test_sizes_outside_the_rule_are_refused_with_the_reason(size: str, why: str) -> None:
    said = refusal(size=size)
    assert why in str(said) and said.argument == "size" and said.code == "unsupported_size"
    assert len(str(said)) < 250 and str(said).isprintable()


def test_a_size_of_a_model_with_fixed_sizes_is_refused_with_the_nearest() -> None:
    assert "1536x1024" in str(refusal(model="gpt-image-1.5", size="2048x1152"))


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_the_nearest_size_is_always_allowed(width: int, height: int) -> None:
    model = catalogue().find("gpt-image-2")
    assert model is not None
    check(order(size=nearest_size(model, width, height)), "x", TODAY)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"quality": "max"}, "unsupported_quality"),
        ({"model": "gpt-image-1.5", "output_format": "gif"}, "unsupported_format"),
        ({"output_format": "bmp"}, "bad_arguments"),
        ({"background": "pink"}, "bad_arguments"),
        ({"moderation": "off"}, "bad_arguments"),
        ({"model": ""}, "bad_arguments"),
        ({"model": "gpt\n\u202e"}, "bad_arguments"),
        ({"output_format": "svg", "count": 2}, "bad_arguments"),
        ({"background": "transparent", "output_format": "jpeg"}, "bad_arguments"),
        ({"output_compression": 50}, "bad_arguments"),
        ({"output_compression": 101, "output_format": "webp"}, "bad_arguments"),
        ({"count": 11}, "bad_arguments"),
        ({"count": 0}, "bad_arguments"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_any_call(changes: dict[str, object], code: str) -> None:
    assert refusal(**changes).code == code


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 32_001, "half \ud83e a fox"])
def test_a_prompt_that_the_api_would_refuse_is_refused_here(prompt: str) -> None:
    assert refusal(prompt=prompt).argument == "prompt"


def test_what_is_not_known_is_passed_on_with_a_warning_and_never_claimed() -> None:
    (warning,) = check(order(output_format="gif"), "x", TODAY)
    assert "gif" in warning and "not known" in warning
    warnings = check(order(model="chatgpt-image-latest", background="transparent"), "x", TODAY)
    assert any("transparent" in warning and "not known" in warning for warning in warnings)


def test_previews_and_experimental_sizes_are_named() -> None:
    (warning,) = check(order(background="transparent"), "x", TODAY)
    assert "preview" in warning
    (warning,) = check(order(model="gpt-image-2.6-flare", output_format="svg"), "x", TODAY)
    assert "preview" in warning
    (warning,) = check(order(size="3840x2160"), "x", TODAY)
    assert "experimental" in warning
    assert check(order(size="2560x1440"), "x", TODAY) == ()


def test_auto_is_allowed_for_every_living_model() -> None:
    for name in catalogue().usable_names(TODAY):
        check(order(model=name, size="auto", quality="auto"), "x", TODAY)


def test_a_model_knows_what_to_offer() -> None:
    living = [catalogue().find(name) for name in catalogue().usable_names(TODAY)]
    for model in living:
        assert model is not None and model.dearest_quality == model.qualities[-1]
        assert catalogue().sizes(model)
        for size in catalogue().sizes(model):
            check(order(model=model.name, size=size, quality=model.dearest_quality), "x", TODAY)


def test_replacements_are_alive_after_what_they_replace() -> None:
    for model in catalogue().models:
        if model.gone_from:
            assert model.replacement in catalogue().usable_names(model.gone_from)


def test_every_entry_names_its_source() -> None:
    assert all(model.source for model in catalogue().models)
    assert all(model.replacement for model in catalogue().models if model.gone_from)


SOURCE = Picture(sha256=Sha256("ab" * 32), size_bytes=9, width=1024, height=1024, format="png")


def edit(**changes: object) -> dict[str, object]:
    return {"tool": "edit_image", "sources": (SOURCE,), **changes}


def test_an_edit_without_a_picture_is_refused() -> None:
    for tool in ("edit_image", "transform_image"):
        said = refusal(tool=tool)
        assert said.argument == "reference_image_path" and tool in str(said)


def test_no_more_references_than_the_api_takes() -> None:
    check(order(**edit(sources=(SOURCE,) * 16)), "x", TODAY)
    assert "17 reference images" in str(refusal(**edit(sources=(SOURCE,) * 17)))


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst"])
def test_input_fidelity_is_refused_with_the_reason_where_the_model_refuses_it(model: str) -> None:
    said = refusal(**edit(model=model, input_fidelity="high"))
    assert (said.code, said.argument) == ("unsupported_input_fidelity", "input_fidelity")
    assert model in str(said) and "leave it out" in str(said)


def test_input_fidelity_is_sent_where_the_model_takes_it() -> None:
    check(order(**edit(model="gpt-image-1.5", input_fidelity="high")), "x", TODAY)
    assert "low only" in str(refusal(**edit(model="gpt-image-1-mini", input_fidelity="high")))
    (_, warning) = check(order(**edit(model="chatgpt-image-latest", input_fidelity="high")), "x", TODAY)
    assert "not known" in warning


def test_a_markup_is_refused_where_the_model_takes_none_and_beside_a_mask() -> None:
    check(order(**edit(model="gpt-image-2.6-flare", markup=SOURCE)), "x", TODAY)
    (warning,) = check(order(**edit(model="gpt-image-2", markup=SOURCE)), "x", TODAY)
    assert "not known" in warning
    said = refusal(**edit(model="gpt-image-1.5", markup=SOURCE))
    assert said.code == "unsupported_markup" and "gpt-image-2.6-flare" in str(said)
    assert "one of them" in str(refusal(**edit(model="gpt-image-2.6-flare", markup=SOURCE, mask=SOURCE)))


def test_a_gif_takes_no_mask() -> None:
    said = refusal(**edit(model="gpt-image-2.6-flare", mask=SOURCE, output_format="gif"))
    assert said.argument == "output_format"
