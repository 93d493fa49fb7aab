"""Questions to the index: exact substring search, filters, pages that hold still."""

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.errors import IndexUnavailable
from eventlog.events import Commit, JobStarted
from eventlog.history import GenerationQuery, History, JobQuery
from eventlog.index import Index
from eventlog.searching import folded
from eventlog.values import JobId, JobState, Position
from tests.eventlog.builders import (
    DAWN,
    MODELS,
    PROMPTS,
    attempt,
    board_of,
    commit,
    commits_of,
    completed,
    job_id,
    one_job,
    reply,
    requested,
    said,
)
from tests.eventlog.test_index import placed


def drawn(prompts: Sequence[str]) -> list[Commit]:
    """One completed job for each prompt, each in one commit."""
    return [
        commit(
            number + 2,
            requested(job_id(number), tool=number % 3, model=number % 2),
            JobStarted(job=job_id(number)),
            attempt(job_id(number)),
            reply(job_id(number)),
            completed(job_id(number)),
            words=said(prompt=prompt, paths=("/a.png",)),
        )
        for number, prompt in enumerate(prompts)
    ]


def index_of(path: Path, commits: Sequence[Commit], *, letter: int = 0) -> None:
    with closing(Index.open(path)) as index:
        index.fold(placed(commits))
        index.letter(letter)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Twelve generations, then one job that runs."""
    commits = drawn(list(PROMPTS) * 2)
    commits.append(commit(14, requested(job_id(99)), JobStarted(job=job_id(99)), words=said(prompt="fox, unfinished")))
    index_of(tmp_path / "index.sqlite", commits)
    with closing(History(tmp_path / "index.sqlite")) as history:
        yield history


def found(history: History, **query: object) -> list[int]:
    """Numbers of the generations that fit, in the order of the answer."""
    page = history.generations(GenerationQuery(limit=100, **query))  # type: ignore[arg-type]
    assert page.total == len(page.jobs)
    return [job.requested_position - 2 for job in page.jobs]


CHARACTERS = st.sampled_from("aAbßẞſİıéｱア゛ﾞ猫逆光 　%_\"'*^-():\\\0\ufffd\ufffe\U0001f98a\u200d\u0301ﬁǅΣςK")
PROMPT = st.text(CHARACTERS, max_size=12)


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(PROMPT, min_size=1, max_size=8), queries=st.lists(PROMPT, min_size=1, max_size=6), data=st.data())
def test_search_is_exactly_the_substring_of_folded_text(prompts: list[str], queries: list[str], data: st.DataObject) -> None:
    """However far the indexes have come, whatever they are asked for, and with none."""
    for prompt in prompts:
        start = data.draw(st.integers(0, len(prompt)))
        queries.append(prompt[start : start + data.draw(st.integers(1, 5))])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "index.sqlite"
        index_of(path, drawn(prompts), letter=data.draw(st.integers(0, len(prompts))))
        answers = []
        with pytest.MonkeyPatch.context() as patch:
            for newest in (0, data.draw(st.integers(0, len(prompts))), len(prompts)):
                patch.setattr("eventlog.history.NEWEST_JOBS", newest)
                with closing(History(path)) as history:
                    answers.append([found(history, text=query) for query in queries])
            patch.setattr("eventlog.history.NEWEST_JOBS", 0)
            with closing(sqlite3.connect(path)) as db:
                db.execute("DROP TABLE trigram")  # as an SQLite without trigrams leaves it
            with closing(History(path)) as history:
                answers.append([found(history, text=query) for query in queries])
    expected = [[n for n in reversed(range(len(prompts))) if folded(query) in folded(prompts[n])] for query in queries]
    assert answers == [expected] * 4


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("猫", 1),
        ("逆光", 1),
        ("逆光の猫", 1),
        ("ガラス", None),
        ("ガラ", 3),
        ("ｶﾞﾗｽ", None),
        ("STRASSE", 4),
        ("🦊", 4),
        ("fox", 0),
        ("FOX IN", 0),
        ("100%", 2),
        ('"quoted"_', 2),
        ("0%q", None),
        ("a_x", None),
        ("nothing of the kind", None),
        ("x\0", None),
        ("\ud800", None),
    ],
)
def test_search_finds_japanese_wildcards_and_quotes_as_they_are(history: History, text: str, prompt: int | None) -> None:
    expected = [] if prompt is None else [prompt + 6, prompt]
    if text in ("ガラス", "ｶﾞﾗｽ"):
        expected = [9, 3]  # half-width and full-width kana are one
    assert found(history, text=text) == expected


def test_a_search_for_thirty_thousand_characters_is_answered(tmp_path: Path) -> None:
    long = "".join(chr(0x4E00 + n % 5000) for n in range(30_000))
    index_of(tmp_path / "index.sqlite", drawn([long, "short"]))
    with closing(History(tmp_path / "index.sqlite")) as history:
        assert found(history, text=long) == [0]
        assert found(history, text=long[1:] + "x") == []


def test_only_completed_jobs_are_generations_and_the_newest_comes_first(history: History) -> None:
    assert found(history) == list(reversed(range(12)))
    assert found(history, text="unfinished") == []


def test_filters_work_alone_and_together(history: History) -> None:
    assert found(history, tool="edit_image") == [10, 7, 4, 1]
    assert found(history, model=MODELS[1]) == [11, 9, 7, 5, 3, 1]
    assert found(history, tool="edit_image", model=MODELS[1]) == [7, 1]
    assert found(history, tool="edit_image", model=MODELS[1], text="猫") == [7, 1]
    assert found(history, model="no such model") == []


def test_since_is_included_and_until_is_not(history: History) -> None:
    at = {n: DAWN + timedelta(hours=n + 2, microseconds=n + 2) for n in range(12)}
    assert found(history, since=at[9]) == [11, 10, 9]
    assert found(history, until=at[2]) == [1, 0]
    assert found(history, since=at[3], until=at[5]) == [4, 3]
    assert found(history, since=at[3] + timedelta(microseconds=1), until=at[5]) == [4]


def test_pages_meet_without_gap_or_overlap_and_the_total_respects_the_filter(history: History) -> None:
    whole = found(history, tool="edit_image")
    paged = []
    for offset in range(0, 6, 2):
        page = history.generations(GenerationQuery(limit=2, offset=offset, tool="edit_image"))
        assert page.total == 4 and page.position == 14
        paged += [job.requested_position - 2 for job in page.jobs]
    assert paged == whole


def test_a_long_history_is_not_counted_to_its_end_and_says_so(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(**query: Any) -> tuple[int, int, bool]:
        page = history.generations(GenerationQuery(limit=2, **query))
        return len(page.jobs), page.total, page.at_least

    ever = DAWN - timedelta(days=1)
    assert counted() == (2, 12, False) and counted(since=ever) == (2, 12, False) and counted(text="fox") == (2, 2, False)
    monkeypatch.setattr("eventlog.history.COUNTED_MAX", 3)
    assert counted() == (2, 12, False), "the tally knows"
    assert counted(since=ever) == (2, 3, True) and counted(since=ever, offset=8) == (2, 11, True)
    assert counted(since=ever, offset=10) == (2, 12, False) and counted(since=ever, offset=12) == (0, 12, False)
    monkeypatch.setattr("eventlog.history.NEWEST_JOBS", 4)
    monkeypatch.setattr("eventlog.history.FOUND_MAX", 1)
    assert counted(text="fox") == (2, 2, False), "one of them is further back"
    assert counted(text="a") == (2, 3, True) and counted(text="a", offset=2) == (2, 4, False)
    monkeypatch.setattr("eventlog.history.NEWEST_JOBS", 11)
    assert counted(text="a")[2], "two were among the newest, and no further was looked"


def test_pages_hold_still_as_of_a_position_while_more_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with closing(Index.open(path)) as index, closing(History(path)) as history:
        commits = drawn(["a"] * 4)
        index.fold(placed(commits[:3]))
        first = history.generations(GenerationQuery(limit=2))
        index.fold(placed(commits[3:]))
        second = history.generations(GenerationQuery(limit=2, offset=2, as_of=first.position))
        assert [job.requested_position for page in (first, second) for job in page.jobs] == [4, 3, 2]
        assert (first.total, second.total, second.position) == (3, 3, 5)


def test_jobs_are_listed_by_state_and_tool_and_found_by_id(tmp_path: Path) -> None:
    commits = commits_of(list(range(0, 4000, 37)))
    everything = board_of(commits)
    index_of(tmp_path / "index.sqlite", commits)
    with closing(History(tmp_path / "index.sqlite")) as history:
        for state in JobState:
            page = history.jobs(JobQuery(limit=1000, state=state))
            assert list(page.jobs) == [job for job in reversed(everything.values()) if job.state is state]
            assert page.total == len(page.jobs)
        page = history.jobs(JobQuery(limit=1000, tool="edit_image"))
        assert {job.id for job in page.jobs} == {id for id, job in everything.items() if job.request.tool == "edit_image"}
        for id, job in everything.items():
            assert history.job(id) == job
        assert history.job(job_id(123456)) is None
        assert history.job(JobId("\ud800'; DROP TABLE job")) is None
        assert history.position() == commits[-1].position


def test_a_forgotten_or_missing_prompt_is_never_found_by_text(tmp_path: Path) -> None:
    commits = [Commit(position=one.position, at=one.at, events=one.events) for one in drawn(["a", "b"])]
    index_of(tmp_path / "index.sqlite", commits)
    with closing(History(tmp_path / "index.sqlite")) as history:
        assert found(history, text="a") == [] and found(history) == [1, 0]


def test_an_empty_index_has_empty_pages(tmp_path: Path) -> None:
    Index.open(tmp_path / "index.sqlite").close()
    with closing(History(tmp_path / "index.sqlite")) as history:
        page = history.generations(GenerationQuery(limit=10))
        assert page == ((), 0, Position(0), False) and history.position() == 0


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with pytest.raises(IndexUnavailable, match="restart the daemon"):
        History(path)
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(IndexUnavailable):
        History(path)
    path.unlink()
    index_of(path, one_job())
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE job SET body = x'00'")
        db.commit()
    with closing(History(path)) as history:
        for ask in (
            lambda: history.job(job_id(1)),
            lambda: history.generations(GenerationQuery(limit=1)),
            lambda: history.jobs(JobQuery(limit=1)),
        ):
            with pytest.raises(IndexUnavailable):
                ask()
        assert history.position() == 6


@pytest.mark.parametrize("limit", [1, 3, 4, 20])
@pytest.mark.parametrize("asked", [{}, {"tool": "edit_image"}, {"model": "gpt-image-2.5"}])
def test_every_page_is_the_same_piece_of_the_whole_list_from_whichever_end_it_is_counted(
    tmp_path: Path, limit: int, asked: dict[str, str]
) -> None:
    commits = [one for number in range(11) for one in one_job(2 + number * 5, number=number)]
    with closing(Index.open(tmp_path / "index.sqlite")) as index, closing(History(tmp_path / "index.sqlite")) as history:
        index.fold(placed(commits))
        whole = history.generations(GenerationQuery(limit=100, **asked)).jobs  # type: ignore[arg-type]
        for offset in range(14):
            page = history.generations(GenerationQuery(limit=limit, offset=offset, **asked))  # type: ignore[arg-type]
            assert (page.jobs, page.total) == (whole[offset : offset + limit], len(whole))
