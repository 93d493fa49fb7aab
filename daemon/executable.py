"""What starts this program; and the program as a single file: what lives longer than one start, and what a kill leaves.

PyInstaller's single file unpacks itself into /tmp/_MEI<its pid><random> and removes that when it ends, but not when it is
killed; and cleaners of /tmp do not ask whether somebody still needs it.

Rule: nothing that is to last runs from there. Daemons, and clients that are set up, run from a folder of the home, which is
made once for each build and never changes. Whoever does run from /tmp holds a lock on a file there, so that leftovers can
be told from what is in use, also by processes whose ids we cannot see.
"""

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon import bridge
from daemon.version import VERSION
from eventlog.disk import Disk

CARRIED = "imaged-folder"  # the executable of the folder form; only the single file carries it, so it is also our mark
AGE_SECONDS_MIN = 60.0  # of a leftover: one that is younger may be in the middle of unpacking
_UNPACKED = re.compile(r"_MEI([0-9a-f]{8})[0-9A-Za-z]{6}")  # as the bootloader of PyInstaller 6.22 names it

_held: list[int] = []


def unpacked() -> Path | None:
    """Where this process was unpacked, None if it is not the single file."""
    found = getattr(sys, "_MEIPASS", None)
    return Path(found) if found and os.path.exists(f"{found}/{CARRIED}") else None  # noqa: PTH110


def hold() -> None:
    """Marks the place where this process was unpacked as in use, for as long as it lives."""
    place = unpacked()
    if place is not None and not _held:
        taken = [os.open(place / CARRIED, os.O_RDONLY | os.O_CLOEXEC)]
        while taken[-1] <= 2:
            taken.append(os.dup(taken[-1]))
        _held.append(taken.pop())
        for descriptor in taken:  # of stdin, stdout or stderr, which are closed, and must not seem open
            os.close(descriptor)
        Disk().share(_held[0])


def mcp_command() -> list[str]:
    """What a client has to start, with absolute paths."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "mcp"]
    beside = Path(sys.executable).with_name("imaged")
    if beside.exists():
        return [str(beside), "mcp"]
    found = shutil.which("imaged")
    return [found, "mcp"] if found else [*bridge.daemon_command()[:-2], "mcp"]


def lasting(command: Sequence[str], home: Path) -> list[str]:
    """The same command of an executable that lasts: of the single file, the one that `keep` puts into the home."""
    place = unpacked()
    return list(command) if place is None else [str(_folder(home, place) / "imaged"), *command[1:]]


def keep(home: Path) -> None:
    """Makes the executable that lasts, if need be: 62 MB, a second or two. Blocking.

    Raises:
        OSError: there is no room, or the home cannot be written; nothing half made is left under its name.
    """
    place = unpacked()
    folder = place and _folder(home, place)
    if place and folder and not folder.exists():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            shutil.copytree(place, unfinished / "_internal", symlinks=True, ignore=shutil.ignore_patterns(CARRIED))
            shutil.copyfile(place / CARRIED, unfinished / "imaged")
            (unfinished / "imaged").chmod(0o700)
            os.sync()  # its name stands for a whole program, also after the power has failed
            unfinished.rename(folder)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not folder.exists():  # otherwise somebody else was quicker
                raise


def sweep(now: Callable[[], float] = time.time) -> list[Path]:
    """Removes what killed processes of the single file have left in the directory for temporary files. Blocking."""
    temporary = Path(tempfile.gettempdir())
    removed = []
    for place in temporary.iterdir():
        found = _UNPACKED.fullmatch(place.name)
        if found is None or _is_alive(int(found[1], 16)):
            continue
        try:
            if _is_left(place, now()):
                shutil.rmtree(place)
                removed.append(place)
        except OSError:  # somebody else sweeps, too, or it is not ours to remove
            continue
    return removed


def _folder(home: Path, place: Path) -> Path:
    with (place / CARRIED).open("rb") as file:
        build = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return home / "programs" / f"{VERSION}-{build}"


def _is_left(place: Path, now: float) -> bool:
    """Ours, old enough, and held by nobody."""
    seen = place.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or now - seen.st_mtime < AGE_SECONDS_MIN:
        return False
    mark = os.open(place / CARRIED, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return stat.S_ISREG(os.fstat(mark).st_mode) and Disk().lock(mark)
    finally:
        os.close(mark)


def _is_alive(pid: int) -> bool:
    """Of whatever process bears the number now. One that has ended and was not fetched by its parent is not."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True  # this system does not tell
    return state[:1] != [b"Z"]
