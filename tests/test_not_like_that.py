"""The numbered defects of the program that imaged replaces, each by a test that imaged does not have it.

Every test begins with the number of its defect and does what a user did who found it: the real daemon, the real
bridge or command, a counting stand-in for OpenAI. What cannot be shown this way stands in the table at the end.
"""

import base64
import json
import os
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from daemon import batch_plan, client, results
from daemon.batch_plan import Options
from daemon.batch_run import Clock, Run
from daemon.errors import NotRunning
from daemon.operations import OPERATIONS
from eventlog.events import AttemptFailed, JobCompleted
from eventlog.values import Sha256
from tests.not_like_that_scene import (
    SMALL,
    Scene,
    batch_file,
    drawn,
    files,
    gave_up,
    held,
    let_go,
    noise,
    originals,
    refused,
    said,
)
from tests.program import SECONDS_MAX, Program, Stdio, running, wait_until
from tests.standin import Request, StandIn, draw
from tests.test_batch import EXAMPLES, Command, Together, done
from tests.test_edit import fields, sent
from tests.test_faults import changed, reset, says
from tests.test_jobs import KEY, Gate, api
from tests.tools.pictures_for_tests import picture, pixels
from tests.tools.test_old_history import old_database, row
from tools.batch_config import Retries
from tools.files import NUMBERED_MAX
from tools.models import catalogue
from tools.pictures import webp_chunks
from tools.store import Store

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ("generate_image", "edit_image", "transform_image")
JAPANESE = """雪の中の狐。🦊 {"mood": {"of": "the fox"}} <b>&amp;</b> \\ 'ünïcode'\n""" * 40


@pytest.fixture(scope="module")
def whole_life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("not_like_that")
    (home / "in").mkdir()
    (home / "in" / "source.png").write_bytes(picture("png", 64, 64))
    with StandIn() as standin:
        program = Program(home, **api(standin.url, OPENAI_IMAGE_INPUT_DIR=str(home / "in")))
        umask = os.umask(0)  # whatever a client's parent allows others, our files are nobody else's
        try:
            program.start()
        finally:
            os.umask(umask)
        try:
            program.ready()
            with Stdio(program.environment) as first:
                first.initialize()
                yield Scene(program, standin, first)
        finally:
            program.kill()


@pytest.fixture
def scene(whole_life: Scene) -> Iterator[Scene]:
    yield whole_life
    whole_life.standin.will()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


# Broken outright


def test_01_the_default_model_is_alive(scene: Scene) -> None:
    report = drawn(scene.client.call("generate_image", prompt="a fox"))
    sent_model = scene.standin.requests[-1].json["model"]
    assert report["model"] == sent_model == catalogue().default
    assert sent_model in catalogue().usable_names(datetime.now(UTC).date())
    with scene.session(OPENAI_IMAGE_MODEL="gpt-image-2") as other:
        drawn(other.call("generate_image", prompt="a fox", **SMALL))
        assert scene.standin.requests[-1].json["model"] == "gpt-image-2"
    for model in ("gpt-image-2.6-flare", "gpt-image-2.5-sunburst", "gpt-image-9"):
        scene.draw(model=model)
        assert scene.standin.requests[-1].json["model"] == model


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3"])
@pytest.mark.parametrize("size", ["auto", "1024x1024"])
def test_01_a_model_that_is_gone_is_refused_with_its_replacement(model: str, size: str, scene: Scene) -> None:
    with scene.sending(0):
        sentence = refused(scene.client.call("generate_image", prompt="a fox", model=model, size=size))["message"]
    assert model in sentence and "gpt-image-2.6-flare" in sentence


@pytest.mark.parametrize("tool", DRAWING)
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_02_a_transparent_background_is_asked_for_in_the_words_of_the_api(tool: str, kind: str, scene: Scene) -> None:
    source = {} if tool == "generate_image" else {"reference_image_path": "source.png"}
    for wish in ({"transparent_background": True}, {"background": "transparent"}):
        report = drawn(scene.client.call(tool, prompt="a fox", output_format=kind, **SMALL, **source, **wish))
        request = scene.standin.requests[-1]
        assert (fields(request) if source else request.json)["background"] == "transparent"
        assert b"transparent_background" not in request.body
        with Image.open(files(report)[0]) as saved:
            assert saved.mode == "RGBA" and report["background"] == "transparent"
    with scene.sending(0):
        refused(scene.client.call(tool, prompt="a fox", output_format="jpeg", transparent_background=True, **source))


@pytest.mark.parametrize("tool", DRAWING)
def test_03_the_picture_itself_is_returned_when_it_is_asked_for(tool: str, scene: Scene) -> None:
    source = {} if tool == "generate_image" else {"reference_image_path": "source.png"}
    answer = scene.client.call(tool, prompt="a fox", return_base64=True, **SMALL, **source)
    later = scene.client.call("get_job_result", job_id=drawn(answer)["job_id"], return_base64=True)
    for given in (answer, later):
        (image,) = (part for part in given["content"] if part["type"] == "image")
        assert [base64.b64decode(image["data"])] == originals(scene, drawn(given)) and image["mimeType"] == "image/png"


def test_03_a_picture_too_large_for_clients_comes_as_a_preview_and_a_sentence(scene: Scene) -> None:
    scene.standin.will(changed(data=[{"b64_json": base64.b64encode(noise(1024, 640)).decode()}]))
    answer = scene.client.call("generate_image", prompt="noise", return_base64=True, **SMALL)
    (image,) = (part for part in answer["content"] if part["type"] == "image")
    assert image["mimeType"] == "image/jpeg" and len(json.dumps(answer)) < 1024 * 1024
    assert "too large to return" in said(answer) and drawn(answer)["images"][0]["resource"] in said(answer)
    assert originals(scene, drawn(answer)) == [noise(1024, 640)]


