"""The command line's door: one operation a line, one answer a line.

{"operation": "get_status", "arguments": {}}   →   {"result": {…}, "text": "…"}  or  {"refused": {…}}
"""

import logging

import msgspec
import trio

from daemon import operations, texts
from daemon.house import House
from daemon.operations import Refusal, UnknownOperation
from daemon.session import Caller, Session, client_named
from daemon.version import VERSION
from tools.failures import UNREADABLE

LINE_BYTES_MAX = 4 * 1024 * 1024  # a prompt of 32,000 characters that JSON has to escape, many times over
IDLE_SECONDS_MAX = 600.0

logger = logging.getLogger(__name__)


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    operation: str
    arguments: dict[str, object] = {}


async def serve(stream: trio.SocketStream, received: bytes, session: Session, house: House) -> None:
    """Answers until the other end closes, says nothing for ten minutes, or says something senseless."""
    data = received
    try:
        while True:
            while b"\n" not in data:
                with trio.fail_after(IDLE_SECONDS_MAX):
                    piece = await stream.receive_some(LINE_BYTES_MAX)
                if not piece or len(data) > LINE_BYTES_MAX:
                    return
                data += bytes(piece)
            line, _, data = data.partition(b"\n")
            reply = await _answer(line, session, house)
            with trio.fail_after(IDLE_SECONDS_MAX):
                await stream.send_all(msgspec.json.encode(reply) + b"\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        logger.info("the command line left in the middle of something")


async def _answer(line: bytes, session: Session, house: House) -> dict[str, object]:
    try:
        asked = msgspec.json.decode(line, type=_Asked)
    except UNREADABLE:
        return {"refused": Refusal(code="bad_request", message="That line is not a request; use the imaged command.")}
    caller = Caller(session, client_named("imaged", VERSION), _say_nothing)
    try:
        answer = await operations.answer(house, caller, asked.operation, asked.arguments)
    except UnknownOperation:
        return {"refused": Refusal(code="unknown_operation", message=f"There is no operation {asked.operation[:64]!r}.")}
    if isinstance(answer, Refusal):
        return {"refused": answer}
    return {"result": answer.result, "text": texts.text(answer.result)}


async def _say_nothing(seconds: float, message: str) -> None:
    """The command line shows no progress through this door."""
