"""Words that are forgotten: gone from the disk at whatever moment it dies, and not a byte elsewhere than it was."""

import random
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.audit import verify
from eventlog.errors import IllegalTransition, IndexUnavailable, LogCorrupt, LogDead, LogFull
from eventlog.events import AttemptFailed, Commit, HistoryImported, JobFailed, RequestReceived, WordsForgotten
from eventlog.forgetting import find
from eventlog.framing import draft, read, seal, without_words
from eventlog.history import GenerationQuery, History
from eventlog.index import Index
from eventlog.jobs import JobBoard
from eventlog.log import EventLog
from eventlog.searching import folded
from eventlog.segments import Located, read_log, segment_name
from eventlog.values import Blob, Client, Cost, JobId, Position, Sha256
from tests.eventlog.builders import (
    DAWN,
    DIGEST,
    append,
    commit,
    commits_of,
    completed,
    dump,
    job_id,
    one_job,
    opened,
    reply,
    requested,
    said,
    written,
)
from tests.eventlog.disks import MemoryDisk, NoReserve, PowerCut, fail, fail_nth

HERE = Path("/nowhere")
JOB = job_id(1)
SECRET = "Zuckerwatteﾎﾞﾂﾁ"
SEGMENT_BYTES = 1500  # a job's commits then stand in several


def secret_story() -> list[Commit]:
    """A job, a request that was refused before with the same prompt, one that looked for it, and somebody else's job."""
    ask = RequestReceived(operation="generate_image", door="mcp", client=Client(name="c"))
    look = RequestReceived(operation="list_history", door="mcp", client=Client(name="c"))
    raw = msgspec.Raw(msgspec.json.encode(f"draw {SECRET}!"))
    searched = msgspec.Raw(msgspec.json.encode("zuckerwatte"))
    other = msgspec.Raw(b'"elsewhere"')
    refused, looked = said(arguments={"prompt": raw}), said(arguments={"query": searched})
    return [
        commit(2, ask, words=refused),
        *one_job(3, prompt=f"draw {SECRET}!"),
        commit(8, look, words=looked),
        *one_job(9, number=2, prompt="a badger"),
        commit(14, look, words=said(arguments={"query": other})),
    ]


SECRET_POSITIONS = (2, 3, 7, 8)


def written_secret(directory: Path, disk: MemoryDisk | None = None) -> list[Located]:
    return written(directory, [[one] for one in secret_story()], disk or NoReserve(), segment_bytes=SEGMENT_BYTES)


def holds(data: bytes, text: str) -> bool:
    """As it is, as JSON spells it, and as searches fold it."""
    forms = {text, folded(text), text.encode("unicode_escape").decode()}
    return any(form.encode() in data for form in forms)


def forget_all(log: EventLog, found: Sequence[object]) -> None:
    left = log.forget(found)  # type: ignore[arg-type]
    while left:
        left = log.forget(left)


def forgotten(position: int, *positions: int, job: JobId = JOB, files: bool = False) -> Commit:
    return commit(position, WordsForgotten(job=job, positions=tuple(map(Position, positions)), files=files))


def test_a_line_without_its_words_is_as_long_as_before_and_proves_itself_as_before() -> None:
    for one in one_job():
        line = seal(draft(one), Sha256("0" * 64), one.position).line[:-1]
        blank = without_words(line)
        assert len(blank) == len(line) and read(blank).hash == read(line).hash
        assert read(blank).commit.words is None and read(blank).words_forgotten == (one.words is not None)
        assert without_words(blank) == blank


def test_what_repeats_a_jobs_words_is_found_and_nothing_else(tmp_path: Path) -> None:
    located = written_secret(tmp_path)
    found = find(tmp_path, {JOB})
    assert found.lines == tuple(one.mark for one in located if one.commit.position in SECRET_POSITIONS)
    assert [job.id for job in found.jobs] == [JOB] and found.attempts == ("request-1",)
    assert (found.blobs, found.shared) == (frozenset(), {DIGEST}), "both drew the very same picture"


