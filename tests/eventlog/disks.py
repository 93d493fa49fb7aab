"""Disks for tests: one in memory that loses, tears and refuses, and small liars on top of the real one."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from eventlog.disk import Disk

SECTOR_BYTES = 512
DIRECTORY = 1


class PowerCut(BaseException):
    """The machine is gone; nothing in the program may catch this."""


class _File:
    """`live` is what programs read. `durable` is what the platter holds; `dirty` are the ranges in between."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = bytearray()
        self.dirty: list[tuple[int, int]] = []


class MemoryDisk(Disk):
    """One directory in memory.

    `before` is called with the name of every operation that changes something, and may raise: an `OSError` is
    the operation's failure, a `PowerCut` the end. `free` is what `free_bytes` says.
    """

    def __init__(self, *, free: int = 0) -> None:
        self.files: dict[str, _File] = {}
        self.durable_names: dict[str, _File] = {}
        self.before: Callable[[str], None] = lambda operation: None
        self.free = free
        self._open: dict[int, _File] = {}
        self._next = 10

    def content(self) -> dict[str, bytes]:
        return {name: bytes(file.live) for name, file in self.files.items()}

    def replace_content(self, content: dict[str, bytes]) -> None:
        self.files = {}
        for name, data in content.items():
            file = self.files[name] = _File()
            file.live[:] = file.durable[:] = data
        self.durable_names = dict(self.files)

    def open_directory(self, path: Path, *, create: bool = False) -> int:
        return DIRECTORY

    def lock(self, directory: int) -> bool:
        return True

    def names(self, directory: int) -> list[str]:
        return list(self.files)

    def open(self, directory: int, name: str, *, write: bool = False, create: bool = False) -> int:
        if create:
            if name in self.files:
                raise FileExistsError(errno.EEXIST, "exists", name)
            self.before("create")
            self.files[name] = _File()
        elif name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "missing", name)
        self._next += 1
        self._open[self._next] = self.files[name]
        return self._next

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def size(self, fd: int) -> int:
        return len(self._open[fd].live)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return bytes(self._open[fd].live[offset : offset + count])

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        file = self._open[fd]
        try:
            self.before("pwrite")
        except OSError:
            data = data[: len(data) // 2]  # what fits is written before the error comes
            self._put(file, data, offset)
            raise
        self._put(file, data, offset)

    def _put(self, file: _File, data: bytes, offset: int) -> None:
        file.live.extend(bytes(max(0, offset - len(file.live))))
        file.live[offset : offset + len(data)] = data
        file.dirty.append((offset, len(data)))

    def truncate(self, fd: int, size: int) -> None:
        self.before("truncate")
        del self._open[fd].live[size:]

    def sync(self, fd: int) -> None:
        file = self._open[fd]
        try:
            self.before("sync")
        except OSError:
            file.dirty.clear()  # Linux: the pages are marked clean, and are not written any more
            raise
        self._settle(file, len(file.live))

    def _settle(self, file: _File, length: int) -> None:
        del file.durable[length:]
        file.durable.extend(bytes(length - len(file.durable)))
        for offset, count in file.dirty:
            end = min(offset + count, length)
            file.durable[offset:end] = file.live[offset:end]
        file.dirty.clear()

    def sync_directory(self, directory: int) -> None:
        self.before("sync_directory")
        self.durable_names = dict(self.files)

    def unlink(self, directory: int, name: str) -> None:
        self.before("unlink")
        del self.files[name]

    def free_bytes(self, directory: int) -> int:
        return self.free

    def cut_power(self, chance: random.Random) -> None:
        """What was not synced is there, or not, or garbled, sector by sector and name by name."""
        names = dict(self.durable_names)
        for name, file in self.files.items():
            if name not in names and chance.random() < 0.5:
                names[name] = file
        for name in list(names):
            if name not in self.files and chance.random() < 0.5:
                del names[name]
        for file in names.values():
            self._lose_some(file, chance)
        self.files, self.durable_names, self._open = dict(names), dict(names), {}

    def _lose_some(self, file: _File, chance: random.Random) -> None:
        result = bytearray(file.durable)
        if len(file.live) < len(result) and chance.random() < 0.5:
            del result[len(file.live) :]
        safe = len(result)
        for offset, count in file.dirty:
            for start in range(offset - offset % SECTOR_BYTES, offset + count, SECTOR_BYTES):
                begin, end = max(start, offset), min(start + SECTOR_BYTES, offset + count, len(file.live))
                fate = chance.random()
                if begin >= end or fate < 0.3:
                    continue
                result.extend(bytes(max(0, end - len(result))))
                result[begin:end] = file.live[begin:end]
                if fate > 0.85 and end > safe:  # a sector that was durable already is never garbled
                    garbled = range(max(begin, safe), end)
                    result[garbled.start : garbled.stop] = chance.randbytes(len(garbled))
        file.live[:] = file.durable[:] = result
        file.dirty.clear()


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
