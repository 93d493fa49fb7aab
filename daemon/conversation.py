"""What the bridge knows of a client's conversation, so that it outlives a daemon: how it began, and what is under way.

Rule: standard library only, as for the bridge. A call of a tool may have ordered a picture, so it is never told to two
daemons unless the first has said that it did not listen. All else that clients ask only reads, and may be asked again.
"""

from _collections_abc import Iterable
from _json import encode_basestring_ascii as quoted
from _json import make_scanner

LINE_KEPT_BYTES_MAX = 64 * 1024  # of a request that only reads; a longer one is answered instead of asked again
UNDER_WAY_MAX = 1000  # the daemon takes 64 at once, and refuses the rest with an answer
MODERN = "io.modelcontextprotocol/protocolVersion"  # in the _meta of every request since 2026-07-28
ENDED = (
    "The imaged daemon ended while this was under way. Whatever was ordered is recorded and is not ordered again: look in "
    "list_jobs before you ask once more."
)
_ANSWER = '{"jsonrpc":"2.0","id":'  # as our daemons begin one; of a long one nothing more is looked at


class _Number(str):
    """As it was written: 7 is not "7", and no number is too long."""


class _Options:
    strict = False
    object_hook = object_pairs_hook = None
    parse_float = parse_int = parse_constant = _Number


# Without `json`, which takes longer to import than all of the bridge, the scanner has no exception of its own to raise,
# and Python complains of that (SystemError).
_NOT_JSON = (StopIteration, ValueError, RecursionError, SystemError)
_scan = make_scanner(_Options)  # type: ignore[arg-type]  # it only looks at the options


class _Asked:
    """One request under way. `line` is what may be asked again."""

    def __init__(self, shown_id: str, line: bytes, message: dict[str, object]) -> None:
        self.shown_id = shown_id
        self.is_call = message["method"] == "tools/call"
        params = message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        self.is_modern = isinstance(meta, dict) and MODERN in meta
        self.line = line if not self.is_call and len(line) <= LINE_KEPT_BYTES_MAX else b""

    def answer(self) -> bytes:
        """In the place of the daemon that ended."""
        if not self.is_call:
            return self._with(f'"error":{{"code":-32603,"message":{quoted(ENDED)}}}')
        text = f'"content":[{{"type":"text","text":{quoted(ENDED)}}}],"isError":true'
        error = f'"structuredContent":{{"error":{{"code":"daemon_ended","message":{quoted(ENDED)},"argument":""}}}}'
        complete = ',"resultType":"complete"' if self.is_modern else ""
        return self._with(f'"result":{{{text},{error}{complete}}}')

    def _with(self, member: str) -> bytes:
        return f'{{"jsonrpc":"2.0","id":{self.shown_id},{member}}}\n'.encode("ascii")


class Conversation:
    """Follows both sides, line by line."""

    def __init__(self) -> None:
        self.is_followed = True  # False: something was too long, or too much, to be followed
        self._under_way: dict[object, _Asked] = {}
        self._opening = b""
        self._opened = b""
        self._repeated: object = None
        self._answered_last: tuple[object, _Asked | None] = None, None

    def client_said(self, line: bytes) -> None:
        """One whole line, as it goes to the daemon."""
        message = _read(line)
        if message is None or not isinstance(message.get("method"), str):
            return  # an answer, or what the daemon refuses without a name
        if "id" in message:
            key = _key(message["id"])
            if key is not None:
                self._under_way[key] = _Asked(_shown(message["id"]), line, message)
                self.is_followed = self.is_followed and len(self._under_way) <= UNDER_WAY_MAX
            if message["method"] == "initialize":
                self._opening, self._opened = line, b""
        elif message["method"] == "notifications/initialized":
            self._opened = line
        elif message["method"] == "notifications/cancelled":
            params = message.get("params")
            if isinstance(params, dict):
                self._under_way.pop(_key(params.get("requestId")), None)  # it is not answered any more

    def client_said_too_much(self) -> None:
        """A line so long that it is passed on before its end is known."""
        self.is_followed = False

    def daemon_said(self, start: bytes) -> bool:
        """One whole line, or the beginning of a long one. False: it is not for the client, which has had this answer."""
        key = _answered(start)
        self._answered_last = key, self._under_way.pop(key, None)
        if key is None or key != self._repeated:
            return True
        self._repeated = None
        return False

    def daemon_did_not_end(self) -> None:
        """Of the line that began last, the end has not come: its request has no answer after all."""
        key, asked = self._answered_last
        if asked is not None:
            self._under_way[key] = asked

    def forget(self, lines: Iterable[bytes]) -> None:
        """These requests were not heard, and will be said again."""
        for line in lines:
            self._under_way.pop(_key((_read(line) or {}).get("id")), None)

    def answers(self) -> bytes:
        """For everything that a daemon which is gone now may have begun, and that may not be asked again."""
        lost = [key for key, asked in self._under_way.items() if not asked.line]
        return b"".join(self._under_way.pop(key).answer() for key in lost)

    def opening(self) -> bytes:
        """What has to be said first to another daemon, and answered before `rest`. Empty if nothing has."""
        self._repeated = None
        key = _key((_read(self._opening) or {}).get("id"))
        if self._opening and key not in self._under_way:
            self._repeated = key
        return self._opening

    @property
    def is_opening(self) -> bool:
        """Whether the answer to a repeated opening is still to come."""
        return self._repeated is not None

    def rest(self) -> bytes:
        """What is said after the opening: that it was heard, and all that is asked again."""
        again = [asked.line for asked in self._under_way.values() if asked.line != self._opening]
        return self._opened + b"".join(again)

    @property
    def has_to_ask_again(self) -> bool:
        return bool(self._under_way)


def _read(line: bytes) -> dict[str, object] | None:
    text = line.decode("utf-8", "replace").strip()
    try:
        found, end = _scan(text, 0)
    except _NOT_JSON:
        return None
    return found if isinstance(found, dict) and end == len(text) else None


def _key(given: object) -> object:
    """What tells ids apart. None is none."""
    return (type(given), given) if isinstance(given, str) else None


def _shown(given: object) -> str:
    return str(given) if isinstance(given, _Number) else quoted(str(given))


def _answered(start: bytes) -> object:
    """The key of the request that a line answers, None if it answers none."""
    text = start[: len(_ANSWER) + 8192].decode("utf-8", "replace")
    if not text.startswith(_ANSWER):
        message = _read(start)
        is_answer = message is not None and "method" not in message and ("result" in message or "error" in message)
        return _key(message.get("id")) if message is not None and is_answer else None
    try:
        found, end = _scan(text, len(_ANSWER))
    except _NOT_JSON:
        return None
    return _key(found) if text[end : end + 10] in (',"result":', ',"error":"', ',"error":{') else None
