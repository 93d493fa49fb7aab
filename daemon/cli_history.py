"""`imaged history`, `show` and `open`: what was drawn, now or as it was known at any moment before."""

import argparse
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import cli_exits as exits
from daemon import cli_times as times
from daemon import config
from daemon.cli_completion import job_ids
from daemon.cli_options import EXAMPLE_ID, add_command, add_json, add_page, completed_by, given
from daemon.errors import Refused

if TYPE_CHECKING:
    from daemon.cli_options import Commands
    from daemon.results import HistoryPage, JobReport

OPENER_SECONDS_MAX = 5.0  # those that are viewers themselves go on for as long as they are looked at


def history(asked: argparse.Namespace) -> int:
    """List finished pictures, newest first."""
    from daemon import cli_pages
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.cli_terminal import say
    from daemon.results import HistoryPage

    names = {"tool": "tool_name", "query": "query", "limit": "limit", "offset": "offset"}
    wanted = given(asked, names)
    for name in ("since", "until"):
        if (text := getattr(asked, name)) is not None:
            wanted[name] = times.utc(times.moment(f"--{name}", text))
    if asked.as_of is not None:
        page = _as_of(asked.as_of, wanted)
    else:
        with connected() as connection:
            page = read(ask(connection, "list_history", **wanted), HistoryPage)
    if asked.json:
        json_out(page)
        return exits.OK
    cli_pages.tell(
        "generations", page.generations, cli_pages.Found(page.total, page.offset, page.at_least), limited=asked.limit is not None
    )
    if page.note:
        say(page.note)
    return exits.OK


def show(asked: argparse.Namespace) -> int:
    """Show everything known of one generation, and its pictures."""
    from daemon import cli_pictures
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.cli_terminal import out
    from daemon.results import JobReport

    uuid, number = _named(asked.uuid)
    with connected() as connection:
        answer = ask(connection, "get_history_by_uuid", uuid=uuid)
        job = read(answer, JobReport)
        if number is not None:
            _insist_on_picture(job, number)
        if asked.json:
            json_out(job)
            return exits.OK
        out(str(answer["text"]))
        numbers = range(1, len(job.images) + 1) if number is None else range(number, number + 1)
        cli_pictures.show(connection, uuid, numbers, wanted=asked.inline)
    return exits.OK


def open_picture(asked: argparse.Namespace) -> int:
    """Open a picture in the desktop's own viewer."""
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.cli_terminal import path_out
    from daemon.results import JobReport

    uuid, number = _named(asked.uuid)
    with connected() as connection:
        job = read(ask(connection, "get_history_by_uuid", uuid=uuid), JobReport)
    path = _insist_on_picture(job, number or 1)
    if path is None:
        raise Refused(f"The file name of {asked.uuid} has been forgotten.", code="forgotten", argument="uuid")
    if not Path(path).exists():
        sentence = f"{path} is not there any more; the picture itself is still in the history: imaged show {uuid}"
        raise Refused(sentence, code="not_there", argument="uuid")
    _open(path, _opener(path, sys.platform, config.process_environment()))
    if asked.json:
        json_out({"opened": path})
    else:
        path_out(path)
    return exits.OK


def add(commands: "Commands") -> None:
    listing = add_command(
        commands,
        "history",
        history,
        "history",
        'history --since "last week" --query fox',
        'history --since 2026-11-01 --until 2026-11-08 --json | jq -r ".generations[].path"',
        'history --as-of "yesterday 18:00"',
        "history --as-of 1200",
    )
    add_page(listing)
    listing.add_argument("-q", "--query", metavar="TEXT", help="only prompts that contain this; case and width do not matter")
    for name, meaning in (("since", "asked for at or after this"), ("until", "asked for before this")):
        listing.add_argument(f"--{name}", metavar="WHEN", help=f"only what was {meaning}, such as yesterday or 2026-11-22T09:30")
    when = "as it was after this commit or at this time, read from the log itself"
    listing.add_argument("--as-of", metavar="POSITION|WHEN", help=when)
    showing = add_command(
        commands, "show UUID[/N]", show, f"show {EXAMPLE_ID}", f"show {EXAMPLE_ID}/2", f"show {EXAMPLE_ID} --json"
    )
    showing.add_argument("--no-inline", dest="inline", action="store_false", help="never show a picture in the terminal")
    opening = add_command(commands, "open UUID[/N]", open_picture, f"open {EXAMPLE_ID}", f"open {EXAMPLE_ID}/2")
    for parser in (showing, opening):
        uuid = parser.add_argument(
            "uuid", metavar="UUID[/N]", help="a generation, as `imaged history` shows it; /2: its second picture"
        )
        completed_by(uuid, job_ids)
    for parser in (listing, showing, opening):
        add_json(parser)


