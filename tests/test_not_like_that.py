"""What the program that imaged replaces did wrong, defect by defect: none of it may be true of imaged.

The numbers are those of the list of its defects. At the end stands what cannot be a test of its own, and why.
"""

import base64
import io
import json
import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daemon import offline
from daemon.operations import OPERATIONS
from eventlog.disk import Disk
from tests.program import IMAGED, SECONDS_MAX, Program, Stdio, environment, running, wait_until
from tests.standin import Behaviour, Request, StandIn, draw
from tests.test_faults import reset
from tests.tools.pictures_for_tests import picture
from tools.errors import FileFailed
from tools.files import OutputRoot, Store
from tools.models import catalogue

KEY = "sk-test-canary-0123456789"
JAPANESE = "雪の中の狐、🦊"
EXAMPLES = Path(__file__).parent / "examples"


def api(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, **more}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, StandIn]]:
    home = tmp_path_factory.mktemp("not-like-that")
    with StandIn() as standin, running(home, **api(standin.url)) as program:
        yield program, standin


def result(answer: dict[str, Any]) -> dict[str, Any]:
    assert "result" in answer, answer
    found: dict[str, Any] = answer["result"]
    return found


def refusal(answer: dict[str, Any]) -> dict[str, str]:
    assert "refused" in answer, answer
    found: dict[str, str] = answer["refused"]
    return found


def files_of(program: Program) -> set[str]:
    return {path.name for path in program.pictures.rglob("*") if path.is_file()}


class Counting:
    """A behaviour that holds every request until it is opened, and counts how many are there at once."""

    def __init__(self) -> None:
        self.lock, self.opened = threading.Lock(), threading.Event()
        self.inside = self.most = 0

    def __call__(self, request: Request) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.opened.wait(SECONDS_MAX)
        with self.lock:
            self.inside -= 1
        draw(request)


