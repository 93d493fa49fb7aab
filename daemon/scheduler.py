"""Starts pending jobs while there is room and a key for them, by turns those of each client.

Rule: the board is the state. What runs is read from it each time; kept here is only whose turn it was last.
"""

from datetime import UTC, datetime

import trio

from daemon import decisions
from daemon.keyring import Keyring
from daemon.ledger import Ledger
from daemon.worker import Worker, seconds_left
from eventlog.values import Client, JobState


async def run(ledger: Ledger, keyring: Keyring, worker: Worker, workers: trio.Nursery) -> None:
    """Runs until cancelled. `workers` outlives it: a stopped scheduler starts nothing, what runs goes on."""
    for job in ledger.board:
        if job.state is JobState.RUNNING:  # left over from the daemon before this one
            if job.retry_at is not None and job.error_code == "rate_limited":
                keyring.governor.pause(job.account, seconds_left(job, datetime.now(UTC)), job.error)
            workers.start_soon(worker.run, job.id, name=f"job {job.id}")
    served: list[Client] = []
    while True:
        seen = ledger.position
        for job in decisions.plan(ledger.board, keyring, served):
            # Shielded: a job that is recorded as started needs its worker. Bounded by one sync.
            with trio.CancelScope(shield=True):
                if await ledger.record(decisions.start_job(job.id)):
                    decisions.take_turn(served, job.client)
                    workers.start_soon(worker.run, job.id, name=f"job {job.id}")
        with trio.move_on_at(keyring.governor.next_end()):
            await ledger.wait_beyond(seen)
