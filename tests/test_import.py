"""The old program's history taken over: all of it, once, however often it is asked for and wherever it is cut off.

As a program (`python -m tests.test_import [MOMENT]`) this is the real daemon, which takes SIGKILL at one moment of an import.
"""

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import trio
import trio.testing

from daemon import cli, decisions, importing
from daemon.arguments import ImportHistory
from daemon.config import Places, Settings
from daemon.errors import NotRunning, Refused
from daemon.house import House
from daemon.importing import BATCH_MAX, UNUSABLE_SHOWN_MAX, import_history, offer
from daemon.keyring import Keyring
from daemon.ledger import NOTHING, Views
from daemon.results import HistoryImport
from daemon.session import Caller, Session, client_named
from eventlog.audit import verify
from eventlog.events import Commit, HistoryImported
from eventlog.history import GenerationQuery, History
from eventlog.jobs import Job, JobBoard
from eventlog.recent import RecentOrders
from eventlog.segments import read_log
from eventlog.spending import Spending
from eventlog.values import Cost, ImageRequest, JobId, MicroUSD, Position, Words
from tests import die_at
from tests.daemon.fakes import opened
from tests.program import Program, running
from tests.tools.pictures_for_tests import picture
from tests.tools.test_old_history import (
    OLD_DAYS,
    PROMPT_OF_EVERY_KIND,
    connect,
    in_use,
    json,
    name,
    old_database,
    overwritten,
    row,
    whole,
    write,
)
from tools.old_history import SOURCE
from tools.store import Store

SECONDS_MAX = 60.0
MOMENTS = {
    "after HistoryImported": lambda: die_at.after_append_of("HistoryImported"),
    "while HistoryImported is appended": lambda: die_at.while_appending("HistoryImported"),
    "before HistoryImported": lambda: die_at.before_append_of("HistoryImported"),
}


RunInThread = Callable[[Callable[[], object]], Awaitable[object]]


async def in_thread(function: Callable[[], object]) -> object:
    return await trio.to_thread.run_sync(function)


async def tells_nobody(seconds: float, message: str) -> None:
    pass


@pytest.fixture(autouse=True)
def a_slow_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "OFFER_SECONDS_MAX", SECONDS_MAX)


class Home:
    """A house on a real log, without doors, and what may be asked of it here."""

    def __init__(self, place: Path, house: House) -> None:
        self.house = house
        self.events = place / "events"
        self.settings = Settings.parse(
            {"IMAGED_BACKEND": "offline", "OPENAI_IMAGE_OUTPUT_DIR": str(place / "pictures")}, home_dir=place / "user"
        )

    async def take_over(
        self, path: Path | str | None, progress: Callable[[float, str], Awaitable[None]] = tells_nobody
    ) -> HistoryImport:
        caller = Caller(Session(door="cli", settings=self.settings), client_named("test", "1"), progress)
        answer = await import_history(self.house, caller, ImportHistory(path=None if path is None else str(path)))
        assert isinstance(answer.result, HistoryImport)
        assert len(list(self.imported())) >= answer.result.imported, "answered before it was durable"
        return answer.result

    async def refusal(self, path: Path | str | None) -> Refused:
        with pytest.raises(Refused) as refused:
            await self.take_over(path)
        assert refused.value.argument == "path"
        return refused.value

    async def offer(self) -> str:
        return await offer(self.house, self.settings)

    def imported(self) -> Iterator[HistoryImported]:
        for commit, _, _ in read_log(self.events, None):
            found = [event for event in commit.events if isinstance(event, HistoryImported)]
            assert len(found) <= 1, "one generation, one commit"
            yield from found

    def history(self, **query: object) -> list[Job]:
        page = self.house.history.generations(GenerationQuery(limit=100_000, **query))  # type: ignore[arg-type]
        return list(page.jobs)

    def job(self, number: int) -> Job:
        job = self.house.history.job(JobId(name(number)))
        assert job is not None
        return job


