"""What came to nothing by the real program: drawn again once, resolved by its owner, and counted."""

import base64
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from daemon import client
from eventlog.events import JobRequested, JobResolved
from tests.program import Program, Stdio, running, wait_until
from tests.standin import Behaviour, Request, StandIn
from tests.test_control import spoken
from tests.test_jobs import Gate, api, start, state
from tests.tools.pictures_for_tests import picture

lost: Behaviour = lambda request: request.reply(502, b"<html>bad gateway</html>", content_type="text/html")  # noqa: E731
refused: Behaviour = lambda request: request.error(401, "invalid_api_key")  # noqa: E731


def ended(program: Program, job_id: str) -> str:
    return str(wait_until(lambda: (now := state(program, job_id)) not in ("pending", "running") and now, f"the end of {job_id}"))


def lose(program: Program, **arguments: object) -> str:
    job_id: str = start(program, **arguments)["result"]["job_id"]
    assert ended(program, job_id) == "interrupted"
    return job_id


def retry(program: Program, job_id: str, **arguments: object) -> dict[str, Any]:
    return program.ask("retry_job", job_id=job_id, **arguments)


def resolve(program: Program, job_id: str, outcome: str, **arguments: object) -> dict[str, Any]:
    return program.ask("resolve_job", job_id=job_id, outcome=outcome, **arguments)


