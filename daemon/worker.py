"""The life of one running job. Every way out leaves a fact.

The order that keeps pictures and money safe:
`AttemptStarted` durable → request → the reply's pictures durable in the store → the reply's figures durable
in the spool → `ReplyReceived` → files in their place → `JobCompleted`. A crash between any two of these is
put right at the next start from what the earlier one left behind.
"""

import itertools
import logging
import random
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import msgspec
import trio

from daemon import decisions
from daemon.config import Secret
from daemon.keyring import Keyring
from daemon.ledger import Decision, Ledger, RunBlocking
from daemon.post import Post, RawReply
from daemon.previews import Previews
from eventlog.disk import Disk
from eventlog.events import AttemptFailed, AttemptStarted, JobCompleted, ReplyReceived
from eventlog.jobs import Job, Stage
from eventlog.values import Cost, ImageFile, ImageRequest, JobId, Picture, Words, digest
from tools import metadata, openai_api, pricing, rate_limits, svg
from tools.errors import FileFailed, Refused
from tools.files import OutputRoot
from tools.names import OutputName
from tools.openai_api import ApiRequest, Failure, Reply
from tools.pictures import BadPicture
from tools.store import Store

JOB_SECONDS_MAX = 1800.0  # from the worker's start; three full attempts at the slowest sizes measured
RECORD_SECONDS_MAX = 20.0  # the last fact of a job; a healthy disk needs milliseconds
BACK_OFF_SECONDS_MAX = 60.0
STORE_TRIES = 5  # before the picture, which is paid for and in memory only, is put straight into its place
STORE_WAIT_SECONDS = 4.0
STORE_SECONDS_MAX = 1800.0  # if that takes nothing either: a full disk is emptied some time
ATTEMPTS_MAX = {"rate_limited": 8, "not_sent": 4, "server_error": 3}
"""By what went wrong, all attempts of the job counted. Anything else is not tried again."""

_Patience = Literal["store", "rescue", "last try"]
logger = logging.getLogger(__name__)