def life(place: Path, story: Callable[[Home], Awaitable[None]], run_blocking: RunInThread = in_thread) -> None:
    """One life of the house at `place`; real threads, every wait bounded."""

    async def main() -> None:
        with trio.fail_after(SECONDS_MAX), opened(place, run_blocking) as below:  # type: ignore[arg-type]
            async with AsyncExitStack() as stack:
                history = stack.enter_context(closing(History(place / "index.sqlite")))
                await stack.enter_async_context(below.ledger.writing())
                house = House(
                    places=Places(place),
                    log=below.log,
                    index=below.index,
                    ledger=below.ledger,
                    history=history,
                    store=Store.open(place / "store"),
                    keyring=Keyring(),
                    now=below.calendar,
                    started_at=below.calendar(),
                    idle_exit_seconds=0,
                )
                await story(Home(place, house))

    trio.run(main)
    assert verify(place / "events").fault is None


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def test_everything_is_taken_over_with_its_words_and_the_files_that_are_still_there(tmp_path: Path) -> None:
    whole_picture, link, text, gone = (tmp_path / file for file in ("狐 🦊.png", "link.png", "text.png", "gone.png"))
    whole_picture.write_bytes(picture("png"))
    link.symlink_to(whole_picture)
    text.write_text("no picture", "utf-8")
    paths = [str(path) for path in (whole_picture, link, whole_picture, text, gone)]
    rows = [
        row(1, prompt=PROMPT_OF_EVERY_KIND, output_paths=json.dumps(paths), sample_count=5),
        row(2, prompt="木" * 32_000, tool_name="edit_image", estimated_cost=None),
        row(3, prompt=None, output_paths=None, parameters="{", size=None, quality=None, output_format=None, input_tokens=None),
    ]
    path = old_database(tmp_path / "old" / "old.db", rows)
    before = whole(path.parent)

    async def story(home: Home) -> None:
        result = await home.take_over(path)
        assert (result.path, result.found, result.imported, result.already_there) == (str(path), 3, 3, 0)
        assert (result.missing_files, result.unusable) == (4, ())
        assert "3 found, 3 imported" in result.message and "counted nowhere" in result.message
        job = home.job(1)
        assert job.prompt == PROMPT_OF_EVERY_KIND and job.imported == SOURCE and job.requested_at.year == OLD_DAYS.year
        assert [image.path for image in job.images] == [str(whole_picture)] * 2
        assert job.missing == (str(link), str(text), str(gone))
        assert job.images[0].width == 48 and job.cost == Cost(amount=None, basis="imported", table="", claimed=MicroUSD(60_680))
        assert home.job(2).prompt == "木" * 32_000 and home.job(2).request.tool == "edit_image"
        assert home.job(2).cost == Cost(amount=None, basis="imported", table="")
        assert (home.job(3).request, home.job(3).prompt) == (ImageRequest(tool="generate_image", model="unknown"), "")
        assert (home.job(3).images, home.job(3).missing, home.job(3).usage) == ((), (), None)
        assert ids(home.history()) == [name(3), name(2), name(1)]
        for query, number in (("逆光", 1), ("🦊", 1), ("100%_", 1), ("木木木", 2)):
            assert ids(home.history(text=query)) == [name(number)]
        assert list(home.house.ledger.spending.rows()) == []

    life(tmp_path / "home", story)
    assert whole(path.parent) == before


def test_asked_again_only_what_is_new_is_imported_also_after_a_restart(tmp_path: Path) -> None:
    lettered = "abcdef00-0000-4000-8000-00000000000a"
    path = old_database(tmp_path / "old.db", [row(1), row(2)])
    copy = old_database(tmp_path / "copy.db", [row(2), row(3, uuid=lettered), row(4, uuid=lettered.upper())])

    async def first(home: Home) -> None:
        assert (await home.take_over(path)).imported == 2
        again = await home.take_over(path)
        assert (again.found, again.imported, again.already_there, again.missing_files) == (2, 0, 2, 0)

    async def second(home: Home) -> None:
        again = await home.take_over(path)
        assert (again.imported, again.already_there) == (0, 2)
        others = await home.take_over(copy)
        assert (others.found, others.imported, others.already_there) == (3, 1, 2)
        assert ids(home.history()) == [lettered, name(2), name(1)]

    life(tmp_path / "home", first)
    life(tmp_path / "home", second)
    for index in (tmp_path / "home").glob("index.sqlite*"):
        index.unlink()
    life(tmp_path / "home", second_without_news(path, copy))


