"""The front of every client: standard library only, every byte through, and one sentence when something is wrong."""

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from daemon import bridge, pump
from tests.program import SECONDS_MAX, wait_until

BRIDGE = Path(__file__).resolve().parent.parent.parent / "daemon" / "bridge.py"
ALONE = f"""
import sys, types
sys.path.insert(0, {str(BRIDGE.parent.parent)!r})
from daemon import bridge, pump as bridge_pump
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


def alone(command: Sequence[str], before: str = "", *options: str) -> list[str]:
    """The bridge in an interpreter that knows nothing but the standard library; `before` it runs, some Python."""
    code = (
        f"{ALONE}import os\nbridge.daemon_command = lambda: {list(command)!r}\n{before}\nsys.exit(bridge.main([], os.environ))\n"
    )
    return [sys.executable, "-I", "-S", *options, "-c", code]


@contextlib.contextmanager
def bridged(
    home: Path, command: Sequence[str] = ("/bin/false",), cwd: Path = Path("/"), before: str = "", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        alone(command, before),
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


def received(process: subprocess.Popen[bytes], count: int) -> bytes:
    """The next bytes of stdout; fewer when there are no more, or when nothing comes for too long."""
    assert process.stdout
    got = bytearray()
    while len(got) < count and select.select([process.stdout], [], [], SECONDS_MAX)[0]:
        piece = os.read(process.stdout.fileno(), count - len(got))
        if not piece:
            break
        got += piece
    return bytes(got)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "imaged")
    yield fake
    fake.close()


def test_twenty_megabytes_pass_both_ways_without_losing_a_byte(daemon: FakeDaemon, tmp_path: Path) -> None:
    up, down = os.urandom(20_000_000), os.urandom(20_000_000).replace(b"{", b"[") + b"\n"
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


INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}\n'
LEAVING = b'{"imaged":1,"leaving":true}\n'


def ask(process: subprocess.Popen[bytes], words: bytes) -> None:
    assert process.stdin
    process.stdin.write(words)
    process.stdin.flush()


def heard(connection: socket.socket, expected: bytes) -> None:
    """Exactly this, and nothing more for now."""
    got = b""
    while len(got) < len(expected):
        piece = connection.recv(len(expected) - len(got))
        assert piece, got
        got += piece
    assert got == expected


@pytest.mark.parametrize("leaves", [True, False])
def test_what_a_leaving_daemon_did_not_hear_is_told_to_the_next_one(leaves: bool, daemon: FakeDaemon, tmp_path: Path) -> None:
    words = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}\nno JSON\n'
    with bridged(tmp_path) as process:
        ask(process, words)
        if leaves:
            assert process.stdin
            process.stdin.close()
        for listens in (False, True):  # before it took a word, and after it took all of them
            connection, hello = daemon.accept()
            assert hello["imaged"] == 1
            if listens:
                heard(connection, words)
            connection.sendall(LEAVING)
            connection.close()
        connection, _ = daemon.accept()
        heard(connection, words)
        connection.sendall(b'{"answer":1}\n')
        assert received(process, 13) == b'{"answer":1}\n'


def test_a_daemon_that_makes_way_for_us_is_followed_at_once(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.sendall(b'{"imaged":1,"makes_way":true}\n{"answer":1}\n')
        assert received(process, 13) == b'{"answer":1}\n'
        connection.close()
        connection, _ = daemon.accept()  # although the client has not said a word
        connection.sendall(b'{"answer":2}\n')
        assert received(process, 13) == b'{"answer":2}\n'


def test_daemons_that_end_one_after_the_other_without_a_word_are_told(daemon: FakeDaemon, tmp_path: Path) -> None:
    for last_words in (b"", LEAVING):
        with bridged(tmp_path) as process:
            ask(process, INITIALIZE)
            for _ in range(pump.DAEMONS_MAX):
                connection, _ = daemon.accept()
                heard(connection, INITIALIZE)
                connection.sendall(last_words)
                connection.close()
            status, text = said(process)
            assert status == 1 and "the daemon ended" in text


def test_more_than_can_be_kept_is_never_told_twice_by_half(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        assert process.stdin
        process.stdin.write(b"x" * pump.BUFFER_BYTES_MAX)
        process.stdin.flush()
        connection, _ = daemon.accept()
        taken = 0
        while taken < pump.BUFFER_BYTES_MAX:
            taken += len(connection.recv(1 << 16))
        process.stdin.write(b"y")
        process.stdin.flush()
        assert connection.recv(1) == b"y"
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
        "DATABASE_URL": "postgres://me:x@db",
        "SLACK_HOOK": "x",
        "_PYI_X": "1",
        "HTTPS_PROXY": "http://p",
    }
    with bridged(tmp_path, command, cwd=hostile, **secrets) as process:
        assert process.stdout
        assert received(process, 19) == b'{"hello":"client"}\n'
    home = tmp_path / "imaged"
    environment = eval((home / "environ").read_text())
    assert set(secrets) & set(environment) == {"HTTPS_PROXY"}
    assert environment["IMAGED_HOME"] == str(home) and KEY not in str(environment)
    assert oct((home / "logs" / "daemon.stderr").stat().st_mode)[-3:] == "600"
    assert (home / "place").read_text() == repr(("/", True))
    assert oct(home.stat().st_mode)[-3:] == oct((home / "logs").stat().st_mode)[-3:] == "700"


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
    allowed |= {"daemon.pump", "daemon.conversation"}
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


def test_a_refusal_is_told_even_to_a_client_that_goes_on_talking(daemon: FakeDaemon, tmp_path: Path) -> None:
    for _ in range(10):
        with bridged(tmp_path) as process:
            assert process.stdin
            process.stdin.write(b"x" * 60_000)
            process.stdin.flush()
            connection, _ = daemon.accept()
            connection.sendall(b'{"imaged":1,"refused":"No."}\n')
            connection.close()
            assert said(process) == (1, "imaged: No.\n")


def test_a_daemon_that_goes_during_the_first_line_is_told(daemon: FakeDaemon, tmp_path: Path) -> None:
    large = {f"IMAGED_{number}": "x" * 100_000 for number in range(8)}  # more than the socket takes at once
    with bridged(tmp_path, **large) as process:
        ask(process, INITIALIZE)
        connection, _ = daemon.listener.accept()
        connection.recv(1)
        connection.close()
        for _ in range(pump.DAEMONS_MAX - 1):
            daemon.listener.accept()[0].close()
        status, text = said(process)
        assert status == 1 and "the daemon ended" in text


@pytest.mark.parametrize("first", [b"\n", b'{"imag', b'{"imagery":1}\n', b"{}\n", b'{"imaged"' + b"x" * 2_000_000])
def test_only_a_refusal_is_taken_for_one(first: bytes, daemon: FakeDaemon, tmp_path: Path) -> None:
    rest = b'inery":2}\n'
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.setblocking(True)
        threading.Thread(target=connection.sendall, args=(first + rest,), daemon=True).start()
        assert received(process, len(first + rest)) == first + rest


@pytest.mark.parametrize("line", [b'{"imaged": 1, "refused": \n', b'{"imaged": 1}\n'])
def test_a_refusal_without_a_reason_is_still_one_sentence(line: bytes, daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        connection.sendall(line)
        status, text = said(process)
        assert status == 1 and text.startswith("imaged: ") and text.count("\n") == 1


def test_neither_side_can_make_it_hold_more_than_its_buffers(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stdout
        os.set_blocking(process.stdin.fileno(), False)
        connection.setblocking(False)
        taken = 0
        while taken < 10 * pump.BUFFER_BYTES_MAX:
            _, ready, _ = select.select([], [process.stdin, connection], [], 0.5)
            if not ready:
                break
            with contextlib.suppress(BlockingIOError):
                if process.stdin in ready:
                    taken += os.write(process.stdin.fileno(), b"x" * 65536)
                if connection in ready:
                    taken += connection.send(b"y" * 65536)
        assert taken < 2 * pump.BUFFER_BYTES_MAX + 1_500_000, "the rest is what pipes and sockets hold"
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        assert peak_kib < 40_000


def test_a_client_that_reads_nothing_is_still_heard(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path) as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stdout
        connection.sendall(b"y" * 9_999 + b"\n")  # takes a part of the pipe, so that the next large write would not fit
        assert received(process, 1) == b"y"
        connection.sendall(b"y" * 199_999 + b"\n")
        process.stdin.write(b"question\n")
        process.stdin.flush()
        assert connection.recv(100) == b"question\n"


def test_a_client_that_left_is_not_waited_for_by_a_daemon_that_takes_nothing(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path, before="bridge_pump.LAST_ANSWERS_SECONDS_MAX = 0.2") as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stdout
        connection.sendall(b"hello\n")
        assert received(process, 6) == b"hello\n"
        process.stdin.write(b"x" * 900_000)  # more than the socket holds, less than the bridge
        process.stdin.close()
        assert said(process) == (0, "")


def test_a_daemon_that_is_still_starting_may_answer_a_client_that_has_said_all(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path, before="bridge_pump.LAST_ANSWERS_SECONDS_MAX = 0.01") as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"question\n")
        process.stdin.close()
        connection, _ = daemon.accept()
        assert not select.select([process.stdout], [], [], 0.3)[0], "it must not have given up"
        connection.sendall(b"answer\n")
        assert received(process, 100) == b"answer\n"
        assert said(process) == (0, "")


def test_stdin_and_stdout_may_be_files(daemon: FakeDaemon, tmp_path: Path) -> None:
    question, answer = os.urandom(300_000), os.urandom(300_000).replace(b"{", b"[") + b"\n"
    (tmp_path / "in").write_bytes(question)
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        environment = {"HOME": str(tmp_path), "IMAGED_HOME": str(tmp_path / "imaged")}
        process = subprocess.Popen(alone(["/bin/false"]), env=environment, stdin=stdin, stdout=stdout)
        connection, _ = daemon.accept()
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        connection.sendall(answer)
        connection.close()
        assert process.wait(SECONDS_MAX) == 0
    assert received == question and (tmp_path / "out").read_bytes() == answer


def test_a_closed_stderr_never_puts_words_into_the_daemons_ear(daemon: FakeDaemon, tmp_path: Path) -> None:
    command = f"exec {shlex.join(alone(['/bin/false']))} 2>&-"
    environment = {"HOME": str(tmp_path), "IMAGED_HOME": str(tmp_path / "imaged")}
    process = subprocess.Popen(["/bin/sh", "-c", command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        connection, _ = daemon.accept()
        assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull  # noqa: PTH115
        connection.sendall(b'{"imaged":1,"refused":"No."}\n')
        assert process.wait(SECONDS_MAX) == 1
        assert connection.recv(100) == b""


def test_arguments_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert bridge.main(["--verbose"], {"HOME": str(tmp_path)}) == 1
    assert "--verbose" in capfd.readouterr().err


SERVES = """
import os, socket, sys
home = os.environ["IMAGED_HOME"]
os.makedirs(home + "/run", mode=0o700, exist_ok=True)
try:
    os.mkdir(home + "/lock")
