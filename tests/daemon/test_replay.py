"""Replaying the log gives exactly the live views, whatever happened and however often the daemon was restarted."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.events import JobEvent
from eventlog.history import History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.log import EventLog
from eventlog.segments import read_log
from eventlog.spending import Spending
from tests.daemon import fakes
from tests.daemon.fakes import opened, run, say

NAMES = ("a", "b", "c", "d")
POSSIBLE: dict[Stage, tuple[Callable[[str, int], JobEvent], ...]] = {
    Stage.REQUESTED: (lambda j, n: fakes.started(j), lambda j, n: fakes.cancelled(j), lambda j, n: fakes.failed(j)),
    Stage.STARTED: (
        lambda j, n: fakes.attempt(j, n + 1),
        lambda j, n: fakes.attempt(j, n + 1),
        lambda j, n: fakes.cancel_requested(j),
        lambda j, n: fakes.failed(j),
    ),
    Stage.ATTEMPTING: (
        lambda j, n: fakes.reply(j, n),
        lambda j, n: fakes.reply(j, n, None),
        lambda j, n: fakes.failed_attempt(j, n),
        lambda j, n: fakes.interrupted(j),
        lambda j, n: fakes.cancelled(j, "unknown"),
    ),
    Stage.REPLIED: (lambda j, n: fakes.completed(j), lambda j, n: fakes.failed(j)),
}
STEP = st.tuples(st.sampled_from([*NAMES, "restart", "lose the index"]), st.integers(0, 7), st.text(max_size=20))


def next_fact(job: Job | None, name: str, choice: int) -> tuple[JobEvent, ...]:
    if job is None:
        return (fakes.requested(name),)
    options = POSSIBLE.get(job.stage, ())
    if not options:
        return ()
    event = options[choice % len(options)](name, job.attempts)
    if job.stage is Stage.ATTEMPTING and choice == 7:
        return (fakes.failed_attempt(name, job.attempts, "unknown"), fakes.interrupted(name))
    return (event,)


def from_nothing(home: Path) -> tuple[JobBoard, Spending, dict[str, Job]]:
    board, spending, everything = JobBoard(), Spending(), {}
    for commit, _, _ in read_log(home / "events", None):
        for name in board.apply(commit):
            job = board.get(name)
            assert job is not None
            everything[name] = job
        spending.apply(commit)
    return board, spending, everything


def indexed(path: Path) -> dict[str, Job]:
    history = History(path)
    try:
        page = history.jobs(JobQuery(limit=100))
        assert page.total == len(page.jobs)
        return {job.id: job for job in page.jobs}
    finally:
        history.close()


def live(board: JobBoard) -> dict[str, Job]:
    return {job.id: job for job in board if not job.state.is_over}


@settings(max_examples=30, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_replay_equals_live(steps: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        lives: list[list[tuple[str, int, str]]] = [[]]
        for step in steps:
            lives[-1].append(step)
            if step[0] in ("restart", "lose the index"):
                lives.append([])
        generations = iter("123456789" * 10)
        for life in lives:
            run(lambda life=life: one_life(home, life, generations))
            if life and life[-1][0] == "lose the index":
                for path in home.glob("index.sqlite*"):
                    path.unlink()


async def one_life(home: Path, steps: list[tuple[str, int, str]], generations: object) -> None:
    with opened(home) as house:
        suffix = next(generations)  # type: ignore[call-overload]
        known: dict[str, str] = {job.id[0]: job.id for job in house.ledger.board}
        async with house.ledger.writing():
            for name, choice, text in steps:
                if name in ("restart", "lose the index"):
                    continue
                job_id = known.setdefault(name, name + suffix)
                job = house.ledger.board.get(job_id)  # type: ignore[arg-type]
                if job is None and await is_over(house, job_id):
                    continue
                facts = next_fact(job, job_id, choice)
                if facts:
                    words = (
                        {"prompt": text.encode("utf-8", "replace").decode(), "output_path": "x"}
                        if job is None
                        else {"message": "m"}
                    )
                    if facts[-1].__class__.__name__ == "JobCompleted":
                        words = {"paths": ("/x/y.png",)}
                    await house.ledger.record(say(*facts, **words))
        board, spending, everything = from_nothing(home)
        assert live(house.ledger.board) == live(board)
        assert house.ledger.spending == spending == house.index.spending
        assert indexed(home / "index.sqlite") == everything
    rebuilt_equals(home, everything, spending)


async def is_over(house: object, job_id: str) -> bool:
    return any(job.id == job_id for job in indexed(Path(house.log._path.parent / "index.sqlite")).values())  # type: ignore[attr-defined]


def rebuilt_equals(home: Path, everything: dict[str, Job], spending: Spending) -> None:
    """An index made anew from the whole log says the same as one that followed along."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "index.sqlite"
        index = Index.open(path)
        log = EventLog(home / "events", software="test")
        log.lock()
        try:
            log.recover(None, index.fold)
            assert index.spending == spending
            assert indexed(path) == everything
            assert msgspec.json.encode(list(index.board)) == msgspec.json.encode(
                [j for j in everything.values() if not j.state.is_over]
            )
        finally:
            log.close()
            index.close()
