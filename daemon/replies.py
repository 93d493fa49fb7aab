"""What the control API answers with: replies, and problems as RFC 9457 wants them.

Rule: whatever is refused here is a `Problem` with a stable code, a status from the one table below and a sentence;
the codes are those that MCP clients see.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from eventlog.values import Billed

JSON = "application/json"
PROBLEM = "application/problem+json"
REFUSED_STATUS = 422  # of a code without a row here: the request was understood, and a rule says no

_STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "bad_json": 400,
    "bad_settings": 400,
    "no_key": 401,
    "foreign_page": 403,
    "no_such_path": 404,
    "no_such_job": 404,
    "no_such_resource": 404,
    "unknown_operation": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "already_over": 409,
    "cursor_ahead": 409,
    "cursor_archived": 410,
    "key_reused": 409,
    "too_large": 413,
    "not_json": 415,
    "bad_range": 416,
    "foreign_host": 421,
    "head_too_large": 431,
    "internal_error": 500,
    "io_error": 500,
    "log_unreadable": 500,
    "not_implemented": 501,
    "draining": 503,
    "index_unavailable": 503,
    "no_space": 503,
    "starting": 503,
    "too_many_connections": 503,
    "too_many_jobs": 503,
}
# Refusals come before anything is recorded, except these two, which may also follow the order.
_MAY_BE_BILLED = frozenset({"index_unavailable", "internal_error"})

Send = Callable[[bytes], Awaitable[None]]


class Reply(NamedTuple):
    """Either `body`, or `stream`, which sends it in pieces; `length_bytes` is the stream's, None: not known before."""

    status: int
    media_type: str = JSON
    body: bytes = b""
    headers: Mapping[str, str] = {}
    stream: Callable[[Send], Awaitable[None]] | None = None
    length_bytes: int | None = None


class Problem(Exception):
    """What is refused, or has failed. `headers` go with its reply."""

    def __init__(self, code: str, sentence: str, *, argument: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.argument = argument
        self.headers = headers or {}
        self._billed: Billed | None = None

    def of_a_drawing(self) -> "Problem":
        """Of what would have cost money it is also said whether it may be billed."""
        self._billed = "unknown" if self.code in _MAY_BE_BILLED else "no"
        return self

    @property
    def status(self) -> int:
        return _STATUS.get(self.code, REFUSED_STATUS)

    def reply(self) -> Reply:
        told: dict[str, object] = {
            "type": f"urn:imaged:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": str(self),
            "code": self.code,
            "argument": self.argument,
        }
        if self._billed is not None:
            told["billed"] = self._billed
        headers = dict(self.headers)
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "X-Imaged-Settings"
        return Reply(self.status, PROBLEM, encoded(told), headers)


def encoded(value: object) -> bytes:
    """JSON in UTF-8 with a newline behind it. A file name that is no text shows question marks where it is not."""
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
