"""Diagnostics: one JSON object a line, to a rotating file and to stderr. Not facts; nothing is rebuilt from them.

Rule: no key, ever, and no prompt above debug. What looks like a key is blotted out of messages, values and
tracebacks alike, and so is every secret that was named to `hide`.
"""

import json
import logging
import logging.handlers
import os
import re
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

FILE_BYTES_MAX = 1024 * 1024
FILES_KEPT = 3
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|sess)-[A-Za-z0-9_*-]{6,}|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{6,}")
_hidden: set[str] = set()
_lock = threading.Lock()


def hide(secret: str) -> None:
    """From now on this text is blotted out wherever it would be logged. Too short a text cannot be hidden."""
    if len(secret) >= 8:
        with _lock:
            _hidden.add(secret)


def scrubbed(text: str) -> str:
    for secret in tuple(_hidden):
        text = text.replace(secret, "[hidden]")
    return _LOOKS_LIKE_A_KEY.sub("[hidden]", text)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return scrubbed(json.dumps(line, default=str, ensure_ascii=True))


def configure(directory: Path, *, level: int, stderr: bool) -> None:
    """Once, before the daemon runs. Files are 0600, at most three of 1 MiB."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "daemon.log"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    places: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT - 1, encoding="utf-8")
    ]
    if stderr:
        places.append(logging.StreamHandler(sys.stderr))
    logging.raiseExceptions = False  # a full disk must not end in tracebacks about tracebacks
    for place in places:
        place.setFormatter(_Lines())
    logging.basicConfig(level=level, handlers=places, force=True)
    for chatty in ("httpx", "httpcore", "mcp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
