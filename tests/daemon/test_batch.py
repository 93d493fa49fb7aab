"""A batch's course against a daemon of a few lines, with a clock that only moves when somebody waits."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from daemon import batch, batch_plan, batch_summary
from daemon.batch_plan import Options, Plan
from daemon.batch_run import Clock, Run, Task
from daemon.batch_summary import Progress, Told
from daemon.errors import BadConfiguration, NotRunning
from tests.tools.pictures_for_tests import picture

AT = datetime(2026, 11, 22, 10, tzinfo=UTC)
ENVIRON = {"IMAGED_BACKEND": "offline"}


class Ends(NamedTuple):
    """How a job ends, and how many seconds after it was asked for."""

    state: str = "completed"
    billed: str = "yes"
    code: str = ""
    seconds: float = 1.0
    cost: int | None = 5000


RATE_LIMITED = Ends("failed", "no", "rate_limited", cost=None)
REFUSED = Ends("failed", "no", "moderation_blocked", cost=None)
USELESS = Ends("failed", "yes", "bad_reply")
INTERRUPTED = Ends("interrupted", "unknown", "outcome_unknown", cost=None)
TIMED_OUT = Ends("interrupted", "unknown", "timeout", cost=None)
NEVER = Ends(seconds=1e9)


class FakeDaemon:
    """Jobs by their keys. `script` holds the ends of the tries of each prompt, in order; after them they complete."""

    def __init__(self, **script: list[Ends]) -> None:
        self.time = 0.0
        self.position = 10
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.running_max = 0
        self.refusals: list[dict[str, str]] = []
        self.away: list[str] = []
        self._script = script

    @property
    def drawn(self) -> list[str]:
        """The prompts of all jobs there ever were."""
        return [job["prompt"] for job in self.jobs.values()]

    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.pass_time)

    def pass_time(self, seconds: float) -> None:
        assert seconds >= 0
        self.time += seconds
        for job in self.jobs.values():
            if job["state"] == "running" and job["ends_at"] <= self.time:
                self._change(job, **job["end"])

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(operation)
        if self.away and self.away[0] == operation:
            self.away.pop(0)
            raise NotRunning("the daemon ended while it was asked")
        result = getattr(self, "_" + operation)(**arguments)
        return result if "refused" in result else {"result": json.loads(json.dumps(result)), "text": ""}

    def _get_status(self) -> dict[str, Any]:
        return {"log_position": self.position}

    def _start_generation_job(self, *, idempotency_key: str, prompt: str, **arguments: Any) -> dict[str, Any]:
        if self.refusals:
            return {"refused": self.refusals.pop(0)}
        if idempotency_key not in self.jobs:
            tries = self.drawn.count(prompt)
            end = (self._script.get(prompt, []) + [Ends()] * (tries + 1))[tries]
            self._make(idempotency_key, prompt, arguments, end)
            live = sum(job["state"] in ("running", "pending") for job in self.jobs.values())
            self.running_max = max(self.running_max, live)
        return self.jobs[idempotency_key]

    def _make(self, key: str, prompt: str, arguments: dict[str, Any], end: Ends) -> None:
        name = f"job-{len(self.jobs)}"
        paths = [{"path": f"/nowhere/{name}.png"}] if end.state == "completed" else []
        cost = {"text": "some", "basis": "usage", "micro_usd": end.cost}
        self.jobs[key] = {
            "job_id": name,
            "prompt": prompt,
            "state": "pending" if end.state == "pending" else "running",
            "created_at": "2026-11-22T10:00:00.000Z",
            "updated_at": "2026-11-22T10:00:00.000Z",
            "billed": "no",
            "message": "",
            "error_code": "",
            "error": "",
            "cost": {"text": "estimated", "basis": "estimate", "micro_usd": None},
            "images": [],
            "ends_at": self.time + end.seconds,
            "end": {
                "state": end.state,
                "billed": end.billed,
                "error_code": end.code,
                "error": "said no" if end.code else "",
                "message": "said no; do this next" if end.code else "",
                "images": paths,
                "cost": cost,
                "updated_at": "2026-11-22T10:00:02.500Z",
            },
        }
        self._change(self.jobs[key])
        self.pass_time(0)

    def _change(self, job: dict[str, Any], **changes: Any) -> None:
        self.position += 1
        job.update(changes, log_position=self.position)

    def _wait_for_jobs(self, *, job_ids: Sequence[str], after: int, wait_seconds: float) -> dict[str, Any]:
        assert 0 <= wait_seconds <= 30 and job_ids
        ours = [job for job in self.jobs.values() if job["job_id"] in job_ids]
        assert len(ours) == len(job_ids)
        live = [job for job in ours if job["state"] in ("pending", "running")]
        if live and not any(job["log_position"] > after for job in ours):
            self.pass_time(max(0.0, min(wait_seconds, min(job["ends_at"] for job in live) - self.time)))
        return {"position": self.position, "jobs": ours}

    def _cancel_job(self, *, job_id: str) -> dict[str, Any]:
        (job,) = (job for job in self.jobs.values() if job["job_id"] == job_id)
        if job["state"] not in ("pending", "running"):
            return {"refused": {"code": "already_over", "message": "has ended"}}
        self._change(job, state="cancelled", billed="no" if job["state"] == "pending" else "unknown", message="Cancelled.")
        return job


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A plan for these prompts, made as the program makes it."""
    monkeypatch.chdir(tmp_path)

    def make(*prompts: str, **rest: Any) -> Plan:
        options = {name: rest.pop(name) for name in ("again", "run") if name in rest}
        jobs = [{"prompt": prompt, "size": "1024x1024", "quality": "low"} for prompt in prompts]
        path = tmp_path / "batch.json"
        path.write_text(json.dumps({"jobs": jobs, **rest}))
        return batch_plan.make(Options(path=path, **options), ENVIRON)

    return make