def _as_of(text: str, wanted: Mapping[str, object]) -> "HistoryPage":
    """What `list_history` would have answered then, from the log's files; no daemon is asked or started.

    Raises:
        Refused: an argument does not fit, or there is no log.
        EventLogError: the log is damaged before that moment, or too new.
    """
    from daemon import arguments, auditing, results
    from eventlog.history import GenerationQuery

    asked = arguments.parse("list_history", wanted, arguments.ListHistory)
    query = GenerationQuery(
        limit=asked.limit,
        offset=asked.offset,
        tool=asked.tool_name,
        text=asked.query,
        since=None if asked.since is None else times.moment("--since", asked.since),
        until=None if asked.until is None else times.moment("--until", asked.until),
    )
    places = config.default_places()
    with auditing.history_as_of(places.home, times.place_in_log("--as-of", text, places.events)) as then:
        found = then.generations(query)
    generations = tuple(results.summary(job) for job in found.jobs)
    return results.HistoryPage(
        generations=generations, total=found.total, limit=asked.limit, offset=asked.offset, at_least=found.at_least
    )


def _named(text: str) -> tuple[str, int | None]:
    uuid, slash, number = text.partition("/")
    if not slash:
        return uuid, None
    if not (number.isascii() and number.isdigit() and 0 < len(number) < 4 and int(number)):
        sentence = f"{text!r} names no picture; give a UUID, or a UUID and the picture's number, such as {EXAMPLE_ID}/2."
        raise Refused(sentence, code="bad_arguments", argument="uuid")
    return uuid, int(number)


def _insist_on_picture(job: "JobReport", number: int) -> str | None:
    """Its path; None if that has been forgotten."""
    if not job.images:
        raise Refused(f"Job {job.job_id} is {job.state}; it has no pictures.", code="no_such_image", argument="uuid")
    if number > len(job.images):
        sentence = f"Generation {job.job_id} has no picture {number}; its pictures are 1 to {len(job.images)}."
        raise Refused(sentence, code="no_such_image", argument="uuid")
    return job.images[number - 1].path


def _opener(path: str, platform: str, environ: Mapping[str, str]) -> str:
    """
    Raises:
        Refused: there is no display, or no program that opens files.
    """
    if platform != "darwin" and not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        sentence = f"There is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set); the picture is {path}"
        raise Refused(sentence, code="no_display")
    name = "open" if platform == "darwin" else "xdg-open"
    found = shutil.which(name, path=environ.get("PATH"))
    if found is None:
        sentence = f"{name} is not installed (on Debian it comes with xdg-utils); the picture is {path}"
        raise Refused(sentence, code="no_opener")
    return found


def _open(path: str, opener: str) -> None:
    environ = dict(config.process_environment())
    if getattr(sys, "frozen", False):  # our own libraries are not for other programs
        environ.pop("LD_LIBRARY_PATH", None)
        if "LD_LIBRARY_PATH_ORIG" in environ:
            environ["LD_LIBRARY_PATH"] = environ["LD_LIBRARY_PATH_ORIG"]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored since we started a daemon, and then nobody learns how this ends
    null = subprocess.DEVNULL
    started = subprocess.Popen([opener, path], env=environ, stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        status = started.wait(OPENER_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        started.returncode = 0  # it is looked at; nobody waits for it any more
        return
    if status:
        raise Refused(f"{opener} could not open {path} (status {status}).", code="not_opened")
