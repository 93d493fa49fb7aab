"""The control API as a stranger finds it: the real daemon behind its socket, spoken to with curl, httpx and by hand."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
import trio

from daemon import control, doors
from daemon.control import CONNECTIONS_MAX, HEAD_BYTES_MAX
from daemon.control_routes import BODY_BYTES_MAX
from daemon.errors import BadConfiguration
from daemon.operations import OPERATIONS
from eventlog.events import JobCompleted, JobRequested, RequestReceived
from tests.program import SECONDS_MAX, Program, running, wait_until

SMALL = {"size": "1024x640", "quality": "low"}
STATUS = b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\n\r\n"
HEAD = b"Host: imaged\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("control")) as program:
        yield program


@pytest.fixture(scope="module")
def drawn(house: Program) -> dict[str, Any]:
    with client(house) as http:
        answer = http.post("/v1/generate_image", json={"prompt": "a fox in the snow", **SMALL})
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()["result"]
    return report


def socket_path(program: Program) -> str:
    return str(program.places.run / control.SOCKET_NAME)


def client(program: Program) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=socket_path(program))
    return httpx.Client(transport=transport, base_url="http://imaged", timeout=SECONDS_MAX)


@contextmanager
def connected(program: Program) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS_MAX)
        connection.connect(socket_path(program))
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Until the other end closes."""
    said = b""
    while piece := connection.recv(1 << 16):
        said += piece
    return said


