"""The other end of the control API: asks a daemon one operation after the other, follows its log, fetches pictures.

Rule: what may have reached the daemon whole is never sent again from here, for it may draw, and be paid for. It is sent
once more only where the daemon surely has not begun it: the connection was closed before, or broke in the middle of
the question, or the answer was that the daemon ends and begins nothing new. Blocking.
"""

import hashlib
import http.client
import json
import select
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from daemon import bridge, client_endings, config
from daemon.config import Places
from daemon.errors import NotRunning, Refused
from daemon.version import VERSION

SOCKET_NAME = "control.sock"
ANSWER_SECONDS_MAX = 120.0  # beyond what the question itself waits for
STARTING_SECONDS = 0.5  # between two questions to a daemon that still reads its log
STATUS_SECONDS_MAX = 20.0  # what a daemon answers from its memory; one that is so late hangs
IMPORT_SECONDS_MAX = 3600.0  # every file of an old history is read once
KEPT_SECONDS_MAX = 30.0  # the daemon closes what is silent for 60 s; well before, so that this never happens as we ask
READ_BYTES = 256 * 1024
TRIES_MAX = 4  # of one question; a daemon that goes away more often has something to say in its log


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def says(self, code: str) -> bool:
        """That the daemon takes no question now, and why."""
        return self.status == 503 and _object(self.body).get("code") == code

    def refused(self) -> dict[str, Any]:
        """What a problem says, under the names of a refusal.

        Raises:
            bridge.Trouble: this is no problem of ours.
        """
        problem = _object(self.body)
        if not {"code", "detail"} <= problem.keys():
            raise _not_understood(f"status {self.status}")
        billed = {"billed": problem["billed"]} if "billed" in problem else {}
        return {"code": problem["code"], "message": problem["detail"], "argument": problem.get("argument", ""), **billed}


class _Broken(NotRunning):
    """In the middle of a question, so the daemon cannot have begun what was asked."""


class _StillStarting(Exception):
    """The daemon reads its log."""


class Stopped(NotRunning):
    """The daemon ended in order, and whoever only waits must not start another one."""


class _Wire(http.client.HTTPConnection):
    """HTTP/1.1 over a socket that is connected already. Once it is closed it stays closed."""

    auto_open = 0

    def __init__(self, connection: socket.socket) -> None:
        super().__init__("imaged")
        self.sock = connection
        self.pid = client_endings.pid_behind(connection)

    @property
    def is_silent(self) -> bool:
        """Open, and nothing to be read: between two answers that could only be its end."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def begin(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Asks, and reads the head of the answer.

        Raises:
            OSError, http.client.HTTPException
            _Broken: not all of it could be sent, and there is no answer.
        """
        try:
            self.request(method, target, body, dict(headers))
        except (BrokenPipeError, ConnectionResetError) as broken:
            try:
                return self.getresponse()  # whoever is refused early is told why
            except (OSError, http.client.HTTPException):
                raise _Broken(_ENDED) from broken
        return self.getresponse()