def run_of(plan: Plan, house: FakeDaemon, *, retry_unknown: bool = False) -> Run:
    return Run(plan, retry_unknown=retry_unknown, clock=house.clock(), watch=lambda tasks: None)


def gone(plan: Plan, house: FakeDaemon, **wishes: bool) -> Run:
    run = run_of(plan, house, **wishes)
    run.go_on(house.ask)
    return run


def statuses(run: Run) -> list[str]:
    return [task.status for task in run.tasks]


def test_every_job_is_drawn_once_and_never_more_at_once_than_allowed(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    run = gone(plan("a", "b", "c", "d", "e", max_concurrent=2), house)
    assert statuses(run) == ["completed"] * 5
    assert (house.drawn, house.running_max) == (["a", "b", "c", "d", "e"], 2)
    assert house.time == 3.0  # seconds: two, two and one, without a floor of polling


def test_the_same_batch_again_draws_nothing(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    gone(plan("a", "b"), house)
    run = gone(plan("a", "b"), house)
    assert statuses(run) == ["completed"] * 2 and all(task.done_before for task in run.tasks)
    assert house.drawn == ["a", "b"]


def test_what_still_runs_from_an_earlier_run_is_waited_for(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[Ends(seconds=50)])
    stopped = run_of(plan("a", "b"), house)

    def leave(operation: str, **arguments: Any) -> dict[str, Any]:
        if operation == "wait_for_jobs":
            raise KeyboardInterrupt
        return house.ask(operation, **arguments)

    with pytest.raises(KeyboardInterrupt):
        stopped.go_on(leave)
    assert statuses(stopped) == ["running", "running"]
    run = gone(plan("a", "b"), house)
    assert statuses(run) == ["completed"] * 2 and not any(task.done_before for task in run.tasks)
    assert house.drawn == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "wishes", "status", "drawn"),
    [
        (REFUSED, {}, "completed", 2),
        (Ends("cancelled", "no"), {}, "completed", 2),
        (Ends("interrupted", "no", "offline_interrupted"), {}, "completed", 2),
        (INTERRUPTED, {}, "interrupted", 1),
        (INTERRUPTED, {"retry_unknown": True}, "completed", 2),
        (Ends("cancelled", "unknown"), {}, "cancelled", 1),
        (Ends("cancelled", "unknown"), {"retry_unknown": True}, "completed", 2),
        (USELESS, {}, "failed", 1),
        (USELESS, {"retry_unknown": True}, "failed", 1),
    ],
)
def test_a_rerun_asks_again_only_for_what_was_surely_not_billed_or_is_wished(
    plan: Callable[..., Plan], first: Ends, wishes: dict[str, bool], status: str, drawn: int
) -> None:
    house = FakeDaemon(a=[first])
    assert statuses(gone(plan("a"), house)) == [first.state]
    run = gone(plan("a"), house, **wishes)
    assert (statuses(run), len(house.drawn)) == ([status], drawn)
    assert run.tasks[0].doubtful == (first.billed == "unknown" and drawn == 2)
    assert statuses(gone(plan("a"), house, **wishes)) == [status] and len(house.drawn) == drawn


