"""The front of every client: standard library only, every byte through, and one sentence when something is wrong."""

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.program import SECONDS_MAX

BRIDGE = Path(__file__).resolve().parent.parent.parent / "daemon" / "bridge.py"
ALONE = f"""
import sys, types
sys.path.insert(0, {str(BRIDGE.parent.parent)!r})
from daemon import bridge
"""
KEY = "sk-test-canary-0123456789"


class FakeDaemon:
    """Listens where a daemon would, and lets the test be the daemon."""

    def __init__(self, home: Path) -> None:
        self.run = home / "run"
        self.run.mkdir(mode=0o700, parents=True)
        self.listener = socket.socket(socket.AF_UNIX)
        directory = os.open(self.run, os.O_RDONLY)
        self.listener.bind(f"/proc/self/fd/{directory}/mcp.sock")
        os.close(directory)
        self.listener.listen()
        self.listener.settimeout(SECONDS_MAX)
        self.connections: list[socket.socket] = []

    def close(self) -> None:
        for connection in (self.listener, *self.connections):
            connection.close()

    def accept(self) -> tuple[socket.socket, dict[str, object]]:
        connection, _ = self.listener.accept()
        self.connections.append(connection)
        connection.settimeout(SECONDS_MAX)
        line = bytearray()
        while not line.endswith(b"\n"):
            line += connection.recv(1)
        return connection, json.loads(line)


@contextlib.contextmanager
def bridged(
    home: Path, command: Sequence[str] = ("/bin/false",), cwd: Path = Path("/"), **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    code = ALONE + f"import os\nbridge.daemon_command = lambda: {list(command)!r}\nsys.exit(bridge.main([], os.environ))\n"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env={"HOME": str(home), "IMAGED_HOME": str(home / "imaged"), **environment},
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS_MAX)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def said(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    assert process.stderr
    status = process.wait(SECONDS_MAX)
    text = process.stderr.read().decode()
    assert "Traceback" not in text, text
    return status, text


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "imaged")
    yield fake
    fake.close()


def test_twenty_megabytes_pass_both_ways_without_losing_a_byte(daemon: FakeDaemon, tmp_path: Path) -> None:
    up, down = os.urandom(20_000_000), os.urandom(20_000_000).replace(b"{", b"[")
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stdout
        stdin = process.stdin

        def feed() -> None:
            stdin.write(up)
            stdin.close()

        received = bytearray()

        def swallow() -> None:
            while piece := connection.recv(1 << 16):
                received.extend(piece)

        threads = [
            threading.Thread(target=feed),
            threading.Thread(target=swallow),
            threading.Thread(target=connection.sendall, args=(down,)),
        ]
        for thread in threads:
            thread.start()
        got = bytearray()
        while len(got) < len(down):
            got += os.read(process.stdout.fileno(), 1 << 16)
        for thread in threads:
            thread.join(SECONDS_MAX)
        assert bytes(got) == down and bytes(received) == up
        connection.close()
        assert said(process)[0] == 0


def test_the_first_line_holds_the_settings_and_nothing_else_of_the_environment(daemon: FakeDaemon, tmp_path: Path) -> None:
    given = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_IMAGE_OUTPUT_DIR": "~/京都",
        "IMAGED_SYNC_WAIT_SECONDS": "3",
        "AWS_SECRET": "no",
        "LANG": "C",
    }
    with bridged(tmp_path, **given) as process:
        _, hello = daemon.accept()
        assert hello["imaged"] == 1 and hello["door"] == "mcp" and hello["software"]
        settings = hello["settings"]
        assert isinstance(settings, dict)
        assert settings["OPENAI_API_KEY"] == KEY and settings["OPENAI_IMAGE_OUTPUT_DIR"] == "~/京都"
        assert set(settings) == {"OPENAI_API_KEY", "OPENAI_IMAGE_OUTPUT_DIR", "IMAGED_SYNC_WAIT_SECONDS", "IMAGED_HOME"}
        assert KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_the_users_own_env_file_is_read_and_that_of_the_working_directory_is_not(daemon: FakeDaemon, tmp_path: Path) -> None:
    config = tmp_path / ".config" / "imaged"
    config.mkdir(parents=True)
    (config / ".env").write_text(
        "# mine\nexport OPENAI_API_KEY='from the file'\nOPENAI_IMAGE_MODEL=\"gpt-image-2\"\nIMAGED_BACKEND=offline\n"
    )
    (config / ".env").chmod(0o600)
    project = tmp_path / "project"
    project.mkdir()
    (project / ".env").write_text("OPENAI_BASE_URL=http://evil.example/v1\nOPENAI_IMAGE_ALLOW_ANY_PATH=true\n")
    with bridged(tmp_path, cwd=project, IMAGED_BACKEND="openai"):
        settings = daemon.accept()[1]["settings"]
        assert isinstance(settings, dict)
        assert settings["OPENAI_API_KEY"] == "from the file" and settings["OPENAI_IMAGE_MODEL"] == "gpt-image-2"
        assert settings["IMAGED_BACKEND"] == "openai", "the real environment wins"
        assert not {"OPENAI_BASE_URL", "OPENAI_IMAGE_ALLOW_ANY_PATH"} & set(settings)


def test_an_env_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    config = tmp_path / ".config" / "imaged"
    config.mkdir(parents=True)
    (config / ".env").write_text("OPENAI_API_KEY=x\n")
    (config / ".env").chmod(0o666)
    with bridged(tmp_path) as process:
        status, text = said(process)
        assert status == 1 and "chmod 600" in text


