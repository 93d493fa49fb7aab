"""The store of everything that was paid for, and the spool of replies that no fact speaks of yet.

Rule: what was paid for is here before anything else is done with it, and nothing is said to be here before it is durable.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventlog.disk import Disk
from eventlog.values import Blob, Sha256, digest
from tools.errors import FileFailed
from tools.files import TEMPORARY, digest_of, insist_on_room, translated, write_whole

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER_NAME = re.compile(r"[0-9a-f]{2}")
_SPOOL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


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
            insist_on_room(self._disk.free_bytes(folder), self._path, pictures)

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

    def blobs(self) -> Iterator[Blob]:
        """All, by name and size; what is in them is not looked at. Blocking.

        Raises:
            FileFailed
        """
        for folder in sorted(self._names(self._path)):
            if _FOLDER_NAME.fullmatch(folder):
                for name in sorted(self._names(self._path / folder)):
                    if _SHA256.fullmatch(name) and name.startswith(folder):
                        yield Blob(sha256=Sha256(name), size_bytes=self._size(self._path / folder, name))

    def spooled_names(self) -> tuple[str, ...]:
        """Under which a reply is spooled. Blocking; raises FileFailed."""
        names = sorted(self._names(self._path / "spool"))
        return tuple(name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(TEMPORARY))

    def _names(self, path: Path) -> list[str]:
        with translated(path):
            try:
                folder = self._disk.open_directory(path)
            except FileNotFoundError:
                return []
            try:
                return self._disk.names(folder)
            finally:
                self._disk.close(folder)

    def _size(self, path: Path, name: str) -> int:
        with translated(path):
            folder = self._disk.open_directory(path)
            try:
                file = self._disk.open(folder, name)
                try:
                    return self._disk.size(file)
                finally:
                    self._disk.close(file)
            finally:
                self._disk.close(folder)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        with translated(path):
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
            if digest_of(self._disk, folder, name, len(data)) != digest(data):
                raise FileFailed(f"The spool holds another reply as {name}; it was left as it is.", code="io_error") from None

    def _write_temporary(self, folder: int, data: bytes) -> str:
        """Its name; the bytes are durable, the name is not."""
        temporary = f"{self._temporary}{secrets.token_hex(8)}.tmp"
        write_whole(self._disk, folder, temporary, data)
        return temporary

    def _has(self, folder: int, sha256: Sha256, size: int) -> bool:
        """Whether it is there, whole and durable already."""
        if digest_of(self._disk, folder, sha256, size) != sha256:
            return False
        self._disk.sync_directory(folder)  # its writer may have died between the rename and this
        return True

    def _read(self, folder_path: Path, name: str) -> bytes | None:
        with translated(folder_path):
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


def _spool_file(name: str) -> str:
    if _SPOOL_NAME.fullmatch(name) is None:
        raise AssertionError(f"{name!r} is no name of an attempt")
    return f"{name}.json"
