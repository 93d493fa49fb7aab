"""What may be spent: by rule, by the real daemon under many orders at once, and over restarts."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon import budgets
from daemon.budgets import insist_on_room, periods, strictest
from daemon.config import Settings
from daemon.errors import BadConfiguration, Refused
from eventlog.events import CapsChanged, Commit, JobEvent, JobRequested
from eventlog.jobs import JobBoard
from eventlog.spending import Spending
from eventlog.values import Caps, MicroUSD, Position
from tests.daemon import fakes
from tests.program import IMAGED, SECONDS_MAX, Program, Stdio, running, wait_until
from tests.standin import Behaviour, StandIn
from tests.test_jobs import Gate, api, state

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
FOX = {"prompt": "a fox", "quality": "low", "size": "1024x1024", "again": True}
lost: Behaviour = lambda request: request.reply(502, b"<html>bad gateway</html>", content_type="text/html")  # noqa: E731


def usd(dollars: float) -> MicroUSD:
    return MicroUSD(round(dollars * 1_000_000))


def spent(*facts: tuple[datetime, JobEvent]) -> Spending:
    board, spending = JobBoard(), Spending()
    for number, (at, fact) in enumerate(facts, start=1):
        commit = Commit(position=Position(number), at=at, events=(fact,))
        board.apply(commit)
        spending.apply(commit)
    return spending


def drawn(job: str, at: datetime, amount: int) -> list[tuple[datetime, JobEvent]]:
    return [
        (at, fact) for fact in (fakes.requested(job), fakes.started(job), fakes.attempt(job), fakes.reply(job, amount=amount))
    ]


def test_each_cap_holds_to_the_last_micro_dollar() -> None:
    spending = spent(*drawn("a", NOON, 500), (NOON, fakes.requested("b")))  # 500 settled, 900 reserved
    for caps, high, fits in (
        (Caps(call=MicroUSD(700)), 700, True),
        (Caps(call=MicroUSD(700)), 701, False),
        (Caps(day=MicroUSD(2000)), 600, True),
        (Caps(day=MicroUSD(2000)), 601, False),
        (Caps(month=MicroUSD(2000)), 600, True),
        (Caps(month=MicroUSD(2000)), 601, False),
        (Caps(day=MicroUSD(1000)), 0, True),  # what costs nothing is nobody's budget, even of one that is overdrawn
        (Caps(), 10**12, True),
        (Caps(), None, True),
        (Caps(month=MicroUSD(10**12)), None, False),
        (Caps(call=MicroUSD(10**12)), None, False),
    ):
        if fits:
            insist_on_room(caps, spending, high and MicroUSD(high), NOON)
        else:
            with pytest.raises(Refused) as caught:
                insist_on_room(caps, spending, high and MicroUSD(high), NOON)
            assert caught.value.code == "over_budget"


def test_a_refusal_names_the_cap_what_is_spent_reserved_and_asked_and_when_it_begins_anew() -> None:
    spending = spent(*drawn("a", NOON, 2_000_000), (NOON, fakes.requested("b")))
    with pytest.raises(Refused) as caught:
        insist_on_room(Caps(day=usd(2.5)), spending, usd(1), NOON)
    said = str(caught.value)
    for word in ("$1.0000", "IMAGED_BUDGET_DAY_USD", "$2.5000", "2026-11-30", "$2.0000 is spent", "$0.0009 is reserved"):
        assert word in said, word
    with pytest.raises(Refused, match=r"2026-11: .* 2026-12-01T00:00Z.* Only the user can raise it"):
        insist_on_room(Caps(month=usd(2.5)), spending, usd(1), NOON)


def test_a_day_and_a_month_are_those_of_utc() -> None:
    late, next_day = datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    spending = spent(*drawn("a", late, 700))
    now = [(budget.period, budget.spent, budget.left) for budget in periods(Caps(day=usd(1), month=usd(1)), spending, late)]
    assert now == [("2026-11-30", 700, 999_300), ("2026-11", 700, 999_300)]
    then = list(periods(Caps(day=usd(1), month=usd(1)), spending, next_day))
    assert [(budget.period, budget.spent) for budget in then] == [("2026-12-01", 0), ("2026-12", 0)]
    assert [budget.resets_at for budget in then] == [datetime(2026, 12, 2, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)]


def test_the_strictest_of_several_caps_counts() -> None:
    assert strictest(Caps(), Caps()) == Caps()
    assert strictest(Caps(day=usd(5)), Caps(call=usd(1), day=usd(2))) == Caps(call=usd(1), day=usd(2))
    assert strictest(Caps(month=MicroUSD(0)), Caps(month=usd(1))) == Caps(month=MicroUSD(0))


def draw(program: Program, **arguments: object) -> dict[str, Any]:
    return program.ask("generate_image", **{**FOX, **arguments})


def high_of(program: Program) -> int:
    return int(draw(program, dry_run=True)["result"]["cost"]["high_micro_usd"])


@contextmanager
def capped(home: Path, standin: StandIn, **dollars: str) -> Iterator[Program]:
    with running(home, **api(standin.url, IMAGED_MAX_CONCURRENT="64", **dollars)) as program:
        yield program


def test_fifty_orders_at_once_do_not_exceed_a_cap(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(*[gate] * 50) as standin:
        with capped(tmp_path, standin) as program:
            high = high_of(program)
        cap = high * 7 + high // 2
        with capped(tmp_path, standin, IMAGED_BUDGET_DAY_USD=f"{cap / 1e6:.6f}") as program:
            with ThreadPoolExecutor(50) as threads:
                answers = [
                    threads.submit(program.ask, "start_generation_job", tool_name="generate_image", **FOX) for _ in range(50)
                ]
            told = [answer.result() for answer in answers]
            jobs = [answer["result"]["job_id"] for answer in told if "result" in answer]
            assert len(jobs) == 7 and {answer["refused"]["code"] for answer in told if "refused" in answer} == {"over_budget"}
            gate.opened.set()
            wait_until(lambda: {state(program, job) for job in jobs} == {"completed"}, "the seven")
            assert len(standin.requests) == 7
            (budget,) = program.ask("get_spending")["result"]["budgets"]
            assert budget["reserved_micro_usd"] == 0 and 0 < budget["spent_micro_usd"] <= cap
            assert budget["left_micro_usd"] == cap - budget["spent_micro_usd"]
            spent_now = budget["spent_micro_usd"]
            program.kill()
            program.places.index.unlink()
            program.start().ready()
            (again,) = program.ask("get_spending")["result"]["budgets"]
            assert again["spent_micro_usd"] == spent_now, "it is in the log"


def test_what_may_have_been_billed_counts_until_its_owner_says_otherwise(tmp_path: Path) -> None:
    with StandIn(lost) as standin:
        with capped(tmp_path, standin) as program:
            cap = high_of(program) * 3 // 2
        with capped(tmp_path, standin, IMAGED_BUDGET_MONTH_USD=f"{cap / 1e6:.6f}") as program:
            job = draw(program)["result"]["job_id"]
            refused = draw(program)["refused"]
            assert refused["code"] == "over_budget" and "may have been billed" in refused["message"]
            assert draw(program, dry_run=True)["refused"]["code"] == "over_budget"
            program.ask("resolve_job", job_id=job, outcome="not_billed")
            assert draw(program)["result"]["state"] == "completed"
            assert len(standin.requests) == 2


def test_a_cap_on_one_call_and_an_unknown_price(tmp_path: Path) -> None:
    with StandIn() as standin, capped(tmp_path, standin, IMAGED_BUDGET_CALL_USD="0.05") as program:
        assert draw(program)["result"]["state"] == "completed"
        assert "IMAGED_BUDGET_CALL_USD" in draw(program, sample_count=10, quality="high")["refused"]["message"]
        assert "no published bound" in draw(program, model="gpt-image-99")["refused"]["message"]
        assert len(standin.requests) == 1 and program.ask("get_spending")["result"]["call_cap_micro_usd"] == 50_000


def test_a_client_cannot_raise_what_the_users_own_file_allows(tmp_path: Path) -> None:
    own = tmp_path / "user" / ".config" / "imaged" / ".env"
    own.parent.mkdir(parents=True)
    own.write_text("IMAGED_BUDGET_CALL_USD=0.000001\n", "utf-8")
    own.chmod(0o600)
    with StandIn() as standin, capped(tmp_path, standin, IMAGED_BUDGET_CALL_USD="100") as program:
        with Stdio(program.environment) as client:
            client.initialize()
            refusal = client.call("generate_image", **FOX)["structuredContent"]["error"]
            assert refusal["code"] == "over_budget" and not standin.requests
            own.write_text("IMAGED_BUDGET_CALL_USD=5\n", "utf-8")
        with Stdio(program.environment) as client:
            client.initialize()
            assert client.call("generate_image", **FOX)["structuredContent"]["state"] == "completed"


def test_each_change_of_a_clients_caps_is_a_fact_beside_the_first_order_under_it(tmp_path: Path) -> None:
    with StandIn() as standin, capped(tmp_path, standin) as program:
        for day in ("5", "5", "7.5"):
            with Stdio({**program.environment, budgets.DAY: day}) as client:
                client.initialize()
                client.call("generate_image", **FOX)
        changes = [
            (event.caps.day, any(isinstance(beside, JobRequested) for beside in commit.events))
            for commit in program.log()
            for event in commit.events
            if isinstance(event, CapsChanged)
        ]
        assert changes == [(usd(5), True), (usd(7.5), True)]


def test_a_placeholder_is_nobodys_expense(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_BUDGET_CALL_USD="0", IMAGED_BUDGET_DAY_USD="0") as program:
        assert draw(program)["result"]["state"] == "completed"


def test_at_a_terminal_a_dry_run_says_the_price_and_a_refused_order_has_a_status_of_its_own(tmp_path: Path) -> None:
    with StandIn() as standin, capped(tmp_path, standin) as program:

        def imaged(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
            command = [*IMAGED, "generate", "a fox", "--quality", "low", "--size", "1024x1024", *options]
            environ = {**program.environment, **more}
            return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS_MAX)

        rehearsed = imaged("--dry-run")
        assert rehearsed.returncode == 0 and rehearsed.stdout.startswith("Nothing was ordered. It would be drawn, and cost $0.00")
        assert json.loads(imaged("--dry-run", "--json").stdout)["state"] == "dry_run"
        refused = imaged(IMAGED_BUDGET_CALL_USD="0.0001")
        assert refused.returncode == 5 and "IMAGED_BUDGET_CALL_USD" in refused.stderr and not standin.requests


@pytest.mark.parametrize("text", ["-1", "1e3", "$5", "5 USD", "0.1234567", "٣", "free"])
def test_a_cap_that_cannot_be_understood_refuses_the_session(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="IMAGED_BUDGET_DAY_USD"):
        Settings.parse({"IMAGED_BUDGET_DAY_USD": text}, home_dir=tmp_path)
