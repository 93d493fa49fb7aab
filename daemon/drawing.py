"""From a drawing operation's arguments to a job on the board, and from there to what its asker gets.

Rule: everything that can be refused is refused before the job is recorded; once it is recorded the answer
tells of the job, whatever becomes of it. A caller who leaves, or waits no longer, does not stop the job.
"""

import secrets
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from daemon import decisions, references, results, telling
from daemon.arguments import Draw, EditImage, GenerateImage, JobOnly, Redraw, Retouch, StartGenerationJob, TransformImage
from daemon.config import HOW_TO_SET_A_KEY, Settings
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer
from daemon.session import Caller
from eventlog.errors import IndexUnavailable
from eventlog.events import JobRequested, RequestReceived
from eventlog.jobs import Job, Stage
from eventlog.values import (
    CostRange,
    ImageRequest,
    JobId,
    JobState,
    MicroUSD,
    Picture,
    Rendered,
    Sha256,
    Tool,
    Words,
    digest,
    make_job_id,
)
from tools import models, pricing
from tools.errors import FileFailed
from tools.files import OutputRoot

HEARTBEAT_SECONDS = 2.0  # clients that reset their patience on progress want one every 10 s at least
CANCEL_SECONDS_MAX = 10.0  # a connection is closed at once; a reply that is being saved needs a moment
NO_PICTURES = references.Snapshot()
_CAME_TO_NOTHING = {
    JobState.FAILED: "failed",
    JobState.CANCELLED: "was cancelled",
    JobState.INTERRUPTED: "was interrupted, and may be billed",
}
DEFAULT_NAMES: Mapping[Tool, str] = {
    "generate_image": GenerateImage(prompt="").output_path,
    "edit_image": EditImage(prompt="").output_path,
    "transform_image": TransformImage(prompt="").output_path,
}


async def generate_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: GenerateImage) -> Answer:
    """Orders the picture and waits for it, at most `sync_wait_seconds`.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    return await _draw(house, caller, received, words, _Order("generate_image", asked, asked.output_path))


async def edit_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: EditImage) -> Answer:
    return await _draw(house, caller, received, words, _Order("edit_image", asked, asked.output_path))


async def transform_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: TransformImage) -> Answer:
    return await _draw(house, caller, received, words, _Order("transform_image", asked, asked.output_path))


async def start_generation_job(
    house: House, caller: Caller, received: RequestReceived, words: Words, asked: StartGenerationJob
) -> Answer:
    """Orders the picture and answers at once. With a key that was used before, answers with the job it ordered then.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    order = _Order(asked.tool_name, asked, asked.output_path or DEFAULT_NAMES[asked.tool_name], asked.idempotency_key)
    _refuse_foreign_arguments(asked)
    if order.key is None:
        job_id, warnings = await _order(house, caller, received, words, order)
    else:
        async with house.keyed_orders:  # two with the same key, one after the other
            earlier = await _ordered_before(house, caller, received, words, order)
            job_id, warnings = earlier or await _order(house, caller, received, words, order)
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


class _Order(NamedTuple):
    tool: Tool
    asked: Draw
    output_path: str
    key: str | None = None

    def request_key(self, settings: Settings) -> str:
        """The key as one account uses it: nobody is answered with what somebody else pays for, or with a trial."""
        return (
            ""
            if self.key is None
            else digest(msgspec.json.encode([settings.account, digest(self.key.encode("utf-8", "replace"))]))
        )

    def request(self, settings: Settings, snapshot: references.Snapshot) -> ImageRequest:
        """
        Raises:
            Refused: two arguments contradict each other.
        """
        asked = self.asked
        if asked.transparent_background and asked.background == "opaque":
            raise Refused(
                "transparent_background is true and background is opaque; leave one of them out.",
                code="bad_arguments",
                argument="background",
            )
        return ImageRequest(
            tool=self.tool,
            model=asked.model or settings.model,
            count=asked.sample_count,
            size=asked.size,
            quality=asked.quality,
            output_format=asked.output_format,
            background="transparent" if asked.transparent_background else asked.background,
            moderation=asked.moderation,
            output_compression=asked.output_compression,
            sources=tuple(references.picture(source) for source in snapshot.references),
            mask=snapshot.mask and references.picture(snapshot.mask),
            markup=snapshot.markup and references.picture(snapshot.markup),
            input_fidelity=asked.input_fidelity if isinstance(asked, Redraw) else None,
        )


