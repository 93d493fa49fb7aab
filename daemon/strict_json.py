"""JSON from outside, read more strictly than any decoder does: what two readers could understand differently is refused.

Refused are duplicate names, NaN and infinities (also as numbers too large for a double), halves of surrogate pairs,
anything but UTF-8, and values nested deeper than `DEPTH_MAX`.
"""

import json
import math
from typing import Any, NoReturn

DEPTH_MAX = 32


class NotStrict(Exception):
    """A sentence that says what is wrong, without a value: it may be a secret."""


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object; nothing at all is an empty one. Takes a while for megabytes.

    Raises:
        NotStrict
    """
    if not data.strip():
        return {}
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise NotStrict("The JSON is not UTF-8; encode it as such.") from None
    except json.JSONDecodeError as exc:
        raise NotStrict(f"This is not JSON: {exc.msg} at character {exc.pos}.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise NotStrict("The JSON has a number with thousands of digits; write a shorter one.") from None
    if not isinstance(value, dict):
        raise NotStrict("The JSON is not an object; put the arguments into { }.")
    _insist(value)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotStrict("The JSON has an object with the same name twice; write each name once.")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise NotStrict(f"The JSON contains {name}, which is no number; leave it out.")


def _insist(root: dict[str, Any]) -> None:
    """Level by level, so that depth costs no stack."""
    level: list[dict[str, Any] | list[Any]] = [root]
    for _ in range(DEPTH_MAX):
        inside = [value for one in level for value in (one if isinstance(one, list) else (*one, *one.values()))]
        for value in inside:
            _insist_on_scalar(value)
        level = [value for value in inside if isinstance(value, dict | list)]
    if level:
        raise _too_deep()


def _insist_on_scalar(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise NotStrict("The JSON has a number that is too large; write a smaller one.")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotStrict("The JSON has a text with half of a surrogate pair; send it as valid Unicode.") from None


def _too_deep() -> NotStrict:
    return NotStrict(f"The JSON is nested deeper than {DEPTH_MAX} levels; flatten it.")