@pytest.mark.parametrize(
    ("name", "in_file", "environ", "folder"),
    [
        ("of the file", {"max_concurrent": 3, "timeout": 90_000, "output_dir": "drawn here"}, {}, "here/drawn here"),
        ("of the environment", {}, {"OPENAI_BATCH_MAX_CONCURRENT": "3", "OPENAI_BATCH_TIMEOUT": "90000"}, "pictures"),
    ],
)
def test_04_a_batch_does_as_its_file_and_the_environment_say(
    name: str, in_file: dict[str, object], environ: dict[str, str], folder: str, scene: Scene
) -> None:
    together = Together(3)  # answers only when three are there at once
    scene.standin.will(*[together] * 6)
    batch_file(scene.home, name, 6, **in_file)
    settings = {**scene.program.environment, **environ}
    assert batch_plan.make(Options(path=scene.home / "here" / "batch.json"), settings).pace.timeout_ms == 90_000
    with scene.sending(6):
        status, document = done(scene.home, settings)
    assert (status, document["succeeded"], together.most) == (0, 6, 3)
    assert {Path(result["output_path"]).parent for result in document["results"]} == {scene.home / folder}


def test_05_when_the_time_of_a_batch_is_up_nothing_more_is_requested(scene: Scene, gate: Gate) -> None:
    scene.standin.will(*[gate] * 6)
    before = len(scene.standin.requests)
    batch_file(scene.home, "too late", 6, timeout=3_600_000)
    status, document = done(scene.home, scene.program.environment, "--timeout", "1000")
    requests = len(scene.standin.requests)
    assert (status, document["timed_out"], document["cancelled"]) == (1, True, 6)
    assert requests - before <= 2 and scene.client.call("list_jobs", status="running")["structuredContent"]["total"] == 0
    gate.opened.set()
    scene.standin.will()
    scene.draw("somebody else's owl")
    assert len(scene.standin.requests) == requests + 1 and not list(scene.program.pictures.glob("too late*"))


def test_06_a_batch_asks_again_after_what_the_api_calls_a_rate_limit(scene: Scene) -> None:
    limit = says(429, "rate_limit_exceeded", "Rate limit reached for gpt-image-2.5-flare in organization x.", retry_after="0")
    scene.standin.will(*[limit] * 8)  # as often as a job asks by itself
    batch_file(scene.home, "again", 1, retry_policy={"retry_delay_ms": 100})
    with scene.sending(9):
        status, document = done(scene.home, scene.program.environment)
    assert (status, document["succeeded"], document["results"][0]["tries"]) == (0, 1, 2)
    for code, message in (("rate_limited", "Too many."), ("x", "Rate limit reached"), ("x", "Request timed out.")):
        assert Retries().wants(code, message)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_07_every_example_is_accepted(example: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "here" / "inputs"
    inputs.mkdir(parents=True)
    for name in ("landscape", "owl", "crane", "paper"):
        Image.new("RGB", (640, 480)).save(inputs / f"{name}.png")
    for name in ("landscape-sky-mask", "crane-mask", "crane-markup"):
        drawing = Image.new("RGBA", (640, 480))
        drawing.paste((255, 0, 0, 255), (0, 0, 320, 240))
        drawing.save(inputs / f"{name}.png")
    (tmp_path / "here" / "batch.json").write_bytes(example.read_bytes())
    program = Program(tmp_path, IMAGED_BACKEND="openai")
    status, document = done(tmp_path, program.environment, "--estimate-only")
    assert status == 0 and document["low_micro_usd"] > 0 and not program.places.home.exists()


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if not operation.for_people])
def test_08_arguments_may_be_omitted(name: str, scene: Scene) -> None:
    tool = next(t for t in scene.client.answer(scene.client.request("tools/list"))["result"]["tools"] if t["name"] == name)
    for params in ({"name": name}, {"name": name, "arguments": {}}):
        answer = scene.client.answer(scene.client.request("tools/call", params))["result"]
        if tool["inputSchema"].get("required"):
            assert f"{name} needs the argument " in refused(answer)["message"]
        else:
            assert not answer["isError"], said(answer)


@pytest.mark.parametrize("tool", DRAWING[1:])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_09_an_edit_that_nobody_touched_is_unchanged(tool: str, kind: str, scene: Scene) -> None:
    answer = scene.client.call(tool, prompt="more snow", reference_image_path="source.png", output_format=kind, **SMALL)
    (path,) = files(drawn(answer))
    assert scene.client.call("get_metadata_from_image", image_path=str(path))["structuredContent"]["integrity"] == "unchanged"
    path.write_bytes(path.read_bytes().replace(b"more snow", b"less snow"))
    assert scene.client.call("get_metadata_from_image", image_path=str(path))["structuredContent"]["integrity"] == "changed"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_10_full_metadata_in_any_language_is_read_back_whole(kind: str, scene: Scene) -> None:
    with scene.session(OPENAI_IMAGE_METADATA_LEVEL="full") as other:
        report = drawn(other.call("generate_image", prompt=JAPANESE, output_format=kind, **SMALL))
        found = drawn(other.call("get_metadata_from_image", image_path=report["images"][0]["path"]))
    assert found["metadata"]["MCP-Prompt"] == JAPANESE
    assert found["metadata"]["MCP-History-UUID"] == report["job_id"] == found["history"]["job_id"]
    assert json.loads(found["metadata"]["MCP-Parameters"])["output_format"] == kind


