"""Starts pending jobs while there is room and a key for them.

Rule: the board is the state. What runs is read from it each time; nothing is kept here.
"""

import trio

from daemon import decisions
from daemon.keyring import Keyring
from daemon.ledger import Ledger
from daemon.worker import Worker
from eventlog.values import JobState


async def run(ledger: Ledger, keyring: Keyring, worker: Worker, workers: trio.Nursery) -> None:
    """Runs until cancelled. `workers` outlives it: a stopped scheduler starts nothing, what runs goes on."""
    for job in ledger.board:
        if job.state is JobState.RUNNING:  # left over from the daemon before this one
            workers.start_soon(worker.run, job.id, name=f"job {job.id}")
    while True:
        seen = ledger.position
        for job_id in decisions.plan(ledger.board, keyring.running_max):
            # Shielded: a job that is recorded as started needs its worker. Bounded by one sync.
            with trio.CancelScope(shield=True):
                if await ledger.record(decisions.start_job(job_id)):
                    workers.start_soon(worker.run, job_id, name=f"job {job_id}")
        await ledger.wait_beyond(seen)
