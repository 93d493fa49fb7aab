"""The control API's socket: HTTP/1.1 over run/control.sock, one connection at a time, every wait and every size bounded.

    curl --unix-socket ~/.local/share/imaged/run/control.sock http://imaged/v1/status

Rule: this file knows the protocol and its limits, `control_routes` what can be asked. Whatever is refused, by either,
is a problem in JSON. What comes from a web page - by its Origin, its Sec-Fetch headers or a foreign Host - is refused
even though no page can reach the socket: one day somebody will forward it to a port.

h11 runs on trio without a server in between: those there are shield a write without a bound, have no deadline for a
head, answer what is malformed with an empty page, and speak three more protocols to whoever asks for an upgrade.
"""

import contextlib
import logging
import re
import select
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from http import HTTPStatus

import h11
import trio

from daemon import control_events, control_routes, doors
from daemon.control_routes import API, Asked, Route
from daemon.doors import Lobby
from daemon.ending import Closing
from daemon.house import House
from daemon.replies import Problem, Reply

SOCKET_NAME = "control.sock"
CONNECTIONS_MAX = 64  # each may hold a body of 64 MB; so rather change who has a place than how many have one
KEPT_PLACES = 4  # beyond those, where the daemon can be looked at and stopped while all others are at work
TURNED_AWAY_MAX = 64  # at once with an answer; more than that without one
HEAD_BYTES_MAX = 16 * 1024
HEAD_SECONDS_MAX = 5.0
BODY_SECONDS_MAX = 20.0
IDLE_SECONDS_MAX = 60.0
WRITE_SECONDS_MAX = 10.0  # for each piece: whoever takes none of it for so long is gone
GOODBYE_SECONDS_MAX = 1.0
LINGER_SECONDS_MAX = 2.0  # a client that is still sending hears why it was refused
LAST_ANSWERS_SECONDS_MAX = 2.0  # when the door closes
PIECE_BYTES = 64 * 1024
ABOUT_THE_DAEMON = frozenset({"/v1/status", "/v1/get_status", "/v1/stop_daemon"})  # nobody else's work, and soon answered
HOSTS = frozenset({"", "localhost", "imaged"})
_PORT = re.compile(r":[0-9]{1,5}$")

logger = logging.getLogger(__name__)


class _Door:
    def __init__(self, house: House) -> None:
        self.house = house
        self.closing = Closing()
        self.strangers = Lobby()  # whose first request has not come whole, or is refused
        self.regulars = Lobby()  # whose next one has not; a client that works is among these between two questions
        self.stays: dict[int, trio.CancelScope] = {}  # by descriptor, whoever has a place
        self.kept_lobby = Lobby()  # whose next request has not come whole to one of the kept places
        self.kept_stays: dict[int, trio.CancelScope] = {}
        self.turned_away = 0

    def has_room(self) -> bool:
        """Makes some if need be, by letting somebody go. False: all who have a place are being answered."""
        if len(self.stays) < CONNECTIONS_MAX or self._end_stays_of_the_gone():
            return True
        return self.strangers.make_room() or self.regulars.make_room() or control_events.followers.make_room()

    def has_kept_place(self) -> bool:
        return len(self.kept_stays) < KEPT_PLACES or self.kept_lobby.make_room()

    def _end_stays_of_the_gone(self) -> bool:
        """Nobody reads from a connection that is being answered, so that its end may go unnoticed: a follower's for 15 s."""
        poll = select.poll()
        for descriptor in self.stays:
            poll.register(descriptor, 0)  # that the peer has closed both ways is told in any case
        gone = [descriptor for descriptor, _ in poll.poll(0)]
        for descriptor in gone:
            self.stays.pop(descriptor).cancel()
        return bool(gone)


@asynccontextmanager
async def open_door(listener: trio.SocketListener, house: House) -> AsyncIterator[None]:
    """Serves for as long as the body runs; what is being answered then is finished, unless it takes long.

    Raises:
        EventLogError: the daemon is about to end.
    """
    door = _Door(house)
    async with trio.open_nursery() as connections:
        accepting = await connections.start(_accept, listener, door, connections)
        yield
        accepting.cancel()
        door.closing.begin()
        connections.cancel_scope.deadline = trio.current_time() + LAST_ANSWERS_SECONDS_MAX