except FileExistsError:
    sys.exit(75)
s = socket.socket(socket.AF_UNIX)
s.bind(home + "/run/new"); s.listen(); os.rename(home + "/run/new", home + "/run/mcp.sock")
s.settimeout(30)
served = []
while True:
    c, _ = s.accept()
    served.append(c)
    c.sendall(b'{"pid":%d}\\n' % os.getpid())
"""


@contextlib.contextmanager
def ended_afterwards() -> Iterator[list[int]]:
    """Daemons that were started apart from us, by pid; ended whatever happens."""
    pids: list[int] = []
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def greeting(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout
    assert select.select([process.stdout], [], [], SECONDS_MAX)[0]
    return int(json.loads(process.stdout.readline())["pid"])


def test_many_bridges_at_once_find_one_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", SERVES]
    with ended_afterwards() as pids, contextlib.ExitStack() as stack:
        bridges = [stack.enter_context(bridged(tmp_path, command)) for _ in range(5)]
        pids += {greeting(process) for process in bridges}
        assert len(pids) == 1
        os.kill(pids[0], signal.SIGKILL)
        (tmp_path / "imaged" / "lock").rmdir()
        for process in bridges:
            ask(process, INITIALIZE)
        pids += {greeting(process) for process in bridges}
        assert len(pids) == 2, "all of them find the next one, too"


LOSES_ONCE = (
    """
