"""From a drawing operation's arguments to a job on the board: checked, and ordered once.

Rule: everything that can be refused is refused before the job is recorded. The same order is the same job: under the same
key for good and, without one, from the same client until it has been told what became of the first. Agents ask again
when their own patience ends.
"""

import secrets
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from daemon import budgets, decisions, references, results
from daemon.approvals import NeedsApproval
from daemon.arguments import Draw, EditImage, GenerateImage, Redraw, Retouch, TransformImage
from daemon.config import HOW_TO_SET_A_KEY, Settings
from daemon.errors import AlreadyOrdered, Refused, Unapproved
from daemon.house import House
from daemon.results import Answer
from daemon.session import Caller
from daemon.untold import of_order
from eventlog.events import JobRequested, RequestReceived
from eventlog.jobs import Job, Stage
from eventlog.values import (
    Caps,
    CostRange,
    ImageRequest,
    JobId,
    JobState,
    MicroUSD,
    Picture,
    Position,
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

DRY_RUN = "dry_run"
PROMPT_SHOWN_MAX = 300  # characters, where a person is asked
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


class Ordered(NamedTuple):
    job: JobId
    warnings: tuple[str, ...]


class Order(NamedTuple):
    tool: Tool
    asked: Draw
    output_path: str

    @property
    def key(self) -> str | None:
        return self.asked.idempotency_key

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
            partial_images=asked.partial_images,
        )


async def order(house: House, caller: Caller, received: RequestReceived, words: Words, wanted: Order) -> Ordered:
    """The job that draws this, a new one or the one that does so already.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    if wanted.key is None:
        return await _order_anew(house, caller, received, words, wanted)
    async with house.keyed_orders:  # two with the same key, one after the other
        earlier = await _ordered_before(house, caller, received, words, wanted)
        return earlier or await _order_anew(house, caller, received, words, wanted)


async def _order_anew(house: House, caller: Caller, received: RequestReceived, words: Words, wanted: Order) -> Ordered:
    if not caller.session.settings.can_draw:
        raise Refused(HOW_TO_SET_A_KEY, code="no_key")
    placing, snapshot = await _placing(house, caller, wanted)
    ordered = await place(house, caller, received, words, placing, snapshot)
    return Ordered(ordered.job, (*snapshot.warnings, *ordered.warnings))


async def rehearse(house: House, caller: Caller, received: RequestReceived, words: Words, wanted: Order) -> Answer:
    """What would be ordered and what it may cost, with every check that an order has to pass. Nothing is drawn or kept.

    Raises:
        Refused: as the order would be.
    """
    placing, snapshot = await _placing(house, caller, wanted)
    requested, warnings = await _checked(house, caller, placing)
    settings = caller.session.settings
    caps = msgspec.structs.replace(settings.caps, confirm=None)  # a rehearsal asks nobody, but says who will be asked
    if asks := budgets.needs_approval(settings.caps, requested.estimate.high):
        warnings = (*warnings, f"The user will be asked. {asks}")
    terms = decisions.Terms(house.now(), caps=caps, pace=settings.pace)
    would_say = msgspec.structs.replace(words, prompt=placing.prompt)
    house.ledger.consider(decisions.request_job(received, requested, would_say, terms))
    said = {"prompt": placing.prompt, "output_path": placing.output_path}
    arguments = {**words.arguments, **{name: msgspec.Raw(msgspec.json.encode(text)) for name, text in said.items()}}
    await house.ledger.post(decisions.receive_request(received, msgspec.structs.replace(words, arguments=arguments)))
    would_be = Job(
        id=JobId(""),
        stage=Stage.REQUESTED,
        position=Position(0),
        requested_position=Position(0),
        requested_at=house.now(),
        changed_at=house.now(),
        request=requested.request,
        account=requested.account,
        client=requested.client,
        estimate=requested.estimate,
        embedding=requested.embedding,
        any_path=requested.any_path,
        prompt=placing.prompt,
        output_path=placing.output_path,
        output_dir=str(caller.session.settings.output_dir),
        source_names=placing.source_names,
    )
    message = f"Nothing was ordered. It would be drawn, and cost {pricing.show_range(requested.estimate)}."
    if requested.account.backend == "offline":
        message = "Nothing was ordered. It would be a placeholder, drawn offline for nothing."
    report = results.report(would_be, warnings=(*snapshot.warnings, *warnings), message=message)
    return Answer(msgspec.structs.replace(report, state=DRY_RUN))


async def _placing(house: House, caller: Caller, wanted: Order) -> tuple["Placing", references.Snapshot]:
    """
    Raises:
        Refused: of the pictures it starts from, or of arguments that contradict each other.
    """
    settings, asked = caller.session.settings, wanted.asked
    snapshot = NO_PICTURES
    if isinstance(asked, Redraw) and wanted.tool != "generate_image":
        snapshot = await references.gather(house, caller, asked)
    placing = Placing(
        request=wanted.request(settings, snapshot),
        prompt=asked.prompt,
        output_path=wanted.output_path,
        source_names=snapshot.names,
        request_key=wanted.request_key(settings),
        again=asked.again or wanted.key is not None,
    )
    return placing, snapshot


class Placing(NamedTuple):
    """What is to be drawn, in the form in which it is recorded. Its sources are in the store, or in a snapshot.

    `again`: another picture is wanted even if the same order is under way.
    """

    request: ImageRequest
    prompt: str
    output_path: str
    source_names: tuple[str, ...] = ()
    request_key: str = ""
    retry_of: Job | None = None
    again: bool = False

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
) -> Ordered:
    """Checks everything that can be known before money is spent, and records the job.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    settings = caller.session.settings
    if not settings.can_draw:
        raise Refused(HOW_TO_SET_A_KEY, code="no_key")
    requested, warnings = await _checked(house, caller, placing)
    words = msgspec.structs.replace(
        words,
        prompt=placing.prompt,
        output_path=placing.output_path,
        output_dir=str(settings.output_dir),
        sources=placing.source_names,
    )
    terms = decisions.Terms(
        house.now(),
        untold=None if placing.again else house.untold,
        caps=settings.caps,
        caps_known=house.caps_known.get(caller.client.name, Caps()),
        pace=settings.pace,
    )
    order = of_order(requested, words)
    requested = msgspec.structs.replace(requested, approved_by=house.approvals.take(order))
    try:
        # What others forget meanwhile stays in the store, if this order begins with it.
        async with house.keeping if placing.request.sources else nullcontext():
            await _put(house, snapshot)
            await house.ledger.record(decisions.request_job(received, requested, words, terms))
    except Unapproved as unapproved:
        question = f"{caller.client.name} wants to draw: {_shown(placing.prompt)} {unapproved}"
        raise NeedsApproval(question, house.approvals.ask(order, question)) from unapproved
    except AlreadyOrdered as same:
        await house.ledger.post(decisions.receive_request(received, words))
        told = f"The same picture was ordered before as job {same.job}, and its answer had not been given: nothing new is drawn. "
        return Ordered(same.job, (told + "For another one of the same kind say again: true.", *warnings))
    house.caps_known[caller.client.name] = settings.caps
    house.untold.add(requested, words)
    return Ordered(requested.job, warnings)


