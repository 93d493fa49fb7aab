"""Replaces a file that belongs to somebody else's program: whole or not at all, and never without a copy of it.

Rule: mode, owner and a link to the file stay as they are; what cannot be kept is refused before anything changes.
"""

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from daemon.errors import BadConfiguration

FILE_BYTES_MAX = 64 * 1024 * 1024  # Claude Code keeps its history in its file; tens of megabytes have been seen
BACKUPS_READ_MAX = 20
_BACKUP = ".imaged-backup-"


class ConfigFile:
    """One file as it was when it was read. `target` is what a link at `path` leads to, else `path` itself."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BadConfiguration: it is there and cannot be read, or is no file of this user's.
        """
        self.path = path
        self._found: os.stat_result | None = None
        self.data = b""
        with _said_plainly(path, "read"):
            self.target = Path(os.path.realpath(path))
            if self.target.is_dir():
                raise BadConfiguration(f"{path} is not a file; move away what is there and try again.")
            with contextlib.suppress(FileNotFoundError):
                self._read()

    @property
    def exists(self) -> bool:
        return self._found is not None

    @property
    def is_private(self) -> bool:
        return self._found is None or not self._found.st_mode & 0o077

    def text(self) -> str:
        """With its byte order mark, if it begins with one.

        Raises:
            BadConfiguration
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError as exc:
            line = self.data.count(b"\n", 0, exc.start) + 1
            column = exc.start - (self.data.rfind(b"\n", 0, exc.start) + 1) + 1
            raise BadConfiguration(
                f"{self.path} is not text in UTF-8 (line {line}, column {column}) and was left as it is; "
                "save it as UTF-8 and try again."
            ) from None

    def backups(self) -> Iterator[str]:
        """The texts of the copies made earlier, the newest first."""
        with _said_plainly(self.path, "read"):
            names = sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}{_BACKUP}*"), reverse=True)
            for name in names[:BACKUPS_READ_MAX]:
                if name.is_symlink() or not name.is_file() or name.stat().st_size > FILE_BYTES_MAX:
                    continue
                with contextlib.suppress(UnicodeDecodeError):
                    yield name.read_bytes().decode()

    def replace(self, text: str) -> Path | None:
        """The copy of what was there before, or None if nothing was. Folders that are missing are made, for the user alone.

        Raises:
            BadConfiguration: nothing has changed.
        """
        with _said_plainly(self.path, "changed"):
            self._insist_on_ours()
            _make_folder(self.target.parent)
            temporary = self.target.with_name(f".{self.target.name}.imaged-{secrets.token_hex(8)}")
            backup = self._copied() if self.exists else None
            try:
                self._write(temporary, text.encode())
                self._insist_on_unchanged()
                temporary.rename(self.target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
                if backup:
                    backup.unlink()
                raise
            _sync_folder(self.target.parent)
        return backup

    def _read(self) -> None:
        # A pipe that nobody writes into would hold us for ever.
        descriptor = os.open(self.target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise BadConfiguration(f"{self.path} is not a file; move away what is there and try again.")
            self.data = file.read(FILE_BYTES_MAX + 1)
            if len(self.data) > FILE_BYTES_MAX:
                raise BadConfiguration(f"{self.path} is larger than {FILE_BYTES_MAX} bytes; no configuration is, look at it.")
            self._found = found

    def _insist_on_ours(self) -> None:
        if self._found is None:
            folder = self.target.parent
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            if folder.stat().st_uid != os.geteuid():
                raise BadConfiguration(f"{folder} does not belong to you, so nothing was made in it; run this as its owner.")
            return
        if self._found.st_uid != os.geteuid():
            raise BadConfiguration(f"{self.path} does not belong to you and was left as it is; run this as its owner.")
        if not self._found.st_mode & stat.S_IWUSR:
            raise BadConfiguration(
                f"{self.path} is read-only and was left as it is; to allow the change run: chmod u+w {self.target}"
            )
        if self._found.st_nlink > 1:
            raise BadConfiguration(
                f"{self.path} has {self._found.st_nlink} hard links, which cannot be kept; it was left as it is. "
                "Add the entry that --print shows by hand."
            )

    def _insist_on_unchanged(self) -> None:
        now = None
        with contextlib.suppress(FileNotFoundError):
            now = self.target.stat()
        if _version(now) != _version(self._found):
            raise BadConfiguration(f"{self.path} was changed by another program just now; close the client and try again.")

    def _copied(self) -> Path:
        """Beside the name the client uses, not beside what a link leads to: that may be a folder which is published."""
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        backup = self.path.with_name(f"{self.path.name}{_BACKUP}{at}")
        _write_new(backup, self.data, 0o600)
        _sync_folder(backup.parent)
        return backup

    def _write(self, temporary: Path, data: bytes) -> None:
        _write_new(temporary, data, 0o600)
        if self._found is not None:
            made = temporary.stat()
            if (made.st_uid, made.st_gid) != (self._found.st_uid, self._found.st_gid):
                os.chown(temporary, self._found.st_uid, self._found.st_gid)
            temporary.chmod(stat.S_IMODE(self._found.st_mode))


def _version(found: os.stat_result | None) -> object:
    return found and (found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        try:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        except OSError:
            path.unlink()
            raise


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _said_plainly(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise BadConfiguration(f"{path} cannot be {verb}: {exc.strerror or exc}.") from exc
