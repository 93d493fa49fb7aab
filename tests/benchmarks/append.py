"""What it takes until a fact is durable: through the ledger with 1 to 100 who append at once, and in SQLite.

.venv/bin/python -m tests.benchmarks.append [--rounds 9] [--folder FOLDER]

Both write the same bytes into the same file system, in turns: SQLite (WAL, synchronous=FULL) commits each by itself, the ledger
all that came while the last batch was synced. The ledger also follows with its views and its index, as in the daemon.
"""

import argparse
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import trio

from daemon.ledger import Facts, Ledger, Views
from daemon.supervisor import in_threads
from eventlog.disk import Disk
from eventlog.events import Commit, RequestReceived
from eventlog.framing import NO_HASH, draft, seal
from eventlog.index import Index
from eventlog.log import EventLog
from eventlog.values import Client, Position, Words

APPENDERS = (1, 8, 64, 100)
SECONDS = 0.5  # of each turn
FACT = RequestReceived(operation="generate_image", door="mcp", client=Client(name="benchmark", version="1"))
WORDS = Words(salt="00" * 16, prompt="a fox in the snow at dawn, soft light from the left, long shadows " * 4)
AIMS = {1: "at most 2.5 times SQLite's", 64: "at least 8 times SQLite's throughput"}


class Turn(NamedTuple):
    """`syncs` are of the log alone; SQLite makes one for each commit."""

    commits: int
    seconds: float
    latencies: list[float]
    syncs: int


class CountingDisk(Disk):
    syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        super().sync(fd)


def in_sqlite(folder: Path) -> Turn:
    commit = Commit(position=Position(1), at=datetime.now(UTC), events=(FACT,), words=WORDS)
    line = seal(draft(commit), NO_HASH, Position(1)).line
    db = sqlite3.connect(folder / "commits.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS commits (position INTEGER PRIMARY KEY, line BLOB NOT NULL)")
    latencies = []
    started = time.perf_counter()
    while (now := time.perf_counter()) - started < SECONDS:
        db.execute("INSERT INTO commits (line) VALUES (?)", (line,))
        latencies.append(time.perf_counter() - now)
    seconds = time.perf_counter() - started
    db.close()
    return Turn(len(latencies), seconds, latencies, len(latencies))


def in_ledger(folder: Path, appenders: int) -> Turn:
    def decide(_: Views) -> Facts:
        return Facts((FACT,), WORDS)

    async def append(ledger: Ledger, latencies: list[float], until: float) -> None:
        while (now := time.perf_counter()) < until:
            await ledger.record(decide)
            latencies.append(time.perf_counter() - now)

    async def main() -> Turn:
        disk = CountingDisk()
        latencies: list[float] = []
        with opened(folder, disk) as (log, index):
            ledger = Ledger(log, index, now=lambda: datetime.now(UTC), salt=lambda: "00" * 16, run_blocking=in_threads(1))
            async with ledger.writing():
                before, started = disk.syncs, time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for _ in range(appenders):
                        nursery.start_soon(append, ledger, latencies, started + SECONDS)
                return Turn(len(latencies), time.perf_counter() - started, latencies, disk.syncs - before)

    return trio.run(main)


@contextmanager
def opened(folder: Path, disk: Disk) -> Iterator[tuple[EventLog, Index]]:
    log = EventLog(folder / "events", software="benchmark", disk=disk)
    log.lock()
    index = Index.open(folder / "index.sqlite")
    log.recover(index.mark, index.fold)
    try:
        yield log, index
    finally:
        index.close()
        log.close()


def row(name: str, turns: list[Turn], syncs_of_sqlite: float, aim: str) -> str:
    rate = median(turn.commits / turn.seconds for turn in turns)
    latencies = [latency for turn in turns for latency in turn.latencies]
    p50, p99 = median(latencies) * 1e6, quantiles(latencies, n=100)[98] * 1e6
    per_sync = sum(turn.commits for turn in turns) / sum(turn.syncs for turn in turns)
    return f"| {name} | {rate:,.0f} | {p50:,.0f} | {p99:,.0f} | {per_sync:.1f} | {rate / syncs_of_sqlite:.2f} | {aim} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="on the file system that is meant; left out, the temporary one")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.folder) as name:
        folder = Path(name)
        kinds: dict[str, Callable[[], Turn]] = {"SQLite": lambda: in_sqlite(folder)}
        for count in APPENDERS:
            kinds[f"ledger, {count} at once"] = lambda count=count: in_ledger(folder, count)  # type: ignore[misc]
        turns: dict[str, list[Turn]] = {kind: [] for kind in kinds}
        for _ in range(wanted.rounds):
            for kind, take in kinds.items():
                turns[kind].append(take())
    of_sqlite = median(turn.commits / turn.seconds for turn in turns["SQLite"])
    print(f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {wanted.rounds} rounds\n")
    print("| | commits/s | p50, us | p99, us | commits per sync | throughput / SQLite's | aim |\n|---|---|---|---|---|---|---|")
    aims = {f"ledger, {count} at once": aim for count, aim in AIMS.items()}
    for kind, taken in turns.items():
        print(row(kind, taken, of_sqlite, aims.get(kind, "")))


if __name__ == "__main__":
    main()
