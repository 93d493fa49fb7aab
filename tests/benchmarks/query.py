"""What questions cost the daemon beside a long history, over its control API and over MCP.

.venv/bin/python -m tests.benchmarks.query HOME [--commits 1000000] [--times 30]     HOME keeps the log for the next run

CPU is the daemon's, all threads, in milliseconds for one question; the ratio is to the newest page over the control API.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from daemon import client
from tests.benchmarks.long_log import COMMITS, RARE, make
from tests.program import Program, Stdio

Arguments = dict[str, object]
QUESTIONS: dict[str, tuple[str, Arguments]] = {
    "newest page": ("list_history", {}),
    "newest page of 100": ("list_history", {"limit": 100}),
    "page 1,000": ("list_history", {"offset": 20_000}),
    "last page": ("list_history", {"offset": 170_000}),
    "one tool": ("list_history", {"tool_name": "edit_image"}),
    "one day": ("list_history", {"since": "2025-03-01", "until": "2025-03-02"}),
    "jobs, newest": ("list_jobs", {}),
    "jobs that failed": ("list_jobs", {"status": "failed"}),
    "spending of a month": ("get_spending", {"since": "2025-03-01", "until": "2025-04-01"}),
    "search: frequent": ("list_history", {"query": "watercolour"}),
    "search: rare": ("list_history", {"query": RARE}),
    "search: nowhere": ("list_history", {"query": "zeppelin"}),
    "search: Japanese": ("list_history", {"query": "逆光の猫"}),
    "search: two characters": ("list_history", {"query": "ガラ"}),
    "search: two, nowhere": ("list_history", {"query": "犬猿"}),
    "search: full width": ("list_history", {"query": "ＣＡＰＹＢＡＲＡ"}),
}
AIMS = {"search": 30.0}
AIM_MS = 5.0


class Taken(NamedTuple):
    cpu_ms: float
    wall_ms: list[float]


def cpu_ms(pid: int) -> float:
    """Of all its threads so far; nanoseconds from the scheduler, because a tick is longer than most questions."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def taken(pid: int, ask: Callable[[], None], times: int) -> Taken:
    ask()
    before, walls = cpu_ms(pid), []
    for _ in range(times):
        started = time.perf_counter()
        ask()
        walls.append((time.perf_counter() - started) * 1000)
    return Taken((cpu_ms(pid) - before) / times, walls)


def main(home: Path, commits: int, times: int) -> None:
    made = make(home, commits)
    results: dict[str, list[Taken]] = {}
    program = Program(home).start().ready()
    try:
        with (
            client.connected(program.places, program.environment, start=False) as connection,
            Stdio(program.environment) as stdio,
        ):
            stdio.initialize()

            def over_control(tool: str, arguments: Arguments) -> None:
                assert "result" in connection.ask(tool, **arguments), (tool, arguments)

            def over_mcp(tool: str, arguments: Arguments) -> None:
                assert not stdio.call(tool, **arguments).get("isError"), (tool, arguments)

            for name, (tool, arguments) in QUESTIONS.items():
                found = [taken(program.pid, lambda: ask(tool, arguments), times) for ask in (over_control, over_mcp)]  # noqa: B023
                results[name] = found
    finally:
        program.end()
    print(f"{made.commits:,} commits, {made.jobs:,} jobs; {platform.machine()}, {os.cpu_count()} cores, {times} times each\n")
    print("| | CPU | p50 | p99 | CPU, MCP | p50, MCP | CPU / newest page | aim, CPU |\n|---|---|---|---|---|---|---|---|")
    base = results["newest page"][0].cpu_ms
    for name, (control, mcp) in results.items():
        aim = AIMS.get(name.partition(":")[0], AIM_MS)
        worst = quantiles(control.wall_ms, n=100)[98]
        print(
            f"| {name} | {control.cpu_ms:.2f} | {median(control.wall_ms):.2f} | {worst:.2f} | {mcp.cpu_ms:.2f} "
            f"| {median(mcp.wall_ms):.2f} | {control.cpu_ms / base:.2f} | {aim:g} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--commits", type=int, default=COMMITS)
    parser.add_argument("--times", type=int, default=30)
    wanted = parser.parse_args()
    main(wanted.home, wanted.commits, wanted.times)