def second_without_news(*paths: Path) -> Callable[[Home], Awaitable[None]]:
    async def story(home: Home) -> None:
        for path in paths:
            assert (await home.take_over(path)).imported == 0
        assert len(list(home.imported())) == 3

    return story


def test_what_only_the_board_remembers_is_not_imported_again(tmp_path: Path) -> None:
    """An index that could not be written stays behind until the next start."""
    path = old_database(tmp_path / "old.db", [row(number) for number in range(3)])

    async def story(home: Home) -> None:
        home.house.index.stale = True
        assert (await home.take_over(path)).imported == 3
        again = await home.take_over(path)
        assert (again.imported, again.already_there) == (0, 3)
        assert len(list(home.imported())) == 3

    life(tmp_path / "home", story)
    life(tmp_path / "home", second_without_news(path))


def test_two_imports_at_once_import_once(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(BATCH_MAX + 50)])

    async def story(home: Home) -> None:
        results: list[HistoryImport] = []

        async def one() -> None:
            results.append(await home.take_over(path))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert sorted(result.imported for result in results) == [0, 0, BATCH_MAX + 50]
        assert len({event.job for event in home.imported()}) == len(list(home.imported())) == BATCH_MAX + 50

    life(tmp_path / "home", story)


def test_one_that_is_cancelled_in_the_middle_is_finished_by_the_next(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(3 * BATCH_MAX)])
    told: list[str] = []

    async def story(home: Home) -> None:
        with trio.CancelScope() as leaving:

            async def leaves(seconds: float, message: str) -> None:
                told.append(message)
                if len(told) == 2:
                    leaving.cancel()

            await home.take_over(path, leaves)
        assert leaving.cancelled_caught and len(list(home.imported())) == BATCH_MAX
        rest = await home.take_over(path)
        assert (rest.imported, rest.already_there) == (2 * BATCH_MAX, BATCH_MAX)

    life(tmp_path / "home", story)
    assert told == ["0 of 600 generations imported", "200 of 600 generations imported"]


def test_a_batch_that_is_being_written_is_finished_before_anybody_else_looks(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(BATCH_MAX + 5)])
    leaving = trio.CancelScope()

    async def leave_during(function: Callable[[], object]) -> object:
        leaving.cancel()
        await trio.testing.wait_all_tasks_blocked()
        return await in_thread(function)

    async def story(home: Home) -> None:
        with leaving:
            await home.take_over(path)
        assert leaving.cancelled_caught and len(list(home.imported())) == BATCH_MAX
        assert (await home.take_over(path)).already_there == BATCH_MAX

    life(tmp_path / "home", story, leave_during)


def test_ten_thousand_are_imported_each_in_a_commit_of_its_own(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(10_000)])

    async def story(home: Home) -> None:
        assert (await home.take_over(path)).imported == 10_000
        assert len({event.job for event in home.imported()}) == 10_000
        assert len(home.house.ledger.board) <= BATCH_MAX
        batches = {line.split(b'"batch":')[1].split(b",")[0] for line in lines(home.events)}
        assert len(batches) < 2 * 10_000 / BATCH_MAX

    life(tmp_path / "home", story)


def lines(events: Path) -> list[bytes]:
    return [line for path in events.glob("*.jsonl") for line in path.read_bytes().splitlines()]


