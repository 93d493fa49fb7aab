"""Moments and days as people say them: "last week", 昨日, 2026-11-22T09:30.

Rule: what is said means the user's own clock unless it names another; what is asked of the daemon is UTC. A day, week,
month or year without a time of day begins with its first midnight, and weeks on Mondays; what is counted back ("2 weeks
ago") begins with the midnight of that day. ISO forms need no library; the rest is dateparser's, which is
imported only then, because that takes as long as the whole command otherwise.
"""

import re
from datetime import UTC, date, datetime, time, timedelta

from daemon.errors import Refused
from eventlog.values import Position

LANGUAGES = ("en", "ja")
NOTHING_SHORTER = 3  # ASCII characters; "a" and "5" would be months
EXAMPLES = '"2 hours ago", yesterday, "last week", 2026-11-22, 2026-11-22T09:30 or 2026-11-22T09:30Z'

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_COUNTED = re.compile(r"\bago\b|前")


def moment(option: str, text: str, now: datetime | None = None) -> datetime:
    """In UTC. `now` is local time without a zone.

    Raises:
        Refused: it cannot be read.
    """
    text = text.strip()
    try:
        said = _iso(text) or _spoken(text, now or datetime.now().astimezone().replace(tzinfo=None))
        if said is not None:
            return said.astimezone(UTC)
    except (OverflowError, OSError):  # before or after all that clocks count
        pass
    raise _no(option, text, f"give a moment such as {EXAMPLES}")


def day(option: str, text: str, now: datetime | None = None) -> str:
    """YYYY-MM-DD: the day that was named, which the daemon takes as a UTC day.

    Raises:
        Refused: it cannot be read.
    """
    if _DATE.fullmatch(text):
        return text
    found: date = moment(option, text, now).astimezone().date()
    return found.isoformat()


def position_or_moment(option: str, text: str) -> Position | datetime:
    """
    Raises:
        Refused: it is neither.
    """
    if text.isascii() and text.isdigit():
        return Position(int(text))
    try:
        return moment(option, text)
    except Refused:
        raise _no(option, text, f"give the position of a commit, or a moment such as {EXAMPLES}") from None


def utc(at: datetime) -> str:
    """As the operations take it."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def local(text: str) -> str:
    """What an answer says in UTC, for people at this clock; as in `ls -l`, the year in place of the hour if it is another."""
    at = datetime.fromisoformat(text).astimezone()
    this_year = datetime.now(UTC).astimezone().year
    return at.strftime("%m-%d %H:%M" if at.year == this_year else "%Y-%m-%d")


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _spoken(text: str, now: datetime) -> datetime | None:
    if text.isascii() and len(text) < NOTHING_SHORTER:
        return None
    if (date_first := _DATE.match(text)) and _iso(date_first[0]) is None:  # a 13th month would be taken for a day
        return None
    from dateparser.date import DateDataParser  # type: ignore[import-untyped]

    settings = {"PREFER_DATES_FROM": "past", "RELATIVE_BASE": now, "RETURN_TIME_AS_PERIOD": True}
    found = DateDataParser(languages=list(LANGUAGES), settings=settings).get_date_data(text)
    said: datetime | None = found.date_obj
    if said is None or found.period == "time" or said.time() not in (now.time(), time.min):
        return said
    first = said.replace(hour=0, minute=0, second=0, microsecond=0)
    match "day" if _COUNTED.search(text) else found.period:
        case "week":
            return first - timedelta(days=first.weekday())
        case "month":
            return first.replace(day=1)
        case "year":
            return first.replace(month=1, day=1)
        case _:
            return first


def _no(option: str, text: str, allowed: str) -> Refused:
    sentence = f"{option} is {text[:40]!r}; {allowed}."
    return Refused(sentence, code="bad_arguments", argument=option.removeprefix("--"))