def test_a_blob_is_shared_until_the_last_job_that_names_it_is_forgotten(tmp_path: Path) -> None:
    kept = Blob(sha256=Sha256("cd" * 32), size_bytes=3)
    useless = AttemptFailed(job=job_id(3), attempt=1, code="bad_reply", billed="yes", kept=kept)
    stories = [*secret_story(), forgotten(15, 10, 13, job=job_id(2))]
    more = [*one_job(16, number=3)[:3], commit(19, useless)]
    written(tmp_path, [stories, more], NoReserve())
    assert find(tmp_path, {JOB}).blobs == {DIGEST}
    assert find(tmp_path, {job_id(3)}).blobs == {kept.sha256}


def test_the_words_leave_every_segment_and_not_a_byte_moves(tmp_path: Path) -> None:
    located = written_secret(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert len(before) > 3
    log, _, _ = opened(tmp_path, NoReserve(), segment_bytes=SEGMENT_BYTES)
    with closing(log):
        append(log, [forgotten(15, *SECRET_POSITIONS)])
        forget_all(log, find(tmp_path, {JOB}).lines)
        (after,) = append(log, [commit(16)])
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.jsonl")}
    assert all(sizes[name] == len(data) for name, data in before.items() if name != max(before))
    assert not any(holds(path.read_bytes(), SECRET) or holds(path.read_bytes(), "zuckerwatte") for path in tmp_path.iterdir())
    marks = [one.mark for one in read_log(tmp_path, None)]
    assert marks[:14] == [one.mark for one in located] and marks[-1] == after.mark
    found = verify(tmp_path)
    assert found.fault is None and found.head == 16
    assert [(one.job, one.position, one.words) for one in found.forgotten] == [(JOB, 15, 4)]
    kept_words = [one.commit.position for one in read_log(tmp_path, None) if one.commit.words is not None]
    assert kept_words == [9, 13, 14], "what others said stays"
    log, recovery, _ = opened(tmp_path, NoReserve(), mark=located[4].mark)
    log.close()
    assert recovery.torn_bytes == 0


def test_what_is_appended_to_the_rewritten_segment_is_there(tmp_path: Path) -> None:
    """The descriptor that was open before shows a file without a name."""
    located = written(tmp_path, [[one] for one in one_job()], NoReserve())
    log, _, _ = opened(tmp_path, NoReserve())
    with closing(log):
        for _ in range(2):
            located += append(log, [forgotten(len(located) + 1, 2, 6)])
            forget_all(log, find(tmp_path, {JOB}).lines)
            located += append(log, [commit(len(located) + 1, words=said(message="later"))])
    assert [one.mark for one in read_log(tmp_path, None)] == [one.mark for one in located]
    assert verify(tmp_path).unfinished_bytes == 0 and len(list(tmp_path.glob("*.jsonl"))) == 1


def test_a_reader_in_the_middle_of_the_old_file_reads_on(tmp_path: Path) -> None:
    located = written_secret(tmp_path)
    reading = read_log(tmp_path, None)
    first = [next(reading) for _ in range(3)]
    log, _, _ = opened(tmp_path, NoReserve(), segment_bytes=SEGMENT_BYTES)
    with closing(log):
        append(log, [forgotten(15, *SECRET_POSITIONS)])
        forget_all(log, find(tmp_path, {JOB}).lines)
    assert [one.mark for one in (*first, *reading)][:14] == [one.mark for one in located]


def test_words_that_a_fact_says_are_forgotten_but_stand_there_still_are_told(tmp_path: Path) -> None:
    written(tmp_path, [[*secret_story(), forgotten(15, *SECRET_POSITIONS)]], NoReserve())
    found = verify(tmp_path)
    assert found.fault is None and [one.standing for one in found.forgotten] == [SECRET_POSITIONS]


def test_words_that_are_gone_without_a_fact_are_a_fault_even_if_others_were_forgotten(tmp_path: Path) -> None:
    written_secret(tmp_path)
    log, _, _ = opened(tmp_path, NoReserve(), segment_bytes=SEGMENT_BYTES)
    with closing(log):
        append(log, [forgotten(15, 2, 3, 8)])
        forget_all(log, find(tmp_path, {JOB}).lines)
    found = verify(tmp_path)
    assert found.fault is not None and found.fault.position == 7 and "no fact says why" in found.fault.sentence


@pytest.mark.parametrize("seed", range(60))
def test_a_power_cut_leaves_the_old_segment_or_the_new_one_and_the_next_start_finishes(seed: int) -> None:
    moment, finished = 0, False
    while not finished:
        moment += 1
        disk, chance = MemoryDisk(), random.Random(seed * 1000 + moment)
        located = written_secret(HERE, disk)
        log, _, _ = opened(HERE, disk, segment_bytes=SEGMENT_BYTES)
        located += append(log, [forgotten(15, *SECRET_POSITIONS)])
        lines = find(HERE, {JOB}, disk).lines
        disk.before = fail_nth(moment, PowerCut())
        try:
            forget_all(log, lines)
            finished = True
        except PowerCut:
            pass
        disk.before = lambda operation: None
        disk.cut_power(chance)
        log, recovery, replayed = opened(HERE, disk, segment_bytes=SEGMENT_BYTES)
        assert [one.mark for one in replayed] == [one.mark for one in located] and recovery.torn_bytes == 0
        assert verify(HERE, disk).fault is None
        if finished:
            assert find(HERE, {JOB}, disk).lines == ()
        forget_all(log, find(HERE, {JOB}, disk).lines)
        located += append(log, [commit(16)])
        disk.cut_power(chance)
        assert not any(holds(data, SECRET) for data in disk.content().values())
        assert [one.mark for one in read_log(HERE, None, disk)] == [one.mark for one in located]
    assert moment > 8


def test_no_room_for_the_copy_changes_nothing_and_the_log_goes_on() -> None:
    for operation in ("create", "pwrite", "replace"):
        disk = MemoryDisk()
        written_secret(HERE, disk)
        log, _, _ = opened(HERE, disk, segment_bytes=SEGMENT_BYTES)
        before, lines = disk.content(), find(HERE, {JOB}, disk).lines
        disk.before = fail_nth(1, fail(28), only=operation, forever=True)
        with pytest.raises(LogFull):
            log.forget(lines)
        disk.before = lambda operation: None
        assert disk.content() == before
        append(log, [forgotten(15, *SECRET_POSITIONS)])
        forget_all(log, lines)
        assert not any(holds(data, SECRET) for data in disk.content().values())


@pytest.mark.parametrize(
    ("operation", "number", "error"),
    [
        ("sync", 1, 5),
        ("sync_directory", 1, 5),
        ("sync_directory", 2, 5),
        ("sync_directory", 2, 28),
        ("replace", 1, 5),
        ("pwrite", 1, 5),
    ],
)
def test_a_disk_that_fails_ends_the_log_and_spoils_no_segment(operation: str, number: int, error: int) -> None:
    disk = MemoryDisk()
    located = written_secret(HERE, disk)
    log, _, _ = opened(HERE, disk, segment_bytes=SEGMENT_BYTES)
    located += append(log, [forgotten(15, *SECRET_POSITIONS)])
    disk.before = fail_nth(number, fail(error), only=operation)
    with pytest.raises(LogDead, match="start again"):
        log.forget(find(HERE, {JOB}, disk).lines)
    disk.before = lambda operation: None
    with pytest.raises(LogDead):
        append(log, [commit(16)])
    with pytest.raises(LogDead):
        log.forget(())
    disk.cut_power(random.Random(3))
    assert [one.mark for one in read_log(HERE, None, disk)] == [one.mark for one in located]


def test_a_line_that_is_not_where_it_should_be_is_left_alone() -> None:
    disk = MemoryDisk()
    located = written_secret(HERE, disk)
    log, _, _ = opened(HERE, disk)
    before = disk.content()
    for wrong in (located[2].mark._replace(offset=located[2].mark.offset + 1), located[3].mark._replace(position=Position(9))):
        with pytest.raises(LogCorrupt, match="not removed"):
            log.forget([wrong])
    assert disk.content() == before


def test_what_a_crash_left_half_written_or_torn_is_swept() -> None:
    disk = MemoryDisk()
    written_secret(HERE, disk)
    log, _, _ = opened(HERE, disk)
    content = disk.content()
    for name in (f"forgetting-{segment_name(0)}", "torn-77"):
        disk.files[name] = disk.files[segment_name(0)]
    assert log.forget(()) == ()
    assert disk.content() == content


def test_a_job_that_is_not_over_may_not_lose_its_words() -> None:
    board = JobBoard()
    board.apply(one_job()[0])
    with pytest.raises(IllegalTransition, match="may not follow yet"):
        board.apply(forgotten(3, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**14), max_size=25), st.integers(0, 5), st.integers(1, 6))