def test_rows_that_are_unusable_are_named_and_counted(tmp_path: Path) -> None:
    bad = [row(number, output_paths="{") for number in range(UNUSABLE_SHOWN_MAX + 5)]
    path = old_database(tmp_path / "old.db", [*bad, row(100)])

    async def story(home: Home) -> None:
        result = await home.take_over(path)
        assert (result.found, result.imported) == (UNUSABLE_SHOWN_MAX + 6, 1)
        assert len(result.unusable) == UNUSABLE_SHOWN_MAX + 1 and result.unusable[-1] == "and 5 more."
        assert result.unusable[0].startswith(f"{name(0)}: its output_paths are '{{'")
        assert f"{UNUSABLE_SHOWN_MAX + 5} unusable" in result.message

    life(tmp_path / "home", story)


def test_the_first_database_that_is_there_is_taken_when_none_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    places = [home / "pictures/data/openai-gpt-image.db", home / "user/.openai-gpt-image/history.db"]

    async def story(found: Home) -> None:
        refused = await found.refusal(None)
        assert refused.code == "not_there" and all(str(place) in str(refused) for place in places)
        old_database(places[1], [row(1)])
        places[0].mkdir(parents=True)  # not a database
        assert (await found.take_over(None)).path == str(places[1])
        places[0].rmdir()
        old_database(places[0], [row(2)])
        assert (await found.take_over(None)).path == str(places[0])

    life(home, story)


def test_what_cannot_be_imported_is_refused_with_a_sentence_and_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100, "utf-8")

    async def story(home: Home) -> None:
        position = home.house.ledger.position
        for path, code in (
            ("old.db", "bad_arguments"),
            ("~/old.db", "bad_arguments"),
            ("", "bad_arguments"),
            ("/a\0b", "bad_arguments"),
            (tmp_path / "gone.db", "not_there"),
            (tmp_path / "text.db", "io_error"),
            (tmp_path, "io_error"),
        ):
            assert (await home.refusal(path)).code == code
        assert home.house.ledger.position == position

    life(tmp_path / "home", story)


@contextmanager
def touched_at_look(path: Path, number: int) -> Iterator[None]:
    """Somebody writes to the file just before we look whether somebody has, for the nth time."""
    look, looks = Path.stat, 0

    def stat(self: Path, **how: bool) -> os.stat_result:
        nonlocal looks
        if self == path:
            looks += 1
            if looks == number:
                os.utime(path, (1, 1))
        return look(self, **how)

    with mock.patch.object(Path, "stat", stat):
        yield


def test_what_was_read_before_the_trouble_is_imported_and_the_trouble_told(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(200)])

    async def story(home: Home) -> None:
        with touched_at_look(path, 4):  # at the opening, behind the row numbers, behind 50 rows, behind 100
            refused = await home.refusal(path)
        assert "written to while it was read" in str(refused) and "50 generations were imported before that" in str(refused)
        rest = await home.take_over(path)
        assert (rest.imported, rest.already_there) == (150, 50)

    life(tmp_path / "home", story)


def test_a_generation_is_recorded_once_and_on_a_full_disk_not_at_all() -> None:
    imported = HistoryImported(
        job=JobId(name(1)),
        source=SOURCE,
        created_at=OLD_DAYS,
        request=ImageRequest(tool="generate_image", model="gpt-image-1"),
        images=(),
        cost=Cost(amount=None, basis="imported", table=""),
    )
    decide = decisions.import_generation(imported, Words(salt=""))
    board = JobBoard()
    with pytest.raises(Refused, match="disk that holds the event log is full") as refused:
        decide(Views(board, Spending(), RecentOrders(), log_full=True))
    assert refused.value.code == "no_space"
    facts = decide(Views(board, Spending(), RecentOrders()))
    assert facts.events == (imported,)
    board.apply(Commit(position=Position(1), at=OLD_DAYS, events=facts.events, words=facts.words))
    assert decide(Views(board, Spending(), RecentOrders())) == NOTHING