def test_11_a_tilde_is_the_home_directory_in_every_setting(scene: Scene, tmp_path: Path) -> None:
    user = Path(scene.program.environment["HOME"])
    (user / "old").mkdir(parents=True)
    old_database(user / "old" / "history.db", [row(1)])
    settings = {"HISTORY_DB_PATH": "~/old/history.db", "OPENAI_IMAGE_OUTPUT_DIR": "~/drawn", "OPENAI_IMAGE_INPUT_DIR": "~/given"}
    (user / "given").mkdir()
    (user / "given" / "mine.png").write_bytes(picture("png", 64, 64))
    with scene.session(tmp_path, **settings) as other:
        assert str(user / "old" / "history.db") in said(other.call("list_history"))
        report = drawn(other.call("edit_image", prompt="x", reference_image_path="mine.png", output_path="fox.png", **SMALL))
        assert files(report) == [user / "drawn" / "fox.png"]
        listed = drawn(other.call("list_generated_images", directory="~/given"))
        assert [image["path"] for image in listed["images"]] == [str(user / "given" / "mine.png")]
    assert not list(tmp_path.iterdir()) and not [path for path in scene.home.rglob("*") if "~" in path.name]


@pytest.mark.parametrize(
    ("status", "api_code", "message", "code"),
    [
        (401, "invalid_api_key", "Incorrect API key provided", "invalid_key"),
        (403, None, "Your organization must be verified to use the model", "org_unverified"),
        (403, "unsupported_country_region_territory", "Country not supported", "not_permitted"),
        (400, "moderation_blocked", "Rejected by the safety system", "moderation_blocked"),
        (400, "unknown_parameter", "Unknown parameter", "bad_request"),
        (404, "model_not_found", "The model does not exist", "model_unavailable"),
        (429, "insufficient_quota", "You exceeded your current quota", "quota_exhausted"),
    ],
)
def test_12_every_no_of_the_api_has_a_code_a_next_step_and_says_that_nothing_was_billed(
    status: int, api_code: str | None, message: str, code: str, scene: Scene
) -> None:
    scene.standin.will(says(status, api_code, message))
    with scene.sending(1):
        answer = scene.client.call("generate_image", prompt="a fox", **SMALL)
    report = answer["structuredContent"]
    assert answer["isError"] and (report["error_code"], report["billed"], report["cost"]["micro_usd"]) == (code, "no", 0)
    assert report["next_step"] and said(answer).startswith(f"{message}. {report['next_step']}\n")
    assert "internal" not in said(answer).lower() and "MCP error" not in said(answer)


# Loses data or money


def test_13_ten_parallel_pictures_of_one_name_from_two_bridges_are_ten_files(scene: Scene) -> None:
    together = Together(10)
    scene.standin.will(*[together] * 10)
    asked = {"output_path": "ten/same.png", "quality": "low", "size": "1024x640"}
    with scene.session(IMAGED_MAX_CONCURRENT="10") as one, scene.session(IMAGED_MAX_CONCURRENT="10") as two, scene.sending(10):
        for n, asker in enumerate((one, two) * 5):
            asker.request("tools/call", {"name": "generate_image", "arguments": {**asked, "prompt": f"ten foxes, number {n}"}})
        reports = [asker.answer_any()["structuredContent"] for asker in (one, two) * 5]
    paths = {path for report in reports for path in files(report)}
    assert len(paths) == 10 and paths == set((scene.program.pictures / "ten").iterdir()) and scene.history("ten foxes") == 10
    for report in reports:
        assert report["job_id"].encode() in files(report)[0].read_bytes()


def test_14_several_pictures_leave_what_is_there_alone(scene: Scene) -> None:
    folder = scene.program.pictures / "kept"
    folder.mkdir(parents=True)
    precious = {folder / f"keep{end}": f"MY PRECIOUS FILE {end}" for end in (".png", "_1.png", "_3.png")}
    for path, text in precious.items():
        path.write_text(text)
    paths = [path for _ in range(2) for path in files(scene.draw(output_path="kept/keep.png", sample_count=3))]
    assert len(set(paths)) == 6 and all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert {path: path.read_text() for path in precious} == precious
    assert set(folder.iterdir()) == {*paths, *precious}


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul\0byte.png", "sub/", "..", "../x.png", "a/../../x.png", "/x.png"])
@pytest.mark.parametrize("count", [1, 2])
def test_15_an_impossible_name_is_refused_before_anything_is_paid(name: str, count: int, scene: Scene) -> None:
    with scene.sending(0):
        for tool, more in (("generate_image", {}), ("start_generation_job", {"tool_name": "generate_image"})):
            said_no = refused(scene.client.call(tool, prompt="x", output_path=name, sample_count=count, **more))
            assert said_no["argument"] == "output_path"


def test_15_a_folder_with_a_dot_and_a_name_without_extension_are_where_they_were_asked_for(scene: Scene) -> None:
    report = scene.draw(output_path="v1.2/pic", sample_count=2)
    assert files(report) == [scene.program.pictures / "v1.2" / f"pic_{n}.png" for n in (1, 2)]
    assert all(path.is_file() for path in files(report))


def test_15_a_place_that_becomes_impossible_too_late_costs_no_picture(scene: Scene) -> None:
    def spoil(request: Request) -> None:
        scene.program.pictures.mkdir(exist_ok=True)
        (scene.program.pictures / "late").write_text("a file where the folder should be")
        draw(request)

    scene.standin.will(spoil)
    answer = scene.client.call("generate_image", prompt="x", output_path="late/pic.png", **SMALL)
    report = answer["structuredContent"]
    assert (report["state"], report["error_code"], report["billed"]) == ("failed", "not_saved", "yes")
    (kept,) = (word for word in said(answer).split() if str(scene.program.places.store) in word)
    assert Path(kept.rstrip(".,;:")).read_bytes().startswith(b"\x89PNG")
    assert scene.job(report["job_id"])["cost"]["micro_usd"] > 0


def test_16_what_is_cancelled_stays_cancelled_though_the_answer_comes_later(scene: Scene, gate: Gate) -> None:
    answered = threading.Event()

    def too_late(request: Request) -> None:
        try:
            gate(request)
        finally:
            answered.set()

    scene.standin.will(too_late)
    job_id = scene.start(prompt="never mind", output_path="never.png")
    assert gate.reached.wait(SECONDS_MAX)
    cancelled = drawn(scene.client.call("cancel_job", job_id=job_id))
    assert (cancelled["state"], cancelled["billed"]) == ("cancelled", "unknown")
    gate.opened.set()
    assert answered.wait(SECONDS_MAX)
    scene.draw("one that comes after it")
    assert scene.job(job_id)["state"] == "cancelled" and scene.history("never mind") == 0
    assert not (scene.program.pictures / "never.png").exists()
    assert scene.job(job_id)["billed"] == "unknown"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, "interrupted"), (signal.SIGTERM, "completed")])
