"""Commands for the daemon itself and for what surrounds it: starting, stopping, setting up, importing, forgetting."""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import bridge, config
from daemon import cli_exits as exits
from daemon.cli_completion import job_ids
from daemon.cli_options import EXAMPLE_ID, add_command, add_json, completed_by, whole
from daemon.errors import BadConfiguration, NotRunning
from daemon.setup_clients import CLIENTS
from eventlog.errors import EventLogError, IndexUnavailable, LogFull
from tools.errors import FileFailed

if TYPE_CHECKING:
    from daemon.cli_options import Commands
    from daemon.setup import Outcome

BATCH_EXAMPLES = (
    "batch pictures.json --estimate-only      what it may cost",
    "batch pictures.json                      draw it; after Ctrl-C or a crash the same command goes on",
    "batch pictures.json --json > result.json",
    "batch pictures.json --output-dir ./out --max-concurrent 5 --timeout 1200000",
    "batch pictures.json --again              draw all of it once more",
)
BATCH_STATUS = "exit status: 0 every picture is there, 1 some are not, 2 the file or an option is at fault, 130 interrupted"


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
        # Nurseries wrap what ended the daemon; what has a sentence for people is a broken log, index or store.
        broken = _first(group, (BadConfiguration, EventLogError, IndexUnavailable, LogFull, FileFailed))
        if broken is None:
            raise
        raise broken from None
    return exits.OK


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
    return _tell("get_status", asked, start=False)


def stop(asked: argparse.Namespace) -> int:
    """Stop the daemon; running jobs get a moment to end."""
    return _tell("stop_daemon", asked, start=False, reason="imaged stop")


def import_history(asked: argparse.Namespace) -> int:
    """Take over the history of openai-gpt-image-mcp-server."""
    path = None if asked.path is None else str(Path(asked.path).expanduser().absolute())
    return _tell("import_history", asked, path=path)


def forget(asked: argparse.Namespace) -> int:
    """Remove what one generation says and shows, for ever."""
    return _tell("forget", asked, uuid=asked.uuid, files=asked.files)


def setup(asked: argparse.Namespace) -> int:
    """Put imaged into a client's configuration, or your login."""
    outcome = _serve_from_login(asked) if asked.service else _put_into_client(asked)
    if asked.json:
        backup = None if outcome.backup is None else str(outcome.backup)
        _json({**outcome._asdict(), "path": str(outcome.path), "backup": backup})
    else:
        print(outcome.text)  # noqa: T201
    return exits.OK


def _put_into_client(asked: argparse.Namespace) -> "Outcome":
    from daemon import setup as putting

    if asked.client is None:
        raise BadConfiguration(f"Say which client to set up: {', '.join(CLIENTS)}; or --service, to start imaged at login.")
    for pair in asked.env:
        if "=" not in pair:  # without its value it is not repeated: it may be the key itself
            raise BadConfiguration("--env has no =; give NAME=VALUE, or NAME= to make the setting empty. Nothing was changed.")
    values = dict(pair.partition("=")[::2] for pair in asked.env)
    wish = putting.Wish(asked.client, remove=asked.remove, print_only=asked.print, adopt=asked.adopt, values=values)
    environ = config.process_environment()
    return putting.setup(wish, executable=_lasting_command(asked), environ=environ, home=Path(bridge.user_home(environ)))


def _serve_from_login(asked: argparse.Namespace) -> "Outcome":
    from daemon import autostart

    if asked.client is not None or asked.adopt or asked.env:
        raise BadConfiguration(
            "--service is about this user's login and no client's; give it alone, or with --print or --remove."
        )
    wish = autostart.Wish(remove=asked.remove, print_only=asked.print)
    command = _lasting_command(asked)[:-1]  # without the word that makes it speak MCP
    return autostart.setup(wish, executable=command, environ=config.environment(), home=config.user_home())


def _lasting_command(asked: argparse.Namespace) -> list[str]:
    """What starts this program for as long as somebody's configuration names it.

    Raises:
        BadConfiguration: it could not be put where it would last.
    """
    from daemon import executable

    home = config.default_places().home
    if not (asked.print or asked.remove):
        try:
            executable.keep(home)
        except OSError as exc:
            raise BadConfiguration(f"This program could not be unpacked into {home / 'programs'}: {exc.strerror}.") from exc
    return executable.lasting(executable.mcp_command(), home)