def spending(program: Program, **arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = program.ask("get_spending", **arguments)["result"]
    return found


def test_a_lost_picture_is_drawn_again_once_however_often_that_is_asked(tmp_path: Path) -> None:
    with StandIn(lost) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = lose(program, output_path="fox.png", size="1024x1536")
        with ThreadPoolExecutor(5) as threads:
            answers = [answer["result"] for answer in threads.map(lambda _: retry(program, job_id), range(5))]
        (new,) = {answer["job_id"] for answer in answers}
        answer = answers[0]
        assert new != job_id and answer["retry_of"] == job_id and answer["requested"]["size"] == "1024x1536"
        assert ended(program, answer["job_id"]) == "completed"
        done = program.ask("get_job_result", job_id=answer["job_id"])
        assert done["result"]["images"][0]["path"].endswith("fox.png") and f"Draws again: job {job_id}" in done["text"]
        again = retry(program, job_id)["result"]
        assert again["job_id"] == answer["job_id"] and "nothing new is drawn" in again["warnings"][0]
        program.kill()
        with running(tmp_path, **api(standin.url)) as restarted:
            assert retry(restarted, job_id)["result"]["job_id"] == answer["job_id"]
            assert state(restarted, job_id) == "interrupted"
            assert len(standin.requests) == 2 and standin.requests[0].json == standin.requests[1].json
            ordered = [event for commit in restarted.log() for event in commit.events if isinstance(event, JobRequested)]
            assert [event.retry_of for event in ordered] == [None, job_id]


def test_what_came_to_nothing_twice_is_asked_for_by_its_latest_job(tmp_path: Path) -> None:
    with StandIn(lost, refused) as standin, running(tmp_path, **api(standin.url)) as program:
        first = lose(program)
        second = retry(program, first)["result"]["job_id"]
        assert ended(program, second) == "failed"
        said = retry(program, first)["refused"]
        assert said["code"] == "already_retried" and second in said["message"]
        third = retry(program, second, output_path="third.png")["result"]["job_id"]
        assert ended(program, third) == "completed" and (program.pictures / "third.png").exists()
        assert len(standin.requests) == 3


def test_an_edit_is_drawn_again_from_the_pictures_as_they_were(tmp_path: Path) -> None:
    with StandIn(lost) as standin, running(tmp_path, **api(standin.url)) as program:
        program.pictures.mkdir()
        source = program.pictures / "red.png"
        source.write_bytes(picture("png"))
        job_id = lose(program, tool_name="edit_image", reference_images=["red.png"])
        source.unlink()
        answer = retry(program, job_id)["result"]
        assert ended(program, answer["job_id"]) == "completed" and answer["sources"][0]["name"] == "red.png"
        assert picture("png")[-40:] in standin.requests[1].body  # its pixels; what was sent has no metadata
        standin.will(lost)
        another = lose(program, tool_name="edit_image", reference_images=[answer["job_id"]])
        shutil.rmtree(program.places.store)
        assert retry(program, another)["refused"]["code"] == "source_gone"


def test_what_needs_no_second_drawing_is_refused_and_nothing_is_recorded(tmp_path: Path) -> None:
    gate = Gate()
    with StandIn(gate, lost) as standin, running(tmp_path, **api(standin.url)) as program:
        drawn = start(program)["result"]["job_id"]
        assert retry(program, drawn)["refused"]["code"] == "not_over"
        assert resolve(program, drawn, "billed")["refused"]["code"] == "not_over"
        gate.opened.set()
        assert ended(program, drawn) == "completed"
        assert retry(program, drawn)["refused"]["code"] == "already_over"
        assert resolve(program, drawn, "billed")["refused"]["code"] == "already_known"
        unsaid = lose(program)
        assert "result" in program.ask("forget", uuid=unsaid)
        assert retry(program, unsaid)["refused"]["code"] == "forgotten"
        assert retry(program, "01a20000-0000-7000-8000-000000000000")["refused"]["code"] == "no_such_job"
        assert program.ask("list_jobs")["result"]["total"] == 2 and len(standin.requests) == 2


@pytest.mark.parametrize(
    ("outcome", "amount", "billed", "settled"),
    [("not_billed", None, "no", 0), ("billed", "0.042", "yes", 42_000), ("billed", None, "yes", None)],
)
def test_what_its_owner_finds_on_the_bill_is_counted_for_good(
    outcome: str, amount: str | None, billed: str, settled: int | None, tmp_path: Path
) -> None:
    said = {} if amount is None else {"amount_usd": amount}
    with StandIn(lost) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = lose(program)
        before = spending(program)
        high = program.ask("check_job_status", job_id=job_id)["result"]["cost"]["high_micro_usd"]
        assert [job["job_id"] for job in before["unresolved"]] == [job_id] and before["unresolved_total"] == 1
        assert before["total"]["possibly_billed_micro_usd"] == high and before["total"]["settled_micro_usd"] == 0
        program.kill()
        with running(tmp_path, **api(standin.url)) as restarted:  # the doubt is in the index, the job off the board
            report = resolve(restarted, job_id, outcome, **said)["result"]
            assert (report["billed"], report["state"]) == (billed, "interrupted")
            assert report["message"].endswith("billed.") and "may be paid twice" not in report["message"]
            assert resolve(restarted, job_id, outcome, **said)["refused"]["code"] == "already_known"
            (resolved,) = (e for commit in restarted.log() for e in commit.events if isinstance(e, JobResolved))
            assert (resolved.billed, resolved.client.name) == (billed, "imaged")
            restarted.kill()
        if outcome == "billed":
            program.places.index.unlink()
        with running(tmp_path, **api(standin.url)) as rebuilt:
            after = spending(rebuilt)
            assert after["total"]["possibly_billed_micro_usd"] == 0 and after["unresolved"] == []
            assert after["total"]["settled_micro_usd"] == (high if settled is None else settled)
            told = rebuilt.ask("check_job_status", job_id=job_id)["result"]
            assert told["billed"] == billed and told["cost"]["micro_usd"] == (high if settled is None else settled)


def test_a_bill_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with StandIn(lost) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = lose(program)
        assert resolve(program, job_id, "not_billed", amount_usd="0.01")["refused"]["argument"] == "amount_usd"
        for amount in ("-1", "1e3", "0.1234567", "$1", "", "٣"):
            assert resolve(program, job_id, "billed", amount_usd=amount)["refused"]["code"] == "bad_arguments"
        assert spending(program)["unresolved_total"] == 1


def test_no_model_may_say_what_was_billed(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(program.environment) as asker:
        asker.initialize()
        arguments = {"job_id": "x", "outcome": "not_billed"}
        said = asker.answer(asker.request("tools/call", {"name": "resolve_job", "arguments": arguments}))
        assert "no tool" in said["error"]["message"]


def test_spending_is_summed_by_what_was_asked_for_and_beside_its_estimate(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        for model in ("gpt-image-2", "gpt-image-2", "gpt-image-2.5-flare"):
            assert program.ask("generate_image", prompt="a fox", quality="low", size="1024x1024", model=model)["result"]["images"]
        by_model = spending(program, by="model")
        assert [(row["name"], row["images"]) for row in by_model["rows"]] == [("gpt-image-2", 2), ("gpt-image-2.5-flare", 1)]
        costs = [job["cost"]["micro_usd"] for job in program.ask("list_history")["result"]["generations"]]
        total = by_model["total"]
        assert total["settled_micro_usd"] == sum(costs) > 0 and (total["replies"], total["unpriced"]) == (3, 0)
        assert total["estimated_low_micro_usd"] <= sum(costs) <= total["estimated_high_micro_usd"]
        assert [row["name"] for row in spending(program, by="client")["rows"]] == ["imaged"]
        (by_key,) = spending(program, by="key")["rows"]
        assert by_key["name"] and by_key["name"] not in ("offline", api("x")["OPENAI_API_KEY"])
        (today,) = spending(program)["rows"]
        assert today["settled_micro_usd"] == sum(costs)
        assert spending(program, since="2020-01-01", until="2020-12-31")["rows"] == []
        offline = {**program.environment, "IMAGED_BACKEND": "offline"}
        assert "result" in client.ask(program.places, "generate_image", {"prompt": "a cat"}, offline)
        assert {row["name"]: row["settled_micro_usd"] for row in spending(program, by="key")["rows"]}["offline"] == 0
        text = program.ask("get_spending", by="model")["text"]
        assert "gpt-image-2: $" in text and "estimated $" in text


def test_days_that_are_none_are_refused(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        for wrong in ({"since": "2026-02-30"}, {"until": "yesterday"}, {"since": "2026-11-22", "until": "2026-11-21"}):
            assert program.ask("get_spending", **wrong)["refused"]["code"] == "bad_arguments"


def test_the_models_are_listed_with_price_and_last_day(tmp_path: Path) -> None:
    with running(tmp_path, OPENAI_IMAGE_MODEL="gpt-image-2") as program:
        answer = program.ask("list_models")
        models = {model["name"]: model for model in answer["result"]["models"]}
        assert answer["result"]["default"] == "gpt-image-2"
        assert models["gpt-image-2"]["status"] == "current" and models["gpt-image-2"]["low_micro_usd"] > 0
        gone = models["gpt-image-1"]
        assert gone["status"] == "retired" and gone["gone_from"] and gone["replacement"] in models
        assert f"gpt-image-1 (no longer answers since {gone['gone_from']})" in answer["text"]


def unplaced(program: Program, standin: StandIn, **arguments: object) -> dict[str, Any]:
    """A picture that is drawn, and whose folder has become a file meanwhile."""

    def spoil(request: Request) -> None:
        program.pictures.mkdir(exist_ok=True)
        (program.pictures / "late").write_text("a file where the folder should be", "utf-8")
        request.reply(200, request.good_reply())

    standin.will(spoil)
    job_id = start(program, output_path="late/fox.png", **arguments)["result"]["job_id"]
    assert ended(program, job_id) == "failed"
    report: dict[str, Any] = program.ask("get_job_result", job_id=job_id)["result"]
    assert (report["error_code"], report["billed"]) == ("not_saved", "yes") and "retry_job" in report["next_step"]
    return report


def test_what_could_not_be_put_in_its_place_can_be_had_by_its_id(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program, Stdio(program.environment) as client:
        client.initialize()
        report = unplaced(program, standin)
        (image,) = report["images"]
        assert image["path"] is None and "(not in its place)" in program.ask("get_job_result", job_id=report["job_id"])["text"]
        program.places.index.unlink()
        program.kill()
        program.start().ready()
        status, headers, data = spoken(program, f"GET /v1/images/{report['job_id']}/1 HTTP/1.1\r\nHost: imaged\r\n\r\n".encode())
        assert status == 200 and headers["etag"].strip('"') == image["sha256"] == hashlib.sha256(data).hexdigest()
        client.request("resources/read", {"uri": image["resource"]})
        (contents,) = client.answer(client._id)["result"]["contents"]
        assert base64.b64decode(contents["blob"]) == data
        shown = client.call("get_job_result", job_id=report["job_id"], include_thumbnail=True)
        assert [content["type"] for content in shown["content"]].count("image") == 1
        edited = client.call("edit_image", prompt="bluer", reference_images=[report["job_id"]], quality="low")
        assert not edited.get("isError"), edited


def test_what_could_not_be_put_in_its_place_is_put_there_and_not_paid_for_again(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        report = unplaced(program, standin, sample_count=2)
        settled = spending(program)["total"]
        again = retry(program, report["job_id"], output_path="fox.png")["result"]
        assert again["retry_of"] == report["job_id"] and again["cost"]["high_micro_usd"] in (0, None)
        assert ended(program, again["job_id"]) == "completed"
        done = program.ask("get_job_result", job_id=again["job_id"])["result"]
        assert (done["billed"], done["cost"]["micro_usd"], done["quality"]) == ("no", 0, report["quality"])
        assert "put in place as drawn for job " + report["job_id"] in done["message"]
        assert [image["original_sha256"] for image in done["images"]] == [image["sha256"] for image in report["images"]]
        assert [Path(image["path"]).name for image in done["images"]] == ["fox_1.png", "fox_2.png"]
        assert all(Path(image["path"]).read_bytes().startswith(b"\x89PNG") for image in done["images"])
        assert len(standin.requests) == 1 and spending(program)["total"] == settled
        assert retry(program, report["job_id"])["result"]["job_id"] == again["job_id"]
        assert retry(program, again["job_id"])["refused"]["code"] == "already_over"
        story = [event for commit in program.log() for event in commit.events]
        assert [len(event.kept) for event in story if isinstance(event, JobRequested)] == [0, 2]
        program.ask("forget", uuid=report["job_id"])
        asked = f"GET /v1/images/{again['job_id']}/2 HTTP/1.1\r\nHost: imaged\r\n\r\n"
        assert spoken(program, asked.encode())[0] == 200, "another job still needs it"
        program.kill()
        program.places.index.unlink()
        program.start().ready()
        rebuilt = program.ask("get_job_result", job_id=again["job_id"])["result"]
        assert rebuilt == {**done, "warnings": rebuilt["warnings"]}


def test_what_is_put_in_its_place_again_and_fails_again_is_still_there(tmp_path: Path) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        report = unplaced(program, standin)
        assert retry(program, report["job_id"])["refused"]["argument"] == "output_path"
        (program.pictures / "late").unlink()
        (program.pictures / "late").symlink_to(tmp_path)
        assert retry(program, report["job_id"])["refused"]["code"] == "path_link"
        (program.pictures / "late").unlink()
        again = retry(program, report["job_id"])["result"]["job_id"]
        assert ended(program, again) == "completed" and (program.pictures / "late" / "fox.png").exists()
        shutil.rmtree(program.pictures / "late")
        gone = unplaced(program, standin)
        shutil.rmtree(program.places.store)
        assert retry(program, gone["job_id"], output_path="x.png")["refused"]["code"] == "source_gone"
        assert len(standin.requests) == 2


def test_a_trial_takes_the_place_of_no_picture_and_a_new_key_may(tmp_path: Path) -> None:
    with StandIn(lost) as standin, running(tmp_path, **api(standin.url)) as program:
        job_id = lose(program)
        with Stdio({**program.environment, "IMAGED_BACKEND": "offline"}) as client:
            client.initialize()
            refusal = client.call("retry_job", job_id=job_id)["structuredContent"]["error"]
            assert refusal["code"] == "other_account" and "placeholders" in refusal["message"]
            trial = client.call("start_generation_job", tool_name="generate_image", prompt="x")["structuredContent"]["job_id"]
        assert retry(program, trial)["refused"]["code"] == "other_account"
        with Stdio({**program.environment, "OPENAI_API_KEY": "sk-test-another-key-0123456789"}) as client:
            client.initialize()
            again = client.call("retry_job", job_id=job_id)["structuredContent"]
            assert "was ordered with the key" in again["warnings"][0]
        assert ended(program, again["job_id"]) == "completed"
        told = retry(program, job_id, output_path="elsewhere.png")["result"]
        assert told["job_id"] == again["job_id"] and "output_path was not used" in told["warnings"][1]
