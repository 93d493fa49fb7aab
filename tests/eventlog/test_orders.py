"""What is said of an order beyond the picture: its key, its sources, its retries, and files found by their bytes."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from eventlog.errors import IllegalTransition
from eventlog.events import AttemptFailed, JobCompleted, JobStarted
from eventlog.history import History
from eventlog.index import Index
from eventlog.jobs import JobBoard
from eventlog.values import ImageFile, Picture, Sha256
from tests.eventlog.builders import DIGEST, attempt, board_of, commit, completed, job_id, one_job, reply, requested, said
from tests.eventlog.test_index import placed

SAVED, RECEIVED, OTHER = Sha256("0a" * 32), Sha256("0b" * 32), Sha256("0c" * 32)


def test_a_job_is_found_by_the_digest_of_its_askers_key(tmp_path: Path) -> None:
    keyed = msgspec.structs.replace(requested(job_id(1)), request_key="k" * 64)
    with closing(Index.open(tmp_path / "index.sqlite")) as index, closing(History(tmp_path / "index.sqlite")) as history:
        index.fold(placed([commit(2, keyed, words=said(prompt="x")), commit(3, requested(job_id(2)), words=said(prompt="y"))]))
        found = history.job_of_key("k" * 64)
        assert found is not None and found.id == job_id(1) and found.request_key == "k" * 64
        assert history.job_of_key("") is None
        assert history.job_of_key("x" * 64) is None


def test_a_generation_is_found_by_the_bytes_it_saved_and_by_those_it_received(tmp_path: Path) -> None:
    image = ImageFile(sha256=SAVED, size_bytes=9, width=1, height=1, format="png", original=RECEIVED)
    commits = [*one_job()[:4], commit(6, JobCompleted(job=job_id(1), images=(image,)), words=said(paths=("/a.png",)))]
    with closing(Index.open(tmp_path / "index.sqlite")) as index, closing(History(tmp_path / "index.sqlite")) as history:
        index.fold(placed(commits))
        for digest in (SAVED, RECEIVED):
            found = history.job_of_image(digest)
            assert found is not None and found.id == job_id(1)
        assert history.job_of_image(OTHER) is None


def test_the_newest_generation_owns_bytes_that_two_have_in_common(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index, closing(History(tmp_path / "index.sqlite")) as history:
        index.fold(placed([*one_job(), *one_job(7, number=2)]))
        found = history.job_of_image(DIGEST)
        assert found is not None and found.id == job_id(2)


def test_ids_that_are_not_in_the_history_are_told_apart(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index, closing(History(tmp_path / "index.sqlite")) as history:
        index.fold(placed(one_job()))
        asked = [job_id(1), *(job_id(number) for number in range(2, 1202)), "\ud800"]
        assert history.unknown_of(asked) == set(asked) - {job_id(1), "\ud800"}


def test_a_job_knows_its_sources_by_the_names_their_asker_used() -> None:
    source = Picture(sha256=DIGEST, size_bytes=9, width=4, height=3, format="webp")
    order = requested(job_id(1), tool=1)
    order = msgspec.structs.replace(order, request=msgspec.structs.replace(order.request, sources=(source,)))
    board = JobBoard()
    board.apply(commit(2, order, words=said(prompt="x", sources=("fox.webp",))))
    job = board.get(job_id(1))
    assert job is not None and job.source_names == ("fox.webp",) and job.request.sources == (source,)


def test_between_two_attempts_a_job_says_when_it_asks_again_and_then_no_more() -> None:
    failed = AttemptFailed(job=job_id(1), attempt=1, code="rate_limited", billed="no", wait_seconds=12.5)
    story = [
        commit(2, requested(job_id(1))),
        commit(3, JobStarted(job=job_id(1))),
        commit(4, attempt(job_id(1))),
        commit(5, failed),
    ]
    waiting = board_of(story)[job_id(1)]
    assert waiting.retry_at == story[-1].at + timedelta(seconds=12.5)
    again = board_of([*story, commit(6, attempt(job_id(1), 2))])[job_id(1)]
    assert again.retry_at is None


def test_what_the_safety_system_said_is_kept_until_a_reply_comes() -> None:
    failed = AttemptFailed(
        job=job_id(1), attempt=1, code="moderation_blocked", billed="no", moderation_stage="input", categories=("violence",)
    )
    story = [
        commit(2, requested(job_id(1))),
        commit(3, JobStarted(job=job_id(1))),
        commit(4, attempt(job_id(1))),
        commit(5, failed),
    ]
    blocked = board_of(story)[job_id(1)]
    assert (blocked.moderation_stage, blocked.categories) == ("input", ("violence",))
    drawn = board_of([*story, commit(6, attempt(job_id(1), 2)), commit(7, reply(job_id(1), 2))])[job_id(1)]
    assert (drawn.moderation_stage, drawn.categories) == ("", ())


def test_every_file_has_a_sidecar_or_none_has() -> None:
    paths = {"paths": ("/a.png",), "sidecars": ("/a.png.xmp",)}
    job = board_of([*one_job()[:4], commit(6, completed(job_id(1)), words=said(**paths))])[job_id(1)]
    assert job.images[0].sidecar == "/a.png.xmp"
    with pytest.raises(IllegalTransition, match="sidecars"):
        board_of([*one_job()[:4], commit(6, completed(job_id(1)), words=said(paths=("/a.png",), sidecars=("/b", "/c")))])
