"""The doctor's checks of what is not ours: key and API, directories, libraries, prices, models, and the clients."""

import json
import os
import platform
import shlex
import sqlite3
import sys
from importlib import metadata
from pathlib import Path

from daemon import bridge
from daemon.config import HOW_TO_SET_A_KEY, OPENAI_URL, Settings, fingerprint
from daemon.doctor_findings import Answered, Finding, Patient
from daemon.doctor_home import nearest_folder
from daemon.errors import BadConfiguration
from daemon.setup_clients import CLIENTS, Client, command_of, environment_of
from daemon.setup_files import ConfigFile
from daemon.setup_json import NotUnderstood
from daemon.version import VERSION
from eventlog.searching import INDEXES
from tools import pricing
from tools.files import FREE_BYTES_MIN
from tools.models import catalogue, known_models

KEY_CHARACTERS_MIN = 20  # OpenAI's have 50 and more
RETIREMENT_DAYS = 60  # from here on it is worth saying
LIBRARIES = ("pillow", "mcp", "httpx", "trio", "msgspec")


def key(patient: Patient) -> tuple[Finding, ...]:
    if patient.settings is None:
        return ()
    if patient.settings.account.backend == "offline":
        return (Finding("key", "note", "IMAGED_BACKEND is offline: placeholders are drawn, and no key is needed."),)
    if patient.settings.key is None:
        sentence = "There is no key in the environment or in the .env file; only clients whose entry holds one can draw."
        return (Finding("key", "warning", sentence, _how_to_set_a_key(patient)),)
    text = patient.settings.key.reveal()
    source = "the environment" if patient.bare.get("OPENAI_API_KEY", "").strip() else str(_env_file(patient))
    findings = [Finding("key", "ok", f"From {source}, fingerprint {fingerprint(text)}.")]
    official = patient.settings.account.base_url == OPENAI_URL
    if official and (not text.startswith("sk-") or len(text) < KEY_CHARACTERS_MIN or " " in text):
        sentence = f"The key from {source} does not look like one of OpenAI's, which begin with sk- and are longer."
        findings = [Finding("key", "warning", sentence, "copy it again from https://platform.openai.com/api-keys")]
    env_file = _env_file(patient)
    if env_file is not None and env_file.exists() and env_file.stat().st_mode & 0o077:
        findings.append(Finding("key", "warning", f"Others can read {env_file}.", f"chmod 600 {shlex.quote(str(env_file))}"))
    return tuple(findings)


def api(patient: Patient) -> tuple[Finding, ...]:
    settings = patient.settings
    if settings is None or settings.account.backend == "offline":
        return ()
    if patient.ask_models is None or settings.key is None:
        why = "nothing was sent; --online asks whether the key is taken" if settings.key else "there is no key to ask with"
        return (Finding("api", "note", f"{settings.account.base_url} was not asked: {why}."),)
    answer = patient.ask_models(settings)
    url = f"{settings.account.base_url}/models"
    match answer.status:
        case None:
            return (Finding("api", "error", answer.trouble, "check the network, HTTPS_PROXY and OPENAI_BASE_URL"),)
        case 200 if answer.models and settings.model not in answer.models:
            sentence = f"{url} takes the key, but does not list {settings.model}."
            return (Finding("api", "warning", sentence, "verify the organization, or choose another OPENAI_IMAGE_MODEL"),)
        case 200:
            return (Finding("api", "ok", f"{url} takes the key and lists {len(answer.models)} models."),)
        case 401:
            return (
                Finding("api", "error", f"{url} does not take the key.", "make a new one: https://platform.openai.com/api-keys"),
            )
        case 403:
            fix = "allow the key to list models and to draw, or ask whoever owns the project"
            return (Finding("api", "warning", f"{url} knows the key, but this is not allowed to it.", fix),)
        case status:
            sentence = f"{url} answered with status {status}, which says nothing about the key."
            return (Finding("api", "warning", sentence, "check OPENAI_BASE_URL, or try again later"),)


def ask_for_models(settings: Settings) -> Answered:
    """Asks the real API, once. Blocking, for 20 s at most.

    Raises:
        BadConfiguration: the proxy settings of the environment cannot be used.
    """
    import trio

    from daemon import courier
    from daemon.post import RawReply

    reply = trio.run(courier.ask_for_models, settings)
    if isinstance(reply, RawReply):
        return Answered(reply.status, _names(reply.body) if reply.status == 200 else ())
    return Answered(None, trouble=reply.message)


