"""How fast one client may order through the MCP door, so that an agent that runs away is stopped before the bill comes.

Rule: pure, and asked in the same step that records the order. People at a terminal and batches are not held back: whoever
writes them has counted.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from daemon.errors import Refused
from eventlog.events import JobRequested
from eventlog.recent import RecentOrders, subject
from eventlog.values import Words

PER_MINUTE, SAME_PROMPT = "IMAGED_PICTURES_PER_MINUTE", "IMAGED_SAME_PROMPT_PER_HOUR"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
WHO = "Only the user can change that, in the client's configuration or in ~/.config/imaged/.env."


class Pace(NamedTuple):
    """0 is no limit."""

    pictures_per_minute: int = 0
    same_prompt_per_hour: int = 0


def insist(pace: Pace, recent: RecentOrders, requested: JobRequested, words: Words, now: datetime) -> None:
    """
    Raises:
        Refused: `too_fast`, `same_prompt`.
    """
    if pace.pictures_per_minute:
        last = recent.since(requested.client, MINUTE, now)
        drawn, wanted = sum(order.pictures for order in last), requested.request.count
        if drawn + wanted > pace.pictures_per_minute:
            when = f" Ask again after {last[0].at + MINUTE:%H:%M:%SZ}." if last and wanted <= pace.pictures_per_minute else ""
            raise Refused(
                f"{requested.client.name} has ordered {drawn} pictures within a minute and asks for {wanted} more; {PER_MINUTE} "
                f"allows {pace.pictures_per_minute}.{when} {WHO}",
                code="too_fast",
            )
    if pace.same_prompt_per_hour:
        about = subject(requested.request, words)
        same = [order for order in recent.since(requested.client, HOUR, now) if order.subject == about]
        if len(same) >= pace.same_prompt_per_hour:
            raise Refused(
                f"{requested.client.name} has ordered this very prompt {len(same)} times within an hour; {SAME_PROMPT} allows "
                f"{pace.same_prompt_per_hour}. list_history shows what was drawn. If it is really wanted once more, ask the "
                f"user, or ask again after {same[0].at + HOUR:%H:%MZ}. {WHO}",
                code="same_prompt",
                argument="prompt",
            )
