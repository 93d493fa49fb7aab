"""An instrument that reports every task which kept the daemon's event loop from all others for too long.

What it sees it writes down; no test fails by it, for a machine may be slow. The end of a test run tells what was seen, and
`tests.benchmarks.load` how long the longest step was.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import trio
from trio.lowlevel import Task

LONG_MS = 50.0
ROOT = Path(__file__).resolve().parent.parent


class LongSteps(trio.abc.Instrument):
    """A step is what a task does between two awaits that wait. It is long by its own CPU or because it waited for the system, not
    because another process had the processor.
    """

    def __init__(self, file: Path, long_ms: float = LONG_MS) -> None:
        self._file = file
        self._long_ms = long_ms
        self._began = (0.0, 0.0, 0)
        self._longest_ms = 0.0

    def before_task_step(self, task: Task) -> None:
        self._began = (time.perf_counter(), time.thread_time(), _waits())

    def after_task_step(self, task: Task) -> None:
        began, cpu_began, waits_began = self._began
        cpu = (time.thread_time() - cpu_began) * 1000
        wall = (time.perf_counter() - began) * 1000
        blocked = wall if _waits() > waits_began else cpu
        if blocked > self._longest_ms:
            self._longest_ms = blocked
            self._write(f"longest {blocked:.1f} ms: {_place(task)}")
        if blocked > self._long_ms:
            self._write(f"long {wall:.1f} ms, {cpu:.1f} of CPU: {_place(task)}")

    def _write(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(line + "\n")


def _waits() -> int:
    """How often this thread gave the processor away by itself, as it does to wait for a disk or a lock."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw


def _place(task: Task) -> str:
    """Where the task is now: the step ended there, or with the whole task."""
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in task.iter_await_frames()]
    ours = [f"{path.relative_to(ROOT)}:{line}" for path, line in frames if _is_ours(path)]
    return f"{task.name}, up to {ours[-1] if ours else 'its end'}"


def _is_ours(path: Path) -> bool:
    """No library's, also where the virtual environment stands in the project."""
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def watch(file: str) -> None:
    """For every `trio.run` of this process."""
    trio.run = partial(trio.run, instruments=[LongSteps(Path(file))])  # type: ignore[assignment]


def watched(file: Path) -> list[str]:
    """The command of a daemon whose steps are watched."""
    begun = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests import steps; steps.watch({str(file)!r})"
    return [sys.executable, "-c", f"{begun}; from daemon import __main__; sys.argv[1:] = ['serve']; sys.exit(__main__.main())"]


def long_steps(file: Path) -> Iterator[str]:
    if file.exists():
        yield from (line for line in file.read_text().splitlines() if line.startswith("long "))


def longest_ms(file: Path) -> float:
    if not file.exists():
        return 0.0
    return max((float(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("longest ")), default=0.0)


def tell(terminalreporter: Any) -> None:
    """At the end of a test run, of all its workers."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    told = [(report.nodeid, value) for report in reports for name, value in report.user_properties if name == "long step"]
    if told:
        terminalreporter.section(f"steps of daemons over {LONG_MS:.0f} ms ({os.cpu_count()} processors)")
        for test, line in told:
            terminalreporter.write_line(f"{test}: {line}")
