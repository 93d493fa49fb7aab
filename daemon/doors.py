"""The sockets that clients come in by: where they are, who may use them, and what a connection's first line says.

At mcp.sock the first line of every connection is ours, before any protocol (control.sock speaks HTTP from the start):

    {"imaged": 1, "software": "0.1.0", "door": "mcp", "settings": {"OPENAI_API_KEY": "…", …}}

Nothing answers it when it is good. Otherwise the daemon says {"imaged": 1, "refused": "<sentence>"} and closes; or, when it
is about to end and has not listened to what may have followed, {"imaged": 1, "leaving": true}. To a newer version that is
served meanwhile it says {"imaged": 1, "makes_way": true} before all else: that one is to start the next daemon.
"""

import contextlib
import gc
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from daemon import bridge, budgets, config
from daemon.config import Settings, user_home
from daemon.errors import BadConfiguration
from daemon.house import House
from daemon.logs import hide
from daemon.session import Session
from daemon.version import VERSION, is_newer
from eventlog.values import Door
from tools.failures import UNREADABLE

SOCKET_NAME = "mcp.sock"
BACKLOG = 1024  # more than can come at once; whoever finds it full is told at once that there is no room, and may give up
STRANGERS_MAX = 128  # connections without their first line; a bridge needs milliseconds for its own
HELLO_BYTES_MAX = 256 * 1024
HELLO_SECONDS_MAX = 10.0
SESSIONS_MAX = 200  # a machine has tens of clients; a runaway one stops here
WORDS_SECONDS_MAX = 5.0
DOOR_CHARACTERS_SHOWN_MAX = 32

logger = logging.getLogger(__name__)


class _Hello(msgspec.Struct):
    imaged: int
    software: str = ""
    door: str = "mcp"  # there were others here, and an older command still names one
    settings: dict[str, str] = {}


class _Refused(Exception):
    pass


class Lobby:
    """Connections whose next words we wait for. When the house is full, whoever has kept us waiting longest makes room.

    So nobody takes a place from those who have something to say by saying nothing, or one byte a second. A fixed number
    of places alone would turn away the client that came after them; a deadline alone would do so until it has passed.
    """

    def __init__(self) -> None:
        self._waits: dict[trio.CancelScope, None] = {}  # in the order in which they began

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def wait(self) -> Iterator[trio.CancelScope]:
        """The body is left when its place is needed. `cancel_called` then says so, even if the words came just now."""
        with trio.CancelScope() as wait:
            self._waits[wait] = None
            try:
                yield wait
            finally:
                self._waits.pop(wait, None)

    def make_room(self) -> bool:
        """Ends the longest wait. False: we wait for nobody."""
        for wait in self._waits:
            del self._waits[wait]
            wait.cancel()
            return True
        return False


_strangers = Lobby()  # who has not said its first line
HEARD_SECONDS_MAX = 1.0
HEARD_BYTES = 64 * 1024
_loading = trio.Lock()
_mute = Lobby()  # who has said it, and nothing since


def listen(run_dir: Path, name: str = SOCKET_NAME) -> trio.SocketListener:
    """A listening socket in `run_dir`, in place of an older one. Blocking; before anything runs.

    Only the holder of the log's lock may call this: nobody else serves this home, so the old socket is stale.

    Raises:
        BadConfiguration: the directory is open to others, or something else than a socket is in the way.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _insist_on_private(directory, run_dir)
        for each in (name, name + ".new"):  # the second: of a daemon that died between the next lines
            _insist_on_socket(directory, each, run_dir)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + ".new", dir_fd=directory)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            listener.bind(address(run_dir, directory, name + ".new"))
        finally:
            os.umask(umask)
        listener.listen(BACKLOG)
        os.rename(name + ".new", name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def address(run_dir: Path, directory: int, name: str) -> str:
    """A socket address is about 100 bytes; a longer path goes through the descriptor where the system allows."""
    path = str(run_dir / name)
    if len(os.fsencode(path)) < 100:
        return path
    if sys.platform == "linux":
        return f"/proc/self/fd/{directory}/{name}"
    raise BadConfiguration(f"{path} is too long for a socket; set IMAGED_HOME to a shorter directory.")


def _insist_on_private(directory: int, run_dir: Path) -> None:
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise BadConfiguration(f"{run_dir} must belong to you alone; run: chmod 700 {run_dir}")


def _insist_on_socket(directory: int, name: str, run_dir: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode):
            raise BadConfiguration(f"{run_dir / name} is not a socket and stands where ours belongs; move it away.")


async def welcome(stream: trio.SocketStream, house: House) -> None:
    """One connection, from its first line to its end. Never raises for what a client does."""
    async with stream:
        if not is_ours(stream):
            return
        try:
            hello, rest = await _read_hello(stream, house)
            make_way_for(hello.software, house)
            if not house.ending.wanted:
                if is_newer(hello.software):
                    await _say(stream, {"imaged": 1, "makes_way": True})
                await _serve_mcp(stream, rest, _admit(hello, house), house)
                return
        except _Refused as refused:
            if not house.ending.wanted:
                await _say(stream, {"imaged": 1, "refused": str(refused)})
                await _let_it_be_heard(stream)
                return
        await house.closing.wait()  # not before nobody listens here any more: who is let go must find the next daemon
        await _say(stream, {"imaged": 1, "leaving": True})


async def _let_it_be_heard(stream: trio.SocketStream) -> None:
    """Bytes that nobody has read would break off the connection, and with it what was said."""
    with trio.move_on_after(HEARD_SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_eof()
        while await stream.receive_some(HEARD_BYTES):
            pass


def make_way_for(software: str, house: House) -> None:
    """Somebody of this version has come. If it is newer than ours, the next daemon is to be one of its kind.

    What runs is finished first, because stopping it could cost a picture, and meanwhile everybody is served as before.
    """
    if is_newer(software):
        end = house.ending.make_way if house.has_work() else house.ending.want
        end(f"imaged {software} takes over")


async def _serve_mcp(stream: trio.SocketStream, rest: bytes, session: Session, house: House) -> None:
    """
    Raises:
        _Refused: so many clients are connected that there is no room, or none for one that does not speak.
    """
    # Who speaks MCP keeps its place for as long as it likes: a client may be silent for hours between two pictures.
    if house.sessions >= SESSIONS_MAX and not _mute.make_room():
        raise _Refused(f"{SESSIONS_MAX} clients are connected; close some of them.")
    await load_protocol()
    from daemon import mcp_server

    house.sessions += 1
    try:
        with _mute.wait() as wait:
            rest = rest or await _receive(stream, house)
        if wait.cancel_called:
            raise _Refused(f"{SESSIONS_MAX} clients are connected, and this one had not said anything; start it again.")
        await mcp_server.serve(stream, rest, session, house)
    finally:
        house.sessions -= 1


async def load_protocol() -> None:
    """Most of a second of imports, once: by the first client or, sooner, while nobody waits."""
    async with _loading:  # half a module is in `sys.modules`, too
        if "daemon.mcp_server" not in sys.modules:
            await trio.to_thread.run_sync(_load_protocol)


def _load_protocol() -> None:
    """Blocks."""
    gc.disable()  # a hundred thousand objects that live for ever
    try:
        from daemon import mcp_server

        mcp_server.tools()
    finally:
        gc.enable()
    gc.freeze()


def is_ours(stream: trio.SocketStream) -> bool:
    """Whether the user at the other end is the daemon's own; asked before the first byte is read."""
    if _peer_uid(stream.socket) == os.geteuid():
        return True
    logger.warning("a connection of another user was closed")
    return False


