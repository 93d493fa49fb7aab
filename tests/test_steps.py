"""The instrument that watches the loop of every daemon the tests start."""

import time
from pathlib import Path

import trio

from tests.program import Program
from tests.steps import LongSteps, long_steps, longest_ms


def busy(seconds: float) -> None:
    """By the clock of this thread, which stands still while others have the processor."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_task_that_keeps_the_loop_busy_is_named(tmp_path: Path) -> None:
    async def greedy() -> None:
        await trio.lowlevel.checkpoint()
        busy(0.08)
        await trio.lowlevel.checkpoint()

    async def modest() -> None:
        for _ in range(8):
            busy(0.01)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greedy)
            nursery.start_soon(modest)

    trio.run(main, instruments=[LongSteps(tmp_path / "steps")])
    (line,) = long_steps(tmp_path / "steps")
    assert "greedy" in line and "test_steps.py" in line and longest_ms(tmp_path / "steps") >= 80


def test_the_daemons_of_the_tests_are_watched(tmp_path: Path) -> None:
    program = Program(tmp_path).start().ready()
    program.end()
    assert longest_ms(program.steps) > 0
