"""What MCP clients start: finds or starts the daemon, hands it the settings, and passes bytes both ways.

Rule: standard library only, `python -I -S` clean, and nothing imported that is not needed: it answers in
milliseconds. stdout carries what the daemon says and nothing else; trouble is one sentence on stderr.
"""

import errno
import os
import select
import stat
import sys
from collections.abc import Mapping, Sequence

from daemon.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

EXIT_OK, EXIT_FAILED, EXIT_ALREADY_RUNNING = 0, 1, 75
START_SECONDS_MAX = 20.0  # a cold start takes 1-2 s; replaying a log after a crash takes longer
LAST_ANSWERS_SECONDS_MAX = 2.0  # after the client closed its side
BUFFER_BYTES_MAX = 1024 * 1024  # in each direction; beyond that the other side has to wait
READ_BYTES = 64 * 1024
ADDRESS_BYTES_MAX = 100  # sun_path holds 104 (macOS) or 108 (Linux)
STDERR_BYTES_MAX = 1024 * 1024

SETTING_NAMES = (
    "OPENAI_API_KEY",
    "OPENAI_ORGANIZATION",
    "OPENAI_PROJECT_ID",
    "OPENAI_BASE_URL",
    "HISTORY_DB_PATH",
    "OPENAI_BATCH_MAX_CONCURRENT",
    "OPENAI_BATCH_TIMEOUT",
    "DEBUG",
)
SETTING_PREFIXES = ("OPENAI_IMAGE_", "IMAGED_")
NOT_FOR_THE_DAEMON = ("OPENAI_", "ANTHROPIC_", "AWS_", "GITHUB_", "GOOGLE_", "AZURE_")
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


class Trouble(Exception):
    """Ends the bridge with its sentence."""


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Exit status 0 when the client has left, 1 with a sentence on stderr otherwise."""
    try:
        if arguments:
            raise Trouble(f"`imaged mcp` takes no arguments, but was given {arguments[0]!r}.")
        _insist_on_open(0, "stdin")
        _insist_on_open(1, "stdout")
        run(environ, daemon_command())
    except Trouble as exc:
        _say(str(exc))
        return EXIT_FAILED
    except BrokenPipeError:  # the client takes nothing more
        return EXIT_OK
    except KeyboardInterrupt:
        return 130
    except OSError as exc:
        _say(f"stopped by the system: {exc.strerror or exc}.")
        return EXIT_FAILED
    return EXIT_OK


def run(environ: Mapping[str, str], command: Sequence[str]) -> None:
    """The whole bridge. `command` starts a daemon that serves the home named by `environ`."""
    settings = with_env_file(environ)
    home = home_directory(settings)
    connection = _connect(home, settings, command)
    connection.sendall(_hello(settings))
    _pump(connection, connection.fileno())


def with_env_file(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, and below it what the user's own `~/.config/imaged/.env` says. Never one of the working directory.

    Raises:
        Trouble: the file can be written by others, or cannot be read.
    """
    user = user_home(environ)
    return {**_env_file(f"{user}/.config/imaged/.env"), **environ, "HOME": user}


def user_home(environ: Mapping[str, str]) -> str:
    """From HOME or, without it, from the password database."""
    if environ.get("HOME"):
        return environ["HOME"]
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_dir


def home_directory(environ: Mapping[str, str]) -> str:
    """Absolute path of IMAGED_HOME or of the platform's place for it.

    Raises:
        Trouble: IMAGED_HOME is not absolute.
    """
    user = user_home(environ)
    given = environ.get("IMAGED_HOME", "").strip()
    if given == "~" or given.startswith("~/"):
        return user + given[1:]
    if given and not given.startswith("/"):
        raise Trouble(f"IMAGED_HOME is {given!r}; give an absolute path or one that starts with ~/.")
    if given:
        return given.rstrip("/") or "/"
    return user + ("/Library/Application Support/imaged" if sys.platform == "darwin" else "/.local/share/imaged")


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an environment belongs to the session."""
    return {n: v for n, v in environ.items() if n in SETTING_NAMES or n.startswith(SETTING_PREFIXES)}


def daemon_command() -> list[str]:
    """Starts this very program as a daemon, whatever folders stand in the client's working directory."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "serve", "--idle-exit"]
    # -P keeps the working directory out of sys.path; the package's own folder is named outright.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    start = f"import sys; sys.path.insert(0, {root!r}); from daemon.__main__ import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", start, "serve", "--idle-exit"]