async def _draw(house: House, caller: Caller, received: RequestReceived, words: Words, order: _Order) -> Answer:
    job_id, warnings = await _order(house, caller, received, words, order)
    try:
        job = await _wait(house, caller, job_id)
    except IndexUnavailable as exc:
        ordered = f"The picture was ordered as job {job_id} and is being drawn; do not ask for it again. {exc}"
        raise IndexUnavailable(ordered) from exc
    settings = caller.session.settings
    return await telling.tell(
        house,
        job,
        warnings=warnings,
        picture_wanted=order.asked.return_base64,
        thumbnail_wanted=telling.wants_thumbnail(settings, order.asked.include_thumbnail),
        settings=settings,
    )


async def _order(
    house: House, caller: Caller, received: RequestReceived, words: Words, order: _Order
) -> tuple[JobId, tuple[str, ...]]:
    settings = caller.session.settings
    if not settings.can_draw:
        raise Refused(HOW_TO_SET_A_KEY, code="no_key")
    snapshot = NO_PICTURES
    if isinstance(order.asked, Redraw) and order.tool != "generate_image":
        snapshot = await references.gather(house, caller, order.asked)
    placing = Placing(
        request=order.request(settings, snapshot),
        prompt=order.asked.prompt,
        output_path=order.output_path,
        source_names=snapshot.names,
        request_key=order.request_key(settings),
    )
    job_id, warnings = await place(house, caller, received, words, placing, snapshot)
    return job_id, (*snapshot.warnings, *warnings)


class Placing(NamedTuple):
    """What is to be drawn, in the form in which it is recorded. Its sources are in the store, or in a snapshot."""

    request: ImageRequest
    prompt: str
    output_path: str
    source_names: tuple[str, ...] = ()
    request_key: str = ""
    retry_of: Job | None = None

    @property
    def kept(self) -> tuple[Picture, ...]:
        """What is in the store already, and is only to be put in its place."""
        return self.retry_of.pictures if self.retry_of is not None else ()

    def estimate(self) -> CostRange:
        bounds = pricing.estimate(self.request, self.prompt)
        return msgspec.structs.replace(bounds, low=MicroUSD(0), high=MicroUSD(0)) if self.kept else bounds