def test_17_no_job_runs_for_ever_after_the_daemon_has_ended(number: int, expected: str, gate: Gate, tmp_path: Path) -> None:
    with StandIn(gate) as standin:
        with running(tmp_path, **api(standin.url)) as program:
            asked = {"tool_name": "generate_image", "prompt": "a fox", **SMALL}
            job_id = program.ask("start_generation_job", **asked)["result"]["job_id"]
            assert gate.reached.wait(SECONDS_MAX)
            os.kill(program.pid, number)
            if number == signal.SIGKILL:
                program.kill()  # waits for its end: what the stand-in says next reaches nobody
            gate.opened.set()
            program.wait_for_end()
        with running(tmp_path, **api(standin.url)) as program:
            report = program.ask("check_job_status", job_id=job_id)["result"]
            assert (report["state"], report["billed"]) == (expected, "unknown" if expected == "interrupted" else "yes")
            assert ("may have charged" in report["message"]) == (expected == "interrupted")
            for state in ("pending", "running"):
                assert program.ask("list_jobs", status=state)["result"]["total"] == 0
            program.ask("generate_image", prompt="another", **SMALL)
            assert len(standin.requests) == 2


def test_18_a_call_that_is_cancelled_is_billed_once_and_its_picture_is_in_the_history(scene: Scene, gate: Gate) -> None:
    scene.standin.will(gate)
    with scene.sending(1):
        asked = scene.client.request(
            "tools/call", {"name": "generate_image", "arguments": {"prompt": "left behind", "output_path": "left.png", **SMALL}}
        )
        assert gate.reached.wait(SECONDS_MAX)
        scene.client.notify("notifications/cancelled", {"requestId": asked, "reason": "bored"})
        scene.client.answer(scene.client.request("ping"))
        gate.opened.set()
        wait_until(lambda: scene.history("left behind") == 1, "the picture in the history")
    assert (scene.program.pictures / "left.png").read_bytes().startswith(b"\x89PNG")


def damage(index: Path, how: str) -> None:
    for path in index.parent.glob(f"{index.name}*"):
        if how == "overwritten":
            path.write_bytes(b"this is no database " * 5000)
        else:
            path.chmod(0)


def test_19_a_damaged_index_costs_no_picture_and_the_history_comes_back(tmp_path: Path) -> None:
    expected: list[str] = []
    with StandIn() as standin:
        for how in ("overwritten", "nobody's to read", ""):
            with running(tmp_path, **api(standin.url)) as program:
                found = program.ask("list_history")["result"]["generations"]
                assert [one["job_id"] for one in found] == expected, f"the index was {how} before"
                if how:
                    damage(program.places.index, how)
                    report = program.ask("generate_image", prompt=how, **SMALL)["result"]
                    assert report["state"] == "completed" and files(report)[0].read_bytes().startswith(b"\x89PNG")
                    assert program.ask("check_job_status", job_id=report["job_id"])["result"]["state"] == "completed"
                    expected.insert(0, report["job_id"])
        assert len(standin.requests) == 2


def test_19_and_20_an_index_that_somebody_held_locked_ends_nothing_and_hides_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        with closing(sqlite3.connect(program.places.index)) as other:
            other.execute("BEGIN IMMEDIATE")
            first = program.ask("generate_image", prompt="one", **SMALL)["result"]
            assert first["state"] == "completed" and files(first)[0].is_file() and program.answers()
        second = program.ask("generate_image", prompt="two", **SMALL)["result"]
        found = program.ask("list_history")["result"]["generations"]
        assert [one["job_id"] for one in found] == [second["job_id"], first["job_id"]]


def test_20_a_line_of_more_than_twelve_megabytes_is_a_picture_like_any_other(scene: Scene) -> None:
    inline = base64.b64encode(noise(1800, 1800)).decode()
    assert len(inline) > 12_000_000
    answer = scene.client.call("edit_image", prompt="less noise", reference_image_base64=inline, **SMALL)
    assert files(drawn(answer))[0].is_file()
    ((_, _, data),) = sent(scene.standin.requests[-1])
    assert pixels(data) == pixels(noise(1800, 1800)) and scene.program.answers()


def test_21_a_connection_that_drops_is_not_asked_again(scene: Scene) -> None:
    scene.standin.will(reset)
    with scene.sending(1):
        report = scene.client.call("generate_image", prompt="a fox", **SMALL)["structuredContent"]
        assert (report["state"], report["error_code"], report["billed"]) == ("interrupted", "outcome_unknown", "unknown")
        assert "may have charged" in report["message"] and report["attempts"] == 1


@pytest.mark.parametrize(("seconds", "state"), [(600, "running"), (7200, "failed")])
def test_21_a_long_retry_after_is_told_and_a_longer_one_not_waited_for(tmp_path: Path, seconds: int, state: str) -> None:
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        standin.will(says(429, "rate_limit_exceeded", retry_after=str(seconds)))
        job_id = program.ask("start_generation_job", tool_name="generate_image", prompt="a fox", **SMALL)["result"]["job_id"]
        report = wait_until(
            lambda: (told := program.ask("get_job_result", job_id=job_id)["result"])["error_code"] and told, "the 429"
        )
        assert (report["state"], report["error_code"], report["attempts"]) == (state, "rate_limited", 1)
        [pause] = program.ask("get_status")["result"]["waiting_keys"]
        wait = datetime.fromisoformat(pause["until"]) - datetime.fromisoformat(report["updated_at"])
        assert wait.total_seconds() == pytest.approx(seconds, abs=2)
        if state == "running":
            assert pause["until"][:18] in report["message"] and report["retry_at"]
            assert program.ask("cancel_job", job_id=job_id)["result"]["billed"] == "no"
        assert len(standin.requests) == 1


