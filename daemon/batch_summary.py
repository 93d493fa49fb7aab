"""How a batch goes and how it went: the line on the terminal, the text and the JSON document.

Rule: unknown is said as unknown. A sum of costs is null rather than zero when nothing of it is known.
"""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from daemon.batch_plan import Plan
from daemon.batch_run import Task
from eventlog.audit import harmless
from eventlog.values import CostRange, MicroUSD
from tools import pricing
from tools.failures import printable

PROMPT_SHOWN_MAX = 60
ERROR_SHOWN_MAX = 300
STATES = ("completed", "failed", "cancelled", "interrupted", "running", "waiting")


class Told(NamedTuple):
    """A run at the moment when it is told of. Times in UTC."""

    tasks: Sequence[Task]
    began_at: datetime
    ended_at: datetime
    timed_out: bool
    run: str


class Spent(NamedTuple):
    """Micro-dollars. `known` is None when nothing is known; `unknown` counts the jobs whose cost is not."""

    known: MicroUSD | None
    before: MicroUSD
    unknown: int


class Progress:
    """One line that changes on a terminal; elsewhere a line for each job that is over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._told: set[int] = set()

    def show(self, tasks: Sequence[Task]) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{_standing(tasks)}")
        else:
            for task in tasks:
                if task.over and task.order.job.index not in self._told:
                    self._told.add(task.order.job.index)
                    self._stream.write(f"[{len(self._told)}/{len(tasks)}] {_line(task)}\n")
        self._stream.flush()

    def end(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def now() -> datetime:
    return datetime.now(UTC)


def spent(tasks: Sequence[Task], *, with_running: bool) -> Spent:
    """`with_running` counts what is not over as unknown, as it is for whoever stops looking now."""
    costs = [(_cost(task), task.done_before) for task in tasks]
    unknown = sum(_is_unknown(task) or (with_running and task.stage in ("asked", "running")) for task in tasks)
    known = sum(cost or 0 for cost, _ in costs)
    before = sum(cost or 0 for cost, done_before in costs if done_before)
    return Spent(MicroUSD(known) if known or not unknown else None, MicroUSD(before), unknown)


def as_text(told: Told) -> str:
    lines = [
        _headline(told.tasks),
        f"Cost: {_money(spent(told.tasks, with_running=True))}",
        f"Time: {(told.ended_at - told.began_at).total_seconds():.1f} s",
    ]
    for task in told.tasks:
        lines += ["", _line(task)]
        lines += [f"    {path}" for path in _paths(task)[1:]]
        lines.append(f"    {_excerpt(task.order.job.prompt)}")
        lines += [f"    Note: {note}" for note in _notes(task)]
    return _lines(lines)


def as_json(told: Told) -> str:
    """The names that readers of the earlier program know, and ours beside them."""
    money = spent(told.tasks, with_running=True)
    counts = _counts(told.tasks)
    document = {
        "total": len(told.tasks),
        "succeeded": counts["completed"],
        "failed": counts["failed"],
        "cancelled": counts["cancelled"],
        "interrupted": counts["interrupted"],
        "unfinished": counts["running"] + counts["waiting"],
        "timed_out": told.timed_out,
        "run": told.run or None,
        "results": [_result(task) for task in told.tasks],
        "started_at": _time(told.began_at),
        "finished_at": _time(told.ended_at),
        "total_duration_ms": round((told.ended_at - told.began_at).total_seconds() * 1000),
        "total_cost": None if money.known is None else money.known / 1_000_000,
        "total_cost_micro_usd": money.known,
        "cost_unknown_jobs": money.unknown,
    }
    return _json(document)


def what_next(told: Told) -> list[str]:
    """Sentences for the person in front of it."""
    running = sum(task.status == "running" for task in told.tasks)
    waiting = sum(task.status == "waiting" for task in told.tasks)
    doubtful = sum(task.over and task.status != "completed" and task.billed == "unknown" for task in told.tasks)
    again = f"the same command with --run {told.run} in place of --again" if told.run else "the same command again"
    sentences = []
    if told.timed_out:
        sentences.append(f"The time was up: what was not drawn by then has been cancelled. To draw the rest, give {again}.")
    elif running or waiting:
        sentences.append(
            f"Stopped before the end. Jobs that the daemon has taken over go on being drawn ({running}); the others have not "
            f"been asked for ({waiting}). To continue, give {again}: nothing is drawn twice."
        )
    if doubtful:
        sentences.append(
            f"{_jobs(doubtful)} may have been charged although there is no picture: look at your OpenAI usage page. To ask "
            f"again all the same, give {again}, and --retry-unknown."
        )
    return sentences


def estimate_text(plan: Plan) -> str:
    total, unknown = _sum(plan)
    known = len(plan.orders) - unknown
    lines = [f"{_jobs(len(plan.orders))}, estimated {pricing.show_range(total)}" if known else f"{_jobs(len(plan.orders))}"]
    if unknown:
        lines.append(f"The cost of {_jobs(unknown)} is unknown{' and not in this sum' if known else ''}.")
    for order in plan.orders:
        job = order.job
        what = f"{order.model} | {job.quality} | {job.size} | {job.output_format} | {job.sample_count}"
        lines += ["", f"jobs[{job.index}] {pricing.show_range(order.estimate)}", f"    {what}", f"    {_excerpt(job.prompt)}"]
    lines += ["", f"Price table {total.table}. Nothing was drawn."]
    return _lines(lines)


def estimate_json(plan: Plan) -> str:
    total, unknown = _sum(plan)
    return _json(
        {
            "total": len(plan.orders),
            "low_micro_usd": total.low,
            "high_micro_usd": total.high,
            "unknown_jobs": unknown,
            "price_table": total.table,
            "jobs": [
                {
                    "index": order.job.index,
                    "prompt": order.job.prompt,
                    "output_path": order.job.output_path,
                    "model": order.model,
                    "size": order.job.size,
                    "quality": order.job.quality,
                    "sample_count": order.job.sample_count,
                    "low_micro_usd": order.estimate.low,
                    "high_micro_usd": order.estimate.high,
                }
                for order in plan.orders
            ],
        }
    )


def _sum(plan: Plan) -> tuple[CostRange, int]:
    """Of all jobs whose price is known, and how many are not. None where no job's is."""
    known = [order.estimate for order in plan.orders if order.estimate.low is not None and order.estimate.high is not None]
    table = pricing.table().version
    if not known:
        return CostRange(low=None, high=None, table=table), len(plan.orders)
    low, high = sum(cost.low or 0 for cost in known), sum(cost.high or 0 for cost in known)
    return CostRange(low=MicroUSD(low), high=MicroUSD(high), table=table), len(plan.orders) - len(known)


