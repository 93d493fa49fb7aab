"""What it means when OpenAI says no, or nothing: every failure by its code, and whether it may have been billed.

Rule: decided by HTTP status and OpenAI's own code, then type; by the message only where there is nothing else.
What cannot be told apart counts as possibly billed. Source of codes and classes: OpenAI's error guide and
openai-python 3.54.0, with measurements of third parties (2026-11).
"""

import email.utils
import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

import msgspec

from eventlog.values import Billed, Usage

MESSAGE_CHARACTERS_MAX = 500
RETRY_AFTER_SECONDS_MAX = 86_400.0  # whoever asks for more is not waited for anyway
CATEGORIES_MAX = 10

Retry = Literal["never", "later"]

NEXT_STEPS: Mapping[str, str] = {
    "invalid_key": "Check OPENAI_API_KEY in the client's configuration and restart the client.",
    "org_unverified": "Verify the organization at platform.openai.com (settings, general); it takes up to 15 minutes.",
    "not_permitted": "Check that the key's project may use this model from your country.",
    "moderation_blocked": "OpenAI's safety system refused it; change the prompt.",
    "rate_limited": "OpenAI asked to slow down for longer than we waited; try again in a few minutes.",
    "quota_exhausted": "Add credit or raise the limit at platform.openai.com/settings/organization/billing.",
    "model_unavailable": "This key cannot use the model; choose another one or another project.",
    "bad_request": "Change what OpenAI names and ask again.",
    "server_error": "OpenAI had trouble; try again later.",
    "not_sent": "Nothing was sent and nothing charged; check the network and OPENAI_BASE_URL, then ask again.",
    "outcome_unknown": (
        "Look at your OpenAI usage page before you ask again: retry_job draws it once more, and may be paid twice; the "
        "command imaged jobs resolve records what the bill says."
    ),
    "bad_reply": "OpenAI answered with something else than the picture; its bytes are kept in the store.",
    "not_stored": "Free some space on the disk of IMAGED_HOME before the next picture.",
    "source_gone": "Ask again with the picture as a file.",
    "not_saved": "Nothing is lost: retry_job puts it in its place, or under another output_path, and costs nothing.",
}
_BILLING = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
}
_MODERATION = {"moderation_blocked", "content_policy_violation"}
_KEY = re.compile(r"\b(sk-|Bearer )[A-Za-z0-9_*.+/=-]{8,}")
_SURELY_OPENAI = {500, 503}  # with OpenAI's own JSON error; 502, 504 and 52x come from gateways before it
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last: nested deeper than the decoder goes
T = TypeVar("T")
NOTHING = msgspec.Raw(b"null")


class Failure(NamedTuple):
    """`retry` later: it may be sent again without being paid twice. `kept`: bytes of a reply that may be paid for.

    `message` has at most 500 printable characters. `moderation_stage` (input, output) and `categories` are the safety
    system's, if it named any.
    """

    code: str
    message: str
    billed: Billed
    retry: Retry = "never"
    retry_after_seconds: float | None = None
    status: int | None = None
    request_id: str = ""
    kept: bytes = b""
    usage: Usage | None = None
    moderation_stage: str = ""
    categories: tuple[str, ...] = ()


class _Moderation(msgspec.Struct):
    moderation_stage: str | None = None
    categories: list[str] | None = None


class _Error(msgspec.Struct):
    message: msgspec.Raw = NOTHING
    type: msgspec.Raw = NOTHING
    param: msgspec.Raw = NOTHING
    code: msgspec.Raw = NOTHING
    moderation_details: msgspec.Raw = NOTHING


class _ErrorBody(msgspec.Struct):
    error: _Error


class _Said(NamedTuple):
    """OpenAI's error object. Empty where it says nothing."""

    message: str
    type: str
    param: str
    code: str
    moderation: _Moderation


def transport_failure(kind: Literal["not_sent", "outcome_unknown"], why: str) -> Failure:
    """For whoever carries: a request that never left, or one whose answer never came whole."""
    if kind == "not_sent":
        return Failure("not_sent", sentence(f"OpenAI could not be reached: {why}"), "no", retry="later")
    message = f"The answer did not come whole, so OpenAI may have charged for it: {why}"
    return Failure("outcome_unknown", sentence(message), "unknown")


def next_step(code: str) -> str:
    return NEXT_STEPS.get(code, "")


def printable(text: str) -> str:
    """Text from outside, bounded, without what acts on a terminal, hides from a reader, or looks like a key."""
    clean = "".join(c if c.isprintable() else " " for c in text[: 2 * MESSAGE_CHARACTERS_MAX])
    return _KEY.sub(r"\1…", clean)[: MESSAGE_CHARACTERS_MAX - 1].strip().rstrip(".")