def test_again_draws_everything_anew_and_its_name_continues_it(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    gone(plan("a", "b"), house)
    anew = plan("a", "b", again=True)
    gone(anew, house)
    assert anew.run and house.drawn == ["a", "b"] * 2
    gone(plan("a", "b", run=anew.run), house)
    assert house.drawn == ["a", "b"] * 2
    assert plan("a", again=True).run != plan("a", again=True).run


def test_a_failure_that_was_not_billed_is_tried_again_after_the_delay(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED, RATE_LIMITED])
    run = gone(plan("a", "b", retry_policy={"retry_delay_ms": 7000}), house)
    assert statuses(run) == ["completed"] * 2
    assert house.drawn == ["a", "b", "a", "a"]
    assert house.time == 1 + 7 + 1 + 7 + 1
    assert run.tasks[0].retries == 2


def test_it_is_tried_again_so_often_and_no_more(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED] * 9)
    assert statuses(gone(plan("a", retry_policy={"max_retries": 3}), house)) == ["failed"]
    assert len(house.drawn) == 4
    assert statuses(gone(plan("a", retry_policy={"max_retries": 0}), house)) == ["failed"]
    assert len(house.drawn) == 5


@pytest.mark.parametrize("end", [REFUSED, USELESS._replace(code="rate_limited"), TIMED_OUT, Ends("cancelled", "no", "timeout")])
def test_other_ends_are_final(plan: Callable[..., Plan], end: Ends) -> None:
    house = FakeDaemon(a=[end])
    assert statuses(gone(plan("a"), house)) == [end.state]
    assert house.drawn == ["a"]


def test_a_job_that_waits_for_another_try_leaves_its_place_to_others(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED])
    gone(plan("a", "b", "c", max_concurrent=1), house)
    assert house.drawn == ["a", "b", "c", "a"]


def test_a_refusal_ends_one_job_and_says_why(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    house.refusals = [{"code": "no_space", "message": "The disk is full."}]
    run = gone(plan("a", "b"), house)
    assert statuses(run) == ["failed", "completed"] and house.drawn == ["b"]
    assert (run.tasks[0].error_code, run.tasks[0].error, run.tasks[0].billed) == ("no_space", "The disk is full.", "no")


def test_a_refusal_that_is_tried_again_leaves_no_gap_in_the_numbers(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED])
    house.refusals = [{"code": "rate_limited", "message": "Later."}]
    assert statuses(gone(plan("a"), house)) == ["completed"]
    before = dict(house.jobs)
    house.refusals = []
    assert statuses(gone(plan("a"), house)) == ["completed"]
    assert house.jobs == before and len(before) == 2


@pytest.mark.parametrize("code", ["index_unavailable", "internal_error"])
def test_a_refusal_after_which_the_job_may_be_there_is_not_called_free(plan: Callable[..., Plan], code: str) -> None:
    house = FakeDaemon()
    house.refusals = [{"code": code, "message": "timeout"}]
    run = gone(plan("a"), house)
    assert (statuses(run), run.tasks[0].billed, house.asked.count("start_generation_job")) == (["failed"], "unknown", 1)


def test_when_the_time_is_up_nothing_more_is_asked_for_and_what_runs_is_cancelled(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[NEVER], b=[NEVER._replace(state="pending")], c=[Ends()])
    run = gone(plan("a", "b", "c", "d", max_concurrent=2, timeout=90_000), house)
    assert run.timed_out and house.time == 90
    assert statuses(run) == ["cancelled"] * 4
    assert [task.billed for task in run.tasks] == ["unknown", "no", "no", "no"]
    assert house.drawn == ["a", "b"] and "start_generation_job" not in house.asked[3:]
    (first,) = (job for job in house.jobs.values() if job["prompt"] == "b")
    (second,) = (job for job in house.jobs.values() if job["prompt"] == "a")
    assert first["log_position"] < second["log_position"]  # what waits first, or it would start when the other ends


