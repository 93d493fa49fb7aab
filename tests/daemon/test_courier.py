"""What servers do that take their time or never end, over real sockets and on a clock that does not wait."""

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from daemon import courier
from daemon.config import Secret
from daemon.courier import Courier
from daemon.post import RawReply
from eventlog.values import Account
from tests.program import SECONDS_MAX
from tests.standin import Behaviour, Request, StandIn
from tools.openai_api import ApiRequest, Failure

BODY = b'{"model":"gpt-image-2.5-flare","prompt":"x","n":1,"size":"1024x1024","quality":"low","output_format":"png"}'
DRAW = ApiRequest("POST", "/images/generations", {"Content-Type": "application/json"}, BODY)
QUIET_SECONDS = 0.6  # nothing has come for so long: what is waited for does not come


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """That the test is over, for servers that wait."""
    event = threading.Event()
    yield event
    event.set()


def asked(url: str, clock: MockClock) -> tuple[RawReply | Failure, float]:
    """What comes of one request, and after how many seconds by that clock."""

    async def main() -> tuple[RawReply | Failure, float]:
        account = Account(backend="openai", base_url=url)
        async with Courier.open(offline_seconds=0) as hand:
            begun = trio.current_time()
            said = await hand.send(DRAW, account, Secret("sk-x"), "imaged-x-1")
            return said, trio.current_time() - begun

    return trio.run(main, clock=clock)


def asked_one(behave: Behaviour, clock: MockClock) -> tuple[Failure, float]:
    with StandIn(behave, behave) as api:
        said, seconds = asked(api.url, clock)
        assert len(api.requests) == 1
    assert isinstance(said, Failure)
    return said, seconds


def test_headers_that_do_not_come_are_an_unknown_outcome(over: threading.Event) -> None:
    failure, seconds = asked_one(lambda _: wait(over), MockClock(autojump_threshold=QUIET_SECONDS))
    assert (failure.code, failure.billed) == ("outcome_unknown", "unknown")
    assert seconds >= courier.READ_SECONDS_MAX


def test_a_body_that_stops_in_the_middle_is_an_unknown_outcome(over: threading.Event) -> None:
    def half(request: Request) -> None:
        request.reply_half_then(lambda: wait(over))

    failure, seconds = asked_one(half, MockClock(autojump_threshold=QUIET_SECONDS))
    assert (failure.code, failure.billed) == ("outcome_unknown", "unknown")
    assert seconds >= courier.READ_SECONDS_MAX


def test_a_body_that_comes_byte_by_byte_has_no_longer_than_an_attempt_has(over: threading.Event) -> None:
    def drip(request: Request) -> None:
        begin(request, courier.REPLY_BYTES_MAX)
        while not over.wait(0.01):
            request.handler.wfile.write(b" ")

    failure, seconds = asked_one(drip, MockClock(rate=250))
    assert (failure.code, failure.billed) == ("outcome_unknown", "unknown")
    assert seconds >= courier.ATTEMPT_SECONDS_MAX


@pytest.mark.filterwarnings("ignore:.*__aiter__:pytest.PytestUnraisableExceptionWarning")  # httpx leaves its own open
def test_of_a_body_without_end_no_more_is_read_than_any_picture_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "REPLY_BYTES_MAX", 1_000_000)
    written: list[int] = []

    def endless(request: Request) -> None:
        begin(request, 10**12)
        for number in itertools.count():
            request.handler.wfile.write(b" " * 65536)
            written.append(number)

    failure, _ = asked_one(endless, MockClock(autojump_threshold=SECONDS_MAX))
    assert (failure.code, failure.billed) == ("outcome_unknown", "unknown")
    assert "longer than 1000000 bytes" in failure.message
    assert len(written) < 1000, "what the sockets hold, and no more"


def test_a_picture_that_takes_its_time_is_waited_for(over: threading.Event) -> None:
    def late(request: Request) -> None:
        over.wait(0.3)  # ten minutes, less the time for which a silence is a silence
        request.reply(200, request.good_reply())

    with StandIn(late) as api:
        said, seconds = asked(api.url, MockClock(rate=1000))
    assert isinstance(said, RawReply) and said.status == 200 and seconds > 60


def test_an_address_that_does_not_answer_has_not_been_sent_anything() -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):  # the queue of who waits to be let in
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        said, seconds = asked(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", MockClock(autojump_threshold=QUIET_SECONDS))
    assert isinstance(said, Failure) and (said.code, said.billed) == ("not_sent", "no")
    assert seconds >= courier.CONNECT_SECONDS_MAX


def wait(over: threading.Event) -> None:
    over.wait(SECONDS_MAX)


def begin(request: Request, length: int) -> None:
    request.handler.send_response(200)
    request.handler.send_header("content-type", "application/json")
    request.handler.send_header("content-length", str(length))
    request.handler.end_headers()