def doctor(asked: argparse.Namespace) -> int:
    """Look at everything that can be wrong, and say what helps."""
    from daemon import doctor as examining
    from daemon import executable
    from daemon.doctor_world import ask_for_models

    findings = examining.examine(
        config.process_environment(),
        executable=executable.lasting(executable.mcp_command(), config.default_places().home),
        now=datetime.now(UTC),
        ask_models=ask_for_models if asked.online else None,
    )
    if asked.json:
        _json([finding._asdict() for finding in findings])
    else:
        print(examining.report(findings))  # noqa: T201
    return exits.OK if examining.is_well(findings) else exits.FAILED


def batch(asked: argparse.Namespace) -> int:
    """Draw all that a batch file asks for; run again, it goes on."""
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
    except NotRunning as exc:  # it was started, and ended again and again
        from daemon.cli_terminal import say

        say(str(exc))
        return exits.FAILED


def demo(asked: argparse.Namespace) -> int:
    """Draw offline, kill the daemon in the middle, and lose nothing."""
    from daemon import demo as show

    return show.run()


def add_drawing(commands: "Commands") -> None:
    parser = add_command(commands, "batch CONFIG.json", batch, *BATCH_EXAMPLES)
    parser.epilog = f"{parser.epilog}\n\n{BATCH_STATUS}"
    parser.add_argument("config", metavar="CONFIG.json", help="the batch file; its sources are relative to the working directory")
    parser.add_argument("--output-dir", metavar="DIR", help="where the pictures go, whatever the file says")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--format", choices=("text", "json"), default="text", help="of what stands on stdout (text)")
    told.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument("--timeout", metavar="MS", type=whole(1000, 86_400_000), help="milliseconds for all of it (600000)")
    parser.add_argument("--max-concurrent", metavar="N", type=whole(1, 10), help="jobs at once, 1 to 10 (2)")
    parser.add_argument("--estimate-only", action="store_true", help="say what it may cost and draw nothing; needs no key")
    parser.add_argument("--allow-any-path", action="store_true", help="read sources and write pictures anywhere")
    parser.add_argument("--retry-unknown", action="store_true", help="ask again for what may have been charged without a picture")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--again", action="store_true", help="draw everything anew, also what is done; says the name of the run")
    which.add_argument("--run", metavar="NAME", default="", help="go on with the run that --again began")


def add_history(commands: "Commands") -> None:
    importing = add_command(
        commands, "import-history [PATH]", import_history, "import-history", "import-history ~/old/history.db --json"
    )
    where = "the old database; left out: HISTORY_DB_PATH, or the places where that program kept it"
    importing.add_argument("path", nargs="?", metavar="PATH", help=where)
    add_json(importing)


def add_forgetting(commands: "Commands") -> None:
    parser = add_command(commands, "forget UUID", forget, f"forget {EXAMPLE_ID}", f"forget {EXAMPLE_ID} --files")
    completed_by(parser.add_argument("uuid", metavar="UUID", help="the generation, as `imaged history` shows it"), job_ids)
    parser.add_argument("--files", action="store_true", help="remove the saved pictures, too")
    add_json(parser)


def add(commands: "Commands") -> None:
    add_json(add_command(commands, "status", status, "status", "status --json | jq -r .head_hash"))
    add_json(add_command(commands, "stop", stop, "stop"))
    serving = add_command(commands, "serve", serve, "serve", "serve --idle-exit")
    serving.add_argument("--idle-exit", action="store_true", help="end after a quarter of an hour without clients and jobs")
    examining = add_command(commands, "doctor", doctor, "doctor", "doctor --online")
    examining.add_argument("--online", action="store_true", help="also ask OpenAI whether the key works; costs nothing")
    add_json(examining)
    _add_setup(commands)
    add_command(commands, "demo", demo, "demo")


def _add_setup(commands: "Commands") -> None:
    examples = ("setup claude-code", "setup cursor --print", "setup codex --remove", "setup --service")
    parser = add_command(commands, "setup CLIENT", setup, *examples)
    parser.add_argument("client", metavar="CLIENT", nargs="?", choices=CLIENTS, help=", ".join(CLIENTS))
    parser.add_argument("--service", action="store_true", help="let the system start the daemon at every login, instead")
    parser.add_argument("--remove", action="store_true", help="take our entry out again")
    parser.add_argument("--print", action="store_true", help="show the entry and its place, write nothing")
    parser.add_argument("--adopt", action="store_true", help="take over the settings of openai-gpt-image-mcp-server's entry")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting for the entry")
    add_json(parser)


def _tell(operation: str, asked: argparse.Namespace, *, start: bool = True, **given: object) -> int:
    from daemon.cli_connection import tell

    tell(operation, as_json=asked.json, start=start, **given)
    return exits.OK


def _json(document: Mapping[str, object] | list[dict[str, object]]) -> None:
    print(json.dumps(document, ensure_ascii=False))  # noqa: T201
