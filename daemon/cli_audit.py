"""`imaged audit` and `imaged gc`: proving what happened, and what a home need not keep for ever.

Rule: but for `archive` and `gc`, which want no daemon beside them, these only read, and work on a copy of a home as well as
beside a running daemon. stdout is the
answer, everything else goes to stderr. 0 is sound, 1 a fault, 2 a wrong command line.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from daemon import cli_times, config
from daemon.cli_options import add_command
from daemon.config import Places
from daemon.errors import BadConfiguration

if TYPE_CHECKING:
    from daemon.cli_options import Commands
    from daemon.verifying import Seal

OK, FAULT = 0, 1
Command = Callable[[argparse.Namespace], int]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`audit` with its own commands."""
    audit = commands.add_parser(
        "audit", help="Prove what happened, from the log.", description="Prove what happened, from the log."
    )
    inner = audit.add_subparsers(title="commands", required=True)

    def one(name: str, function: Command) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").splitlines()[0]
        command = inner.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=function)
        command.add_argument("--home", type=Path, metavar="DIR", help="a copy of a home; left out: IMAGED_HOME")
        return command

    verifying = one("verify", verify)
    verifying.add_argument("--against", type=Path, metavar="FILE", help="a seal that `audit seal --json` printed earlier")
    verifying.add_argument("--archive", type=Path, metavar="DIR", help="where `audit archive` has moved the log's beginning")
    verifying.add_argument("--json", action="store_true", help="answer as JSON")
    one("seal", seal).add_argument("--json", action="store_true", help="answer as JSON, for `audit verify --against`")
    replaying = one("replay", replay)
    replaying.add_argument("--until", metavar="POSITION|TIME", help="up to this commit, or this time of yours")
    speed = "with the pauses as they were, N times as fast; none lasts long"
    replaying.add_argument("--speed", type=_speed, metavar="N", help=speed)
    replaying.add_argument("--json", action="store_true", help="answer as lines of JSON")
    exporting = one("export", export)
    exporting.add_argument("--format", choices=("html", "jsonl", "csv"), default="html")
    exporting.add_argument("--output", type=Path, metavar="FILE", help="left out: stdout")
    showing = one("show", show)
    showing.add_argument("uuid")
    kind = showing.add_mutually_exclusive_group(required=True)
    kind.add_argument("--curl", dest="kind", action="store_const", const="curl", help="as a command line")
    archiving = one("archive", archive)
    archiving.add_argument("--before", required=True, metavar="TIME", help='such as 2026-01-01 or "6 months ago"')
    archiving.add_argument("--to", type=Path, metavar="DIR", help="left out: archive/ in the home")
    archiving.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    archiving.add_argument("--json", action="store_true", help="answer as JSON")
    kind.add_argument("--python", dest="kind", action="store_const", const="python", help="as a program")


def add_gc(commands: "Commands") -> None:
    command = add_command(commands, "gc", collect, "gc --dry-run", "gc --json | jq .blobs[].sha256")
    command.add_argument("--home", type=Path, metavar="DIR", help="left out: IMAGED_HOME")
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    command.add_argument("--json", action="store_true", help="answer as JSON")


def verify(asked: argparse.Namespace) -> int:
    """Check the chain, every transition, every stored blob and every saved file."""
    from daemon import verifying

    against = None if asked.against is None else _seal(asked.against)
    verdict = verifying.verify(_home(asked), against, asked.archive)
    if asked.json:
        _out(msgspec.json.encode({"sound": verdict.is_sound, **msgspec.to_builtins(verdict)}).decode())
        return OK if verdict.is_sound else FAULT
    _out(f"{verdict.commits:,} commits in {verdict.segments} segments, head {verdict.head_hash}")
    if verdict.archived:
        _out(f"up to position {verdict.archived:,} archived" + ("" if asked.archive is None else f"; read in {asked.archive}"))
    _out(f"{verdict.blobs_checked:,} stored blobs checked; {verdict.files_unchanged:,} saved files unchanged")
    if verdict.unfinished_bytes:
        _out(f"{verdict.unfinished_bytes:,} bytes follow the last sound line: a write under way, or a torn end")
    for finding in (*verdict.blobs, *verdict.files, *verdict.forgotten):
        _out(json.dumps(msgspec.to_builtins(finding), ensure_ascii=False))
    if verdict.broken_seal:
        _out(f"The seal does not hold: {verdict.broken_seal}")
    if verdict.broken_archive:
        _out(f"The archive does not fit: {verdict.broken_archive}")
    if verdict.fault is not None:
        _out(f"FAULT at position {verdict.fault.position}, byte {verdict.fault.offset}: {verdict.fault.sentence}")
    _out("sound" if verdict.is_sound else "NOT SOUND")
    return OK if verdict.is_sound else FAULT