def test_following_along_and_starting_anew_after_forgetting_tell_the_same(choices: list[int], which: int, piece: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        located = written(home / "events", [[one] for one in commits_of(choices)], NoReserve(), segment_bytes=3000)
        over = [job for job in board_after(located) if job.state.is_over]
        if not over:
            return
        job = over[which % len(over)]
        log, _, _ = opened(home / "events", NoReserve(), segment_bytes=3000)
        lines = find(home / "events", {job.id}).lines
        located += append(log, [forgotten(len(located) + 1, *(line.position for line in lines), job=job.id)])
        located += append(log, [commit(len(located) + 1)])
        followed = Index.open(home / "followed.sqlite")
        for start in range(0, len(located), piece):
            followed.fold(located[start : start + piece])
        forget_all(log, lines)
        log.close()
        anew = Index.open(home / "anew.sqlite")
        anew.fold(list(read_log(home / "events", None)))
        assert dump(followed) == dump(anew) and followed.forgetting() == anew.forgetting()
        with closing(History(home / "anew.sqlite")) as history:
            found = history.job(job.id)
            assert found is not None and found.prompt is None and found.forgotten_at == located[-2].commit.at
        followed.close()
        anew.close()


def test_every_word_of_a_job_and_of_an_import_is_left_out_of_what_is_told(tmp_path: Path) -> None:
    image = completed(JOB).images[0]
    old = HistoryImported(
        job=job_id(2),
        source="an old program",
        created_at=DAWN,
        request=requested(JOB).request,
        images=(image, None),
        cost=Cost(amount=None, basis="imported", table=""),
    )
    story = [
        commit(2, requested(JOB), words=said(prompt=SECRET, output_dir=f"/{SECRET}", output_path=SECRET, sources=(SECRET,))),
        *one_job()[1:3],
        commit(5, reply(JOB)),
        commit(6, completed(JOB), words=said(paths=(f"/{SECRET}.png",), sidecars=(f"/{SECRET}.xmp",))),
        commit(7, old, words=said(prompt=SECRET, paths=(f"/{SECRET}.png", f"/{SECRET}.jpg"))),
        commit(8, requested(job_id(3))),
        commit(9, JobFailed(job=job_id(3), code="x", billed="no"), words=said(message=SECRET)),
    ]
    located = written(tmp_path, [story], NoReserve())
    told = [board_after(located), board_after([one._replace(commit=bare(one.commit)) for one in located])]
    ends = [WordsForgotten(job=job_id(number), positions=()) for number in (1, 2, 3)]
    for board in told:
        board.apply(commit(10, *ends))
    assert list(told[0]) == list(told[1]) and SECRET not in repr(list(told[0]))


def bare(one: Commit) -> Commit:
    return msgspec.structs.replace(one, words=None)


def board_after(located: Sequence[Located]) -> JobBoard:
    board = JobBoard()
    for one in located:
        board.apply(one.commit)
    return board


def indexed(path: Path, located: Sequence[Located], piece: int = 3) -> Index:
    index = Index.open(path)
    for start in range(0, len(located), piece):
        index.fold(located[start : start + piece])
    return index


def terms_in(path: Path, index: str) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, {index}, row)")
        return {term for (term,) in db.execute("SELECT term FROM temp.terms")}


