"""Files put in their place without ever replacing one, and the store of everything that was paid for.

Rule: a path is taken apart once (`names`); from then on there are only open directories and single names.
No link below a root is followed, a name is taken atomically or not at all, and nothing is said to be there
before it is durable. The order with money: `check` before paying, the store before anything else after it.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventlog.disk import Disk
from eventlog.values import Blob, Sha256, digest
from tools.errors import FileFailed, Refused
from tools.names import OutputName, parse_output

FREE_BYTES_MIN = 64 * 1024 * 1024  # room for the largest reply and its copy
NUMBERED_MAX = 10_000  # after that a random suffix: probing stays short
TEMPORARY = ".imaged-"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPOOL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CODES = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EROFS: "not_permitted",
    errno.ENOENT: "not_there",
}


class OutputRoot:
    """The directory that a session's pictures go to, held open. Made with its parents if it is missing."""

    def __init__(self, path: Path, descriptor: int, disk: Disk, *, any_path: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._disk = disk
        self._any_path = any_path

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, *, any_path: bool, disk: Disk | None = None) -> Iterator["OutputRoot"]:
        """Blocking.

        Raises:
            FileFailed: it is not there and cannot be made.
        """
        path, disk = Path(path), disk or Disk()
        with _translated(path):
            descriptor = disk.open_directory(path, create=True)
        try:
            yield cls(path, descriptor, disk, any_path=any_path)
        finally:
            disk.close(descriptor)

    @classmethod
    def check(cls, path: Path, argument: str, *, any_path: bool, output_format: str, count: int) -> None:
        """Everything that can be known before money is spent; changes nothing. Blocking.

        Raises:
            Refused: the name is not possible.
            FileFailed: the place cannot be written to, or has less than 64 MiB of room.
        """
        name = parse_output(argument, path, any_path=any_path, output_format=output_format)
        start = Path("/") if name.absolute else path
        with _translated(path):
            folder = _deepest_folder(start, name)
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise FileFailed(f"{folder} cannot be written to; change its permissions or the path.", code="not_permitted")
            descriptor = os.open(folder, _FOLDER)
            try:
                free = Disk().free_bytes(descriptor)
            finally:
                os.close(descriptor)
        _insist_on_room(free, folder, count)

    def parse(self, argument: str, *, output_format: str) -> OutputName:
        return parse_output(argument, self._path, any_path=self._any_path, output_format=output_format)

    def place(self, name: OutputName, data: bytes, *, token: str, adopt: bool = False) -> Path:
        """The path of a new durable file with these bytes; a taken name gets a number. Blocking.

        `token` is the caller's own for this very file: what an earlier life left half written under it is removed.
        With `adopt` a file of these very bytes under one of the names is taken for it: an earlier life wrote it.

        Raises:
            Refused: a link or something else stands where a folder should be.
            FileFailed: the disk said no; no half file is left behind.
        """
        where = (Path("/") if name.absolute else self._path).joinpath(*name.folders)
        with _translated(where), self._folder(name) as folder:
            temporary = f"{TEMPORARY}{token}.tmp"
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(folder, temporary)
            _write_whole(self._disk, folder, temporary, data)
            try:
                taken = self._take(folder, temporary, name, Blob(sha256=digest(data), size_bytes=len(data)) if adopt else None)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    self._disk.unlink(folder, temporary)
                raise
            self._disk.sync_directory(folder)
        return where / taken

    def _take(self, folder: int, temporary: str, name: OutputName, adopted: Blob | None) -> str:
        for attempt in range(NUMBERED_MAX):
            candidate = name.candidate(attempt)
            try:
                self._disk.rename_new(folder, temporary, candidate)
            except FileExistsError:
                if adopted and _digest_of(self._disk, folder, candidate, adopted.size_bytes) == adopted.sha256:
                    self._disk.unlink(folder, temporary)
                    return candidate
                continue
            return candidate
        candidate = name._replace(stem=f"{name.stem}_{secrets.token_hex(6)}").candidate(0)
        self._disk.rename_new(folder, temporary, candidate)
        return candidate

    @contextmanager
    def _folder(self, name: OutputName) -> Iterator[int]:
        """The folder of `name`, walked to by descriptors and made where it is missing."""
        follow = name.absolute  # only with OPENAI_IMAGE_ALLOW_ANY_PATH: the user's own links count there
        disk = self._disk
        folder = disk.open_path(Path("/")) if name.absolute else disk.open_folder(self._descriptor, ".", follow=True)
        try:
            for component in name.folders:
                inner = self._enter(folder, component, follow=follow)
                self._disk.close(folder)
                folder = inner
            yield folder
        finally:
            self._disk.close(folder)

    def _enter(self, folder: int, component: str, *, follow: bool) -> int:
        try:
            return self._disk.enter(folder, component, follow=follow)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _not_a_folder(component) from exc
            raise