def test_a_row_that_names_the_database_itself_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with in_use(path, [row(1, output_paths=json.dumps([str(path), f"{path}-wal"]))]) as db:

        async def story(home: Home) -> None:
            assert (await home.take_over(path)).missing_files == 2
            write(db, [row(2)])
            assert (await home.take_over(path)).imported == 1

        life(tmp_path / "home", story)


def test_an_old_history_is_offered_until_it_is_here(tmp_path: Path) -> None:
    path = tmp_path / "home/user/.openai-gpt-image/history.db"

    async def story(home: Home) -> None:
        assert await home.offer() == ""
        old_database(path, [row(1), row(2)])
        told = await home.offer()
        assert f"{path} holds 2 generations" in told and told.endswith(f"imaged import-history {path}")
        await home.take_over(path)
        assert await home.offer() == ""
        with closing(connect(path)) as db:
            write(db, [row(3)])
            assert "holds 1 generation " in await home.offer()
        assert "holds 1 generation " in await home.offer()

    life(tmp_path / "home", story)


def test_the_place_in_the_offer_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    place = tmp_path / "my home; rm -rf"
    path = old_database(place / "pictures/data/openai-gpt-image.db", [row(1)])

    async def story(home: Home) -> None:
        assert (await home.offer()).endswith(f"imaged import-history '{path}'")

    life(place, story)


def test_an_offer_is_looked_up_once_as_long_as_nothing_changes(tmp_path: Path) -> None:
    path = old_database(tmp_path / "home/pictures/data/openai-gpt-image.db", [row(1)])

    async def story(home: Home) -> None:
        first = await home.offer()
        assert first
        with mock.patch("sqlite3.connect", side_effect=AssertionError("opened again")):
            assert await home.offer() == first
        with closing(connect(path)) as db:
            write(db, [row(2)])
        assert "2 generations" in await home.offer()

    life(tmp_path / "home", story)


def test_an_old_history_in_any_trouble_is_passed_over_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "home/pictures/data/openai-gpt-image.db"

    async def story(home: Home) -> None:
        path.parent.mkdir(parents=True)
        path.write_text("no database " * 100, "utf-8")
        assert await home.offer() == ""
        path.unlink()
        os.mkfifo(path)
        assert await home.offer() == ""
        path.unlink()
        old_database(path, [row(number) for number in range(200)])
        overwritten(path, 1)
        assert await home.offer() == ""
        path.unlink()
        old_database(path, [row(1)])
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            write(db, [row(2)])
            assert await home.offer() == ""

    life(tmp_path / "home", story)


def test_a_disk_that_hangs_delays_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_database(tmp_path / "home/pictures/data/openai-gpt-image.db", [row(1)])
    goes_on = threading.Event()
    look = Path.stat

    def hang(self: Path, **how: bool) -> os.stat_result:
        if self == path:
            assert threading.current_thread() is not threading.main_thread(), "the whole daemon would hang"
            assert goes_on.wait(SECONDS_MAX)
        return look(self, **how)

    async def story(home: Home) -> None:
        with mock.patch.object(Path, "stat", hang):
            try:
                monkeypatch.setattr(importing, "OFFER_SECONDS_MAX", 0.01)
                assert await home.offer() == ""
                assert await home.offer() == ""
            finally:
                goes_on.set()
            await trio.to_thread.run_sync(lambda: None, limiter=home.house.desk.offering)
        monkeypatch.setattr(importing, "OFFER_SECONDS_MAX", SECONDS_MAX)
        assert await home.offer() != ""

    life(tmp_path / "home", story)


def test_nothing_is_offered_while_it_is_being_imported(tmp_path: Path) -> None:
    path = old_database(tmp_path / "home/pictures/data/openai-gpt-image.db", [row(1)])
    offers: list[str] = []

    async def story(home: Home) -> None:
        async def asks(seconds: float, message: str) -> None:
            offers.append(await home.offer())

        await home.take_over(path, asks)

    life(tmp_path / "home", story)
    assert offers == [""]


