"""Orders whose askers have not been told yet how they ended, so that asking again is not ordering again.

Rule: in memory only, and never more than an aid. Who wants to be sure after a restart gives an idempotency key.
"""

from collections.abc import Iterable

from eventlog.events import JobRequested
from eventlog.jobs import Job
from eventlog.values import JobId, Words

KEPT_MAX = 200  # orders; the oldest is forgotten first

Sameness = tuple[object, ...]


class Untold:
    def __init__(self) -> None:
        self._orders: dict[JobId, Sameness] = {}

    def add(self, requested: JobRequested, words: Words) -> None:
        self._orders[requested.job] = of_order(requested, words)
        while len(self._orders) > KEPT_MAX:
            del self._orders[next(iter(self._orders))]

    def tell(self, job: Job) -> None:
        """Somebody is told how the job stands, or it is to be forgotten."""
        if job.state.is_over:
            self._orders.pop(job.id, None)

    def find(self, board: Iterable[Job], requested: JobRequested, words: Words) -> JobId | None:
        """The job of the same client for the very same picture, if it is under way or nobody knows its end."""
        wanted = of_order(requested, words)
        for job in board:
            if not job.state.is_over and not job.cancel_requested and _of_job(job) == wanted:
                return job.id
        return next((job_id for job_id, order in self._orders.items() if order == wanted), None)


def of_order(requested: JobRequested, words: Words) -> Sameness:
    request = requested.request
    return requested.client, requested.account, request, words.prompt, words.output_path, words.output_dir


def _of_job(job: Job) -> Sameness:
    return job.client, job.account, job.request, job.prompt, job.output_path, job.output_dir
