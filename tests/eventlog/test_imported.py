"""What an earlier program drew stands in the history at its own time, is found by its words, and costs nobody anything."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventlog.audit import narrate, verify
from eventlog.errors import IllegalTransition
from eventlog.events import Commit, HistoryImported, JobStarted
from eventlog.history import GenerationQuery, History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.spending import Spending
from eventlog.values import Cost, ImageFile, ImageRequest, JobId, JobState, MicroUSD, StoredImage, Usage
from tests.eventlog.builders import DAWN, DIGEST, PROMPTS, board_of, commit, dump, job_id, one_job, said, written
from tests.eventlog.disks import NoReserve
from tests.eventlog.test_index import all_jobs, assert_true, placed, spent, started

OLD_DAYS = datetime(2025, 4, 1, tzinfo=UTC)
IMAGE = ImageFile(sha256=DIGEST, size_bytes=9, width=48, height=32, format="png", original=DIGEST)


def imported(number: int, *, days: int = 0, images: tuple[ImageFile | None, ...] = (IMAGE,)) -> HistoryImported:
    return HistoryImported(
        job=job_id(number),
        source="an earlier program",
        created_at=OLD_DAYS + timedelta(days=days, microseconds=number),
        request=ImageRequest(tool="generate_image", model="gpt-image-1", count=len(images) or 1),
        images=images,
        cost=Cost(amount=None, basis="imported", table="", claimed=MicroUSD(60_680)),
        usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3),
    )


def history_of_both() -> list[Commit]:
    """Two of our own, and between them five older ones, imported in no order of time."""
    commits = one_job()
    for number, days in ((10, 3), (11, 1), (12, 500), (13, 2), (14, 1000)):
        words = said(prompt=PROMPTS[number % 5], paths=(f"/old/{number}.png",))
        commits.append(commit(len(commits) + 2, imported(number, days=days), words=words))
    return [*commits, *one_job(len(commits) + 2, number=2)]


def only_job(*commits: Commit) -> Job:
    (job,) = board_of(commits).values()
    return job


def test_an_imported_generation_is_completed_at_once_and_dated_as_it_was() -> None:
    words = said(prompt="猫", paths=("/old/a.png", "/old/gone.png", "/old/b.png"))
    job = only_job(commit(2, imported(1, images=(IMAGE, None, IMAGE)), words=words))
    assert (job.state, job.requested_at, job.changed_at) == (
        JobState.COMPLETED,
        OLD_DAYS + timedelta(microseconds=1),
        commit(2).at,
    )
    assert (job.prompt, job.imported, job.client.name) == ("猫", "an earlier program", "an earlier program")
    assert [image.path for image in job.images] == ["/old/a.png", "/old/b.png"] and job.missing == ("/old/gone.png",)
    assert isinstance(job.images[0], StoredImage) and job.images[0].original == DIGEST
    assert job.cost == Cost(amount=None, basis="imported", table="", claimed=MicroUSD(60_680))
    assert (job.billed, job.account.key, job.usage) == ("yes", "", Usage(input_tokens=1, output_tokens=2, total_tokens=3))


def test_one_without_any_file_and_one_whose_words_are_forgotten_are_kept() -> None:
    assert only_job(commit(2, imported(1, images=()), words=said(prompt="x"))).images == ()
    forgotten = only_job(commit(2, imported(1, images=(IMAGE, None))))
    assert (forgotten.prompt, forgotten.missing, [image.path for image in forgotten.images]) == (None, (), [None])


@pytest.mark.parametrize("follows", [imported(1), JobStarted(job=job_id(1))], ids=["again", "work on it"])
def test_nothing_follows_an_import(follows: HistoryImported | JobStarted) -> None:
    board = JobBoard()
    board.apply(commit(2, imported(1), words=said(paths=("/old/1.png",))))
    with pytest.raises(IllegalTransition):
        board.apply(commit(3, follows))
    job = board.get(job_id(1))
    assert job is not None and job.stage is Stage.COMPLETED


def test_spending_knows_nothing_of_what_was_imported() -> None:
    spending = Spending()
    assert spending.apply(commit(2, imported(1), words=said(paths=("/old/1.png",)))) == ()
    assert not list(spending.rows()) and spending.reserved == 0
    own = [*one_job(), *one_job(12, number=2)]
    assert list(spent(history_of_both()).rows()) == list(spent(own).rows())


def test_the_history_stands_in_the_order_of_asking_whenever_it_was_imported(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index:
        index.fold(placed(history_of_both()))
    with closing(History(tmp_path / "index.sqlite")) as history:

        def found(**query: object) -> list[int]:
            page = history.generations(GenerationQuery(limit=100, **query))  # type: ignore[arg-type]
            assert page.total == len(page.jobs)
            return [int(job.id[-4:], 16) for job in page.jobs]

        assert found() == [14, 2, 1, 12, 10, 13, 11]
        assert [int(job.id[-4:], 16) for job in history.jobs(JobQuery(limit=100)).jobs] == found()
        paged = [history.generations(GenerationQuery(limit=2, offset=offset)).jobs for offset in range(0, 8, 2)]
        assert [job.id for page in paged for job in page] == [job_id(number) for number in found()]
        assert found(until=OLD_DAYS + timedelta(days=3)) == [13, 11]
        assert found(since=OLD_DAYS + timedelta(days=2), until=DAWN) == [12, 10, 13]
        assert found(model="gpt-image-1") == [14, 12, 10, 13, 11]
        assert found(text="猫") == [11] and found(text="🦊") == [14] and found(text="100%") == [12] and found(text="0_") == []
        assert found(text="in the snow") == [2, 1, 10]
        assert history.job(job_id(12)) == board_of(history_of_both())[job_id(12)]


def test_ids_are_known_or_not_however_many_are_asked_for(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index:
        index.fold(placed(history_of_both()))
    ids = [job_id(number) for number in reversed(range(5000))]
    known = {job_id(number) for number in (1, 2, 10, 11, 12, 13, 14)}
    with closing(History(tmp_path / "index.sqlite")) as history:
        assert history.unknown_of([*ids, *ids]) == set(ids) - known
        assert history.unknown_of([]) == history.unknown_of(["\ud800"]) == set()


def test_an_index_made_anew_says_the_same_as_one_that_followed_along(tmp_path: Path) -> None:
    located = placed(history_of_both())
    with closing(Index.open(tmp_path / "along.sqlite")) as along, closing(Index.open(tmp_path / "anew.sqlite")) as anew:
        for one in located:
            along.fold([one])
        anew.fold(located)
        assert dump(along) == dump(anew)
        assert_true(tmp_path / "along.sqlite", along, history_of_both())
        assert len(list(along.board)) == 0


def test_the_log_replays_to_the_same_history_and_verifies(tmp_path: Path) -> None:
    commits = history_of_both()
    written(tmp_path / "events", [commits[:7], commits[7:]], NoReserve())
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert all_jobs(tmp_path / "index.sqlite") == board_of(commits)
        assert index.spending == spent(commits)
    found = verify(tmp_path / "events")
    assert found.fault is None and found.head == commits[-1].position


def test_its_story_is_one_line_that_says_whose_word_it_is(tmp_path: Path) -> None:
    words = said(prompt="a fox\x1b[2J", paths=("/old/a.png", "/old/gone.png"))
    written(tmp_path, [[commit(2, imported(1, images=(IMAGE, None)), words=words)]], NoReserve())
    (line,) = narrate(tmp_path, JobId(job_id(1)))
    assert "imported from an earlier program, which dates it 2025-04-01 00:00:00 UTC" in line
    assert "1 of 2 files found" in line and "a fox" in line and "\x1b" not in line
