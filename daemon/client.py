"""The other end of the command line's door: asks a running daemon one operation and waits for the answer. Blocking."""

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from daemon import doors
from daemon.config import Places
from daemon.errors import NotRunning
from daemon.version import VERSION

ANSWER_SECONDS_MAX = 120.0
READ_BYTES = 64 * 1024


def ask(
    places: Places, operation: str, arguments: Mapping[str, object], settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`{"result": …, "text": …}` or `{"refused": …}`. `settings` are those of a session, as the bridge sends them.

    Raises:
        NotRunning: nobody serves this home, or it ended while it was asked.
    """
    hello = {"imaged": 1, "software": VERSION, "door": "cli", "settings": dict(settings or {})}
    lines = json.dumps(hello) + "\n" + json.dumps({"operation": operation, "arguments": dict(arguments)}) + "\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS_MAX)
        try:
            _connect(connection, places)
            connection.sendall(lines.encode())
            reply = _line(connection)
        except OSError as exc:
            raise NotRunning(f"no daemon is running for {places.home} ({exc.strerror or exc}).") from exc
    if not reply:
        raise NotRunning("the daemon ended while it was asked; its log tells why.")
    answer: dict[str, Any] = json.loads(reply)
    if isinstance(answer.get("refused"), str):
        answer["refused"] = {"code": "bad_settings", "message": answer["refused"]}
    return answer


def _connect(connection: socket.socket, places: Places) -> None:
    directory = os.open(places.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(doors.address(places.run, directory, doors.SOCKET_NAME))
    finally:
        os.close(directory)


def _line(connection: socket.socket) -> bytes:
    data = bytearray()
    while b"\n" not in data:
        piece = connection.recv(READ_BYTES)
        if not piece:
            return b""
        data += piece
    return bytes(data.partition(b"\n")[0])
