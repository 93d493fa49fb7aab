"""Everything that may be asked: one table of name, arguments, result and function, worn by every door.

Rule: `answer` is the only way in. Every operation asked is a fact; what comes out is an `Answer` or a
`Refusal` with a sentence, never an exception of ours, except when the log is broken and the daemon ends.
"""

import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import trio

from daemon import arguments, decisions, drawing, results
from daemon.arguments import Arguments
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, Result
from daemon.session import Caller
from daemon.version import VERSION
from eventlog.errors import EventLogError, IndexUnavailable
from eventlog.events import RequestReceived
from eventlog.history import GenerationQuery, JobQuery
from eventlog.jobs import Job
from eventlog.values import JobState, Words, digest
from tools import pricing

ARGUMENT_BYTES_MAX = 16 * 1024  # a longer argument is kept in the log as its digest
ARGUMENTS_MAX = 64  # more than any operation has; the rest of a senseless request is not kept
HAS_ITS_OWN_WORD = frozenset({"prompt", "output_path"})

logger = logging.getLogger(__name__)


class Refusal(msgspec.Struct, frozen=True):
    code: str
    message: str
    argument: str = ""


class UnknownOperation(Exception):
    pass


Asking = Callable[[House, Caller, Any], Awaitable[Answer]]
Drawing = Callable[[House, Caller, RequestReceived, Words, Any], Awaitable[Answer]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Either `ask` or `draw`: what draws may cost money and records its own request together with the job.

    `for_people`: never offered to a model.
    """

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    result: type[Result]
    ask: Asking | None = None
    draw: Drawing | None = None
    read_only: bool = True
    destructive: bool = False
    idempotent: bool = True
    for_people: bool = False


async def answer(house: House, caller: Caller, name: str, given: Mapping[str, Any]) -> Answer | Refusal:
    """Ask one operation.

    Raises:
        UnknownOperation: the door answers that in its own way.
        EventLogError: the daemon is about to end; nothing may be answered.
    """
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UnknownOperation(name)
    received = RequestReceived(operation=name, door=caller.session.door, client=caller.client)
    try:
        try:
            parsed = arguments.parse(name, given, operation.arguments)
            if operation.draw is not None:
                return await operation.draw(house, caller, received, _words(given, HAS_ITS_OWN_WORD), parsed)
        except Refused:
            await house.ledger.post(decisions.receive_request(received, _words(given)))
            raise
        await house.ledger.post(decisions.receive_request(received, _words(given)))
        assert operation.ask is not None
        return await operation.ask(house, caller, parsed)
    except EventLogError:
        raise
    except Refused as refused:
        return Refusal(code=refused.code, message=str(refused), argument=refused.argument)
    except IndexUnavailable as exc:
        return Refusal(code="index_unavailable", message=str(exc))
    except Exception:
        incident = secrets.token_hex(4)
        logger.exception("operation failed", extra={"operation": name, "incident": incident})
        return Refusal(
            code="internal_error",
            message=f"Something is wrong inside imaged; its log file tells of incident {incident}.",
        )


def _words(given: Mapping[str, Any], apart: frozenset[str] = frozenset()) -> Words:
    kept: dict[str, msgspec.Raw] = {}
    for name, value in list(given.items())[:ARGUMENTS_MAX]:
        if name in apart:
            continue
        text = msgspec.json.encode(value)
        if len(text) > ARGUMENT_BYTES_MAX:
            text = msgspec.json.encode({"sha256": digest(text), "size_bytes": len(text)})
        kept[name[:100]] = msgspec.Raw(text)
    return Words(salt="", arguments=kept)


async def list_history(house: House, caller: Caller, asked: arguments.ListHistory) -> Answer:
    query = GenerationQuery(
        limit=asked.limit,
        offset=asked.offset,
        tool=asked.tool_name,
        text=asked.query,
        since=_moment("since", asked.since),
        until=_moment("until", asked.until),
    )
    await house.ledger.settled()
    page = await trio.to_thread.run_sync(partial(house.history.generations, query))
    return Answer(
        results.HistoryPage(
            generations=tuple(results.summary(job) for job in page.jobs),
            total=page.total,
            limit=asked.limit,
            offset=asked.offset,
        )
    )


async def get_history_by_uuid(house: House, caller: Caller, asked: arguments.GetHistoryByUuid) -> Answer:
    job = await _find(house, asked.uuid, "uuid")
    return Answer(results.report(job))


async def list_jobs(house: House, caller: Caller, asked: arguments.ListJobs) -> Answer:
    state = None if asked.status is None else JobState(asked.status)
    query = JobQuery(limit=asked.limit, offset=asked.offset, tool=asked.tool_name, state=state)
    await house.ledger.settled()
    page = await trio.to_thread.run_sync(partial(house.history.jobs, query))
    return Answer(
        results.JobPage(
            jobs=tuple(results.summary(job) for job in page.jobs),
            total=page.total,
            limit=asked.limit,
            offset=asked.offset,
        )
    )


async def check_job_status(house: House, caller: Caller, asked: arguments.JobOnly) -> Answer:
    return Answer(results.report(await _find(house, asked.job_id, "job_id")))


async def get_job_result(house: House, caller: Caller, asked: arguments.GetJobResult) -> Answer:
    job = await _find(house, asked.job_id, "job_id")
    settings = caller.session.settings
    return await drawing.tell(
        house,
        job,
        settings=settings,
        picture_wanted=asked.return_base64,
        thumbnail_wanted=drawing.wants_thumbnail(settings, asked.include_thumbnail),
    )


async def get_status(house: House, caller: Caller, asked: arguments.NoArguments) -> Answer:
    await house.ledger.settled()
    states = [job.state for job in house.ledger.board]
    return Answer(
        results.Status(
            software=VERSION,
            pid=os.getpid(),
            home=str(house.places.home),
            started_at=house.started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            log_position=house.log.head.position,
            head_hash=house.log.head.hash,
            jobs_pending=states.count(JobState.PENDING),
            jobs_running=states.count(JobState.RUNNING),
            sessions=house.sessions,
            log_full=house.log.full,
            index_stale=house.index.stale,
        )
    )


async def stop_daemon(house: House, caller: Caller, asked: arguments.Stop) -> Answer:
    running = sum(job.state is JobState.RUNNING for job in house.ledger.board)
    house.ending.want(asked.reason)
    return Answer(results.Stopping(message=f"imaged is stopping; {running} running jobs get a moment to end."))


async def _find(house: House, job_id: str, argument: str) -> Job:
    job = await house.find_job(job_id)
    if job is None:
        raise Refused(
            f"There is no job or generation {job_id[:64]}; list_jobs and list_history show the ids there are.",
            code="no_such_job",
            argument=argument,
        )
    await house.ledger.durable(job.position)
    return job


def _moment(argument: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(
            f"{argument} is {text[:40]!r}; give a date or time such as 2026-11-22 or 2026-11-22T09:30.",
            code="bad_arguments",
            argument=argument,
        ) from None


OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            name="generate_image",
            title="Generate image",
            description=(
                "Draws one or more pictures from a text prompt with OpenAI's image API and saves them as files. COSTS MONEY "
                f"on the user's OpenAI account: {pricing.show_range(pricing.span())} a picture by model, size and quality; the "
                "answer says how much. Never overwrites a file. Takes 5 seconds to 5 minutes: if it is not done after the "
                "server's waiting time, the answer is the job's id and the picture goes on being drawn; ask get_job_result then, "
                "and do not ask for the same picture again, that would be paid twice."
            ),
            arguments=arguments.GenerateImage,
            result=results.JobReport,
            draw=drawing.generate_image,
            read_only=False,
            idempotent=False,
        ),
        Operation(
            name="list_history",
            title="List generated pictures",
            description=(
                "Lists finished generations, newest first, with prompt, cost and file. Filters by tool, by text in the "
                "prompt (any language) and by time. Free, changes nothing."
            ),
            arguments=arguments.ListHistory,
            result=results.HistoryPage,
            ask=list_history,
        ),
        Operation(
            name="get_history_by_uuid",
            title="Show one generation",
            description=(
                "Everything known of one generation: whole prompt, parameters, files with digests, tokens, cost, who asked. "
                "Free, changes nothing."
            ),
            arguments=arguments.GetHistoryByUuid,
            result=results.JobReport,
            ask=get_history_by_uuid,
        ),
        Operation(
            name="list_jobs",
            title="List jobs",
            description=(
                "Lists drawing jobs of every state, newest first: pending, running, completed, failed, cancelled, "
                "interrupted. Free, changes nothing."
            ),
            arguments=arguments.ListJobs,
            result=results.JobPage,
            ask=list_jobs,
        ),
        Operation(
            name="check_job_status",
            title="Check a job",
            description="Tells where one drawing job stands and what to do next. Free, changes nothing, answers at once.",
            arguments=arguments.JobOnly,
            result=results.JobReport,
            ask=check_job_status,
        ),
        Operation(
            name="get_job_result",
            title="Get a job's pictures",
            description=(
                "The result of a drawing job: files, cost and, if wanted, the pictures themselves. For a job that is still "
                "drawing it says so. Free, changes nothing, answers at once."
            ),
            arguments=arguments.GetJobResult,
            result=results.JobReport,
            ask=get_job_result,
        ),
        Operation(
            name="get_status",
            title="Show the daemon's status",
            description="Version, process, jobs, sessions and the log's head. Free, changes nothing.",
            arguments=arguments.NoArguments,
            result=results.Status,
            ask=get_status,
            for_people=True,
        ),
        Operation(
            name="stop_daemon",
            title="Stop the daemon",
            description="Closes the doors, lets running jobs end and stops the daemon.",
            arguments=arguments.Stop,
            result=results.Stopping,
            ask=stop_daemon,
            read_only=False,
            for_people=True,
        ),
    )
}
