"""The command line: one function for each command. stdout is the answer, stderr everything else.

Exit status: 0 done · 1 failed · 2 not understood · 9 no daemon runs · 75 a daemon runs already · 130 interrupted
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from daemon import bridge, cli_audit, config
from daemon.errors import AlreadyRunning, BadConfiguration, NotRunning, Refused
from daemon.setup_clients import CLIENTS
from daemon.version import VERSION
from eventlog.errors import EventLogError, IndexUnavailable, LogFull

OK, FAILED, USAGE, NO_DAEMON, INTERRUPTED = 0, 1, 2, 9, 130

BATCH_EXAMPLES = """examples:
  imaged batch pictures.json --estimate-only      what it may cost
  imaged batch pictures.json                      draw it; after Ctrl-C or a crash the same command goes on
  imaged batch pictures.json --format json > result.json
  imaged batch pictures.json --output-dir ./out --max-concurrent 5 --timeout 1200000
  imaged batch pictures.json --again              draw all of it once more

exit status: 0 every picture is there, 1 some are not, 2 the file or an option is at fault, 130 interrupted
"""

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
    except (BadConfiguration, Refused, bridge.Trouble, EventLogError, IndexUnavailable, LogFull) as exc:
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


def import_history(asked: argparse.Namespace) -> int:
    """Take over the history of openai-gpt-image-mcp-server; what is here already stays as it is."""
    path = None if asked.path is None else str(Path(asked.path).expanduser().absolute())
    return _ask("import_history", {"path": path}, as_json=asked.json, start=True)


def setup(asked: argparse.Namespace) -> int:
    """Put imaged into a client's configuration, and leave everything else there as it is."""
    from daemon import demo
    from daemon import setup as putting

    values = dict(pair.partition("=")[::2] for pair in asked.env)
    wish = putting.Wish(asked.client, remove=asked.remove, print_only=asked.print, adopt=asked.adopt, values=values)
    environ = config.process_environment()
    outcome = putting.setup(wish, executable=demo.mcp_command(), environ=environ, home=Path(bridge.user_home(environ)))
    print(outcome.text)  # noqa: T201
    return OK


def doctor(asked: argparse.Namespace) -> int:
    """Look at everything that can be wrong, and say what to do about it."""
    from daemon import demo
    from daemon import doctor as examining
    from daemon.doctor_world import ask_for_models

    findings = examining.examine(
        config.process_environment(),
        executable=demo.mcp_command(),
        now=datetime.now(UTC),
        ask_models=ask_for_models if asked.online else None,
    )
    if asked.json:
        print(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False))  # noqa: T201
    else:
        print(examining.report(findings))  # noqa: T201
    return OK if examining.is_well(findings) else FAILED


def forget(asked: argparse.Namespace) -> int:
    """Remove what one generation says and shows, for ever; what it cost stays on record."""
    return _ask("forget", {"uuid": asked.uuid, "files": asked.files}, as_json=asked.json, start=True)


def batch(asked: argparse.Namespace) -> int:
    """Draw everything that a batch file asks for; given again, the same command goes on where it stopped."""
    from daemon import batch as batches
    from daemon.batch_plan import Options

    options = Options(
        path=Path(asked.config),
        output_dir=asked.output_dir,
        max_concurrent=asked.max_concurrent,
        timeout_ms=asked.timeout,
        any_path=asked.allow_any_path,
        again=asked.again,
        run=asked.run,
    )
    as_json = asked.format == "json"
    try:
        return batches.run(options, batches.Wishes(as_json, asked.estimate_only, asked.retry_unknown))
    except BadConfiguration as exc:
        _say(str(exc))
        return USAGE
    except NotRunning as exc:  # it was started, and ended again and again
        _say(str(exc))
        return FAILED


def demo(asked: argparse.Namespace) -> int:
    """Draw three pictures offline, kill the daemon in the middle of a fourth, and show that nothing is lost."""
    from daemon import demo as show

    return show.run()


def _ask(operation: str, arguments: dict[str, object], *, as_json: bool, start: bool = False) -> int:
    """Asks the daemon. With `start` it is started if none runs, and asked with the settings of this environment."""
    from daemon import client

    settings = bridge.settings_of(config.environment()) if start else {}
    with client.connected(config.default_places(), settings, start=start) as connection:
        reply = connection.ask(operation, **arguments)
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
    importing = add("import-history", import_history, import_history.__doc__)
    importing.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="the old database; left out: HISTORY_DB_PATH, or the places where that program kept it",
    )
    importing.add_argument("--json", action="store_true", help="answer as JSON")
    setting_up = add("setup", setup, setup.__doc__)
    setting_up.add_argument("client", choices=CLIENTS)
    setting_up.add_argument("--remove", action="store_true", help="take our entry out again")
    setting_up.add_argument("--print", action="store_true", help="show the entry and its place, write nothing")
    setting_up.add_argument("--adopt", action="store_true", help="take over the settings of openai-gpt-image-mcp-server's entry")
    setting_up.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting for the entry")
    examining = add("doctor", doctor, doctor.__doc__)
    examining.add_argument("--online", action="store_true", help="also ask OpenAI whether the key works; costs nothing")
    examining.add_argument("--json", action="store_true", help="answer as JSON")
    forgetting = add("forget", forget, forget.__doc__)
    forgetting.add_argument("uuid", help="the generation, as `list_history` shows it")
    forgetting.add_argument("--files", action="store_true", help="remove the saved pictures, too")
    forgetting.add_argument("--json", action="store_true", help="answer as JSON")
    cli_audit.add(commands)
    add("demo", demo, demo.__doc__)
    _add_batch_options(add("batch", batch, batch.__doc__))
    return parser


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = BATCH_EXAMPLES
    parser.add_argument("config", metavar="CONFIG.json", help="the batch file; its sources are relative to the working directory")
    parser.add_argument("--output-dir", metavar="DIR", help="where the pictures go, whatever the file says")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of what stands on stdout (text)")
    parser.add_argument("--timeout", metavar="MS", type=_whole(1000, 86_400_000), help="milliseconds for all of it (600000)")
    parser.add_argument("--max-concurrent", metavar="N", type=_whole(1, 10), help="jobs at once, 1 to 10 (2)")
    parser.add_argument("--estimate-only", action="store_true", help="say what it may cost and draw nothing; needs no key")
    parser.add_argument("--allow-any-path", action="store_true", help="read sources and write pictures anywhere")
    parser.add_argument("--retry-unknown", action="store_true", help="ask again for what may have been charged without a picture")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--again", action="store_true", help="draw everything anew, also what is done; says the name of the run")
    which.add_argument("--run", metavar="NAME", default="", help="go on with the run that --again began")


def _whole(low: int, high: int) -> Callable[[str], int]:
    """For argparse: a whole number in these bounds, or a sentence."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low:,} to {high:,}")
        return number

    return read
