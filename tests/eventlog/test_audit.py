"""The auditor: finds what is wrong, names where, and tells a job's story in words that do nothing to a terminal."""

from pathlib import Path

import pytest

from eventlog.audit import harmless, narrate, verify, visible
from eventlog.events import (
    AttemptFailed,
    Commit,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
)
from eventlog.framing import draft
from eventlog.segments import segment_name
from tests.eventlog.builders import append, attempt, commit, completed, job_id, one_job, opened, reply, requested, said, written
from tests.eventlog.disks import MemoryDisk, NoReserve

HERE = Path("/nowhere")
JOB = job_id(1)


def test_a_sound_log_is_verified_to_its_head(tmp_path: Path) -> None:
    located = written(tmp_path, [[one] for one in one_job()], NoReserve(), segment_bytes=900)
    found = verify(tmp_path)
    assert found.fault is None and found.commits == 6 and found.unfinished_bytes == 0
    assert found.mark == located[-1].mark and (found.head, found.head_hash) == located[-1].mark[1:]
    assert found.segments == len(list(tmp_path.glob("*.jsonl"))) > 1


def test_a_log_is_verified_beside_its_writer(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path, NoReserve())
    for position in range(2, 12):
        (one,) = append(log, [commit(position)])
        assert verify(tmp_path).mark == one.mark
    log.close()


def test_an_unfinished_end_is_told_and_is_no_fault(tmp_path: Path) -> None:
    located = written(tmp_path, [[commit(2)]], NoReserve())
    with (tmp_path / segment_name(0)).open("ab") as segment:
        segment.write(b"unfinished")
    found = verify(tmp_path)
    assert (found.mark, found.unfinished_bytes, found.fault) == (located[-1].mark, 10, None)


def test_damage_is_named_by_position_and_byte(tmp_path: Path) -> None:
    located = written(tmp_path, [[one] for one in one_job()], NoReserve())
    path = tmp_path / segment_name(0)
    data = bytearray(path.read_bytes())
    data[located[3].mark.offset + 90] ^= 4
    path.write_bytes(data)
    found = verify(tmp_path)
    assert found.fault is not None and found.mark == located[2].mark
    assert (found.fault.position, found.fault.offset) == (4, located[3].mark.offset)
    assert "commit 4" in found.fault.sentence


def test_words_that_are_gone_without_a_fact_are_a_fault(tmp_path: Path) -> None:
    located = written(tmp_path, [[one] for one in one_job()], NoReserve())
    path = tmp_path / segment_name(0)
    lines = path.read_bytes().split(b"\n")
    proof, body, words = lines[1].split(b" ", 2)
    lines[1] = b" ".join((proof, body, b" " * len(words)))
    path.write_bytes(b"\n".join(lines))
    found = verify(tmp_path)
    assert found.fault is not None and "gone" in found.fault.sentence
    assert (found.fault.position, found.fault.offset) == (2, located[1].mark.offset)


@pytest.mark.parametrize(
    "wrong",
    [
        (JobStarted(job=job_id(9)),),
        (completed(JOB),),
        (requested(job_id(2)), requested(job_id(2))),
    ],
    ids=["of a job nobody requested", "that is over", "twice in one commit"],
)
def test_a_fact_that_may_not_follow_is_a_fault(wrong: tuple[JobStarted | JobCompleted, ...]) -> None:
    disk = MemoryDisk()
    located = written(HERE, [one_job(), [commit(7, *wrong)], [commit(8)]], disk)
    found = verify(HERE, disk)
    assert found.fault is not None and (found.fault.position, found.fault.offset) == located[6].mark[1::-1]


def test_a_newer_line_is_told_with_the_place_where_it_begins() -> None:
    disk = MemoryDisk()
    located = written(HERE, [[commit(2)], [commit(3)]], disk)
    log, _, _ = opened(HERE, disk)
    newer = draft(commit(4))
    log.append([newer._replace(body=newer.body.replace(b'"DaemonStarted"', b'"DaemonDanced"'))])
    found = verify(HERE, disk)
    assert found.fault is not None and "upgrade" in found.fault.sentence
    assert (found.head, found.fault.position) == (3, 4) and found.fault.offset > located[-1].mark.offset
    assert disk.files[segment_name(0)].live[found.fault.offset - 1] == ord("\n")


def test_a_log_that_is_not_there_is_not_called_sound(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "none")
    assert verify(tmp_path).commits == 0


def test_a_job_is_told_line_by_line(tmp_path: Path) -> None:
    written(tmp_path, [one_job(), one_job(7, number=2)], NoReserve())
    assert list(narrate(tmp_path, JOB)) == [
        "2026-11-22 12:00:00.000 #2 requested by a client: 1 picture, gpt-image-2.5, 1024x1024, medium, png; "
        "estimate $0.009 to $0.013; “A fox in the snow”",
        "2026-11-22 13:00:00.000 #3 started",
        "2026-11-22 14:00:00.000 #4 attempt 1 started, as request-1; body abababababababab…",
        "2026-11-22 15:00:00.000 #5 reply received: 1 in the store, cost $0.011 (usage)",
        "2026-11-22 16:00:00.000 #6 completed: /pictures/fox in snow.png",
    ]
    assert list(narrate(tmp_path, job_id(77))) == []


def test_every_way_a_job_can_end_is_told(tmp_path: Path) -> None:
    endings: list[tuple[Commit, str]] = [
        (commit(5, AttemptFailed(job=JOB, attempt=1, code="reset", billed="unknown"), words=said(message="cut")), "cut"),
        (commit(6, attempt(JOB, 2)), "attempt 2 started"),
        (commit(7, JobCancelRequested(job=JOB)), "asked to cancel"),
        (commit(8, JobCancelled(job=JOB, billed="unknown")), "cancelled, billed: unknown"),
        (commit(9, JobFailed(job=JOB, code="moderated", billed="no"), words=said(message="not allowed")), "not allowed"),
        (commit(10, JobInterrupted(job=JOB)), "interrupted: outcome_unknown; (forgotten)"),
        (commit(11, reply(JOB, amount=None, basis="unknown")), "cost unknown (unknown)"),
    ]
    written(tmp_path, [one_job()[:3], [one for one, _ in endings]], NoReserve())
    told = list(narrate(tmp_path, JOB))[3:]
    assert len(told) == len(endings)
    for line, (one, expected) in zip(told, endings, strict=True):
        assert f"#{one.position} " in line and expected in line


def test_nothing_from_outside_acts_in_a_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2Jb\nc\u202ed\u2066e\U000e0041f\x07\u200bg\x9bh"
    written(tmp_path, [[commit(2, requested(JOB, client=evil), words=said(prompt=evil))]], NoReserve())
    (line,) = narrate(tmp_path, JOB)
    assert all(character.isprintable() for character in line)
    assert "\\u{1b}[2Jb\\u{a}c\\u{202e}d" in line and "\\u{e0041}f" in line


def test_japanese_stays_as_it_is_and_long_text_is_cut() -> None:
    assert harmless("雪の中の　狐 🦊") == "雪の中の　狐 🦊"
    assert visible("x" * 500) == "x" * 200 + "…"
    assert visible(None) == "(forgotten)"
