"""Files of the user's that may be read: below one of the input directories, and nothing else on the disk.

Rule: the reading half of the sandbox (`names` and `files` are the writing half). A path is taken apart once, before
anything touches a disk; from then on there are only open directories and single names. No link below a root is
followed, and what is read is the very file that was judged, whatever happens to its name meanwhile.
"""

import contextlib
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tools.errors import FileFailed, Refused
from tools.names import CLAUDE_PATHS, DEPTH_MAX, IMAGE_SUFFIXES, PATH_CHARACTERS_MAX, UNSEEN

COMPONENT_BYTES_MAX = 255  # what file systems hold; the file exists already, so no room for numbers is needed
READ_BYTES = 1024 * 1024
SHOWN_CHARACTERS_MAX = 300
INPUT_SETTING = "OPENAI_IMAGE_INPUT_DIR"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a pipe or terminal must not hold us
_REFUSED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://|data:")
_DRIVE = re.compile(r"[A-Za-z]:")
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, all that a datetime holds


class Entry(NamedTuple):
    """A picture by its name; nobody has looked inside. `modified` is in UTC."""

    path: Path
    size_bytes: int
    modified: datetime


class Listing(NamedTuple):
    """Newest first, then by name."""

    folder: Path
    entries: tuple[Entry, ...]


class _Asked(NamedTuple):
    """The path as it came, the argument it came in, and where it may lead: what every sentence needs."""

    text: str
    argument: str
    roots: Sequence[Path]

    def __str__(self) -> str:
        return f"{self.argument} {visible(self.text)}"

    @property
    def places(self) -> str:
        return " or ".join(visible(str(root)) for root in self.roots)

    def no(self, sentence: str, code: str) -> Refused:
        return Refused(sentence, code=code, argument=self.argument)


def read(argument: str, roots: Sequence[Path], *, name: str, bytes_max: int) -> bytes:
    """The bytes of one file, from the first root that has it. Blocking.

    `name` is what the argument is called. A root may be a link, what is below it may not.

    Raises:
        Refused: with a stable code and a sentence.
        FileFailed: the disk said no while it was read.
    """
    asked = _Asked(argument, name, roots)
    places = list(_places(asked))
    if argument.endswith(("/", "/.")) or any(not components for _, components in places):
        raise asked.no(f"{asked} names a folder; add the name of a file in it.", "path_is_folder")
    for root, components in places:
        with _translated(asked), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _read_below(root, components, asked, bytes_max)
    raise asked.no(
        f"There is no {asked}; it was looked for below {asked.places}. Check its name, or save the file there.", "not_there"
    )


def listing(argument: str | None, roots: Sequence[Path]) -> Listing:
    """The pictures in one folder, without those in folders below it: no link, nothing hidden, only what could be read.

    None, "" and "." are the first root, which may be missing: then there is nothing in it. Blocking.

    Raises:
        Refused: with a stable code and a sentence.
        FileFailed: the disk said no.
    """
    asked = _Asked(argument or ".", "directory", roots)
    for root, components in _places(asked):
        with (
            _translated(asked),
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            _folder(root, components, asked) as (folder, path),
        ):
            return Listing(path, _pictures(folder, path))
    if asked.text == ".":
        return Listing(roots[0], ())
    raise asked.no(f"There is no folder for {asked}; it was looked for below {asked.places}.", "not_there")


def visible(text: str) -> str:
    """In quotation marks and bounded, every character that the eye would miss or that moves others as its number."""
    cut = text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), repr(cut))


