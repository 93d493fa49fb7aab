"""The command line's end of the control API: against a daemon of a few lines that misbehaves, and against the real one."""

import hashlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from daemon import bridge, client
from daemon.client import TRIES_MAX, Connection
from daemon.config import SETTINGS_BYTES_MAX, Places
from daemon.errors import BadConfiguration, NotRunning, Refused
from daemon.version import VERSION
from eventlog.events import RequestReceived
from tests.program import SECONDS_MAX, Program, running, wait_until

SMALL = {"size": "1024x640", "quality": "low"}


class Peer:
    """The daemon's side of one connection."""

    def __init__(self, connection: socket.socket, asked: list[str]) -> None:
        connection.settimeout(SECONDS_MAX)
        self._socket = connection
        self._asked = asked

    def hear(self) -> None:
        """One whole question."""
        head, _, body = self.read(b"\r\n\r\n").partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(body) < length:
            body += self._socket.recv(1 << 16)
        self._asked.append(head.split()[1].decode())

    def read(self, until: bytes) -> bytes:
        data = b""
        while until not in data and (piece := self._socket.recv(1000)):
            data += piece
        return data

    def say(self, value: object, status: int = 200, *headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers))
        self.send(head.encode() + b"\r\n" + body)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def leave(self) -> None:
        """Ends whatever waits for it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


Behaviour = Callable[[Peer], None]


class Impostor:
    """What stands at a home's control.sock: a behaviour for each connection, one after the other. Remembers what was asked."""

    def __init__(self, places: Places, *behaviours: Behaviour) -> None:
        self.asked: list[str] = []
        self._behaviours = behaviours
        self._peers: list[Peer] = []
        self._trouble: list[Exception] = []
        places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(places.run, os.O_RDONLY | os.O_DIRECTORY)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"/proc/self/fd/{folder}/{client.SOCKET_NAME}")
        os.close(folder)
        self._listener.listen()
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        try:
            for behaviour in self._behaviours:
                connection, _ = self._listener.accept()
                self._peers.append(Peer(connection, self.asked))
                behaviour(self._peers[-1])
        except (OSError, ValueError, StopIteration) as exc:
            self._trouble.append(exc)

    def __enter__(self) -> "Impostor":
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for peer in self._peers:
            peer.leave()
        self._serving.join(SECONDS_MAX)
        self._listener.close()
        for peer in self._peers:
            peer.close()
        assert kind is not None or self._trouble == [], "not all that was expected was asked"


def answers(*values: object) -> Behaviour:
    """To so many questions, and then keeps the connection."""

    def behave(peer: Peer) -> None:
        for value in values:
            peer.hear()
            peer.say(value)

    return behave


def then_closes(behaviour: Behaviour) -> Behaviour:
    def behave(peer: Peer) -> None:
        behaviour(peer)
        peer.close()

    return behave


def result(value: object) -> dict[str, object]:
    return {"result": value, "text": "", "failed": False}


def drains(peer: Peer) -> None:
    peer.hear()
    peer.say({"code": "draining", "detail": "imaged is ending."}, 503)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "imaged")


@contextmanager
def asking(places: Places, now: Callable[[], float] = lambda: 0.0) -> Iterator[Connection]:
    with closing(Connection(places, {}, start=False, now=now)) as connection:
        yield connection


def test_nobody_there_is_said_so(places: Places) -> None:
    with asking(places) as connection, pytest.raises(NotRunning, match=f"no daemon is running for {places.home}"):
        connection.open()
    with Impostor(places), pytest.raises(NotRunning, match=f"chmod 700 {places.run}"):
        places.run.chmod(0o755)
        client.ask(places, "get_status", {})
    places.run.chmod(0o700)
    (places.run / client.SOCKET_NAME).unlink()
    places.run.rmdir()
    places.run.write_text("a file")
    with pytest.raises(NotRunning, match="no daemon can be reached"):
        client.ask(places, "get_status", {})


def test_one_connection_carries_many_questions(places: Places) -> None:
    with Impostor(places, answers(result(1), result(2))) as impostor, asking(places) as connection:
        assert [connection.ask("one")["result"], connection.ask("two", x="é\ud800")["result"]] == [1, 2]
    assert impostor.asked == ["/v1/one", "/v1/two"]