async def _accept(
    listener: trio.SocketListener,
    door: _Door,
    connections: trio.Nursery,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Connections run in a nursery of their own, for they outlast the listening."""
    with trio.CancelScope() as accepting:
        task_status.started(accepting)
        await trio.serve_listeners(partial(_welcome, door=door), [listener], handler_nursery=connections)


async def _welcome(stream: trio.SocketStream, door: _Door) -> None:
    """One connection, from its first byte to its end. Never raises for what a client does."""
    async with stream:
        if not doors.is_ours(stream):
            return
        try:
            if door.has_room():
                await _stay(_Connection(stream, door), stream.socket.fileno(), door.stays)
            elif door.has_kept_place():
                await _stay(_Connection(stream, door, kept=True), stream.socket.fileno(), door.kept_stays)
            else:
                await _turn_away(_Connection(stream, door), door)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            logger.info("a client of the control API left in the middle of something")


async def _stay(connection: "_Connection", descriptor: int, stays: dict[int, trio.CancelScope]) -> None:
    with trio.CancelScope() as stay:
        stays[descriptor] = stay
        try:
            await connection.serve()
        finally:
            stays.pop(descriptor, None)


async def _turn_away(connection: "_Connection", door: _Door) -> None:
    if door.turned_away >= TURNED_AWAY_MAX:
        return
    door.turned_away += 1
    try:
        await connection.turn_away(_all_at_work())
    finally:
        door.turned_away -= 1


class _Connection:
    """`kept`: in one of the kept places, where nothing is answered that is not about the daemon."""

    def __init__(self, stream: trio.SocketStream, door: _Door, *, kept: bool = False) -> None:
        self._stream = stream
        self._door = door
        self._kept = kept
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._method = b""

    async def serve(self) -> None:
        """One request after the other, until either side has had enough."""
        lobby = self._door.kept_lobby if self._kept else self._door.strangers
        while True:
            only_a_look = True
            try:
                with lobby.wait() as wait:
                    whole = await self._whole_request()
                if wait.cancel_called:
                    await self._say_goodbye()
                    return
                if whole is None:
                    return
                route, asked = whole
                only_a_look = asked.path in ABOUT_THE_DAEMON
                with self._door.house.conversation(only_a_look=only_a_look):
                    reply = await route.answer(self._door.house, asked)
            except h11.RemoteProtocolError as exc:
                reply = _malformed(exc).reply()
            except Problem as problem:
                reply = problem.reply()
                self._pass_over_body()
            try:
                with self._door.house.conversation(only_a_look=only_a_look):
                    await self._send(reply)
            except Problem as problem:  # the head has left already, so all that can be told is that this is not the end
                logger.warning("an answer was cut off", extra={"why": str(problem)})
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                with lobby.wait():
                    await self._linger()
                return
            lobby = self._door.kept_lobby if self._kept else self._door.regulars
            self._http.start_next_cycle()

    async def _say_goodbye(self) -> None:
        """To whoever makes room. Who had begun to ask hears that nothing has come of it; silence is left in silence.

        Not longer than a moment, and without waiting for the other side: somebody else has this place already.
        """
        if self._kept:  # whoever comes when all places are taken hears so, whether or not it has asked yet
            await _turn_away(self, self._door)
            return
        if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            return
        with trio.move_on_after(GOODBYE_SECONDS_MAX):
            await self._send(_too_many("this request had not come whole when others came; ask again").reply())

    async def turn_away(self, problem: Problem) -> None:
        await self._send(problem.reply())
        await self._linger()

    async def _head(self) -> h11.Request | None:
        """None: nothing more is asked.

        Raises:
            Problem: it came too slowly.
            h11.RemoteProtocolError
        """
        self._method = b""
        event = self._http.next_event()
        if event is h11.NEED_DATA and not self._http.trailing_data[0]:
            with self._door.closing.ends_a_wait(IDLE_SECONDS_MAX) as wait:
                await self._receive()
            if wait.cancelled_caught:
                return None
        with trio.move_on_after(HEAD_SECONDS_MAX):
            while event is h11.NEED_DATA:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    await self._receive()
            return event if isinstance(event, h11.Request) else None
        raise Problem("too_slow", f"The head of the request did not come within {HEAD_SECONDS_MAX:g} s.")

    async def _whole_request(self) -> tuple[Route, Asked] | None:
        """None: nothing more is asked.

        Raises:
            Problem, h11.RemoteProtocolError
        """
        request = await self._head()
        if request is None:
            return None
        self._method = request.method
        _insist_on_small_head(request)
        headers = _headers(request)
        target = request.target.decode("ascii", "backslashreplace")
        _refuse_web_pages(headers)
        if not target.startswith("/"):
            raise Problem("bad_request", "The target is not a path; ask for one such as /v1/status.")
        path, _, query = target.partition("?")
        if self._kept and path not in ABOUT_THE_DAEMON:
            raise _all_at_work()
        route = control_routes.find(request.method.decode("ascii"), path)
        body = await self._body(route, headers)
        return route, Asked(path, query, headers, body, self._door.closing)

    async def _body(self, route: Route, headers: Mapping[str, str]) -> bytes:
        if route.method == "POST" and not _is_json(headers.get("content-type", "")):
            raise Problem("not_json", "A request needs Content-Type: application/json, and JSON in UTF-8 as its body.")
        most = route.body_bytes_max
        too_large = Problem("too_large", f"The body may have {most} bytes here." if most else "There is no body here.")
        length = headers.get("content-length", "0")  # h11 has made sure that it is a number
        if len(length) > 18 or int(length) > most:
            raise too_large
        body = bytearray()
        with trio.move_on_after(BODY_SECONDS_MAX):
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > most:
                        raise too_large
                elif event is h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        await self._write(h11.InformationalResponse(status_code=100, headers=[]))
                    await self._receive()
                else:  # its end: whatever else may come in the middle of a body raises
                    return bytes(body)
        raise Problem("too_slow", f"The body did not come within {BODY_SECONDS_MAX:g} s.")

    def _pass_over_body(self) -> None:
        """As far as it has come: a request without one, or with a short one, is no reason to close the connection."""
        with contextlib.suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and self._http.next_event() is not h11.NEED_DATA:
                continue

    async def _receive(self) -> None:
        self._http.receive_data(bytes(await self._stream.receive_some(PIECE_BYTES)))

    async def _send(self, reply: Reply) -> None:
        """
        Raises:
            Problem: by a stream whose head has left. One before that is sent in its place.
        """
        if reply.stream is None:
            await self._send_whole(reply)
            return
        begun = False

        async def send(piece: bytes) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await self._write(self._response(reply, reply.length_bytes))
            await self._write(h11.Data(data=piece))

        try:
            await reply.stream(send)
        except Problem as problem:
            if begun:
                raise
            await self._send_whole(problem.reply())
            return
        await send(b"")
        await self._write(h11.EndOfMessage())

    async def _send_whole(self, reply: Reply) -> None:
        body = () if self._method == b"HEAD" else (h11.Data(data=reply.body),)
        await self._write(self._response(reply, len(reply.body)), *body, h11.EndOfMessage())

    def _response(self, reply: Reply, length: int | None) -> h11.Response:
        headers = {
            "date": formatdate(usegmt=True),
            "api-version": API,
            "content-type": reply.media_type,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **reply.headers,
        }
        if length is not None and reply.status != 304:
            headers["content-length"] = str(length)
        # A daemon that is about to end says so with every answer: a question that comes as it closes would be lost.
        if self._http.their_state is not h11.DONE or self._door.closing.begun or self._door.house.ending.wanted:
            headers["connection"] = "close"
        reason = HTTPStatus(reply.status).phrase.encode("ascii")
        return h11.Response(status_code=reply.status, headers=list(headers.items()), reason=reason)

    async def _write(self, *events: h11.Event) -> None:
        data = memoryview(b"".join(self._http.send(event) or b"" for event in events))
        for start in range(0, len(data), PIECE_BYTES):
            with trio.fail_after(WRITE_SECONDS_MAX):
                await self._stream.send_all(data[start : start + PIECE_BYTES])

    async def _linger(self) -> None:
        """Takes what is still on its way: a socket that is closed with unread bytes breaks its peer's writing."""
        with self._door.closing.ends_a_wait(LINGER_SECONDS_MAX):
            await self._stream.send_eof()
            while await self._stream.receive_some(PIECE_BYTES):
                continue


def _insist_on_small_head(request: h11.Request) -> None:
    """h11 counts only what is not finished yet: a head that came in one piece with others has never been counted."""
    lines = [(request.method, request.target), *request.headers.raw_items()]
    if sum(len(name) + len(value) + len(": \r\n") for name, value in lines) > HEAD_BYTES_MAX:
        raise _head_too_large()


def _too_many(why: str) -> Problem:
    return Problem("too_many_connections", f"{CONNECTIONS_MAX} connections are open, and {why}.", headers={"connection": "close"})


def _all_at_work() -> Problem:
    return _too_many("all of them are at work; ask again later")


def _head_too_large() -> Problem:
    return Problem("head_too_large", f"The head of a request may have {HEAD_BYTES_MAX} bytes.")


def _headers(request: h11.Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _refuse_web_pages(headers: Mapping[str, str]) -> None:
    if "origin" in headers or any(name.startswith("sec-fetch-") for name in headers):
        raise Problem("foreign_page", "This came from a web page; the control API is for programs of this user.")
    host = _PORT.sub("", headers.get("host", "").lower())
    if host not in HOSTS:
        raise Problem("foreign_host", "Host is neither localhost nor imaged; ask for a URL such as http://imaged/v1/status.")


def _is_json(content_type: str) -> bool:
    media_type, _, parameters = content_type.lower().partition(";")
    return media_type.strip() == "application/json" and parameters.strip() in ("", "charset=utf-8", 'charset="utf-8"')


def _malformed(exc: h11.RemoteProtocolError) -> Problem:
    """h11's own words name what is wrong, and never repeat what a header holds."""
    match exc.error_status_hint:
        case 431:
            return _head_too_large()
        case 501:
            return Problem("not_implemented", "Of transfer encodings only chunked is understood.")
        case _:
            return Problem("bad_request", "This is not an HTTP/1.1 request.")
