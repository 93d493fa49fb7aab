"""The few things we ask of a disk, in one place, so that tests can put a lying or dying disk underneath.

Rule: the log and the store touch files only through a `Disk`. Every name is relative to an open directory;
every call blocks; failures are plain `OSError`. This file alone knows which system it runs on.
"""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # macOS <sys/stdio.h>


class Disk:
    """The real disk."""

    def __init__(self) -> None:
        self._lasting: set[Path] = set()  # directories whose names are durable, as far as this process has seen to it

    def open_directory(self, path: Path, *, create: bool = False) -> int:
        """Descriptor of a directory. With `create` it is made with mode 0700 and its parents with it, durably.

        One that is there already is made durable, too, once: whoever made it may have died before that.
        """
        if create and not self.is_directory(path):
            above = self.open_directory(path.parent, create=True)
            try:
                with contextlib.suppress(FileExistsError):
                    self.make_folder(above, path.name)
                self.sync_directory(above)
            finally:
                self.close(above)
        elif create and path not in self._lasting:
            self._let_name_last(path)
        if create:
            self._lasting.add(path)
        return self.open_path(path)

    def _let_name_last(self, path: Path) -> None:
        try:
            above = self.open_path(path.parent)
        except PermissionError:
            return  # nothing in there was made by us: that takes opening it first
        try:
            self.let_names_last(above)
        finally:
            self.close(above)

    def let_names_last(self, directory: int) -> None:
        """As `sync_directory`, for one that may be anybody's: some, as where homes are mounted, cannot be synced at all."""
        try:
            self.sync_directory(directory)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise

    def is_directory(self, path: Path) -> bool:
        return path.is_dir()

    def open_path(self, path: Path) -> int:
        return os.open(path, _FOLDER)

    def enter(self, directory: int, name: str, *, follow: bool) -> int:
        """As `open_folder`; one that is missing is made. Its name is durable then, whoever made it and died before that."""
        try:
            inner = self.open_folder(directory, name, follow=follow)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # somebody was faster
                self.make_folder(directory, name)
            inner = self.open_folder(directory, name, follow=follow)
        try:
            self.let_names_last(directory)
        except OSError:
            self.close(inner)
            raise
        return inner

    def open_folder(self, directory: int, name: str, *, follow: bool) -> int:
        """Descriptor of a directory inside; without `follow` a link is refused with ELOOP or ENOTDIR."""
        return os.open(name, _FOLDER | (0 if follow else os.O_NOFOLLOW), dir_fd=directory)

    def make_folder(self, directory: int, name: str) -> None:
        """With mode 0700; its name is not durable when this returns."""
        os.mkdir(name, 0o700, dir_fd=directory)

    def lock(self, directory: int) -> bool:
        """Take the lock for as long as the descriptor is open; False if somebody else has it, or a share of it."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self, fd: int) -> None:
        """Keep others from locking this for as long as the descriptor is open. Blocks while somebody has the lock."""
        fcntl.flock(fd, fcntl.LOCK_SH)

    def names(self, directory: int) -> list[str]:
        return os.listdir(directory)

    def open(self, directory: int, name: str, *, write: bool = False, create: bool = False) -> int:
        """Descriptor of a regular file. `create` refuses a name that exists and makes the file 0600.

        Raises:
            FileExistsError: `create` and the name is taken, by whatever it may be.
            OSError: EINVAL for what is not a regular file; links are not followed.
        """
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_RDWR if write or create else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Up to `count` bytes; fewer only at the end of the file."""
        pieces = []
        while count > 0:
            piece = os.pread(fd, count, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """All of `data`; a short write goes on where it stopped."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            offset += written
            view = view[written:]

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """The file's bytes and length survive a power loss once this has returned."""
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync stops at the drive's cache there
        else:
            os.fdatasync(fd)

    def sync_directory(self, directory: int) -> None:
        """The directory's names survive a power loss once this has returned."""
        if sys.platform == "darwin":
            fcntl.fcntl(directory, fcntl.F_FULLFSYNC)
        else:
            os.fsync(directory)

    def unlink(self, directory: int, name: str) -> None:
        os.unlink(name, dir_fd=directory)

    def replace(self, directory: int, old: str, new: str) -> None:
        """Rename within the directory, over whatever `new` was."""
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def rename_new(self, directory: int, old: str, new: str) -> None:
        """Rename within the directory; never replaces.

        Raises:
            FileExistsError: `new` is taken; `old` is left as it was.
        """
        if _rename_without_replacing(directory, old, new):
            return
        try:
            os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self._copy_new(directory, old, new)
        self.unlink(directory, old)

    def _copy_new(self, directory: int, old: str, new: str) -> None:
        """For file systems with neither a careful rename nor hard links (FAT, some network shares)."""
        source = self.open(directory, old)
        try:
            target = self.open(directory, new, create=True)
            try:
                self.pwrite(target, self.pread(source, self.size(source), 0), 0)
                self.sync(target)
            except OSError:
                self.unlink(directory, new)
                raise
            finally:
                self.close(target)
        finally:
            self.close(source)

    def free_bytes(self, directory: int) -> int:
        """Room left for us on the file system of `directory`."""
        figures = os.fstatvfs(directory)
        return figures.f_bavail * figures.f_frsize


def _rename_without_replacing(directory: int, old: str, new: str) -> bool:
    """True if the kernel did it, False if this system has no such call.

    Raises:
        OSError: the kernel's answer, FileExistsError among them.
    """
    if sys.platform == "linux":
        name, flag = "renameat2", _RENAME_NOREPLACE
    elif sys.platform == "darwin":
        name, flag = "renameatx_np", _RENAME_EXCL
    else:
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return False
    if function(directory, os.fsencode(old), directory, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), new)