def test_the_time_also_ends_waiting_for_another_try(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED] * 9)
    run = gone(plan("a", timeout=30_000, retry_policy={"retry_delay_ms": 60_000}), house)
    assert run.timed_out and house.time == 30
    assert (statuses(run), run.tasks[0].error_code, house.drawn) == (["failed"], "rate_limited", ["a"])


@pytest.mark.parametrize("end", [Ends(seconds=31), RATE_LIMITED._replace(seconds=31)])
def test_a_job_that_ends_while_it_is_cancelled_is_told_as_it_ended(plan: Callable[..., Plan], end: Ends) -> None:
    house = FakeDaemon(a=[end])

    def late(operation: str, **arguments: Any) -> dict[str, Any]:
        if operation == "cancel_job":
            house.pass_time(5)
        return house.ask(operation, **arguments)

    run = run_of(plan("a", timeout=30_000), house)
    run.go_on(late)
    assert run.timed_out and statuses(run) == [end.state] and house.drawn == ["a"]


def test_nothing_is_asked_for_after_the_time_is_up_though_there_is_room(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()

    def slow(operation: str, **arguments: Any) -> dict[str, Any]:
        house.pass_time(20 if operation == "start_generation_job" else 0)
        return house.ask(operation, **arguments)

    run = run_of(plan("a", "b", "c", "d", timeout=30_000, max_concurrent=9), house)
    run.go_on(slow)
    assert house.drawn == ["a", "b"] and statuses(run)[2:] == ["cancelled"] * 2


def test_a_job_that_fails_as_soon_as_it_is_asked_for_is_not_taken_for_an_earlier_one(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[RATE_LIMITED._replace(seconds=0)] * 9)
    assert statuses(gone(plan("a", retry_policy={"max_retries": 1}), house)) == ["failed"]
    assert house.drawn == ["a", "a"]


class Line:
    def __init__(self, house: FakeDaemon) -> None:
        self.ask = house.ask


@contextmanager
def line_to(house: FakeDaemon) -> Iterator[Line]:
    house.asked.append("connect")
    yield Line(house)


@pytest.mark.parametrize("operation", ["get_status", "start_generation_job", "wait_for_jobs"])
def test_a_daemon_that_goes_away_is_replaced_and_nothing_is_drawn_twice(
    plan: Callable[..., Plan], operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    house = FakeDaemon()
    house.away = [operation]
    run = run_of(plan("a", "b", "c"), house)
    batch.drive(run, lambda: line_to(house))
    assert statuses(run) == ["completed"] * 3 and house.drawn == ["a", "b", "c"]
    assert house.asked.count("connect") == 2
    assert "the daemon went away; another one is asked to go on" in capsys.readouterr().err


def test_a_daemon_that_goes_away_again_and_again_ends_the_batch(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    house.away = ["wait_for_jobs"] * 99
    run = run_of(plan("a", "b", "c"), house)
    with pytest.raises(NotRunning):
        batch.drive(run, lambda: line_to(house))
    assert house.asked.count("connect") == batch.CONNECTIONS_MAX
    assert statuses(run) == ["running", "running", "waiting"]


def told(run: Run, name: str = "") -> Told:
    return Told(run.tasks, AT, AT.replace(second=3), run.timed_out, name)


def test_the_json_result_has_the_names_that_its_readers_know_and_ours(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(b=[REFUSED], c=[INTERRUPTED])
    document = json.loads(batch_summary.as_json(told(gone(plan("a", "b", "c"), house))))
    results = document.pop("results")
    assert document == {
        "total": 3,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
        "interrupted": 1,
        "unfinished": 0,
        "timed_out": False,
        "run": None,
        "started_at": "2026-11-22T10:00:00.000Z",
        "finished_at": "2026-11-22T10:00:03.000Z",
        "total_duration_ms": 3000,
        "total_cost": 0.005,
        "total_cost_micro_usd": 5000,
        "cost_unknown_jobs": 1,
    }
    assert results[0] == {
        "index": 0,
        "job_id": "job-0",
        "status": "completed",
        "prompt": "a",
        "output_path": "/nowhere/job-0.png",
        "output_paths": ["/nowhere/job-0.png"],
        "billed": "yes",
        "duration_ms": 2500,
        "history_uuid": "job-0",
        "cost_micro_usd": 5000,
        "done_before": False,
        "tries": 1,
        "notes": ["/nowhere/job-0.png is not there any more; --again draws it anew."],
    }
    assert (results[1]["status"], results[1]["error_code"], results[1]["error"]) == ("failed", "moderation_blocked", "said no")
    assert (results[1]["cost_micro_usd"], results[1]["history_uuid"], results[1]["output_paths"]) == (0, None, [])
    assert (results[2]["billed"], results[2]["cost_micro_usd"]) == ("unknown", None)


def test_a_cost_of_which_nothing_is_known_is_not_zero(plan: Callable[..., Plan]) -> None:
    run = gone(plan("a", "b"), FakeDaemon(a=[INTERRUPTED], b=[REFUSED]))
    document = json.loads(batch_summary.as_json(told(run)))
    assert (document["total_cost"], document["total_cost_micro_usd"], document["cost_unknown_jobs"]) == (None, None, 1)
    assert "Cost: unknown" in batch_summary.as_text(told(run))
    free = json.loads(batch_summary.as_json(told(gone(plan("b"), FakeDaemon(b=[REFUSED])))))
    assert (free["total_cost"], free["total_cost_micro_usd"], free["cost_unknown_jobs"]) == (0, 0, 0)


def test_an_earlier_try_that_may_have_been_charged_is_not_forgotten(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[INTERRUPTED])
    gone(plan("a"), house)
    run = gone(plan("a"), house, retry_unknown=True)
    document = json.loads(batch_summary.as_json(told(run)))
    assert (document["total_cost_micro_usd"], document["cost_unknown_jobs"]) == (5000, 1)
    assert "An earlier try of this job may have been charged." in document["results"][0]["notes"]
    assert "$0.0050, and 1 job whose cost is not known" in batch_summary.as_text(told(run))


def test_what_was_spent_before_this_run_is_told_apart(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon()
    gone(plan("a"), house)
    text = batch_summary.as_text(told(gone(plan("a", "b"), house)))
    assert "2 jobs: 2 completed; 1 of them before this run" in text
    assert "Cost: $0.0100, of it $0.0050 before this run" in text


def test_the_person_in_front_of_it_hears_what_to_do_next(plan: Callable[..., Plan]) -> None:
    house = FakeDaemon(a=[NEVER], b=[INTERRUPTED])
    run = run_of(plan("a", "b", "c", max_concurrent=2), house)
    house.away = ["start_generation_job"]
    with pytest.raises(NotRunning):
        run.go_on(house.ask)
    (sentence,) = batch_summary.what_next(told(run))
    assert "go on being drawn (1)" in sentence and "not been asked for (2)" in sentence
    assert "give the same command again" in sentence
    (named,) = batch_summary.what_next(told(run, "0123abcd"))
    assert "give the same command with --run 0123abcd in place of --again" in named
    late = gone(plan("a", "b", timeout=5000), FakeDaemon(a=[NEVER], b=[INTERRUPTED]))
    up, doubtful = batch_summary.what_next(told(late))
    assert up.startswith("The time was up") and doubtful.startswith("2 jobs may have been charged although")
    assert "--retry-unknown" in doubtful
    assert batch_summary.what_next(told(gone(plan("c"), house))) == []


def test_pictures_come_with_the_json_where_they_are_wanted(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text(json.dumps({"jobs": [{"prompt": "a", "return_base64": True}]}))
    house = FakeDaemon()
    run = gone(batch_plan.make(Options(path=tmp_path / "batch.json"), ENVIRON), house)
    (job,) = house.jobs.values()
    there = tmp_path / "there.png"
    there.write_bytes(b"bytes")
    job["images"] = [{"path": str(there)}, {"path": str(tmp_path / "gone.png")}]
    again = gone(batch_plan.make(Options(path=tmp_path / "batch.json"), ENVIRON), house)
    assert json.loads(batch_summary.as_json(told(again)))["results"][0]["base64"] == ["Ynl0ZXM=", None]
    assert "base64" not in json.loads(batch_summary.as_json(told(gone(plan("b"), house))))["results"][0]
    assert statuses(run) == ["completed"]


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def watched(plan: Plan, house: FakeDaemon, *, terminal: bool) -> str:
    screen = Screen(terminal=terminal)
    progress = Progress(screen)
    Run(plan, retry_unknown=False, clock=house.clock(), watch=progress.show).go_on(house.ask)
    progress.end()
    return screen.getvalue()


def test_a_terminal_sees_one_line_that_changes(plan: Callable[..., Plan]) -> None:
    seen = watched(plan("a", "b", "c"), FakeDaemon(b=[REFUSED]), terminal=True)
    assert "\n" not in seen
    shown = seen.split("\r\x1b[K")
    assert "0/3 done, 0 failed, 1 running, 2 waiting; $0.0000 so far" in shown
    assert shown[-2:] == ["2/3 done, 1 failed, 0 running, 0 waiting; $0.0100 so far", ""]


def test_anything_else_gets_a_line_for_each_job_that_is_over(plan: Callable[..., Plan]) -> None:
    lines = watched(plan("a", "b"), FakeDaemon(b=[REFUSED]), terminal=False).splitlines()
    assert lines == [
        "[1/2] jobs[0] completed /nowhere/job-0.png (some)",
        "[2/2] jobs[1] failed moderation_blocked said no; do this next (some)",
    ]


def made(tmp_path: Path, *jobs: Any, environ: dict[str, str] | None = None, rest: Any = None, **options: Any) -> Plan:
    path = tmp_path / "configs" / "batch.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"jobs": jobs, **(rest or {})}))
    return batch_plan.make(Options(path=path, **options), {**ENVIRON, **(environ or {})})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures and a mask in it."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "a.png").write_bytes(picture("png", 640, 480))
    (place / "b.png").write_bytes(picture("png", 64, 64))
    Image.new("RGBA", (640, 480)).save(place / "mask.png")
    return place


def test_the_output_directory_is_the_command_lines_or_the_files_or_the_environments(tmp_path: Path, here: Path) -> None:
    environ = {"OPENAI_IMAGE_OUTPUT_DIR": "/from/environment"}
    fox, said = {"prompt": "A fox"}, {"output_dir": "in-file"}
    first = made(tmp_path, fox, environ=environ, rest=said, output_dir="./asked")
    assert first.settings["OPENAI_IMAGE_OUTPUT_DIR"] == str(here / "asked")
    assert made(tmp_path, fox, environ=environ, rest=said).settings["OPENAI_IMAGE_OUTPUT_DIR"] == str(here / "in-file")
    assert made(tmp_path, fox, environ=environ).settings["OPENAI_IMAGE_OUTPUT_DIR"] == "/from/environment"
    assert made(tmp_path, fox).settings["OPENAI_IMAGE_OUTPUT_DIR"] == str(Path.home() / "Downloads/openai-images")
    assert made(tmp_path, fox, output_dir="~/x").settings["OPENAI_IMAGE_OUTPUT_DIR"] == str(Path.home() / "x")


def test_the_session_may_read_where_the_user_works_and_no_further(tmp_path: Path, here: Path) -> None:
    environ = {"OPENAI_IMAGE_INPUT_DIR": "/mine:/others", "OPENAI_API_KEY": "sk-x", "PATH": "/bin"}
    plan = made(tmp_path, {"prompt": "A fox"}, environ=environ)
    roots = plan.settings["OPENAI_IMAGE_INPUT_DIR"].split(":")
    assert roots[:2] == ["/mine", "/others"] and roots[-2:] == [str(here), str(tmp_path / "configs")] and "/" not in roots
    assert "OPENAI_IMAGE_ALLOW_ANY_PATH" not in plan.settings and "PATH" not in plan.settings
    open_to_all = made(tmp_path, {"prompt": "A fox"}, any_path=True).settings
    assert open_to_all["OPENAI_IMAGE_INPUT_DIR"].endswith(":/") and open_to_all["OPENAI_IMAGE_ALLOW_ANY_PATH"] == "true"


def test_the_session_may_draw_as_many_at_once_as_the_batch_wants(tmp_path: Path, here: Path) -> None:
    fox = {"prompt": "A fox"}
    assert made(tmp_path, fox, max_concurrent=9).settings["IMAGED_MAX_CONCURRENT"] == "9"
    assert made(tmp_path, fox, max_concurrent=1).settings["IMAGED_MAX_CONCURRENT"] == "4"
    environ = {"IMAGED_MAX_CONCURRENT": "20"}
    assert made(tmp_path, fox, environ=environ, max_concurrent=9).settings["IMAGED_MAX_CONCURRENT"] == "20"


def test_sources_are_those_of_the_working_directory(tmp_path: Path, here: Path) -> None:
    plan = made(
        tmp_path,
        {"prompt": "x", "operation": "edit", "reference_image_path": "./a.png", "mask_image_path": "mask.png"},
        {"prompt": "x", "operation": "transform", "reference_images": ["a.png", str(here / "b.png")]},
    )
    assert plan.orders[0].arguments["reference_image_path"] == str(here / "a.png")
    assert plan.orders[0].arguments["mask_image_path"] == str(here / "mask.png")
    assert plan.orders[1].arguments["reference_images"] == [str(here / "a.png"), str(here / "b.png")]
    assert "reference_images" not in plan.orders[0].arguments and "reference_image_path" not in plan.orders[1].arguments


def test_a_source_that_changes_makes_another_job_and_one_that_moves_does_not(tmp_path: Path, here: Path) -> None:
    def identity(path: str) -> str:
        job = {"prompt": "x", "operation": "edit", "reference_image_path": path, "output_path": "x.png"}
        return made(tmp_path, job).orders[0].identity

    before = identity("a.png")
    (here / "a.png").rename(here / "c.png")
    assert identity("c.png") == before
    (here / "c.png").write_bytes(picture("png", 320, 240))
    assert identity("c.png") != before


def test_another_place_that_draws_makes_another_job(tmp_path: Path, here: Path) -> None:
    def identity(**environ: str) -> str:
        return made(tmp_path, {"prompt": "A fox"}, environ=environ).orders[0].identity

    earnest = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-one"}
    tried = {**earnest, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    assert len({identity(), identity(**earnest), identity(**tried)}) == 3
    assert identity(**earnest) == identity(**{**earnest, "OPENAI_API_KEY": "sk-two"})


def test_everything_that_cannot_be_drawn_is_told_at_once_and_by_its_place(tmp_path: Path, here: Path) -> None:
    (here / "notes.txt").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(picture("png"))
    with pytest.raises(BadConfiguration) as refused:
        made(
            tmp_path,
            {"prompt": "x", "model": "gpt-image-2", "size": "4000x4000"},
            {"prompt": "x", "quality": "best"},
            {"prompt": "A fox"},
            {"prompt": "x", "operation": "edit", "reference_image_path": "none.png"},
            {"prompt": "x", "operation": "edit", "reference_image_path": "notes.txt"},
            {"prompt": "x", "operation": "edit", "reference_image_path": "../secret.png"},
            {"prompt": "x", "output_path": "/etc/x.png"},
            {"prompt": "x", "model": "gpt-image-1"},
            {"prompt": " "},
            {"prompt": "x" * 32_001},
            {"prompt": "x", "operation": "edit", "reference_image_path": "b.png", "mask_image_path": "mask.png"},
            environ={"OPENAI_BATCH_TIMEOUT": "soon"},
        )
    first, *lines = str(refused.value).split("\n  ")
    assert first.endswith("cannot be run; nothing was asked for:")
    assert lines[0].startswith("OPENAI_BATCH_TIMEOUT is ")
    assert [line.partition("]")[0] for line in lines[1:]] == [f"jobs[{index}" for index in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10)]
    assert "The nearest possible size is" in lines[1] and "was shut down by OpenAI" in lines[7]


def test_a_setting_that_cannot_be_understood_is_named(tmp_path: Path, here: Path) -> None:
    with pytest.raises(BadConfiguration, match="IMAGED_BACKEND is 'x'"):
        made(tmp_path, {"prompt": "A fox"}, environ={"IMAGED_BACKEND": "x"})
    with pytest.raises(BadConfiguration, match=r"none\.json cannot be read: No such file"):
        batch_plan.make(Options(path=here / "none.json"), ENVIRON)


def test_what_may_be_asked_for_but_is_doubtful_is_said(tmp_path: Path, here: Path) -> None:
    plan = made(tmp_path, {"prompt": "x", "model": "gpt-image-9"}, {"prompt": "y", "colour": "red"})
    assert plan.warnings == (
        "jobs[1].colour is not known and is ignored.",
        "jobs[0]: The model gpt-image-9 is not in the catalogue of 2026-11-22; it is passed on as it is.",
    )


def test_an_estimate_is_a_sum_of_what_is_known_and_says_what_is_not(tmp_path: Path, here: Path) -> None:
    fox = {"prompt": "x", "model": "gpt-image-2", "size": "1024x1024", "quality": "low"}
    two, unknown = made(tmp_path, fox, {**fox, "sample_count": 3}), made(tmp_path, fox, {**fox, "model": "gpt-image-9"})
    first, second = json.loads(batch_summary.estimate_json(two)), json.loads(batch_summary.estimate_json(unknown))
    costs = [(job["low_micro_usd"], job["high_micro_usd"]) for job in first["jobs"]]
    assert (first["low_micro_usd"], first["high_micro_usd"]) == tuple(map(sum, zip(*costs, strict=True)))
    assert costs[1][0] > 2 * costs[0][0] > 0 and first["unknown_jobs"] == 0
    assert (second["low_micro_usd"], second["unknown_jobs"]) == (costs[0][0], 1)
    assert second["jobs"][1]["low_micro_usd"] is None
    assert "The cost of 1 job is unknown and not in this sum." in batch_summary.estimate_text(unknown)
    nothing = made(tmp_path, {**fox, "model": "gpt-image-9"})
    assert json.loads(batch_summary.estimate_json(nothing))["low_micro_usd"] is None
    assert "$" not in batch_summary.estimate_text(nothing)


def test_the_estimate_of_an_edit_counts_its_sources(tmp_path: Path, here: Path) -> None:
    job = {"prompt": "x", "model": "gpt-image-2", "size": "1024x1024", "quality": "low", "output_path": "x.png"}
    edit = {**job, "operation": "edit", "reference_image_path": "a.png"}
    plain, edited = made(tmp_path, job).orders[0].estimate, made(tmp_path, edit).orders[0].estimate
    assert plain.low is not None and edited.low is not None and edited.low > plain.low


def test_nothing_that_acts_on_a_terminal_comes_from_a_prompt(plan: Callable[..., Plan]) -> None:
    run = gone(plan("a \x1b[31mred\r\nfox " + "x" * 100), FakeDaemon())
    text = batch_summary.as_text(told(run))
    assert "\x1b" not in text and "\r" not in text and "…" in text


class Hostile(FakeDaemon):
    """Whose files have names that act on a terminal, and whose notes do, too."""

    def _make(self, key: str, prompt: str, arguments: dict[str, Any], end: Ends) -> None:
        super()._make(key, prompt, arguments, end)
        images = [{"path": f"/nowhere/\x1b]2;{n}\x07\u202e京都.png"} for n in range(2)]
        self.jobs[key]["end"] |= {"images": images, "warnings": ["\x1b[2Jgone"]}


def test_nothing_that_acts_on_a_terminal_comes_from_a_path_or_a_note(plan: Callable[..., Plan]) -> None:
    text = batch_summary.as_text(told(gone(plan("a"), Hostile())))
    shown = "/nowhere/\\u{1b}]2;1\\u{7}\\u{202e}京都.png"
    assert f"    {shown}\n" in text and f"    Note: {shown} is not there" in text and "Note: \\u{1b}[2Jgone" in text
    watching = watched(plan("a"), Hostile(), terminal=False)
    assert shown.replace(";1", ";0") in watching
    assert not {"\x1b", "\x07", "\u202e"} & set(text + watching)


@pytest.mark.parametrize("refused", [False, True])
def test_a_task_that_has_not_been_answered_yet_counts_as_running(plan: Callable[..., Plan], refused: bool) -> None:
    task = Task(plan("a").orders[0])
    assert (task.status, task.billed) == ("waiting", "no")
    if refused:
        task.refuse("rate_limited", "Later.")
    task.ask()
    assert (task.status, task.billed, task.error) == ("running", "unknown", "")
