"""Where a picture may be put: the path argument as text, taken apart once, before anything touches a disk.

Rule: fail closed, and the same on every system. After this module there are only components below an open
directory, never a string that somebody joins.
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from tools.errors import Refused

COMPONENT_BYTES_MAX = 200  # of 255: room for numbers and a temporary name
PATH_CHARACTERS_MAX = 1000
DEPTH_MAX = 16
SUFFIXES = {"png": (".png",), "jpeg": (".jpg", ".jpeg"), "webp": (".webp",), "gif": (".gif",), "svg": (".svg",)}
IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
CLAUDE_PATHS = ("/mnt/user-data/", "/mnt/transcripts/")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?")
_REFUSED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
# Not by category: what is unassigned differs from one Python to the next, and new emoji are in every user's hands.
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF)) + "]"
)
# Joiners, fillers and variation selectors: letters and marks by category, nothing to the eye.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


class OutputName(NamedTuple):
    """A file below a root, or below `/` if `absolute`. `suffix` begins with a dot."""

    folders: tuple[str, ...]
    stem: str
    suffix: str
    absolute: bool = False

    def numbered(self, number: int) -> "OutputName":
        return self._replace(stem=f"{self.stem}_{number}")

    def candidate(self, attempt: int) -> str:
        """The name itself, then name_1, name_2, …"""
        return f"{self.stem}_{attempt}{self.suffix}" if attempt else f"{self.stem}{self.suffix}"


def parse_output(argument: str, root: Path, *, any_path: bool, output_format: str) -> OutputName:
    """What `output_path` means below `root`. Purely lexical, except that `root` may be named by its real path, too.

    Raises:
        Refused: with a stable code and a sentence; nothing was looked at on the disk.
    """
    text = unicodedata.normalize("NFC", argument)
    _refuse_strange_text(text, argument)
    if text.startswith(CLAUDE_PATHS):
        raise _no(
            f"{argument} exists only inside Claude's own sandbox, not on this machine; give a file name without a "
            "folder, it is saved in the output directory.",
            "path_virtual",
        )
    if text == "~" or text.startswith("~/"):
        text = _home() + text[1:]
    absolute = text.startswith("/")
    components = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in components:
        raise _no(f"output_path {argument!r} contains “..”; write the path without it.", "path_dotdot")
    if not components or text.endswith(("/", "/.")) or text == ".":
        raise _no(f"output_path {argument!r} names a folder; add a file name.", "path_is_folder")
    outside = False
    if absolute:
        below = _below(components, root)
        outside = below is None
        if below is None and not any_path:
            raise _no(
                f"output_path {argument!r} is outside the output directory {root}; give a path inside it, or set "
                "OPENAI_IMAGE_ALLOW_ANY_PATH=true for this client.",
                "path_outside",
            )
        components = below if below is not None else components
        if not components:
            raise _no(f"output_path {argument!r} names the output directory itself; add a file name.", "path_is_folder")
    return _checked(components, argument, outside, output_format)


def _checked(components: list[str], argument: str, outside: bool, output_format: str) -> OutputName:
    if len(components) > DEPTH_MAX:
        raise _no(f"output_path goes {len(components)} folders deep; at most {DEPTH_MAX} are allowed.", "path_too_deep")
    *folders, name = components
    for component in components if not outside else [name]:
        _refuse_strange_component(component, argument)
    stem, suffix = _with_suffix(name, output_format)
    for component in (*folders, stem + suffix):
        if len(component.encode()) > COMPONENT_BYTES_MAX:
            raise _no(
                f"a part of output_path has {len(component.encode())} bytes; at most {COMPONENT_BYTES_MAX} are allowed.",
                "path_too_long",
            )
    return OutputName(tuple(folders), stem, suffix, absolute=outside)


def _with_suffix(name: str, output_format: str) -> tuple[str, str]:
    """The extension always tells the truth: a wrong one is replaced, a missing one added."""
    right = SUFFIXES[output_format]
    stem, dot, ending = name.rpartition(".")
    suffix = dot + ending
    if stem and suffix.lower() in right:
        return stem, suffix
    if stem and suffix.lower() in IMAGE_SUFFIXES:
        return stem, right[0]
    return name, right[0]


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError as exc:
        raise _no("“~” in output_path means nothing here: your home directory is not known.", "path_user") from exc


def _below(components: list[str], root: Path) -> list[str] | None:
    """The rest of the path below the root as configured or as it really is; None if it is elsewhere."""
    for base in (os.path.normpath(root), os.path.realpath(root)):
        parts = [unicodedata.normalize("NFC", part) for part in base.split("/") if part]
        if components[: len(parts)] == parts:
            return components[len(parts) :]
    return None


def _refuse_strange_text(text: str, argument: str) -> None:
    if len(text) > PATH_CHARACTERS_MAX:
        raise _no(f"output_path has {len(text)} characters; at most {PATH_CHARACTERS_MAX} are allowed.", "path_too_long")
    for character in text:
        refused = unicodedata.category(character) in _REFUSED_CATEGORIES
        if refused or _NONCHARACTER.match(character) or UNSEEN.match(character):
            raise _no(
                f"output_path contains the invisible or control character U+{ord(character):04X}; leave it out.",
                "path_control",
            )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise _no(f"output_path {argument!r} is a URL; give a file name.", "path_url")
    if "\\" in text:
        raise _no(f"output_path {argument!r} contains a backslash; separate folders with /.", "path_backslash")
    if text.startswith("~") and text != "~" and not text.startswith("~/"):
        raise _no(f"output_path {argument!r} names another user's home; give a path of your own.", "path_user")


def _refuse_strange_component(component: str, argument: str) -> None:
    if component[0] in ".-~" or component[0].isspace():
        raise _no(f"a part of output_path {argument!r} begins with {component[0]!r}; choose another name.", "path_leading")
    if component[-1] == "." or component[-1].isspace():
        raise _no(f"a part of output_path {argument!r} ends with {component[-1]!r}; choose another name.", "path_trailing")
    if found := set(component) & set('<>:"|?*'):
        raise _no(f"output_path {argument!r} contains {min(found)!r}, which not every system allows.", "path_character")
    if _RESERVED.fullmatch(component):
        raise _no(f"{component!r} is a reserved name on some systems; choose another one.", "path_reserved")


def _no(sentence: str, code: str) -> Refused:
    return Refused(sentence, code=code, argument="output_path")
