"""The doctor's checks of what is ours: the home, its socket and daemon, the disk below it and the log in it."""

import os
import shlex
import socket as sockets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from daemon import client, doors
from daemon.config import Places
from daemon.doctor_findings import Finding, Patient, mode_of
from daemon.errors import NotRunning
from daemon.version import VERSION
from eventlog import audit
from eventlog.framing import LINE_BYTES_MAX, Unsound, read
from eventlog.log import RESERVE_BYTES
from eventlog.segments import Mark, segment_name, segment_starts
from tools.files import FREE_BYTES_MIN

FILES_LOOKED_AT_MAX = 20_000  # a store of ten thousand pictures; the rest is like the first
NAMED_MAX = 3
CLOCK_BEHIND_MAX = timedelta(seconds=5)  # what time servers correct without telling anybody


def permissions(patient: Patient) -> tuple[Finding, ...]:
    places = patient.places
    if places is None:
        return ()
    if not places.home.exists():
        return (Finding("home", "note", f"{places.home} is not there yet; the first start makes it."),)
    if not places.home.is_dir():
        return (
            Finding("home", "error", f"{places.home} is not a directory.", "move it away, or set IMAGED_HOME to another place"),
        )
    foreign: list[str] = []
    open_to_others: list[str] = []
    looked_at = 0
    for path, found in islice(_everything(places.home), FILES_LOOKED_AT_MAX):
        looked_at += 1
        if found.st_uid != os.geteuid():
            foreign.append(str(path))
        elif found.st_mode & 0o077 and not stat.S_ISLNK(found.st_mode):
            open_to_others.append(f"{path} ({mode_of(found.st_mode)})")
    home = shlex.quote(str(places.home))
    findings = []
    if foreign:
        findings.append(Finding("home", "error", f"Not yours: {_named(foreign)}.", f'sudo chown -R "$(id -u)" {home}'))
    if open_to_others:
        findings.append(Finding("home", "warning", f"Others may look into {_named(open_to_others)}.", f"chmod -R go= {home}"))
    if not findings:
        findings.append(Finding("home", "ok", f"{places.home}: {looked_at} files and folders, all for you alone."))
    return tuple(findings)


def socket(patient: Patient) -> tuple[Finding, ...]:
    places = patient.places
    if places is None:
        return ()
    run = shlex.quote(str(places.run))
    try:
        found = places.run.lstat()
    except FileNotFoundError:
        return (Finding("socket", "ok", "No daemon has run here yet; a client starts one."),)
    if not stat.S_ISDIR(found.st_mode):
        return (Finding("socket", "error", f"{places.run} is not a directory, or is a link to one.", f"rm {run}"),)
    if found.st_uid != os.geteuid():
        return (Finding("socket", "error", f"{places.run} belongs to somebody else.", f'sudo chown "$(id -u)" {run}'),)
    if found.st_mode & 0o077:
        sentence = f"{places.run} has mode {mode_of(found.st_mode)}, and imaged refuses to work in it."
        return (Finding("socket", "error", sentence, f"chmod 700 {run}"),)
    path = places.run / doors.SOCKET_NAME
    try:
        found = path.lstat()
    except FileNotFoundError:
        return (Finding("socket", "ok", f"{places.run} is for you alone; no socket, so no daemon runs."),)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        sentence = f"{path} is not a socket of yours."
        return (Finding("socket", "error", sentence, f"rm {shlex.quote(str(path))}"),)
    if not _somebody_listens(places):
        return (Finding("socket", "note", f"{path} is left over and nobody listens; the next start replaces it."),)
    return (Finding("socket", "ok", f"{path} is for you alone, and somebody listens."),)


def daemon(patient: Patient) -> tuple[Finding, ...]:
    if patient.places is None:
        return ()
    try:
        reply = client.ask(patient.places, "get_status", {})
    except NotRunning:
        return (Finding("daemon", "ok", "None runs; a client starts one."),)
    status = reply.get("result")
    if not isinstance(status, dict):
        return (Finding("daemon", "warning", "The daemon refused to say how it is.", "imaged stop"),)
    software, pid = str(status.get("software")), status.get("pid")
    findings = []
    if software != VERSION:
        sentence = f"The running daemon (process {pid}) is imaged {software}, this is {VERSION}."
        findings.append(Finding("daemon", "warning", sentence, "imaged stop; the next client starts the new one"))
    if status.get("log_full"):
        findings.append(Finding("daemon", "error", "The disk of the log is full; new pictures are refused.", "make room"))
    if status.get("index_stale"):
        sentence = "The index does not follow the log, so history is not complete."
        findings.append(Finding("daemon", "warning", sentence, "imaged stop; the next start makes it anew"))
    if not findings:
        jobs = f"{status.get('jobs_running')} jobs running, {status.get('jobs_pending')} waiting"
        findings.append(Finding("daemon", "ok", f"Process {pid} runs, imaged {software}; {jobs}."))
    return tuple(findings)