def test_22_a_kill_in_the_middle_of_a_file_leaves_no_half_file(tmp_path: Path) -> None:
    with StandIn() as standin:
        program = Program(tmp_path, [sys.executable, "-m", "tests.die_at", "while the file is written"], **api(standin.url))
        program.environment["PYTHONPATH"] = str(ROOT)
        program.start().ready()
        with pytest.raises(NotRunning):
            program.ask("generate_image", prompt="a fox", output_path="fox.png", **SMALL)
        assert program.wait_for_end() == -signal.SIGKILL
        (half,) = program.pictures.iterdir()
        assert half.name.startswith(".") and half.suffix == ".tmp"
        with running(tmp_path, **api(standin.url)) as program:
            wait_until(lambda: program.ask("list_history")["result"]["total"] == 1, "the picture")
            (saved,) = program.pictures.iterdir()
            assert saved.name == "fox.png"
            found = program.ask("get_metadata_from_image", image_path="fox.png")["result"]
            assert found["integrity"] == "unchanged" and len(standin.requests) == 1


def test_23_ten_pictures_cost_what_their_tokens_cost(scene: Scene) -> None:
    reports = [scene.draw(sample_count=count) for count in (1, 10)]
    (price,) = (m for m in json.loads((ROOT / "tools/prices.json").read_bytes())["models"] if m["name"] == reports[0]["model"])
    for report in reports:
        usage = report["usage"]
        into = usage["input_text_tokens"] * Fraction(price["text_in"]) + usage["input_image_tokens"] * Fraction(price["image_in"])
        exact = into + usage["output_image_tokens"] * Fraction(price["image_out"])
        assert abs(report["cost"]["micro_usd"] - exact) <= Fraction(1, 2) and report["cost"]["basis"] == "usage"
        assert abs(sum(line["micro_usd"] for line in report["cost"]["breakdown"]) - exact) <= 2
    image = [next(line["micro_usd"] for line in r["cost"]["breakdown"] if line["kind"] == "image out") for r in reports]
    assert image[1] == 10 * image[0]


def test_23_what_auto_became_is_told_recorded_and_written_into_the_picture(scene: Scene) -> None:
    def choose(request: Request) -> None:
        request.body = json.dumps({**request.json, "size": "1536x1024", "quality": "high"}).encode()
        draw(request)

    scene.standin.will(choose)
    report = drawn(scene.client.call("generate_image", prompt="a wide fox"))
    recorded = drawn(scene.client.call("get_history_by_uuid", uuid=report["job_id"]))
    metadata = drawn(scene.client.call("get_metadata_from_image", image_path=report["images"][0]["path"]))["metadata"]
    assert (metadata["MCP-Size"], metadata["MCP-Quality"]) == ("1536x1024", "high")
    for told in (report, recorded):
        assert (told["size"], told["quality"], told["images"][0]["width"]) == ("1536x1024", "high", 1536)


def image_data(data: bytes, kind: str) -> bytes:
    """Only what the pixels are made of."""
    match kind:
        case "jpeg":
            return data[data.index(b"\xff\xda") :]
        case "webp":
            (chunk,) = (data[c.start : c.end] for c in webp_chunks(data) if c.kind in (b"VP8 ", b"VP8L"))
            return chunk
        case _:
            return data[data.index(b"IDAT") : data.rindex(b"IEND")]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_24_metadata_costs_not_a_bit_of_the_picture(kind: str, scene: Scene) -> None:
    report = scene.draw(prompt=JAPANESE, output_format=kind)
    (received,), saved = originals(scene, report), files(report)[0].read_bytes()
    assert saved != received and image_data(received, kind) in saved and pixels(saved) == pixels(received)
    with scene.session(OPENAI_IMAGE_EMBED_METADATA="false") as other:
        report = drawn(other.call("generate_image", prompt="a fox", output_format=kind, **SMALL))
    assert [path.read_bytes() for path in files(report)] == originals(scene, report)


@pytest.mark.parametrize(
    ("asked", "kind", "name"),
    [
        ({}, "jpeg", "generated_image.jpg"),
        ({}, "webp", "generated_image.webp"),
        ({"output_path": "flat.jpg"}, "png", "flat.png"),
        ({"output_path": "flat.png"}, "jpeg", "flat.jpg"),
    ],
)
def test_25_extension_and_bytes_agree(asked: dict[str, str], kind: str, name: str, scene: Scene, tmp_path: Path) -> None:
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(tmp_path)) as other:
        (path,) = files(drawn(other.call("generate_image", prompt="a fox", output_format=kind, **SMALL, **asked)))
        found = drawn(other.call("get_metadata_from_image", image_path=name))
    with Image.open(path) as saved:
        assert (path, saved.format) == (tmp_path / name, kind.upper())
    assert found["format"] == kind and found["metadata"]["MCP-Format"] == kind


@pytest.mark.parametrize(("asked", "came"), [(1, 2), (2, 0)])
def test_26_what_came_is_told_and_kept_not_what_was_asked(asked: int, came: int, scene: Scene, tmp_path: Path) -> None:
    sent_back = [noise(1024, 640)] * came  # nothing is wrong with them but their number
    scene.standin.will(changed(data=[{"b64_json": base64.b64encode(data).decode()} for data in sent_back]))
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(tmp_path)) as other, scene.sending(1):
        answer = other.call("generate_image", prompt="a fox", sample_count=asked, **SMALL)
    report = answer["structuredContent"]
    assert answer["isError"] and (report["state"], report["error_code"], report["billed"]) == ("failed", "bad_reply", "yes")
    assert f"{came} pictures came where {asked} were ordered" in said(answer) and not list(tmp_path.iterdir())
    facts = [event for commit in scene.program.log() for event in commit.events]
    (kept,) = (fact.kept for fact in facts if isinstance(fact, AttemptFailed) and fact.job == report["job_id"])
    body = kept and Store.open(scene.program.places.store).get(Sha256(kept.sha256))
    assert body and all(base64.b64encode(data) in body for data in sent_back) and report["cost"]["micro_usd"] > 0


