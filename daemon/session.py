"""One connected client: its settings, its name, and a way to tell it how things go. Nothing of it is durable."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from daemon.config import Settings
from eventlog.values import Client, Door

CLIENT_NAME_CHARACTERS_MAX = 64

Progress = Callable[[float, str], Awaitable[None]]
"""Tells the client: seconds so far, and a sentence. Does nothing if the client did not ask for it."""


class PersonAsked(Exception):
    """The question goes to the client as the answer of this call, which it then repeats with what the person said."""

    def __init__(self, question: str, code: str) -> None:
        super().__init__(question)
        self.question, self.code = question, code


AskPerson = Callable[[str, str], Awaitable[bool | None]]
"""Puts a question to the person in front of the client, with the code that stands for it: yes, no, or None for no answer."""


@dataclass(frozen=True)
class Session:
    """What came in the first line of a connection."""

    door: Door
    settings: Settings


@dataclass(frozen=True)
class Caller:
    """Who asks this one operation. `ask_person` is None where the client cannot."""

    session: Session
    client: Client
    progress: Progress
    ask_person: AskPerson | None = None


def client_named(name: str, version: str) -> Client:
    """As the program introduced itself, bounded and printable."""
    return Client(name=_plain(name) or "unknown", version=_plain(version))


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:CLIENT_NAME_CHARACTERS_MAX])
