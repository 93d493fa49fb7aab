"""Disks for tests: some in memory that lose, tear and refuse, and small liars on top of the real one."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from eventlog.disk import Disk

SECTOR_BYTES = 512

T = TypeVar("T")


class PowerCut(BaseException):
    """The machine is gone; nothing in the program may catch this."""


class _File:
    """`live` is what programs read. `durable` is what the platter holds; `dirty` are the ranges in between."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = bytearray()
        self.dirty: list[tuple[int, int]] = []

    def write(self, data: bytes, offset: int) -> None:
        self.live.extend(bytes(max(0, offset - len(self.live))))
        self.live[offset : offset + len(data)] = data
        self.dirty.append((offset, len(data)))

    def settle(self) -> None:
        length = len(self.live)
        del self.durable[length:]
        self.durable.extend(bytes(length - len(self.durable)))
        for offset, count in self.dirty:
            end = min(offset + count, length)
            self.durable[offset:end] = self.live[offset:end]
        self.dirty.clear()

    def lose_some(self, chance: random.Random) -> None:
        result = bytearray(self.durable)
        if len(self.live) < len(result) and chance.random() < 0.5:
            del result[len(self.live) :]
        safe = len(result)
        for offset, count in self.dirty:
            for start in range(offset - offset % SECTOR_BYTES, offset + count, SECTOR_BYTES):
                begin, end = max(start, offset), min(start + SECTOR_BYTES, offset + count, len(self.live))
                fate = chance.random()
                if begin >= end or fate < 0.3:
                    continue
                result.extend(bytes(max(0, end - len(result))))
                result[begin:end] = self.live[begin:end]
                if fate > 0.85 and end > safe:  # a sector that was durable already is never garbled
                    garbled = range(max(begin, safe), end)
                    result[garbled.start : garbled.stop] = chance.randbytes(len(garbled))
        self.live[:] = self.durable[:] = result
        self.dirty.clear()


class _Folder:
    """`names` is what programs see, `durable` what the platter holds."""

    def __init__(self) -> None:
        self.names: dict[str, _File | _Folder] = {}
        self.durable: dict[str, _File | _Folder] = {}

    def lose_some(self, chance: random.Random) -> None:
        """Each name by itself: an unsynced one is there or not, and one that was replaced means the old or the new."""
        kept = dict(self.durable)
        for name, entry in self.names.items():
            if kept.get(name) is not entry and chance.random() < 0.5:
                kept[name] = entry
        for name in list(kept):
            if name not in self.names and chance.random() < 0.5:
                del kept[name]
        for entry in kept.values():
            entry.lose_some(chance)
        self.names, self.durable = dict(kept), dict(kept)