def spoken(program: Program, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request by hand: status, headers, and whatever else came until the end."""
    with connected(program) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def header_of(**settings: str) -> dict[str, str]:
    return {"X-Imaged-Settings": base64.urlsafe_b64encode(json.dumps(settings).encode()).decode().rstrip("=")}


def test_curl_gets_the_status(house: Program) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is missing; install it"
    command = [curl, "-sSi", "--unix-socket", socket_path(house), "http://localhost/v1/status"]
    said = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS_MAX).stdout.decode()
    head, _, body = said.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "api-version: 1.0" in head
    status = json.loads(body)
    assert status["api"] == status["api_oldest"] == "1.0"
    assert status["draining"] is False
    assert status["daemon"]["pid"] == house.pid


def test_only_its_owner_can_reach_the_socket(house: Program) -> None:
    found = Path(socket_path(house)).lstat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(house.places.run.stat().st_mode) == 0o700


def test_an_operation_answers_with_its_result_and_the_same_for_people(house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        answer = http.post("/v1/get_history_by_uuid", json={"uuid": drawn["job_id"]}, headers={"User-Agent": "probe/2.1 (x)"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert set(told) == {"result", "text", "failed"}
    assert told["result"]["prompt"] == "a fox in the snow"
    assert drawn["job_id"] in told["text"]
    assert told["failed"] is False
    wait_until(lambda: received(house, "get_history_by_uuid"), "the request to be in the log")
    fact = received(house, "get_history_by_uuid")[-1]
    assert (fact.door, fact.client.name, fact.client.version) == ("control", "probe", "2.1")


def received(program: Program, operation: str) -> list[RequestReceived]:
    events = [event for commit in program.log() for event in commit.events]
    return [event for event in events if isinstance(event, RequestReceived) and event.operation == operation]


def test_an_empty_body_is_an_empty_object(house: Program) -> None:
    with client(house) as http:
        answer = http.post("/v1/get_status", headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.json()["result"]["pid"] == house.pid


def test_pictures_that_are_asked_for_inline_come_as_attachments(house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        answer = http.post("/v1/get_job_result", json={"job_id": drawn["job_id"], "return_base64": True})
    (attachment,) = answer.json()["attachments"]
    assert base64.b64decode(attachment["data"], validate=True).startswith(b"\x89PNG")
    assert attachment["mime_type"] == "image/png"


def test_a_repeated_key_draws_once(house: Program) -> None:
    asked = {"tool_name": "generate_image", "prompt": "a key", "idempotency_key": "once", **SMALL}
    with client(house) as http:
        first, second = (http.post("/v1/start_generation_job", json=asked).json()["result"]["job_id"] for _ in range(2))
        reused = http.post("/v1/start_generation_job", json={**asked, "prompt": "another"})
    assert first == second
    events = [event for commit in house.log() for event in commit.events]
    assert sum(isinstance(event, JobRequested) and event.job == first for event in events) == 1
    assert (reused.status_code, reused.json()["code"], reused.json()["billed"]) == (409, "key_reused", "no")


def test_a_request_brings_its_own_settings(house: Program, tmp_path: Path) -> None:
    settings = header_of(IMAGED_BACKEND="offline", OPENAI_IMAGE_OUTPUT_DIR=str(tmp_path / "elsewhere"))
    with client(house) as http:
        answer = http.post("/v1/generate_image", json={"prompt": "x", **SMALL}, headers=settings)
    (image,) = answer.json()["result"]["images"]
    assert Path(image["path"]).parent == tmp_path / "elsewhere"


def test_without_a_key_nothing_is_drawn(house: Program) -> None:
    with client(house) as http:
        answer = http.post("/v1/generate_image", json={"prompt": "x", **SMALL}, headers=header_of(IMAGED_BACKEND="openai"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"]
    assert (answer.json()["code"], answer.json()["billed"]) == ("no_key", "no")


@pytest.mark.parametrize(
    "given",
    [
        "%%%",
        "a",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b'{"OPENAI_API_KEY": 1}').decode(),
        base64.b64encode(b'{"OPENAI_API_KEY": "a", "OPENAI_API_KEY": "b"}').decode(),
        base64.b64encode(b'{"PATH": "/bin"}').decode(),
        base64.b64encode(b'{"IMAGED_BACKEND": "moon"}').decode(),
        base64.b64encode(b'{"OPENAI_IMAGE_OUTPUT_DIR": "\\ud800"}').decode(),
    ],
)
def test_settings_that_cannot_be_understood_are_refused_with_a_sentence(given: str, house: Program) -> None:
    with client(house) as http:
        answer = http.post("/v1/generate_image", json={"prompt": "x"}, headers={"X-Imaged-Settings": given})
    assert (answer.status_code, answer.json()["code"], answer.json()["billed"]) == (400, "bad_settings", "no")
    assert answer.json()["detail"].endswith(".")


def test_a_key_is_never_shown(house: Program) -> None:
    key = "test-secret-4711-do-not-show"
    bad = header_of(OPENAI_API_KEY=key, OPENAI_BASE_URL="ftp://x")
    good = header_of(OPENAI_API_KEY=key, OPENAI_BASE_URL="http://127.0.0.1:9/")
    with client(house) as http:
        answers = [
            http.post("/v1/generate_image", json={"prompt": "x", "model": key, **SMALL}, headers=bad),
            http.post("/v1/get_status", json={key: 1}, headers=bad),
            http.post("/v1/get_status", json={}, headers=good),
        ]
    assert [answer.status_code for answer in answers] == [400, 400, 200]
    encoded = good["X-Imaged-Settings"]
    for told in (*(answer.text for answer in answers), house.said()):
        assert key not in told and encoded not in told
    for file in house.places.home.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes() and encoded.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("line", "headers", "status", "code"),
    [
        ("GET /v1/status", "Origin: http://localhost", 403, "foreign_page"),
        ("GET /v1/status", "Sec-Fetch-Site: none", 403, "foreign_page"),
        ("GET /v1/status", "Host: evil.example", 421, "foreign_host"),
        ("GET /v1/status", "Host: localhost.evil.example", 421, "foreign_host"),
        ("GET /", "", 404, "no_such_path"),
        ("GET /v2/status", "", 404, "no_such_path"),
        ("GET /v1/unheard_of", "", 404, "no_such_path"),
        ("GET /v1/images/x", "", 404, "no_such_path"),
        ("GET /v1/images/x/0", "", 404, "no_such_path"),
        ("GET /v1/images/../1", "", 404, "no_such_path"),
        ("GET /v1/images/unheard-of/1", "", 404, "no_such_resource"),
        ("GET http://imaged/v1/status", "", 400, "bad_request"),
        ("GET /v1/status?x=1", "", 422, "bad_arguments"),
        ("POST /v1/unheard_of", "Content-Type: application/json", 404, "unknown_operation"),
        ("POST /v1/get_status", "", 415, "not_json"),
        ("POST /v1/get_status", "Content-Type: text/plain", 415, "not_json"),
        ("POST /v1/get_status", "Content-Type: application/json; charset=utf-16", 415, "not_json"),
        ("POST /v1/get_status", "Content-Type: application/x-www-form-urlencoded", 415, "not_json"),
        ("POST /v1/get_status?x=1", "Content-Type: application/json", 422, "bad_arguments"),
        ("POST /v1/get_status", f"Content-Type: application/json\r\nContent-Length: {BODY_BYTES_MAX + 1}", 413, "too_large"),
        ("POST /v1/get_status", "Content-Type: application/json\r\nContent-Length: " + "9" * 40, 400, "bad_request"),
        ("POST /v1/get_status", "Content-Type: application/json\r\nTransfer-Encoding: gzip", 501, "not_implemented"),
        ("GET /v1/status", "Content-Length: 1", 413, "too_large"),
        ("GET /v1/status", "X: " + "x" * HEAD_BYTES_MAX, 431, "head_too_large"),
        ("GET /v1/status", "X: " + "x" * 100_000, 431, "head_too_large"),
        ("GET /v1/events?after=-1", "", 422, "bad_arguments"),
        ("GET /v1/events?after=x", "", 422, "bad_arguments"),
        ("GET /v1/events?after=1&after=2", "", 422, "bad_arguments"),
        ("GET /v1/events?follow=yes", "", 422, "bad_arguments"),
        ("GET /v1/events?until=3", "", 422, "bad_arguments"),
        ("GET /v1/events?&&", "", 422, "bad_arguments"),
        ("GET /v1/events?after=99999", "", 409, "cursor_ahead"),
        ("HEAD /v1/status", "", 405, "method_not_allowed"),
        ("OPTIONS /v1/status", "", 405, "method_not_allowed"),
        ("POST /v1/status", "", 405, "method_not_allowed"),
        ("DELETE /v1/images/x/1", "", 405, "method_not_allowed"),
        ("GET /v1/generate_image", "", 405, "method_not_allowed"),
        ("HEAD /v1/get_status", "", 405, "method_not_allowed"),
        ("get /v1/status", "", 405, "method_not_allowed"),
        ("CONNECT imaged:80", "", 400, "bad_request"),
        ("GET  /v1/status", "", 400, "bad_request"),
        ("GET /v1/status HTTP/1.1\r\nnonsense", "", 400, "bad_request"),
        ("\x16\x03\x01", "", 400, "bad_request"),
        ("PRI *", "", 400, "bad_request"),
    ],
)
def test_what_is_refused_is_a_problem_with_a_code(line: str, headers: str, status: int, code: str, house: Program) -> None:
    host = "" if "Host:" in headers else "Host: imaged\r\n"
    request = f"{line} HTTP/1.1\r\n{host}{headers}" + ("\r\n" if headers else "") + "\r\n"
    said, found, body = spoken(house, request.encode("latin-1"))
    assert said == status, body
    assert found["content-type"] == "application/problem+json"
    assert found["api-version"] == "1.0"
    if line.startswith("HEAD"):
        assert body == b"" and int(found["content-length"]) > 0
    else:
        problem = json.loads(body)
        assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"urn:imaged:problem:{code}")
        assert problem["title"] and problem["detail"]
    if status == 405:
        assert found["allow"] == ("POST" if "generate_image" in line or "get_status" in line else "GET")
    assert house.answers()


def test_arguments_that_do_not_fit_name_themselves(house: Program) -> None:
    with client(house) as http:
        wrong = http.post("/v1/list_jobs", json={"limit": 0})
        unknown = http.post("/v1/list_jobs", json={"limitt": 1})
        missing = http.post("/v1/cancel_job", json={"job_id": "unheard-of"})
    assert (wrong.status_code, wrong.json()["code"], wrong.json()["argument"]) == (422, "bad_arguments", "limit")
    assert (unknown.status_code, unknown.json()["argument"]) == (422, "limitt")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_job")
    assert "billed" not in wrong.json()


@pytest.mark.parametrize("host", ["imaged", "localhost", "LOCALHOST:8080", ""])
def test_its_own_names_are_accepted(host: str, house: Program) -> None:
    assert spoken(house, f"GET /v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())[0] == 200


def test_one_connection_serves_many_requests_refused_and_answered(house: Program) -> None:
    one = b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\n\r\n"
    with connected(house) as connection:
        connection.sendall(one + one.replace(b"status", b"nowhere") + b"POST /v1/get_status HTTP/1.1\r\n" + HEAD)
        connection.sendall(b"Content-Length: 2\r\n\r\n{}" + one.replace(b"imaged", b"elsewhere") + one)
        connection.shutdown(socket.SHUT_WR)
        said = everything(connection)
    assert re.findall(rb"HTTP/1\.1 ([0-9]{3})", said) == [b"200", b"404", b"200", b"421", b"200"]


def test_a_body_may_come_in_chunks_and_ends_at_its_limit(house: Program) -> None:
    begin = b"POST /v1/get_status HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert spoken(house, begin + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")[0] == 200
    status, _, body = spoken(house, begin + b"%x\r\n%b\r\n0\r\n\r\n" % (BODY_BYTES_MAX + 1, b" " * (BODY_BYTES_MAX + 1)))
    assert (status, json.loads(body)["code"]) == (413, "too_large")


def test_a_client_that_asks_first_is_told_to_go_on_or_not(house: Program) -> None:
    for path, first in ((b"get_status", b"HTTP/1.1 100"), (b"unheard_of", b"HTTP/1.1 404")):
        with connected(house) as connection:
            connection.sendall(
                b"POST /v1/" + path + b" HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(1 << 16).startswith(first)


def test_a_drawing_may_carry_pictures(house: Program) -> None:
    picture = base64.b64encode(bytes(3 * BODY_BYTES_MAX)).decode()
    with client(house) as http:
        answer = http.post("/v1/edit_image", json={"prompt": "x", "reference_image_base64": picture})
    assert answer.status_code == 422, answer.text
    assert "reference_image_base64" in answer.json()["detail"]


def test_a_picture_comes_exactly_as_it_was_received(house: Program, drawn: dict[str, Any]) -> None:
    (image,) = drawn["images"]
    with client(house) as http:
        answer = http.get(f"/v1/images/{drawn['job_id'].upper()}/1")
        again = http.get(f"/v1/images/{drawn['job_id']}/1", headers={"If-None-Match": f'"x", {answer.headers["etag"]}'})
        beyond = http.get(f"/v1/images/{drawn['job_id']}/2")
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == image["original_sha256"]
    assert answer.headers["etag"] == f'"{image["original_sha256"]}"'
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["content-disposition"] == f'inline; filename="{drawn["job_id"]}-1.png"'
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert (beyond.status_code, beyond.json()["code"]) == (404, "no_such_resource")
    wait_until(lambda: received(house, "read_image"), "the request to be in the log")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=8-15", 8, 16),
        ("bytes=100-", 100, None),
        ("bytes=-5", -5, None),
        ("bytes=5-99999999", 5, None),
    ],
)
def test_a_part_of_a_picture(asked: str, start: int, end: int | None, house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        whole = http.get(f"/v1/images/{drawn['job_id']}/1").content
        answer = http.get(f"/v1/images/{drawn['job_id']}/1", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, whole[start:end])
    first = start % len(whole)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(whole)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "bytes=5-2", "bytes=-", "lines=1-2", "bytes=a-b"])
def test_what_is_no_single_range_gets_the_whole(asked: str, house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        assert http.get(f"/v1/images/{drawn['job_id']}/1", headers={"Range": asked}).status_code == 200


def test_a_range_of_another_picture_or_outside_of_it(house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        other = http.get(f"/v1/images/{drawn['job_id']}/1", headers={"Range": "bytes=0-0", "If-Range": '"another"'})
        outside = http.get(f"/v1/images/{drawn['job_id']}/1", headers={"Range": "bytes=99999999-"})
        nothing = http.get(f"/v1/images/{drawn['job_id']}/1", headers={"Range": "bytes=-0"})
    assert other.status_code == 200
    assert (outside.status_code, outside.json()["code"], nothing.status_code) == (416, "bad_range", 416)
    assert outside.headers["content-range"] == f"bytes */{len(other.content)}"


def test_a_picture_that_is_damaged_or_gone_is_not_served(house: Program) -> None:
    with client(house) as http:
        report = http.post("/v1/generate_image", json={"prompt": "soon gone", **SMALL}).json()["result"]
        address = f"/v1/images/{report['job_id']}/1"
        digest = report["images"][0]["original_sha256"]
        stored = house.places.store / digest[:2] / digest
        stored.write_bytes(b"\x89PNG something else")
        damaged = http.get(address)
        stored.unlink()
        gone = http.get(address)
    assert (damaged.status_code, damaged.json()["code"]) == (500, "io_error")
    assert (gone.status_code, gone.json()["code"]) == (404, "no_such_resource")


def test_the_log_is_told_line_by_line(house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        answer = http.get("/v1/events")
        assert answer.headers["content-type"] == "application/x-ndjson"
        told = [json.loads(line) for line in answer.text.splitlines()]
        rest = [json.loads(line) for line in http.get(f"/v1/events?after={told[2]['position']}").text.splitlines()]
        last = http.get(f"/v1/events?after={told[-1]['position']}&follow=0").text
    commits = house.log()[: len(told)]
    assert [line["position"] for line in told] == [commit.position for commit in commits] == list(range(1, len(told) + 1))
    assert [[event["type"] for event in line["events"]] for line in told] == [
        [type(event).__name__ for event in commit.events] for commit in commits
    ]
    assert rest[: len(told) - 3] == told[3:]
    assert not last or json.loads(last.splitlines()[0])["position"] == len(told) + 1
    asked = next(line for line in told if any(event["type"] == "JobRequested" for event in line["events"]))
    assert asked["words"]["prompt"] == "a fox in the snow"
    assert asked["words"]["arguments"]["quality"] == "low"
    assert "salt" not in asked["words"]
    assert len(asked["hash"]) == 64


def test_the_log_as_server_sent_events_goes_on_where_it_was_cut_off(house: Program, drawn: dict[str, Any]) -> None:
    with client(house) as http:
        answer = http.get("/v1/events?after=1", headers={"Accept": "text/event-stream"})
        again = http.get("/v1/events?after=1", headers={"Accept": "text/event-stream", "Last-Event-ID": "3"})
        wrong = http.get("/v1/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "x"})
    assert answer.headers["content-type"] == "text/event-stream"
    first, *_ = answer.text.split("\n\n")
    number, data = first.split("\n")
    assert number == "id: 2"
    assert json.loads(data.removeprefix("data: "))["position"] == 2
    assert again.text.startswith("id: 4\n")
    assert wrong.status_code == 422


def test_a_follower_hears_what_happens_and_counts_as_a_client(house: Program) -> None:
    with client(house) as http, client(house) as other:
        head = http.get("/v1/status").json()["daemon"]["log_position"]
        with http.stream("GET", f"/v1/events?after={head}&follow=1") as following:
            assert other.get("/v1/status").json()["daemon"]["sessions"] == 1
            job = other.post("/v1/generate_image", json={"prompt": "followed", **SMALL}).json()["result"]["job_id"]
            positions = []
            for line in following.iter_lines():
                told = json.loads(line) if line else {"events": []}
                positions += [told["position"]] if line else []
                if {"type": "JobCompleted", "job": job}.items() <= (told["events"] or [{}])[0].items():
                    break
        assert positions == list(range(head + 1, head + 1 + len(positions)))


def test_many_slow_peers_do_not_keep_a_normal_one_waiting(house: Program) -> None:
    with ExitStack() as peers:
        for _ in range(60):
            peers.enter_context(connected(house)).sendall(b"GET /v1/sta")
        with client(house) as http:
            assert http.get("/v1/status").status_code == 200


def test_followers_that_have_heard_all_leave_their_places_to_whoever_asks(house: Program) -> None:
    head = json.loads(spoken(house, STATUS)[2])["daemon"]["log_position"]
    follow = b"GET /v1/events?after=%d&follow=1 HTTP/1.1\r\nHost: imaged\r\n\r\n" % head
    with ExitStack() as peers:
        for _ in range(CONNECTIONS_MAX):
            follower = peers.enter_context(connected(house))
            follower.sendall(follow)
            assert follower.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert spoken(house, STATUS)[0] == 200
        sessions = json.loads(spoken(house, STATUS)[2])["daemon"]["sessions"]
        assert 0 < sessions < CONNECTIONS_MAX  # each of the two took one's place
    with ExitStack() as peers:  # as soon as their places are wanted, long before the next heartbeat would tell that they are gone
        for _ in range(3):
            asker = peers.enter_context(connected(house))
            asker.sendall(STATUS)
            assert asker.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert json.loads(spoken(house, STATUS)[2])["daemon"]["sessions"] == 0


def test_whoever_has_kept_the_door_waiting_longest_makes_room_and_whoever_has_asked_before_stays(house: Program) -> None:
    with ExitStack() as peers:
        silent, begun, asked = [peers.enter_context(connected(house)) for _ in range(3)]
        begun.sendall(b"POST /v1/list_jobs HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{")
        asked.sendall(STATUS)
        assert asked.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        others = [peers.enter_context(connected(house)) for _ in range(CONNECTIONS_MAX + 10)]
        assert everything(silent) == b""
        told = everything(begun)
        assert told.startswith(b"HTTP/1.1 503 ") and b"connection: close" in told and b"ask again" in told
        for peer in (asked, others[-1]):
            peer.sendall(STATUS)
            assert peer.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_daemon_that_ends_begins_nothing_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, IMAGED_OFFLINE_SECONDS="3") as program, client(program) as http, client(program) as follower:
        asked = {"tool_name": "generate_image", "prompt": "the last one", **SMALL}
        job = http.post("/v1/start_generation_job", json=asked).json()["result"]["job_id"]
        wait_until(lambda: http.get("/v1/status").json()["daemon"]["jobs_running"] == 1, "the job to run")
        with follower.stream("GET", "/v1/events?follow=1") as following:
            os.kill(program.pid, signal.SIGTERM)
            wait_until(lambda: http.get("/v1/status").json()["draining"], "the daemon to begin its end")
            refused = http.post("/v1/start_generation_job", json=asked)
            also = http.post("/v1/list_jobs", json={})
            heard = [json.loads(line) for line in following.iter_lines() if line]
        assert program.wait_for_end() == 0
    assert (refused.status_code, refused.json()["code"], refused.json()["billed"]) == (503, "draining", "no")
    assert refused.headers["connection"] == "close"
    assert also.status_code == 503 and "billed" not in also.json()
    assert {"JobCompleted"} & {event["type"] for line in heard for event in line["events"]}
    events = [event for commit in program.log() for event in commit.events]
    assert [event.job for event in events if isinstance(event, JobCompleted)] == [job]


def test_the_daemon_is_stopped_through_its_socket_and_answers_before_it_goes(tmp_path: Path) -> None:
    with running(tmp_path) as program, client(program) as http:
        answer = http.post("/v1/stop_daemon", json={"reason": ""})
        assert answer.status_code == 200
        assert program.wait_for_end() == 0


def test_the_document_is_valid_and_names_every_operation(house: Program) -> None:
    with client(house) as http:
        document = http.get("/openapi.json")
        same = http.get("/v1/openapi.json")
        listed = http.get("/v1/operations").json()["operations"]
    openapi_spec_validator.validate(document.json())
    assert document.json()["openapi"] == "3.1.0"
    assert document.content == same.content
    assert {f"/v1/{name}" for name in OPERATIONS} < set(document.json()["paths"])
    assert [row["name"] for row in listed] == list(OPERATIONS)
    drawing = next(row for row in listed if row["name"] == "generate_image")
    assert drawing["costs_money"] and not drawing["read_only"] and "prompt" in drawing["arguments"]["properties"]
    assert "COSTS MONEY" in drawing["description"] and "job_id" in drawing["result"]["properties"]


def test_no_operation_hides_a_path() -> None:
    assert not {"status", "operations", "events", "images"} & set(OPERATIONS)


def test_documents_are_the_same_bytes_in_every_run(house: Program) -> None:
    ask = (
        "import sys, trio; from daemon import control_routes as r; from daemon.control_routes import Asked; "
        "from daemon.ending import Closing\n"
        "for path in ('/openapi.json', '/v1/operations'):\n"
        "    asked = Asked(path, '', {}, b'', Closing())\n"
        "    sys.stdout.buffer.write(trio.run(r.find('GET', path).answer, None, asked).body)\n"
    )
    with client(house) as http:
        served = http.get("/openapi.json").content + http.get("/v1/operations").content
    for seed in ("1", "2"):
        command = [sys.executable, "-c", ask]
        environment = {**house.environment, "PYTHONHASHSEED": seed, "OPENAI_IMAGE_MODEL": "other", "HOME": "/nowhere"}
        made = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=SECONDS_MAX, cwd=Path.cwd())
        assert made.stdout == served


async def listened(run: Path) -> None:
    await doors.listen(run, "control.sock").aclose()


def test_a_socket_left_half_made_is_replaced_and_anything_else_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    for name in ("control.sock", "control.sock.new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run / name))
    trio.run(listened, run)
    assert [path.name for path in run.iterdir()] == ["control.sock"]
    (run / "control.sock").unlink()
    (run / "control.sock").write_text("somebody's")
    with pytest.raises(BadConfiguration, match="not a socket"):
        doors.listen(run, "control.sock")
    assert (run / "control.sock").read_text() == "somebody's"
