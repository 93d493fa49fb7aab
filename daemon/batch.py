"""`imaged batch`: draws everything that a batch file asks for, shows how it goes, and tells how it went.

stdout is the summary or one JSON document; progress, warnings and what to do next stand on stderr.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import msgspec

from daemon import batch_plan, batch_summary, client, config
from daemon.batch_plan import Options, Plan
from daemon.batch_run import Ask, Clock, Run
from daemon.batch_summary import Progress, Told
from daemon.config import HOW_TO_SET_A_KEY
from daemon.errors import BadConfiguration, NotRunning
from eventlog.audit import harmless

CONNECTIONS_MAX = 4  # a daemon that ends more often has something to say in its log

EXIT_OK, EXIT_NOT_ALL = 0, 1


class Wishes(msgspec.Struct, frozen=True):
    """What to do with the plan, and how to tell of it."""

    as_json: bool = False
    estimate_only: bool = False
    retry_unknown: bool = False


class _Connection(Protocol):
    @property
    def ask(self) -> Ask: ...


Connect = Callable[[], AbstractContextManager[_Connection]]


def run(options: Options, wishes: Wishes) -> int:
    """0 when every picture is there, 1 otherwise. The summary is printed however it ends.

    Raises:
        BadConfiguration: the file, an option or a setting is at fault; nothing has been asked for.
        NotRunning: the daemon ended again and again.
        bridge.Trouble: no daemon can be started, or it cannot be talked to.
    """
    plan = batch_plan.make(options, config.environment())
    if options.run:
        batch_plan.insist_on_run(plan, options.run, config.default_places().events)
    for warning in plan.warnings:
        _say(f"imaged: {warning}")
    if wishes.estimate_only:
        _print(batch_summary.estimate_json(plan) if wishes.as_json else batch_summary.estimate_text(plan))
        return EXIT_OK
    if not plan.can_draw:
        raise BadConfiguration(HOW_TO_SET_A_KEY)
    if plan.run:
        _say(f"imaged: this is run {plan.run}; --run {plan.run} in place of --again continues it.")
    progress = Progress(sys.stderr)
    current = Run(plan, retry_unknown=wishes.retry_unknown, clock=Clock(), watch=progress.show)
    began_at = batch_summary.now()
    try:
        drive(current, partial(_connected, plan))
    finally:
        progress.end()
        told = Told(current.tasks, began_at, batch_summary.now(), current.timed_out, plan.run)
        _print(batch_summary.as_json(told) if wishes.as_json else batch_summary.as_text(told))
        for sentence in batch_summary.what_next(told):
            _say(f"imaged: {sentence}")
    return EXIT_OK if all(task.status == "completed" for task in current.tasks) else EXIT_NOT_ALL


def drive(current: Run, connect: Connect) -> None:
    """The whole run, with a new daemon where the old one went away: the keys of the jobs find what it left."""
    for last in (False,) * (CONNECTIONS_MAX - 1) + (True,):
        try:
            with connect() as connection:
                current.go_on(connection.ask)
        except NotRunning:
            if last:
                raise
            _say("imaged: the daemon went away; another one is asked to go on.")
        else:
            return


def _connected(plan: Plan) -> AbstractContextManager[_Connection]:
    return client.connected(config.default_places(), plan.settings)


def _say(line: str) -> None:
    print(harmless(line), file=sys.stderr)  # noqa: T201


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201