class Worker:
    """Draws one job at a time per call of `run`; many run at once. `disk` is where the finished files go."""

    def __init__(
        self,
        ledger: Ledger,
        post: Post,
        keyring: Keyring,
        store: Store,
        *,
        disk: Disk | None = None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._ledger = ledger
        self._post = post
        self._keyring = keyring
        self._store = store
        self._disk = disk or Disk()
        self._run_blocking = run_blocking

    async def run(self, job_id: JobId) -> None:
        """Returns when the job is over, or when it is cancelled from outside and has said so."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_unwanted, job_id, nursery.cancel_scope)
                await self._draw(job_id)
                nursery.cancel_scope.cancel()
        finally:
            with trio.fail_after(RECORD_SECONDS_MAX, shield=True):
                await self._ledger.record(decisions.leave_job(job_id))

    async def _stop_when_unwanted(self, job_id: JobId, drawing: trio.CancelScope) -> None:
        while True:
            seen = self._ledger.position
            job = self._ledger.board.get(job_id)
            if job is not None and job.cancel_requested:
                drawing.cancel()
                return
            await self._ledger.wait_beyond(seen)

    async def _draw(self, job_id: JobId) -> None:
        give_up_at = trio.current_time() + JOB_SECONDS_MAX
        resumed = True
        while (job := self._ledger.board.get(job_id)) is not None:
            match job.stage:
                case Stage.STARTED if job.puts_what_was_kept:
                    await self._finish(job, resumed=resumed)
                case Stage.STARTED:
                    if resumed:  # the daemon before this one had perhaps been told to wait
                        await trio.sleep(seconds_left(job, datetime.now(UTC)))
                    await self._attempt(job, give_up_at)
                case Stage.REPLIED:
                    await self._finish(job, resumed=resumed)
                case _:
                    return
            resumed = False

    async def _attempt(self, job: Job, give_up_at: float) -> None:
        if not await self._may_ask(job, give_up_at):
            return
        attempt = job.attempts + 1
        try:
            request = await self._run_blocking(partial(self._build, job))
        except FileFailed as exc:
            sentence = f"A picture that this starts from is gone from the store, so nothing was sent: {exc}"
            await self._ledger.record(decisions.fail_job(job.id, "source_gone", "no", sentence))
            return
        started = AttemptStarted(
            job=job.id,
            attempt=attempt,
            client_request_id=f"imaged-{job.id}-{attempt}",
            body_sha256=digest(request.body),
        )
        while not await self._ledger.record(decisions.start_attempt(started, self._keyring.total_max)):
            await self._ledger.wait_beyond(self._ledger.position)  # no place; or unwanted, and `_stop_when_unwanted` ends us
        key = self._keyring.key(job.account)
        previews = Previews(self._ledger, self._store, job.request, started, self._run_blocking)
        outcome = await self._post.send(request, job.account, key, started.client_request_id, previews.hear)
        # Shielded, as all that follows except for the waiting: the answer is here and may be paid for, so no stop reaches
        # us before it is on disk. Bounded by decoding one answer of bounded size and writing it.
        with trio.CancelScope(shield=True):
            answer = await self._understand(job, outcome, key)
        if isinstance(answer, Reply):
            await self._receive(job, started, answer)
            return
        with trio.CancelScope(shield=True):
            wait = _seconds_until_next(answer, attempt)
            if wait is not None and answer.code == "rate_limited":
                self._keyring.governor.pause(job.account, wait, answer.message)
            final = wait is None or trio.current_time() + wait > give_up_at
            await self._ledger.record(await self._failed(job, attempt, answer, None if final else wait))
        if wait is not None and not final:
            await trio.sleep(wait)

    async def _may_ask(self, job: Job, give_up_at: float) -> bool:
        """Waits for the key, and for as long as OpenAI wants to be left alone by it. False if that ended the job."""
        while True:
            seen = self._ledger.position
            pause = self._keyring.governor.paused(job.account)
            if not self._keyring.can_draw(job.account):  # after a restart, until a session brings the key again
                await self._ledger.wait_beyond(seen)
            elif pause is None:
                return True
            elif pause.until > give_up_at:
                sentence = f"{pause.why} That lasts until {pause.resumes_at:%Y-%m-%dT%H:%MZ}, which is longer than a job waits."
                await self._ledger.record(decisions.fail_job(job.id, "rate_limited", "no", sentence))
                return False
            else:
                await trio.sleep_until(pause.until)

    def _build(self, job: Job) -> ApiRequest:
        """Blocking. The sources come from the store, as they were when the picture was ordered."""
        wanted = (*job.request.sources, job.request.mask, job.request.markup)
        inputs = {picture.sha256: self._store.get(picture.sha256) for picture in wanted if picture is not None}
        return openai_api.build(job.request, job.prompt or "", inputs)

    async def _understand(self, job: Job, outcome: RawReply | Failure, key: Secret | None) -> Reply | Failure:
        if isinstance(outcome, Failure):
            return outcome
        if (limit := rate_limits.exhausted(outcome.headers)) is not None:
            why = f"OpenAI says that nothing is left of this key's limit on {limit.kind} per minute."
            self._keyring.governor.pause(job.account, limit.seconds, why)
        return await self._run_blocking(partial(_read, job.request, outcome, key))

    async def _receive(self, job: Job, started: AttemptStarted, reply: Reply) -> None:
        """Returns once the reply is in the store and in the log or, if the disk takes it at no price, what became of it is.

        What the store does not take for a while goes straight into its place, which may be on another disk.
        """
        rescued: list[str] = []
        give_up_at = trio.current_time() + STORE_SECONDS_MAX
        tries = itertools.count()
        while not await self._is_safe(job, started, reply, rescued, _patience(next(tries), give_up_at)):
            try:
                await trio.sleep(STORE_WAIT_SECONDS)
            except trio.Cancelled:
                await self._is_safe(job, started, reply, rescued, "last try")
                raise

    async def _is_safe(self, job: Job, started: AttemptStarted, reply: Reply, rescued: list[str], patience: "_Patience") -> bool:
        """False: nothing has been recorded yet."""
        with trio.CancelScope(shield=True):
            try:
                received = await self._run_blocking(partial(self._keep, job, started, reply))
                await self._ledger.record(decisions.receive_reply(received))
            except FileFailed as exc:
                safe = patience != "store" and await self._run_blocking(partial(self._rescue, job, reply, rescued))
                if not safe and patience != "last try":
                    return False
                failure = _not_stored(job, reply, exc, rescued)
                await self._ledger.record(await self._failed(job, started.attempt, failure, None))
        return True

    def _rescue(self, job: Job, reply: Reply, rescued: list[str]) -> bool:
        """Blocking. Whether every picture stands in its place now, as it was received; `rescued` says where."""
        try:
            with OutputRoot.open(job.output_dir or "", any_path=job.any_path, disk=self._disk) as root:
                for number, image in enumerate(reply.images[len(rescued) :], start=len(rescued) + 1):
                    if image.format == "svg":
                        svg.check(image.data)
                    name = _name(root, job, image.format, number, len(reply.images))
                    rescued.append(str(root.place(name, image.data, token=f"{job.id}-{number}")))
        except (Refused, FileFailed, BadPicture) as exc:
            logger.warning("what the store does not take finds no place either", extra={"job": job.id, "why": str(exc)})
            return False
        return True

    def _keep(self, job: Job, started: AttemptStarted, reply: Reply) -> ReplyReceived:
        """Blocking. Pictures first, then the figures: the spool never names a picture that is not durable."""
        pictures = []
        for image in reply.images:
            blob = self._store.put(image.data)
            pictures.append(
                Picture(
                    sha256=blob.sha256,
                    size_bytes=blob.size_bytes,
                    width=image.width,
                    height=image.height,
                    format=image.format,
                )
            )
        received = ReplyReceived(
            job=job.id,
            attempt=started.attempt,
            pictures=tuple(pictures),
            cost=pricing.cost(job.request.model, None if reply.unpriced else reply.usage, backend=job.account.backend),
            usage=reply.usage,
            rendered=reply.rendered,
            request_id=reply.request_id,
        )
        self._store.spool(started.client_request_id, msgspec.json.encode(received))
        return received

    async def _failed(self, job: Job, attempt: int, failure: Failure, wait: float | None) -> Decision:
        """`wait` is the time until the next attempt, None if this was the last."""
        kept = None
        if failure.kept:
            try:
                kept = await self._run_blocking(partial(self._store.put, failure.kept))
            except FileFailed as exc:
                logger.warning("a useless reply could not be kept", extra={"job": job.id, "why": str(exc)})
        failed = AttemptFailed(
            job=job.id,
            attempt=attempt,
            code=failure.code,
            billed="no" if job.account.backend == "offline" else failure.billed,
            status=failure.status,
            request_id=failure.request_id,
            kept=kept,
            usage=failure.usage,
            cost=_cost_of_useless(job, failure),
            wait_seconds=wait,
            moderation_stage=failure.moderation_stage,
            categories=failure.categories,
        )
        return decisions.fail_attempt(failed, failure.message, final=wait is None)

    async def _finish(self, job: Job, *, resumed: bool) -> None:
        # Shielded: the picture is paid for. Bounded by writing and syncing at most ten files.
        with trio.CancelScope(shield=True):
            placed: list[str] = []
            try:
                completed, words = await self._run_blocking(partial(self._place, job, resumed, placed))
            except (Refused, FileFailed, BadPicture) as exc:
                kept = ", ".join(str(self._store.path(picture.sha256)) for picture in job.pictures)
                sentence = f"The picture was drawn and is safe, but could not be put in its place: {exc} It is kept as {kept}."
                sentence += f" In their place already: {', '.join(placed)}." if placed else ""
                await self._ledger.record(decisions.fail_job(job.id, "not_saved", job.billed, sentence))
            else:
                await self._ledger.record(decisions.complete_job(completed, words))
            await self._run_blocking(partial(self._forget_spool, job))

    def _forget_spool(self, job: Job) -> None:
        """Blocking. What stays behind is ignored: the log already holds all of it."""
        if job.puts_what_was_kept:
            return
        try:
            self._store.unspool(job.client_request_id)
        except FileFailed as exc:
            logger.warning("a spooled reply could not be removed", extra={"job": job.id, "why": str(exc)})

    def _place(self, job: Job, resumed: bool, paths: list[str]) -> tuple[JobCompleted, Words]:
        """Blocking. With `resumed` a file that an earlier life put there is found again instead of made twice.

        `paths` says where those are that stand in their place, also when one that follows fails.
        """
        images: list[ImageFile] = []
        sidecars: list[str] = []
        with OutputRoot.open(job.output_dir or "", any_path=job.any_path, disk=self._disk) as root:
            for number, picture in enumerate(job.pictures, start=1):
                received = self._store.get(picture.sha256)
                if picture.format == "svg":
                    svg.check(received)
                provenance = _provenance(job, picture)
                data = received if job.sidecar else metadata.embed(received, provenance, job.embedding)
                name = _name(root, job, picture.format, number, len(job.pictures))
                # Only what bears the job's id is surely this very file; with a sidecar or without metadata nothing does.
                adopt = resumed and data != received
                path = root.place(name, data, token=f"{job.id}-{number}", adopt=adopt)
                paths.append(str(path))
                if job.sidecar:
                    beside = name._replace(stem=path.name, suffix=".xmp")
                    document = metadata.sidecar(provenance, job.embedding)
                    sidecars.append(str(root.place(beside, document, token=f"{job.id}-{number}-xmp", adopt=resumed)))
                images.append(
                    ImageFile(
                        sha256=digest(data),
                        size_bytes=len(data),
                        width=picture.width,
                        height=picture.height,
                        format=picture.format,
                        original=picture.sha256,
                        derived=data != received and metadata.has_credentials(received),
                    )
                )
        return JobCompleted(job=job.id, images=tuple(images)), Words(salt="", paths=tuple(paths), sidecars=tuple(sidecars))


def seconds_left(job: Job, now: datetime) -> float:
    """Until it asks again. Never longer than it was told to wait, whatever the clock has been set to meanwhile."""
    if job.retry_at is None:
        return 0.0
    return max(0.0, min((job.retry_at - now).total_seconds(), (job.retry_at - job.changed_at).total_seconds()))


def _patience(tries: int, give_up_at: float) -> _Patience:
    if trio.current_time() >= give_up_at:
        return "last try"
    return "store" if tries < STORE_TRIES else "rescue"


def _name(root: OutputRoot, job: Job, output_format: str, number: int, count: int) -> OutputName:
    name = root.parse(job.output_path or "", output_format=output_format)
    return name.numbered(number) if count > 1 else name


def _not_stored(job: Job, reply: Reply, why: FileFailed, rescued: list[str]) -> Failure:
    drawn = "The picture was drawn" + ("" if job.account.backend == "offline" else " and charged")
    if len(rescued) == len(reply.images):
        message = f"{drawn}. The store did not take it, so there is only its file, as it was received: "
    else:
        message = f"{drawn}, but it could not be kept: {why} "
        message += "Of its pictures only these are safe: " if rescued else ""
    message += ", ".join(rescued)
    return Failure("not_stored", message.strip(), "yes", status=200, request_id=reply.request_id, usage=reply.usage)


def _read(asked: ImageRequest, said: RawReply, key: Secret | None) -> Reply | Failure:
    """Blocking."""
    status, headers, body = said if key is None else said.without(key)
    return openai_api.read(asked, status, headers, body)


def _cost_of_useless(job: Job, failure: Failure) -> Cost | None:
    if failure.billed != "yes":
        return None
    return pricing.cost(job.request.model, failure.usage, backend=job.account.backend)


def _provenance(job: Job, picture: Picture) -> metadata.Provenance:
    """The same for the same job, however often it is asked: `created` is when the picture was ordered."""
    return metadata.Provenance(
        tool=job.request.tool,
        prompt=job.prompt or "",
        model=job.request.model,
        created=job.requested_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        size=f"{picture.width}x{picture.height}",
        quality=job.rendered.quality or job.request.quality,
        format=picture.format,
        history_uuid=job.id,
        offline=job.account.backend == "offline",
        parameters=job.request,
        edited=bool(job.request.sources),
        derived_from=picture.sha256,
    )


def _seconds_until_next(failure: Failure, attempt: int) -> float | None:
    """None if it is not tried again: only what was surely not billed is, and only so often."""
    if failure.retry == "never" or failure.billed != "no" or attempt >= ATTEMPTS_MAX.get(failure.code, 1):
        return None
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds
    ceiling = min(2.0**attempt, BACK_OFF_SECONDS_MAX)
    return ceiling * random.uniform(0.75, 1.0)
