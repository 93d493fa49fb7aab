"""What is left under OpenAI's limits is read from headers that anybody may have written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.rate_limits import RESET_SECONDS_MAX, exhausted


def headers(kind: str, remaining: str, reset: str) -> dict[str, str]:
    return {f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1s", 1), ("6m0s", 360), ("12ms", 0.012), ("1h2m3.5s", 3723.5), ("2d", RESET_SECONDS_MAX), (" 7s ", 7)],
)
def test_a_limit_of_which_nothing_is_left_is_waited_for(reset: str, seconds: float) -> None:
    assert exhausted(headers("requests", "0", reset)) == ("requests", pytest.approx(seconds))


@pytest.mark.parametrize(
    ("remaining", "reset"),
    [("1", "6m"), ("0", ""), ("", "6m"), ("0", "soon"), ("0", "6"), ("0", "-6s"), ("0", "6m later"), ("-0", "6m"), ("0", "0s")],
)
def test_what_says_nothing_clear_is_not_waited_for(remaining: str, reset: str) -> None:
    assert exhausted(headers("images", remaining, reset)) is None


def test_the_longest_of_several_counts() -> None:
    assert exhausted(
        {**headers("requests", "0", "2s"), **headers("input-images", "0", "40s"), **headers("tokens", "9", "9m")}
    ) == (
        "input-images",
        40,
    )


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_is_too_strange(remaining: str, reset: str) -> None:
    found = exhausted(headers("requests", remaining, reset))
    assert found is None or 0 < found.seconds <= RESET_SECONDS_MAX