def directories(patient: Patient) -> tuple[Finding, ...]:
    settings = patient.settings
    if settings is None:
        return ()
    findings = [*_output(settings.output_dir)]
    for folder in settings.input_dirs:
        if not folder.is_dir():
            sentence = f"The input directory {folder} is not there."
            findings.append(Finding("directories", "warning", sentence, f"mkdir -p {shlex.quote(str(folder))}"))
        elif not os.access(folder, os.R_OK | os.X_OK):
            sentence = f"The input directory {folder} cannot be read."
            findings.append(Finding("directories", "warning", sentence, f"chmod u+rx {shlex.quote(str(folder))}"))
    home = patient.places.home.resolve() if patient.places else None
    for name, folder in (("output", settings.output_dir), *(("input", folder) for folder in settings.input_dirs)):
        real = folder.resolve()
        if home is not None and (real.is_relative_to(home) or home.is_relative_to(real)):
            sentence = f"The {name} directory {folder} and imaged's own {home} lie within each other."
            findings.append(Finding("directories", "warning", sentence, f"set OPENAI_IMAGE_{name.upper()}_DIR to another place"))
    return tuple(findings)


def versions(patient: Patient) -> tuple[Finding, ...]:
    found = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    kind = "one executable" if getattr(sys, "frozen", False) else sys.executable
    sentence = f"imaged {VERSION}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {found} ({kind})."
    findings = [Finding("versions", "ok", sentence)]
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(INDEXES)
    except sqlite3.OperationalError as exc:
        sentence = f"This SQLite ({sqlite3.sqlite_version}) cannot search text as imaged does: {exc}."
        findings.append(Finding("versions", "error", sentence, "use a Python whose SQLite is 3.37 or newer and has FTS5"))
    finally:
        db.close()
    return tuple(findings)


def prices(patient: Patient) -> tuple[Finding, ...]:
    table, today = pricing.table(), patient.now.date()
    told = f"The price table is of {table.as_of}, the catalogue of models of {catalogue().as_of}"
    if table.is_stale(today):
        sentence = f"{told}; estimates may be wrong after {table.age_days(today)} days."
        return (Finding("prices", "warning", sentence, "update imaged"),)
    return (Finding("prices", "ok", f"{told}."),)


def model(patient: Patient) -> tuple[Finding, ...]:
    if patient.settings is None:
        return ()
    name, today = patient.settings.model, patient.now.date()
    known = catalogue().find(name)
    if known is None:
        sentence = f"{name} is not in the catalogue of {catalogue().as_of}; it is passed on as it is."
        return (Finding("model", "note", sentence, f"if that is a slip, set OPENAI_IMAGE_MODEL to one of {known_models()}"),)
    fix = f"set OPENAI_IMAGE_MODEL to {known.replacement or catalogue().default}"
    if known.gone_from is not None and today >= known.gone_from:
        return (Finding("model", "error", f"{name} does not answer any more since {known.gone_from}.", fix),)
    if known.gone_from is not None and (known.gone_from - today).days <= RETIREMENT_DAYS:
        return (Finding("model", "warning", f"{name} answers until {known.gone_from} only.", fix),)
    return (Finding("model", "ok", f"{name} is what is drawn with when a call names no model."),)


def clients(patient: Patient) -> tuple[Finding, ...]:
    if patient.home is None:
        return ()
    findings: list[Finding] = []
    for client in CLIENTS.values():
        try:
            file = ConfigFile(client.config_path(patient.bare, patient.home, sys.platform))
            if file.exists:
                findings += _client(client, file, client.read(file.text()), patient)
        except BadConfiguration as exc:
            findings.append(Finding(client.name, "warning", str(exc), "make the file readable, in UTF-8"))
        except NotUnderstood as exc:
            sentence = f"{file.path} does not parse: {exc}."
            findings.append(Finding(client.name, "warning", sentence, "correct it there; the client cannot read it either"))
    return tuple(findings) or (Finding("clients", "note", "No client's configuration was found.", "imaged setup CLIENT"),)


