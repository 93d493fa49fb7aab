"""A daemon whose log takes long to read: whoever asks hears how far it is, and whoever waits is served."""

import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from daemon.starting import Reading
from tests.eventlog.builders import one_job
from tests.eventlog.test_index import placed
from tests.program import IMAGED, SECONDS_MAX, Program, Stdio, altered, wait_until

READS_WHEN_TOLD = """
follow = supervisor.starting.Reading.following
def following(self, replay):
    return follow(self, lambda located: (open({gate!r}).read(), replay(located)))
supervisor.starting.Reading.following = following
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The daemon reads on when somebody writes to it."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def test_who_asks_too_early_hears_so_and_is_served_when_the_log_is_read(gate: Path, tmp_path: Path) -> None:
    program = Program(tmp_path, altered(f"exec({READS_WHEN_TOLD.format(gate=str(gate))!r})")).start()
    control = program.places.run / "control.sock"
    wait_until(lambda: (program.places.run / "mcp.sock").exists(), "the doors")
    with Stdio(program.environment) as client, connected(control) as silent, connected(control) as rude:
        early = client.request(
            "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        )
        rude.sendall(b"\x16\x03\x01" * 99)
        rude.shutdown(socket.SHUT_RDWR)
        with connected(control) as asking:
            asking.sendall(b"POST /v1/generate_image HTTP/1.1\r\nHost: imaged\r\nContent-Length: 9\r\n\r\n{}       ")
            said = b"".join(iter(lambda: asking.recv(1 << 16), b""))
            assert said.startswith(b"HTTP/1.1 503 ") and b'"code":"starting"' in said and b"has read 0 %" in said
        asked = subprocess.Popen(
            [*IMAGED, "status"], env=program.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        )
        assert asked.stderr and b"imaged is reading its log" in asked.stderr.readline()
        gate.write_text("go on")
        out, _ = asked.communicate(timeout=SECONDS_MAX)
        assert asked.returncode == 0 and f"process {program.pid}".encode() in out
        assert "serverInfo" in client.answer(early)["result"]
        assert silent.recv(1) == b""
    assert program.end() == 0


def connected(path: Path) -> closing[socket.socket]:
    """A connection whose path may be long."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS_MAX)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    return closing(connection)


def test_how_far_it_is_follows_the_bytes_and_is_never_all(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000000.jsonl").write_bytes(bytes(1000))
    reading = Reading(tmp_path)
    followed: list[int] = []
    follow = reading.following(lambda located: followed.append(len(located)))
    commits = placed(one_job())
    for offset, percent in ((0, 0), (430, 43), (5000, 99)):
        follow([one._replace(mark=one.mark._replace(offset=offset)) for one in commits])
        assert reading.percent == percent
    assert followed == [len(commits)] * 3