def _insist_on_open(descriptor: int, name: str) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        raise Trouble(f"{name} is closed; start imaged from an MCP client, or see `imaged --help`.") from None


def _env_file(path: str) -> dict[str, str]:
    """NAME=value lines; the real environment wins. A file that others can write is refused, not believed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return {}
        raise Trouble(f"{path} cannot be read: {exc.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise Trouble(f"{path} must be a file of your own that nobody else can write; run: chmod 600 {path}")
        text = file.read(READ_BYTES).decode("utf-8", "replace")
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            values[name.strip()] = value
    return values


def _hello(environ: Mapping[str, str]) -> bytes:
    import json

    hello = {"imaged": 1, "software": VERSION, "door": "mcp", "settings": settings_of(environ)}
    return json.dumps(hello).encode("ascii") + b"\n"


def _connect(home: str, environ: Mapping[str, str], command: Sequence[str]) -> "socket.socket":
    """A connection to this home's daemon, which is started if need be."""
    found = _try_to_connect(home)
    if found is not None:
        return found
    import time

    child = _start(home, environ, command)
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < give_up_at:
        select.select([], [], [], 0.01)
        found = _try_to_connect(home)
        if found is not None:
            return found
        status = _ended(child) if child else None
        if status == EXIT_ALREADY_RUNNING:
            # Another daemon holds the home: it is about to listen, or about to end. Look a while, then try again.
            select.select([], [], [], 0.2)
            found = _try_to_connect(home)
            if found is not None:
                return found
            child = _start(home, environ, command)
        elif status is not None:
            raise Trouble(f"the daemon did not start (status {status}).{_last_words(home)}")
    raise Trouble(f"no daemon answered within {START_SECONDS_MAX:.0f} s.{_last_words(home)}")


