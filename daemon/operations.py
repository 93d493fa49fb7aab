"""Everything that may be asked: one table of name, arguments, result and function, worn by every door.

Rule: `answer` is the only way in. Every operation asked is a fact; what comes out is an `Answer` or a
`Refusal` with a sentence, never an exception of ours, except when the log is broken and the daemon ends.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from daemon import arguments, consent, decisions, drawing, forgetting, importing, lost_jobs, money, questions, results
from daemon.approvals import NeedsApproval
from daemon.arguments import Arguments
from daemon.daemon_state import Status, Stopping
from daemon.ending import SHUTDOWN_SECONDS_MAX
from daemon.errors import Refused
from daemon.house import House
from daemon.request_words import words_of
from daemon.results import Answer, Result
from daemon.session import Caller, PersonAsked
from eventlog.errors import EventLogError, IndexUnavailable
from eventlog.events import RequestReceived
from eventlog.values import JobState, Words
from tools import pricing

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

    `for_people`: never offered to a model. `answers_at_once`: what it orders is not waited for.
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
    answers_at_once: bool = False


async def answer(house: House, caller: Caller, name: str, given: Mapping[str, Any]) -> Answer | Refusal:
    """Ask one operation.

    Raises:
        UnknownOperation: the door answers that in its own way.
        EventLogError: the daemon is about to end; nothing may be answered.
        PersonAsked: by the caller's own `ask_person`.
    """
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UnknownOperation(name)
    received = RequestReceived(operation=name, door=caller.session.door, client=caller.client)
    try:
        try:
            parsed = arguments.parse(name, given, operation.arguments)
            if operation.draw is not None:
                words = words_of(given, HAS_ITS_OWN_WORD)
                try:
                    return await operation.draw(house, caller, received, words, parsed)
                except NeedsApproval as needs:
                    await consent.get_consent(house, caller, needs)
                return await operation.draw(house, caller, received, words, parsed)
        except Refused:
            await house.ledger.post(decisions.receive_request(received, words_of(given)))
            raise
        await house.ledger.post(decisions.receive_request(received, words_of(given)))
        assert operation.ask is not None
        return await operation.ask(house, caller, parsed)
    except (EventLogError, PersonAsked):
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


async def stop_daemon(house: House, caller: Caller, asked: arguments.Stop) -> Answer:
    running = sum(job.state is JobState.RUNNING for job in house.ledger.board)
    house.ending.want(asked.reason)
    return Answer(Stopping(message=f"imaged is stopping; {running} running jobs get {SHUTDOWN_SECONDS_MAX:.0f} s to end."))


_COSTS = (
    f"COSTS MONEY on the user's OpenAI account: {pricing.show_range(pricing.span())} a picture by model, size and quality; the "
    "answer says how much."
)
_WAITING = (
    "Takes 5 seconds to 5 minutes: if it is not done after the server's waiting time, the answer is the job's id and the "
    "picture goes on being drawn; ask wait_for_job then, and do not ask for the same picture again, that would be paid twice."
)

OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            name="generate_image",
            title="Generate image",
            description=(
                "Draws one or more pictures from a text prompt with OpenAI's image API and saves them as files. "
                f"{_COSTS} Never overwrites a file. {_WAITING}"
            ),
            arguments=arguments.GenerateImage,
            result=results.JobReport,
            draw=drawing.generate_image,
            read_only=False,
            idempotent=False,
        ),
        Operation(
            name="edit_image",
            title="Edit image",
            description=(
                "Edits pictures: give 1-16 of them as files, UUIDs of earlier generations or base64, and a prompt that says what "
                f"to change; a mask limits where. {_COSTS} The sources are never changed. {_WAITING}"
            ),
            arguments=arguments.EditImage,
            result=results.JobReport,
            draw=drawing.edit_image,
            read_only=False,
            idempotent=False,
        ),
        Operation(
            name="transform_image",
            title="Transform image",
            description=(
                "Draws a given picture anew in another style or form, as the prompt says. "
                f"{_COSTS} The sources are never changed. {_WAITING}"
            ),
            arguments=arguments.TransformImage,
            result=results.JobReport,
            draw=drawing.transform_image,
            read_only=False,
            idempotent=False,
        ),
        Operation(
            name="start_generation_job",
            title="Start a drawing job",
            description=(
                "Orders a picture as generate_image, edit_image or transform_image would, with all their arguments, and answers "
                f"at once with the job's id. {_COSTS} Ask wait_for_job or check_job_status for it later. With an "
                "idempotency_key the same order is never drawn twice."
            ),
            arguments=arguments.StartGenerationJob,
            result=results.JobReport,
            draw=drawing.start_generation_job,
            answers_at_once=True,
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
            ask=questions.list_history,
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
            ask=questions.get_history_by_uuid,
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
            ask=questions.list_jobs,
        ),
        Operation(
            name="check_job_status",
            title="Check a job",
            description="Tells where one drawing job stands and what to do next. Free, changes nothing, answers at once.",
            arguments=arguments.JobOnly,
            result=results.JobReport,
            ask=questions.check_job_status,
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
            ask=questions.get_job_result,
        ),
        Operation(
            name="wait_for_job",
            title="Wait for a job",
            description=(
                "Waits until a drawing job is over, but not longer than wait_seconds, and answers like get_job_result with how "
                "it stands then; a job that is still being drawn is no error, wait again. Free, changes nothing."
            ),
            arguments=arguments.WaitForJob,
            result=results.JobReport,
            ask=drawing.wait_for_job,
        ),
        Operation(
            name="cancel_job",
            title="Cancel a job",
            description=(
                "Cancels a drawing job. One that waits costs nothing; of one that is being drawn the connection is closed, but "
                "OpenAI may still bill it, and a picture that has already arrived is kept. Free itself."
            ),
            arguments=arguments.JobOnly,
            result=results.JobReport,
            ask=drawing.cancel_job,
            read_only=False,
            destructive=True,
        ),
        Operation(
            name="retry_job",
            title="Draw a job again",
            description=(
                "Orders once more what a failed, cancelled or interrupted job was asked for, and answers at once with the new "
                f"job's id. {_COSTS} What may have been billed already may then be paid twice: ask the user first. Asked again "
                "for the same job, it answers with the same new one."
            ),
            arguments=lost_jobs.RetryJob,
            result=results.JobReport,
            draw=lost_jobs.retry_job,
            read_only=False,
        ),
        Operation(
            name="get_spending",
            title="Show what was spent",
            description=(
                "What drawing has cost in US dollars, by day, model, client or key, beside its estimates, and which jobs may "
                "have been billed without a picture. Free, changes nothing."
            ),
            arguments=money.GetSpending,
            result=money.SpendingReport,
            ask=money.get_spending,
        ),
        Operation(
            name="list_generated_images",
            title="List picture files",
            description=(
                "Lists the picture files in the output directory, or in a folder below it or below an input directory, newest "
                "first. Free, changes nothing."
            ),
            arguments=arguments.ListGeneratedImages,
            result=results.ImagesPage,
            ask=questions.list_generated_images,
        ),
        Operation(
            name="get_metadata_from_image",
            title="Read a picture's metadata",
            description=(
                "What a picture file says of its making - tool, prompt, model, UUID - and whether it is exactly the file that "
                "this history saved. Free, changes nothing."
            ),
            arguments=arguments.GetMetadataFromImage,
            result=results.ImageMetadata,
            ask=questions.get_metadata_from_image,
        ),
        Operation(
            name="resolve_job",
            title="Say whether a job was billed",
            description=(
                "Records what OpenAI's bill says of a job whose outcome is unknown: billed or not. It is then counted as that. "
                "Cannot be undone. Free."
            ),
            arguments=lost_jobs.ResolveJob,
            result=results.JobReport,
            ask=lost_jobs.resolve_job,
            read_only=False,
            idempotent=False,
            for_people=True,
        ),
        Operation(
            name="approve_order",
            title="Approve an order",
            description=(
                "Lets one order be drawn that may cost more than IMAGED_CONFIRM_USD, once and within a quarter of an hour. For "
                "people only."
            ),
            arguments=consent.ApproveOrder,
            result=consent.Approval,
            ask=consent.approve_order,
            read_only=False,
            for_people=True,
        ),
        Operation(
            name="list_models",
            title="List the models",
            description="Every model with sizes, qualities, formats, prices and the day on which it goes. Free, changes nothing.",
            arguments=arguments.NoArguments,
            result=money.ModelList,
            ask=money.list_models,
            for_people=True,
        ),
        Operation(
            name="forget",
            title="Forget a generation",
            description=(
                "Removes the words of one generation - prompt, file names, messages - from the log and the index, and its "
                "pictures from the store; what it cost stays on record. With files, the saved pictures too. Cannot be undone."
            ),
            arguments=forgetting.Forget,
            result=forgetting.Forgotten,
            ask=forgetting.forget,
            read_only=False,
            destructive=True,
            for_people=True,
        ),
        Operation(
            name="import_history",
            title="Import the old history",
            description=(
                "Takes over the history of openai-gpt-image-mcp-server, marked as imported; what is here already stays as it is. "
                "Free."
            ),
            arguments=arguments.ImportHistory,
            result=results.HistoryImport,
            ask=importing.import_history,
            read_only=False,
            for_people=True,
        ),
        Operation(
            name="wait_for_jobs",
            title="Wait for jobs",
            description="Answers when one of these jobs has changed, all are over, or the time is up. Free, changes nothing.",
            arguments=arguments.WaitForJobs,
            result=results.JobsNow,
            ask=questions.wait_for_jobs,
            for_people=True,
        ),
        Operation(
            name="get_status",
            title="Show the daemon's status",
            description="Version, process, jobs, sessions and the log's head. Free, changes nothing.",
            arguments=arguments.NoArguments,
            result=Status,
            ask=questions.get_status,
            for_people=True,
        ),
        Operation(
            name="stop_daemon",
            title="Stop the daemon",
            description="Closes the doors, lets running jobs end and stops the daemon.",
            arguments=arguments.Stop,
            result=Stopping,
            ask=stop_daemon,
            read_only=False,
            for_people=True,
        ),
    )
}
