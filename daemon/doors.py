"""The socket that clients come in by: where it is, who may use it, and what its first line says.

The first line of every connection is ours, before any protocol:

    {"imaged": 1, "software": "0.1.0", "door": "mcp", "settings": {"OPENAI_API_KEY": "…", …}}

Nothing answers it when it is good. Otherwise the daemon says {"imaged": 1, "refused": "<sentence>"} and closes.
"""

import logging
import os
import socket
import stat
import struct
import sys
from pathlib import Path

import msgspec
import trio

from daemon import control_line
from daemon.config import Settings, user_home
from daemon.errors import BadConfiguration
from daemon.house import House
from daemon.logs import hide
from daemon.session import Session
from eventlog.values import Door
from tools.failures import UNREADABLE

SOCKET_NAME = "mcp.sock"
BACKLOG = 128
HELLO_BYTES_MAX = 256 * 1024
HELLO_SECONDS_MAX = 10.0
SESSIONS_MAX = 200  # a machine has tens of clients; a runaway one stops here
REFUSAL_SECONDS_MAX = 5.0

logger = logging.getLogger(__name__)


class _Hello(msgspec.Struct):
    imaged: int
    software: str = ""
    door: Door = "mcp"
    settings: dict[str, str] = {}


class _Refused(Exception):
    pass


def listen(run_dir: Path) -> trio.SocketListener:
    """A listening socket in `run_dir`, in place of whatever was there. Blocking; before anything runs.

    Only the holder of the log's lock may call this: nobody else serves this home, so the old socket is stale.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _insist_on_private(directory, run_dir)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address(run_dir, directory, SOCKET_NAME + ".new"))
        listener.listen(BACKLOG)
        os.rename(SOCKET_NAME + ".new", SOCKET_NAME, src_dir_fd=directory, dst_dir_fd=directory)
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


async def welcome(stream: trio.SocketStream, house: House) -> None:
    """One connection, from its first line to its end. Never raises for what a client does."""
    async with stream:
        if _peer_uid(stream.socket) != os.geteuid():
            logger.warning("a connection of another user was closed")
            return
        try:
            if house.sessions >= SESSIONS_MAX:
                raise _Refused(f"{SESSIONS_MAX} clients are connected; close some of them.")
            hello, rest = await _read_hello(stream)
            session = _admit(hello, house)
        except _Refused as refused:
            await _refuse(stream, str(refused))
            return
        if session.door == "mcp":
            await _serve_mcp(stream, rest, session, house)
        else:
            await control_line.serve(stream, rest, session, house)


async def _serve_mcp(stream: trio.SocketStream, rest: bytes, session: Session, house: House) -> None:
    from daemon import mcp_server  # a second of imports, done while the first client already waits

    house.sessions += 1
    try:
        await mcp_server.serve(stream, rest, session, house)
    finally:
        house.sessions -= 1


def _peer_uid(connection: trio.socket.SocketType) -> int:
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        return int(uid)
    raw = connection.getsockopt(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: struct xucred {u_int version; uid_t uid; …}
    return int(struct.unpack_from("=II", raw)[1])


async def _read_hello(stream: trio.SocketStream) -> tuple[_Hello, bytes]:
    data = b""
    with trio.move_on_after(HELLO_SECONDS_MAX):
        while b"\n" not in data and len(data) <= HELLO_BYTES_MAX:
            piece = await stream.receive_some(HELLO_BYTES_MAX)
            if not piece:
                break
            data += bytes(piece)
    line, newline, rest = data.partition(b"\n")
    if not newline:
        raise _Refused("The first line did not come, or was too long; connect through the imaged executable.")
    try:
        hello = msgspec.json.decode(line, type=_Hello)
    except UNREADABLE:
        raise _Refused("The first line is not one of imaged's; connect through the imaged executable.") from None
    if hello.imaged != 1:
        raise _Refused(f"This daemon does not speak version {hello.imaged} of the first line; restart it.")
    return hello, rest


def _admit(hello: _Hello, house: House) -> Session:
    hide(hello.settings.get("OPENAI_API_KEY", "").strip())
    try:
        settings = Settings.parse(hello.settings, home_dir=user_home())
    except BadConfiguration as exc:
        raise _Refused(str(exc)) from exc
    if hello.door == "mcp":
        house.idle_exit_seconds = settings.idle_exit_seconds
    if house.keyring.admit(settings):
        house.ledger.wake()
    return Session(door=hello.door, settings=settings)


async def _refuse(stream: trio.SocketStream, sentence: str) -> None:
    with trio.move_on_after(REFUSAL_SECONDS_MAX):
        try:
            await stream.send_all(msgspec.json.encode({"imaged": 1, "refused": sentence}) + b"\n")
        except trio.BrokenResourceError:
            logger.info("a refused client left before it was told why")
