"""From an order to its pictures: waiting for jobs, telling what became of them, and how to come back to those that go on.

Rule: the job is the daemon's. However the wait ends - the picture is there, the time is up, Ctrl-C - it changes nothing
of the job, and stderr says by which id it is found again.
"""

import argparse
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from daemon import bridge, cli_pictures
from daemon import cli_exits as exits
from daemon.cli_connection import ask_again, json_out, read
from daemon.cli_terminal import Watch, out, path_out, say, waiting
from daemon.client import Connection, Stopped
from daemon.errors import NotRunning
from daemon.results import JobReport, JobsNow

WAIT_SECONDS_MAX = 30.0  # for one question to the daemon; it answers earlier when something has changed


class Manners(NamedTuple):
    """How to wait and tell. `wait_seconds` is None for as long as it takes."""

    as_json: bool = False
    wait_seconds: float | None = None
    no_wait: bool = False
    inline: bool = True


def manners(asked: argparse.Namespace) -> Manners:
    return Manners(asked.json, asked.wait, asked.no_wait, asked.inline and not asked.json)


def order(
    connection: Connection, operation: str, given: Mapping[str, object], options: Mapping[str, str], manners: Manners
) -> int:
    """Orders one job, and waits for it as it is wished. The exit status.

    Raises:
        Declined: nothing was ordered.
        NotRunning, bridge.Trouble, KeyboardInterrupt: and the person knows what goes on.
    """
    ours: list[JobReport] = []
    with coming_back(ours):
        job = read(ask_again(connection, operation, options, **given), JobReport)
        for warning in job.warnings:
            say(warning)
        if not job.job_id:  # a dry run
            if manners.as_json:
                json_out(job)
            else:
                out(job.message)
            return exits.OK
        ours.append(job)
        if manners.no_wait:
            if manners.as_json:
                json_out(job)
            else:
                path_out(job.job_id)
            return exits.OK
        (job,) = until_over(connection, [job], manners.wait_seconds)
    if manners.as_json:
        json_out(job)
    else:
        tell(connection, job, inline=manners.inline)
    return status_of([job])


@contextmanager
def coming_back(jobs: Sequence[JobReport]) -> Iterator[None]:
    """However the wait for these jobs breaks off - also by SIGTERM and SIGHUP, as `timeout` and a closed window send them -
    stderr says how they are found again, and the exception has their ids as `job_ids` for the document of the error.
    """
    ours = threading.current_thread() is threading.main_thread()  # only there may signals be set
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if ours and signal.getsignal(n) is signal.SIG_DFL]  # nohup stays so
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except (KeyboardInterrupt, NotRunning, bridge.Trouble) as broken:
        vars(broken)["job_ids"] = [job.job_id for job in jobs]
        _say_how_to_come_back(jobs, goes_on=not isinstance(broken, Stopped))
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def until_over(connection: Connection, jobs: Sequence[JobReport], wait_seconds: float | None) -> tuple[JobReport, ...]:
    """The jobs when all of them are over, or as they stand when the time is up."""
    with waiting() as watch:
        return _until_over(connection, jobs, wait_seconds, watch)


def _until_over(
    connection: Connection, jobs: Sequence[JobReport], wait_seconds: float | None, watch: Watch
) -> tuple[JobReport, ...]:
    connection.only_wait()
    give_up_at = float("inf") if wait_seconds is None else time.monotonic() + wait_seconds
    now = JobsNow(position=0, jobs=tuple(jobs))
    watch(now.jobs)
    while any(_goes_on(job) for job in now.jobs) and (left := give_up_at - time.monotonic()) > 0:
        now = _wait(connection, [job.job_id for job in jobs], now.position, min(left, WAIT_SECONDS_MAX))
        watch(now.jobs)
    return now.jobs


def find(connection: Connection, job_ids: Sequence[str]) -> tuple[JobReport, ...]:
    """As they stand.

    Raises:
        Declined: there is none of one of these ids.
    """
    return _wait(connection, job_ids, 0, 0).jobs


def _wait(connection: Connection, job_ids: Sequence[str], after: int, seconds: float) -> JobsNow:
    answer = ask_again(connection, "wait_for_jobs", job_ids=list(job_ids), after=after, wait_seconds=seconds)
    return read(answer, JobsNow)


def tell(connection: Connection, job: JobReport, *, inline: bool) -> None:
    """Paths to stdout, what to know of them to stderr."""
    for image in job.images:
        if image.path is not None:
            path_out(image.path)
    if job.state == "completed":
        cli_pictures.show(connection, job.job_id, range(1, len(job.images) + 1), wanted=inline)
        say(f"{job.message} Cost: {job.cost.text}.")
        say(f"History ID: {job.job_id}")
    elif not _goes_on(job):
        cost = "" if job.billed == "no" else f" Cost: {job.cost.text}."
        say(f"job {job.job_id} {job.state}: {job.message}{cost}")


def status_of(jobs: Sequence[JobReport]) -> int:
    """Says how to come back to what goes on."""
    unfinished = [job for job in jobs if _goes_on(job)]
    if unfinished:
        _say_how_to_come_back(unfinished, "The time to wait is up. ")
        return exits.WAIT_RAN_OUT
    return exits.of_all([exits.of_job(job) for job in jobs])


def _say_how_to_come_back(jobs: Sequence[JobReport], why: str = "", *, goes_on: bool = True) -> None:
    if not jobs:
        say("interrupted before the daemon had confirmed the order; imaged jobs list shows whether there is a job.")
        return
    ids = " ".join(job.job_id for job in jobs)
    what = f"Job {ids} goes on" if len(jobs) == 1 else f"{len(jobs)} jobs go on"
    what += "" if goes_on else " when a daemon runs again"
    say(f"{why}{what}. To wait for it: imaged jobs wait {ids}; to stop it: imaged jobs cancel {ids}")


def _goes_on(job: JobReport) -> bool:
    return job.state in ("pending", "running")
