"""OpenAI's bad days over a real socket: the right code, the right word on billing, the right number of requests."""

import base64
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.values import Sha256
from tests import small_disk
from tests.program import SECONDS_MAX, Program, running, wait_until
from tests.standin import Behaviour, Request, StandIn
from tools.store import Store

KEY = "sk-test-canary-0123456789"


def api(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, **more}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, StandIn]]:
    home = tmp_path_factory.mktemp("faults")
    with StandIn() as standin, running(home, **api(standin.url)) as program:
        yield program, standin


def says(status: int, code: str | None, message: str = "said no", **headers: str) -> Behaviour:
    return lambda request: request.error(status, code, message, **headers)


def html(status: int) -> Behaviour:
    return lambda request: request.reply(status, b"<html>Bad gateway</html>", content_type="text/html")


def reset(request: Request) -> None:
    connection = request.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    request.handler.close_connection = True
    request.handler.rfile.close()


def one_too_few(request: Request) -> None:
    reply = json.loads(request.good_reply())
    reply["data"] = reply["data"][:-1]
    request.reply(200, json.dumps(reply).encode())


def half(request: Request) -> None:
    request.reply_half_then(lambda: None)


def changed(**changes: object) -> Behaviour:
    def behave(request: Request) -> None:
        reply = json.loads(request.good_reply())
        reply.update(changes)
        request.reply(200, json.dumps(reply).encode())

    return behave


def with_data(*pictures: str) -> Behaviour:
    return changed(data=[{"b64_json": picture} for picture in pictures])


def other_size(request: Request) -> None:
    body = json.dumps({**request.json, "size": "1536x1024"}).encode()
    request.body = body
    request.reply(200, request.good_reply())


