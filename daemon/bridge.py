"""What MCP clients start: finds or starts the daemon, hands it the settings, and passes bytes both ways.

Rule: standard library only, `python -I -S` clean, and nothing imported that is not needed: it answers in
milliseconds. stdout carries MCP and nothing else; trouble is one sentence on stderr. A daemon that ends takes no session
along: the next one is told how the conversation began, and what was under way is answered (`daemon/conversation.py`).
"""

import errno
import os
import select
import stat
import sys
from _collections_abc import Mapping, Sequence  # all of `collections` takes 2-3 ms, we about 10

from daemon.pump import READ_BYTES, Gone, Refused, pump
from daemon.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket

EXIT_OK, EXIT_FAILED, EXIT_ALREADY_RUNNING = 0, 1, 75
START_SECONDS_MAX = 45.0  # a cold start takes 1-2 s; a daemon that ends gives its pictures 30 s before the next one can begin
TRY_AGAIN_SECONDS = 0.2  # a daemon that has just lost the lock costs half a second of imports; not too often
ADDRESS_BYTES_MAX = 100  # sun_path holds 104 (macOS) or 108 (Linux)
STDERR_BYTES_MAX = 1024 * 1024

SETTING_NAMES = ("OPENAI_API_KEY", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "HISTORY_DB_PATH", "DEBUG")
SETTING_PREFIXES = ("OPENAI_IMAGE_", "OPENAI_BATCH_", "IMAGED_")
# Named one by one, because nobody can list the names that people give to secrets.
DAEMON_NAMES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OPENSSL_CONF")
DAEMON_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
DAEMON_PREFIXES = ("IMAGED_", "LC_", "PYTHON", "SSL_CERT_", "DYLD_", "NIX_")


class Trouble(Exception):
    """Ends the bridge with its sentence."""


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Exit status 0 when the client has left, 1 with a sentence on stderr otherwise."""
    try:
        if arguments:
            raise Trouble(f"`imaged mcp` takes no arguments, but was given {arguments[0]!r}.")
        for descriptor, name in enumerate(("stdin", "stdout")):
            if not _is_open(descriptor):
                raise Trouble(f"{name} is closed; start imaged from an MCP client, or see `imaged --help`.")
        if not _is_open(2):
            os.open(os.devnull, os.O_WRONLY)  # takes number 2, which would otherwise be the daemon's socket
        run(environ, daemon_command())
    except Trouble as exc:
        _say(str(exc))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as exc:
        _say(f"stopped by the system: {exc}.")
        return EXIT_FAILED
    return EXIT_OK


def run(environ: Mapping[str, str], command: Sequence[str]) -> None:
    """The whole bridge. `command` starts a daemon that serves the home named by `environ`."""
    settings = with_env_file(environ)
    hello, home = _hello(settings), home_directory(settings)
    try:
        pump(lambda: connect(home, settings, command), hello, START_SECONDS_MAX)
    except Gone:
        raise Trouble("the daemon ended; start the client's server again. Jobs under way are in list_jobs.") from None
    except Refused as exc:
        raise Trouble(str(exc)) from None


def with_env_file(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, and below it what the user's own `~/.config/imaged/.env` says. Never one of the working directory.

    Raises:
        Trouble: the file can be written by others, or cannot be read.
    """
    user = user_home(environ)
    values = _env_file(f"{user}/.config/imaged/.env")
    return {**values, **{n: v for n, v in environ.items() if v.strip() or n not in values}, "HOME": user}


def user_home(environ: Mapping[str, str]) -> str:
    """Absolute: from HOME or, without a usable one, from the password database; Trouble if neither knows."""
    if environ.get("HOME", "").startswith("/"):
        return environ["HOME"]
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise Trouble("HOME is not set and this user has no entry in the password database; set HOME.") from None


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
    """Starts this very program as a daemon, whatever packages of the same names stand elsewhere."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "serve", "--idle-exit"]
    # -P keeps the working directory out of sys.path. Our folder leads only until our three packages are found:
    # it may be site-packages, where something may bear the name of a standard module.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    start = f"import sys; sys.path.insert(0, {root!r}); import daemon, eventlog, tools; del sys.path[0]; "
    start += "from daemon.__main__ import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", start, "serve", "--idle-exit"]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


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
        data = file.read(READ_BYTES + 1)
    text = data.decode("utf-8-sig", "replace")
    if len(data) > READ_BYTES or "\0" in text or "\ufffd" in text:
        raise Trouble(f"{path} must be text in UTF-8 of at most {READ_BYTES} bytes; save it again as such.")
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and name.strip() and not name.startswith("#"):
            value = value.strip()
            quote = value[:1] if value[:1] in ("'", '"') and value[:1] in value[1:] else ""
            values[name.strip()] = value[1:].partition(quote)[0] if quote else value.partition(" #")[0].rstrip()
    return values


def _hello(environ: Mapping[str, str]) -> bytes:
    from _json import encode_basestring_ascii as quoted  # all of `json` takes three times as long as everything else here

    pairs = []
    for name, value in settings_of(environ).items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Trouble(f"{name} is not text in UTF-8; set it again.") from None
        pairs.append(f"{quoted(name)}: {quoted(value)}")
    return f'{{"imaged": 1, "software": "{VERSION}", "door": "mcp", "settings": {{{", ".join(pairs)}}}}}\n'.encode("ascii")


def connect(home: str, environ: Mapping[str, str], command: Sequence[str]) -> "Socket":
    """A connection to this home's daemon, which is started if need be."""
    found = try_to_connect(home)
    if found is not None:
        return found
    import signal
    import time

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a client that ignores it would keep from us how the daemon ended
    give_up_at = time.monotonic() + START_SECONDS_MAX
    child = begins = 0
    while found is None:
        if time.monotonic() > give_up_at:
            raise Trouble(f"no daemon answered within {START_SECONDS_MAX:.0f} s.{_last_words(home, begins)}")
        if not child:
            child, begins = _start(home, environ, command)
        status, pause = _ended(child), 0.01
        if status in (EXIT_OK, EXIT_ALREADY_RUNNING):
            child, pause = 0, TRY_AGAIN_SECONDS  # another one holds the home: it is about to listen, or to end
        elif status is not None:
            raise Trouble(f"the daemon did not start (status {status}).{_last_words(home, begins)}")
        select.select([], [], [], pause)
        found = try_to_connect(home)
    if child:
        _ended(child)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits any more, and a daemon that ends must not stay a zombie
    return found


