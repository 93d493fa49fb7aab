"""The command line: one function for each command. stdout is the answer, stderr everything else.

Commands stand in the modules of their group, each with its options and examples; here they come together, and here every
way to end gets its sentence and its exit status (`daemon/cli_exits.py`).

Rule: `imaged --help` and a slip of the fingers are answered at once. What is large - trio, rich, Pillow - is imported by
the command that needs it.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import cast

from daemon import (
    bridge,
    cli_audit,
    cli_completion,
    cli_daemon,
    cli_draw,
    cli_events,
    cli_history,
    cli_jobs,
    cli_money,
)
from daemon import cli_exits as exits
from daemon.cli_options import Command, Parser
from daemon.cli_terminal import say
from daemon.errors import AlreadyRunning, BadConfiguration, NotRunning, Refused
from daemon.version import VERSION
from eventlog.errors import EventLogError, IndexUnavailable, LogFull
from tools.errors import FileFailed

GROUPS: Mapping[str, Sequence[str]] = {
    "Draw": ("generate", "edit", "transform", "batch"),
    "Look": ("history", "show", "open", "events"),
    "Jobs and money": ("jobs", "approve", "spending", "models"),
    "Prove and forget": ("audit", "forget", "gc", "import-history"),
    "Daemon and set-up": ("status", "stop", "serve", "mcp", "setup", "doctor", "completion", "demo"),
}
_NAME_COLUMNS = 16
_AFTERWORD = """imaged COMMAND --help has options and examples. Without arguments, and with
stdin not a terminal, imaged speaks MCP on stdio: that is what clients start.
"""


def main(arguments: Sequence[str]) -> int:
    """The exit status.

    Raises:
        SystemExit: the command line is not understood, or asks for help.
    """
    _open_what_is_closed()
    parser = _parser()
    if cli_completion.ASKED_BY_SHELL in os.environ:
        cli_completion.complete(parser)
    _print_whatever_comes()
    if not arguments:
        parser.print_help(sys.stderr)
        return exits.USAGE
    try:
        asked = parser.parse_args([*arguments[1:], "--help"] if arguments[0] == "help" else arguments)
    finally:
        _write_or_give_up()  # the help, or the document of a slip
    command: Command = asked.command
    try:
        status = command(asked)
        sys.stdout.flush()  # here a full disk or a reader who has left can still be spoken of
        return status
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None  # what is still in it must not be tried again as the program ends
        return exits.OK
    except (Refused, BadConfiguration, NotRunning, AlreadyRunning, bridge.Trouble) as exc:
        return _end(exc, asked)
    except (EventLogError, IndexUnavailable, LogFull, FileFailed, OSError) as exc:
        return _end(exc, asked)


def _end(exc: Exception, asked: argparse.Namespace) -> int:
    """Says why a command came to nothing: on stderr as a sentence, on stdout as the document that was asked for."""
    code, status, sentence = _meaning(exc)
    option = getattr(exc, "option", "")
    say(f"{option}: {sentence}" if option else sentence)
    if getattr(asked, "json", False):
        error = {"code": code, "message": sentence, "argument": getattr(exc, "argument", "")}
        billed, jobs = getattr(exc, "billed", ""), getattr(exc, "job_ids", [])
        more = {"billed": billed, "job_id": jobs[0] if len(jobs) == 1 else "", "job_ids": jobs if len(jobs) > 1 else []}
        print(json.dumps({"error": {**error, **{name: value for name, value in more.items() if value}}}))  # noqa: T201
    _write_or_give_up()
    return status


def _meaning(exc: Exception) -> tuple[str, int, str]:
    """Code, exit status and sentence."""
    match exc:
        case Refused():
            return exc.code, exits.of_refusal(exc.code), str(exc)
        case NotRunning():
            return "no_daemon", exits.NO_DAEMON, str(exc)
        case AlreadyRunning():
            return "already_running", exits.DAEMON_RUNS, str(exc)
        case BadConfiguration():
            return "bad_settings", exits.USAGE, str(exc)
        case OSError():
            where = f"{exc.filename}: " if exc.filename else ""
            return "io_error", exits.FAILED, f"{where}{exc.strerror or exc}."
        case _:
            return "failed", exits.FAILED, str(exc)


def _write_or_give_up() -> None:
    """For whoever has said on stderr what there was to say: a stdout that takes nothing is no second failure."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None


def _open_what_is_closed() -> None:
    """Whoever starts us with a closed stdin, stdout or stderr gives nothing there, and wants nothing: that is /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  # until the end


def _print_whatever_comes() -> None:
    """In a terminal of another alphabet a letter that it has not is shown as its number, rather than nothing at all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _page(description: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """All commands in their groups, which argparse cannot do, and what the exit status means."""
    lines = [f"{description}\n", "usage: imaged COMMAND [OPTION …]\n"]
    for title, names in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:{_NAME_COLUMNS}}{parsers[name].description}" for name in names), ""]
    lines += ["Options:", f"  {'-h, --help':{_NAME_COLUMNS}}Show this, or behind a command what it takes."]
    lines += [f"  {'--version':{_NAME_COLUMNS}}Show the version.", "", "Exit status:"]
    lines += [f"  {status:<{_NAME_COLUMNS}}{meaning}" for status, meaning in exits.MEANINGS.items()]
    return "\n".join([*lines, "", _AFTERWORD])


def _parser() -> Parser:
    description = "Draws pictures through OpenAI's image API, and never loses one you paid for."
    parser = Parser(prog="imaged", usage="imaged COMMAND [OPTION …]", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"imaged {VERSION}")
    parser.commands = commands = parser.add_subparsers(prog="imaged", metavar="COMMAND", required=True)
    cli_draw.add(commands)
    cli_daemon.add_drawing(commands)
    cli_history.add(commands)
    cli_events.add(commands)
    cli_jobs.add(commands)
    cli_jobs.add_approve(commands)
    cli_money.add(commands)
    cli_audit.add(cast("argparse._SubParsersAction[argparse.ArgumentParser]", commands))
    cli_audit.add_gc(commands)
    cli_daemon.add_forgetting(commands)
    cli_daemon.add_history(commands)
    cli_daemon.add(commands)
    speaking = "Speak MCP on stdio; what clients start."
    commands.add_parser("mcp", help=speaking, description=speaking)  # daemon/__main__.py has seen to it before
    cli_completion.add(commands)
    parser.page = _page(description, commands.choices)
    return parser