def disk(patient: Patient) -> tuple[Finding, ...]:
    if patient.places is None:
        return ()
    folder = nearest_folder(patient.places.home)
    figures = os.statvfs(folder)
    free = figures.f_bavail * figures.f_frsize
    if free < FREE_BYTES_MIN:
        sentence = (
            f"The disk of {folder} has {free // 1_000_000} MB left; {FREE_BYTES_MIN // 1_000_000} MB are wanted for a picture."
        )
        return (Finding("disk", "error", sentence, "make room on that disk"),)
    findings = [Finding("disk", "ok", f"{free // 1_000_000:,} MB are free at {folder}.")]
    reserve = patient.places.events / "reserve"
    if patient.places.events.is_dir() and not (reserve.is_file() and reserve.stat().st_size >= RESERVE_BYTES):
        sentence = "The reserve for the last words of a full disk is not there; a daemon that starts with room makes it."
        findings.append(Finding("disk", "note", sentence))
    return tuple(findings)


def log(patient: Patient) -> tuple[Finding, ...]:
    """Its health, and by its last commit whether the clock went back."""
    places = patient.places
    if places is None or not places.events.is_dir():
        return () if places is None else (Finding("log", "note", "There is no log yet; the first start makes one."),)
    found = audit.verify(places.events)
    size = sum(path.stat().st_size for path in places.events.glob("*.jsonl"))
    if found.fault is not None:
        fix = f"imaged stop; then restore {shlex.quote(str(places.events))} from a backup, and change nothing in it"
        sentence = f"Damaged after {found.commits} sound commits: {found.fault.sentence}"
        return (Finding("log", "error", sentence, fix),)
    findings = [
        Finding(
            "log",
            "ok",
            f"{found.commits:,} commits in {found.segments} segments, {size:,} bytes: every hash and every link is "
            f"right; head {found.head_hash[:16]}…",
        )
    ]
    if found.unfinished_bytes and not _somebody_listens(places):
        sentence = f"{found.unfinished_bytes} bytes at its end were never finished; nothing that was promised is in them."
        findings.append(Finding("log", "warning", sentence, "nothing to do: the next start sets them aside and says so"))
    last = _last_commit_at(places, found.mark) if found.commits else None
    if last is not None:
        findings.append(_clock(last, patient.now))
    return tuple(findings)


def nearest_folder(path: Path) -> Path:
    """The path itself, or the folder above it that is there."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _clock(last: datetime, now: datetime) -> Finding:
    if now + CLOCK_BEHIND_MAX < last:
        sentence = (
            f"The clock says {now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, but the log's last commit is of "
            f"{last.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: it went back, or was ahead then."
        )
        return Finding("clock", "warning", sentence, "set the clock, best by a time server: timedatectl set-ntp true")
    return Finding("clock", "ok", f"It is later than the log's last commit, {last.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC.")


def _last_commit_at(places: Places, mark: Mark) -> datetime | None:
    starts = segment_starts([path.name for path in places.events.iterdir()])
    start = max((start for start in starts if start <= mark.offset), default=0)
    with (places.events / segment_name(start)).open("rb") as file:
        file.seek(mark.offset - start)
        line = file.readline(LINE_BYTES_MAX + 1)
    try:
        return read(line.removesuffix(b"\n")).commit.at
    except Unsound:  # rewritten between the two looks; the next look tells
        return None


def _somebody_listens(places: Places) -> bool:
    """Whether a daemon takes connections. Says nothing to it."""
    try:
        descriptor = os.open(places.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.connect(doors.address(places.run, descriptor, doors.SOCKET_NAME))
    except BlockingIOError:
        return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    finally:
        os.close(descriptor)
    return True


def _everything(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What is in a tree, without following links; what vanishes meanwhile is passed over."""
    pending = [top]
    while pending:
        path = pending.pop()
        try:
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                pending.extend(path.iterdir())
        except FileNotFoundError:
            continue
        yield path, found


def _named(paths: list[str]) -> str:
    more = len(paths) - NAMED_MAX
    return ", ".join(paths[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
