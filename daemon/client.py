"""The other end of the command line's door: asks a daemon one operation after the other. Blocking."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from daemon import bridge, config, doors
from daemon.config import Places
from daemon.errors import NotRunning
from daemon.version import VERSION

ANSWER_SECONDS_MAX = 120.0
IMPORT_SECONDS_MAX = 3600.0  # every file of an old history is read once
READ_BYTES = 64 * 1024


class Connection:
    """One question at a time; not for two threads."""

    def __init__(self, connection: socket.socket, settings: Mapping[str, str]) -> None:
        self._socket = connection
        hello = {"imaged": 1, "software": VERSION, "door": "cli", "settings": dict(settings)}
        self._unsent = json.dumps(hello) + "\n"
        self._received = b""

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        """`{"result": …, "text": …}` or `{"refused": {"code": …, "message": …}}`.

        Raises:
            NotRunning: the daemon ended while it was asked.
        """
        self._socket.settimeout(IMPORT_SECONDS_MAX if operation == "import_history" else ANSWER_SECONDS_MAX)
        line = self._unsent + json.dumps({"operation": operation, "arguments": arguments}) + "\n"
        try:
            self._socket.sendall(line.encode())
            self._unsent = ""
            reply = self._line()
        except OSError as exc:
            raise NotRunning(f"the daemon ended while it was asked ({exc.strerror or exc}); its log tells why.") from exc
        if not reply:
            raise NotRunning("the daemon ended while it was asked; its log tells why.")
        answer: dict[str, Any] = json.loads(reply)
        if isinstance(answer.get("refused"), str):
            answer["refused"] = {"code": "bad_settings", "message": answer["refused"]}
        return answer

    def _line(self) -> bytes:
        """Empty at the end of the connection."""
        data = bytearray(self._received)
        while b"\n" not in data:
            piece = self._socket.recv(READ_BYTES)
            if not piece:
                return b""
            data += piece
        line, _, self._received = bytes(data).partition(b"\n")
        return line


@contextmanager
def connected(places: Places, settings: Mapping[str, str], *, start: bool = True) -> Iterator[Connection]:
    """A connection to the daemon of this home, which is started if none runs. `settings` are those of the session.

    Raises:
        NotRunning: nobody serves this home, and none is to be started.
        bridge.Trouble: the daemon cannot be started.
    """
    with _connection(places) if not start else _started(places) as connection:
        yield Connection(connection, settings)


def ask(
    places: Places, operation: str, arguments: Mapping[str, object], settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One question to a daemon that runs.

    Raises:
        NotRunning: nobody serves this home, or it ended while it was asked.
    """
    with connected(places, settings or {}, start=False) as connection:
        return connection.ask(operation, **arguments)


def _started(places: Places) -> socket.socket:
    return socket.socket(fileno=bridge.connect(str(places.home), config.environment(), bridge.daemon_command()).detach())


def _connection(places: Places) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(places.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(doors.address(places.run, directory, doors.SOCKET_NAME))
        finally:
            os.close(directory)
    except OSError as exc:
        connection.close()
        raise NotRunning(f"no daemon is running for {places.home} ({exc.strerror or exc}).") from exc
    return connection
