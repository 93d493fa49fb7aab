"""Files put in their place without ever replacing one.

Rule: a path is taken apart once (`names`); from then on there are only open directories and single names.
No link below a root is followed, a name is taken atomically or not at all, and nothing is said to be there
before it is durable. The order with money: `check` before paying, the store before anything else after it.
"""

import contextlib
import errno
import os
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
        with translated(path):
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
        with translated(path):
            folder = _deepest_folder(start, name)
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise FileFailed(f"{folder} cannot be written to; change its permissions or the path.", code="not_permitted")
            descriptor = os.open(folder, _FOLDER)
            try:
                free = Disk().free_bytes(descriptor)
            finally:
                os.close(descriptor)
        insist_on_room(free, folder, count)

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
        with translated(where), self._folder(name) as folder:
            temporary = f"{TEMPORARY}{token}.tmp"
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(folder, temporary)
            write_whole(self._disk, folder, temporary, data)
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
                if adopted and digest_of(self._disk, folder, candidate, adopted.size_bytes) == adopted.sha256:
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


def insist_on_room(free: int, folder: Path, pictures: int) -> None:
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


def write_whole(disk: Disk, folder: int, name: str, data: bytes) -> None:
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


def digest_of(disk: Disk, folder: int, name: str, size: int) -> Sha256 | None:
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
def translated(path: Path) -> Iterator[None]:
    """The system's refusals in our words, with our path: never a foreign one."""
    try:
        yield
    except ValueError as exc:  # a NUL in the path: Python's own refusal
        raise FileFailed(f"{path} cannot be used: {exc}.", code="io_error") from exc
    except OSError as exc:
        code = _CODES.get(exc.errno or 0, "io_error")
        raise FileFailed(f"{path} cannot be used: {exc.strerror or 'unknown trouble'}.", code=code) from exc