def old_history(patient: Patient) -> tuple[Finding, ...]:
    found = [path for path in patient.settings.old_history if path.is_file()] if patient.settings else []
    return tuple(
        Finding(
            "old history",
            "note",
            f"{path} is the earlier program's history; what of it is not here yet can be taken over.",
            f"imaged import-history {shlex.quote(str(path))}",
        )
        for path in found
    )


def _client(client: Client, file: ConfigFile, document: object, patient: Patient) -> list[Finding]:
    findings = []
    entry, again = client.entry(document), f"imaged setup {client.name}"
    if entry is None:
        findings.append(Finding(client.name, "note", f"{file.path} does not name imaged.", again))
    else:
        findings.append(_entry(client, file, entry, patient))
        if environment_of(entry).get("OPENAI_API_KEY") and not file.is_private:
            sentence = f"{file.path} holds a key, and others can read it."
            findings.append(Finding(client.name, "warning", sentence, f"chmod 600 {shlex.quote(str(file.target))}"))
    for place, _ in client.old_entries(document):
        sentence = f"{place} in {file.path} starts the earlier program."
        findings.append(Finding(client.name, "note", sentence, f"{again} --adopt, then remove it"))
    return findings


def _entry(client: Client, file: ConfigFile, entry: dict[str, object], patient: Patient) -> Finding:
    again = f"imaged setup {client.name}"
    command = command_of(entry)
    if not command:
        return Finding(client.name, "error", f"The entry of imaged in {file.path} names no command.", again)
    if not Path(command[0]).is_absolute():
        sentence = f"{file.path} starts {command[0]}, which is no absolute path; the client may not find it."
        return Finding(client.name, "warning", sentence, again)
    if not os.access(command[0], os.X_OK) or not Path(command[0]).is_file():
        return Finding(client.name, "error", f"{file.path} starts {command[0]}, which is not there, or no program.", again)
    if list(command) != list(patient.executable):
        sentence = f"{file.path} starts {shlex.join(command)}; this program is {shlex.join(patient.executable)}."
        return Finding(client.name, "warning", sentence, again)
    settings = bridge.settings_of(environment_of(entry))
    try:
        assert patient.home is not None
        Settings.parse({n: v for n, v in settings.items() if "${" not in v}, home_dir=patient.home)
    except BadConfiguration as exc:
        return Finding(client.name, "error", f"{file.path}: {exc}", "correct the env of the entry there")
    return Finding(client.name, "ok", f"{file.path} starts this program.")


def _output(folder: Path) -> list[Finding]:
    quoted = shlex.quote(str(folder))
    if folder.exists() and not folder.is_dir():
        return [Finding("directories", "error", f"{folder} is not a directory.", "set OPENAI_IMAGE_OUTPUT_DIR to one")]
    there = nearest_folder(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        fix = f"chmod u+rwx {quoted}" if there == folder else f'sudo install -d -o "$(id -u)" {quoted}'
        return [Finding("directories", "error", f"{there} cannot be written to, so pictures cannot go to {folder}.", fix)]
    figures = os.statvfs(there)
    free = figures.f_bavail * figures.f_frsize
    if free < FREE_BYTES_MIN:
        sentence = (
            f"The disk of {folder} has {free // 1_000_000} MB left; {FREE_BYTES_MIN // 1_000_000} MB are wanted for a picture."
        )
        return [Finding("directories", "error", sentence, "make room, or set OPENAI_IMAGE_OUTPUT_DIR to another disk")]
    made = "" if there == folder else ", which is made when it is needed"
    return [Finding("directories", "ok", f"Pictures go to {folder}{made}; {free // 1_000_000:,} MB are free.")]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # within one executable libraries leave their papers behind
        return "built in"


def _env_file(patient: Patient) -> Path | None:
    return None if patient.home is None else patient.home / ".config" / "imaged" / ".env"


def _how_to_set_a_key(patient: Patient) -> str:
    env_file = _env_file(patient)
    if env_file is None:
        return HOW_TO_SET_A_KEY
    return f"put the line OPENAI_API_KEY=… into {env_file}, then: chmod 600 {shlex.quote(str(env_file))}"


def _names(body: bytes | bytearray) -> tuple[str, ...]:
    """Of an answer to GET /models; empty if it is not one."""
    try:
        return tuple(str(one["id"]) for one in json.loads(body)["data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
