"""Whatever is wrong, the doctor says it in a sentence with the line that puts it right, and shows no key."""

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from daemon import bridge, doctor, doctor_world
from daemon.config import DEFAULT_MODEL, Places, Settings, fingerprint
from daemon.doctor_findings import Answered, Finding, Patient
from daemon.setup_clients import CLIENTS
from eventlog.segments import segment_name
from tests.eventlog.builders import PROMPTS, one_job, written
from tests.eventlog.disks import NoReserve
from tools import pricing
from tools.models import catalogue

KEY = "sk-proj-canary0123456789abcdefghij"
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
EXECUTABLE = ["/opt/imaged/imaged", "mcp"]
ANSWER_SECONDS_MAX = 30.0


class House:
    """A user's home without anything in it, and what the doctor says of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places = Places(path / ".local/share/imaged")
        self.environ = {"HOME": str(path), "OPENAI_API_KEY": KEY}
        self.now = NOW
        self.executable = EXECUTABLE

    def examine(self, ask_models: Callable[[Settings], Answered] | None = None, **environ: str) -> tuple[Finding, ...]:
        before = sorted(self.path.rglob("*"))
        found = doctor.examine({**self.environ, **environ}, executable=self.executable, now=self.now, ask_models=ask_models)
        told = doctor.report(found)
        assert KEY not in told and KEY[8:] not in told and KEY not in repr(found)
        assert all(bool(finding.fix) for finding in found if finding.level in ("warning", "error")), told
        assert sorted(self.path.rglob("*")) == before, "the doctor only looks"
        return found

    def says(self, area: str, **environ: str) -> list[tuple[str, str]]:
        return [(f.level, f"{f.sentence} -> {f.fix}") for f in self.examine(None, **environ) if f.area == area]

    def one(self, area: str, level: str, *words: str, **environ: str) -> None:
        """Exactly one finding of this level, with these words in it."""
        found = [text for at, text in self.says(area, **environ) if at == level]
        assert len(found) == 1, self.says(area, **environ)
        for word in words:
            assert word in found[0], found[0]

    def file(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text, "utf-8")
        path.chmod(mode)
        return path

    def log(self) -> datetime:
        """A log of one job; the moment of its last commit."""
        self.places.events.mkdir(parents=True, mode=0o700)
        self.places.home.chmod(0o700)
        located = written(self.places.events, [[one] for one in one_job()], NoReserve())
        for path in self.places.events.iterdir():
            path.chmod(0o600)
        return located[-1].commit.at


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_new_user_with_a_key_is_well(house: House) -> None:
    found = house.examine()
    assert doctor.is_well(found) and not [f for f in found if f.level == "warning"], doctor.report(found)
    assert {f.area for f in found} >= {
        "key",
        "api",
        "directories",
        "home",
        "socket",
        "versions",
        "daemon",
        "disk",
        "log",
        "prices",
    }
    house.one("key", "ok", "the environment", fingerprint(KEY))
    house.one("clients", "note", "imaged setup CLIENT")


def test_the_source_and_the_shape_of_the_key_are_told(house: House) -> None:
    house.one("key", "warning", "no key", ".env", "chmod 600", OPENAI_API_KEY="")
    house.one("key", "warning", "does not look like", OPENAI_API_KEY="my key")
    house.one("key", "ok", fingerprint("local"), OPENAI_API_KEY="local", OPENAI_BASE_URL="http://localhost:9/v1")
    house.one("key", "note", "offline", IMAGED_BACKEND="offline")
    env_file = house.file(".config/imaged/.env", f"OPENAI_API_KEY={KEY}\n", 0o644)
    house.one("key", "ok", f"From {env_file}", OPENAI_API_KEY="")
    house.one("key", "warning", "Others can read", f"chmod 600 {env_file}")


def test_a_broken_env_file_is_a_finding_and_the_other_checks_go_on(house: House) -> None:
    env_file = house.file(".config/imaged/.env", f"OPENAI_API_KEY={KEY}\n", 0o622)
    house.one("configuration", "error", f"chmod 600 {env_file}")
    house.one("directories", "ok", "Downloads")
    env_file.chmod(0o600)
    env_file.write_bytes(b"\xff" + KEY.encode())
    house.one("configuration", "error", "UTF-8")
    env_file.write_text("IMAGED_HOME=relative\n", "utf-8")
    house.one("configuration", "error", "IMAGED_HOME is 'relative'")


def test_a_setting_that_is_not_understood_is_a_finding(house: House) -> None:
    house.one("configuration", "error", "IMAGED_BACKEND is 'on'", IMAGED_BACKEND="on")
    house.one("configuration", "error", "OPENAI_API_KEY holds characters", OPENAI_API_KEY=KEY + "\u00e9")
    house.one("versions", "ok", "SQLite", IMAGED_BACKEND="on")


def test_without_any_home_there_is_still_a_report(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(environ: object) -> str:
        raise bridge.Trouble("HOME is not set and this user has no entry in the password database; set HOME.")

    monkeypatch.setattr(bridge, "user_home", nobody)
    house.one("configuration", "error", "HOME is not set", "export HOME")
    house.one("prices", "ok")


def test_directories_that_cannot_be_used_are_named(house: House) -> None:
    file = house.file("file", "")
    house.one("directories", "error", "is not a directory", OPENAI_IMAGE_OUTPUT_DIR=str(file))
    house.one("directories", "warning", "not there", "mkdir -p", OPENAI_IMAGE_INPUT_DIR="~/none")
    house.one("directories", "warning", "within each other", "OUTPUT_DIR", OPENAI_IMAGE_OUTPUT_DIR=str(house.places.events))
    (house.path / ".local").mkdir()
    (house.path / "link").symlink_to(house.path / ".local")
    house.one("directories", "warning", "within each other", "INPUT_DIR", OPENAI_IMAGE_INPUT_DIR=str(house.path / "link"))


def test_a_directory_without_permission_or_room_is_an_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (house.path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        house.one("directories", "error", "cannot be written", "chmod u+rwx", OPENAI_IMAGE_OUTPUT_DIR="~/out")
    real = os.statvfs(house.path)
    full = os.statvfs_result((*real[:4], 10, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    house.one("directories", "error", "MB left", "make room")
    house.one("disk", "error", "MB left", "make room")


def test_what_others_could_read_of_the_home_is_named(house: House) -> None:
    house.log()
    house.one("home", "ok", "for you alone")
    (house.places.events / segment_name(0)).chmod(0o644)
    house.one("home", "warning", segment_name(0) + " (0644)", "chmod -R go= ")


def test_the_socket_and_its_folder_must_be_ours_alone(house: House) -> None:
    house.one("socket", "ok", "No daemon has run")
    run = house.places.run
    run.mkdir(parents=True, mode=0o700)
    house.one("socket", "ok", "no daemon runs")
    run.chmod(0o755)
    house.one("socket", "error", "0755", f"chmod 700 {run}")
    run.chmod(0o700)
    (run / "mcp.sock").write_text("", "utf-8")
    house.one("socket", "error", "not a socket of yours", "rm ")
    (run / "mcp.sock").unlink()
    run.rmdir()
    run.symlink_to(house.path)
    house.one("socket", "error", "is a link to one", "rm ")


def test_a_socket_that_nobody_listens_at_is_left_over(house: House) -> None:
    house.places.run.mkdir(parents=True, mode=0o700)
    with _listening(house.places, "mcp.sock", None):
        pass
    house.one("socket", "note", "left over")
    house.one("daemon", "ok", "None runs")


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ({"result": {"software": "9.9", "pid": 7}}, "warning", ["9.9", "imaged stop"]),
        ({"result": {"software": "0.1.0", "pid": 7, "log_full": True}}, "error", ["full"]),
        ({"result": {"software": "0.1.0", "pid": 7, "index_stale": True}}, "warning", ["history"]),
        ({"code": "draining", "detail": "no"}, "warning", ["refused"]),
        ([], "error", ["could not be looked at", "this version does not understand"]),
    ],
)
def test_a_daemon_that_is_not_well_says_so(house: House, answer: object, level: str, words: list[str]) -> None:
    house.places.run.mkdir(parents=True, mode=0o700)
    body = json.dumps(answer).encode()
    status = b"200 OK" if "result" in body.decode() else b"503 No"
    with _listening(house.places, "control.sock", b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)):
        found = [f for f in house.examine() if f.area == "daemon"]
    assert [f.level for f in found] == [level]
    assert all(word in f"{found[0].sentence} {found[0].fix}" for word in words), found


def test_a_daemon_that_never_answers_costs_seconds_and_not_the_report(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.places.run.mkdir(parents=True, mode=0o700)
    checks = [(area, check, 0.2 if area == "daemon" else seconds) for area, check, seconds in doctor.CHECKS]
    monkeypatch.setattr(doctor, "CHECKS", tuple(checks))
    with _listening(house.places, "control.sock", b""):
        found = house.examine()
    assert ("daemon", "warning") in {(f.area, f.level) for f in found if "given up" in f.sentence}
    assert {"prices", "log"} <= {f.area for f in found}


@pytest.mark.parametrize("exc", [OSError(5, "Input/output error"), sqlite3.DatabaseError("malformed"), ValueError("odd")])
def test_a_check_that_fails_is_a_finding(house: House, monkeypatch: pytest.MonkeyPatch, exc: Exception) -> None:
    def failing(patient: Patient) -> tuple[Finding, ...]:
        raise exc

    monkeypatch.setattr(doctor, "CHECKS", (("log", failing, 10.0), *doctor.CHECKS[-1:]))
    (found,) = house.examine()
    assert (found.area, found.level) == ("log", "error") and str(exc) in found.sentence


def test_a_sound_log_is_told_with_its_head_and_the_clock(house: House) -> None:
    last = house.log()
    house.now = last + timedelta(seconds=1)
    house.one("log", "ok", "6 commits in 1 segments")
    house.one("clock", "ok", "later")
    house.one("disk", "note", "reserve")
    house.now = last - timedelta(seconds=60)
    house.one("clock", "warning", "went back", "timedatectl")


def test_a_torn_end_and_damage_are_told_apart(house: House) -> None:
    house.log()
    segment = house.places.events / segment_name(0)
    whole = segment.read_bytes()
    segment.write_bytes(whole + b"torn")
    house.one("log", "warning", "4 bytes", "next start")
    segment.write_bytes(whole[:100] + b"X" + whole[101:])
    house.one("log", "error", "Damaged after 0", "backup")


def test_the_log_shows_no_prompt(house: House) -> None:
    house.log()
    assert PROMPTS[0] in (house.places.events / segment_name(0)).read_text("utf-8")
    assert PROMPTS[0] not in doctor.report(house.examine())


def test_old_prices_and_models_that_go_are_told(house: House) -> None:
    house.now = datetime.combine(pricing.table().as_of, NOW.timetz()) + timedelta(days=pricing.table().stale_after_days + 1)
    house.one("prices", "warning", "update imaged")
    going = next(model for model in catalogue().models if model.gone_from is not None)
    assert going.gone_from is not None
    house.now = datetime.combine(going.gone_from, NOW.timetz())
    house.one("model", "error", "does not answer any more", OPENAI_IMAGE_MODEL=going.name)
    house.now -= timedelta(days=1)
    house.one("model", "warning", f"until {going.gone_from}", OPENAI_IMAGE_MODEL=going.name)
    house.one("model", "note", "not in the catalogue", DEFAULT_MODEL, OPENAI_IMAGE_MODEL="gpt-image-99")


def test_clients_are_checked_for_what_they_start(house: House, tmp_path: Path) -> None:
    program = house.file("program", "", 0o700)

    def entry(command: str, **more: object) -> None:
        house.file(".cursor/mcp.json", json.dumps({"mcpServers": {"imaged": {"command": command, "args": ["mcp"], **more}}}))

    house.file(".cursor/mcp.json", "{}")
    house.one("cursor", "note", "does not name imaged", "imaged setup cursor")
    entry("/nowhere/imaged")
    house.one("cursor", "error", "/nowhere/imaged", "imaged setup cursor")
    entry("imaged")
    house.one("cursor", "warning", "no absolute path")
    entry(str(program))
    house.one("cursor", "warning", "this program is /opt/imaged/imaged mcp")
    house.executable = [str(program), "mcp"]
    house.one("cursor", "ok", "starts this program")
    entry(str(program), env={"IMAGED_BACKEND": "on"})
    house.one("cursor", "error", "IMAGED_BACKEND is 'on'")
    entry(str(program), env={"OPENAI_API_KEY": KEY})
    (tmp_path / ".cursor/mcp.json").chmod(0o644)
    house.one("cursor", "warning", "others can read", "chmod 600")
    house.file(".cursor/mcp.json", '{"mcpServers": {"imaged": {"url": "x"}}}')
    house.one("cursor", "error", "names no command")
    house.file(".cursor/mcp.json", "{")
    house.one("cursor", "warning", "line 1, column 2")
    house.file(".cursor/mcp.json", "{}").write_bytes(b"\xff")
    house.one("cursor", "warning", "UTF-8")


@pytest.mark.parametrize("client", CLIENTS)
def test_every_clients_file_is_looked_at(house: House, client: str) -> None:
    path = CLIENTS[client].config_path({}, house.path, "linux")
    house.file(str(path.relative_to(house.path)), CLIENTS[client].put("", {"command": "/nowhere/imaged"}))
    house.one(client, "error", str(path))


def test_the_earlier_programs_entry_and_history_are_pointed_out(house: House) -> None:
    old = {"command": "npx", "args": ["openai-gpt-image-mcp-server@1"], "env": {"OPENAI_API_KEY": KEY}}
    house.file(".gemini/settings.json", json.dumps({"mcpServers": {"pics": old, "imaged": {"command": "/x"}}}))
    house.one("gemini", "note", "mcpServers.pics", "--adopt")
    database = house.file(".openai-gpt-image/history.db", "")
    house.one("old history", "note", f"imaged import-history {database}")


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (Answered(200, (DEFAULT_MODEL, "x")), "ok", "2 models"),
        (Answered(200, ("x",)), "warning", "does not list"),
        (Answered(401), "error", "does not take the key"),
        (Answered(403), "warning", "not allowed"),
        (Answered(302), "warning", "302"),
        (Answered(None, trouble=f"no route, said {KEY}"), "error", "no route"),
    ],
)
def test_what_the_api_says_of_the_key_is_told(house: House, answer: Answered, level: str, words: str) -> None:
    (found,) = [f for f in house.examine(lambda settings: answer) if f.area == "api"]
    assert found.level == level and words in found.sentence


def test_a_key_of_any_shape_is_blotted_out_of_what_others_say(house: House) -> None:
    odd = "canary/of another*shape"
    told = doctor.report(house.examine(lambda settings: Answered(None, trouble=f"no route for {odd}"), OPENAI_API_KEY=odd))
    assert "no route for [hidden]" in told and odd not in told


def test_the_api_is_asked_only_on_demand_and_only_with_a_key(house: House) -> None:
    def never(settings: Settings) -> Answered:
        raise AssertionError("nobody may be asked")

    house.one("api", "note", "--online")
    assert {f.level for f in house.examine(never, OPENAI_API_KEY="") if f.area == "api"} == {"note"}
    assert not [f for f in house.examine(never, IMAGED_BACKEND="offline") if f.area == "api"]


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, Answered(200, ("gpt-image-9",))),
        (401, {}, Answered(401)),
        (302, {"Location": "http://localhost:1/"}, Answered(302)),
    ],
)
def test_the_real_question_is_one_get_without_redirects(status: int, headers: dict[str, str], expected: Answered) -> None:
    asked: list[tuple[str, str | None]] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            body = b'{"data": [{"id": "gpt-image-9"}]}'
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            settings = Settings.parse({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}, home_dir=Path("/"))
            assert doctor_world.ask_for_models(settings) == expected
        finally:
            server.shutdown()
            serving.join(ANSWER_SECONDS_MAX)
    assert asked == [("/v1/models", f"Bearer {KEY}")]


def test_an_api_that_is_not_there_is_a_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        answer = doctor_world.ask_for_models(Settings.parse({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}, home_dir=Path("/")))
    assert answer.status is None and "could not be reached" in answer.trouble


@contextmanager
def _listening(places: Places, name: str, answer: bytes | None) -> Iterator[None]:
    """A listener at one of the daemon's sockets that answers a question without arguments; with b"" it answers nothing."""
    short = Path("/proc/self/fd")
    folder = os.open(places.run, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            connection.settimeout(ANSWER_SECONDS_MAX)
            received = b""
            while not received.endswith(b"{}") and (piece := connection.recv(65536)):
                received += piece
            if answer and received:
                connection.sendall(answer)

    listener.bind(str(short / str(folder) / name))
    listener.listen()
    serving = threading.Thread(target=serve)
    if answer is not None:
        serving.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in kept:
            connection.close()
        if answer is not None:
            serving.join(ANSWER_SECONDS_MAX)
        os.close(folder)