def _counts(tasks: Sequence[Task]) -> dict[str, int]:
    states: list[str] = [task.status for task in tasks]
    return {state: states.count(state) for state in STATES}


def _headline(tasks: Sequence[Task]) -> str:
    parts = [f"{count} {state}" for state, count in _counts(tasks).items() if count]
    before = sum(task.done_before and task.status == "completed" for task in tasks)
    return f"{_jobs(len(tasks))}: {', '.join(parts)}" + (f"; {before} of them before this run" if before else "")


def _standing(tasks: Sequence[Task]) -> str:
    counts = _counts(tasks)
    gone_wrong = sum(counts[state] for state in ("failed", "cancelled", "interrupted"))
    return (
        f"{counts['completed']}/{len(tasks)} done, {gone_wrong} failed, {counts['running']} running, "
        f"{counts['waiting']} waiting; {_money(spent(tasks, with_running=False))} so far"
    )


def _money(money: Spent) -> str:
    text = pricing.show(money.known)
    if money.before:
        text += f", of it {pricing.show(money.before)} before this run"
    if money.unknown and money.known is not None:
        text += f", and {_jobs(money.unknown)} whose cost is not known"
    return text


def _line(task: Task) -> str:
    paths = _paths(task)
    why = task.report.message if task.report else task.error
    what = f"{task.error_code} {printable(why)[:ERROR_SHOWN_MAX]}" if task.error else (paths[0] if paths else "")
    cost = f" ({task.report.cost.text})" if task.report and task.over else ""
    return harmless(f"jobs[{task.order.job.index}] {task.status} {what.strip()}{cost}".rstrip())


def _result(task: Task) -> dict[str, Any]:
    report = task.report
    job = task.order.job
    paths = _paths(task)
    done = task.status == "completed"
    result: dict[str, Any] = {
        "index": job.index,
        "job_id": report.job_id if report else None,
        "status": task.status,
        "prompt": job.prompt,
        "output_path": paths[0] if paths else None,
        "output_paths": paths,
        "billed": task.billed,
        "duration_ms": _duration_ms(task),
        "history_uuid": report.job_id if report and done else None,
        "cost_micro_usd": _cost(task),
        "done_before": task.done_before,
        "tries": task.retries + 1,
    }
    if task.error:
        result |= {"error": task.error, "error_code": task.error_code}
    notes = _notes(task)
    if job.return_base64 and done:
        result["base64"] = [_encoded(path) for path in paths]
    return result | ({"notes": notes} if notes else {})


def _notes(task: Task) -> list[str]:
    notes = [f"{path} is not there any more; --again draws it anew." for path in _paths(task) if not Path(path).exists()]
    notes += task.report.warnings if task.report and not task.done_before else ()
    if task.doubtful:
        notes.append("An earlier try of this job may have been charged.")
    return notes


def _paths(task: Task) -> list[str]:
    return [image.path for image in task.report.images if image.path is not None] if task.report else []


def _encoded(path: str) -> str | None:
    """None for a file that is gone or cannot be read."""
    try:
        return base64.b64encode(Path(path).read_bytes()).decode("ascii")
    except OSError:
        return None


def _cost(task: Task) -> int | None:
    if not task.over:
        return None
    if task.billed == "no":
        return 0
    return task.report.cost.micro_usd if task.report else None


def _is_unknown(task: Task) -> bool:
    return bool(task.doubtful) or (task.over and _cost(task) is None)


def _duration_ms(task: Task) -> int | None:
    """From the order to the end, as the daemon wrote them down."""
    if task.report is None or not task.over:
        return None
    start, end = (datetime.fromisoformat(text) for text in (task.report.created_at, task.report.updated_at))
    return max(0, round((end - start).total_seconds() * 1000))


def _excerpt(prompt: str) -> str:
    text = printable(" ".join(prompt.split()))
    return text if len(text) <= PROMPT_SHOWN_MAX else text[:PROMPT_SHOWN_MAX] + "…"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(lines: Sequence[str]) -> str:
    """For a terminal, where a path or a note from outside must not act."""
    return "\n".join(harmless(line) for line in lines)


def _json(document: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