def _try_to_connect(home: str) -> "socket.socket | None":
    """None if nobody listens.

    Raises:
        Trouble: the place is not ours alone, or the listener is not us.
    """
    import socket

    run_dir = f"{home}/run"
    try:
        directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise Trouble(f"{run_dir} must belong to you alone; run: chmod 700 {run_dir}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(_address(run_dir, directory))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        if sys.platform == "linux":
            import struct

            peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer[1] != os.geteuid():
                raise Trouble(f"the process that listens in {run_dir} is not yours.")
        return connection
    finally:
        os.close(directory)


def _address(run_dir: str, directory: int) -> str:
    path = f"{run_dir}/mcp.sock"
    if len(os.fsencode(path)) < ADDRESS_BYTES_MAX:
        return path
    if sys.platform == "linux":
        return f"/proc/self/fd/{directory}/mcp.sock"
    raise Trouble(f"{path} is too long for a socket; set IMAGED_HOME to a shorter directory.")


def _start(home: str, environ: Mapping[str, str], command: Sequence[str]) -> int:
    """The pid of a daemon in a session of its own, which survives us, our terminal and our process group."""
    logs = f"{home}/logs"
    os.makedirs(logs, mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    stderr = os.open(f"{logs}/daemon.stderr", flags, 0o600)
    if os.fstat(stderr).st_size > STDERR_BYTES_MAX:
        os.ftruncate(stderr, 0)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            command[0],
            list(command),
            _clean({**environ, "IMAGED_HOME": home}),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
    except OSError as exc:
        raise Trouble(f"the daemon could not be started ({command[0]}: {exc.strerror}).") from None
    finally:
        os.close(stderr)
        os.close(null)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a daemon that serves many: no secrets, and nothing of PyInstaller's own."""
    kept = {}
    for name, value in environ.items():
        secret = any(word in name.upper() for word in SECRET_WORDS)
        if not (secret or name.startswith(NOT_FOR_THE_DAEMON) or name.startswith("_PYI_")):
            kept[name] = value
    if getattr(sys, "frozen", False):
        kept["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
        original = kept.pop("LD_LIBRARY_PATH_ORIG", None)
        kept.pop("LD_LIBRARY_PATH", None)
        if original is not None:
            kept["LD_LIBRARY_PATH"] = original
    return kept


def _ended(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _last_words(home: str) -> str:
    try:
        with open(f"{home}/logs/daemon.stderr", "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return " It said last: " + " / ".join(lines[-3:]) if lines else ""


class _Flow:
    """One direction: what was read and is not written yet."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.buffer = bytearray()
        self.ended = False

    @property
    def wants_to_read(self) -> bool:
        return not self.ended and len(self.buffer) < BUFFER_BYTES_MAX

    def read(self) -> None:
        try:
            data = os.read(self.source, READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self.buffer += data
        else:
            self.ended = True

    def write(self) -> None:
        try:
            # No more than a pipe surely takes at once: a longer write could block, and stdin with it.
            written = os.write(self.sink, self.buffer[: select.PIPE_BUF])
        except BlockingIOError:
            return
        del self.buffer[:written]


def _pump(connection: "socket.socket", wire: int) -> None:
    """Until the client has left and the daemon has said its last, or the daemon is gone."""
    upstream, downstream = _Flow(0, wire), _Flow(wire, 1)
    os.set_blocking(wire, False)
    greeted = False
    while True:
        poll = select.poll()
        masks: dict[int, int] = {}
        for flow in (upstream, downstream):
            if flow.wants_to_read:
                masks[flow.source] = masks.get(flow.source, 0) | select.POLLIN
            if flow.buffer and (greeted or flow is upstream):
                masks[flow.sink] = masks.get(flow.sink, 0) | select.POLLOUT
        for descriptor, mask in masks.items():
            poll.register(descriptor, mask)
        left = upstream.ended and not upstream.buffer
        ready = dict(poll.poll(LAST_ANSWERS_SECONDS_MAX * 1000 if left else None))
        if left and not ready:
            return
        if ready.get(wire, 0) & select.POLLOUT:
            _upstream(upstream, connection)
        if upstream.wants_to_read and ready.get(0):
            upstream.read()
            if upstream.ended and not upstream.buffer:
                connection.shutdown(1)
        if downstream.wants_to_read and ready.get(wire, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            downstream.read()
        if not greeted and downstream.buffer:
            greeted = _first_line_is_good(downstream)
        if greeted and downstream.buffer and ready.get(1, 0):
            downstream.write()
        if downstream.ended and not (greeted and downstream.buffer):
            if upstream.ended:
                return
            raise Trouble("the daemon ended; start the client's server again. Jobs under way are in list_jobs.")


def _upstream(flow: _Flow, connection: "socket.socket") -> None:
    try:
        flow.write()
    except (BrokenPipeError, ConnectionResetError):
        raise Trouble("the daemon ended; start the client's server again. Jobs under way are in list_jobs.") from None
    if flow.ended and not flow.buffer:
        connection.shutdown(1)


def _first_line_is_good(flow: _Flow) -> bool:
    """False while it is not whole yet.

    Raises:
        Trouble: the daemon refused the settings; its sentence.
    """
    line, newline, _ = bytes(flow.buffer).partition(b"\n")
    if not line.startswith(b'{"imaged"'[: len(line)]):
        return True
    if not newline:
        return False
    import json

    raise Trouble(str(json.loads(line).get("refused", "the daemon refused this client.")))


def _say(sentence: str) -> None:
    try:
        os.write(2, f"imaged: {sentence}\n".encode("utf-8", "replace"))
    except OSError:
        return