def _places(asked: _Asked) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Where the path may lead, root by root. Purely lexical, except that a root may be named by its real path, too."""
    _refuse_strange_text(asked)
    text = asked.text
    if text.startswith("~/"):
        text = f"{_home(asked)}{text[1:]}"
    components = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in components:
        raise asked.no(f"{asked} contains “..”; write the path without it.", "path_dotdot")
    if not text.startswith("/"):
        found = [(root, components) for root in (asked.roots if components else asked.roots[:1])]
    else:
        found = [(root, below) for root in asked.roots if (below := _below(components, root)) is not None]
    if not found:
        raise _outside(asked)
    for root, below in found:
        _refuse_too_much(below, asked)
        yield root, tuple(below)


def _outside(asked: _Asked) -> Refused:
    if f"{asked.text}/".startswith(CLAUDE_PATHS):
        inline = asked.argument.removesuffix("path") + "base64"
        other = f", or pass it as {inline}" if asked.argument.endswith("_image_path") else ""
        return asked.no(
            f"{asked} exists only inside Claude's own sandbox, not on this machine; save the picture into {asked.places} and "
            f"give that path{other}.",
            "path_virtual",
        )
    return asked.no(
        f"{asked} is outside the input directories ({asked.places}); move the file into one of them, or add its folder to "
        f"{INPUT_SETTING}, which takes a list separated by “:”.",
        "path_outside",
    )


def _below(components: list[str], root: Path) -> list[str] | None:
    """The rest of the path below the root as configured or as it really is; None if it is elsewhere."""
    for name in (os.path.normpath(root), os.path.realpath(root)):
        parts = [part for part in name.split("/") if part]
        if [unicodedata.normalize("NFC", part) for part in components[: len(parts)]] == [
            unicodedata.normalize("NFC", part) for part in parts
        ]:
            return components[len(parts) :]
    return None


def _home(asked: _Asked) -> str:
    try:
        return os.path.normpath(Path.home())
    except RuntimeError as exc:
        raise asked.no(f"“~” in {asked.argument} means nothing here: your home directory is not known.", "path_user") from exc


def _refuse_strange_text(asked: _Asked) -> None:
    text, name = asked.text, asked.argument
    if _URL.match(text):
        raise asked.no(f"{name} is a URL; save the picture below {asked.places} and give its path.", "path_url")
    if len(text) > PATH_CHARACTERS_MAX:
        raise asked.no(f"{name} has {len(text):,} characters; at most {PATH_CHARACTERS_MAX:,} are allowed.", "path_too_long")
    for character in text:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise asked.no(
                f"{name} contains the control character U+{ord(character):04X}; leave it out, or rename the file.",
                "path_control",
            )
    if "\\" in text:
        raise asked.no(f"{asked} contains a backslash; separate folders with /.", "path_backslash")
    if _DRIVE.match(text):
        raise asked.no(f"{asked} begins with a drive; give a path below {asked.places}.", "path_drive")
    if text.startswith("~") and not text.startswith("~/"):
        raise asked.no(
            f"{asked} names a home directory; give a path below {asked.places}, or write ./~ for a name that begins so.",
            "path_user",
        )


def _refuse_too_much(components: Sequence[str], asked: _Asked) -> None:
    if len(components) > DEPTH_MAX:
        raise asked.no(f"{asked.argument} goes {len(components)} folders deep; at most {DEPTH_MAX} are allowed.", "path_too_deep")
    longest = max((len(component.encode()) for component in components), default=0)
    if longest > COMPONENT_BYTES_MAX:
        raise asked.no(
            f"a part of {asked.argument} has {longest} bytes; at most {COMPONENT_BYTES_MAX} are allowed.", "path_too_long"
        )


def _read_below(root: Path, components: Sequence[str], asked: _Asked, bytes_max: int) -> bytes:
    with _folder(root, components[:-1], asked) as (folder, _):
        spelling, found = _look(folder, components[-1])
        _insist_on_file(found, asked)  # before it is opened: to open a pipe or a device is to do something to it
        file = _open(folder, spelling, _FILE, asked)
        try:
            _insist_on_file(os.fstat(file), asked)
            return _content(file, asked, bytes_max)
        finally:
            os.close(file)


def _content(file: int, asked: _Asked, bytes_max: int) -> bytes:
    size = os.fstat(file).st_size
    if size > bytes_max:
        raise asked.no(f"{asked} has {size:,} bytes; at most {bytes_max:,} are allowed. Make it smaller.", "too_large")
    pieces = []
    left = bytes_max + 1  # somebody may be writing to it: its size is only what it was
    while left and (piece := os.read(file, min(left, READ_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise asked.no(
            f"{asked} grew to more than {bytes_max:,} bytes while it was read, and no more are allowed. Wait until it is "
            "written, or make it smaller.",
            "too_large",
        )
    return b"".join(pieces)


def _insist_on_file(found: os.stat_result, asked: _Asked) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _link(asked)
    if stat.S_ISDIR(found.st_mode):
        raise asked.no(f"{asked} is a folder; give the path of a file in it.", "path_is_folder")
    if not stat.S_ISREG(found.st_mode):
        raise asked.no(f"{asked} is a pipe, a socket or a device, not a file; give the path of a picture.", "not_a_file")
    if found.st_nlink > 1 and found.st_uid != os.geteuid():
        raise asked.no(
            f"{asked} is another user's file under a second name, which may stand for one outside the input directories; "
            "copy the file instead.",
            "path_link",
        )


@contextmanager
def _folder(root: Path, components: Sequence[str], asked: _Asked) -> Iterator[tuple[int, Path]]:
    """A folder below the root, walked to by descriptors, and its path as it is spelled on the disk.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    folder, path = os.open(root, _FOLDER & ~os.O_NOFOLLOW), root
    try:
        for component in components:
            spelling, found = _look(folder, component)
            if stat.S_ISLNK(found.st_mode):
                raise _link(asked)
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", spelling)
            inner = _open(folder, spelling, _FOLDER, asked)
            os.close(folder)
            folder, path = inner, path / spelling
        yield folder, path
    finally:
        os.close(folder)