async def place(
    house: House,
    caller: Caller,
    received: RequestReceived,
    words: Words,
    placing: Placing,
    snapshot: references.Snapshot = NO_PICTURES,
) -> tuple[JobId, tuple[str, ...]]:
    """Checks everything that can be known before money is spent, and records the job. Returns what its asker should know.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    settings, request, earlier = caller.session.settings, placing.request, placing.retry_of
    if not settings.can_draw:
        raise Refused(HOW_TO_SET_A_KEY, code="no_key")
    warnings = () if placing.kept else models.check(request, placing.prompt, house.now().date())
    try:
        await trio.to_thread.run_sync(partial(_check_output, settings, placing.output_path, request))
        await trio.to_thread.run_sync(partial(house.store.check_room, request.count))
        await trio.to_thread.run_sync(partial(snapshot.put, house.store))
    except FileFailed as exc:
        raise Refused(str(exc), code=exc.code, argument="output_path") from exc
    requested = JobRequested(
        job=make_job_id(house.now(), secrets.token_bytes(10)),
        request=request,
        account=settings.account,
        client=caller.client,
        estimate=placing.estimate(),
        embedding=settings.embedding,
        any_path=settings.any_path,
        sidecar=settings.sidecar,
        request_key=placing.request_key,
        retry_of=earlier.id if earlier else None,
        kept=placing.kept,
        rendered=earlier.rendered if earlier and placing.kept else Rendered(),
    )
    words = msgspec.structs.replace(
        words,
        prompt=placing.prompt,
        output_path=placing.output_path,
        output_dir=str(settings.output_dir),
        sources=placing.source_names,
    )
    await house.ledger.record(decisions.request_job(received, requested, words))
    return requested.job, warnings


async def _ordered_before(
    house: House, caller: Caller, received: RequestReceived, words: Words, order: _Order
) -> tuple[JobId, tuple[str, ...]] | None:
    """The job that was ordered under this key, None if there is none.

    Raises:
        Refused: the key was used for something else.
    """
    settings = caller.session.settings
    job = await house.find_job_of_key(order.request_key(settings))
    if job is None:
        return None
    asked = order.asked
    names = references.names(asked) if isinstance(asked, Redraw) else ()
    masks = [isinstance(asked, Retouch) and bool(asked.mask_image_path or asked.mask_image_base64)]
    masks.append(isinstance(asked, Retouch) and bool(asked.markup_image_path or asked.markup_image_base64))
    same = (
        msgspec.structs.replace(job.request, sources=(), mask=None, markup=None) == order.request(settings, references.Snapshot())
        and masks == [job.request.mask is not None, job.request.markup is not None]
        and (job.prompt is None or (job.prompt, job.source_names) == (asked.prompt, names))
        and (job.output_path is None or (job.output_path, job.output_dir) == (order.output_path, str(settings.output_dir)))
    )
    if not same:
        raise Refused(
            f"idempotency_key {order.key!r} was used for another picture, job {job.id}; choose a new key.",
            code="key_reused",
            argument="idempotency_key",
        )
    await house.ledger.post(decisions.receive_request(received, words))
    told = "The job had been ordered before with this idempotency_key; nothing new is drawn."
    first = job.id
    while (retry := await house.find_job_of_key(retry_key(job.id))) is not None:
        job = retry
    if job.id != first:
        told += f" Job {first} came to nothing, and this is the one that was ordered in its place by retry_job."
    if job.state in _CAME_TO_NOTHING:
        told += f" It {_CAME_TO_NOTHING[job.state]}; retry_job orders the picture again."
    return job.id, (told,)


def retry_key(job: JobId) -> Sha256:
    """The request key of the one job that may be ordered in the place of this one."""
    return digest(msgspec.json.encode(["retry", job]))


def _refuse_foreign_arguments(asked: StartGenerationJob) -> None:
    """What the chosen tool does not take is refused: a picture that is quietly left out is paid for in vain."""
    takes = {"generate_image": GenerateImage, "transform_image": TransformImage, "edit_image": EditImage}[asked.tool_name]
    known = set(takes.__struct_fields__) | {"tool_name", "idempotency_key"}
    for name in asked.__struct_fields__:
        if name not in known and getattr(asked, name) is not None:
            raise Refused(f"{asked.tool_name} takes no {name}; leave it out.", code="bad_arguments", argument=name)


def _check_output(settings: Settings, output_path: str, request: ImageRequest) -> None:
    """Blocking. Everything about the place that can be known before money is spent."""
    OutputRoot.check(
        settings.output_dir,
        output_path,
        any_path=settings.any_path,
        output_format=request.output_format,
        count=request.count,
    )


async def _wait(house: House, caller: Caller, job_id: JobId) -> Job:
    """The job when it is over, or as it stands when the caller's patience ends. Tells its progress meanwhile."""
    started = trio.current_time()
    give_up_at = started + caller.session.settings.sync_wait_seconds
    told: tuple[Stage, int] | None = None
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
        if (job.stage, job.attempts) != told or now >= next_beat:
            told = (job.stage, job.attempts)
            next_beat = now + HEARTBEAT_SECONDS
            await caller.progress(now - started, _progress(job, now - started))
        with trio.move_on_at(min(give_up_at, next_beat)):
            await house.ledger.wait_beyond(seen)


def _progress(job: Job, seconds: float) -> str:
    match job.stage:
        case Stage.REQUESTED:
            return "waiting for a free place"
        case Stage.STARTED if job.retry_at is not None:
            return f"{job.error_code}; trying again at {results.time(job.retry_at)}"
        case Stage.STARTED:
            return "starting"
        case Stage.REPLIED:
            return "received; saving"
        case _:
            return f"drawing with {job.request.model}, {seconds:.0f} s so far"
