"""Diagnostics: one JSON object a line, in private files that stay small, and never a key."""

import json
import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import logs

KEY = "sk-proj-canary_0123456789-abcdef"
KEYS = (
    *(KEY, f"key={KEY}", f"line\n{KEY}", f"line\t{KEY}", f"'{KEY}'", f"%0A{KEY}", "line\nsk-canary", "sess-canary"),
    *("Authorization: Bearer abcdef123456", "BEARER\tabcdef123456", "bearer \n abcdef123456"),
)
logger = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(logs, "_hidden", ())
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(directory: Path) -> str:
    return (directory / "daemon.log").read_text("ascii")


def lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in written(directory).splitlines()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "home" / "logs"
    logs.configure(place, level=logging.DEBUG, stderr=False)
    return place


def test_a_line_says_when_how_grave_and_of_which_job(directory: Path) -> None:
    logger.warning("rate limited for %d s", 7, extra={"job": "j-1", "commit": 12, "waits": [1.5, float("inf")]})
    (line,) = lines(directory)
    assert str(line.pop("at")).endswith("+00:00")
    assert line == {
        "level": "warning",
        "from": "tests.logs",
        "message": "rate limited for 7 s",
        "job": "j-1",
        "commit": 12,
        "waits": [1.5, "inf"],
    }


def test_lines_below_the_level_are_not_written(tmp_path: Path) -> None:
    logs.configure(tmp_path, level=logging.INFO, stderr=False)
    logger.debug("a prompt")
    logging.getLogger("httpx").info("POST https://api.openai.com/")
    assert lines(tmp_path) == []


@pytest.mark.parametrize("text", KEYS)
def test_what_looks_like_a_key_is_blotted_out_wherever_it_stands(text: str, directory: Path) -> None:
    logger.info(text)
    logger.info("%s and %r", text, {"authorization": text})
    logger.info("values", extra={"headers": {text: [text, (text.encode(),)]}})
    try:
        raise ValueError(f"refused: {text}")
    except ValueError:
        logger.exception("it failed")
    assert len(lines(directory)) == 4 and "refused" in str(lines(directory)[3]["traceback"])
    assert "canary" not in written(directory) and "abcdef123456" not in written(directory)
    assert written(directory).count("[hidden]") >= 5


@pytest.mark.parametrize("secret", ["correct horse battery", 'quo"te\\and\nnewline', "京都の秘密の鍵です", "%s%s%s%s"])
def test_a_secret_that_was_named_is_blotted_out_however_it_is_spelt(secret: str, directory: Path) -> None:
    logs.hide(secret)
    logger.info(secret.replace("%", "%%"), extra={"a": secret, "b": [secret], "c": {"d": secret}})
    logger.info("%r", secret)
    try:
        raise OSError(secret)
    except OSError as exc:
        logger.info("failed: %s", exc, exc_info=True)
    for spelt in (secret, repr(secret)[1:-1]):
        assert spelt not in written(directory) and json.dumps(spelt)[1:-1] not in written(directory)
    assert written(directory).count("[hidden]") >= 6


def test_a_key_that_begins_like_another_leaves_no_end_behind(directory: Path) -> None:
    for secret in ("abcdefgh", "abcdefgh-and-the-rest", "abcdefgh-and"):
        logs.hide(secret)
    logger.info("key abcdefgh-and-the-rest")
    assert lines(directory)[0]["message"] == "key [hidden]"


def test_too_short_a_secret_does_not_eat_words(directory: Path) -> None:
    for secret in ("", "a", "written"):
        logs.hide(secret)
    logger.info("a line of task-numbers is written to disk-full")
    assert lines(directory)[0]["message"] == "a line of task-numbers is written to disk-full"


def test_nothing_breaks_out_of_its_line(directory: Path) -> None:
    hostile = 'x\n{"level": "info"}\r\x1b[31m\x00\u2028\ud800'
    logger.info(hostile, extra={hostile: hostile, "level": "forged"})
    (line,) = lines(directory)
    assert line["message"] == line[hostile] == hostile and line["level"] == "info"
    assert all(character == "\n" or " " <= character <= "~" for character in written(directory))


TEXT = st.text('as-k0 \t\n\r\0\x1b"\\{}%\x7f\u2028京\U0001f98a\ud800\udfff')


@settings(deadline=None)
@given(TEXT, st.dictionaries(TEXT, st.floats() | st.integers() | TEXT | st.binary() | st.tuples(TEXT)))
def test_anything_that_is_said_is_one_line_of_json(text: str, extra: dict[str, object]) -> None:
    record = logger.makeRecord("n", logging.INFO, __file__, 1, text, (), None, extra={"extra": extra})
    line = logs._Lines().format(record)
    assert "\n" not in line and line.isascii()
    assert set(json.loads(line, parse_constant=pytest.fail)) == {"at", "level", "from", "message", "extra"}


def test_arguments_that_do_not_fit_are_shown_not_lost(directory: Path) -> None:
    logger.info("%d pictures", "two")
    logger.info("%(a)s", {"b": KEY})
    assert lines(directory)[0]["message"] == "%d pictures ('two',)"
    assert len(lines(directory)) == 2 and "canary" not in written(directory)


class Moody:
    def __str__(self) -> str:
        raise RuntimeError("not now")


def test_a_caller_never_sees_an_error_of_the_log(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("one", extra={"thing": Moody()})
    logging.getLogger().handlers[0].close()
    directory.joinpath("daemon.log").unlink()
    directory.rmdir()
    logger.info("two")
    assert capsys.readouterr() == ("", "")


def test_files_stay_small_and_private_whatever_the_umask(tmp_path: Path) -> None:
    directory = tmp_path / "home" / "logs"
    before = os.umask(0o000)
    try:
        logs.configure(directory, level=logging.INFO, stderr=False)
        for number in range(45):
            logger.info("%d %s", number, "x" * 100_000)
    finally:
        os.umask(before)
    assert sorted(path.name for path in directory.iterdir()) == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size <= logs.FILE_BYTES_MAX
    assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert str(lines(directory)[-1]["message"]).startswith("44 ")


def test_a_file_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "daemon.log").touch(0o644)
    (tmp_path / "daemon.log").chmod(0o644)
    logs.configure(tmp_path, level=logging.INFO, stderr=False)
    assert stat.S_IMODE((tmp_path / "daemon.log").stat().st_mode) == 0o600


def test_a_link_is_not_written_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "daemon.log").symlink_to(target)
    logs.configure(tmp_path / "logs", level=logging.INFO, stderr=False)
    logger.info("hello")
    assert target.read_text() == "mine"
    assert "diagnostics go to stderr only" in capsys.readouterr().err


def test_without_a_place_for_files_there_is_still_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").write_text("a file where a directory should be")
    logs.configure(tmp_path / "home" / "logs", level=logging.INFO, stderr=False)
    logger.info("with %s", KEY)
    warned, line = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert warned["level"] == "warning" and line["message"] == "with [hidden]"


def test_stderr_gets_the_same_lines_if_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(tmp_path, level=logging.INFO, stderr=True)
    logger.info("both %s", KEY)
    assert capsys.readouterr().err == written(tmp_path) != ""


def test_a_closed_stderr_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure(tmp_path, level=logging.INFO, stderr=True)
    logger.info("to the file alone")
    assert len(lines(tmp_path)) == 1