def _look(folder: int, component: str) -> tuple[str, os.stat_result]:
    """Its name as given, then composed, then decomposed, as some systems store it; and what it is. Follows nothing.

    Raises:
        FileNotFoundError: under none of these names.
    """
    for spelling in dict.fromkeys((component, unicodedata.normalize("NFC", component), unicodedata.normalize("NFD", component))):
        try:
            return spelling, os.stat(spelling, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as exc:
            if exc.errno != errno.ENAMETOOLONG:
                raise
    raise FileNotFoundError(errno.ENOENT, "not there", component)


def _open(folder: int, spelling: str, flags: int, asked: _Asked) -> int:
    try:
        return os.open(spelling, flags, dir_fd=folder)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):  # swapped since we looked
            raise _link(asked) from exc
        raise


def _link(asked: _Asked) -> Refused:
    return asked.no(
        f"{asked} leads over a link; links below the input directories are not followed. Give the path of the file itself, or "
        f"add the linked folder to {INPUT_SETTING}.",
        "path_link",
    )


def _pictures(folder: int, path: Path) -> tuple[Entry, ...]:
    found = []
    with os.scandir(folder) as files:
        for file in files:
            if file.name.startswith(".") or PurePosixPath(file.name).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in file.name):
                continue
            with contextlib.suppress(OSError):  # gone since, or not ours to see
                seen = os.stat(file.name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode) and os.access(file.name, os.R_OK, dir_fd=folder):
                    found.append((-seen.st_mtime_ns, file.name, seen))
    return tuple(Entry(path / name, seen.st_size, _moment(seen.st_mtime)) for _, name, seen in sorted(found))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(max(seconds, _SECONDS_MIN), _SECONDS_MAX), UTC)


@contextmanager
def _translated(asked: _Asked) -> Iterator[None]:
    """The system's refusals in our words."""
    try:
        yield
    except PermissionError as exc:
        raise asked.no(
            f"{asked} may not be read by you; change its permissions or those of its folder.", "not_permitted"
        ) from exc
    except OSError as exc:
        raise FileFailed(f"{asked} cannot be read: {exc.strerror or 'unknown trouble'}.", code="io_error") from exc