def batch(home: Path, url: str, config: dict[str, Any], *options: str, **more: str) -> subprocess.Popen[bytes]:
    path = home / "batch.json"
    path.write_text(json.dumps(config), "utf-8")
    settings = environment(home, **api(url), **more)
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [*IMAGED, "batch", str(path), "--format", "json", *options],
        env={**settings, "PYTHONPATH": root},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def told(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=SECONDS_MAX)
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def test_01_the_default_model_is_alive_and_a_dead_one_names_its_successor(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    assert result(program.ask("generate_image", prompt="a fox"))["state"] == "completed"
    assert standin.requests[-1].json["model"] == catalogue().default
    for dead in ("gpt-image-1", "dall-e-3"):
        said = refusal(program.ask("generate_image", prompt="a fox", model=dead, size="1024x1024"))
        assert said["code"] == "model_retired" and "gpt-image-2.6-flare" in said["message"]
    newest = result(
        program.ask("generate_image", prompt="a fox", model="gpt-image-2.6-sunburst", size="2048x2048", quality="low")
    )
    assert newest["model"] == "gpt-image-2.6-sunburst"


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_02_a_transparent_background_is_what_the_api_calls_it(kind: str, house: tuple[Program, StandIn]) -> None:
    program, standin = house
    for tool in ("generate_image", "edit_image", "transform_image"):
        source = {} if tool == "generate_image" else {"reference_image_base64": base64.b64encode(picture("png")).decode()}
        answer = program.ask(tool, prompt="x", transparent_background=True, output_format=kind, quality="low", **source)
        assert result(answer)["state"] == "completed"
        sent = standin.requests[-1].body
        assert b"transparent" in sent and b"transparent_background" not in sent and b"background" in sent


def test_03_the_picture_itself_comes_when_it_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        said = client.call("generate_image", prompt="x", quality="low", return_base64=True, output_format="webp")
        (image,) = [part for part in said["content"] if part["type"] == "image"]
        original = said["structuredContent"]["images"][0]["original_sha256"]
        assert base64.b64decode(image["data"]) == Store.open(tmp_path / "imaged" / "store").get(original)


def test_04_every_setting_of_a_batch_file_is_effective(tmp_path: Path) -> None:
    jobs = [{"prompt": f"fox {number}", "quality": "low"} for number in range(5)]
    for name, config, more in (
        ("file", {"max_concurrent": 3, "output_dir": str(tmp_path / "there"), "jobs": jobs}, {}),
        ("environment", {"jobs": jobs, "output_dir": str(tmp_path / "there")}, {"OPENAI_BATCH_MAX_CONCURRENT": "3"}),
    ):
        gate = Counting()
        home = tmp_path / name
        home.mkdir()
        with StandIn(*[gate] * 5) as standin, running(home, **api(standin.url)):
            process = batch(home, standin.url, config, **more)
            wait_until(lambda gate=gate: gate.inside == 3, "three requests at once")
            gate.opened.set()
            assert told(process)["succeeded"] == 5 and gate.most == 3
    assert len(list((tmp_path / "there").iterdir())) == 10


def test_05_a_timeout_of_a_batch_stops_it(tmp_path: Path) -> None:
    gate = Counting()
    with StandIn(*[gate] * 6) as standin, running(tmp_path, **api(standin.url)):
        process = batch(tmp_path, standin.url, {"timeout": 1000, "jobs": [{"prompt": f"fox {n}"} for n in range(6)]})
        said = told(process)
        assert process.returncode == 1 and said["succeeded"] == 0
        asked = len(standin.requests)
        gate.opened.set()
        assert asked == 2 and len(standin.requests) == asked


def test_06_the_usual_errors_are_tried_again_by_a_batch_without_being_told(tmp_path: Path) -> None:
    def slow_down(request: Request) -> None:
        request.error(429, "rate_limit_exceeded", "Rate limit reached", retry_after="100000")

    with StandIn(slow_down) as standin, running(tmp_path, **api(standin.url)):
        process = batch(tmp_path, standin.url, {"jobs": [{"prompt": "fox"}], "retry_policy": {"retry_delay_ms": 100}})
        assert told(process)["succeeded"] == 1 and len(standin.requests) == 2


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.json")))
def test_07_every_example_file_is_accepted(example: str, tmp_path: Path) -> None:
    text = (EXAMPLES / example).read_text("utf-8")
    for name in re.findall(r'"([^"]*inputs/[^"]+)"', text):  # every one of them can be a picture, a mask or a markup
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / name, "PNG")
    (tmp_path / example).write_text(text, "utf-8")
    done = subprocess.run(
        [*IMAGED, "batch", example, "--estimate-only"],
        env={**environment(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_08_arguments_may_be_left_out_where_none_is_needed(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        client.initialize()
        for tool in ("list_history", "list_jobs", "list_generated_images"):
            said = client.answer(client.request("tools/call", {"name": tool}))["result"]
            assert not said.get("isError") and said["structuredContent"]["total"] == 0


def test_09_an_edit_that_nobody_touched_is_found_unchanged(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    inline = base64.b64encode(picture("png")).decode()
    edited = result(program.ask("edit_image", prompt="x", reference_image_base64=inline, quality="low"))
    looked_at = result(program.ask("get_metadata_from_image", image_path=edited["images"][0]["path"]))
    assert looked_at["integrity"] == "unchanged" and looked_at["history"]["job_id"] == edited["job_id"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_10_full_metadata_is_read_back_in_every_format_and_language(kind: str, tmp_path: Path) -> None:
    with running(tmp_path, OPENAI_IMAGE_METADATA_LEVEL="full") as program:
        drawn = result(program.ask("generate_image", prompt=JAPANESE, output_format=kind, quality="low"))
        read = result(program.ask("get_metadata_from_image", image_path=drawn["images"][0]["path"]))["metadata"]
        assert (read["MCP-Prompt"], read["MCP-History-UUID"]) == (JAPANESE, drawn["job_id"])
        assert json.loads(read["MCP-Parameters"])["quality"] == "low"


def test_11_no_directory_is_ever_called_tilde(tmp_path: Path) -> None:
    settings = {"HISTORY_DB_PATH": "~/history.db", "OPENAI_IMAGE_OUTPUT_DIR": "~/pictures"}
    with running(tmp_path, **settings) as program:
        drawn = result(program.ask("generate_image", prompt="x", quality="low", output_path="~/pictures/a.png"))
        assert drawn["images"][0]["path"] == str(tmp_path / "user" / "pictures" / "a.png")
        result(program.ask("list_history"))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("~")]


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (401, "invalid_api_key", "invalid_key"),
        (403, None, "org_unverified"),
        (400, "moderation_blocked", "moderation_blocked"),
        (429, "insufficient_quota", "quota_exhausted"),
        (404, "model_not_found", "model_unavailable"),
        (400, "invalid_value", "bad_request"),
    ],
)
def test_12_every_answer_of_the_api_has_a_code_a_next_step_and_a_word_on_billing(
    status: int, code: str | None, ours: str, tmp_path: Path
) -> None:
    says: Behaviour = lambda request: request.error(status, code, "Your organization must be verified to use it")  # noqa: E731
    with StandIn(says) as standin, running(tmp_path, **api(standin.url)) as program:
        said = result(program.ask("generate_image", prompt="x"))
        assert (said["state"], said["error_code"], said["billed"]) == ("failed", ours, "no")
        assert said["next_step"] and said["next_step"] in said["message"] and len(standin.requests) == 1


def test_13_ten_pictures_of_one_name_are_ten_files_also_from_two_clients(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as one, Stdio(environment(tmp_path)) as other:
        asked = []
        for client in (one, other):
            client.initialize()
            asked += [
                (client, client.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "x", "quality": "low"}}))
                for _ in range(5)
            ]
        paths = {client.answer_any()["structuredContent"]["images"][0]["path"] for client, _ in asked}
        assert len(paths) == 10 and all(Path(path).is_file() for path in paths)


def test_14_several_pictures_overwrite_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        program.pictures.mkdir()
        precious = program.pictures / "keep_1.png"
        precious.write_bytes(b"MY PRECIOUS FILE")
        for _ in range(2):
            result(program.ask("generate_image", prompt="x", output_path="keep.png", sample_count=3, quality="low"))
        assert precious.read_bytes() == b"MY PRECIOUS FILE" and len(files_of(program)) == 7


def test_15_what_cannot_be_a_file_is_refused_before_anything_is_paid(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    asked = len(standin.requests)
    for name in ("x" * 300 + ".png", "a\0b.png", "sub/", "a/../b.png", "CON.png", "a\nb.png"):
        said = refusal(program.ask("generate_image", prompt="x", output_path=name, quality="low"))
        assert said["argument"] == "output_path"
    assert len(standin.requests) == asked
    dotted = result(program.ask("generate_image", prompt="x", output_path="v1.2/pic", sample_count=2, quality="low"))
    assert [Path(image["path"]).name for image in dotted["images"]] == ["pic_1.png", "pic_2.png"]
    assert {Path(image["path"]).parent.name for image in dotted["images"]} == {"v1.2"}


def test_16_what_was_cancelled_never_completes(tmp_path: Path) -> None:
    gate = Counting()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url)) as program:
        job = result(program.ask("start_generation_job", tool_name="generate_image", prompt="x"))["job_id"]
        wait_until(lambda: gate.inside, "the request")
        assert result(program.ask("cancel_job", job_id=job))["state"] == "cancelled"
        gate.opened.set()
        result(program.ask("generate_image", prompt="another"))
        after = result(program.ask("check_job_status", job_id=job))
        assert (after["state"], after["billed"], after["images"]) == ("cancelled", "unknown", [])
        assert "may still be billed" in after["message"]


