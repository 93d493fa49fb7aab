"""Previews over a real socket: they are kept and named, and never cost the picture; a stream cut short is never paid twice."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import NotRunning
from eventlog.events import PartialReceived
from tests.program import Program, Stdio, running, wait_until
from tests.standin import Behaviour, Request, StandIn
from tools.pictures import measure
from tools.store import Store
from tools.streaming import StreamEvent, events

ORDER = {"prompt": "A fox in the snow", "quality": "low", "size": "1024x1024", "partial_images": 2}


def settings(url: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test-canary-0123456789", "OPENAI_BASE_URL": url}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, StandIn]]:
    with StandIn() as api, running(tmp_path_factory.mktemp("streams"), **settings(api.url)) as program:
        yield program, api


def drawn(program: Program, name: str, **more: Any) -> dict[str, Any]:
    result: dict[str, Any] = program.ask("generate_image", output_path=f"{name}.png", again=True, **{**ORDER, **more})["result"]
    return result


def begin(request: Request, *, chunked: bool = False) -> None:
    request.handler.send_response(200)
    request.handler.send_header("content-type", "text/event-stream")
    request.handler.send_header("connection", "close")
    if chunked:
        request.handler.send_header("transfer-encoding", "chunked")
    request.handler.end_headers()
    request.handler.close_connection = True


def write(request: Request, *sent: StreamEvent, chunked: bool = False) -> None:
    for event in sent:
        data = b"event: %b\ndata: %b\n\n" % (event.name.encode(), event.data)
        request.handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        request.handler.wfile.flush()


def streams(*wanted: int | StreamEvent, cut: bool = False) -> Behaviour:
    """The events of a good stream by their number, or others. With `cut` it breaks where it ends."""

    def behave(request: Request) -> None:
        good = events(request.good_reply())
        begin(request, chunked=cut)
        write(request, *(good[one] if isinstance(one, int) else one for one in wanted), chunked=cut)

    return behave


def stays_open(request: Request) -> None:
    """As some proxies do. It goes on when the daemon has closed the connection."""
    begin(request)
    write(request, *events(request.good_reply()))
    request.handler.rfile.read(1)


def plain(request: Request) -> None:
    request.body = json.dumps({k: v for k, v in request.json.items() if k not in ("stream", "partial_images")}).encode()
    request.reply(200, request.good_reply())


GARBAGE = StreamEvent(
    "image_generation.partial_image",
    json.dumps({"b64_json": base64.b64encode(b"no picture").decode(), "partial_image_index": 0}).encode(),
)
BLOCKED = StreamEvent("error", json.dumps({"error": {"message": "blocked", "code": "moderation_blocked"}}).encode())

ENDINGS: list[tuple[str, Behaviour, str, str, str, int]] = [
    ("whole", streams(0, 1, 2), "completed", "", "yes", 2),
    ("fewer", streams(1, 2), "completed", "", "yes", 1),
    ("more than asked", streams(0, 1, 0, 1, 2), "completed", "", "yes", 2),
    ("garbage", streams(GARBAGE, 1, 2), "completed", "", "yes", 1),
    ("cut behind completed", streams(0, 1, 2, cut=True), "completed", "", "yes", 2),
    ("open behind completed", stays_open, "completed", "", "yes", 2),
    ("cut before all", streams(cut=True), "interrupted", "outcome_unknown", "unknown", 0),
    ("cut behind a preview", streams(0, cut=True), "interrupted", "outcome_unknown", "unknown", 1),
    ("ends before completed", streams(0, 1), "interrupted", "outcome_unknown", "unknown", 2),
    ("blocked at once", streams(BLOCKED), "failed", "moderation_blocked", "no", 0),
    ("blocked after drawing", streams(0, BLOCKED), "interrupted", "moderation_blocked", "unknown", 1),
    ("JSON instead", plain, "completed", "", "yes", 0),
]


@pytest.mark.parametrize(("name", "behaviour", "state", "code", "billed", "previews"), ENDINGS, ids=[e[0] for e in ENDINGS])
def test_a_stream_is_one_request_whose_previews_are_kept_however_it_ends(
    house: tuple[Program, StandIn], name: str, behaviour: Behaviour, state: str, code: str, billed: str, previews: int
) -> None:
    program, api = house
    asked = len(api.requests)
    api.will(behaviour)
    job = drawn(program, name.replace(" ", "-"))
    assert (job["state"], job["error_code"], job["billed"], len(job["previews"])) == (state, code, billed, previews)
    assert len(api.requests) == asked + 1
    store = Store.open(program.places.store)
    facts = [event for commit in program.log() for event in commit.events if getattr(event, "job", "") == job["job_id"]]
    partials = [event for event in facts if type(event).__name__ == "PartialReceived"]
    assert len(partials) == previews
    for event in partials:
        assert store.get(event.picture.sha256)  # type: ignore[union-attr]
    if code == "outcome_unknown" and previews:
        (failed,) = [event for event in facts if type(event).__name__ == "AttemptFailed"]
        assert b"partial_image" in store.get(failed.kept.sha256)  # type: ignore[union-attr]


def test_a_client_is_told_of_a_preview_and_can_see_it_while_the_picture_is_still_drawn(tmp_path: Path) -> None:
    go_on = threading.Event()

    def slowly(request: Request) -> None:
        good = events(request.good_reply())
        begin(request)
        write(request, good[0])
        go_on.wait(30)
        write(request, *good[1:])

    with StandIn(slowly) as api, running(tmp_path, **settings(api.url)) as program, Stdio(program.environment) as client:
        client.initialize()
        call = {"name": "generate_image", "arguments": {**ORDER, "output_path": "fox.png"}, "_meta": {"progressToken": "p"}}
        drawing = client.request("tools/call", call)
        while "imaged://preview/" not in (said := client.receive()).get("params", {}).get("message", ""):
            assert said.get("method") == "notifications/progress", said
        told = re.search(r"preview 1 of 2 is there: (imaged://preview/([0-9a-f-]{36})/1)", said["params"]["message"])
        assert told is not None
        job = client.call("get_job_result", job_id=told[2], include_thumbnail=True)
        assert job["structuredContent"]["previews"] == [told[1]]
        assert [item["mimeType"] for item in job["content"] if item["type"] == "image"] == ["image/jpeg"]
        read = client.answer(client.request("resources/read", {"uri": told[1]}))["result"]["contents"][0]
        assert read["mimeType"] == "image/png" and measure(base64.b64decode(read["blob"])).width == 1024
        missing = client.answer(client.request("resources/read", {"uri": told[1][:-1] + "2"}))
        assert "has no preview 2" in missing["error"]["message"]
        go_on.set()
        done = client.answer(drawing)["result"]["structuredContent"]
        assert (done["state"], len(done["previews"])) == ("completed", 2)


def test_previews_survive_a_kill_and_the_picture_is_not_asked_for_again(tmp_path: Path) -> None:
    sent, over = threading.Event(), threading.Event()

    def preview_and_silence(request: Request) -> None:
        begin(request)
        write(request, events(request.good_reply())[0])
        sent.set()
        over.wait(30)

    with StandIn(preview_and_silence) as api:
        with running(tmp_path, **settings(api.url)) as program:
            asking = threading.Thread(target=ask_and_be_left, args=(program,), daemon=True)
            asking.start()
            assert sent.wait(20)
            wait_until(lambda: bool(program.ask("list_jobs")["result"]["jobs"]), "the job")
            (listed,) = program.ask("list_jobs")["result"]["jobs"]
            wait_until(
                lambda: len(program.ask("check_job_status", job_id=listed["job_id"])["result"]["previews"]) == 1, "a preview"
            )
            program.kill()
            asking.join(20)
        over.set()
        with running(tmp_path, **settings(api.url)) as program:
            job = program.ask("check_job_status", job_id=listed["job_id"])["result"]
            assert (job["state"], job["billed"], len(job["previews"])) == ("interrupted", "unknown", 1)
            assert len(api.requests) == 1


def ask_and_be_left(program: Program) -> None:
    with pytest.raises(NotRunning):
        drawn(program, "fox")


def test_forgetting_a_job_takes_its_previews_out_of_the_store(house: tuple[Program, StandIn]) -> None:
    program, api = house
    api.will(streams(0, 1, 2))
    job = drawn(program, "forgotten", prompt="A fox to be forgotten")["job_id"]
    previews = [
        event.picture.sha256
        for commit in program.log()
        for event in commit.events
        if isinstance(event, PartialReceived) and event.job == job
    ]
    store = Store.open(program.places.store)
    assert len(previews) == 2 and all(store.path(digest).exists() for digest in previews)
    assert "result" in program.ask("forget", uuid=job)
    assert not any(store.path(digest).exists() for digest in previews)


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        ({"output_format": "svg", "model": "gpt-image-2.6-sunburst"}, "partial_images"),
        ({"output_format": "gif", "model": "gpt-image-2.6-sunburst"}, "partial_images"),
        ({"partial_images": 4}, "partial_images"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_sent(
    house: tuple[Program, StandIn], more: dict[str, Any], argument: str
) -> None:
    program, api = house
    asked = len(api.requests)
    refused = program.ask("generate_image", **{**ORDER, "output_path": "no.svg", **more})["refused"]
    assert refused["argument"] == argument and len(api.requests) == asked


def test_previews_are_in_the_upper_estimate_and_not_in_the_lower(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    order = {**ORDER, "model": "gpt-image-2", "dry_run": True, "output_path": "dry.png"}
    none, two = (program.ask("generate_image", **{**order, "partial_images": wanted})["result"]["cost"] for wanted in (0, 2))
    assert two["low_micro_usd"] == none["low_micro_usd"]
    assert two["high_micro_usd"] - none["high_micro_usd"] == 2 * 100 * 30  # 30 micro-dollars for a token of output


def test_the_offline_stand_in_streams_and_counts_its_previews(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        plain = drawn(program, "plain", partial_images=0, model="gpt-image-2")
        shown = drawn(program, "shown", model="gpt-image-2")
        assert (len(plain["previews"]), len(shown["previews"])) == (0, 2)
        assert shown["usage"]["output_tokens"] - plain["usage"]["output_tokens"] == 200
        assert shown["images"][0]["width"] == 1024
