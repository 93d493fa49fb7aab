"""Real processes on a real disk: killed while they append, stopped by a limit on their files, racing for the lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventlog.audit import verify
from eventlog.segments import Located, read_log, segment_name
from tests.eventlog.builders import append, commit, opened
from tests.eventlog.disks import NoReserve

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 24
LINES_MAX = 2000  # far more than any round asks for
SECONDS_MAX = 20


@contextmanager
def appender(directory: Path, file_bytes_max: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.eventlog.appender", str(directory), str(file_bytes_max)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(SECONDS_MAX)


def killed_after(directory: Path, lines: int) -> list[str]:
    """What the child acknowledged before the kill, the last line only if it is whole."""
    with appender(directory) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        acknowledged += process.stdout.readlines()[:LINES_MAX]
    return [line.strip() for line in acknowledged if line.endswith("\n")]


def test_every_commit_that_was_acknowledged_before_a_kill_is_there_for_ever(tmp_path: Path) -> None:
    promised: list[str] = []
    for number in range(ROUNDS):
        promised += killed_after(tmp_path, 1 + number * 7 % 60)
        there = [f"{one.mark.position} {one.mark.hash}" for one in read_log(tmp_path, None)]
        assert set(promised) <= set(there)
    log, recovery, replayed = opened(tmp_path, NoReserve(), segment_bytes=20_000)
    append(log, [commit(recovery.head.position + 1)])
    log.close()
    assert {f"{one.mark.position} {one.mark.hash}" for one in replayed} >= set(promised)
    found = verify(tmp_path)
    assert found.fault is None and found.segments > 3 and found.unfinished_bytes == 0
    assert len(promised) > ROUNDS * 10


def test_a_reader_beside_a_killed_and_restarted_writer_never_sees_a_wrong_commit(tmp_path: Path) -> None:
    seen: list[Located] = []
    for _ in range(3):
        with appender(tmp_path) as process:
            assert process.stdout is not None
            for _ in range(60):
                assert process.stdout.readline()
                seen += read_log(tmp_path, seen[-1].mark if seen else None)
    assert list(read_log(tmp_path, None))[: len(seen)] == seen
    assert len(seen) > 100


def test_a_file_that_may_not_grow_refuses_the_batch_and_nothing_of_it_is_there(tmp_path: Path) -> None:
    with appender(tmp_path, file_bytes_max=6_000) as process:
        output, _ = process.communicate(timeout=SECONDS_MAX)
    *promised, last = output.splitlines()
    assert last == "full" and process.returncode == 0
    log, recovery, replayed = opened(tmp_path, NoReserve())
    assert [f"{one.mark.position} {one.mark.hash}" for one in replayed[1:]] == promised
    assert recovery.torn_bytes == 0
    replayed += append(log, [commit(recovery.head.position + 1)])
    log.close()
    assert list(read_log(tmp_path, None)) == replayed
    assert (tmp_path / segment_name(0)).stat().st_size > 4_000
