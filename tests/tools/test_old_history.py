"""The old program's database, read as it may really be found: in use, left by a crash, half old, damaged, or not one at all."""

import json
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from unittest import mock

import pytest

from eventlog.values import ImageRequest, Usage, digest
from tests.tools.pictures_for_tests import picture
from tools import old_history
from tools.errors import FileFailed
from tools.old_history import OldGeneration, Unusable, picture_at, read, state, uuids

COLUMNS = {
    "uuid": "TEXT PRIMARY KEY",
    "created_at": "TEXT",
    "tool_name": "TEXT",
    "prompt": "TEXT",
    "parameters": "TEXT",
    "output_paths": "TEXT",
    "sample_count": "INTEGER",
    "size": "TEXT",
    "quality": "TEXT",
    "output_format": "TEXT",
    "params_hash": "TEXT",
    "input_tokens": "INTEGER",
    "output_tokens": "INTEGER",
    "total_tokens": "INTEGER",
    "estimated_cost": "REAL",
}
OLD_DAYS = datetime(2025, 1, 1, microsecond=123_000, tzinfo=UTC)
BEFORE_COSTS = tuple(COLUMNS)[:-4]
JOBS = (
    "job_id TEXT PRIMARY KEY, created_at TEXT, updated_at TEXT, status TEXT, tool_name TEXT, prompt TEXT, parameters TEXT, "
    "sample_count INTEGER, output_paths TEXT, history_uuid TEXT, error_message TEXT, progress INTEGER"
)
PROMPT_OF_EVERY_KIND = "逆光の猫 🦊👩‍🚀 100%_ \\ \"'--; DROP TABLE history"


def name(number: int) -> str:
    return str(uuid.UUID(int=0x4000_8000_0000_0000_0000 + number))