async def _put(house: House, snapshot: references.Snapshot) -> None:
    try:
        await trio.to_thread.run_sync(partial(snapshot.put, house.store))
    except FileFailed as exc:
        raise Refused(str(exc), code=exc.code, argument="output_path") from exc


async def _checked(house: House, caller: Caller, placing: Placing) -> tuple[JobRequested, tuple[str, ...]]:
    """What is to be recorded, and what its asker should know.

    Raises:
        Refused: it cannot be drawn, or not put where it should go.
    """
    settings, request, earlier = caller.session.settings, placing.request, placing.retry_of
    warnings = () if placing.kept else models.check(request, placing.prompt, house.now().date())
    try:
        await trio.to_thread.run_sync(partial(_check_output, settings, placing.output_path, request))
        await trio.to_thread.run_sync(partial(house.store.check_room, request.count))
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
    return requested, warnings


async def _ordered_before(house: House, caller: Caller, received: RequestReceived, words: Words, wanted: Order) -> Ordered | None:
    """The job that was ordered under this key, None if there is none.

    Raises:
        Refused: the key was used for something else.
    """
    settings = caller.session.settings
    job = await house.find_job_of_key(wanted.request_key(settings))
    if job is None:
        return None
    asked = wanted.asked
    names = references.names(asked) if isinstance(asked, Redraw) else ()
    masks = [isinstance(asked, Retouch) and bool(asked.mask_image_path or asked.mask_image_base64)]
    masks.append(isinstance(asked, Retouch) and bool(asked.markup_image_path or asked.markup_image_base64))
    same = (
        msgspec.structs.replace(job.request, sources=(), mask=None, markup=None)
        == wanted.request(settings, references.Snapshot())
        and masks == [job.request.mask is not None, job.request.markup is not None]
        and (job.prompt is None or (job.prompt, job.source_names) == (asked.prompt, names))
        and (job.output_path is None or (job.output_path, job.output_dir) == (wanted.output_path, str(settings.output_dir)))
    )
    if not same:
        raise Refused(
            f"idempotency_key {wanted.key!r} was used for another picture, job {job.id}; choose a new key.",
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
    return Ordered(job.id, (told,))


def _shown(prompt: str) -> str:
    """Bounded, and nothing in it acts on whatever shows it."""
    clean = "".join(character if character.isprintable() else " " for character in prompt[: PROMPT_SHOWN_MAX + 1])
    return f'"{clean if len(clean) <= PROMPT_SHOWN_MAX else clean[:PROMPT_SHOWN_MAX] + "…"}".'


def retry_key(job: JobId) -> Sha256:
    """The request key of the one job that may be ordered in the place of this one."""
    return digest(msgspec.json.encode(["retry", job]))


def _check_output(settings: Settings, output_path: str, request: ImageRequest) -> None:
    """Blocking. Everything about the place that can be known before money is spent."""
    OutputRoot.check(
        settings.output_dir,
        output_path,
        any_path=settings.any_path,
        output_format=request.output_format,
        count=request.count,
    )
