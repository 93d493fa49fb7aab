"""The same order is the same job: under one key for good, and from one client until it was told how the first ended."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventlog.events import JobCompleted, JobRequested, RequestReceived
from tests.program import Program, Stdio, environment, running, wait_until
from tests.standin import StandIn
from tests.test_jobs import Gate, api, start, state
from tests.tools.pictures_for_tests import picture

FOX = {"prompt": "a fox", "quality": "low", "size": "1024x1024"}


def draw(program: Program, **arguments: object) -> dict[str, Any]:
    return program.ask("generate_image", **{**FOX, **arguments})


def count(program: Program, kind: type) -> int:
    return sum(isinstance(event, kind) for commit in program.log() for event in commit.events)


def test_the_same_order_while_the_first_is_drawn_is_the_same_job(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate, *[gate] * 9) as standin, running(tmp_path, **api(standin.url)) as program:
        with ThreadPoolExecutor(20) as threads:
            waiting = [threads.submit(draw, program) for _ in range(20)]
            wait_until(lambda: count(program, RequestReceived) >= 20, "all of them to be received")
            other = start(program, prompt="a hare")["result"]["job_id"]
            gate.opened.set()
            answers = [one.result()["result"] for one in waiting]
        assert len({answer["job_id"] for answer in answers}) == 1 and {answer["state"] for answer in answers} == {"completed"}
        told = [answer["warnings"] for answer in answers]
        assert told.count([]) == 1 and all("again: true" in warnings[0] for warnings in told if warnings)
        wait_until(lambda: state(program, other) == "completed", "the hare")
        assert len(standin.requests) == 2 and count(program, JobRequested) == 2
        anew = draw(program)["result"]
        assert anew["job_id"] not in {other, answers[0]["job_id"]} and not anew["warnings"], "it had been told"


def test_another_one_of_the_same_kind_is_drawn_if_it_is_asked_for(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(*[gate] * 6) as standin, running(tmp_path, **api(standin.url)) as program:
        first = start(program)["result"]["job_id"]
        assert start(program)["result"]["job_id"] == first
        different = [start(program, again=True), start(program, output_path="other.png"), start(program, size="1024x640")]
        different += [start(program, idempotency_key=key) for key in "ab"]
        assert len({first, *(answer["result"]["job_id"] for answer in different)}) == 6
        gate.opened.set()
        wait_until(lambda: count(program, JobCompleted) == 6, "all six")
        assert len(standin.requests) == 6


def test_an_order_that_still_waits_after_a_restart_is_found_again(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate, gate) as standin, running(tmp_path, **api(standin.url, IMAGED_MAX_CONCURRENT="1")) as program:
        start(program, prompt="drawn first")
        waits = start(program)["result"]["job_id"]
        wait_until(lambda: standin.requests, "the first to be drawn")
        program.kill()
        program.start().ready()
        assert start(program)["result"]["job_id"] == waits
        gate.opened.set()


def test_a_client_that_gave_up_gets_the_finished_picture_when_it_asks_again(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url)) as program, Stdio(program.environment) as client:
        client.initialize()
        given_up = client.request("tools/call", {"name": "generate_image", "arguments": FOX})
        wait_until(lambda: standin.requests, "the picture to be drawn")
        client.notify("notifications/cancelled", {"requestId": given_up, "reason": "timeout"})
        gate.opened.set()
        wait_until(lambda: count(program, JobCompleted), "the picture")
        again = client.call("generate_image", **FOX)["structuredContent"]
        assert again["state"] == "completed" and "nothing new is drawn" in again["warnings"][0]
        assert len(standin.requests) == 1
        assert client.call("generate_image", **FOX)["structuredContent"]["job_id"] != again["job_id"]
        assert len(standin.requests) == 2


def test_what_one_client_waits_for_is_not_another_ones(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate, gate) as standin, running(tmp_path, **api(standin.url)) as program, Stdio(program.environment) as client:
        client.initialize()
        mine = start(program)["result"]["job_id"]
        theirs = client.call("start_generation_job", tool_name="generate_image", prompt="a fox", quality="low")
        assert theirs["structuredContent"]["job_id"] != mine
        gate.opened.set()


@pytest.mark.parametrize("tool", ["generate_image", "edit_image", "transform_image"])
def test_every_drawing_tool_takes_a_key(tool: str, tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        program.pictures.mkdir()
        (program.pictures / "red.png").write_bytes(picture("png"))
        sources = {} if tool == "generate_image" else {"reference_images": ["red.png"]}
        asked = {"prompt": "a fox", "quality": "low", "idempotency_key": "k", **sources}
        first = program.ask(tool, **asked)["result"]
        again = program.ask(tool, **asked)["result"]
        assert again["job_id"] == first["job_id"] and again["images"] == first["images"]
        assert program.ask(tool, **{**asked, "prompt": "a hare"})["refused"]["code"] == "key_reused"
        assert len(standin.requests) == 1


def test_a_dry_run_says_what_it_would_cost_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        program.pictures.mkdir()
        (program.pictures / "red.png").write_bytes(picture("png"))
        stored = sorted(program.places.store.rglob("*"))
        for tool, more in (("generate_image", {}), ("edit_image", {"reference_images": ["red.png"]})):
            told = program.ask(tool, **{**FOX, **more}, dry_run=True)
            report = told["result"]
            assert (report["state"], report["job_id"], report["images"]) == ("dry_run", "", [])
            assert 0 < report["cost"]["low_micro_usd"] <= report["cost"]["high_micro_usd"]
            assert "Nothing was ordered" in report["message"] and "$" in told["text"]
        assert start(program, dry_run=True)["result"]["state"] == "dry_run"
        drawn = draw(program)["result"]["cost"]["micro_usd"]
        rehearsed = draw(program, dry_run=True)["result"]["cost"]
        assert rehearsed["low_micro_usd"] <= drawn <= rehearsed["high_micro_usd"]
        assert draw(program, dry_run=True, output_path="../x.png")["refused"]["argument"] == "output_path"
        assert draw(program, dry_run=True, size="1x1")["refused"]["code"]
        assert len(standin.requests) == 1 and program.ask("list_jobs")["result"]["total"] == 1
        before = {path.name for path in stored}
        kept = {path.name for path in program.places.store.rglob("*") if path.is_file()} - before
        assert len(kept) == 1, "only what was drawn"


def test_a_dry_run_needs_no_key(tmp_path: Path) -> None:
    settings = environment(tmp_path, IMAGED_BACKEND="openai")
    with running(tmp_path), Stdio({name: value for name, value in settings.items() if name != "OPENAI_API_KEY"}) as client:
        client.initialize()
        told = client.call("generate_image", **FOX, dry_run=True)
        assert not told.get("isError") and told["structuredContent"]["cost"]["high_micro_usd"] > 0
        assert client.call("generate_image", **FOX)["structuredContent"]["error"]["code"] == "no_key"


def test_waiting_for_a_job_ends_with_the_job_or_with_ones_patience_and_is_no_error(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url)) as program, Stdio(program.environment) as client:
        client.initialize()
        job = start(program)["result"]["job_id"]
        still = client.call("wait_for_job", job_id=job, wait_seconds=0)
        assert not still.get("isError") and still["structuredContent"]["state"] in ("pending", "running")
        waiting = client.request("tools/call", {"name": "wait_for_job", "arguments": {"job_id": job, "include_thumbnail": True}})
        wait_until(lambda: standin.requests, "the picture to be drawn")
        gate.opened.set()
        done = client.answer(waiting)["result"]
        assert done["structuredContent"]["state"] == "completed"
        assert "image" in [content["type"] for content in done["content"]]
        assert client.call("wait_for_job", job_id="nobody")["structuredContent"]["error"]["code"] == "no_such_job"


def test_a_job_whose_key_no_client_has_brought_says_so_and_runs_when_it_comes(tmp_path: Path) -> None:
    with StandIn(Gate()) as standin, running(tmp_path, **api(standin.url, IMAGED_MAX_CONCURRENT="1")) as program:
        start(program)
        waits = start(program, again=True)["result"]["job_id"]
        wait_until(lambda: standin.requests, "the first to be drawn")
        program.kill()
        keyless = Program(tmp_path, **{**api(standin.url), "OPENAI_API_KEY": ""}).start()
        try:
            keyless.ready()
            told = keyless.ask("check_job_status", job_id=waits)["result"]
            assert told["state"] == "pending" and told["message"].startswith("Waiting for an API key")
            assert told["key_fingerprint"] in told["message"] and len(standin.requests) == 1
            assert keyless.ask("wait_for_job", job_id=waits, wait_seconds=0)["result"]["message"] == told["message"]
            program.ask("get_status")  # brings the key
            wait_until(lambda: state(program, waits) == "completed", "the picture")
        finally:
            keyless.kill()