def decoded(kind: type[T], raw: msgspec.Raw) -> T | None:
    """None for whatever is not of that kind."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE:
        return None


def _said(body: bytes | bytearray) -> _Said | None:
    """None if it is not OpenAI's JSON: a gateway's page, or an object that says nothing."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except UNREADABLE:
        return None
    message, kind, param, code = (decoded(str, raw) or "" for raw in (error.message, error.type, error.param, error.code))
    if not (message or code):
        return None
    return _Said(message, kind, param, code, decoded(_Moderation, error.moderation_details) or _Moderation())


def refused(status: int, headers: Mapping[str, str], body: bytes | bytearray) -> Failure:
    """For an answer that is no picture. Header names in lower case."""
    said = _said(body)
    if said is None:
        return _not_openai(status, headers)
    message = sentence(said.message or said.code)
    if said.code in _MODERATION:
        return _moderated(said, status)
    if 400 <= status < 500 and (said.code in _BILLING or said.type == "insufficient_quota"):
        return Failure("quota_exhausted", message, "no", status=status)
    if status == 429:
        wait = _retry_after(headers, said.message)
        return Failure("rate_limited", message, "no", retry="later", retry_after_seconds=wait, status=status)
    if status in _SURELY_OPENAI:
        wait = _retry_after(headers, "")
        return Failure("server_error", message, "no", retry="later", retry_after_seconds=wait, status=status)
    if status >= 500 or status in (200, 408):
        return Failure("outcome_unknown", message, "unknown", status=status)
    return Failure(_client_error(status, said), message, "no", status=status)


def _moderated(said: _Said, status: int) -> Failure:
    stage = printable(said.moderation.moderation_stage or "")[:40]
    categories = tuple(printable(category)[:40] for category in (said.moderation.categories or [])[:CATEGORIES_MAX])
    why = f" (at the {stage} stage)" if stage else ""
    why += f" (categories: {', '.join(categories)})" if categories else ""
    text = printable(said.message or said.code)[: max(0, MESSAGE_CHARACTERS_MAX - len(why) - 1)]
    return Failure("moderation_blocked", sentence(text + why), "no", status=status, moderation_stage=stage, categories=categories)


def _client_error(status: int, said: _Said) -> str:
    if status == 401:
        return "invalid_key"
    if status == 403:
        # There is no code for it: the word in the message is all there is.
        return "org_unverified" if "verified" in said.message.lower() else "not_permitted"
    if status == 404 or said.code == "model_not_found" or (said.param == "model" and said.code == "invalid_value"):
        return "model_unavailable"
    return "bad_request"


def _not_openai(status: int, headers: Mapping[str, str]) -> Failure:
    kind = printable(headers.get("content-type", "no content type"))
    said = sentence(f"HTTP {status} came with {kind[:80]} instead of OpenAI's JSON")
    if status == 429:
        wait = _retry_after(headers, "")
        return Failure("rate_limited", said, "no", retry="later", retry_after_seconds=wait, status=status)
    if status == 401:
        return Failure("invalid_key", said, "no", status=status)
    if 400 <= status < 500 and status != 408:
        return Failure("bad_request", said, "no", status=status)
    return Failure("outcome_unknown", said + " The picture may have been paid for.", "unknown", status=status)


def sentence(text: str) -> str:
    return printable(text) + "."


def _retry_after(headers: Mapping[str, str], message: str) -> float | None:
    """Seconds; None if nobody said. Headers first, then the hint in the message of image limits."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if seconds >= 0 and not math.isnan(seconds):
            return min(seconds, RETRY_AFTER_SECONDS_MAX)
    date = _seconds_between(headers.get("date", ""), headers.get("retry-after", ""))
    if date is not None:
        return date
    hint = re.search(r"try again in (?:(\d{1,4})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,6})?)(ms|s))?", message)
    if hint is None or not any(hint.groups()):
        return None
    hours, minutes, rest, unit = hint.groups()
    seconds = float(rest or 0) * (0.001 if unit == "ms" else 1.0) + 60.0 * int(minutes or 0) + 3600.0 * int(hours or 0)
    return min(seconds, RETRY_AFTER_SECONDS_MAX)


def _seconds_between(start: str, end: str) -> float | None:
    """Of two HTTP dates. The server's own clock says what its date means, so ours does not matter."""
    try:
        seconds = (email.utils.parsedate_to_datetime(end) - email.utils.parsedate_to_datetime(start)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), RETRY_AFTER_SECONDS_MAX)
