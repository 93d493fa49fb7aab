"""Looks at everything that imaged needs, and says what is wrong and which line puts it right.

Rule: it only looks. No daemon is started, nothing is written, no key and no prompt is shown, and whatever breaks on
the way is a finding. Each check has a bounded time: a disk that does not answer costs seconds, not the report.
"""

import queue
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from daemon import bridge, doctor_home, doctor_world
from daemon.config import Places, Settings
from daemon.doctor_findings import AskModels, Check, Finding, Patient
from daemon.errors import BadConfiguration, NotRunning
from daemon.logs import hide, scrubbed
from eventlog.audit import harmless
from eventlog.errors import EventLogError, IndexUnavailable

CHECK_SECONDS_MAX = 10.0  # nothing that is looked at takes a second on a healthy machine
LOG_SECONDS_MAX = 120.0  # every line is hashed: about a hundred megabytes in ten seconds
ONLINE_SECONDS_MAX = 30.0
_MARKS = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "error": "ERROR  "}
_FORESEEN = (OSError, ValueError, sqlite3.Error, bridge.Trouble, BadConfiguration, NotRunning, EventLogError, IndexUnavailable)

CHECKS: tuple[tuple[str, Check, float], ...] = (
    ("key", doctor_world.key, CHECK_SECONDS_MAX),
    ("api", doctor_world.api, ONLINE_SECONDS_MAX),
    ("directories", doctor_world.directories, CHECK_SECONDS_MAX),
    ("home", doctor_home.permissions, CHECK_SECONDS_MAX),
    ("socket", doctor_home.socket, CHECK_SECONDS_MAX),
    ("versions", doctor_world.versions, CHECK_SECONDS_MAX),
    ("daemon", doctor_home.daemon, CHECK_SECONDS_MAX),
    ("disk", doctor_home.disk, CHECK_SECONDS_MAX),
    ("log", doctor_home.log, LOG_SECONDS_MAX),
    ("prices", doctor_world.prices, CHECK_SECONDS_MAX),
    ("model", doctor_world.model, CHECK_SECONDS_MAX),
    ("clients", doctor_world.clients, CHECK_SECONDS_MAX),
    ("old history", doctor_world.old_history, CHECK_SECONDS_MAX),
)


def examine(
    environ: Mapping[str, str], *, executable: Sequence[str], now: datetime, ask_models: AskModels | None = None
) -> tuple[Finding, ...]:
    """Everything there is to say. Blocking; it neither raises nor starts anything.

    `environ` is the bare environment: the `.env` file and the places are found here, because they may be what is wrong.
    `executable` is what a client has to start. Without `ask_models` nothing leaves the machine.
    """
    patient, findings = _admitted(environ, executable, now, ask_models)
    key = patient.variables.get("OPENAI_API_KEY", "").strip()
    hide(key)
    for area, check, seconds in CHECKS:
        findings += _within(seconds, area, check, patient)
    return tuple(_clean(finding) for finding in findings)


def report(findings: Sequence[Finding]) -> str:
    """For people: a line for each finding, and below it what puts it right."""
    width = max((len(finding.area) for finding in findings), default=0)
    lines = []
    for found in findings:
        lines.append(f"{_MARKS[found.level]}  {found.area:<{width}}  {found.sentence}")
        if found.fix:
            lines.append(f"{'':9}{'':{width}}  -> {found.fix}")
    errors = sum(found.level == "error" for found in findings)
    warnings = sum(found.level == "warning" for found in findings)
    return "\n".join([*lines, "", f"{errors} errors, {warnings} warnings."])


def is_well(findings: Sequence[Finding]) -> bool:
    """Nothing found that keeps imaged from working."""
    return all(finding.level != "error" for finding in findings)


def _admitted(
    environ: Mapping[str, str], executable: Sequence[str], now: datetime, ask_models: AskModels | None
) -> tuple[Patient, list[Finding]]:
    findings: list[Finding] = []
    merged: Mapping[str, str] = environ
    home: Path | None = None
    places: Places | None = None
    settings: Settings | None = None
    try:
        home = Path(bridge.user_home(environ))
    except bridge.Trouble as exc:
        findings.append(Finding("configuration", "error", str(exc), "export HOME=…"))
    if home is not None:
        env_file = home / ".config" / "imaged" / ".env"
        try:
            merged = bridge.with_env_file(environ)
        except bridge.Trouble as exc:
            fix = f"make {env_file} a text file in UTF-8 and run: chmod 600 {env_file}"
            findings.append(Finding("configuration", "error", f"{exc} Until then clients cannot start imaged.", fix))
        try:
            places = Places(Path(bridge.home_directory(merged)))
        except bridge.Trouble as exc:
            findings.append(Finding("configuration", "error", str(exc), "unset IMAGED_HOME, or set it as said"))
        try:
            settings = Settings.parse(bridge.settings_of(merged), home_dir=home)
        except BadConfiguration as exc:
            findings.append(Finding("configuration", "error", str(exc), f"correct it in the environment or in {env_file}"))
    return Patient(merged, environ, home, places, settings, executable, now, ask_models), findings


def _within(seconds: float, area: str, check: Check, patient: Patient) -> tuple[Finding, ...]:
    """What the check finds, or that it did not come to an end. A thread that hangs is left behind; it holds nothing."""
    answers: queue.SimpleQueue[tuple[Finding, ...]] = queue.SimpleQueue()

    def run() -> None:
        found: tuple[Finding, ...] = (Finding(area, "error", "This check broke off; that is a fault of imaged.", "report it"),)
        try:
            found = check(patient)
        except _FORESEEN as exc:
            found = (
                Finding(area, "error", f"This could not be looked at: {exc}", "put right what it says, then run this again"),
            )
        finally:
            answers.put(found)

    threading.Thread(target=run, name=f"doctor {area}", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        sentence = f"This check was given up after {seconds:.0f} s."
        return (Finding(area, "warning", sentence, "see whether a disk or the network hangs, then run this again"),)


def _clean(finding: Finding) -> Finding:
    return finding._replace(sentence=scrubbed(harmless(finding.sentence)), fix=scrubbed(harmless(finding.fix)))