def test_17_no_job_runs_for_ever_after_a_kill(tmp_path: Path) -> None:
    gate = Counting()
    with StandIn(gate) as standin:
        with running(tmp_path, **api(standin.url)) as program:
            job = result(program.ask("start_generation_job", tool_name="generate_image", prompt="x"))["job_id"]
            wait_until(lambda: gate.inside, "the request")
            program.kill()
        gate.opened.set()
        with running(tmp_path, **api(standin.url)) as program:
            after = result(program.ask("check_job_status", job_id=job))
            assert (after["state"], after["billed"]) == ("interrupted", "unknown") and len(standin.requests) == 1


def test_18_a_call_that_its_client_gives_up_is_paid_once_and_lands_in_history(tmp_path: Path) -> None:
    gate = Counting()
    with StandIn(gate) as standin, running(tmp_path, **api(standin.url)) as program:
        with Stdio(environment(tmp_path, **api(standin.url))) as client:
            client.initialize()
            asked = client.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "given up"}})
            wait_until(lambda: gate.inside, "the request")
            client.notify("notifications/cancelled", {"requestId": asked})
            assert client.answer(client.request("tools/list"))["result"]["tools"]
            gate.opened.set()
            wait_until(lambda: result(program.ask("list_history", query="given up"))["total"] == 1, "the picture")
        assert len(standin.requests) == 1


