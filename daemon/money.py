"""What was spent, and what drawing costs: the spending view and the two data files, as answers.

Rule: unknown is said as unknown. What may have been billed, what is reserved and what has no known price stand beside
what was spent, never inside it.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Literal

import trio
from msgspec import Meta

from daemon import budgets, results
from daemon.arguments import Arguments, NoArguments
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, JobSummary, Result
from daemon.session import Caller
from eventlog.spending import Amounts, Period
from tools import pricing
from tools.models import FORMATS, Model, catalogue

UNRESOLVED_SHOWN_MAX = 50

By = Literal["day", "model", "client", "key"]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", examples=["2026-11-22"])]


class GetSpending(Arguments, frozen=True, kw_only=True):
    """Days are UTC days, both included."""

    since: Annotated[Day | None, Meta(description="The first UTC day. Left out: the first of this month.")] = None
    until: Annotated[Day | None, Meta(description="The last UTC day. Left out: today.")] = None
    by: Annotated[By, Meta(description="What each row sums up.")] = "day"


class Spent(Result, frozen=True, kw_only=True):
    """`estimated_*` are what the priced replies in `settled` were estimated at; of `unestimated` there was no bound.

    `unpriced` counts what is in no sum, because its price is not known.
    """

    name: str
    settled_micro_usd: int = 0
    possibly_billed_micro_usd: int = 0
    estimated_low_micro_usd: int = 0
    estimated_high_micro_usd: int = 0
    unestimated: int = 0
    unpriced: int = 0
    images: int = 0
    replies: int = 0


class BudgetNow(Result, frozen=True, kw_only=True):
    """A cap of this session's configuration, and what is left of it. `spent` includes what may have been billed."""

    setting: str
    period: str
    cap_micro_usd: int
    spent_micro_usd: int
    reserved_micro_usd: int
    left_micro_usd: int
    resets_at: str


class SpendingReport(Result, frozen=True, kw_only=True):
    """`rows` by name. `reserved` is what jobs under way may still cost, whenever they were asked for, and `unresolved`
    the newest of the jobs that may have been billed; `unresolved_total` counts them.
    """

    since: str
    until: str
    by: By
    rows: tuple[Spent, ...]
    total: Spent
    reserved_micro_usd: int
    unresolved: tuple[JobSummary, ...]
    unresolved_total: int
    call_cap_micro_usd: int | None = None
    budgets: tuple[BudgetNow, ...] = ()


class ModelFacts(Result, frozen=True, kw_only=True):
    """What one model takes and costs. Null: not known. `low` and `high` are of one picture, its prompt left out."""

    name: str
    status: Literal["current", "retiring", "retired"]
    gone_from: str | None
    replacement: str
    sizes: tuple[str, ...]
    any_size: bool
    qualities: tuple[str, ...]
    formats: tuple[str, ...]
    transparent: bool | None
    markup: bool | None
    notes: dict[str, str]
    low_micro_usd: int | None
    high_micro_usd: int | None
    price: str


class ModelList(Result, frozen=True, kw_only=True):
    """`default` is what this session draws with when nothing else is said."""

    default: str
    as_of: str
    price_table: str
    price_as_of: str
    models: tuple[ModelFacts, ...]


async def get_spending(house: House, caller: Caller, asked: GetSpending) -> Answer:
    """
    Raises:
        Refused: a day is none, or the last one lies before the first.
    """
    today = house.now().astimezone(UTC).date()
    until = today if asked.until is None else _day("until", asked.until)
    since = min(today.replace(day=1), until) if asked.since is None else _day("since", asked.since)
    if since > until:
        raise Refused(f"since is {since}, after until, {until}; swap them.", code="bad_arguments", argument="since")
    await house.ledger.settled()
    spending, caps = house.ledger.spending, caller.session.settings.caps
    rows = [(period, amounts) for period, amounts in spending.rows() if since.isoformat() <= period.day <= until.isoformat()]
    doubtful = sorted(spending.suspicions, reverse=True)  # ids sort by the time of asking
    reserved = spending.reserved
    unresolved = [job for job_id in doubtful[:UNRESOLVED_SHOWN_MAX] if (job := await house.find_job(job_id))]
    return Answer(
        SpendingReport(
            since=since.isoformat(),
            until=until.isoformat(),
            by=asked.by,
            rows=tuple(_spent(name, [a for p, a in rows if _name(p, asked.by) == name]) for name in _names(rows, asked.by)),
            total=_spent("total", [amounts for _, amounts in rows]),
            reserved_micro_usd=reserved,
            unresolved=tuple(results.summary(job) for job in unresolved),
            unresolved_total=len(doubtful),
            call_cap_micro_usd=caps.call,
            budgets=tuple(map(_budget, budgets.periods(caps, spending, house.now()))),
        )
    )


async def list_models(house: House, caller: Caller, asked: NoArguments) -> Answer:
    today = house.now().date()
    await trio.lowlevel.checkpoint()
    return Answer(
        ModelList(
            default=caller.session.settings.model,
            as_of=catalogue().as_of.isoformat(),
            price_table=pricing.table().version,
            price_as_of=pricing.table().as_of.isoformat(),
            models=tuple(_model(model, today) for model in catalogue().models),
        )
    )


def _budget(now: budgets.Budget) -> BudgetNow:
    return BudgetNow(
        setting=now.setting,
        period=now.period,
        cap_micro_usd=now.cap,
        spent_micro_usd=now.spent,
        reserved_micro_usd=now.reserved,
        left_micro_usd=now.left,
        resets_at=results.time(now.resets_at),
    )


def _names(rows: Iterable[tuple[Period, Amounts]], by: By) -> list[str]:
    return sorted({_name(period, by) for period, _ in rows})


def _name(period: Period, by: By) -> str:
    match by:
        case "day":
            return period.day
        case "model":
            return period.model
        case "client":
            return period.client
        case "key":
            return period.key or "offline"


def _spent(name: str, rows: Iterable[Amounts]) -> Spent:
    sums = dict.fromkeys(Amounts.__struct_fields__, 0)
    for amounts in rows:
        for field in sums:
            sums[field] += getattr(amounts, field)
    money = {"settled", "possibly_billed", "estimated_low", "estimated_high"}
    return Spent(name=name, **{f"{field}_micro_usd" if field in money else field: value for field, value in sums.items()})


def _model(model: Model, today: date) -> ModelFacts:
    gone = model.gone_from
    price = pricing.span(model.name)
    return ModelFacts(
        name=model.name,
        status="current" if gone is None else "retired" if today >= gone else "retiring",
        gone_from=None if gone is None else gone.isoformat(),
        replacement=model.replacement,
        sizes=catalogue().sizes(model),
        any_size=model.custom_sizes,
        qualities=model.qualities,
        formats=tuple(form for form in FORMATS if form in model.formats),
        transparent=model.transparent,
        markup=model.markup,
        notes=model.notes,
        low_micro_usd=price.low,
        high_micro_usd=price.high,
        price=pricing.show_range(price),
    )


def _day(argument: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise Refused(
            f"{argument} is {text}, which is no day of the calendar; give one such as 2026-11-22.",
            code="bad_arguments",
            argument=argument,
        ) from None