def test_a_connection_that_was_closed_while_idle_is_replaced_unseen(places: Places) -> None:
    with Impostor(places, then_closes(answers(result(1))), answers(result(2))) as impostor, asking(places) as connection:
        assert connection.ask("one")["result"] == 1
        wait_until(lambda: not connection._is_fit(), "the close")
        assert connection.ask("two")["result"] == 2
    assert impostor.asked == ["/v1/one", "/v1/two"]


def test_a_connection_that_is_about_to_be_closed_is_not_used(places: Places) -> None:
    time = [0.0]
    with Impostor(places, answers(result(1), result(2)), answers(result(3))), asking(places, lambda: time[0]) as connection:
        assert connection.ask("one")["result"] == 1
        time[0] += client.KEPT_SECONDS_MAX - 1
        assert connection.ask("two")["result"] == 2
        time[0] += client.KEPT_SECONDS_MAX
        assert connection.ask("three")["result"] == 3


def test_what_was_asked_whole_is_never_asked_again(places: Places) -> None:
    with Impostor(places, then_closes(Peer.hear), answers(result(2))) as impostor, asking(places) as connection:
        with pytest.raises(NotRunning, match="the daemon ended while it was asked"):
            connection.ask("generate_image", prompt="a fox")
        assert impostor.asked == ["/v1/generate_image"]
        assert connection.ask("get_status")["result"] == 2


def test_an_answer_that_breaks_off_is_lost(places: Places) -> None:
    def half(peer: Peer) -> None:
        peer.hear()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"result')
        peer.close()

    with Impostor(places, half), asking(places) as connection, pytest.raises(NotRunning, match="ended while"):
        connection.ask("generate_image")


def test_a_question_that_broke_off_in_the_middle_is_asked_again_a_few_times(places: Places) -> None:
    def breaks(peer: Peer) -> None:
        peer.read(b"\r\n\r\n")
        peer.close()

    long = "x" * 4_000_000  # more than a socket holds
    with Impostor(places, breaks, answers(result(1))) as impostor, asking(places) as connection:
        assert connection.ask("generate_image", prompt=long)["result"] == 1
    assert impostor.asked == ["/v1/generate_image"]
    (places.run / client.SOCKET_NAME).unlink()
    with (
        Impostor(places, *[breaks] * TRIES_MAX),
        asking(places) as connection,
        pytest.raises(NotRunning, match="no daemon stayed"),
    ):
        connection.ask("generate_image", prompt=long)


def test_who_is_refused_before_the_question_is_over_hears_why(places: Places) -> None:
    def refuses(peer: Peer) -> None:
        peer.read(b"\r\n\r\n")
        peer.say({"code": "too_large", "detail": "Too large.", "billed": "no"}, 413, "Connection: close")
        peer.close()

    with Impostor(places, refuses), asking(places) as connection:
        told = connection.ask("generate_image", prompt="x" * 4_000_000)
    assert told == {"refused": {"code": "too_large", "message": "Too large.", "argument": "", "billed": "no"}}


