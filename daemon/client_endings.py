"""How a daemon that went away has ended: on purpose, or not.

Rule: the log knows it, once the process is gone. Blocking.
"""

import os
import socket
import sys
import time
from pathlib import Path

END_SECONDS_MAX = 30.0  # a daemon that ends finishes its answers first
LOOK_AGAIN_SECONDS = 0.05


def pid_behind(connection: socket.socket) -> int:
    """Of the process at the other end; 0 where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)


def wait_for_end(pid: int) -> None:
    """Returns when the process is gone or the time is up; at once for pid 0."""
    give_up_at = time.monotonic() + END_SECONDS_MAX
    while pid and _lives(pid) and time.monotonic() < give_up_at:
        time.sleep(LOOK_AGAIN_SECONDS)


def was_in_order(events: Path) -> bool:
    """What the log says of the last daemon. A log that cannot be read tells of no deliberate end."""
    from eventlog import audit
    from eventlog.errors import EventLogError
    from eventlog.events import DaemonStopped

    last: object = None
    try:
        for located in audit.commits(events):
            last = located.commit.events[-1]
    except (EventLogError, OSError):
        return False
    return isinstance(last, DaemonStopped)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, and perhaps its number is somebody else's by now
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Ended with all its threads, which hold its files as long as they live, and its parent has not asked for its status."""
    try:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return threads <= 1 and Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False  # gone this very moment, or a system without /proc