def seal(asked: argparse.Namespace) -> int:
    """Print position and head hash, for somebody else to keep."""
    from daemon import verifying

    found = verifying.seal(_home(asked))
    text = msgspec.json.encode(found).decode()
    _out(text if asked.json else f"position {found.position}, head {found.head_hash}, at {found.at}")
    return OK


def replay(asked: argparse.Namespace) -> int:
    """Tell every generation as it happened."""
    from daemon import auditing
    from eventlog.audit import line

    home = _home(asked)
    until = None if asked.until is None else cli_times.place_in_log("--until", asked.until, Places(home).events)
    story = auditing.replay(home, until)
    for told in story if asked.speed is None else auditing.paced(story, asked.speed):
        _out(msgspec.json.encode(told._asdict()).decode() if asked.json else line(told, whose=True))
        if asked.speed is not None:
            sys.stdout.flush()  # also into a pipe, where the pauses would otherwise be lost
    return OK


def export(asked: argparse.Namespace) -> int:
    """Write every generation as one HTML page, JSON lines or CSV."""
    from daemon import auditing

    if asked.output is None:
        done = auditing.export(_home(asked), asked.format, sys.stdout.buffer)
    else:
        with asked.output.open("xb") as out:  # never over what is there
            done = auditing.export(_home(asked), asked.format, out)
    print(f"imaged: {done.generations:,} generations, up to position {done.head}", file=sys.stderr)  # noqa: T201
    return OK


def show(asked: argparse.Namespace) -> int:
    """Print the exact request of one generation, with the key left out."""
    from daemon.audit_request import request_of

    _out(request_of(_home(asked), asked.uuid, asked.kind))
    return OK


def archive(asked: argparse.Namespace) -> int:
    """Move what is older than a moment out of the log; history still lists it."""
    from daemon import retention

    before = cli_times.moment("--before", asked.before)
    to = None if asked.to is None else asked.to.expanduser().absolute()
    done = retention.archive(_home(asked), before, to, dry_run=asked.dry_run, now=datetime.now(UTC))
    _out(msgspec.json.encode(done).decode() if asked.json else done.message)
    return OK


def collect(asked: argparse.Namespace) -> int:
    """Remove from the store what nothing in the log names."""
    from daemon import retention

    done = retention.collect(_home(asked), dry_run=asked.dry_run)
    if asked.json:
        _out(msgspec.json.encode(done).decode())
        return OK
    if asked.dry_run:
        for blob in done.blobs:
            _out(f"{blob.sha256}  {blob.size_bytes:,} bytes")
    for sentence in done.kept:
        _out(f"kept: {sentence}")
    _out(done.message)
    return OK


def _home(asked: argparse.Namespace) -> Path:
    home: Path | None = asked.home
    return config.default_places().home if home is None else home.expanduser().absolute()


def _seal(path: Path) -> "Seal":
    from daemon.verifying import Seal

    try:
        return msgspec.json.decode(path.read_bytes(), type=Seal)
    except (OSError, msgspec.DecodeError) as exc:
        raise BadConfiguration(f"{path} is not a seal of `imaged audit seal --json` ({exc}).") from exc


def _speed(text: str) -> float:
    """For argparse: how many times as fast, or a sentence."""
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number such as 1, 10 or 0.5")
    return speed


def _out(line: str) -> None:
    print(line)  # noqa: T201
