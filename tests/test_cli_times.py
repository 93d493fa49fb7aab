"""Moments as people say them, by the clock of somebody in Tokyo."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from daemon import cli_times
from daemon.errors import Refused

NOW = datetime(2026, 11, 27, 12, 34, 56, 789000)  # noqa: DTZ001  # a Friday, by the clock on the wall


@pytest.fixture(autouse=True)
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("yesterday", "2026-11-26 00:00"),
        ("today", "2026-11-27 00:00"),
        ("今日", "2026-11-27 00:00"),
        ("last week", "2026-11-16 00:00"),
        ("先週", "2026-11-16 00:00"),
        ("last month", "2026-10-01 00:00"),
        ("march", "2026-03-01 00:00"),
        ("2025", "2025-01-01 00:00"),
        ("monday", "2026-11-23 00:00"),
        ("3日前", "2026-11-24 00:00"),
        ("2 weeks ago", "2026-11-13 00:00"),
        ("2 hours ago", "2026-11-27 10:34:56.789"),
        ("now", "2026-11-27 12:34:56.789"),
        ("10:30", "2026-11-27 10:30"),
        ("noon", "2026-11-27 12:00"),
        ("yesterday 9am", "2026-11-26 09:00"),
        ("昨日の9時", "2026-11-26 09:00"),
        ("2026年11月3日", "2026-11-03 00:00"),
        ("11月1日", "2026-11-01 00:00"),
        ("12月24日", "2025-12-24 00:00"),
        ("10月1日 18:00", "2026-10-01 18:00"),
        ("2024年2月29日 9:05", "2024-02-29 09:05"),
        ("11月3日の9時", "2026-11-03 09:00"),
        ("１１月１日", "2026-11-01 00:00"),
        ("2026-11-22", "2026-11-22 00:00"),
        ("2026-11-22T09:30", "2026-11-22 09:30"),
        ("2026-11-22T00:30Z", "2026-11-22 09:30"),
        ("2026-11-22T09:30-02:00", "2026-11-22 20:30"),
    ],
)
def test_what_is_said_means_the_users_own_clock_unless_it_names_another(said: str, meant: str) -> None:
    found = cli_times.moment("--since", said, NOW)
    assert found.tzinfo == UTC
    assert found.astimezone().replace(tzinfo=None) == datetime.fromisoformat(meant)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "a",
        "5",
        "gibberish",
        "2026-13-01",
        "2月30日",
        "11月1日 猫",
        "11月1日 99:00",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00+14:00",
    ],
)
def test_what_cannot_be_read_is_refused_with_examples(said: str) -> None:
    with pytest.raises(Refused, match=r"--since is .* such as .*last week") as refused:
        cli_times.moment("--since", said, NOW)
    assert (refused.value.code, refused.value.argument) == ("bad_arguments", "since")
    with pytest.raises(Refused, match=r"the position of a commit, or a moment"):
        cli_times.position_or_moment("--as-of", said + "x")


def test_a_number_is_a_position_and_a_day_is_the_one_that_was_named() -> None:
    assert cli_times.position_or_moment("--as-of", "1200") == 1200
    assert cli_times.position_or_moment("--as-of", "2026-11-22") == datetime(2026, 11, 21, 15, tzinfo=UTC)
    assert cli_times.day("--since", "yesterday", NOW) == "2026-11-26"
    assert cli_times.day("--since", "2026-11-22") == "2026-11-22"
    assert cli_times.local("2019-12-31T18:00:00.123Z") == "2020-01-01"
    assert cli_times.local(f"{datetime.now(UTC).year}-06-05T18:00:00.123Z") == "06-06 03:00"
    assert cli_times.utc(cli_times.moment("--since", "2026-11-22")) == "2026-11-21T15:00:00.000000Z"