def row(number: int, **changes: object) -> dict[str, object]:
    """As the old program wrote it; a minute later for each number."""
    return {
        "uuid": name(number),
        "created_at": (OLD_DAYS + timedelta(minutes=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "tool_name": "generate_image",
        "prompt": f"A fox, number {number}",
        "parameters": json.dumps({"prompt": "A fox", "model": "gpt-image-1", "size": "1024x1024", "n": 1}),
        "output_paths": json.dumps([f"/nowhere/fox {number}.png"]),
        "sample_count": 1,
        "size": "1024x1024",
        "quality": "medium",
        "output_format": "png",
        "params_hash": "ab" * 32,
        "input_tokens": 12,
        "output_tokens": 1056,
        "total_tokens": 1068,
        "estimated_cost": 0.06068,
        **changes,
    }


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    return db


@contextmanager
def in_use(
    path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str] = tuple(COLUMNS)
) -> Iterator[sqlite3.Connection]:
    """The old program beside us: its connection, with the rows only in its write-ahead log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(connect(path)) as db:
        db.execute("BEGIN")
        db.execute(f"CREATE TABLE IF NOT EXISTS history ({', '.join(f'{column} {COLUMNS[column]}' for column in columns)})")
        db.execute("CREATE INDEX IF NOT EXISTS history_by_time ON history (created_at DESC)")
        db.execute("CREATE INDEX IF NOT EXISTS history_by_tool ON history (tool_name)")
        db.execute(f"CREATE TABLE IF NOT EXISTS jobs ({JOBS})")
        write(db, rows, columns)
        db.execute("COMMIT")
        yield db


def write(db: sqlite3.Connection, rows: Sequence[dict[str, object]], columns: Sequence[str] = tuple(COLUMNS)) -> None:
    marks = ", ".join("?" * len(columns))
    db.executemany(
        f"INSERT INTO history ({', '.join(columns)}) VALUES ({marks})", [[one[column] for column in columns] for one in rows]
    )


def old_database(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str] = tuple(COLUMNS)) -> Path:
    """Closed properly: the file alone."""
    with in_use(path, rows, columns):
        pass
    assert [found.name for found in path.parent.glob(path.name + "*")] == [path.name]
    return path


def only(path: Path) -> OldGeneration | Unusable:
    (found,) = read(path)
    return found


def generation(tmp_path: Path, **changes: object) -> OldGeneration:
    found = only(old_database(tmp_path / f"{len(list(tmp_path.iterdir()))}.db", [row(1, **changes)]))
    assert isinstance(found, OldGeneration), found
    return found


def why_not(tmp_path: Path, **changes: object) -> Unusable:
    found = only(old_database(tmp_path / f"{len(list(tmp_path.iterdir()))}.db", [row(1, **changes)]))
    assert isinstance(found, Unusable), found
    return found


def whole(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir() if path.is_file()}


def failure(path: Path) -> FileFailed:
    """What both ways of asking say."""
    with pytest.raises(FileFailed) as first:
        list(read(path))
    with pytest.raises(FileFailed):
        uuids(path)
    sentence = str(first.value)
    assert str(path) in sentence and sentence.endswith(".")
    return first.value


def test_a_generation_is_taken_over_as_it_was_told(tmp_path: Path) -> None:
    assert generation(tmp_path) == OldGeneration(
        uuid=name(1),
        created_at=datetime(2025, 1, 1, 0, 1, 0, 123000, tzinfo=UTC),
        request=ImageRequest(tool="generate_image", model="gpt-image-1", size="1024x1024", quality="medium"),
        prompt="A fox, number 1",
        paths=("/nowhere/fox 1.png",),
        usage=Usage(input_tokens=12, output_tokens=1056, total_tokens=1068),
        claimed=60_680,
    )


def test_the_oldest_comes_first_in_whatever_order_they_were_written(tmp_path: Path) -> None:
    numbers = [5, 130, 0, 99, 64]
    path = old_database(tmp_path / "old.db", [row(number) for number in numbers])
    assert [found.uuid for found in read(path) if isinstance(found, OldGeneration)] == [name(n) for n in sorted(numbers)]
    assert sorted(uuids(path)) == [name(n) for n in sorted(numbers)]


def test_every_text_comes_as_it_was_written(tmp_path: Path) -> None:
    for prompt in (PROMPT_OF_EVERY_KIND, "木" * 32_000, "a\0b\nc", ""):
        assert generation(tmp_path, prompt=prompt).prompt == prompt
    paths = ["/pictures/狐 🦊.png", "/pictures/100%_.png", "/pictures/100%_.png"]
    found = generation(tmp_path, output_paths=json.dumps(paths), sample_count=3)
    assert found.paths == tuple(paths) and found.request.count == 3


def test_what_is_null_becomes_the_default_or_unknown(tmp_path: Path) -> None:
    needed = ("uuid", "created_at", "tool_name")
    found = generation(tmp_path, **{column: None for column in COLUMNS if column not in needed})
    assert found.request == ImageRequest(tool="generate_image", model="unknown")
    assert (found.prompt, found.paths, found.usage, found.claimed) == ("", (), None, None)


def test_a_database_from_before_the_costs_is_read(tmp_path: Path) -> None:
    found = only(old_database(tmp_path / "old.db", [row(1)], BEFORE_COSTS))
    assert isinstance(found, OldGeneration) and (found.usage, found.claimed) == (None, None)
    assert found.request.model == "gpt-image-1"


def test_the_pictures_in_the_parameters_are_dropped(tmp_path: Path) -> None:
    picture_text = "iVBORw0KGgo" * 100_000
    found = generation(
        tmp_path,
        tool_name="edit_image",
        parameters=json.dumps({"reference_image_base64": picture_text, "model": "gpt-image-2", "x": {"y": [picture_text]}}),
    )
    assert found.request == ImageRequest(tool="edit_image", model="gpt-image-2", size="1024x1024", quality="medium")
    assert "iVBORw0KGgo" not in repr(found)


@pytest.mark.parametrize(
    "told", ["{", "[]", "null", '"gpt"', '{"model": 7}', '{"model": ""}', "[" * 5000, b"\xff{", '{"model":"\\ud800"}']
)
def test_a_model_that_cannot_be_read_is_unknown(tmp_path: Path, told: object) -> None:
    assert generation(tmp_path, parameters=told).request.model == "unknown"


def test_names_that_become_facts_are_bounded_and_printable(tmp_path: Path) -> None:
    found = generation(
        tmp_path,
        parameters=json.dumps({"model": " gpt\u202e\x1b[2J猫" + "x" * 500}),
        size="10\n24",
        quality=5,
        output_format="",
        sample_count=-3,
    )
    assert found.request.model.startswith("gpt??[2J?xx") and len(found.request.model) == old_history.WORD_CHARACTERS_MAX
    assert (found.request.size, found.request.output_format, found.request.count) == ("10?24", "png", 1)
    assert generation(tmp_path, quality=b"\xff").request.quality == "auto"


@pytest.mark.parametrize(
    ("told", "claimed"),
    [
        (0.0, 0),
        (0.0000014, 1),
        (0.000249, 249),
        (0.1 + 0.2, 300_000),
        (12, 12_000_000),
        (float("inf"), None),
        (-0.01, None),
        (1e12, None),
        ("a lot", None),
    ],
)
def test_what_it_believed_to_cost_is_whole_micro_dollars_or_nothing(tmp_path: Path, told: object, claimed: int | None) -> None:
    found = generation(tmp_path, estimated_cost=told).claimed
    assert found == claimed and not isinstance(found, float)


def test_tokens_are_whole_numbers_or_none_at_all(tmp_path: Path) -> None:
    assert generation(tmp_path, total_tokens=None).usage == Usage(input_tokens=12, output_tokens=1056, total_tokens=1068)
    for wrong in (
        {"input_tokens": None},
        {"output_tokens": None},
        {"input_tokens": -1},
        {"output_tokens": "x"},
        {"input_tokens": 1.5},
    ):
        assert generation(tmp_path, **wrong).usage is None
    assert generation(tmp_path, output_tokens=2**62).usage is None


@pytest.mark.parametrize(
    ("told", "at"),
    [
        ("2025-04-01T12:00:00.5Z", datetime(2025, 4, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-04-01 12:00:00", datetime(2025, 4, 1, 12, tzinfo=UTC)),
        ("2025-04-01T12:00:00+09:00", datetime(2025, 4, 1, 3, tzinfo=UTC)),
    ],
)
def test_times_are_utc(tmp_path: Path, told: str, at: datetime) -> None:
    found = generation(tmp_path, created_at=told).created_at
    assert found == at and found.tzinfo is UTC


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"uuid": None}, "uuid"),
        ({"uuid": "../../etc/passwd"}, "uuid"),
        ({"uuid": name(1) + "x"}, "uuid"),
        ({"uuid": name(1).replace("-", "")}, "uuid"),
        ({"uuid": b"\xff\xfe"}, "uuid"),
        ({"created_at": None}, "created_at"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "0001-01-01T00:00:00+09:00"}, "created_at"),
        ({"tool_name": None}, "tool_name"),
        ({"tool_name": "delete_image"}, "tool_name"),
        ({"prompt": b"\x00\x01"}, "prompt"),
        ({"prompt": "x" * (old_history.PROMPT_CHARACTERS_MAX + 1)}, "prompt"),
        ({"output_paths": "/nowhere/fox.png"}, "output_paths"),
        ({"output_paths": '{"a": 1}'}, "output_paths"),
        ({"output_paths": '["/a.png", 7]'}, "output_paths"),
        ({"output_paths": b"[]"}, "output_paths"),
        ({"output_paths": "[" * 5000}, "output_paths"),
        ({"output_paths": json.dumps(["/a"] * 101)}, "output_paths"),
        ({"output_paths": json.dumps(["/" + "a" * 5000])}, "output_paths"),
    ],
)
def test_a_row_that_cannot_be_told_truly_is_unusable_and_says_why(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    found = why_not(tmp_path, **changes)
    assert why in found.sentence and len(found.sentence) < 200
    assert found.row == ("row 1" if why == "uuid" else name(1))


def test_one_unusable_row_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(1), row(2, output_paths="{"), row(3, uuid="x"), row(4)])
    assert [found.row if isinstance(found, Unusable) else found.uuid for found in read(path)] == [
        name(1),
        name(2),
        "row 3",
        name(4),
    ]
    assert sorted(uuids(path)) == [name(1), name(2), name(4)]


def test_uuids_are_compared_in_small_letters(tmp_path: Path) -> None:
    shouted = "ABCDEF00-0000-4000-8000-00000000000A"
    path = old_database(tmp_path / "old.db", [row(1, uuid=shouted)])
    assert uuids(path) == [shouted.lower()]
    found = only(path)
    assert isinstance(found, OldGeneration) and found.uuid == shouted.lower()


def test_text_that_is_no_utf_8_is_shown_as_far_as_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with in_use(path, [row(1)]) as db:
        db.execute("UPDATE history SET prompt = CAST(x'666f78ff' AS TEXT)")
    found = only(path)
    assert isinstance(found, OldGeneration) and found.prompt == "fox\ufffd"


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(200)])
    before = whole(tmp_path)
    assert len(list(read(path))) == len(uuids(path)) == 200
    rows = read(path)
    next(rows)
    rows.close()
    assert whole(tmp_path) == before and state(path) == state(path)


def test_the_old_program_may_run_beside_us(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with in_use(path, [row(1)]) as db:
        before = {file: content for file, (content, _) in whole(tmp_path).items() if not file.endswith("-shm")}
        first = state(path)
        assert uuids(path) == [name(1)]
        rows = read(path)
        assert isinstance(next(rows), OldGeneration)
        assert {file: content for file, (content, _) in whole(tmp_path).items() if not file.endswith("-shm")} == before
        write(db, [row(2)])
        rows.close()
        assert len(uuids(path)) == 2 and state(path) != first
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert len(list(read(path))) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["old.db"]  # its own last close still tidied up


def test_what_the_old_program_writes_meanwhile_does_not_mix_with_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with in_use(path, [row(number) for number in range(200)]) as db:
        rows = read(path)
        next(rows)
        db.execute("UPDATE history SET prompt = 'later'")
        assert not any(found.prompt == "later" for found in rows if isinstance(found, OldGeneration))


@pytest.mark.parametrize("closed", [False, True])
def test_a_writer_who_comes_in_the_middle_is_noticed(tmp_path: Path, closed: bool) -> None:
    """SQLite itself would not notice: the file was taken for one that never changes."""
    path = old_database(tmp_path / "old.db", [row(number) for number in range(200)])
    rows = read(path)
    next(rows)
    with closing(connect(path)) as db:
        write(db, [row(1000)])
        if closed:
            db.close()
        with pytest.raises(FileFailed, match="written to while it was read"):
            list(rows)
    assert len(list(read(path))) == 201


def test_what_a_crash_left_in_the_write_ahead_log_is_read(tmp_path: Path) -> None:
    with in_use(tmp_path / "live" / "old.db", [row(1), row(2)]):
        shutil.copytree(tmp_path / "live", tmp_path / "crashed")
    (tmp_path / "crashed/old.db-shm").unlink()
    before = whole(tmp_path / "crashed")
    assert len(list(read(tmp_path / "crashed/old.db"))) == 2
    after = whole(tmp_path / "crashed")
    assert {name: after[name] for name in before} == before


def test_a_link_to_the_database_is_followed_to_its_companions(tmp_path: Path) -> None:
    with in_use(tmp_path / "real" / "old.db", [row(1)]):
        (tmp_path / "link.db").symlink_to(tmp_path / "real/old.db")
        assert uuids(tmp_path / "link.db") == [name(1)]


def test_a_name_full_of_signs_is_only_a_name(tmp_path: Path) -> None:
    path = old_database(tmp_path / "a?mode=rwc&b#c%20 '猫" / "old;.db", [row(1)])
    assert uuids(path) == [name(1)]


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Permissions do not count for root: it becomes nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    for folder in (tmp_path, *takewhile(lambda above: above != Path(tempfile.gettempdir()), tmp_path.parents)):
        folder.chmod(0o755)
    return tmp_path


def test_a_place_that_cannot_be_written_to_is_read(public: Path) -> None:
    path = old_database(public / "frozen" / "old.db", [row(1)])
    path.chmod(0o444)
    path.parent.chmod(0o555)
    with as_somebody_else():
        assert uuids(path) == [name(1)] and isinstance(only(path), OldGeneration)


def test_what_may_not_be_read_is_said_with_what_to_do(public: Path) -> None:
    path = old_database(public / "old.db", [row(1)])
    path.chmod(0o000)
    locked = old_database(public / "locked" / "old.db", [row(1)])
    locked.parent.chmod(0o000)
    try:
        with as_somebody_else():
            for one in (path, locked):
                found = failure(one)
                assert found.code == "not_permitted" and "permissions" in str(found)
    finally:
        locked.parent.chmod(0o700)


def test_what_a_crash_left_where_nobody_may_write_is_to_be_copied(public: Path) -> None:
    with in_use(public / "live" / "old.db", [row(1)]):
        shutil.copytree(public / "live", public / "frozen")
    (public / "frozen/old.db-shm").unlink()
    for path in (*(public / "frozen").iterdir(), public / "frozen"):
        path.chmod(0o555)
    with as_somebody_else():
        found = failure(public / "frozen/old.db")
    assert found.code == "not_permitted" and "copy" in str(found)


def test_what_is_no_such_database_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("This is not a database. " * 100, "utf-8")
    (tmp_path / "folder.db").mkdir()
    os.mkfifo(tmp_path / "fifo.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE places (name)")
    with closing(sqlite3.connect(tmp_path / "history.db")) as db:
        db.execute("CREATE TABLE history (uuid TEXT, url TEXT)")
    before = whole(tmp_path)
    for file, told in (
        ("empty.db", "no table called history"),
        ("text.db", "not an SQLite database"),
        ("folder.db", "not a file"),
        ("fifo.db", "not a file"),
        ("other.db", "no table called history"),
        ("gone.db", "There is no file"),
        ("gone/gone.db", "There is no file"),
    ):
        assert told in str(failure(tmp_path / file))
    with pytest.raises(FileFailed, match="no column created_at"):
        list(read(tmp_path / "history.db"))
    assert whole(tmp_path) == before
    assert "\0" in str(failure(tmp_path / "a\0b"))
    assert state(tmp_path / "gone.db") is None and state(tmp_path / "a\0b") is None and state(tmp_path / "folder.db") is None


def test_a_locked_database_is_said_to_be_locked(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        write(db, [row(2)])
        assert "locked by another program" in str(failure(path))
    assert len(uuids(path)) == 2


def overwritten(path: Path, page: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        size = int(db.execute("PRAGMA page_size").fetchone()[0])
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def leaves(path: Path, table: str) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        size = int(db.execute("PRAGMA page_size").fetchone()[0])
    data = path.read_bytes()
    page = data[(root - 1) * size : root * size]
    assert page[0] == 5, "an inner page of a table"
    cells = int.from_bytes(page[3:5], "big")
    pointers = [int.from_bytes(page[12 + 2 * n : 14 + 2 * n], "big") for n in range(cells)]
    return [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in pointers]


def test_a_damaged_page_in_the_middle_costs_its_own_rows_only(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(200)])
    middle = leaves(path, "history")
    overwritten(path, middle[len(middle) // 2])
    before = whole(tmp_path)
    found = list(read(path))
    lost = [one for one in found if isinstance(one, Unusable)]
    assert len(found) == 200 and 0 < len(lost) < 30
    assert all("damaged" in one.sentence for one in lost)
    assert whole(tmp_path) == before


def test_a_database_damaged_throughout_is_said_to_be(tmp_path: Path) -> None:
    path = old_database(tmp_path / "old.db", [row(number) for number in range(200)])
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    data[200:] = b"\xa5" * (size - 200)
    path.write_bytes(data)
    assert "is damaged" in str(failure(path))
    path.write_bytes(path.read_bytes()[:1000])
    assert failure(path).code == "io_error"


def test_a_picture_that_is_still_there_is_hashed_and_measured(tmp_path: Path) -> None:
    for kind in ("png", "jpeg", "webp"):
        data = picture(kind)
        path = tmp_path / f"狐 🦊.{kind}"
        path.write_bytes(data)
        found = picture_at(str(path))
        assert found is not None and (found.sha256, found.original, found.size_bytes) == (digest(data), digest(data), len(data))
        assert (found.format, found.width, found.height) == (kind, 48, 32)


def test_what_is_no_whole_picture_of_its_own_is_none(tmp_path: Path) -> None:
    data = picture("png")
    (tmp_path / "whole.png").write_bytes(data)
    (tmp_path / "cut.png").write_bytes(data[:-20])
    (tmp_path / "text.png").write_text("not a picture", "utf-8")
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "whole.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.write(data)
        huge.truncate(old_history.FILE_BYTES_MAX + 1)
    for file in (
        "cut.png",
        "text.png",
        "empty.png",
        "link.png",
        "folder.png",
        "fifo.png",
        "huge.png",
        "gone.png",
        "a\0b",
        "n" * 300,
    ):
        assert picture_at(str(tmp_path / file)) is None, file
    for elsewhere in ("", "whole.png", "~/whole.png", "/dev/zero", "/nowhere/\ud800.png"):
        assert picture_at(elsewhere) is None
    assert picture_at(str(tmp_path / "whole.png")) is not None


def test_a_path_that_was_relative_to_a_place_nobody_knows_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fox.png").write_bytes(picture("png"))
    monkeypatch.chdir(tmp_path)
    assert picture_at("fox.png") is None and picture_at(str(tmp_path / "fox.png")) is not None


def test_what_is_no_file_is_not_even_opened_and_a_link_put_there_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(picture("png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "whole.png")
    os.mkfifo(tmp_path / "fifo.png")
    with mock.patch("os.open", side_effect=AssertionError("opened")):
        assert picture_at(str(tmp_path / "link.png")) is None and picture_at(str(tmp_path / "fifo.png")) is None
    with mock.patch("os.lstat", lambda path: (tmp_path / "whole.png").stat()):
        assert picture_at(str(tmp_path / "link.png")) is None and picture_at(str(tmp_path / "fifo.png")) is None


def test_a_history_that_is_a_program_is_refused_not_run(tmp_path: Path) -> None:
    path = tmp_path / "view.db"
    with closing(sqlite3.connect(path)) as db:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS uuid, i AS created_at FROM n"
        db.execute(f"CREATE VIEW history AS {endless}")
    for ask in (uuids, lambda place: list(read(place))):
        with pytest.raises(FileFailed, match="not a plain table"):
            ask(path)
