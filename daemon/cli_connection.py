"""How commands ask the daemon, and what they make of its refusals.

Rule: a daemon is started for whoever wants something done, never for who only looks whether one runs. What may be asked
twice without harm is asked again when the daemon goes away in the middle, a few times. A place that somebody names on the
command line is permitted by being named there: the directories of the settings bound programs, not people.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from daemon import bridge, client, config
from daemon.cli_terminal import out, say
from daemon.client import Connection
from daemon.errors import NotRunning, Refused

TRIES_MAX = 4  # a daemon that ends more often has something to say in its log

T = TypeVar("T")


class Declined(Refused):
    """The daemon's own no. `option` is what stands for the argument at fault on the command line; `billed` may be empty."""

    def __init__(self, refused: Mapping[str, Any], options: Mapping[str, str]) -> None:
        argument = str(refused.get("argument", ""))
        super().__init__(str(refused.get("message")), code=str(refused.get("code")), argument=argument)
        self.option = options.get(argument.partition("[")[0], "")
        self.billed = str(refused.get("billed", ""))


class Named(NamedTuple):
    """Files that the command line names, absolute: where a picture is to be written, and those that are to be read."""

    output: str | None = None
    sources: Sequence[str] = ()


@contextmanager
def connected(*, start: bool = True, named: Named | None = None) -> Iterator[Connection]:
    """With the settings of this environment, and leave for the files that were `named`.

    Raises:
        BadConfiguration, NotRunning, bridge.Trouble: as `client.connected` does.
    """
    with client.connected(config.default_places(), _settings(named or Named()), start=start, say=say) as connection:
        yield connection


def ask(connection: Connection, operation: str, **arguments: object) -> dict[str, Any]:
    """The answer.

    Raises:
        Declined: the daemon said no.
        NotRunning, bridge.Trouble
    """
    return _accepted(connection.ask(operation, **arguments), {})


def ask_again(
    connection: Connection, operation: str, options: Mapping[str, str] | None = None, **arguments: object
) -> dict[str, Any]:
    """As `ask`, also of the daemon that comes after one that went away: for questions that do nothing twice.

    `options` are the names that the operation's arguments have on the command line.
    """
    for _ in range(TRIES_MAX - 1):
        try:
            return _accepted(connection.ask(operation, **arguments), options or {})
        except client.Stopped:
            raise
        except NotRunning:
            say("the daemon went away; another one is asked.")
    return _accepted(connection.ask(operation, **arguments), options or {})


def read(answer: Mapping[str, Any], kind: type[T]) -> T:
    """
    Raises:
        bridge.Trouble: the daemon is of another version.
    """
    try:
        return msgspec.convert(answer["result"], kind)
    except (msgspec.ValidationError, KeyError) as exc:
        raise bridge.Trouble(f"the daemon answered in a way that this version does not understand ({exc}); restart it.") from exc


def tell(operation: str, *, as_json: bool, start: bool = True, **arguments: object) -> None:
    """Asks one thing, and prints the answer as it comes: as JSON, or as text."""
    with connected(start=start) as connection:
        answer = ask(connection, operation, **arguments)
    if as_json:
        json_out(answer["result"])
    else:
        out(str(answer["text"]))


def json_out(document: object) -> None:
    """One document, readable and on one line, without what would act on a terminal."""
    text = msgspec.json.encode(document).decode()
    print("".join(c if c.isprintable() or c == "\u3000" else _escaped(c) for c in text), flush=True)  # noqa: T201


def _escaped(character: str) -> str:
    """As JSON writes it: whatever is not printable here stands inside of a string."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2))


def _accepted(reply: dict[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    refused = reply.get("refused")
    if isinstance(refused, dict):
        raise Declined(refused, options)
    return reply


def _settings(named: Named) -> dict[str, str]:
    given = bridge.settings_of(config.environment())
    if named.output is None and not named.sources:
        return given
    own = config.Settings.parse(given, home_dir=config.user_home())
    roots = [*(str(root) for root in own.input_roots), *(str(Path(source).parent) for source in named.sources)]
    # A folder with the separator in its name cannot stand in the list; its pictures are refused with a sentence.
    given["OPENAI_IMAGE_INPUT_DIR"] = os.pathsep.join(root for root in dict.fromkeys(roots) if os.pathsep not in root)
    if named.output is not None:
        given["OPENAI_IMAGE_OUTPUT_DIR"] = str(Path(named.output).parent)
    return given
