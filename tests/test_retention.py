"""What a home need not keep for ever: the log's beginning in an archive, and a store without what nothing names."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import auditing, retention, verifying
from daemon.errors import Refused
from eventlog.events import ReplyReceived
from eventlog.history import GenerationQuery
from eventlog.segments import read_log
from eventlog.stub import stub_ends
from eventlog.values import Cost, Picture, Position
from tests.program import IMAGED, SECONDS_MAX, Program, running
from tools.store import Store

SECRET = "Zuckerwatteﾎﾞﾂﾁ unter dem Mond"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three pictures, one of them twice asked for, and a daemon that has ended."""
    place = tmp_path_factory.mktemp("kept")
    with running(place) as program:
        for prompt in (SECRET, "a fox", "a badger"):
            assert "result" in program.ask("generate_image", prompt=prompt, size="1024x1024", quality="low")
        program.end()
    yield place


@pytest.fixture
def program(template: Path, tmp_path: Path) -> Iterator[Program]:
    shutil.copytree(template / "imaged", tmp_path / "imaged", ignore=shutil.ignore_patterns("run"))
    shutil.copytree(template / "pictures", tmp_path / "pictures")
    ours = Program(tmp_path)
    yield ours
    if hasattr(ours, "_process") and ours._process is not None:
        ours.kill()


def imaged(program: Program, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*IMAGED, *words], env=program.environment, cwd="/", capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )


def archived(program: Program, *words: str) -> dict[str, Any]:
    ran = imaged(program, "audit", "archive", "--before", datetime.now(UTC).isoformat(), "--json", *words)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def history(program: Program, **arguments: object) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = program.ask("list_history", limit=10, **arguments)["result"]["generations"]
    return listed


def test_history_still_lists_what_was_archived_and_the_rest_goes_on(program: Program) -> None:
    home = program.places.home
    commits = [one.commit for one in read_log(home / "events", None)]
    told = archived(program)
    assert told["moved"] and told["commits"] == told["up_to"] == len(commits)
    assert sorted(path.name for path in (home / "archive" / "events").iterdir()) == [f"{0:020}.jsonl"]
    for made_anew in (False, True):
        if made_anew:
            for path in home.glob("index.sqlite*"):
                path.unlink()
        program.start().ready()
        assert [one["prompt"] for one in history(program)][-3:] == ["a badger", "a fox", SECRET]
        assert [one["prompt"] for one in history(program, query="zuckerwatte")] == [SECRET]
        oldest = program.ask("get_history_by_uuid", uuid=history(program)[-1]["job_id"])["result"]
        assert Path(oldest["images"][0]["path"]).is_file() and oldest["cost"]["basis"] == "offline"
        assert "result" in program.ask("generate_image", prompt="after it", size="1024x1024", quality="low")
        program.end()
    found = verifying.verify(home, archive=home / "archive")
    assert found.is_sound and (found.archived, found.files, found.files_unchanged) == (len(commits), (), 5)
    assert found.blobs_checked == 4, "the same prompt makes the same picture"


def test_a_daemon_that_serves_the_home_is_not_disturbed(program: Program) -> None:
    program.start().ready()
    for words in (("audit", "archive", "--before", "2030-01-01"), ("audit", "archive", "--before", "yesterday"), ("gc",)):
        ran = imaged(program, *words)
        assert ran.returncode != 0 and ("imaged stop" in ran.stderr or "not come yet" in ran.stderr)
    assert not stub_ends(path.name for path in program.places.events.iterdir())


def test_a_rehearsal_changes_nothing_and_tells_the_same(program: Program) -> None:
    home = program.places.home
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    rehearsed = archived(program, "--dry-run")
    assert imaged(program, "gc", "--dry-run").returncode == 0
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    done = archived(program)
    assert rehearsed["segments"] == done["segments"] and not rehearsed["moved"] and "Would move" in rehearsed["message"]
    again = archived(program)
    assert again["moved"], "the fact that it was archived is older by now"


def test_nothing_is_moved_where_nothing_is_older(program: Program) -> None:
    ran = imaged(program, "audit", "archive", "--before", "2020-01-01")
    assert ran.returncode == 0 and "Nothing in the log is older" in ran.stdout
    assert not stub_ends(path.name for path in program.places.events.iterdir())