import os, sys
home = os.environ["IMAGED_HOME"]
if not os.path.exists(home + "/lost"):
    open(home + "/lost", "w").close()
    sys.exit(int(os.environ["IMAGED_STATUS"]))
"""
    + SERVES
)


@pytest.mark.parametrize("status", [bridge.EXIT_OK, bridge.EXIT_ALREADY_RUNNING])
def test_a_daemon_that_finds_the_home_taken_is_tried_again_until_somebody_answers(status: int, tmp_path: Path) -> None:
    with (
        ended_afterwards() as pids,
        bridged(tmp_path, [sys.executable, "-I", "-c", LOSES_ONCE], IMAGED_STATUS=str(status)) as process,
    ):
        pids.append(greeting(process))


HANDS_OVER = """
import os, socket
home = os.environ["IMAGED_HOME"]
os.makedirs(home + "/run", mode=0o700, exist_ok=True)
s = socket.socket(socket.AF_UNIX)
s.bind(home + "/run/new"); s.listen(); os.rename(home + "/run/new", home + "/run/mcp.sock")
s.settimeout(30)
first = os.getpid()
c, _ = s.accept()
c.settimeout(30)
while not c.recv(65536).endswith(b"\\n"): pass
if os.fork() == 0:
    c.sendall(b'{"pid":%d,"first":%d}\\n' % (os.getpid(), first))
    c.recv(1)
