"""`imaged events`: the log as it is written, a line for each fact."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from daemon import cli_exits as exits
from daemon.cli_options import add_command, add_json

if TYPE_CHECKING:
    from daemon.cli_options import Commands

VALUE_SHOWN_MAX = 64  # characters; digests are longer, and of no use to the eye
PROMPT_SHOWN_MAX = 200
TIME_CHARACTERS = 23  # of 2026-11-22T10:00:00.123456Z: to the millisecond


def events(asked: argparse.Namespace) -> int:
    """Tell what the log says, fact by fact; --follow goes on."""
    from daemon.cli_connection import connected, json_out
    from daemon.cli_terminal import out, say

    with connected() as connection:
        for commit in connection.events(asked.after, follow=asked.follow):
            if asked.json:
                json_out(commit)
            else:
                for line in lines(commit):
                    out(line)
            sys.stdout.flush()  # who follows through a pipe is not to wait for the next 8 KB
    if asked.follow:
        say("the daemon has ended, and nothing more is written.")
        return exits.NO_DAEMON
    return exits.OK


def lines(commit: Mapping[str, Any]) -> Iterator[str]:
    """One for each fact: time in UTC, position, fact, job, what is short enough, and the words it speaks of."""
    words = _words(commit)
    for fact in commit.get("events", ()):
        told = [f"{str(commit.get('at'))[:TIME_CHARACTERS]}Z", f"#{commit.get('position')}", str(fact.get("type"))]
        told += [str(fact["job"])] if "job" in fact else []
        told += [f"{name}={text}" for name, value in fact.items() if name not in ("type", "job") and (text := _short(value))]
        yield " ".join([*told, *words])
        words = []


def add(commands: "Commands") -> None:
    examples = ("events", "events --after 1200", "events --follow", "events --json | jq -c '.events[].type' | sort | uniq -c")
    parser = add_command(commands, "events", events, *examples)
    parser.add_argument("--after", type=int, default=0, metavar="POSITION", help="begin behind this commit (0)")
    parser.add_argument("--follow", action="store_true", help="go on with what is written from now on, until Ctrl-C")
    add_json(parser)


def _short(value: object) -> str:
    """What of a value fits into a line; empty if it says nothing there."""
    match value:
        case None | "" | [] | {}:
            return ""
        case bool():
            return str(value).lower()
        case dict():
            inner = [
                f"{name}:{text}" for name, one in value.items() if not isinstance(one, dict | list) and (text := _short(one))
            ]
            return ",".join(inner)
        case list():
            return str(len(value))
        case _:
            text = str(value)
            return text if len(text) < VALUE_SHOWN_MAX else ""


def _words(commit: Mapping[str, Any]) -> list[str]:
    if commit.get("words_forgotten"):
        return ["(forgotten)"]
    words = commit.get("words") or {}
    told = [str(words[name])[:PROMPT_SHOWN_MAX] for name in ("prompt", "message") if words.get(name)]
    return [f"“{text}”" for text in told] + [str(path) for path in words.get("paths", ())]