@pytest.mark.parametrize("lettered", [0, 1, 100])
def test_no_byte_of_a_forgotten_prompt_is_left_in_the_index(lettered: int, tmp_path: Path) -> None:
    located = written_secret(tmp_path / "events")
    index = indexed(tmp_path / "index.sqlite", [])
    index._db.execute("PRAGMA secure_delete = OFF")  # some systems build SQLite with it; it is not to be relied on
    for one in located:
        index.fold([one])
    index.letter(lettered)
    assert any(holds(path.read_bytes(), SECRET) for path in tmp_path.glob("index.*"))
    later = Located(forgotten(15, *SECRET_POSITIONS), located[-1].mark._replace(position=Position(15)))
    index.fold([later])
    assert [event.job for event in index.forgetting()] == [JOB]
    while index.letter(1):
        pass
    index.scrub()
    for path in tmp_path.glob("index.*"):
        assert not holds(path.read_bytes(), SECRET)
        assert "ツチ".encode() not in path.read_bytes(), "the end of a trigram: beginnings are shared with its neighbours"
        assert f"x{ord('チ'):x}".encode() not in path.read_bytes(), "the same of two neighbours"
    kept = "a badger"
    assert terms_in(tmp_path / "index.sqlite", "trigram") == {kept[at : at + 3] for at in range(6)}
    pairs = {f"{ord(one):x}x{ord(two):x}" for one, two in pairwise(kept)}
    assert terms_in(tmp_path / "index.sqlite", "gram") == {f"{ord(character):x}" for character in kept} | pairs
    with closing(History(tmp_path / "index.sqlite")) as history:
        assert history.generations(GenerationQuery(limit=9, text="badger")).total == 1
        assert history.generations(GenerationQuery(limit=9, text="zucker")).total == 0
        assert history.generations(GenerationQuery(limit=9)).total == 2
    index.forgot({job_id(2)})
    assert len(index.forgetting()) == 1
    index.forgot({JOB})
    index.close()
    again = Index.open(tmp_path / "index.sqlite")
    assert again.forgetting() == () and again.mark == later.mark
    again.close()