def test_26_two_of_three_are_told_as_two(scene: Scene, tmp_path: Path) -> None:
    sent_back = [{"b64_json": base64.b64encode(noise(1024, 640)).decode()}] * 2
    scene.standin.will(changed(data=sent_back))
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(tmp_path)) as other, scene.sending(1):
        answer = other.call("generate_image", prompt="a fox", sample_count=3, **SMALL)
    report = drawn(answer)
    assert report["image_count"] == len(report["images"]) == len(list(tmp_path.iterdir())) == 2
    assert "2 pictures were made; 3 were ordered" in said(answer)


# Sandbox


def test_27_nothing_is_written_outside_a_base_with_a_dot_in_its_name(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "my.images" / "out"
    out.mkdir(parents=True)
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(out)) as other:
        with scene.sending(0):
            for name in ("", ".", "./", str(out), f"{out}/", f"{out}/.", str(out.parent / "x.png"), f"{out}_1.png"):
                for count in (1, 2):
                    refused(other.call("generate_image", prompt="x", output_path=name, sample_count=count))
        for name in ("pic", str(out / "pic")):
            report = drawn(other.call("generate_image", prompt="x", output_path=name, sample_count=2, **SMALL))
            assert all(path.parent == out for path in files(report))
    assert len(list(out.iterdir())) == 4
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == {out, out.parent}


def test_28_links_are_not_followed_for_writing(scene: Scene, tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside, inside / "swapped"):
        folder.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "dangling.png").symlink_to(outside / "created.png")

    def swap(request: Request) -> None:
        (inside / "swapped").rmdir()
        (inside / "swapped").symlink_to(outside)
        draw(request)

    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(inside)) as other:
        with scene.sending(0):
            refused(other.call("generate_image", prompt="x", output_path="link/esc.png"))
        report = drawn(other.call("generate_image", prompt="x", output_path="dangling.png", **SMALL))
        assert files(report) == [inside / "dangling_1.png"] and (inside / "dangling.png").is_symlink()
        scene.standin.will(swap)
        report = other.call("generate_image", prompt="x", output_path="swapped/x.png", **SMALL)["structuredContent"]
        assert (report["error_code"], report["billed"]) == ("not_saved", "yes")
    assert not list(outside.iterdir())


INPUTS = ("reference_image_path", "mask_image_path", "markup_image_path", "image_path")


def reading(other: Stdio, argument: str, path: str) -> dict[str, str]:
    """The refusal of reading `path` as this argument."""
    if argument == "image_path":
        return refused(other.call("get_metadata_from_image", image_path=path))
    arguments = {"reference_image_path": "source.png", argument: path}
    no = refused(other.call("edit_image", prompt="x", **arguments))
    if argument == "reference_image_path":
        refused(other.call("transform_image", prompt="x", reference_images=["source.png", path]))
    return no


@pytest.mark.parametrize("argument", INPUTS)
def test_28_links_are_not_followed_for_reading(argument: str, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(picture("png", 64, 64))
    for link, target in ((f"{argument}.png", tmp_path / "real.png"), (argument, tmp_path)):
        (scene.home / "in" / link).symlink_to(target)
    with scene.sending(0):
        for path in (f"{argument}.png", f"{argument}/real.png", str(scene.home / "in" / argument / "real.png")):
            assert reading(scene.client, argument, path)["code"] == "path_link"


@pytest.mark.parametrize("argument", INPUTS)
def test_29_what_lies_in_temporary_folders_stays_there(argument: str, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture("png", 64, 64))
    with tempfile.NamedTemporaryFile(suffix=".png") as file, scene.sending(0):
        file.write(picture("png", 64, 64))
        file.flush()
        for path in (file.name, str(tmp_path / "x.png"), "/tmpfoo/x.png", "/TMP/x.png", "/var/tmp/x.png", "/tmp/../etc/hostname"):
            assert reading(scene.client, argument, path)["code"] in ("path_outside", "path_dotdot")


@pytest.mark.parametrize("argument", INPUTS)
def test_30_what_is_no_picture_is_not_uploaded(argument: str, scene: Scene) -> None:
    secret = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" * 100
    for name in ("secret.txt", "secret.png"):
        with scene.sending(0):
            assert reading(scene.client, argument, scene.put(name, secret))["argument"]
    inline = argument.replace("_path", "_base64")
    if inline != "image_base64":
        asked = {"reference_image_path": "source.png", inline: base64.b64encode(secret).decode()}
        asked = {inline: asked[inline]} if inline.startswith("reference") else asked
        with scene.sending(0):
            assert refused(scene.client.call("edit_image", prompt="x", **asked))["argument"] == inline


def test_31_only_the_users_own_folders_are_listed(scene: Scene) -> None:
    for directory in ("/", "/etc", "/tmp", "..", "~", str(scene.home), str(scene.program.places.home), "/proc/self/root"):
        assert refused(scene.client.call("list_generated_images", directory=directory))["argument"] == "directory"
    assert drawn(scene.client.call("list_generated_images", directory=str(scene.home / "in")))["total"] > 0


def test_32_an_env_file_in_the_working_directory_is_not_read(scene: Scene, tmp_path: Path) -> None:
    with StandIn() as thief:
        wishes = {"OPENAI_BASE_URL": thief.url, "OPENAI_IMAGE_ALLOW_ANY_PATH": "true", "IMAGED_HOME": str(tmp_path / "theirs")}
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in wishes.items()))
        with scene.session(tmp_path) as other, scene.sending(1):
            drawn(other.call("generate_image", prompt="a fox", **SMALL))
            refused(other.call("generate_image", prompt="a fox", output_path=str(tmp_path / "x.png")))
        assert not thief.requests and [path.name for path in tmp_path.iterdir()] == [".env"]


