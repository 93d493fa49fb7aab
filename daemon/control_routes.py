"""What the control API offers: its paths, and what stands behind each.

    POST /v1/{operation}          any operation: a JSON object in, {"result": …, "text": …, "failed": …} out
    GET  /v1/operations           the table of operations        GET /v1/openapi.json   the same as OpenAPI 3.1
    GET  /v1/status               the daemon, and its API        GET /openapi.json      the same document
    GET  /v1/images/{uuid}/{n}    a picture as it was received   GET /v1/events         the log

Rule: what an operation does stands in `operations`; this file translates. Operations and pictures that are asked for are
facts, as at every door. Looking at the daemon and reading the log are not: whoever follows the log would follow itself.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec
import trio

from daemon import arguments, bridge, config, control_events, control_pictures, doors, openapi, operations, questions, texts
from daemon.arguments import schema
from daemon.config import Settings
from daemon.ending import Closing
from daemon.errors import BadConfiguration
from daemon.house import House
from daemon.operations import OPERATIONS, Operation, Refusal
from daemon.replies import Problem, Reply, encoded
from daemon.results import Attachment
from daemon.session import Caller, Session, client_named
from daemon.strict_json import NotStrict, read_object
from eventlog.values import Client, Position

API = "1.0"  # what this daemon speaks; within /v1 things are only added
API_OLDEST = "1.0"  # and what it still speaks
BODY_BYTES_MAX = 1024 * 1024
DRAWING_BODY_BYTES_MAX = 64 * 1024 * 1024  # it may carry pictures: one source of 48 MB in base64
SETTINGS_HEADER = "x-imaged-settings"
SHOWN_CHARACTERS_MAX = 64  # of a wrong path or value
_IMAGE = re.compile(r"/v1/images/([0-9A-Za-z-]{1,64})/([1-9][0-9]{0,3})")
_OPERATION = re.compile(r"/v1/([a-z0-9_]{1,40})")
_POSITION = re.compile(r"[0-9]{1,18}")


class Asked(NamedTuple):
    """One request. Names of headers are in lower case; `doors_close` ends an answer that would go on for ever."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    doors_close: Closing


Answering = Callable[[House, Asked], Awaitable[Reply]]


class Route(NamedTuple):
    method: str
    body_bytes_max: int
    answer: Answering


class _Operated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    result: object
    text: str
    failed: bool
    attachments: tuple[Attachment, ...] = ()


def find(method: str, path: str) -> Route:
    """
    Raises:
        Problem: there is nothing of that name, or it is not asked with this method.
    """
    route = _ROUTES.get(path)
    if route is None and _IMAGE.fullmatch(path):
        route = Route("GET", 0, _picture)
    if route is None and (named := _OPERATION.fullmatch(path)):
        route = _operation_route(named[1], method)
    if route is None:
        raise Problem("no_such_path", f"There is no {_shown(path)} here; /openapi.json lists what there is.")
    if route.method != method:
        sentence = f"{_shown(path)} is asked with {route.method}, not with {_shown(method)}."
        raise Problem("method_not_allowed", sentence, headers={"allow": route.method})
    return route


def _operation_route(name: str, method: str) -> Route | None:
    operation = OPERATIONS.get(name)
    if operation is not None and operation.draw is not None:
        return Route("POST", DRAWING_BODY_BYTES_MAX, partial(_draw, operation))
    if operation is not None:
        return Route("POST", BODY_BYTES_MAX, partial(_ask, operation))
    if method == "POST":
        raise Problem("unknown_operation", f"There is no operation {_shown(name)}; GET /v1/operations lists those there are.")
    return None


async def _draw(operation: Operation, house: House, asked: Asked) -> Reply:
    try:
        return await _ask(operation, house, asked)
    except Problem as problem:
        raise problem.of_a_drawing() from problem.__cause__


async def _ask(operation: Operation, house: House, asked: Asked) -> Reply:
    _insist_on_no_query(asked)
    if house.ending.wanted:
        raise Problem("draining", "imaged is ending and begins nothing new; ask again when it has been started again.")
    try:
        given = await trio.to_thread.run_sync(read_object, asked.body)
    except NotStrict as exc:
        raise Problem("bad_json", str(exc)) from exc
    caller = Caller(await _session(house, asked), _client(asked), _say_nothing)
    answer = await operations.answer(house, caller, operation.name, given)
    if isinstance(answer, Refusal):
        raise Problem(answer.code, answer.message, argument=answer.argument)
    told = _Operated(result=answer.result, text=texts.text(answer.result), failed=answer.failed, attachments=answer.attachments)
    return Reply(200, body=encoded(told))


async def _say_nothing(seconds: float, message: str) -> None:
    """Progress is for those who follow the events."""


async def _session(house: House, asked: Asked) -> Session:
    """With the settings of the request or, without any, those the daemon itself was told and the user's `.env` file.

    A daemon that a client's bridge has started was told no key: what one client brings is not another's.
    """
    text = asked.headers.get(SETTINGS_HEADER)
    try:
        given = _settings(text) if text is not None else await trio.to_thread.run_sync(_own_settings)
        return doors.admit(given, "control", house)
    except (BadConfiguration, bridge.Trouble) as exc:
        raise Problem("bad_settings", str(exc), argument=SETTINGS_HEADER) from exc


