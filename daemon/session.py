"""One connected client: its settings, its name, and a way to tell it how things go. Nothing of it is durable."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from daemon.config import Settings
from eventlog.values import Client, Door

CLIENT_NAME_CHARACTERS_MAX = 64

Progress = Callable[[float, str], Awaitable[None]]
"""Tells the client: seconds so far, and a sentence. Does nothing if the client did not ask for it."""


@dataclass(frozen=True)
class Session:
    """What came in the first line of a connection."""

    door: Door
    settings: Settings


@dataclass(frozen=True)
class Caller:
    """Who asks this one operation."""

    session: Session
    client: Client
    progress: Progress


def client_named(name: str, version: str) -> Client:
    """As the program introduced itself, bounded and printable."""
    return Client(name=_plain(name) or "unknown", version=_plain(version))


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:CLIENT_NAME_CHARACTERS_MAX])