FINAL: list[tuple[str, Behaviour, str, str, str]] = [
    ("401", says(401, "invalid_api_key", "Incorrect API key provided: sk-te**6789"), "failed", "invalid_key", "no"),
    ("403 unverified", says(403, None, "Your organization must be verified to use"), "failed", "org_unverified", "no"),
    ("403 country", says(403, "unsupported_country_region_territory"), "failed", "not_permitted", "no"),
    ("404", says(404, "model_not_found"), "failed", "model_unavailable", "no"),
    ("400", says(400, "unknown_parameter"), "failed", "bad_request", "no"),
    ("400 moderation", says(400, "moderation_blocked"), "failed", "moderation_blocked", "no"),
    ("429 money", says(429, "insufficient_quota"), "failed", "quota_exhausted", "no"),
    ("429 credit", says(429, "credit_balance_exhausted"), "failed", "quota_exhausted", "no"),
    ("502 page", html(502), "interrupted", "outcome_unknown", "unknown"),
    ("504 page", html(504), "interrupted", "outcome_unknown", "unknown"),
    ("500 page", html(500), "interrupted", "outcome_unknown", "unknown"),
    ("200 page", html(200), "interrupted", "outcome_unknown", "unknown"),
    ("200 broken JSON", lambda r: r.reply(200, b'{"created":1,"data":['), "interrupted", "outcome_unknown", "unknown"),
    ("200 error", lambda r: r.reply(200, b'{"error":{"message":"x"}}'), "interrupted", "outcome_unknown", "unknown"),
    ("reset", reset, "interrupted", "outcome_unknown", "unknown"),
    ("cut body", half, "interrupted", "outcome_unknown", "unknown"),
    ("no data", changed(data=[]), "failed", "bad_reply", "yes"),
    ("bad base64", with_data("!!!!"), "failed", "bad_reply", "yes"),
    ("cut picture", with_data(base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0").decode()), "failed", "bad_reply", "yes"),
    ("not a picture", with_data(base64.b64encode(b"MZ" * 100).decode()), "failed", "bad_reply", "yes"),
    ("another size", other_size, "failed", "bad_reply", "yes"),
]


@pytest.mark.parametrize(("behaviour", "state", "code", "billed"), [row[1:] for row in FINAL], ids=[row[0] for row in FINAL])
def test_what_is_final_is_asked_once(
    behaviour: Behaviour, state: str, code: str, billed: str, house: tuple[Program, StandIn]
) -> None:
    program, standin = house
    before = len(standin.requests)
    standin.will(behaviour)
    report = program.ask("generate_image", prompt="A fox", size="1024x1024", quality="low")["result"]
    assert (report["state"], report["error_code"], report["billed"]) == (state, code, billed)
    assert len(standin.requests) == before + 1
    assert report["message"] and len(report["message"]) < 1200
    if code in ("bad_reply",) or (code == "outcome_unknown" and behaviour not in (reset, half)):
        kept = [e.kept for c in program.log() for e in c.events if getattr(e, "kept", None) and e.job == report["job_id"]]
        assert all(Store.open(program.places.store).get(Sha256(blob.sha256)) for blob in kept)
        assert kept or code == "outcome_unknown"


RETRIED: list[tuple[str, list[Behaviour], int]] = [
    ("429 with a header", [says(429, "rate_limit_exceeded", retry_after="0")], 2),
    ("429 with a hint", [says(429, "rate_limit_exceeded", "Limit 5, Used 5. Please try again in 10ms.")], 2),
    ("500 twice", [says(500, "server_error", retry_after="0")] * 2, 3),
    ("503", [says(503, "server_is_overloaded", retry_after="0")], 2),
]


@pytest.mark.parametrize(("behaviours", "requests"), [row[1:] for row in RETRIED], ids=[row[0] for row in RETRIED])
def test_what_was_surely_not_billed_is_tried_again(
    behaviours: list[Behaviour], requests: int, house: tuple[Program, StandIn]
) -> None:
    program, standin = house
    before = len(standin.requests)
    standin.will(*behaviours)
    report = program.ask("generate_image", prompt="A fox", size="1024x1024", quality="low")["result"]
    assert report["state"] == "completed"
    assert report["attempts"] == len(standin.requests) - before == requests
    names = [request.headers["x-client-request-id"] for request in standin.requests[before:]]
    assert len(set(names)) == requests


def test_of_fewer_pictures_than_asked_those_that_came_are_kept(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    before = len(standin.requests)
    standin.will(one_too_few)
    report = program.ask("generate_image", prompt="A fox", size="1024x1024", quality="low", sample_count=3)["result"]
    assert (report["state"], report["billed"], report["requested"]["count"]) == ("completed", "yes", 3)
    assert report["message"].startswith("2 pictures were made; 3 were ordered, but OpenAI sent no more.")
    assert [Path(image["path"]).read_bytes()[:4] for image in report["images"]] == [b"\x89PNG"] * 2
    assert len(standin.requests) == before + 1


def test_a_third_server_error_is_the_last(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    before = len(standin.requests)
    standin.will(*[says(500, "server_error", retry_after="0")] * 5)
    report = program.ask("generate_image", prompt="A fox", quality="low")["result"]
    standin.will()
    assert (report["state"], report["error_code"], report["billed"]) == ("failed", "server_error", "no")
    assert len(standin.requests) == before + 3


def test_an_address_where_nobody_listens_is_not_billed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with running(tmp_path, **api(url, IMAGED_SYNC_WAIT_SECONDS="0.5")) as program:
        report = program.ask("generate_image", prompt="A fox", quality="low")["result"]
        assert report["billed"] == "no"
        assert report["state"] in ("running", "failed")


def test_the_request_is_what_the_log_says_it_was(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    prompt = "狐、雪の中 🦊"
    program.ask("generate_image", prompt=prompt, size="1024x1024", quality="low", transparent_background=True)
    request = standin.requests[-1]
    assert request.path == "/v1/images/generations"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json == {
        "model": "gpt-image-2.5-flare",
        "prompt": prompt,
        "n": 1,
        "size": "1024x1024",
        "quality": "low",
        "background": "transparent",
        "output_format": "png",
    }


def test_an_output_directory_that_vanishes_does_not_take_the_picture_with_it(tmp_path: Path) -> None:
    def spoil(request: Request) -> None:
        (tmp_path / "pictures").write_text("a file where the folder should be")
        request.reply(200, request.good_reply())

    with StandIn(spoil) as standin, running(tmp_path, **api(standin.url)) as program:
        report = program.ask("generate_image", prompt="A fox", quality="low")["result"]
        assert (report["state"], report["error_code"], report["billed"]) == ("failed", "not_saved", "yes")
        (kept,) = (Path(word) for word in report["message"].replace(" ", "\n").split("\n") if "/store/" in word)
        assert Path(str(kept).rstrip(".")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", small_disk.CASES)
def test_a_disk_without_room_costs_no_picture_and_nothing_is_paid_that_could_not_be_kept(case: str, tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "tests.small_disk", case, str(tmp_path)]
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_job_that_waits_for_its_key_after_a_restart_is_drawn_when_the_key_comes(tmp_path: Path) -> None:
    with StandIn() as standin:
        program = Program(tmp_path, **api(standin.url, IMAGED_MAX_CONCURRENT="1", IMAGED_SYNC_WAIT_SECONDS="0")).start().ready()
        gate = threading.Event()

        def wait_for_gate(request: Request) -> None:
            gate.wait(SECONDS_MAX)
            reset(request)

        standin.will(wait_for_gate)
        first = program.ask("generate_image", prompt="one", quality="low")["result"]["job_id"]
        second = program.ask("generate_image", prompt="two", quality="low")["result"]["job_id"]
        wait_until(lambda: standin.requests, "the first request to arrive")
        program.kill()
        gate.set()
        with running(tmp_path, IMAGED_BACKEND="offline") as again:
            assert again.ask("check_job_status", job_id=first)["result"]["state"] == "interrupted"
            assert again.ask("check_job_status", job_id=second)["result"]["state"] == "pending"
            assert len(standin.requests) == 1
            again.environment.update(api(standin.url))

            def drawn() -> bool:
                state = again.ask("check_job_status", job_id=second)["result"]["state"]
                return bool(state == "completed")

            wait_until(drawn, "the second picture")
            assert len(standin.requests) == 2


def test_a_proxy_of_the_environment_never_sees_a_request_to_this_machine(tmp_path: Path) -> None:
    with StandIn() as standin, StandIn() as proxy:
        through = proxy.url.removesuffix("/v1")
        with running(tmp_path, **api(standin.url, HTTP_PROXY=through, http_proxy=through)) as program:
            assert program.ask("generate_image", prompt="A fox", quality="low")["result"]["state"] == "completed"
        assert len(standin.requests) == 1 and not proxy.requests


def test_proxy_settings_that_cannot_be_used_are_named_and_nothing_is_sent(tmp_path: Path) -> None:
    with running(tmp_path, ALL_PROXY="ftp://127.0.0.1:1") as program:
        job = program.ask("generate_image", prompt="A fox", quality="low")["result"]
    assert (job["state"], job["error_code"], job["billed"]) == ("failed", "not_sent", "no")
    assert "proxy settings" in job["message"] and "Traceback" not in program.said()


def test_a_damaged_index_is_made_anew_and_nothing_is_missing(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        for prompt in ("one", "two", "three"):
            program.ask("generate_image", prompt=prompt, quality="low", size="1024x640")
    index = tmp_path / "imaged" / "index.sqlite"
    data = bytearray(index.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = bytes(range(64))
    for name in tmp_path.glob("imaged/index.sqlite*"):
        name.unlink()
    index.write_bytes(data)
    for _ in range(2):  # found at the start, or by the first fact that is folded; then at the start after it
        with running(tmp_path) as program:
            program.ask("generate_image", prompt="again", quality="low", size="1024x640")
    with running(tmp_path) as program:
        assert program.ask("get_status")["result"]["index_stale"] is False
        assert program.ask("list_history")["result"]["total"] == 5
