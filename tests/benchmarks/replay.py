"""What a start costs beside a long log: with its index up to date, some way behind, and to be made anew.

.venv/bin/python -m tests.benchmarks.replay HOME [--commits 1000000]     HOME keeps the logs for the next run, some 3 GB

Each line is a process of its own, and begins when everything is imported. The ratio is of CPU to reading and hashing the same
bytes and nothing else.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from daemon import starting
from daemon.config import Places
from eventlog.disk import Disk
from eventlog.index import Index
from eventlog.log import EventLog
from eventlog.segments import Scan, segment_starts
from tests.benchmarks.long_log import COMMITS, make
from tests.program import Program

BEHIND = 10_000


class Cost(NamedTuple):
    """Of a process that did one thing; `commits` are those that it read."""

    commits: int
    seconds: float
    cpu_seconds: float
    peak_mb: int


def measured(do: Callable[[], int]) -> Cost:
    before, started = time.process_time(), time.perf_counter()
    commits = do()
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    return Cost(commits, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def open_home(home: Path) -> int:
    """As the daemon does, before its doors open."""
    places = Places(home / "imaged")
    log = EventLog(places.events, software="benchmark")
    log.lock()
    index = Index.open(places.index)
    with starting.without_collecting(), index.in_bulk():
        return log.recover(index.mark, index.fold).replayed


def hash_all(home: Path) -> int:
    commits = 0
    for segment in sorted((home / "imaged" / "events").glob("*.jsonl")):
        for line in segment.read_bytes().splitlines():
            hashlib.sha256(line[65:]).digest()
            commits += 1
    return commits


def verify_all(home: Path) -> int:
    disk = Disk()
    directory = disk.open_directory(home / "imaged" / "events")
    try:
        return sum(1 for _ in Scan(disk, directory, segment_starts(disk.names(directory)), None))
    finally:
        disk.close(directory)


DEEDS: dict[str, Callable[[Path], int]] = {"open": open_home, "hash": hash_all, "verify": verify_all}


def in_its_own_process(deed: str, home: Path) -> Cost:
    command = [sys.executable, "-m", "tests.benchmarks.replay", str(home), "--only", deed]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)
    return Cost(*json.loads(ran.stdout))


def without_index(home: Path) -> None:
    for path in (home / "imaged").glob("index.sqlite*"):
        path.unlink()


def daemon_mb(home: Path) -> tuple[float, int]:
    """Seconds from its start until it answers, and its resident memory then, of the real daemon."""
    program = Program(home)
    started = time.perf_counter()
    program.start().ready()
    seconds = time.perf_counter() - started
    status = Path(f"/proc/{program.pid}/status").read_text()
    program.end(signal.SIGTERM)
    return seconds, int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


def main(home: Path, commits: int) -> None:
    shorter, whole, empty = home / "shorter", home / "whole", home / "empty"
    for folder in (shorter, whole, empty):
        folder.mkdir(parents=True, exist_ok=True)
    make(shorter, commits - BEHIND)
    made = make(whole, commits)
    hashed = in_its_own_process("hash", whole)
    costs = {"read and hashed": hashed, "verified": in_its_own_process("verify", whole)}
    without_index(whole)
    costs["index made anew"] = in_its_own_process("open", whole)
    costs["index up to date"] = in_its_own_process("open", whole)
    if not (shorter / "imaged" / "index.sqlite").exists():
        in_its_own_process("open", shorter)
    without_index(whole)
    shutil.copy(shorter / "imaged" / "index.sqlite", whole / "imaged")
    costs[f"index {BEHIND:,} behind"] = in_its_own_process("open", whole)
    print(f"{made.commits:,} commits, {made.jobs:,} jobs, {made.bytes / 1e6:,.0f} MB of log; ", end="")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| | seconds | CPU, s | commits read | commits/s | peak MB | CPU / hashing |\n|---|---|---|---|---|---|---|")
    for name, cost in costs.items():
        rate = f"{cost.commits / cost.cpu_seconds:,.0f}" if cost.commits > 1 else ""
        ratio = f"{cost.cpu_seconds / hashed.cpu_seconds:.3g}"
        print(f"| {name} | {cost.seconds:.4f} | {cost.cpu_seconds:.4f} | {cost.commits:,} | {rate} | {cost.peak_mb} | {ratio} |")
    for name, folder in (("an empty home", empty), ("that home", whole)):
        seconds, resident = daemon_mb(folder)
        print(f"\nThe daemon on {name}: {seconds:.2f} s until it answers, {resident} MB resident.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--commits", type=int, default=COMMITS)
    parser.add_argument("--only", choices=DEEDS, help="what a process of its own does; for the benchmark itself")
    wanted = parser.parse_args()
    if wanted.only:
        print(json.dumps(measured(lambda: DEEDS[wanted.only](wanted.home))))
    else:
        main(wanted.home, wanted.commits)