def test_the_places_are_the_one_named_and_the_two_that_were_documented() -> None:
    home = Path("/home/somebody")
    usual = (home / "Downloads/openai-images/data/openai-gpt-image.db", home / ".openai-gpt-image/history.db")

    def places(**given: str) -> tuple[Path, ...]:
        return Settings.parse(given, home_dir=home).old_history

    assert places() == usual
    assert places(HISTORY_DB_PATH="~/old.db") == (home / "old.db", *usual)
    assert places(HISTORY_DB_PATH="/old.db") == (Path("/old.db"), *usual)
    assert places(HISTORY_DB_PATH=str(usual[1])) == (usual[1], usual[0])
    assert places(OPENAI_IMAGE_OUTPUT_DIR="/p")[0] == Path("/p/data/openai-gpt-image.db")
    for strange in ("old.db", "./~/old.db", "~", "~root/old.db", "/a\0b", ":memory:"):
        assert places(HISTORY_DB_PATH=strange) == usual


def daemon(home: Path, *moment: str) -> Program:
    """The real daemon, with the import among its operations."""
    program = Program(home, [sys.executable, "-m", "tests.test_import", *moment])
    program.environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    return program


def test_the_real_daemon_takes_it_over_and_tells_it_like_its_own(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/fox.png").write_bytes(picture("png"))
    old_picture = json.dumps([str(tmp_path / "pictures/fox.png")])
    path = tmp_path / "pictures/data/openai-gpt-image.db"
    program = daemon(tmp_path).start().ready()
    try:
        with in_use(path, [row(1, prompt="冬の狐"), row(2, output_paths=old_picture)]):  # the old server runs beside us
            result = program.ask("import_history")["result"]
        assert (result["path"], result["found"], result["imported"], result["missing_files"]) == (str(path), 2, 2, 1)
        assert program.ask("import_history", path=str(path))["result"]["already_there"] == 2
        drawn = program.ask("generate_image", prompt="A new fox", output_path="new.png")["result"]["job_id"]
        listed = program.ask("list_history")["result"]
        assert [one["job_id"] for one in listed["generations"]] == [drawn, name(2), name(1)]
        assert program.ask("list_history", query="冬の")["result"]["total"] == 1
        report = program.ask("get_history_by_uuid", uuid=name(2))["result"]
        assert report["images"][0]["path"] == str(tmp_path / "pictures/fox.png") and report["cost"]["micro_usd"] is None
        assert "refused" in program.ask("import_history", path="old.db")
        assert program.end() == 0
    finally:
        program.kill()
    with running(tmp_path) as again:
        assert again.ask("list_history")["result"] == listed
        assert verify(again.places.events).fault is None


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_the_middle_of_an_import_loses_nothing_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    count = 2 * BATCH_MAX + 50
    path = old_database(tmp_path / "pictures/data/openai-gpt-image.db", [row(number) for number in range(count)])
    program = daemon(tmp_path, moment).start().ready()
    try:
        with pytest.raises(NotRunning):
            program.ask("import_history", path=str(path))
        assert program.wait_for_end() == -signal.SIGKILL
        kept = sum(isinstance(event, HistoryImported) for commit in program.log() for event in commit.events)
        assert kept == BATCH_MAX if moment.startswith("after") else kept < BATCH_MAX
        program = daemon(tmp_path).start().ready()
        result = program.ask("import_history", path=str(path))["result"]
        assert (result["found"], result["already_there"], result["imported"]) == (count, kept, count - kept)
        assert program.ask("list_history")["result"]["total"] == count
        events = [event for commit in program.log() for event in commit.events if isinstance(event, HistoryImported)]
        assert len({event.job for event in events}) == len(events) == count
        assert verify(program.places.events).fault is None
    finally:
        program.kill()


if __name__ == "__main__":
    for moment in sys.argv[1:]:
        MOMENTS[moment]()
    sys.exit(cli.main(["serve"]))