def _own_settings() -> dict[str, str]:
    """Blocking."""
    return bridge.settings_of(config.environment())


def _settings(text: str) -> dict[str, str]:
    """
    Raises:
        BadConfiguration: shows names, never values.
    """
    try:
        given = read_object(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, NotStrict):
        raise BadConfiguration(
            f"{SETTINGS_HEADER} is not readable; give base64url of a JSON object of names and values, such as "
            '{"IMAGED_BACKEND": "offline"}.'
        ) from None
    for name, value in given.items():
        if not bridge.settings_of({name: ""}):
            raise BadConfiguration(f"{SETTINGS_HEADER} has {_shown(name)}, which is no setting of a session; leave it out.")
        if not isinstance(value, str):
            raise BadConfiguration(f"{SETTINGS_HEADER} gives {name} something else than text; put it in quotes.")
    return given


def _client(asked: Asked) -> Client:
    """As the first product of User-Agent names it."""
    name, _, version = asked.headers.get("user-agent", "").partition(" ")[0].partition("/")
    return client_named(name, version)


async def _list_operations(house: House, asked: Asked) -> Reply:
    _insist_on_no_query(asked)
    listed = [
        {
            "name": operation.name,
            "title": operation.title,
            "description": operation.description,
            "read_only": operation.read_only,
            "destructive": operation.destructive,
            "costs_money": operation.draw is not None,
            "for_people": operation.for_people,
            "arguments": schema(operation.arguments),
            "result": schema(operation.result),
        }
        for operation in OPERATIONS.values()
    ]
    return Reply(200, body=encoded({"operations": listed}))


async def _document(house: House, asked: Asked) -> Reply:
    _insist_on_no_query(asked)
    return Reply(200, body=encoded(openapi.document()))


async def _status(house: House, asked: Asked) -> Reply:
    _insist_on_no_query(asked)
    client = _client(asked)
    if client.name == "imaged":  # our own command asks this first of a daemon that it is going to use
        doors.make_way_for(client.version, house)
    session = Session("control", Settings.parse({}, home_dir=config.user_home()))
    found = await questions.get_status(house, Caller(session, client, _say_nothing), arguments.NoArguments())
    return Reply(
        200,
        body=encoded({"api": API, "api_oldest": API_OLDEST, "draining": house.ending.wanted, "daemon": found.result}),
    )


async def _picture(house: House, asked: Asked) -> Reply:
    _insist_on_no_query(asked)
    parts = _IMAGE.fullmatch(asked.path)
    assert parts is not None
    wanted = control_pictures.Wanted(job_id=parts[1].lower(), n=int(parts[2]), headers=asked.headers)
    session = await _session(house, asked)
    return await control_pictures.reply(house, _client(asked), session.settings.input_roots, wanted)


async def _events(house: House, asked: Asked) -> Reply:
    given = _query(asked, {"after", "follow"})
    sse = control_events.SSE in asked.headers.get("accept", "")
    after = given.get("after", "0")
    if sse:  # who was cut off names the last event it got, beside the address it began with
        after = asked.headers.get("last-event-id", "") or after
    if not _POSITION.fullmatch(after):
        raise Problem("bad_arguments", f"after is {_shown(after)}; allowed is a position of the log, from 0.", argument="after")
    follow = given.get("follow", "0")
    if follow not in ("0", "1"):
        raise Problem("bad_arguments", f"follow is {_shown(follow)}; allowed is 0 or 1.", argument="follow")
    media_type = control_events.SSE if sse else control_events.NDJSON
    return control_events.stream(house, Position(int(after)), media_type, follow=follow == "1", doors_close=asked.doors_close)


def _insist_on_no_query(asked: Asked) -> None:
    _query(asked, set())


def _query(asked: Asked, known: set[str]) -> dict[str, str]:
    """
    Raises:
        Problem: it has a name that is not known, or one twice.
    """
    try:
        pairs = parse_qsl(asked.query, keep_blank_values=True, strict_parsing=bool(asked.query), max_num_fields=10)
    except ValueError:
        raise Problem("bad_arguments", f"The query {_shown(asked.query)} is not name=value pairs.") from None
    for name, _ in pairs:
        if name not in known:
            allowed = " and ".join(sorted(known)) or "no query"
            raise Problem("bad_arguments", f"{_shown(name)} is not known here; it takes {allowed}.", argument=name[:64])
    if len(dict(pairs)) < len(pairs):
        raise Problem("bad_arguments", f"The query {_shown(asked.query)} gives a name twice; give it once.")
    return dict(pairs)


def _shown(text: str) -> str:
    shown = text.encode("ascii", "backslashreplace").decode("ascii")
    return repr(shown if len(shown) <= SHOWN_CHARACTERS_MAX else shown[:SHOWN_CHARACTERS_MAX] + "…")


_ROUTES: Mapping[str, Route] = {
    path: Route("GET", 0, answer)
    for path, answer in {
        "/openapi.json": _document,
        "/v1/openapi.json": _document,
        "/v1/operations": _list_operations,
        "/v1/status": _status,
        "/v1/events": _events,
    }.items()
}