def test_an_index_that_somebody_else_reads_is_not_called_clean(tmp_path: Path) -> None:
    located = written_secret(tmp_path / "events")
    index = indexed(tmp_path / "index.sqlite", located)
    index._db.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM job").fetchone()
        index.fold([Located(forgotten(15, *SECRET_POSITIONS), located[-1].mark._replace(position=Position(15)))])
        with pytest.raises(IndexUnavailable, match="reading the index"):
            index.scrub()
        other.execute("ROLLBACK")
    index.scrub()
    index.close()


def test_an_index_that_is_behind_the_log_is_not_called_clean(tmp_path: Path) -> None:
    index = indexed(tmp_path / "index.sqlite", written_secret(tmp_path / "events"))
    index.stale = True
    with pytest.raises(IndexUnavailable, match="behind"):
        index.scrub()
    index.close()


def asked_beside(job: list[Commit], *asked: dict[str, object]) -> tuple[MemoryDisk, list[int]]:
    """A log with a job, and a request behind it for each of the arguments; and the positions of these requests."""
    disk, first = MemoryDisk(), job[-1].position + 1
    ask = RequestReceived(operation="anything", door="mcp", client=Client(name="c"))
    raw = [{name: msgspec.Raw(msgspec.json.encode(value)) for name, value in one.items()} for one in asked]
    requests = [commit(first + n, ask, words=said(arguments=arguments)) for n, arguments in enumerate(raw)]
    written(HERE, [[*job, *requests]], disk)
    return disk, [one.position for one in requests]