def test_a_refused_first_line_is_told_on_stderr(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.sendall(b'{"imaged": 1, "refused": "OPENAI_BASE_URL is wrong."}\n')
        connection.close()
        status, text = said(process)
        assert (status, text) == (1, "imaged: OPENAI_BASE_URL is wrong.\n")
        assert process.stdout and process.stdout.read() == b""


def test_a_first_answer_passes_unchanged_even_byte_by_byte(daemon: FakeDaemon, tmp_path: Path) -> None:
    answer = b'{"id":1,"jsonrpc":"2.0","result":{}}\n'
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for byte in answer:
            connection.sendall(bytes([byte]))
        assert process.stdout and process.stdout.read(len(answer)) == answer


def test_a_daemon_that_goes_is_told_and_ends_the_bridge(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.close()
        status, text = said(process)
        assert status == 1 and "the daemon ended" in text


def test_a_client_that_closes_its_side_still_gets_the_last_answer(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stdout
        process.stdin.write(b"question\n")
        process.stdin.close()
        assert connection.recv(100) == b"question\n" and connection.recv(100) == b""
        connection.sendall(b'{"answer":1}\n')
        connection.close()
        assert process.stdout.read() == b'{"answer":1}\n'
        assert said(process) == (0, "")


def test_a_client_that_takes_nothing_more_ends_the_bridge_quietly(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        assert process.stdout
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                connection.sendall(b"x" * 100_000)
        assert said(process) == (0, "")


def test_a_closed_stdin_or_stdout_is_one_sentence(tmp_path: Path) -> None:
    for redirect in ("0<&-", "1>&-"):
        code = shlex.quote(ALONE + "import os; sys.exit(bridge.main([], os.environ))")
        command = f"exec {sys.executable} -I -S -c {code} {redirect}"
        done = subprocess.run(
            ["/bin/sh", "-c", command], env={"HOME": str(tmp_path)}, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 1 and b"is closed" in done.stderr, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_a_traceback(number: int, daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        daemon.accept()
        process.send_signal(number)
        status, text = said(process)
        assert status in (-signal.SIGTERM, 130) and text == ""


def test_a_home_that_others_can_enter_is_refused(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.run.chmod(0o755)
    with bridged(tmp_path) as process:
        status, text = said(process)
        assert status == 1 and "chmod 700" in text


def test_a_home_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    fake = FakeDaemon(home / "imaged")
    with bridged(home):
        assert fake.accept()[1]["imaged"] == 1
    fake.close()


STARTED = """
import os, socket, sys
home = os.environ["IMAGED_HOME"]
os.makedirs(home + "/run", mode=0o700, exist_ok=True)
open(home + "/environ", "w").write(repr(dict(os.environ)))
open(home + "/place", "w").write(repr((os.getcwd(), os.getsid(0) == os.getpid())))
s = socket.socket(socket.AF_UNIX)
s.bind(home + "/run/new"); s.listen(); os.rename(home + "/run/new", home + "/run/mcp.sock")
s.settimeout(30)
c, _ = s.accept()
c.settimeout(30)
while not c.recv(65536).endswith(b"\\n"): pass
c.sendall(b'{"hello":"client"}\\n')
c.close()
"""


def test_a_daemon_is_started_apart_from_us_and_without_our_secrets(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    for name in ("daemon", "eventlog", "trio"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise SystemExit('the working directory was imported')")
    command = [sys.executable, "-I", "-c", STARTED]
    secrets = {
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_API_KEY": "x",
        "GITHUB_TOKEN": "x",
        "DB_PASSWORD": "x",
        "_PYI_X": "1",
        "HTTPS_PROXY": "http://p",
    }
    with bridged(tmp_path, command, cwd=hostile, **secrets) as process:
        assert process.stdout
        assert select.select([process.stdout], [], [], SECONDS_MAX)[0]
        assert process.stdout.read() == b'{"hello":"client"}\n', said(process)
    home = tmp_path / "imaged"
    environment = eval((home / "environ").read_text())
    assert not set(secrets) & set(environment) - {"HTTPS_PROXY"}
    assert environment["IMAGED_HOME"] == str(home) and KEY not in str(environment)
    assert oct((home / "logs" / "daemon.stderr").stat().st_mode)[-3:] == "600"
    assert (home / "place").read_text() in (repr((str(hostile), True)), repr(("/", True)))


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    with bridged(tmp_path, [sys.executable, "-c", "import sys; sys.exit('the log is damaged at byte 7')"]) as process:
        status, text = said(process)
        assert status == 1 and "the log is damaged at byte 7" in text


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    with bridged(tmp_path, ["/not/there"]) as process:
        status, text = said(process)
        assert status == 1 and "/not/there" in text


def test_nothing_is_imported_that_a_bridge_does_not_need() -> None:
    code = ALONE + "print(*sorted(m for m in sys.modules if not m.startswith('_')))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, timeout=60)
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True, timeout=60
    )
    more = set(done.stdout.decode().split()) - set(bare.stdout.decode().split())
    allowed = {"collections", "collections.abc", "errno", "select", "stat", "types", "daemon", "daemon.bridge", "daemon.version"}
    allowed |= {
        "os",
        "os.path",
        "posixpath",
        "genericpath",
        "abc",
        "keyword",
        "operator",
        "reprlib",
        "itertools",
        "functools",
        "heapq",
    }
    assert more <= allowed, more - allowed