class Store:
    """Blobs by their digest, and the spool of replies that no fact speaks of yet. Files 0600 below `directory` 0700."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._path = directory
        self._disk = disk
        self._temporary = f"{TEMPORARY}{secrets.token_hex(6)}-"
        self._swept: set[Path] = set()

    @classmethod
    def open(cls, directory: Path, disk: Disk | None = None) -> "Store":
        """Blocking. Only the holder of the log's lock may have a store open: whatever others left half written is swept.

        Raises:
            FileFailed: it cannot be made, or swept.
        """
        store = cls(directory, disk or Disk())
        with store._opened(directory / "spool"):
            return store

    def check_room(self, pictures: int) -> None:
        """Before money is spent. Blocking.

        Raises:
            FileFailed: less than 64 MiB for each picture.
        """
        with self._opened(self._path) as folder:
            _insist_on_room(self._disk.free_bytes(folder), self._path, pictures)

    def put(self, data: bytes) -> Blob:
        """Durable when it returns; the same bytes are kept once. Blocking.

        Raises:
            FileFailed
        """
        sha256 = digest(data)
        with self._opened(self._path / sha256[:2]) as folder:
            if not self._has(folder, sha256, len(data)):
                # Over whatever has this name: it can only be the same bytes, or what is left of them.
                self._disk.replace(folder, self._write_temporary(folder, data), sha256)
                self._disk.sync_directory(folder)
        return Blob(sha256=sha256, size_bytes=len(data))

    def get(self, sha256: Sha256) -> bytes:
        """Checked against its digest. Blocking.

        Raises:
            FileFailed: it is not there, or damaged.
        """
        data = self._read(self._path / sha256[:2], sha256) if _SHA256.fullmatch(sha256) else None
        if data is None:
            raise FileFailed(f"The store has no picture {sha256}.", code="not_there")
        if digest(data) != sha256:
            raise FileFailed(f"The picture {self.path(sha256)} is damaged: its digest does not fit.", code="io_error")
        return data

    def remove(self, sha256: Sha256) -> bool:
        """Durably; False if it was not there. Blocking; raises FileFailed."""
        with self._opened(self._path / sha256[:2]) as folder:
            there = sha256 in self._disk.names(folder)
            if there:
                self._disk.unlink(folder, sha256)
            self._disk.sync_directory(folder)
        return there

    def path(self, sha256: Sha256) -> Path:
        return self._path / sha256[:2] / sha256

    def spool(self, name: str, data: bytes) -> None:
        """Durable when it returns; written once. Blocking.

        Raises:
            FileFailed: also if other bytes are spooled under this name, which then stay.
        """
        file_name = _spool_file(name)
        with self._opened(self._path / "spool") as folder:
            self._write_new(folder, file_name, data)
            self._disk.sync_directory(folder)

    def spooled(self, name: str) -> bytes | None:
        """None if there is no such reply. Blocking.

        Raises:
            FileFailed
        """
        return self._read(self._path / "spool", _spool_file(name))

    def unspool(self, name: str) -> None:
        """Once the facts are in the log. Not durable: a spool file that comes back is ignored. Blocking.

        Raises:
            FileFailed
        """
        file_name = _spool_file(name)
        with self._opened(self._path / "spool") as folder, contextlib.suppress(FileNotFoundError):
            self._disk.unlink(folder, file_name)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        with _translated(path):
            folder = self._folder(path)
            try:
                yield folder
            finally:
                self._disk.close(folder)

    def _folder(self, path: Path) -> int:
        """Its descriptor. At the first visit, what a dead process left half written there is removed."""
        folder = self._disk.open_directory(path, create=True)
        if path not in self._swept:
            for name in self._disk.names(folder):
                if name.startswith(TEMPORARY) and not name.startswith(self._temporary):
                    with contextlib.suppress(FileNotFoundError):  # another thread's first visit
                        self._disk.unlink(folder, name)
            self._swept.add(path)
        return folder

    def _write_new(self, folder: int, name: str, data: bytes) -> None:
        temporary = self._write_temporary(folder, data)
        try:
            self._disk.rename_new(folder, temporary, name)
        except FileExistsError:
            self._disk.unlink(folder, temporary)
            if _digest_of(self._disk, folder, name, len(data)) != digest(data):
                raise FileFailed(f"The spool holds another reply as {name}; it was left as it is.", code="io_error") from None

    def _write_temporary(self, folder: int, data: bytes) -> str:
        """Its name; the bytes are durable, the name is not."""
        temporary = f"{self._temporary}{secrets.token_hex(8)}.tmp"
        _write_whole(self._disk, folder, temporary, data)
        return temporary

    def _has(self, folder: int, sha256: Sha256, size: int) -> bool:
        """Whether it is there, whole and durable already."""
        if _digest_of(self._disk, folder, sha256, size) != sha256:
            return False
        self._disk.sync_directory(folder)  # its writer may have died between the rename and this
        return True

    def _read(self, folder_path: Path, name: str) -> bytes | None:
        with _translated(folder_path):
            try:
                folder = self._disk.open_directory(folder_path)
            except FileNotFoundError:
                return None
            try:
                file = self._disk.open(folder, name)
            except FileNotFoundError:
                return None
            finally:
                self._disk.close(folder)
            try:
                return self._disk.pread(file, self._disk.size(file), 0)
            finally:
                self._disk.close(file)


def _insist_on_room(free: int, folder: Path, pictures: int) -> None:
    wanted = FREE_BYTES_MIN * pictures
    if free < wanted:
        raise FileFailed(
            f"The disk of {folder} has {free // 1_000_000} MB left; at least {wanted // 1_000_000} MB are wanted before a "
            "picture is paid for.",
            code="no_space",
        )


def _deepest_folder(start: Path, name: OutputName) -> Path:
    """The last folder on the way that exists; everything behind it would be made.

    Raises:
        Refused: something on the way is a link, or not a folder.
        FileFailed: the root itself is not a folder.
    """
    existing = start
    while not existing.exists():
        if existing.is_symlink():
            raise FileFailed(f"{existing} is a link to nowhere; choose another output directory.", code="not_there")
        existing = existing.parent
    if not existing.is_dir():
        raise FileFailed(f"{existing} is not a folder; choose another output directory.", code="not_there")
    if existing != start:
        return existing
    for component in name.folders:
        inner = existing / component
        try:
            found = inner.stat() if name.absolute else inner.lstat()
        except FileNotFoundError:
            if inner.is_symlink():
                raise _not_a_folder(component) from None
            return existing
        if not stat.S_ISDIR(found.st_mode):
            raise _not_a_folder(component)
        existing = inner
    return existing


def _write_whole(disk: Disk, folder: int, name: str, data: bytes) -> None:
    """A new file whose bytes are durable, or none."""
    file = disk.open(folder, name, create=True)
    try:
        disk.pwrite(file, data, 0)
        disk.sync(file)
    except OSError:
        disk.unlink(folder, name)
        raise
    finally:
        disk.close(file)


def _spool_file(name: str) -> str:
    if _SPOOL_NAME.fullmatch(name) is None:
        raise AssertionError(f"{name!r} is no name of an attempt")
    return f"{name}.json"


def _digest_of(disk: Disk, folder: int, name: str, size: int) -> Sha256 | None:
    """None for what is not a file of this size."""
    try:
        file = disk.open(folder, name)
    except OSError:
        return None
    try:
        return digest(disk.pread(file, size, 0)) if disk.size(file) == size else None
    finally:
        disk.close(file)


def _not_a_folder(component: str) -> Refused:
    return Refused(
        f"{component!r} in output_path is a link or not a folder; links below the output directory are not followed.",
        code="path_link",
        argument="output_path",
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The system's refusals in our words, with our path: never a foreign one."""
    try:
        yield
    except ValueError as exc:  # a NUL in the path: Python's own refusal
        raise FileFailed(f"{path} cannot be used: {exc}.", code="io_error") from exc
    except OSError as exc:
        code = _CODES.get(exc.errno or 0, "io_error")
        raise FileFailed(f"{path} cannot be used: {exc.strerror or 'unknown trouble'}.", code=code) from exc
