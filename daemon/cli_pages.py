"""Lists of jobs and generations, as tables for people and as lines for programs."""

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

from daemon import cli_times as times
from daemon.cli_terminal import Column, say, table
from daemon.results import CostResult, JobSummary
from eventlog.values import MicroUSD
from tools import pricing

_ID, _WHEN, _STATE = Column("ID", style="cyan"), Column("WHEN"), Column("STATE")
_MODEL, _PROMPT = Column("MODEL", only_wide=True), Column("PROMPT", elastic=True)
_COLUMNS = {
    "jobs": (_ID, _WHEN, _STATE, Column("COST", right=True, only_wide=True), _MODEL, _PROMPT),
    "generations": (_ID, _WHEN, Column("COST", right=True), _MODEL, _PROMPT),
}


class Found(NamedTuple):
    """How many fit, and how many of them come before this page; with `at_least` there may be more."""

    total: int
    offset: int
    at_least: bool = False


def tell(noun: Literal["jobs", "generations"], jobs: Sequence[JobSummary], found: Found, *, limited: bool) -> None:
    """Programs get: id, time in UTC, state, cost, model, path, prompt. What more there is, is said on stderr, except to a
    program that has set the limit itself.
    """
    total, offset, at_least = found
    if sys.stdout.isatty():
        table(_COLUMNS[noun], [_cells(job, with_state=noun == "jobs") for job in jobs])
    else:
        table((), [_line(job) for job in jobs])
    last = offset + len(jobs)
    if not jobs:
        say(f"no {noun} found." if total == 0 else f"no {noun} beyond number {total:,}.")
    elif (last < total or at_least) and (sys.stdout.isatty() or not limited):
        of = f"{'at least ' if at_least else ''}{total:,}"
        say(f"{noun} {offset + 1:,} to {last:,} of {of}; --offset {last} shows the next ones.")


def cost_text(cost: CostResult) -> str:
    """Short enough for a column. Unknown is said as unknown."""
    match cost.basis:
        case "offline" | "not_billed":
            return "$0"
        case "estimate":
            return "unknown" if cost.high_micro_usd is None else f"<= {pricing.show(MicroUSD(cost.high_micro_usd))}"
        case _:
            return "unknown" if cost.micro_usd is None else pricing.show(MicroUSD(cost.micro_usd))


def _cells(job: JobSummary, *, with_state: bool) -> list[str]:
    state = [job.state] if with_state else []
    return [job.job_id, times.local(job.created_at), *state, cost_text(job.cost), job.model, _prompt(job)]


def _line(job: JobSummary) -> list[str]:
    return [job.job_id, job.created_at, job.state, cost_text(job.cost), job.model, job.path or "", _prompt(job)]


def _prompt(job: JobSummary) -> str:
    return "(forgotten)" if job.prompt is None else " ".join(job.prompt.split())