def test_an_archive_that_cannot_be_written_moves_nothing(program: Program, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    ran = imaged(program, "audit", "archive", "--before", datetime.now(UTC).isoformat(), "--to", str(tmp_path / "taken"))
    assert ran.returncode != 0 and "nothing was moved" in ran.stderr and "Traceback" not in ran.stderr
    assert verifying.verify(program.places.home).archived == 0


def test_what_is_asked_of_before_is_told_to_be_archived(program: Program) -> None:
    home = program.places.home
    sealed = verifying.seal(home)
    with auditing.history_as_of(home) as then:
        ids = [job.id for job in then.generations(GenerationQuery(limit=9)).jobs]
    archived(program)
    for words in (("replay", "--until", "3"), ("show", ids[0], "--curl")):
        ran = imaged(program, "audit", *words)
        assert ran.returncode == 1 and "archive" in ran.stderr and "--home" in ran.stderr
    for words in (("replay", "--until", "3"), ("show", ids[0], "--curl")):
        assert imaged(program, "audit", *words, "--home", str(home / "archive")).returncode == 0
    assert "name the archive" in verifying.verify(home, sealed).broken_seal
    assert verifying.verify(home, sealed, home / "archive").is_sound
    program.start().ready()
    ran = imaged(program, "events", "--after", "2")
    assert ran.returncode != 0 and "archived" in ran.stderr


def test_an_archive_that_does_not_fit_is_a_fault(program: Program, tmp_path: Path) -> None:
    home = program.places.home
    archived(program)
    segment = home / "archive" / "events" / f"{0:020}.jsonl"
    whole = segment.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    segment.write_bytes(whole[: -len(last)])
    assert "ends at commit" in verifying.verify(home, archive=home / "archive").broken_archive
    segment.write_bytes(whole.replace(b"gpt-image", b"gpt-imagf", 1))
    found = verifying.verify(home, archive=home / "archive")
    assert "not sound" in found.broken_archive and not found.is_sound


def test_an_archived_job_is_forgotten_everywhere_but_in_the_archive_and_that_is_said(program: Program) -> None:
    home = program.places.home
    archived(program)
    program.start().ready()
    (job,) = history(program, query="zuckerwatte")
    ran = imaged(program, "forget", job["job_id"], "--files", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert any("archived segments" in sentence for sentence in told["kept"])
    program.end()
    holding = [path for path in home.rglob("*") if path.is_file() and b"Zuckerwatte" in path.read_bytes()]
    assert {path.parent for path in holding} == {home / "archive" / "events"}
    assert verifying.verify(home, archive=home / "archive").is_sound
    for path in home.glob("index.sqlite*"):
        path.unlink()
    program.start().ready()
    assert not history(program, query="zuckerwatte")
    assert program.ask("get_history_by_uuid", uuid=job["job_id"])["result"]["prompt"] is None


# The store.


def blobs_in(home: Path) -> set[str]:
    return {path.name for path in (home / "store").glob("??/*")}


def test_what_no_fact_names_leaves_the_store_and_nothing_else(program: Program) -> None:
    home = program.places.home
    named = blobs_in(home)
    stray = Store.open(home / "store").put(b"nobody's")
    rehearsed = retention.collect(home, dry_run=True)
    assert [one.sha256 for one in rehearsed.blobs] == [stray.sha256] and rehearsed.bytes == 8 and not rehearsed.removed
    assert blobs_in(home) == named | {stray.sha256}
    assert retention.collect(home, dry_run=False).blobs == rehearsed.blobs
    assert blobs_in(home) == named and verifying.verify(home).is_sound


def test_what_only_the_archive_names_stays_in_the_store(program: Program) -> None:
    home = program.places.home
    named = blobs_in(home)
    archived(program)
    assert retention.collect(home, dry_run=False).blobs == () and blobs_in(home) == named
    assert verifying.verify(home).is_sound


def a_reply(home: Path, store: Store) -> ReplyReceived:
    kept = store.put(b"a paid picture that no fact speaks of yet")
    picture = Picture(sha256=kept.sha256, size_bytes=kept.size_bytes, width=1, height=1, format="png")
    return ReplyReceived(job=jobs(home)[0], attempt=9, pictures=(picture,), cost=Cost(amount=None, basis="unknown", table="t"))


def jobs(home: Path) -> list[Any]:
    found = [event for one in read_log(home / "events", None) for event in one.commit.events if isinstance(event, ReplyReceived)]
    return [event.job for event in found]


def test_a_spooled_reply_keeps_its_pictures_until_a_fact_speaks_of_them(program: Program) -> None:
    home = program.places.home
    store = Store.open(home / "store")
    reply = a_reply(home, store)
    store.spool("imaged-unanswered-9", msgspec.json.encode(reply))
    told = retention.collect(home, dry_run=False)
    assert told.blobs == () and told.spooled == () and "no fact speaks of it" in told.kept[0]
    assert store.spooled("imaged-unanswered-9") is not None and reply.pictures[0].sha256 in blobs_in(home)


def test_a_spooled_reply_that_a_fact_has_taken_over_goes(program: Program) -> None:
    home = program.places.home
    store = Store.open(home / "store")
    attempt = f"imaged-{jobs(home)[0]}-1"
    names = [line for line in (home / "events" / f"{0:020}.jsonl").read_text("utf-8").splitlines() if attempt in line]
    store.spool(attempt, b"left by a crash right behind the fact")
    told = retention.collect(home, dry_run=False)
    assert names and told.spooled == (attempt,) and store.spooled(attempt) is None


def test_a_spooled_reply_that_cannot_be_read_keeps_the_whole_store(program: Program) -> None:
    home = program.places.home
    store = Store.open(home / "store")
    stray = store.put(b"nobody's, perhaps")
    store.spool("imaged-torn-1", b"{")
    told = retention.collect(home, dry_run=False)
    assert told.blobs == () and stray.sha256 in blobs_in(home) and "nothing is removed" in told.kept[0]


def test_a_log_that_is_not_sound_keeps_everything(program: Program) -> None:
    home = program.places.home
    stray = Store.open(home / "store").put(b"nobody's, perhaps")
    segment = home / "events" / f"{0:020}.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"badger", b"bodger"))
    before = segment.read_bytes()
    moment = datetime.now(UTC)
    with pytest.raises(Refused, match="not sound"):
        retention.collect(home, dry_run=False)
    with pytest.raises(Refused, match="not sound"):
        retention.archive(home, moment, None, dry_run=False, now=moment)
    assert stray.sha256 in blobs_in(home) and segment.read_bytes() == before


def test_a_moment_to_come_is_refused(program: Program) -> None:
    now = datetime.now(UTC)
    with pytest.raises(Refused, match="not come yet"):
        retention.archive(program.places.home, now + timedelta(days=1), None, dry_run=False, now=now)
    assert verifying.verify(program.places.home).archived == Position(0)