class Connection:
    """One question at a time; not for two threads. Made by `connected`.

    It begins anew by itself when the daemon has closed it, with `start` also with another daemon: of this home, and
    begun in this environment. Starting one makes / the working directory.
    """

    def __init__(
        self,
        places: Places,
        settings: Mapping[str, str],
        *,
        start: bool,
        say: Callable[[str], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` gets a sentence where somebody has to wait for longer than they expect.

        Raises:
            BadConfiguration: the settings cannot be sent.
        """
        self._places = places
        self._start = start
        self._say, self._said = say or (lambda _: None), ""
        self._now = now
        self._headers = {"User-Agent": f"imaged/{VERSION}", "X-Imaged-Settings": config.settings_header(settings)}
        self._sync_wait = settings.get("IMAGED_SYNC_WAIT_SECONDS", "")
        self._wire: _Wire | None = None
        self._answered_at = 0.0
        self._only_waits = False
        self._pid = 0  # of the daemon that answered last

    def open(self) -> None:
        """
        Raises:
            NotRunning: nobody serves this home, and none is to be started, or none stays.
            bridge.Trouble: the daemon cannot be started or reached.
        """
        self._wire, self._answered_at = self._reached(), self._now()

    def only_wait(self) -> None:
        """From here on another daemon is started after a crash, but not after one that was stopped: that raises Stopped."""
        self._only_waits = True

    def close(self) -> None:
        """It may be used again."""
        if self._wire is not None:
            self._wire.close()
        self._wire = None

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        """`{"result": …, "text": …, "failed": …}`, with "attachments" where there are any, or
        `{"refused": {"code": …, "message": …, "argument": …}}`, with "billed" for what would have cost money.

        Raises:
            NotRunning: nobody serves this home, or the daemon ended while it was asked.
            bridge.Trouble: it did not answer in time, or not in a way that can be understood.
        """
        body = json.dumps(arguments).encode()
        reply = self._reply("POST", f"/v1/{quote(operation, safe='')}", body, self._patience(operation, arguments))
        if reply.status != 200:
            return {"refused": reply.refused()}
        answer = _object(reply.body)
        if "result" not in answer:
            raise _not_understood("no result")
        return answer

    def picture(self, uuid: str, n: int) -> bytes:
        """The n-th picture of a generation, from 1, exactly as it was received.

        Raises:
            Refused: there is none, or its bytes are gone, damaged, or not those that its digest stands for.
            NotRunning, bridge.Trouble: as `ask` does.
        """
        reply = self._reply("GET", f"/v1/images/{quote(uuid, safe='')}/{n:d}", None, ANSWER_SECONDS_MAX)
        if reply.status != 200:
            raise _refusal(reply)
        if reply.headers.get("etag") != f'"{hashlib.sha256(reply.body).hexdigest()}"':
            raise Refused(f"Picture {n} of {uuid} did not arrive as it was sent; ask for it again.", code="io_error")
        return reply.body

    def events(self, after: int, *, follow: bool) -> Generator[dict[str, Any], None, None]:
        """The commits behind a position, up to the log's end or, with `follow`, for as long as the daemon runs.

        Over a connection of its own, which ends with the generator. Waits between commits are not bounded, but the
        daemon's silence is.

        Raises:
            Refused: the log does not reach that far, or cannot be read.
            NotRunning, bridge.Trouble: as `ask` does.
        """
        with closing(self._reached()) as wire, _in_our_words(wire, "the log", ANSWER_SECONDS_MAX):
            wire.sock.settimeout(ANSWER_SECONDS_MAX)
            with wire.begin("GET", f"/v1/events?after={after:d}&follow={follow:d}", None, self._headers) as response:
                if response.status != 200:
                    raise _refusal(_Reply(response.status, {}, response.read()))
                begun = b""
                while piece := response.read1(READ_BYTES):  # readline would take a broken connection for the end
                    *lines, begun = (begun + piece).split(b"\n")
                    yield from (_object(line) for line in lines if line)  # an empty one is a heartbeat

    def _reply(self, method: str, target: str, body: bytes | None, seconds: float) -> _Reply:
        for _ in range(TRIES_MAX):
            if not self._is_fit():
                self.close()
                self.open()
            assert self._wire is not None
            try:
                with _in_our_words(self._wire, target, seconds):
                    reply = _whole(self._wire, (method, target, body, self._headers), seconds)
            except _Broken:
                self.close()
                continue
            except BaseException:  # also Ctrl-C: an answer that is still to come must not be taken for the next one's
                self.close()
                raise
            self._answered_at = self._now()
            if reply.says("starting"):
                self.close()
                self._wait_for_start(reply)
                return self._reply(method, target, body, seconds)
            if not (self._start and reply.says("draining")):
                return reply
            self._insist_on_crash()
            self.close()
        raise self._none_stays()

    def _is_fit(self) -> bool:
        """Whether the next question may go the way of the last one."""
        return self._wire is not None and self._now() - self._answered_at < KEPT_SECONDS_MAX and self._wire.is_silent

    def _reached(self) -> _Wire:
        """A daemon that takes questions; with `start`, one that has said that it stays."""
        if not self._start:
            wire = self._dialled()
            if wire is None:
                raise NotRunning(f"no daemon is running for {self._places.home}.")
            return wire
        tried = 0
        while tried < TRIES_MAX:
            if tried:
                self._insist_on_crash()
                bridge.connect(str(self._places.home), config.environment(), bridge.daemon_command()).close()
            wire = self._dialled()
            if wire is not None:
                self._pid = wire.pid
                try:
                    if self._stays(wire):
                        return wire
                except _StillStarting:
                    continue
            tried += 1
        raise self._none_stays()

    def _insist_on_crash(self) -> None:
        """For those who only wait: does nothing if the daemon crashed, or if its successor listens already."""
        if not self._only_waits:
            return
        client_endings.wait_for_end(self._pid)
        next_one = self._dialled()
        if next_one is not None:
            next_one.close()
        elif client_endings.was_in_order(self._places.events):
            raise Stopped(f"the daemon of {self._places.home} was stopped; nothing goes on until one runs again.")

    def _wait_for_start(self, reply: _Reply) -> None:
        if (sentence := str(reply.refused()["message"])) != self._said:
            self._say(sentence)
        self._said = sentence
        time.sleep(STARTING_SECONDS)

    def _stays(self, wire: _Wire) -> bool:
        """Asked of a new connection, because this question may be lost: it is no fact, and changes nothing."""
        try:
            with _in_our_words(wire, "/v1/status", STATUS_SECONDS_MAX):
                reply = _whole(wire, ("GET", "/v1/status", None, self._headers), STATUS_SECONDS_MAX)
            if reply.says("starting"):
                self._wait_for_start(reply)
                raise _StillStarting
            if reply.status != 200:
                raise bridge.Trouble(str(reply.refused()["message"]))
            stays = not _object(reply.body).get("draining") and wire.sock is not None
        except NotRunning:
            stays = False
        except BaseException:  # only to release the socket
            wire.close()
            raise
        if not stays:
            wire.close()
        return stays

    def _dialled(self) -> _Wire | None:
        """None if nobody listens."""
        try:
            found = bridge.try_to_connect(str(self._places.home), SOCKET_NAME)
        except bridge.Trouble as exc:
            if self._start:
                raise
            raise NotRunning(str(exc)) from exc  # no daemon of ours, whoever it may be
        except OSError as exc:
            raise NotRunning(f"no daemon can be reached at {self._places.run} ({exc.strerror}).") from exc
        return None if found is None else _Wire(socket.socket(fileno=found.detach()))

    def _none_stays(self) -> NotRunning:
        return NotRunning(f"no daemon stayed for {self._places.home}, asked {TRIES_MAX} times; {self._places.logs} tells why.")

    def _patience(self, operation: str, arguments: Mapping[str, object]) -> float:
        if operation == "import_history":
            return IMPORT_SECONDS_MAX
        if operation in ("get_status", "stop_daemon"):
            return STATUS_SECONDS_MAX
        return ANSWER_SECONDS_MAX + _waiting_seconds(arguments.get("wait_seconds", self._sync_wait))


@contextmanager
def connected(
    places: Places, settings: Mapping[str, str], *, start: bool = True, say: Callable[[str], None] | None = None
) -> Iterator[Connection]:
    """A connection to the daemon of this home, which is started if none runs. Of `settings`, those of a session are sent.

    Raises:
        BadConfiguration: the settings cannot be sent.
        NotRunning: nobody serves this home, and none is to be started, or none stays.
        bridge.Trouble: the daemon cannot be started or reached.
    """
    with closing(Connection(places, settings, start=start, say=say)) as connection:
        connection.open()
        yield connection


def ask(
    places: Places, operation: str, arguments: Mapping[str, object], settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One question to a daemon that runs.

    Raises:
        NotRunning: nobody serves this home, or it ended while it was asked.
        bridge.Trouble: it did not answer in time, or not in a way that can be understood.
    """
    with connected(places, settings or {}, start=False) as connection:
        return connection.ask(operation, **arguments)


_ENDED = "the daemon ended while it was asked, or closed the connection; its log tells why."


@contextmanager
def _in_our_words(wire: _Wire, what: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise bridge.Trouble(
            f"the daemon runs, but said nothing about {what} for {seconds:g} s; what was asked may still be done. Look again "
            f"later; if it stays so, run: kill -9 {wire.pid or 'PID'} - the next daemon finds all that was received in the log"
        ) from exc
    except (OSError, http.client.IncompleteRead) as exc:  # a connection that ends before the answer is an OSError, too
        raise NotRunning(_ENDED) from exc
    except http.client.HTTPException as exc:
        raise _not_understood(type(exc).__name__) from exc


def _whole(wire: _Wire, question: tuple[str, str, bytes | None, Mapping[str, str]], seconds: float) -> _Reply:
    """The limit is for each piece of the answer; daemons send them in one stretch."""
    method, target, body, headers = question
    if body is not None:
        headers = {**headers, "Content-Type": "application/json"}
    wire.sock.settimeout(seconds)
    with wire.begin(method, target, body, headers) as response:
        names = {name.lower(): value for name, value in response.getheaders()}
        return _Reply(response.status, names, response.read())


def _waiting_seconds(given: object) -> float:
    """How long the daemon waits for jobs before it answers. What makes no sense is refused there."""
    try:
        return min(max(0.0, float(str(given))), config.SYNC_WAIT_SECONDS_MAX)
    except ValueError:
        return 0.0


def _refusal(reply: _Reply) -> Refused:
    said = reply.refused()
    return Refused(str(said["message"]), code=str(said["code"]), argument=str(said["argument"]))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        raise _not_understood("no JSON") from None
    if not isinstance(found, dict):
        raise _not_understood("no JSON object")
    return found


def _not_understood(what: str) -> bridge.Trouble:
    return bridge.Trouble(f"the daemon answered in a way that this version does not understand ({what}); restart it.")