def test_33_nothing_is_anybody_elses_and_no_key_and_no_inline_picture_is_kept_as_text(scene: Scene) -> None:
    private = scene.home / "private"
    inline = base64.b64encode(picture("png", 96, 96)).decode()
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(private / "deep"), OPENAI_IMAGE_EMBED_METADATA="sidecar", DEBUG="1") as other:
        job = {"tool_name": "edit_image", "prompt": "x", "output_path": "a/b.png", "reference_images": [inline]}
        job_id = drawn(other.call("start_generation_job", **job))["job_id"]
        wait_until(lambda: scene.job(job_id)["state"] == "completed", "the picture")
        scene.standin.will(says(401, "invalid_api_key", f"Incorrect API key provided: {KEY}"))
        assert KEY not in json.dumps(other.call("generate_image", prompt="x", **SMALL))
    ours = [path for root in (private, scene.program.places.home) for path in (root, *root.rglob("*"))]
    assert {"b.png", "b.png.xmp", "index.sqlite", "events", "mcp.sock", "daemon.log"} <= {path.name for path in ours}
    for path in ours:
        mode = path.lstat().st_mode
        allowed = (0o600,) if stat.S_ISREG(mode) else (0o700,) if stat.S_ISDIR(mode) else (0o600, 0o700)
        assert stat.S_IMODE(mode) in allowed, path
    for path in (path for path in scene.home.rglob("*") if path.is_file()):
        kept = path.read_bytes()
        assert inline[:200].encode() not in kept and KEY[:10].encode() not in kept, path


# Protocol and usability


def test_34_progress_structure_annotations_and_resources_are_there(scene: Scene, gate: Gate) -> None:
    scene.standin.will(gate)
    call = {"name": "generate_image", "arguments": {"prompt": "a fox", **SMALL}, "_meta": {"progressToken": "t"}}
    asked = scene.client.request("tools/call", call)
    told = scene.client.receive()
    assert told["method"] == "notifications/progress" and told["params"]["progressToken"] == "t" and told["params"]["message"]
    gate.opened.set()
    report = drawn(scene.client.answer(asked)["result"])
    tools = {tool["name"]: tool for tool in scene.client.answer(scene.client.request("tools/list"))["result"]["tools"]}
    promised = tools["generate_image"]["outputSchema"]
    assert set(promised["anyOf"][0]["required"]) <= set(report) <= set(promised["properties"])
    for tool in tools.values():
        assert tool["title"] and tool["outputSchema"]["type"] == "object"
        assert tool["annotations"]["readOnlyHint"] is OPERATIONS[tool["name"]].read_only
    uri = report["images"][0]["resource"]
    (read,) = scene.client.answer(scene.client.request("resources/read", {"uri": uri}))["result"]["contents"]
    assert [base64.b64decode(read["blob"])] == originals(scene, report)


def test_35_fifty_jobs_are_drawn_four_at_a_time(scene: Scene) -> None:
    together = Together(4)
    scene.standin.will(*[together] * 48)
    # Said, because another session of this account may have said something else.
    with scene.session(IMAGED_MAX_CONCURRENT="4") as other, scene.sending(50):
        for number in range(50):
            asked = {"tool_name": "generate_image", "prompt": f"herd {number}", "output_path": "herd/fox.png", **SMALL}
            other.request("tools/call", {"name": "start_generation_job", "arguments": asked})
        started = [drawn(other.answer_any())["job_id"] for _ in range(50)]
        wait_until(lambda: scene.history("herd ") == 50, "fifty pictures")
    assert together.most == 4 and len(set(started)) == 50
    assert len(list((scene.program.pictures / "herd").iterdir())) == 50


def test_36_a_ping_is_answered_while_ten_large_pictures_are_saved(tmp_path: Path) -> None:
    ten = [{"b64_json": base64.b64encode(noise(1024, 640)).decode()}] * 10
    with StandIn(changed(data=ten)) as standin:
        program = Program(tmp_path, [sys.executable, "-m", "tests.not_like_that_scene", str(tmp_path)], **api(standin.url))
        program.environment["PYTHONPATH"] = str(ROOT)
        program.start()
        try:
            with Stdio(program.ready().environment) as other:
                other.initialize()
                arguments = {"prompt": "noise", "sample_count": 10, **SMALL}
                asked = other.request("tools/call", {"name": "generate_image", "arguments": arguments})
                for number in range(1, 12):  # once into the store, for they are alike, and ten times as a file
                    wait_until(held(tmp_path, number).exists, f"write {number}")
                    other.answer(other.request("ping"))
                    assert not gave_up(tmp_path).exists(), "the ping waited for the disk"
                    let_go(tmp_path, number).touch()
                assert len(files(drawn(other.answer(asked)["result"]))) == 10
        finally:
            program.kill()