"""


def test_a_daemon_that_ends_while_its_bridge_lives_on_is_buried(tmp_path: Path) -> None:
    with ended_afterwards() as pids, bridged(tmp_path, [sys.executable, "-I", "-c", HANDS_OVER]) as process:
        assert process.stdout
        assert select.select([process.stdout], [], [], SECONDS_MAX)[0]
        told = json.loads(process.stdout.readline())
        pids.append(told["pid"])
        wait_until(lambda: not Path(f"/proc/{told['first']}").exists(), "the first one to be buried")


def test_a_socket_that_nobody_listens_on_any_more_is_no_hindrance(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.listener.close()
    with ended_afterwards() as pids, bridged(tmp_path, [sys.executable, "-I", "-c", SERVES]) as process:
        pids.append(greeting(process))


def test_a_client_that_ignores_its_children_still_hears_why_a_daemon_did_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no room')"]
    before = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    with bridged(tmp_path, command, before=before) as process:
        status, text = said(process)
        assert status == 1 and "status 1" in text and "no room" in text


def test_a_daemon_keeps_nothing_open_of_what_a_client_handed_down(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    environment = {"HOME": str(tmp_path), "IMAGED_HOME": str(tmp_path / "imaged")}
    with ended_afterwards() as pids, os.fdopen(reading, "rb") as pipe:
        command = alone([sys.executable, "-I", "-c", SERVES])
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[writing]
        ) as process:
            os.close(writing)
            pids.append(greeting(process))
            process.kill()
        assert select.select([pipe], [], [], SECONDS_MAX)[0], "the daemon holds the pipe"
        assert pipe.read() == b""


def test_only_what_this_start_said_is_quoted(tmp_path: Path) -> None:
    logs = tmp_path / "imaged" / "logs"
    logs.mkdir(parents=True)
    (logs / "daemon.stderr").write_text("an old story\n")
    with bridged(tmp_path, [sys.executable, "-c", "raise SystemExit(3)"]) as process:
        status, text = said(process)
        assert status == 1 and "status 3" in text and "old story" not in text


def test_the_last_words_of_daemons_do_not_grow_without_end(tmp_path: Path) -> None:
    logs = tmp_path / "imaged" / "logs"
    logs.mkdir(parents=True)
    (logs / "daemon.stderr").write_bytes(b"x" * (bridge.STDERR_BYTES_MAX + 1))
    with bridged(tmp_path, [sys.executable, "-c", "raise SystemExit('new story')"]) as process:
        assert "new story" in said(process)[1]
    assert (logs / "daemon.stderr").read_text() == "new story\n"


def test_a_daemon_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with bridged(tmp_path, ["/bin/sleep", "2"], before="bridge.START_SECONDS_MAX = 0.2") as process:
        status, text = said(process)
        assert status == 1 and "no daemon answered" in text


def test_a_daemon_that_takes_nobody_in_is_given_up(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.listener.listen(0)
    with socket.socket(socket.AF_UNIX) as first:
        directory = os.open(daemon.run, os.O_RDONLY)
        first.connect(f"/proc/self/fd/{directory}/mcp.sock")  # the only place in the queue
        os.close(directory)
        command = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({bridge.EXIT_ALREADY_RUNNING})"]
        with bridged(tmp_path, command, before="bridge.START_SECONDS_MAX = 0.3") as process:
            status, text = said(process)
            assert status == 1 and "no daemon answered" in text


def test_the_real_command_runs_us_and_nobody_of_the_same_name(tmp_path: Path) -> None:
    site, hostile, project = tmp_path / "site", tmp_path / "hostile", tmp_path / "project"
    for name in ("daemon", "eventlog", "tools"):
        shutil.copytree(BRIDGE.parent.parent / name, site / name, ignore=shutil.ignore_patterns("*.otf", "__pycache__"))
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    shutil.copytree(hostile, project)
    (project / "msgspec.py").write_text("raise SystemExit('the working directory was imported')")
    (site / "argparse.py").write_text("raise SystemExit('a standard module was shadowed')")
    told = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from daemon import bridge; print(json.dumps(bridge.daemon_command()))"
    )
    found = subprocess.run([sys.executable, "-I", "-c", told, str(site)], capture_output=True, check=True, timeout=SECONDS_MAX)
    command = json.loads(found.stdout)
    assert command[-2:] == ["serve", "--idle-exit"]
    done = subprocess.run(
        [*command[:-2], "--version"],
        cwd=project,
        env={"PYTHONPATH": str(hostile)},
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"imaged {bridge.VERSION}\n".encode()), done.stderr


def test_a_packaged_daemon_gets_its_own_libraries_and_a_fresh_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert bridge.daemon_command() == [sys.executable, "serve", "--idle-exit"]
    packed = {"_PYI_ARCHIVE_FILE": "x", "LD_LIBRARY_PATH": "/tmp/_MEI", "LD_LIBRARY_PATH_ORIG": "/opt/lib", "HOME": "/h"}
    assert bridge._clean(packed) == {"PYINSTALLER_RESET_ENVIRONMENT": "1", "LD_LIBRARY_PATH": "/opt/lib", "HOME": "/h"}
    del packed["LD_LIBRARY_PATH_ORIG"]
    assert bridge._clean(packed) == {"PYINSTALLER_RESET_ENVIRONMENT": "1", "HOME": "/h"}


def env_file(home: Path, content: bytes) -> Path:
    path = home / ".config" / "imaged" / ".env"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"DEBUG=1", "1"),
        (b"  export DEBUG = 1  ", "1"),
        (b"DEBUG=a b # a remark", "a b"),
        (b"DEBUG='a # b' # a remark", "a # b"),
        (b'DEBUG="a=b"', "a=b"),
        (b"DEBUG='it is", "'it is"),
        (b"DEBUG=", ""),
        (b"\xef\xbb\xbfDEBUG=1\r\nX=2\r\n", "1"),
        ("DEBUG=京都".encode(), "京都"),
        (b"# DEBUG=1", None),
        (b"DEBUG", None),
        (b"=1", None),
    ],
)
def test_an_env_file_is_read_as_people_write_them(line: bytes, value: str | None, tmp_path: Path) -> None:
    env_file(tmp_path, line)
    found = bridge.with_env_file({"HOME": str(tmp_path)})
    assert found.get("DEBUG") == value and "" not in found


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    env_file(tmp_path, b"OPENAI_API_KEY=mine\nDEBUG=1\n")
    found = bridge.with_env_file({"HOME": str(tmp_path), "OPENAI_API_KEY": " ", "DEBUG": "0", "LANG": ""})
    assert found == {"HOME": str(tmp_path), "OPENAI_API_KEY": "mine", "DEBUG": "0", "LANG": ""}


@pytest.mark.parametrize("content", ["DEBUG=1\n".encode("utf-16"), b"DEBUG=\xff", b"DEBUG=a\0b", b"#" * 70_000])
def test_an_env_file_that_is_not_text_is_refused(content: bytes, tmp_path: Path) -> None:
    env_file(tmp_path, content)
    with pytest.raises(bridge.Trouble, match="UTF-8"):
        bridge.with_env_file({"HOME": str(tmp_path)})


def test_an_env_file_must_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / ".config" / "imaged" / ".env"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with bridged(tmp_path) as process:
        status, text = said(process)
        assert status == 1 and "must be a file of your own" in text


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "."}, {"HOME": "some/where"}])
def test_without_a_usable_home_the_password_database_knows(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    assert bridge.user_home(home) == pwd.getpwuid(os.geteuid()).pw_dir
    monkeypatch.setattr(os, "geteuid", lambda: 2**31 - 7)
    with pytest.raises(bridge.Trouble, match="set HOME"):
        bridge.user_home(home)


@pytest.mark.parametrize(
    ("given", "found"),
    [("~", "/h"), ("~/x", "/h/x"), (" /x/ ", "/x"), ("/", "/"), ("", None), ("x", bridge.Trouble), ("~you", bridge.Trouble)],
)
def test_the_home_directory_is_absolute_or_refused(given: str, found: str | type | None) -> None:
    if isinstance(found, type):
        with pytest.raises(bridge.Trouble, match="absolute"):
            bridge.home_directory({"HOME": "/h", "IMAGED_HOME": given})
    else:
        default = "/h" + ("/Library/Application Support/imaged" if sys.platform == "darwin" else "/.local/share/imaged")
        assert bridge.home_directory({"HOME": "/h", "IMAGED_HOME": given, "XDG_DATA_HOME": "/z"}) == (found or default)


def test_a_setting_that_is_not_text_is_named(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path, OPENAI_IMAGE_OUTPUT_DIR="/tmp/\udcff", LC_ALL="C.UTF-8") as process:
        status, text = said(process)
        assert status == 1 and "OPENAI_IMAGE_OUTPUT_DIR" in text


def test_a_link_in_place_of_the_run_directory_is_refused(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.run.rename(tmp_path / "elsewhere")
    daemon.run.symlink_to(tmp_path / "elsewhere")
    with bridged(tmp_path) as process:
        status, text = said(process)
        assert status == 1 and str(daemon.run) in text


def somebody_else_from(look: int) -> str:
    """Python that makes us another user from this look at our own id on: places, then socket, then listener are compared."""
    return (
        f"looks = iter(range({look} - 1))\nreal = os.geteuid()\n"
        "os.geteuid = lambda: real if next(looks, None) is not None else 12345\n"
    )


@pytest.mark.parametrize("look", [1, 2], ids=["the folder", "the socket"])
def test_a_place_that_belongs_to_somebody_else_is_refused(look: int, daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path, before=somebody_else_from(look)) as process:
        status, text = said(process)
        assert status == 1 and "belong to you" in text


def test_a_listener_that_is_somebody_else_is_refused_before_it_hears_a_key(daemon: FakeDaemon, tmp_path: Path) -> None:
    with bridged(tmp_path, before=somebody_else_from(3), OPENAI_API_KEY=KEY) as process:
        status, text = said(process)
        assert status == 1 and "is not yours" in text
    connection, _ = daemon.listener.accept()
    with connection:
        assert connection.recv(100) == b""


def test_a_whole_session_with_a_running_daemon_imports_next_to_nothing(daemon: FakeDaemon, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "IMAGED_HOME": str(tmp_path / "imaged")}
    command = alone(["/bin/false"], "", "-X", "importtime")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        connection, _ = daemon.accept()
        assert process.stdin and process.stderr
        process.stdin.write(INITIALIZE)
        process.stdin.flush()
        heard(connection, INITIALIZE)
        connection.sendall(b'{"jsonrpc":"2.0","id":1,"result":{}}\n')
        connection.close()
        process.stdin.close()
        told = process.stderr.read().decode()
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert "daemon.bridge" in imported
    needless = {"socket", "json", "re", "enum", "collections", "pathlib", "subprocess", "typing", "logging", "signal", "struct"}
    assert not imported & needless
