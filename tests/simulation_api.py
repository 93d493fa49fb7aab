"""OpenAI, as far as the simulation needs it: counts what it is sent, answers as told, and knows what it has billed.

It stands in the courier's place. Rule: what it knows is the truth that the log is held against, so nothing in here
looks at the log.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import cycle
from typing import NamedTuple

import msgspec
import trio
from PIL import Image

from daemon.config import Secret
from daemon.post import Hear, RawReply
from eventlog.values import Account, MicroUSD, Sha256, Usage, digest
from tools import pricing
from tools.openai_api import ApiRequest, Failure, transport_failure

MODEL = "gpt-image-2"
USAGE: Mapping[str, int | Mapping[str, int]] = {
    "input_tokens": 10,
    "output_tokens": 200,
    "total_tokens": 210,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 200},
}


class Answer(NamedTuple):
    """`kind` is one of `KINDS`; `seconds` pass before it comes."""

    kind: str
    seconds: float


KINDS: Mapping[str, bool] = {
    "drawn": True,
    "useless": True,
    "gibberish": True,
    "lost": True,
    "gateway": True,
    "limited": False,
    "limited, come back": False,
    "server error": False,
    "refused": False,
    "unreachable": False,
}
"""By whether it is billed. Of what is billed only a picture that was drawn and arrives is of any use."""


@dataclass
class Sent:
    """One request on the wire. `billed` is what it costs until OpenAI itself has said that it costs nothing."""

    id: str
    body: Sha256
    billed: MicroUSD
    under_way: bool = True
    drawn: tuple[Sha256, ...] = ()


class Api:
    """`look` is called with each request before it is answered, and may raise."""

    def __init__(self, look: Callable[[Sent], None]) -> None:
        self.sent: list[Sent] = []
        self._look = look
        self._answers: Iterator[Answer] = cycle([Answer("drawn", 1.0)])
        self._pictures = 0

    def be_told(self, answers: tuple[Answer, ...]) -> None:
        self._answers = cycle(answers)

    async def send(
        self, request: ApiRequest, account: Account, key: Secret | None, client_request_id: str, hear: Hear | None = None
    ) -> RawReply | Failure:
        count = _count_of(request)
        sent = Sent(client_request_id, digest(request.body), price(count) if account.backend == "openai" else MicroUSD(0))
        self._look(sent)
        self.sent.append(sent)
        answer = next(self._answers)
        try:
            await trio.sleep(answer.seconds)
        finally:
            sent.under_way = False
        if not KINDS[answer.kind]:
            sent.billed = MicroUSD(0)
        match answer.kind:
            case "drawn":
                drawn = [picture(self._pictures + number) for number in range(count)]
                self._pictures += count
                sent.drawn = tuple(digest(one) for one in drawn)
                data = [{"b64_json": base64.b64encode(one).decode()} for one in drawn]
                return _json(200, {"data": data, "usage": usage(count)})
            case "useless":
                return _json(200, {"data": [], "usage": usage(count)})
            case "gibberish":
                return RawReply(200, {"content-type": "text/html"}, b"<html>" + client_request_id.encode())
            case "gateway":
                return RawReply(502, {"content-type": "text/html"}, b"<html>bad gateway</html>")
            case "limited":
                return _json(429, {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}})
            case "limited, come back":
                limited = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
                return _json(429, limited, {"retry-after": "40"})
            case "server error":
                return _json(500, {"error": {"message": "sorry", "type": "server_error", "code": None}})
            case "refused":
                return _json(400, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_value"}})
            case "unreachable":
                return transport_failure("not_sent", "no route to host")
            case _:
                return transport_failure("outcome_unknown", "connection reset")


@cache
def price(count: int) -> MicroUSD:
    """Of so many pictures in one reply, from the price table."""
    tokens = {name: said for name, said in usage(count).items() if isinstance(said, int)}
    counted = Usage(
        **tokens,
        input_text_tokens=tokens["input_tokens"],
        input_image_tokens=0,
        output_text_tokens=0,
        output_image_tokens=tokens["output_tokens"],
    )
    amount = pricing.cost(MODEL, counted, backend="openai").amount
    assert amount, f"the price table has no price for {MODEL}, so nothing could be billed"
    return amount


def usage(count: int) -> dict[str, int | dict[str, int]]:
    """As for one picture, so many times."""
    return {
        name: {part: count * tokens for part, tokens in said.items()} if isinstance(said, Mapping) else count * said
        for name, said in USAGE.items()
    }


@cache
def picture(number: int) -> bytes:
    """A PNG of one pixel, different for each number."""
    out = BytesIO()
    Image.new("RGB", (1, 1), tuple(number.to_bytes(3, "big"))).save(out, "PNG")
    return out.getvalue()


def _count_of(request: ApiRequest) -> int:
    if request.headers["Content-Type"] == "application/json":
        return int(msgspec.json.decode(request.body)["n"])
    return 1


def _json(status: int, body: object, headers: Mapping[str, str] | None = None) -> RawReply:
    return RawReply(status, {"content-type": "application/json", **(headers or {})}, msgspec.json.encode(body))
