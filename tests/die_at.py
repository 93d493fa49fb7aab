"""The real daemon, which takes SIGKILL at one exact moment of its first picture. Usage: python -m tests.die_at MOMENT"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from daemon import cli
from eventlog.disk import Disk
from eventlog.framing import Draft
from eventlog.log import EventLog
from tools.files import OutputRoot
from tools.names import OutputName
from tools.store import Store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_append_of(fact: str) -> None:
    append = EventLog.append

    def append_then_die(self: EventLog, drafts: Sequence[Draft]) -> object:
        marks = append(self, drafts)
        if any(f'"{fact}"'.encode() in draft.body for draft in drafts):
            die()
        return marks

    EventLog.append = append_then_die  # type: ignore[method-assign, assignment]


def before_append_of(fact: str) -> None:
    append = EventLog.append

    def die_or_append(self: EventLog, drafts: Sequence[Draft]) -> object:
        if any(f'"{fact}"'.encode() in draft.body for draft in drafts):
            die()
        return append(self, drafts)

    EventLog.append = die_or_append  # type: ignore[method-assign, assignment]


def while_appending(fact: str) -> None:
    pwrite = Disk.pwrite

    def write_half_and_die(self: Disk, fd: int, data: bytes, offset: int) -> None:
        if f'"{fact}"'.encode() in data and b'"previous"' in data:
            pwrite(self, fd, data[: len(data) // 2], offset)
            die()
        pwrite(self, fd, data, offset)

    Disk.pwrite = write_half_and_die  # type: ignore[method-assign]


def while_spooling() -> None:
    pwrite = Disk.pwrite

    def write_half_and_die(self: Disk, fd: int, data: bytes, offset: int) -> None:
        if b'"ReplyReceived"' in data and b'"previous"' not in data:
            pwrite(self, fd, data[: len(data) // 2], offset)
            die()
        pwrite(self, fd, data, offset)

    Disk.pwrite = write_half_and_die  # type: ignore[method-assign]


def after_spool() -> None:
    spool = Store.spool

    def spool_then_die(self: Store, name: str, data: bytes) -> None:
        spool(self, name, data)
        die()

    Store.spool = spool_then_die  # type: ignore[method-assign]


def while_placing() -> None:
    place, pwrite = OutputRoot.place, Disk.pwrite
    placing = threading.Event()

    def place_and_tell(self: OutputRoot, name: OutputName, data: bytes, **how: Any) -> Path:
        placing.set()
        return place(self, name, data, **how)

    def write_half_and_die(self: Disk, fd: int, data: bytes, offset: int) -> None:
        if placing.is_set() and data.startswith(b"\x89PNG"):
            pwrite(self, fd, data[: len(data) // 2], offset)
            die()
        pwrite(self, fd, data, offset)

    OutputRoot.place = place_and_tell  # type: ignore[method-assign]
    Disk.pwrite = write_half_and_die  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "while JobRequested is appended": lambda: while_appending("JobRequested"),
    "after JobRequested": lambda: after_append_of("JobRequested"),
    "after JobStarted": lambda: after_append_of("JobStarted"),
    "while AttemptStarted is appended": lambda: while_appending("AttemptStarted"),
    "after AttemptStarted": lambda: after_append_of("AttemptStarted"),
    "while the reply is read": lambda: None,  # the stand-in sends half of it and pulls the plug
    "while the spool is written": while_spooling,
    "after the spool": after_spool,
    "while ReplyReceived is appended": lambda: while_appending("ReplyReceived"),
    "after ReplyReceived": lambda: after_append_of("ReplyReceived"),
    "while the file is written": while_placing,
    "after the file": lambda: before_append_of("JobCompleted"),
    "while JobCompleted is appended": lambda: while_appending("JobCompleted"),
    "after JobCompleted": lambda: after_append_of("JobCompleted"),
}

if __name__ == "__main__":
    MOMENTS[sys.argv[1]]()
    sys.exit(cli.main(["serve"]))
