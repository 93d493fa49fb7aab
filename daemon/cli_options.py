"""What command lines are made of: a parser that says what is wrong and what comes nearest, and the options that recur."""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn, get_args

from daemon.cli_exits import USAGE
from eventlog.audit import harmless
from eventlog.values import Tool

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]

Command = Callable[[argparse.Namespace], int]
Completer = Callable[..., Iterable[str] | dict[str, str]]

EXAMPLE_ID = "01a9d7e2-2c1f-7b04-8a3e-1f60c9d2b7aa"
TOOLS = get_args(Tool)
NEAR_ENOUGH = 0.6  # of difflib's likeness: one or two slips in a word


class Parser(argparse.ArgumentParser):
    """`rest` is the name of a positional list that also takes what stands behind options, which argparse does not do.

    `page` is shown as the help in place of argparse's own.
    """

    page = ""
    rest: str | None = None
    commands: "Commands | None" = None
    _given: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Subcommands are parsed with this, too, so whatever is left over is named by the command that it was given to."""
        self._given = list(sys.argv[1:] if args is None else args)
        self._insist_on_command()
        found, extras = super().parse_known_args(self._given, namespace)
        strange = [word for word in extras if word.startswith("-") and word != "-"]
        if self.rest is not None and not strange:
            setattr(found, self.rest, [*getattr(found, self.rest), *extras])
            return found, []
        if extras:
            word = (strange or extras)[0]
            options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", self.format_help())
            nearest = _nearest(word.partition("=")[0], options) if strange else ""
            self.error(f"{word!r} is not understood{nearest}")
        return found, extras

    def format_help(self) -> str:
        return self.page or super().format_help()

    def error(self, message: str) -> NoReturn:
        sentence = harmless(message if message.endswith(("?", ".")) else f"{message}.")
        if "--json" in self._given:
            print(json.dumps({"error": {"code": "bad_arguments", "message": sentence, "argument": ""}}))  # noqa: T201
        self.exit(USAGE, f"imaged: {sentence} See: {self.prog} --help\n")

    def _insist_on_command(self) -> None:
        word = self._given[0] if self._given else ""
        if self.commands is None or not word or word.startswith("-") or word in self.commands.choices:
            return
        known = list(self.commands.choices)
        nearest = _nearest(word, known) or f"; there are {', '.join(known)}"
        self.error(f"there is no command {word!r}{nearest}")


def _nearest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, dict.fromkeys(known), n=1, cutoff=NEAR_ENOUGH)
    return f"; did you mean {found[0]}?" if found else ""


def add_command(commands: "Commands", line: str, function: Command, *examples: str) -> Parser:
    """A command with its summary from the function's docstring. `line` is its name and what has no option before it."""
    name, _, positionals = line.partition(" ")
    parser = _parser(commands, name, (function.__doc__ or "").splitlines()[0], examples)
    parser.usage = f"{parser.prog} [OPTION …] {positionals}".rstrip()
    parser.set_defaults(command=function)
    return parser


def add_group(commands: "Commands", name: str, summary: str, *examples: str) -> "Commands":
    """A command that has commands of its own, which it returns."""
    parser = _parser(commands, name, summary, examples)
    parser.usage = f"{parser.prog} COMMAND [OPTION …]"
    parser.commands = parser.add_subparsers(prog=parser.prog, title="commands", metavar="COMMAND", required=True)
    return parser.commands


def _parser(commands: "Commands", name: str, summary: str, examples: Sequence[str]) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="\n".join(["examples:", *(f"  imaged {example}" for example in examples)]),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, for errors too")


def add_page(parser: argparse.ArgumentParser) -> None:
    """The filter by tool and the part of a list, as all operations that list take them."""
    tools = parser.add_argument("--tool", metavar="TOOL", help=", ".join(TOOLS))
    completed_by(tools, offering(TOOLS))
    parser.add_argument("--limit", type=int, metavar="N", help="how many (20)")
    parser.add_argument("--offset", type=int, metavar="N", help="how many of the newest to skip")


def completed_by(action: argparse.Action, completer: Completer) -> None:
    """What the shell offers there; argcomplete looks for it on the action."""
    action.completer = completer  # type: ignore[attr-defined]


def offering(words: Iterable[str]) -> Completer:
    """Words that the shell offers, while the daemon's own checks say what is allowed."""
    offered = list(words)
    return lambda **asked: offered


def given(asked: argparse.Namespace, names: dict[str, str]) -> dict[str, object]:
    """The arguments of an operation from the options that were given. `names`: option's name to the operation's."""
    found = {ours: getattr(asked, name) for name, ours in names.items()}
    return {name: value for name, value in found.items() if value is not None and value is not False}


def whole(low: int, high: int) -> Callable[[str], int]:
    """For argparse: a whole number in these bounds, or a sentence."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low:,} to {high:,}")
        return number

    return read


def seconds(text: str) -> float:
    """For argparse: a number of seconds, or a sentence."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds such as 0, 30 or 2.5")
    return number
