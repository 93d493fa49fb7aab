"""What may be spent: caps for one call, a UTC day and a UTC month, and whether an order still fits under them.

Rule: pure, and asked in the same step that records the order, so that many at once do not each find the same room. The
upper estimate counts until the bill is known; what has no bound fits under no cap.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from daemon.errors import Refused
from eventlog.spending import Spending
from eventlog.values import Caps, MicroUSD
from tools import pricing

CALL, DAY, MONTH = "IMAGED_BUDGET_CALL_USD", "IMAGED_BUDGET_DAY_USD", "IMAGED_BUDGET_MONTH_USD"
CONFIRM = "IMAGED_CONFIRM_USD"


class Budget(NamedTuple):
    """One period with a cap, as it stands. `spent` includes what may have been billed; `resets_at` is UTC."""

    setting: str
    period: str
    cap: MicroUSD
    spent: MicroUSD
    reserved: MicroUSD
    resets_at: datetime

    @property
    def left(self) -> MicroUSD:
        return MicroUSD(max(0, self.cap - self.spent - self.reserved))


def periods(caps: Caps, spending: Spending, now: datetime) -> Iterator[Budget]:
    """The day and the month that `now` lies in, as far as there are caps for them."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (today.replace(day=1) + timedelta(days=31)).replace(day=1)
    for setting, period, cap, resets_at in (
        (DAY, f"{today:%Y-%m-%d}", caps.day, today + timedelta(days=1)),
        (MONTH, f"{today:%Y-%m}", caps.month, next_month),
    ):
        if cap is not None:
            yield Budget(setting, period, cap, spending.spent_in(period), spending.reserved, resets_at)


def insist_on_room(caps: Caps, spending: Spending, high: MicroUSD | None, now: datetime) -> None:
    """
    Raises:
        Refused: an order that may cost as much as `high` does not fit, or has no bound.
    """
    capped = [(CALL, caps.call), (DAY, caps.day), (MONTH, caps.month)]
    if high is None:
        for setting, cap in capped:
            if cap is not None:
                raise _over(
                    f"What this may cost has no published bound, so it does not fit under {setting}, {pricing.show(cap)}. "
                    "Choose a size, a quality and a model whose price is known"
                )
        return
    asked = f"This may cost up to {pricing.show(high)}"
    if caps.call is not None and high > caps.call:
        raise _over(
            f"{asked}, and {CALL} allows {pricing.show(caps.call)} for one call. Ask for fewer or smaller pictures, or for a "
            "lower quality"
        )
    for budget in periods(caps, spending, now):
        if high > budget.left:
            raise _over(
                f"{asked}, and {budget.setting} allows {pricing.show(budget.cap)} for {budget.period}: "
                f"{pricing.show(budget.spent)} is spent or may have been billed, {pricing.show(budget.reserved)} is reserved for "
                f"pictures under way, {pricing.show(budget.left)} is left. It begins anew at {budget.resets_at:%Y-%m-%dT%H:%MZ}"
            )


def needs_approval(caps: Caps, high: MicroUSD | None) -> str:
    """What to ask a person about an order that may cost as much as `high`; empty if nobody needs to be asked."""
    if caps.confirm is None or (high is not None and high <= caps.confirm):
        return ""
    much = "an amount that nobody has published" if high is None else f"up to {pricing.show(high)}"
    return f"This may cost {much}, and above {pricing.show(caps.confirm)} ({CONFIRM}) you want to be asked."


def strictest(*all_caps: Caps) -> Caps:
    """Of each kind the lowest."""

    def lowest(*caps: MicroUSD | None) -> MicroUSD | None:
        return min((cap for cap in caps if cap is not None), default=None)

    return Caps(
        call=lowest(*(caps.call for caps in all_caps)),
        day=lowest(*(caps.day for caps in all_caps)),
        month=lowest(*(caps.month for caps in all_caps)),
        confirm=lowest(*(caps.confirm for caps in all_caps)),
    )


def _over(sentence: str) -> Refused:
    who = "Only the user can raise it, in the client's configuration or in ~/.config/imaged/.env."
    return Refused(f"{sentence}. {who}", code="over_budget")
