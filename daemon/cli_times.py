"""Moments and days as people say them: "last week", 昨日, 2026-11-22T09:30.

Rule: what is said means the user's own clock unless it names another; what is asked of the daemon is UTC. A day, week,
month or year without a time of day begins with its first midnight, and weeks on Mondays; what is counted back ("2 weeks
ago") begins with the midnight of that day. ISO forms need no library; the rest is dateparser's, which is
imported only then, because that takes as long as the whole command otherwise.
"""

import re
import unicodedata
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from daemon.errors import Refused
from eventlog.errors import EventLogError
from eventlog.values import Position

LANGUAGES = ("en", "ja")
NOTHING_SHORTER = 3  # ASCII characters; "a" and "5" would be months
EXAMPLES = '"2 hours ago", yesterday, "last week", 2026-11-22, 2026-11-22T09:30 or 2026-11-22T09:30Z'

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_OF_JAPAN = re.compile(r"(?:([0-9]{4})年)?([0-9]{1,2})月([0-9]{1,2})日(.*)", re.DOTALL)
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


def place_in_log(option: str, text: str, events: Path) -> Position | datetime:
    """As `position_or_moment`, for somebody who reads the log of this folder. A log that is missing or damaged is for
    that reader to report.

    Raises:
        Refused: it is neither, or a position that the log has not reached.
    """
    from eventlog import audit

    place = position_or_moment(option, text)
    if isinstance(place, datetime):
        return place
    head = 0
    try:
        for one in audit.commits(events, place):
            head = one.mark.position
    except (EventLogError, FileNotFoundError):
        return place
    if head < place and place > _archived(events):
        date = "; a day is written YYYY-MM-DD" if len(text) == len("YYYYMMDD") else ""
        raise _no(option, text, f"the log ends at commit {head}; give a position up to there, or a moment{date}")
    return place


def _archived(events: Path) -> Position:
    from eventlog.segments import beginning

    with beginning(events) as stub:
        return Position(0) if stub is None else stub.head.position


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
    if named := _DAY_OF_JAPAN.fullmatch(unicodedata.normalize("NFKC", text)):
        return _day_of_japan(named, now)
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


def _day_of_japan(named: re.Match[str], now: datetime) -> datetime | None:
    """dateparser takes the two digits of 11月1日 or 10月1日 for a year. Without one, it is the latest such day."""
    year, month, of_month, rest = named.groups()
    try:
        first = datetime(int(year or now.year), int(month), int(of_month))  # noqa: DTZ001  # the user's clock
        if not year and first > now:
            first = first.replace(year=now.year - 1)
    except ValueError:  # there is no such day, or not in that year
        return None
    rest = rest.strip().removeprefix("の")
    if not rest:
        return first
    at = _iso(f"{first:%Y-%m-%d}T{rest.zfill(5)}") or _spoken(rest, now) if rest[0].isdigit() else None
    return None if at is None or at.tzinfo else datetime.combine(first, at.time())


def _no(option: str, text: str, allowed: str) -> Refused:
    sentence = f"{option} is {text[:40]!r}; {allowed}."
    return Refused(sentence, code="bad_arguments", argument=option.removeprefix("--"))