def ordered(**words: object) -> list[Commit]:
    keyed = {"idempotency_key": msgspec.Raw(b'"k7"')}
    return [commit(2, requested(JOB), words=said(arguments=keyed, **words)), *one_job()[1:4]]


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": " E\n"},
        {"query": "e"},
        {"style": "e"},
        {"idempotency_key": "k7"},
        {"image_path": "sub/low.png"},
        {"reference_images": ["other.png", "/pictures/Low.png"]},
        {"reference_images": '["low.png"]'},
        {"image_path": "deep", "more": [{"in": ["low.png"]}]},
        {"directory": "/pictures/the only lighthouse.png/old"},
        {"prompt": "make the only  Lighthouse.PNG brighter"},
        {"quality": "the only lighthouse.png"},
    ],
    ids=repr,
)
def test_who_has_repeated_a_jobs_words_is_forgotten_with_it(asked: dict[str, object]) -> None:
    names = {"paths": ("/a/low.png",), "sidecars": ("/a/the only lighthouse.png",)}
    disk, positions = asked_beside([*ordered(prompt="e"), commit(6, completed(JOB), words=said(**names))], asked)
    assert [line.position for line in find(HERE, {JOB}, disk).lines] == [2, 6, *positions]


def test_words_that_only_look_like_a_jobs_words_stay() -> None:
    """Of each kind one, beside a job whose words are as short as words can be, or none of its own."""
    other = "01a20000-0000-7000-8000-000000000000"
    story = ordered(prompt="e", output_path="generated_image.png", sources=(f"{other}/2", other, "low.png"))
    names = said(paths=("/a/generated_image_1.png",), sidecars=("/a/generated_image_1.png.xmp",))
    disk, _ = asked_beside(
        [*story, commit(6, completed(JOB), words=names)],
        *({"prompt": "a hen"}, {"query": "hen"}, {"prompt": "k7 and k8"}, {"query": ""}, {"model": "e"}),
        *({"quality": "low"}, {"image_path": "slow.png"}, {"prompt": "put low.png into it"}, {"limit": 3}),
        *({"image_path": "generated_image.png"}, {"image_path": "/a/generated_image_1.png"}),
        *({"reference_images": [f"{other}/2"]}, {"uuid": other}, {"uuid": JOB}, {"image_path": "2"}, {"deep": "[" * 9000}),
    )
    assert [line.position for line in find(HERE, {JOB}, disk, given={"generated_image.png"}).lines] == [2, 6]


def test_a_search_goes_with_the_last_generation_that_it_finds() -> None:
    hens = [*one_job(prompt="a hen by Anna"), *one_job(7, number=2, prompt="the barn of ANNA")]
    disk, (hen, anna, barn, letters) = asked_beside(hens, *({"query": text} for text in ("HEN", "ａnna", "barn", "an")))
    assert [line.position for line in find(HERE, {JOB}, disk).lines] == [2, 6, hen]
    assert [line.position for line in find(HERE, {job_id(2)}, disk).lines] == [7, 11, barn]
    assert [line.position for line in find(HERE, {JOB, job_id(2)}, disk).lines] == [2, 6, 7, 11, hen, anna, barn]
    assert letters == 15, "two letters are part of most prompts and tell of none"
    log, _, _ = opened(HERE, disk)
    append(log, [forgotten(16, 2, 6, hen)])
    assert [line.position for line in find(HERE, {job_id(2)}, disk).lines] == [7, 11, anna, barn]


def test_what_a_fact_says_is_forgotten_is_found_when_only_a_part_of_it_is_gone() -> None:
    """The prompt that it repeated went with the first segment, so that nothing else tells that they belong together."""
    disk = MemoryDisk()
    written_secret(HERE, disk)
    log, _, _ = opened(HERE, disk, segment_bytes=SEGMENT_BYTES)
    append(log, [forgotten(15, *SECRET_POSITIONS)])
    left = log.forget(find(HERE, {JOB}, disk).lines)
    assert left and find(HERE, {JOB}, disk).lines == left
    forget_all(log, left)
    assert not any(holds(data, "zuckerwatte") for data in disk.content().values()) and find(HERE, {JOB}, disk).lines == ()


def test_a_reply_and_a_completion_name_what_the_store_holds(tmp_path: Path) -> None:
    written(
        tmp_path, [[commit(2, requested(JOB)), *one_job(2)[1:3], commit(5, reply(JOB)), commit(6, completed(JOB))]], NoReserve()
    )
    assert find(tmp_path, {JOB}).blobs == {DIGEST}
