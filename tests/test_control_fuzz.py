"""The control API under requests that a machine made up from its own OpenAPI document."""

import socket
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from daemon import control, openapi
from daemon.operations import OPERATIONS
from tests.program import SECONDS_MAX, Program, running

# What ends the daemon, waits for half a minute on purpose, or draws is not for a machine to try at random.
LEFT_OUT = {name for name, row in OPERATIONS.items() if row.draw is not None} | {"stop_daemon", "wait_for_jobs"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(openapi.document())
OFFERED = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
TRIED = [label for label in OFFERED if label.rpartition("/")[2] not in LEFT_OUT]
FEW = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("fuzz")) as program:
        yield program


@pytest.fixture(scope="module")
def http(house: Program) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(house.places.run / control.SOCKET_NAME))
    with httpx.Client(transport=transport, timeout=SECONDS_MAX) as client:
        yield client


def validate(case: schemathesis.Case, http: httpx.Client) -> int:
    asked = case.as_transport_kwargs(base_url="http://imaged")
    asked.pop("cookies", None)
    if "data" in asked:
        asked["content"] = asked.pop("data")
    answer = http.request(**asked)
    case.validate_response(answer, checks=CHECKS)
    return answer.status_code


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", TRIED)
def test_answers_are_what_the_document_says(label: str, mode: GenerationMode, house: Program, http: httpx.Client) -> None:
    @FEW
    @given(case=OFFERED[label].as_strategy(generation_mode=mode))
    def attempt(case: schemathesis.Case) -> None:
        if label == "GET /v1/events":
            case.query.pop("follow", None)  # such an answer has no end
        case.headers.pop("X-Imaged-Settings", None)  # made up it is refused before anything else is looked at
        validate(case, http)

    try:
        attempt()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing about it that could be asked wrongly
    assert house.answers()


def test_answers_about_a_picture_are_what_the_document_says(house: Program, http: httpx.Client) -> None:
    drawing = {"prompt": "x", "size": "1024x640", "quality": "low", "include_thumbnail": True}
    report = http.post("http://imaged/v1/generate_image", json=drawing).json()["result"]
    job_id, path = report["job_id"], report["images"][0]["path"]
    asked = {
        "generate_image": drawing,
        "start_generation_job": {"tool_name": "generate_image", "prompt": "y", "size": "1024x640", "quality": "low"},
        "list_history": {},
        "list_jobs": {"limit": 2},
        "get_history_by_uuid": {"uuid": job_id},
        "check_job_status": {"job_id": job_id},
        "get_job_result": {"job_id": job_id, "return_base64": True},
        "wait_for_jobs": {"job_ids": [job_id]},
        "list_generated_images": {},
        "get_metadata_from_image": {"image_path": path},
    }
    for name, body in asked.items():
        case = OFFERED[f"POST /v1/{name}"].Case(method="POST", body=body, media_type="application/json")
        assert validate(case, http) == 200, name
    case = OFFERED["GET /v1/images/{uuid}/{n}"].Case(method="GET", path_parameters={"uuid": job_id, "n": 1})
    assert validate(case, http) == 200


PARTS = [b"GET", b"POST", b" ", b"/v1/status", b"/v1/get_status", b"/v1/events?after=1", b" HTTP/1.1", b" HTTP/1.0", b"\r\n"]
PARTS += [b"Host: imaged", b"Content-Length: 2", b"Content-Type: application/json", b"Transfer-Encoding: chunked", b"{}", b"0"]
PARTS += [b"Expect: 100-continue", b"Connection: upgrade", b"Upgrade: h2c", b"Range: bytes=0-", b"\0", b"\xff"]


@settings(FEW, max_examples=150)
@given(sent=st.lists(st.sampled_from(PARTS) | st.binary(max_size=8), max_size=30).map(b"".join))
@example(sent=b"GET /v1/status HTTP/1.1\r\nHost: imaged\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
@example(sent=b"GET /v1/events HTTP/1.0\r\n\r\n")
def test_whatever_is_sent_it_answers_or_closes_and_lives_on(house: Program, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS_MAX)
        peer.connect(str(house.places.run / control.SOCKET_NAME))
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        said = b""
        while piece := peer.recv(1 << 16):
            said += piece
    assert not said or said.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in said.replace(b"HTTP/1.1 501", b"")


def test_after_all_of_that_it_still_answers(house: Program) -> None:
    assert house.answers()