def _peer_uid(connection: trio.socket.SocketType) -> int:
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        return int(uid)
    raw = connection.getsockopt(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: struct xucred {u_int version; uid_t uid; …}
    return int(struct.unpack_from("=II", raw)[1])


async def _read_hello(stream: trio.SocketStream, house: House) -> tuple[_Hello, bytes]:
    """
    Raises:
        _Refused: it is none of ours, did not come in time, or others came while it was waited for.
    """
    if len(_strangers) >= STRANGERS_MAX:
        _strangers.make_room()
    data = b""
    with trio.move_on_after(HELLO_SECONDS_MAX), _strangers.wait() as wait:
        while b"\n" not in data and len(data) <= HELLO_BYTES_MAX:
            piece = await _receive(stream, house)
            if not piece:
                break
            data += piece
    if wait.cancelled_caught:
        raise _Refused(f"{STRANGERS_MAX} connections that came later wait, too, and the first line had not come; try again.")
    line, newline, rest = data.partition(b"\n")
    if not newline:
        raise _Refused("The first line did not come, or was too long; connect through the imaged executable.")
    try:
        hello = msgspec.json.decode(line, type=_Hello)
    except UNREADABLE:
        raise _Refused("The first line is not one of imaged's; connect through the imaged executable.") from None
    if hello.imaged != 1:
        raise _Refused(f"This daemon does not speak version {hello.imaged} of the first line; restart it.")
    if hello.door != "mcp":
        shown = ascii(hello.door[:DOOR_CHARACTERS_SHOWN_MAX])
        raise _Refused(f"The door {shown} is not at this socket, only mcp is; use the imaged command of version {VERSION}.")
    return hello, rest


async def _receive(stream: trio.SocketStream, house: House) -> bytes:
    """Empty: there will be nothing more."""
    with contextlib.suppress(trio.BrokenResourceError), house.closing.ends_a_wait():
        return bytes(await stream.receive_some(HELLO_BYTES_MAX))
    return b""


def _admit(hello: _Hello, house: House) -> Session:
    try:
        session = admit(hello.settings, "mcp", house)
    except (BadConfiguration, bridge.Trouble) as exc:
        raise _Refused(str(exc)) from exc
    house.idle_exit_seconds = session.settings.idle_exit_seconds
    return session


def admit(given: Mapping[str, str], door: Door, house: House) -> Session:
    """A session with these settings. Its key goes to the keyring, and is blotted out of the diagnostics from here on.

    A client's configuration may lie in a project that somebody else has made, so its caps never exceed the user's own.

    Raises:
        BadConfiguration: names the setting, its value (never the key's) and what is allowed.
        Trouble: the user's own `.env` file is unsound.
    """
    hide(given.get("OPENAI_API_KEY", "").strip())
    settings = Settings.parse(given, home_dir=user_home())
    # Read here and now: it is one small file, and who came first shall be in first.
    settings = msgspec.structs.replace(settings, caps=budgets.strictest(settings.caps, config.own_caps()))
    if house.keyring.admit(settings):
        house.ledger.wake()
    return Session(door=door, settings=settings)


async def _say(stream: trio.SocketStream, words: Mapping[str, object]) -> None:
    """To a client that is not served. Bounded."""
    with trio.move_on_after(WORDS_SECONDS_MAX):
        try:
            await stream.send_all(msgspec.json.encode(words) + b"\n")
        except trio.BrokenResourceError:
            logger.info("a client that is not served left before it was told why")
