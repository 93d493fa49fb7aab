"""An agent that runs away is stopped after a minute's pictures, or after the same prompt again and again; people are not."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from daemon.config import Settings
from daemon.errors import Refused
from daemon.pace import Pace, insist
from eventlog.events import Commit, RequestReceived
from eventlog.recent import RecentOrders
from eventlog.values import Account, Client, Door, Picture, Position, Sha256, Words
from tests.daemon.fakes import OFFLINE, PAYING, requested
from tests.program import Program, Stdio, running
from tests.standin import StandIn

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
Ordered = tuple[float, str]  # seconds after noon, and the prompt


def recent(*orders: Ordered, count: int = 1, client: str = "test", door: Door = "mcp", account: Account = PAYING) -> RecentOrders:
    seen = RecentOrders()
    for number, (seconds, prompt) in enumerate(orders, start=1):
        order = structs.replace(requested(f"j{number}", account, count=count), client=Client(name=client))
        received = RequestReceived(operation="generate_image", door=door, client=order.client)
        at = NOON + timedelta(seconds=seconds)
        seen.apply(Commit(position=Position(number), at=at, events=(received, order), words=Words(salt="", prompt=prompt)))
    return seen


def refused(pace: Pace, seen: RecentOrders, seconds: float, prompt: str = "a fox", count: int = 1) -> str:
    """The code of the refusal, empty if there is none."""
    try:
        insist(pace, seen, requested("new", count=count), Words(salt="", prompt=prompt), NOON + timedelta(seconds=seconds))
    except Refused as exc:
        return exc.code
    return ""


MINUTELY, HOURLY = Pace(pictures_per_minute=3), Pace(same_prompt_per_hour=3)


@pytest.mark.parametrize(
    ("orders", "seconds", "count", "code"),
    [
        ([0, 1], 2, 1, ""),
        ([0, 1], 2, 2, "too_fast"),
        ([0, 1, 2], 59.9, 1, "too_fast"),
        ([0, 1, 2], 60, 1, ""),
        ([0, 1, 2], 60, 2, "too_fast"),
        ([], 0, 4, "too_fast"),
        ([100, 101, 102], 0, 1, ""),  # the clock was set back
    ],
)
def test_no_more_pictures_are_ordered_in_a_minute_than_allowed(
    orders: Sequence[float], seconds: float, count: int, code: str
) -> None:
    seen = recent(*((at, f"fox {at}") for at in orders))
    assert refused(MINUTELY, seen, seconds, count=count) == code


def test_the_pictures_of_one_order_count_one_by_one() -> None:
    assert refused(MINUTELY, recent((0, "a fox"), count=3), 1) == "too_fast"
    assert refused(MINUTELY, recent((0, "a fox"), count=2), 1) == ""


def test_the_same_prompt_again_and_again_is_stopped_for_an_hour() -> None:
    seen = recent((0, "a fox"), (600, "a fox"), (700, "a hare"), (1200, "a fox"))
    assert refused(HOURLY, seen, 1300) == "same_prompt"
    assert refused(HOURLY, seen, 3599) == "same_prompt"
    assert refused(HOURLY, seen, 3600) == ""
    assert refused(HOURLY, seen, 1300, "a hare") == ""


def test_the_same_words_about_another_picture_are_another_order() -> None:
    seen = recent(*[(0, "bluer")] * 3)
    source = Picture(sha256=Sha256("ab" * 32), size_bytes=1, width=1, height=1, format="png")
    insist(HOURLY, seen, requested("new", sources=(source,)), Words(salt="", prompt="bluer"), NOON)
    assert refused(HOURLY, seen, 0, "bluer") == "same_prompt"


def test_other_clients_other_doors_and_what_costs_nothing_do_not_count() -> None:
    orders = [(0.0, "a fox")] * 9
    for seen in (recent(*orders, client="other"), recent(*orders, door="control"), recent(*orders, account=OFFLINE)):
        assert refused(MINUTELY, seen, 1) == refused(HOURLY, seen, 1) == ""


def test_who_says_nothing_may_draw_thirty_a_minute_and_the_same_ten_times_an_hour(tmp_path: Path) -> None:
    assert Settings.parse({"IMAGED_BACKEND": "offline"}, home_dir=tmp_path).pace == Pace(30, 10)


def test_without_limits_everything_goes() -> None:
    assert refused(Pace(), recent(*[(0, "a fox")] * 99), 1) == ""


def settings(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url, **more}


def draw(client: Stdio, prompt: str, **more: object) -> dict[str, object]:
    answer = client.call("generate_image", prompt=prompt, size="1024x1024", quality="low", **more)
    said: dict[str, object] = answer["structuredContent"]
    refusal = said.get("error")
    return refusal if isinstance(refusal, dict) else said


def prompts(program: Program) -> int:
    total: int = program.ask("list_jobs")["result"]["total"]
    return total


def test_an_agent_that_runs_away_hears_what_allows_how_much_and_nothing_is_sent(tmp_path: Path) -> None:
    with StandIn() as standin:
        limits = settings(standin.url, IMAGED_PICTURES_PER_MINUTE="3", IMAGED_SAME_PROMPT_PER_HOUR="2")
        with running(tmp_path, **limits) as program, Stdio({**program.environment, **limits}) as agent:
            agent.initialize()
            assert [draw(agent, "a fox", again=True)["state"] for _ in range(2)] == ["completed"] * 2
            for more in ({"again": True}, {"dry_run": True}, {"idempotency_key": "k"}):
                said = draw(agent, "a fox", **more)
                assert said["code"] == "same_prompt" and "IMAGED_SAME_PROMPT_PER_HOUR allows 2" in str(said["message"])
            assert draw(agent, "a hare")["state"] == "completed"
            said = draw(agent, "a bear")
            assert said["code"] == "too_fast" and "IMAGED_PICTURES_PER_MINUTE allows 3" in str(said["message"])
            assert len(standin.requests) == prompts(program) == 3
            for _ in range(4):  # a person at a terminal
                assert program.ask("generate_image", prompt="a fox", quality="low", again=True)["result"]["state"] == "completed"