def test_19_a_damaged_index_costs_no_picture_and_no_history(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        result(program.ask("generate_image", prompt="before", quality="low"))
        program.end()
        for name in program.places.home.glob("index.sqlite*"):
            name.write_bytes(b"file is not a database" * 100)
        program.start().ready()
        drawn = result(program.ask("generate_image", prompt="after", quality="low"))
        assert drawn["state"] == "completed" and result(program.ask("list_history"))["total"] == 2


def test_20_a_locked_index_and_a_large_inline_picture_kill_nobody(tmp_path: Path) -> None:
    with running(tmp_path) as program, Stdio(environment(tmp_path)) as client:
        client.initialize()
        locked = sqlite3.connect(program.places.index, isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        result(program.ask("generate_image", prompt="x", quality="low"))
        locked.close()
        noise = Image.frombytes("RGB", (2000, 1600), random.Random(1).randbytes(2000 * 1600 * 3))
        out = io.BytesIO()
        noise.save(out, "PNG", compress_level=0)
        inline = base64.b64encode(out.getvalue()).decode()
        assert len(inline) > 12_000_000
        said = client.call("edit_image", prompt="x", reference_image_base64=inline, quality="low")
        assert said["structuredContent"]["state"] == "completed"


def test_21_what_may_be_paid_is_asked_once_and_waiting_is_said(tmp_path: Path) -> None:
    slow: Behaviour = lambda request: request.error(429, "rate_limit_exceeded", "later", retry_after="20")  # noqa: E731
    quota: Behaviour = lambda request: request.error(429, "insufficient_quota")  # noqa: E731
    with StandIn(reset, quota, slow) as standin, running(tmp_path, **api(standin.url)) as program:
        lost = result(program.ask("generate_image", prompt="x"))
        assert (lost["state"], lost["error_code"], lost["billed"]) == ("interrupted", "outcome_unknown", "unknown")
        assert result(program.ask("generate_image", prompt="x"))["error_code"] == "quota_exhausted"
        assert len(standin.requests) == 2
        job = result(program.ask("start_generation_job", tool_name="generate_image", prompt="x"))["job_id"]
        waiting = wait_until(
            lambda: next((r for r in [result(program.ask("check_job_status", job_id=job))] if r["retry_at"] is not None), None),
            "the time of the next attempt",
        )
        assert waiting["retry_at"] in waiting["message"] and waiting["state"] == "running"
        assert result(program.ask("cancel_job", job_id=job))["billed"] == "no"


def test_22_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def half(self: Disk, fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset)
        seen.append({path.name for path in tmp_path.iterdir()})
        raise OSError(5, "pulled")

    monkeypatch.setattr(Disk, "pwrite", half)
    with OutputRoot.open(tmp_path, any_path=False) as root, pytest.raises(FileFailed):
        root.place(root.parse("fox.png", output_format="png"), picture("png"), token="t")
    assert seen and all("fox.png" not in names for names in seen) and not list(tmp_path.iterdir())


def test_23_ten_pictures_cost_what_the_api_counted_and_auto_is_what_it_chose(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    drawn = result(
        program.ask("generate_image", prompt="x", sample_count=10, model="gpt-image-2", size="1536x1024", quality="low")
    )
    usage = drawn["usage"]
    assert usage["output_image_tokens"] == 10 * 158
    assert drawn["cost"]["micro_usd"] == usage["input_text_tokens"] * 5 + usage["output_image_tokens"] * 30
    auto = result(program.ask("generate_image", prompt="x"))
    assert (auto["requested"]["size"], auto["requested"]["quality"]) == ("auto", "auto")
    assert (auto["size"], auto["quality"]) == ("1024x1024", "medium")


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_24_nothing_is_encoded_again(kind: str, house: tuple[Program, StandIn]) -> None:
    program, _ = house
    (image,) = result(program.ask("generate_image", prompt="x", output_format=kind, quality="low"))["images"]
    original = Store.open(program.places.store).get(image["original_sha256"])
    saved = Path(image["path"]).read_bytes()
    assert original[len(original) // 4 : len(original) * 3 // 4] in saved and len(saved) < len(original) + 20_000


def test_25_the_extension_tells_what_the_bytes_are(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    for kind, name, suffix in (("jpeg", "generated_image.png", ".jpg"), ("png", "x.jpg", ".png"), ("webp", "y", ".webp")):
        (image,) = result(program.ask("generate_image", prompt="x", output_format=kind, output_path=name, quality="low"))[
            "images"
        ]
        with Image.open(image["path"]) as opened:
            assert opened.format == kind.upper()
        assert Path(image["path"]).suffix == suffix
        assert result(program.ask("get_metadata_from_image", image_path=image["path"]))["format"] == kind


@pytest.mark.parametrize(("asked", "sent"), [(3, 2), (1, 2)])
def test_26_what_came_is_told_not_what_was_asked(asked: int, sent: int, tmp_path: Path) -> None:
    def two(request: Request) -> None:
        body = json.dumps({**request.json, "n": sent}).encode()
        request.reply(200, offline.answer("POST", request.path, body).body)

    with StandIn(two) as standin, running(tmp_path, **api(standin.url)) as program:
        said = result(program.ask("generate_image", prompt="x", sample_count=asked, quality="low"))
        assert (said["state"], said["billed"], said["images"]) == ("failed", "yes", [])
        assert f"{sent} pictures came where {asked} were ordered" in said["error"]
        assert list(program.places.store.rglob("??/*")), "what came is kept"


def test_27_no_name_leads_outside_the_base(tmp_path: Path) -> None:
    dotted = tmp_path / "my.images"
    with running(tmp_path, OPENAI_IMAGE_OUTPUT_DIR=str(dotted / "out")) as program:
        for name in (".", "", "./", str(dotted / "out"), str(tmp_path / "elsewhere.png"), "../x.png"):
            assert refusal(program.ask("generate_image", prompt="x", output_path=name))["argument"] == "output_path"
        drawn = result(program.ask("generate_image", prompt="x", output_path="pic", sample_count=2, quality="low"))
        assert {Path(image["path"]).parent for image in drawn["images"]} == {dotted / "out"}


def test_28_no_link_is_followed_for_writing_or_reading(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture("png"))
    with running(tmp_path) as program:
        program.pictures.mkdir()
        (program.pictures / "link").symlink_to(outside)
        (program.pictures / "linkimg.png").symlink_to(outside / "secret.png")
        (program.pictures / "dangling.png").symlink_to(outside / "made.png")
        assert refusal(program.ask("generate_image", prompt="x", output_path="link/esc.png"))["code"] == "path_link"
        drawn = result(program.ask("generate_image", prompt="x", output_path="dangling.png", quality="low"))
        assert Path(drawn["images"][0]["path"]).name == "dangling_1.png"
        for name in ("linkimg.png", "link/secret.png"):
            assert refusal(program.ask("edit_image", prompt="x", reference_image_path=name))["code"] == "path_link"
        assert sorted(path.name for path in outside.iterdir()) == ["secret.png"]


def test_29_the_temporary_directory_is_as_private_as_any_other(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        for name in ("/tmp/a.png", "/var/tmp/a.png", "/tmpfoo/a.png", "/TMP/a.png"):
            said = refusal(program.ask("edit_image", prompt="x", reference_image_path=name))
            assert said["code"] == "path_outside" and "OPENAI_IMAGE_INPUT_DIR" in said["message"]


def test_30_only_pictures_leave_this_machine(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    asked = len(standin.requests)
    program.pictures.mkdir(exist_ok=True)
    for name in ("secret.txt", "secret.png"):
        (program.pictures / name).write_text("password: hunter2")
        said = refusal(program.ask("edit_image", prompt="x", reference_image_path=name))
        assert said["code"] == "unsupported_source"
    assert len(standin.requests) == asked


def test_31_only_the_users_own_directories_are_listed(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    for directory in ("/", "/etc", "..", "~", str(program.home)):
        assert refusal(program.ask("list_generated_images", directory=directory))["argument"] == "directory"


def test_32_a_file_in_the_working_directory_configures_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=http://127.0.0.1:1/v1\nOPENAI_IMAGE_ALLOW_ANY_PATH=true\n")
    settings = environment(tmp_path)
    root = str(Path(__file__).resolve().parent.parent)
    with running(tmp_path) as program:
        process = subprocess.Popen(
            [*IMAGED, "mcp"],
            env={**settings, "PYTHONPATH": root},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        call = {"name": "generate_image", "arguments": {"prompt": "x", "output_path": str(tmp_path / "any.png")}}
        handshake = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        lines = [
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": handshake},
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
        ]
        out, _ = process.communicate("".join(json.dumps(line) + "\n" for line in lines).encode(), timeout=SECONDS_MAX)
        assert b"path_outside" in out and not (tmp_path / "any.png").exists()
        assert result(program.ask("list_jobs"))["total"] == 0


def test_33_everything_is_the_users_alone_and_nothing_inline_is_kept_in_the_log(tmp_path: Path) -> None:
    os.umask(0o022)
    inline = base64.b64encode(picture("png", 640, 480)).decode()
    with StandIn() as standin, running(tmp_path, **api(standin.url)) as program:
        result(program.ask("edit_image", prompt="x", reference_image_base64=inline, quality="low"))
        program.end()
        for path in [*program.places.home.rglob("*"), *program.pictures.rglob("*")]:
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
            if path.is_file():
                data = path.read_bytes()
                assert KEY.encode() not in data, path
                assert inline[:200].encode() not in data, path
        assert KEY not in program.said()


def test_34_progress_structure_annotations_and_resources_are_there(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as client:
        can = client.initialize()["capabilities"]
        assert {"tools", "resources", "prompts", "completions"} <= set(can)
        call = {"name": "generate_image", "arguments": {"prompt": "x"}, "_meta": {"progressToken": "p"}}
        said = client.answer(client.request("tools/call", call))["result"]
        assert any(message.get("method") == "notifications/progress" for message in client.heard)
        assert said["structuredContent"]["images"] and any(part["type"] == "resource_link" for part in said["content"])
        uri = said["structuredContent"]["images"][0]["resource"]
        read = client.answer(client.request("resources/read", {"uri": uri}))["result"]["contents"]
        assert base64.b64decode(read[0]["blob"]).startswith(b"\x89PNG")
        for tool in client.answer(client.request("tools/list"))["result"]["tools"]:
            assert tool["outputSchema"] and tool["annotations"]


def test_35_fifty_jobs_are_not_fifty_requests_at_once(tmp_path: Path) -> None:
    gate = Counting()
    with StandIn(*[gate] * 50) as standin, running(tmp_path, **api(standin.url)) as program:
        for number in range(50):
            result(program.ask("start_generation_job", tool_name="generate_image", prompt=f"fox {number}", quality="low"))
        wait_until(lambda: gate.inside == 4, "the first requests")
        gate.opened.set()
        wait_until(lambda: result(program.ask("list_jobs", status="completed"))["total"] == 50, "all pictures")
        assert gate.most <= 4 and len(standin.requests) == 50


def test_36_others_are_answered_while_pictures_are_saved(tmp_path: Path) -> None:
    with running(tmp_path), Stdio(environment(tmp_path)) as busy, Stdio(environment(tmp_path)) as other:
        for client in (busy, other):
            client.initialize()
        arguments = {"prompt": "x", "sample_count": 4, "size": "2048x2048", "quality": "low", "return_base64": True}
        busy.request("tools/call", {"name": "generate_image", "arguments": arguments})
        pings = [other.request("ping") for _ in range(20)]
        assert [other.answer(ping)["id"] for ping in pings] == pings
        assert busy.answer_any()["structuredContent"]["state"] == "completed"


def test_37_totals_follow_the_filter_and_wildcards_are_letters(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        for prompt in ("100% wool", "a_b", "axb", "fox"):
            result(program.ask("generate_image", prompt=prompt, quality="low"))
        for query, total in (("%", 1), ("_", 1), ("fox", 1), ("x", 2), ("", 4)):
            assert result(program.ask("list_history", query=query, limit=1))["total"] == total, query
        said = refusal(program.ask("list_history", limit=1.5))
        assert said["argument"] == "limit" and "1.5" in said["message"]


def test_38_the_list_of_files_survives_what_lies_there(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        program.pictures.mkdir()
        (program.pictures / "dangling.png").symlink_to("nowhere")
        (program.pictures / "folder.png").mkdir()
        for number in range(2000):
            (program.pictures / f"{number:05}.png").touch()
        page = result(program.ask("list_generated_images"))
        assert (page["directory"], page["total"], len(page["images"])) == (str(program.pictures), 2000, 20)
        assert len(json.dumps(page)) < 10_000
        rest = result(program.ask("list_generated_images", offset=1990))
        assert len(rest["images"]) == 10


def test_39_names_never_run_out(tmp_path: Path) -> None:
    (tmp_path / "generated_image.png").touch()
    for number in range(1, 10_001):
        (tmp_path / f"generated_image_{number}.png").symlink_to("x")
    with OutputRoot.open(tmp_path, any_path=False) as root:
        path = root.place(root.parse("generated_image.png", output_format="png"), b"new", token="t")
    assert path.read_bytes() == b"new" and path.name.startswith("generated_image_")


def test_40_times_are_what_they_are_called_and_paths_are_whole(tmp_path: Path) -> None:
    no: Behaviour = lambda request: request.error(400, "invalid_value")  # noqa: E731
    with StandIn(no) as standin, running(tmp_path, **api(standin.url)) as program:
        failed = program.ask("generate_image", prompt="x")
        assert "%" not in failed["text"] and result(failed)["state"] == "failed"
        drawn = program.ask("generate_image", prompt="x", quality="low")
        assert result(drawn)["created_at"] <= result(drawn)["updated_at"]
        assert str(program.pictures) in drawn["text"] and "~" not in drawn["text"]


def test_41_an_interrupted_batch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = {"jobs": [{"prompt": f"fox {number}", "quality": "low"} for number in range(6)]}
    gate = Counting()
    with StandIn(*[gate] * 6) as standin, running(tmp_path, **api(standin.url)) as program:
        first = batch(tmp_path, standin.url, config)
        wait_until(lambda: gate.inside == 2, "the first requests")
        first.send_signal(signal.SIGINT)
        said = told(first)
        assert first.returncode == 130 and said["total"] == 6
        gate.opened.set()
        again = told(batch(tmp_path, standin.url, config))
        assert again["succeeded"] == 6 and len(standin.requests) == 6
        assert len(files_of(program)) == 6


def test_42_what_was_missing_is_there() -> None:
    properties = {name: OPERATIONS[name].arguments.__struct_fields__ for name in ("generate_image", "edit_image")}
    assert {"reference_images", "markup_image_path", "mask_image_path"} <= set(properties["edit_image"])
    for fields in properties.values():
        assert {"background", "output_compression", "model"} <= set(fields)
    assert {"cancel_job", "list_jobs", "get_metadata_from_image"} <= set(OPERATIONS)


# What is no test of its own: 36 is told without a clock, by the order of answers; how long they take is for
# tests/benchmarks. Of 42, streaming, budgets, deletion and a second door are not there yet, and nothing claims them.
