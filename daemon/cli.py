"""The command line: one function for each command. stdout is the answer, stderr everything else.

Exit status: 0 done · 1 failed · 2 not understood · 9 no daemon runs · 75 a daemon runs already · 130 interrupted
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence

from daemon import bridge, config
from daemon.errors import AlreadyRunning, BadConfiguration, NotRunning
from daemon.version import VERSION
from eventlog.errors import EventLogError, IndexUnavailable, LogFull

OK, FAILED, USAGE, NO_DAEMON, INTERRUPTED = 0, 1, 2, 9, 130

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return USAGE
    asked = parser.parse_args(arguments)
    command: Command = asked.command
    try:
        return command(asked)
    except NotRunning as exc:
        _say(str(exc))
        return NO_DAEMON
    except AlreadyRunning as exc:
        _say(str(exc))
        return bridge.EXIT_ALREADY_RUNNING
    except (BadConfiguration, bridge.Trouble, EventLogError, IndexUnavailable, LogFull) as exc:
        _say(str(exc))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        return OK


def serve(asked: argparse.Namespace) -> int:
    """Run the daemon in the foreground."""
    import trio

    from daemon import logs

    places = config.default_places()
    settings = config.Settings.parse(
        {name: value for name, value in config.environment().items() if name == "IMAGED_IDLE_EXIT_SECONDS"},
        home_dir=config.user_home(),
    )
    logs.configure(places.logs, level=logging.INFO, stderr=not asked.idle_exit or sys.stderr.isatty())
    try:
        trio.run(_supervise, places, asked.idle_exit, settings.idle_exit_seconds, config.offline_seconds())
    except BaseExceptionGroup as group:
        # Nurseries wrap what ended the daemon; the one kind that has a sentence for people is a broken log.
        broken = _first(group, (BadConfiguration, EventLogError, IndexUnavailable, LogFull))
        if broken is None:
            raise
        raise broken from None
    return OK


async def _supervise(places: config.Places, idle_exit: bool, idle_seconds: float, offline_seconds: float) -> None:
    from daemon import supervisor

    await supervisor.serve(places, exit_when_idle=idle_exit, idle_exit_seconds=idle_seconds, offline_seconds=offline_seconds)


def _first(group: BaseExceptionGroup[BaseException], kinds: tuple[type[Exception], ...]) -> Exception | None:
    for exc in group.exceptions:
        if isinstance(exc, kinds):
            return exc
        if isinstance(exc, BaseExceptionGroup) and (found := _first(exc, kinds)) is not None:
            return found
    return None


def status(asked: argparse.Namespace) -> int:
    """Show what the daemon is doing."""
    return _ask("get_status", {}, as_json=asked.json)


def stop(asked: argparse.Namespace) -> int:
    """Stop the daemon; running jobs get a moment to end."""
    return _ask("stop_daemon", {"reason": "imaged stop"}, as_json=asked.json)


def demo(asked: argparse.Namespace) -> int:
    """Draw three pictures offline, kill the daemon in the middle of a fourth, and show that nothing is lost."""
    from daemon import demo as show

    return show.run()


def _ask(operation: str, arguments: dict[str, object], *, as_json: bool) -> int:
    from daemon import client

    reply = client.ask(config.default_places(), operation, arguments)
    refused = reply.get("refused")
    if isinstance(refused, dict):
        _say(str(refused.get("message")))
        return FAILED
    print(json.dumps(reply["result"], ensure_ascii=False) if as_json else reply["text"])  # noqa: T201
    return OK


def _say(sentence: str) -> None:
    print(f"imaged: {sentence}", file=sys.stderr)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imaged",
        description="Draws pictures through OpenAI's image API for every MCP client on this machine, and never loses one.",
        epilog="Without arguments, and with stdin not a terminal, imaged speaks MCP on stdio: that is what clients start.",
    )
    parser.add_argument("--version", action="version", version=f"imaged {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True)

    def add(name: str, function: Command, summary: str | None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=function)
        return command

    commands.add_parser("mcp", help="Speak MCP on stdio; what clients start.")
    serving = add("serve", serve, serve.__doc__)
    serving.add_argument("--idle-exit", action="store_true", help="end after a quarter of an hour without clients and jobs")
    for name, function in (("status", status), ("stop", stop)):
        add(name, function, function.__doc__).add_argument("--json", action="store_true", help="answer as JSON")
    add("demo", demo, demo.__doc__)
    return parser