def test_37_totals_follow_the_filter_and_wildcards_are_letters(scene: Scene) -> None:
    for prompt in ("wool 100% pure", "wool 100 percent pure", "wool snake_case", "wool snakeXcase"):
        scene.draw(prompt)
    for query, total in (("wool", 4), ("100%", 1), ("wool%pure", 0), ("snake_case", 1), ("%", 1), ("WOOL SNAKE", 2)):
        page = drawn(scene.client.call("list_history", query=query, limit=1))
        assert (page["total"], len(page["generations"])) == (total, min(total, 1)), query
    assert "Generations 1-1 of 4; use offset=1" in said(scene.client.call("list_history", query="wool", limit=1))
    for tool in ("list_history", "list_jobs", "list_generated_images"):
        for limit in (1.5, 0, 101):
            sentence = refused(scene.client.call(tool, limit=limit))["message"]
            assert sentence == f"limit is {limit}; allowed is a whole number from 1 to 100."


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every default name is taken and more besides, and where not everything is a picture."""
    place = tmp_path_factory.mktemp("crowded")
    for name in ("generated_image.png", *(f"generated_image_{n}.png" for n in range(1, NUMBERED_MAX + 1))):
        (place / name).touch()
    (place / "dangling.png").symlink_to(place / "nowhere")
    (place / "folder.png").mkdir()
    return place


def test_38_a_crowded_folder_is_listed_page_by_page(crowded: Path, scene: Scene, tmp_path: Path) -> None:
    with scene.session(tmp_path, OPENAI_IMAGE_OUTPUT_DIR=str(crowded)) as other:
        first, second = (other.call("list_generated_images", offset=offset, limit=50) for offset in (0, 50))
    assert drawn(first)["directory"] == str(crowded) and drawn(first)["total"] >= NUMBERED_MAX + 1
    names = [Path(image["path"]).name for page in (first, second) for image in drawn(page)["images"]]
    assert len(set(names)) == 100 and not {"dangling.png", "folder.png"} & set(names)
    assert len(said(first)) < 20_000 and "use offset=50" in said(first)


def test_39_when_every_number_is_taken_there_still_is_a_name(crowded: Path, scene: Scene) -> None:
    before = set(crowded.iterdir())
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=str(crowded)) as other:
        paths = files(drawn(other.call("generate_image", prompt="a fox", **SMALL)))
    assert set(crowded.iterdir()) - before == set(paths) and paths[0].read_bytes().startswith(b"\x89PNG")
    assert all(path.lstat().st_size == 0 for path in before if path.is_file())


def test_40_a_failed_job_has_no_percentage(scene: Scene) -> None:
    scene.standin.will(says(400, "unknown_parameter"))
    job_id = scene.start()
    wait_until(lambda: scene.job(job_id)["state"] == "failed", "the failure")
    for tool in ("check_job_status", "get_job_result"):
        answer = scene.client.call(tool, job_id=job_id)
        assert "%" not in said(answer) and "progress" not in json.dumps(answer).lower()
    assert "%" not in said(scene.client.call("list_jobs", status="failed", limit=1))


def test_40_a_completed_job_tells_when_it_was_completed_and_where_its_file_is(scene: Scene) -> None:
    beside_home = scene.program.environment["HOME"] + "2"
    with scene.session(OPENAI_IMAGE_OUTPUT_DIR=f"{beside_home}/out") as other:
        job_id = drawn(other.call("generate_image", prompt="a fox", **SMALL))["job_id"]
        answer = other.call("get_job_result", job_id=job_id)
    report = drawn(answer)
    (completed,) = (c.at for c in scene.program.log() for e in c.events if isinstance(e, JobCompleted) and e.job == job_id)
    assert report["created_at"] < report["updated_at"] == results.time(completed)
    assert f"{beside_home}/out/generated_image.png" in said(answer) and "~" not in said(answer)


def test_41_a_batch_waits_for_its_pictures_and_for_no_clock(scene: Scene) -> None:
    batch_file(scene.home, "no clock", 6)
    plan = batch_plan.make(Options(path=scene.home / "here" / "batch.json"), scene.program.environment)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    current = Run(plan, retry_unknown=False, clock=Clock(sleep=sleep), watch=lambda tasks: None)
    with client.connected(scene.program.places, plan.settings, start=False) as connection, scene.sending(6):
        current.go_on(connection.ask)
    assert [task.status for task in current.tasks] == ["completed"] * 6


def test_41_an_interrupted_batch_says_so_and_the_same_command_again_goes_on(scene: Scene, gate: Gate) -> None:
    scene.standin.will(gate)
    batch_file(scene.home, "rest", 3, max_concurrent=1)
    with scene.sending(3):
        with Command(scene.home, scene.program.environment) as command:
            assert gate.reached.wait(SECONDS_MAX)
            assert command.stop(signal.SIGINT) == 130
            assert command.out.startswith("3 jobs: 1 running, 2 waiting\n") and "same command again" in command.err
        gate.opened.set()
        for _ in range(2):
            status, document = done(scene.home, scene.program.environment)
            assert (status, document["succeeded"]) == (0, 3)
    assert sorted(path.name for path in scene.program.pictures.glob("rest*")) == [f"rest {n}.png" for n in range(3)]


def test_42_what_was_missing_is_there(scene: Scene) -> None:
    scene.put("second.jpg", picture("jpeg", 64, 48))
    both = ["source.png", "second.jpg"]
    options = {"background": "opaque", "output_format": "webp", "output_compression": 40}
    drawn(scene.client.call("edit_image", prompt="both", reference_images=both, **SMALL, **options))
    request = scene.standin.requests[-1]
    assert [kind for _, kind, _ in sent(request)] == ["image/png", "image/jpeg"]
    assert fields(request).items() >= {name: str(value) for name, value in options.items()}.items()
    failed = drawn(scene.client.call("list_jobs", status="failed"))
    assert all(job["error_code"] and job["error"] for job in failed["jobs"])
    assert scene.program.ask("get_status")["result"]["pid"] == scene.program.pid, "asked through a door that is not stdio"


# Not shown here, or only as a promise:
#
#  20  That the process died was one cause of two: the line that was too long and the locked database are shown.
#  21  How OpenAI itself bills a connection that drops is not known to anybody; that we ask once, is.
#  36  Seconds of blocking are not measured, because a clock fails on a slow machine: a disk that takes a picture only
#      when it is let shows that nobody waits for it. What the processor needs for a picture is not shown.
#  39  Nor is the time that looking for a free name takes; after NUMBERED_MAX tries it ends.
#  41  Nor is the polling floor; a run that may not sleep shows that there is none.
#  42  Budgets and streaming are not there yet, as the README says; a seed is nothing that the API takes.
