"""A child that appends until it is killed, or until its files may not grow: `position hash` for every acknowledged commit."""

import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

from eventlog.errors import LogFull
from eventlog.events import Commit, DaemonStopped
from eventlog.framing import draft
from eventlog.log import EventLog
from eventlog.values import Position, Words
from tests.eventlog.disks import NoReserve


def run(directory: Path, file_bytes_max: int) -> None:
    if file_bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))
    log = EventLog(directory, software="0.1.0", disk=NoReserve(), segment_bytes=20_000)
    log.lock()
    log.recover(None, lambda located: None)
    while True:
        first = log.head.position + 1
        batch = [
            Commit(
                position=Position(first + n),
                at=datetime.now(UTC),
                events=(DaemonStopped(reason=f"batch {first}"),),
                words=Words(salt="00", message="x" * (first * 37 % 400)),
            )
            for n in range(first % 4 + 1)
        ]
        try:
            marks = log.append([draft(one) for one in batch])
        except LogFull:
            print("full", flush=True)
            return
        print("".join(f"{mark.position} {mark.hash}\n" for mark in marks), end="", flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
