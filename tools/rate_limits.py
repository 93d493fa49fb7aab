"""What OpenAI's headers say about the room that is left under its limits.

`x-ratelimit-remaining-KIND` and `x-ratelimit-reset-KIND`, the latter like 1s, 6m0s, 12ms or 1h2m3.5s. Documented for
requests and tokens; those for images were seen by others only, and are read where they come. Source: OpenAI's guide on
rate limits, 2026-11.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("requests", "tokens", "images", "input-images")
RESET_SECONDS_MAX = 86_400.0
_PART = re.compile(r"(\d{1,7}(?:\.\d{1,9})?)(ms|h|m|s|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Exhausted(NamedTuple):
    """Nothing is left of this limit for so long."""

    kind: str
    seconds: float


def exhausted(headers: Mapping[str, str]) -> Exhausted | None:
    """The one that lasts longest, None if there is room or nobody says. Header names are lower case."""
    found = []
    for kind in KINDS:
        remaining = headers.get(f"x-ratelimit-remaining-{kind}", "").strip()
        seconds = _seconds(headers.get(f"x-ratelimit-reset-{kind}", "").strip())
        if remaining.isdecimal() and int(remaining[:20]) == 0 and seconds:
            found.append(Exhausted(kind, min(seconds, RESET_SECONDS_MAX)))
    return max(found, key=lambda one: one.seconds, default=None)


def _seconds(text: str) -> float:
    """0 for what cannot be read."""
    parts = _PART.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        return 0.0
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
