"""What can be done about a job that came to nothing: draw it again, or say what became of its money.

Rule: a job is drawn again once. Whoever asks a second time gets the job that draws it, and if that one came to nothing,
too, it is that one that is to be asked for again: nobody pays three times for a picture by repeating himself. What was
drawn and could only not be put in its place is put there, and not drawn again.
"""

from functools import partial
from typing import Annotated, Literal

import trio
from msgspec import Meta

from daemon import decisions, ordering, questions, telling
from daemon.arguments import Arguments, JobIdText
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer
from daemon.session import Caller
from eventlog.events import JobResolved, RequestReceived
from eventlog.jobs import Job
from eventlog.values import Account, Cost, JobState, Words
from tools import pricing
from tools.errors import FileFailed


class RetryJob(Arguments, frozen=True, kw_only=True):
    job_id: JobIdText
    output_path: Annotated[
        str | None, Meta(description="Another file name for the picture. Left out: the one that was asked for then.")
    ] = None


class ResolveJob(Arguments, frozen=True, kw_only=True):
    job_id: JobIdText
    outcome: Annotated[Literal["billed", "not_billed"], Meta(description="What OpenAI's usage page or bill says.")]
    amount_usd: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?$")] | None,
        Meta(description="What was billed, in US dollars. Left out: the upper estimate is counted.", examples=["0.042"]),
    ] = None


async def retry_job(house: House, caller: Caller, received: RequestReceived, words: Words, asked: RetryJob) -> Answer:
    """Orders what the job was asked for once more, with the settings of this session, and answers at once.

    The account may be another one, as after a change of the key, but no trial takes the place of a picture that is paid for.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    async with house.keyed_orders:  # two for the same job, one after the other
        job = await questions.find(house, asked.job_id, "job_id")
        _insist_on_backend(job, caller.session.settings.account)
        again = await house.find_job_of_key(ordering.retry_key(job.id))
        if again is None:
            placing = await _placing(house, job, asked)
            job_id, warnings = await ordering.place(house, caller, received, words, placing)
            warnings += _who_pays(job, caller.session.settings.account)
        else:
            _insist_on_hope(job, again)
            await house.ledger.post(decisions.receive_request(received, words))
            job_id, warnings = again.id, (f"Job {job.id} had been asked for again before; nothing new is drawn.",)
            if asked.output_path not in (None, again.output_path):
                warnings += (f"output_path was not used: where job {again.id} puts its picture has been decided.",)
    return await telling.tell_now(house, job_id, settings=caller.session.settings, warnings=warnings)


async def resolve_job(house: House, caller: Caller, asked: ResolveJob) -> Answer:
    """Records what its owner found on the bill, for good.

    Raises:
        Refused: it is not over, or whether it was billed is known.
    """
    job = await questions.find(house, asked.job_id, "job_id")
    if not job.state.is_over:
        raise _no(f"Job {job.id} is {job.state.value}; what it costs is known when it is over.", "not_over")
    cost = None
    if asked.outcome == "billed":
        amount = job.estimate.high if asked.amount_usd is None else pricing.micro_usd(asked.amount_usd)
        cost = Cost(amount=amount, basis="resolved", table=job.estimate.table)
    elif asked.amount_usd is not None:
        raise Refused(
            f"amount_usd is {asked.amount_usd}, but what was not billed has no amount; leave one of them out.",
            code="bad_arguments",
            argument="amount_usd",
        )
    billed: Literal["no", "yes"] = "no" if cost is None else "yes"
    resolved = JobResolved(job=job.id, billed=billed, client=caller.client, cost=cost)
    await house.ledger.record(decisions.resolve_job(resolved))
    return await telling.tell_now(house, job.id, settings=caller.session.settings)


def _insist_on_backend(job: Job, account: Account) -> None:
    if job.account.backend == account.backend:
        return
    if account.backend == "offline":
        sentence = f"Job {job.id} was ordered from OpenAI, and this session only draws placeholders; ask where a key is set."
    else:
        sentence = f"Job {job.id} was a placeholder of the offline backend; order the picture itself."
    raise _no(sentence, "other_account")


def _who_pays(job: Job, account: Account) -> tuple[str, ...]:
    if job.account == account:
        return ()
    return (f"Job {job.id} was ordered with the key {job.account.key}; this is ordered with {account.key}, or another project.",)


async def _placing(house: House, job: Job, asked: RetryJob) -> ordering.Placing:
    if not job.state.is_over:
        raise _no(f"Job {job.id} is {job.state.value}; wait for it, or cancel it first.", "not_over")
    if job.state is JobState.COMPLETED:
        raise _no(f"Job {job.id} has its pictures; to draw others, order them anew.", "already_over")
    if job.prompt is None or (job.request.sources and not job.source_names):
        raise _no(f"The words of job {job.id} have been forgotten; order the picture anew.", "forgotten")
    try:
        await trio.to_thread.run_sync(partial(_insist_on_what_it_needs, house, job))
    except FileFailed as exc:
        raise _no(f"A picture that job {job.id} needs is gone: {exc} Order it anew.", "source_gone") from exc
    return ordering.Placing(
        request=job.request,
        prompt=job.prompt,
        output_path=asked.output_path or job.output_path or ordering.DEFAULT_NAMES[job.request.tool],
        source_names=job.source_names,
        request_key=ordering.retry_key(job.id),
        retry_of=job,
        again=True,
    )


def _insist_on_what_it_needs(house: House, job: Job) -> None:
    """Blocking."""
    started_from = (*job.request.sources, job.request.mask, job.request.markup)
    for picture in job.pictures or started_from:
        if picture is not None:
            house.store.get(picture.sha256)


def _insist_on_hope(job: Job, again: Job) -> None:
    if again.state.is_over and again.state is not JobState.COMPLETED:
        raise _no(
            f"Job {job.id} was asked for again as job {again.id}, which is {again.state.value}; ask for that one again.",
            "already_retried",
        )


def _no(sentence: str, code: str) -> Refused:
    return Refused(sentence, code=code, argument="job_id")