def test_a_daemon_that_is_slow_is_not_one_that_ended(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS_MAX", 0.05)
    late = threading.Event()

    def dawdles(peer: Peer) -> None:
        peer.hear()
        assert late.wait(SECONDS_MAX)
        with pytest.raises(BrokenPipeError):
            peer.say(result("for somebody else"))

    with Impostor(places, dawdles, answers(result(2))), asking(places) as connection:
        with pytest.raises(
            bridge.Trouble, match=r"the daemon runs, but said nothing about /v1/generate_image for 0\.05 s"
        ) as told:
            connection.ask("generate_image")
        assert f"kill -9 {os.getpid()} " in str(told.value), "here the impostor's"
        late.set()
        monkeypatch.undo()
        assert connection.ask("get_status")["result"] == 2


@pytest.mark.parametrize(
    ("operation", "arguments", "settings", "seconds"),
    [
        ("get_status", {}, {}, 20),
        ("list_jobs", {}, {}, 120),
        ("import_history", {}, {}, 3600),
        ("wait_for_jobs", {"wait_seconds": 30}, {}, 150),
        ("wait_for_jobs", {"wait_seconds": 1e99}, {}, 3720),
        ("wait_for_jobs", {"wait_seconds": "soon"}, {}, 120),
        ("generate_image", {}, {"IMAGED_SYNC_WAIT_SECONDS": "600"}, 720),
        ("generate_image", {}, {"IMAGED_SYNC_WAIT_SECONDS": "nan"}, 120),
    ],
)
def test_a_question_that_waits_is_waited_for(
    operation: str, arguments: dict[str, object], settings: dict[str, str], seconds: float, places: Places
) -> None:
    assert Connection(places, settings, start=False)._patience(operation, arguments) == seconds


def test_an_interrupted_question_leaves_no_answer_to_the_next(places: Places) -> None:
    def interrupts(peer: Peer) -> None:
        peer.hear()
        os.kill(os.getpid(), signal.SIGINT)

    with Impostor(places, interrupts, answers(result(2))), asking(places) as connection:
        with pytest.raises(KeyboardInterrupt):
            connection.ask("generate_image")
        assert connection.ask("cancel_job")["result"] == 2


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-Other\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"result"',
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_of_something_else_is_not_understood(said: bytes, places: Places) -> None:
    def speaks(peer: Peer) -> None:
        peer.hear()
        peer.send(said)

    with Impostor(places, speaks), asking(places) as connection, pytest.raises(bridge.Trouble, match="does not understand"):
        connection.ask("get_status")


def test_a_daemon_that_is_ending_refuses_those_who_may_not_start_another(places: Places) -> None:
    with Impostor(places, drains), asking(places) as connection:
        assert connection.ask("get_status")["refused"]["code"] == "draining"


def reads(peer: Peer) -> None:
    peer.hear()
    peer.say({"code": "starting", "detail": "43 %"}, 503, "Connection: close")
    peer.close()


def test_a_daemon_that_still_reads_its_log_is_waited_for(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STARTING_SECONDS", 0)
    said: list[str] = []
    long = [reads] * (TRIES_MAX + 1)
    with (
        Impostor(places, *long, answers({"draining": False}, result(7))) as impostor,
        client.connected(places, {}, say=said.append) as connection,
    ):
        assert connection.ask("generate_image")["result"] == 7
    assert impostor.asked == ["/v1/status"] * (TRIES_MAX + 2) + ["/v1/generate_image"]
    assert said == ["43 %"], "once, and then again when it is further"
    (places.run / client.SOCKET_NAME).unlink()
    with Impostor(places, *long, answers(result(7))), asking(places) as connection:
        assert connection.ask("generate_image")["result"] == 7


class Starter:
    """In place of `bridge.connect`: another daemon is there, or still the old one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = 0
        monkeypatch.setattr(bridge, "connect", self)

    def __call__(self, home: str, environ: object, command: object) -> socket.socket:
        self.started += 1
        return socket.socket(socket.AF_UNIX)


def test_a_daemon_that_ends_is_followed_by_another_which_is_asked_instead(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = Starter(monkeypatch)

    def stays_and_ends(peer: Peer) -> None:
        answers({"draining": False})(peer)
        drains(peer)

    ending, ended, staying = answers({"draining": True}), then_closes(Peer.hear), answers({"draining": False}, result(7))
    with Impostor(places, stays_and_ends, ending, ended, staying) as impostor, client.connected(places, {}) as connection:
        assert starter.started == 0
        assert connection.ask("generate_image")["result"] == 7
    assert starter.started == 2
    status = "/v1/status"
    assert impostor.asked == [status, "/v1/generate_image", status, status, status, "/v1/generate_image"]


def test_daemons_are_started_a_few_times_only(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = Starter(monkeypatch)
    with pytest.raises(NotRunning, match="no daemon stayed"), client.connected(places, {}):
        pass
    ends = [answers({"draining": True})] * TRIES_MAX
    with Impostor(places, *ends), pytest.raises(NotRunning, match="no daemon stayed"), client.connected(places, {}):
        pass
    assert starter.started == 2 * (TRIES_MAX - 1)


def test_a_daemon_with_too_many_connections_is_not_replaced(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = Starter(monkeypatch)

    def turns_away(peer: Peer) -> None:
        peer.hear()
        peer.say({"code": "too_many_connections", "detail": "64 connections are open."}, 503, "Connection: close")

    with Impostor(places, turns_away), pytest.raises(bridge.Trouble, match="64 connections"), client.connected(places, {}):
        pass
    assert starter.started == 0


def test_a_picture_that_is_not_its_digest_is_refused(places: Places) -> None:
    def swaps(peer: Peer) -> None:
        for tag in (f'ETag: "{hashlib.sha256(b"fox").hexdigest()}"', 'ETag: "0"', "X: y"):
            peer.hear()
            peer.say(b"fox", 200, tag)

    with Impostor(places, swaps) as impostor, asking(places) as connection:
        assert connection.picture("../a b", 1) == b"fox"
        for _ in range(2):
            with pytest.raises(Refused, match="did not arrive as it was sent"):
                connection.picture("x", 2)
    assert impostor.asked[0] == "/v1/images/..%2Fa%20b/1"


def stream(*pieces: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)


def test_events_are_told_without_heartbeats_until_the_daemon_is_gone(places: Places) -> None:
    ends: Behaviour = lambda peer: (peer.hear(), peer.send(stream(b"\n", b'{"a":', b"1}\n{}\n", b"")))[-1]  # noqa: E731
    breaks: Behaviour = lambda peer: (peer.hear(), peer.send(stream(b'{"a":1}\n')), peer.close())[-1]  # noqa: E731
    with Impostor(places, ends, breaks) as impostor, asking(places) as connection:
        assert list(connection.events(7, follow=True)) == [{"a": 1}, {}]
        broken = connection.events(0, follow=False)
        assert next(broken) == {"a": 1}
        with pytest.raises(NotRunning, match="ended while it was asked"):
            next(broken)
    assert impostor.asked == ["/v1/events?after=7&follow=1", "/v1/events?after=0&follow=0"]


def test_settings_that_cannot_be_sent_are_refused_before_anything_is(places: Places) -> None:
    with pytest.raises(BadConfiguration, match="'IMAGED_X' is not text in UTF-8") as said:
        Connection(places, {"IMAGED_X": "secret\udc80"}, start=True)
    assert "secret" not in str(said.value)
    with pytest.raises(BadConfiguration, match="11,265 bytes, and 11,264 are allowed; make 'IMAGED_X' shorter"):
        Connection(places, sized(SETTINGS_BYTES_MAX + 1), start=True)


def sized(size_bytes: int) -> dict[str, str]:
    """Settings of exactly so many bytes of JSON."""
    return {"IMAGED_X": "x" * (size_bytes - len('{"IMAGED_X": ""}'))}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("client")) as program:
        yield program


def test_the_real_daemon_answers_refuses_and_knows_who_asked(house: Program) -> None:
    with client.connected(house.places, house.environment, start=False) as connection:
        drawn = connection.ask("generate_image", prompt="a fox", **SMALL)
        assert (drawn["failed"], drawn["result"]["state"]) == (False, "completed") and "fox" in drawn["text"]
        inline = connection.ask("get_job_result", job_id=drawn["result"]["job_id"], return_base64=True)
        assert inline["attachments"][0]["mime_type"] == "image/png"
        refused = connection.ask("generate_image", prompt="a fox", size="1x1")["refused"]
        assert (refused["argument"], refused["billed"]) == ("size", "no") and refused["message"]
        assert connection.ask("unheard_of")["refused"]["code"] == "unknown_operation"
        (image,) = drawn["result"]["images"]
        picture = connection.picture(drawn["result"]["job_id"], 1)
        assert hashlib.sha256(picture).hexdigest() == image["original_sha256"]
        with pytest.raises(Refused, match="has no picture 2") as said:
            connection.picture(drawn["result"]["job_id"], 2)
        assert said.value.code == "no_such_resource"
    facts = [event for commit in house.log() for event in commit.events if isinstance(event, RequestReceived)]
    assert {(fact.door, fact.client.name, fact.client.version) for fact in facts} == {("control", "imaged", VERSION)}


def test_settings_of_the_largest_size_pass_and_others_are_left_at_home(house: Program) -> None:
    settings = {**sized(SETTINGS_BYTES_MAX), "PATH": "/nowhere", "SECRET": "x" * 99_999}
    with client.connected(house.places, settings, start=False) as connection:
        assert connection.ask("x" * 40)["refused"]["code"] == "unknown_operation"
        assert connection.ask("get_status")["result"]["pid"] == house.pid


def test_the_real_log_is_told_and_followed(house: Program) -> None:
    with client.connected(house.places, house.environment, start=False) as connection:
        told = list(connection.events(0, follow=False))
        assert [one["position"] for one in told] == list(range(1, len(told) + 1))
        with closing(connection.events(told[-1]["position"], follow=True)) as following:
            job = connection.ask("generate_image", prompt="followed", **SMALL)["result"]["job_id"]
            heard = [next(following)]
            while heard[-1]["events"][0]["type"] != "JobCompleted":
                heard.append(next(following))
        assert heard[0]["position"] == told[-1]["position"] + 1 and heard[-1]["events"][0]["job"] == job
        with pytest.raises(Refused, match="the log ends at") as said:
            next(connection.events(10**9, follow=False))
        assert (said.value.code, said.value.argument) == ("cursor_ahead", "after")
