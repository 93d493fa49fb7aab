"""Diagnostics: one JSON object a line, to a rotating file and to stderr. Not facts; nothing is rebuilt from them.

Rule: no key, ever, and no prompt above debug. What looks like a key is blotted out of messages, values and
tracebacks alike, and so is every secret that was named to `hide`. It is looked for before JSON escapes the text:
after a newline a key follows an `n`, and a quoted one is spelt differently.
"""

import json
import logging
import logging.handlers
import math
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

FILE_BYTES_MAX = 1024 * 1024
FILES_KEPT = 3
HIDDEN_CHARACTERS_MIN = 8  # blotting out anything shorter would eat innocent words
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOOKS_LIKE_A_KEY = re.compile(
    r"(?:\b|(?<=\\[a-z]))(?:sk|sess)-[A-Za-z0-9_*-]{6,}"  # after `\n` as `repr` spells it, too
    r"|sk-[A-Za-z0-9_*-]{16,}"  # so long a one is a key behind whatever stands before it; `disk-full` is not
    r"|(?i:bearer)(?:\s|\\[nrt])+[A-Za-z0-9._~+/=-]{6,}"
)
_hidden: tuple[str, ...] = ()
_lock = threading.Lock()


def hide(secret: str) -> None:
    """From now on this text is blotted out wherever it would be logged. Too short a text cannot be hidden."""
    global _hidden
    if len(secret) >= HIDDEN_CHARACTERS_MIN:
        with _lock:
            # As it is and as `repr` spells it; the longest first, or a key that begins like another leaves its end.
            _hidden = tuple(sorted({*_hidden, secret, repr(secret)[1:-1]}, key=len, reverse=True))


def scrubbed(text: str) -> str:
    for secret in _hidden:
        text = text.replace(secret, "[hidden]")
    return _LOOKS_LIKE_A_KEY.sub("[hidden]", text)


def configure(directory: Path, *, level: int, stderr: bool) -> None:
    """Once, before the daemon runs. Files are 0600, at most three of 1 MiB. Without a place for them there is only stderr."""
    places: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if stderr else []
    trouble: OSError | None = None
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        places.append(_PrivateFiles(directory / "daemon.log"))
    except OSError as exc:
        trouble = exc
        places = places or [logging.StreamHandler(sys.stderr)]
    logging.raiseExceptions = False  # a full disk must not end in tracebacks about tracebacks
    for place in places:
        place.setFormatter(_Lines())
    logging.basicConfig(level=level, handlers=places, force=True)
    for chatty in ("httpx", "httpcore", "mcp"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    if trouble is not None:
        logging.getLogger(__name__).warning("diagnostics go to stderr only: %s", trouble)


class _PrivateFiles(logging.handlers.RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT - 1, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        """Also after every rotation, whatever the umask."""
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": _message(record),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(line), ensure_ascii=True)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # the arguments do not fit the text: say both rather than nothing
        return f"{record.msg} {record.args!r}"


def _plain(value: object) -> object:
    """What JSON can hold, scrubbed. Values of our own types are written as they show themselves."""
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {scrubbed(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return scrubbed(str(value))