def try_to_connect(home: str, name: str = "mcp.sock") -> "Socket | None":
    """None if nobody listens, or nobody has room for us.

    Raises:
        Trouble: the place is not ours alone, or the listener is not us.
    """
    import _socket  # `socket` itself takes ten times as long

    run_dir = f"{home}/run"
    try:
        directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise Trouble(f"{run_dir} must belong to you alone; run: chmod 700 {run_dir}")
        connection.setblocking(False)
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid != os.geteuid():
            raise Trouble(f"{run_dir}/{name} does not belong to you; remove it.")
        connection.connect(_address(run_dir, directory, name))
        level, option, length = (_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12) if sys.platform == "linux" else (0, 1, 76)
        if int.from_bytes(connection.getsockopt(level, option, length)[4:8], sys.byteorder) != os.geteuid():  # or LOCAL_PEERCRED
            raise Trouble(f"the process that listens in {run_dir} is not yours.")
    except (OSError, Trouble) as exc:
        connection.close()
        if isinstance(exc, FileNotFoundError | ConnectionRefusedError | BlockingIOError):
            return None
        raise
    finally:
        os.close(directory)
    return connection


def _address(run_dir: str, directory: int, name: str) -> str:
    path = f"{run_dir}/{name}"
    if len(os.fsencode(path)) < ADDRESS_BYTES_MAX:
        return path
    if sys.platform == "linux":
        return f"/proc/self/fd/{directory}/{name}"
    raise Trouble(f"{path} is too long for a socket; set IMAGED_HOME to a shorter directory.")


def _start(home: str, environ: Mapping[str, str], command: Sequence[str]) -> tuple[int, int]:
    """The pid of a daemon that survives us, our terminal and our process group, and where its stderr begins."""
    os.umask(0o077)
    os.makedirs(f"{home}/logs", mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    stderr = os.open(f"{home}/logs/daemon.stderr", flags, 0o600)
    if os.fstat(stderr).st_size > STDERR_BYTES_MAX:
        os.ftruncate(stderr, 0)
    begins = os.fstat(stderr).st_size
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.chdir("/")  # posix_spawn cannot; and nobody's folder is held by us, either
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and _is_open(int(name)):
            os.set_inheritable(int(name), False)  # what we inherited: a daemon must not keep a client's pipes open
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
    command = _lasting(command, home)
    clean = _clean({**environ, "IMAGED_HOME": home})
    try:
        return os.posix_spawn(command[0], list(command), clean, file_actions=actions, setsid=True, setsigmask=[]), begins
    except OSError as exc:
        raise Trouble(f"the daemon could not be started ({command[0]}: {exc.strerror}).") from None
    finally:
        os.close(stderr)
        os.close(null)


def _lasting(command: Sequence[str], home: str) -> Sequence[str]:
    """What the single file has unpacked goes away with us; its daemon runs from where the program stays."""
    if not hasattr(sys, "_MEIPASS"):
        return command
    from pathlib import Path

    from daemon import executable

    try:
        executable.keep(Path(home))
    except OSError as exc:
        raise Trouble(f"the program could not be unpacked into {home}/programs: {exc.strerror}.") from None
    return executable.lasting(command, Path(home))


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a daemon that serves many: no secrets, no session's settings, nothing of PyInstaller's own."""
    names = [n for n in environ if n in DAEMON_NAMES or n.upper() in DAEMON_PROXIES or n.startswith(DAEMON_PREFIXES)]
    kept = {name: environ[name] for name in names}
    if getattr(sys, "frozen", False):
        kept["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
        kept.pop("LD_LIBRARY_PATH", None)
        if "LD_LIBRARY_PATH_ORIG" in environ:
            kept["LD_LIBRARY_PATH"] = environ["LD_LIBRARY_PATH_ORIG"]
    return kept


def _ended(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _last_words(home: str, start: int) -> str:
    try:
        with open(f"{home}/logs/daemon.stderr", "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, end), end - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return " It said last: " + " / ".join(lines[-3:]) if lines else ""


def _say(sentence: str) -> None:
    try:
        os.write(2, f"imaged: {sentence}\n".encode("utf-8", "replace"))
    except OSError:
        return
