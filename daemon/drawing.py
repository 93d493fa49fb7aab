"""The drawing operations: from an order to what its asker gets.

Rule: once the job is recorded (`daemon/ordering.py`) the answer tells of the job, whatever becomes of it. A caller who
leaves, or waits no longer, does not stop the job.
"""

import msgspec
import trio

from daemon import decisions, ordering, questions, results, telling
from daemon.arguments import EditImage, GenerateImage, JobOnly, StartGenerationJob, TransformImage, WaitForJob
from daemon.errors import Refused
from daemon.house import House
from daemon.ordering import Order
from daemon.results import Answer
from daemon.session import Caller
from eventlog.errors import IndexUnavailable
from eventlog.events import RequestReceived
from eventlog.jobs import Job, Stage
from eventlog.values import JobId, JobState, Words

HEARTBEAT_SECONDS = 2.0  # clients that reset their patience on progress want one every 10 s at least
CANCEL_SECONDS_MAX = 10.0  # a connection is closed at once; a reply that is being saved needs a moment


async def generate_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: GenerateImage) -> Answer:
    """Orders the picture and waits for it, at most `sync_wait_seconds`. With `dry_run` says what it would cost.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    return await _draw(house, caller, received, words, Order("generate_image", asked, asked.output_path))


async def edit_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: EditImage) -> Answer:
    return await _draw(house, caller, received, words, Order("edit_image", asked, asked.output_path))


async def transform_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: TransformImage) -> Answer:
    return await _draw(house, caller, received, words, Order("transform_image", asked, asked.output_path))


async def start_generation_job(
    house: House, caller: Caller, received: RequestReceived, words: Words, asked: StartGenerationJob
) -> Answer:
    """Orders the picture and answers at once. With a key that was used before, answers with the job it ordered then.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    wanted = Order(asked.tool_name, asked, asked.output_path or ordering.DEFAULT_NAMES[asked.tool_name])
    _refuse_foreign_arguments(asked)
    if asked.dry_run:
        return await ordering.rehearse(house, caller, received, words, wanted)
    job_id, warnings = await ordering.order(house, caller, received, words, wanted)
    return await telling.tell_now(house, job_id, settings=caller.session.settings, warnings=warnings)


async def cancel_job(house: House, caller: Caller, asked: JobOnly) -> Answer:
    """Asks the job to stop and says what became of it. A reply that is here already is kept: it is paid for.

    Raises:
        Refused: there is no such job, or it is over already.
    """
    job = await house.find_job(asked.job_id)
    if job is None:
        raise Refused(
            f"There is no job {asked.job_id[:64]}; list_jobs shows those there are.", code="no_such_job", argument="job_id"
        )
    if job.state.is_over:
        raise Refused(decisions.already_over(job), code="already_over", argument="job_id")
    await house.ledger.record(decisions.cancel_job(job.id))
    with trio.move_on_after(CANCEL_SECONDS_MAX):
        while not job.state.is_over:
            seen = house.ledger.position
            job = await house.find_job(job.id) or job
            if not job.state.is_over:
                await house.ledger.wait_beyond(seen)
    await house.ledger.durable(job.position)
    answer = await telling.tell(house, job, settings=caller.session.settings)
    return msgspec.structs.replace(answer, failed=False)


async def wait_for_job(house: House, caller: Caller, asked: WaitForJob) -> Answer:
    """The job when it is over or, after `wait_seconds`, as it stands: that is no error.

    Raises:
        Refused: there is no such job.
    """
    job = await questions.find(house, asked.job_id, "job_id")
    settings = caller.session.settings
    patience = settings.sync_wait_seconds if asked.wait_seconds is None else asked.wait_seconds
    return await telling.tell(
        house,
        await _wait(house, caller, job.id, patience),
        picture_wanted=asked.return_base64,
        thumbnail_wanted=telling.wants_thumbnail(settings, asked.include_thumbnail),
        settings=settings,
    )


async def _draw(house: House, caller: Caller, received: RequestReceived, words: Words, wanted: Order) -> Answer:
    if wanted.asked.dry_run:
        return await ordering.rehearse(house, caller, received, words, wanted)
    job_id, warnings = await ordering.order(house, caller, received, words, wanted)
    try:
        job = await _wait(house, caller, job_id, caller.session.settings.sync_wait_seconds)
    except IndexUnavailable as exc:
        ordered = f"The picture was ordered as job {job_id} and is being drawn; do not ask for it again. {exc}"
        raise IndexUnavailable(ordered) from exc
    settings = caller.session.settings
    return await telling.tell(
        house,
        job,
        warnings=warnings,
        picture_wanted=wanted.asked.return_base64,
        thumbnail_wanted=telling.wants_thumbnail(settings, wanted.asked.include_thumbnail),
        settings=settings,
    )


def _refuse_foreign_arguments(asked: StartGenerationJob) -> None:
    """What the chosen tool does not take is refused: a picture that is quietly left out is paid for in vain."""
    takes = {"generate_image": GenerateImage, "transform_image": TransformImage, "edit_image": EditImage}[asked.tool_name]
    known = set(takes.__struct_fields__) | {"tool_name"}
    for name in asked.__struct_fields__:
        if name not in known and getattr(asked, name) is not None:
            raise Refused(f"{asked.tool_name} takes no {name}; leave it out.", code="bad_arguments", argument=name)


async def _wait(house: House, caller: Caller, job_id: JobId, patience_seconds: float) -> Job:
    """The job when it is over, or as it stands when the caller's patience ends. Tells its progress meanwhile."""
    started = trio.current_time()
    give_up_at = started + patience_seconds
    told: tuple[Stage, int, int] | None = None
    next_beat = started
    while True:
        seen = house.ledger.position
        job = await house.find_job(job_id)
        if job is None:
            raise AssertionError(f"job {job_id} is neither on the board nor in the index")
        now = trio.current_time()
        begins_no_more = house.closing.begun and job.state is not JobState.RUNNING
        if job.state.is_over or now >= give_up_at or begins_no_more:
            await house.ledger.durable(job.position)
            return job
        stands = (job.stage, job.attempts, len(job.previews))
        if stands != told or now >= next_beat:
            await house.ledger.durable(job.position)
            told = stands
            next_beat = now + HEARTBEAT_SECONDS
            await caller.progress(now - started, _progress(house, job, now - started))
        with trio.move_on_at(min(give_up_at, next_beat)):
            await house.ledger.wait_beyond(seen)


def _progress(house: House, job: Job, seconds: float) -> str:
    match job.stage:
        case Stage.REQUESTED | Stage.STARTED if not house.keyring.can_draw(job.account):
            return "waiting for an API key"
        case Stage.REQUESTED | Stage.STARTED if (pause := house.keyring.governor.paused(job.account)) is not None:
            return f"waiting until {results.time(pause.resumes_at)}: {pause.why}"
        case Stage.REQUESTED:
            return "waiting for a free place"
        case Stage.STARTED if job.retry_at is not None:
            return f"{job.error_code}; trying again at {results.time(job.retry_at)}"
        case Stage.STARTED:
            return "starting"
        case Stage.REPLIED:
            return "received; saving"
        case _ if job.previews:
            there, wanted = len(job.previews), job.request.partial_images * job.request.count
            return f"preview {there} of {wanted} is there: imaged://preview/{job.id}/{there}; {seconds:.0f} s so far"
        case _:
            return f"drawing with {job.request.model}, {seconds:.0f} s so far"