class SimulatedDisk(Disk):
    """A tree of directories in memory that promises what POSIX promises, and nothing more.

    `before` and `after` are called with the name of every operation that changes something, and may raise: an
    `OSError` from `before` is the operation's failure, a `PowerCut` the end. `free` is what `free_bytes` says.
    """

    def __init__(self, *, free: int = 0) -> None:
        super().__init__()
        self.root = _Folder()
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None
        self.free = free
        self._open: dict[int, _File | _Folder] = {}
        self._next = 10

    def cut_power(self, chance: random.Random) -> None:
        """What was not synced is there, or not, or garbled, sector by sector and name by name."""
        self.end_process()
        self.root.lose_some(chance)

    def end_process(self) -> None:
        """Nothing is lost, and nothing is synced by that."""
        self._open = {}
        self._lasting = set()

    def content_of(self, path: Path) -> bytes | None:
        """As programs see it; None for what is no file."""
        file = self._find(path)
        return bytes(file.live) if isinstance(file, _File) else None

    def names_in(self, path: Path) -> list[str]:
        return list(_folder(self._find(path), str(path)).names)

    def lock(self, directory: int) -> bool:
        return True

    def is_directory(self, path: Path) -> bool:
        return isinstance(self._find(path), _Folder)

    def open_path(self, path: Path) -> int:
        return self._opened(_folder(self._find(path), str(path)))

    def open_folder(self, directory: int, name: str, *, follow: bool) -> int:
        folder = self._folder(directory)
        return self._opened(folder if name == "." else _folder(folder.names.get(name), name))

    def make_folder(self, directory: int, name: str) -> None:
        folder = self._folder(directory)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, "exists", name)
        self.before("make_folder")
        folder.names[name] = _Folder()
        self.after("make_folder")

    def names(self, directory: int) -> list[str]:
        return list(self._folder(directory).names)

    def open(self, directory: int, name: str, *, write: bool = False, create: bool = False) -> int:
        names = self._folder(directory).names
        if create:
            if name in names:
                raise FileExistsError(errno.EEXIST, "exists", name)
            self.before("create")
            names[name] = _File()
            self.after("create")
        file = names.get(name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "missing", name)
        if isinstance(file, _Folder):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return self._opened(file)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def size(self, fd: int) -> int:
        return len(self._file(fd).live)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return bytes(self._file(fd).live[offset : offset + count])

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        file = self._file(fd)
        try:
            self.before("pwrite")
        except OSError:
            file.write(data[: len(data) // 2], offset)  # what fits is written before the error comes
            raise
        file.write(data, offset)
        self.after("pwrite")

    def truncate(self, fd: int, size: int) -> None:
        file = self._file(fd)
        self.before("truncate")
        del file.live[size:]
        self.after("truncate")

    def sync(self, fd: int) -> None:
        file = self._file(fd)
        try:
            self.before("sync")
        except OSError:
            file.dirty.clear()  # Linux: the pages are marked clean, and are not written any more
            raise
        file.settle()
        self.after("sync")

    def sync_directory(self, directory: int) -> None:
        folder = self._folder(directory)
        self.before("sync_directory")
        folder.durable = dict(folder.names)
        self.after("sync_directory")

    def unlink(self, directory: int, name: str) -> None:
        names = self._folder(directory).names
        if name not in names:
            raise FileNotFoundError(errno.ENOENT, "missing", name)
        self.before("unlink")
        del names[name]
        self.after("unlink")

    def replace(self, directory: int, old: str, new: str) -> None:
        names = self._folder(directory).names
        self.before("replace")
        names[new] = names.pop(old)
        self.after("replace")

    def rename_new(self, directory: int, old: str, new: str) -> None:
        names = self._folder(directory).names
        if new in names:
            raise FileExistsError(errno.EEXIST, "exists", new)
        self.before("rename_new")
        names[new] = names.pop(old)
        self.after("rename_new")

    def free_bytes(self, directory: int) -> int:
        return self.free

    def _find(self, path: Path) -> _File | _Folder | None:
        found: _File | _Folder | None = self.root
        for name in path.parts[1:]:
            found = found.names.get(name) if isinstance(found, _Folder) else None
        return found

    def _opened(self, entry: _File | _Folder) -> int:
        self._next += 1
        self._open[self._next] = entry
        return self._next

    def _file(self, fd: int) -> _File:
        return _sure(self._open.get(fd), _File)

    def _folder(self, fd: int) -> _Folder:
        return _sure(self._open.get(fd), _Folder)


def _sure(entry: object, kind: type[T]) -> T:
    if not isinstance(entry, kind):
        raise OSError(errno.EBADF, "a descriptor of the wrong kind, or of a process that has ended")
    return entry


def _folder(entry: _File | _Folder | None, name: str) -> _Folder:
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "missing", name)
    if isinstance(entry, _File):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", name)
    return entry


class MemoryDisk(SimulatedDisk):
    """One directory in memory, wherever it is said to be. What it stands in is not simulated."""

    def let_names_last(self, directory: int) -> None:
        pass

    @property
    def files(self) -> dict[str, _File]:
        return self.root.names  # type: ignore[return-value]

    def content(self) -> dict[str, bytes]:
        return {name: bytes(file.live) for name, file in self.files.items()}

    def replace_content(self, content: dict[str, bytes]) -> None:
        self.root.names.clear()
        for name, data in content.items():
            file = self.root.names[name] = _File()
            file.live[:] = file.durable[:] = data
        self.root.durable = dict(self.root.names)

    def _find(self, path: Path) -> _File | _Folder | None:
        return self.root


def fail_nth(number: int, error: BaseException, *, only: str = "", forever: bool = False) -> Callable[[str], None]:
    """For `MemoryDisk.before`: the nth operation (from 1; `only` of one name) fails."""
    seen = 0

    def before(operation: str) -> None:
        nonlocal seen
        if only and operation != only:
            return
        seen += 1
        if seen == number or (forever and seen > number):
            raise error

    return before


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class NoReserve(Disk):
    """The real disk, too full for a reserve: what a test writes stays small."""

    def free_bytes(self, directory: int) -> int:
        return 0
