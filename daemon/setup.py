"""Puts imaged into the configuration of an MCP client, and takes it out again.

Rule: the file belongs to somebody else. Our entry is the only thing in it that changes, a copy is made first, and
what cannot be changed so is refused with a sentence. No key is copied anywhere unless the user asks for it by name,
and no key is ever shown.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from daemon import bridge
from daemon.config import Settings
from daemon.errors import BadConfiguration
from daemon.logs import scrubbed
from daemon.setup_clients import NAME, OLD_PROGRAM, Client, client_named, environment_of
from daemon.setup_files import ConfigFile
from daemon.setup_json import CannotEdit, NotUnderstood

SHOWN_PREFIXES = ("OPENAI_IMAGE_", "OPENAI_BATCH_", "IMAGED_", "HISTORY_DB_PATH")  # what is no secret; all else is one
HIDDEN = "…"


class Wish(NamedTuple):
    """`values` are what the user wants in the entry's environment. `adopt`: also what the earlier program's entry has."""

    client: str
    remove: bool = False
    print_only: bool = False
    adopt: bool = False
    values: Mapping[str, str] = {}


class Outcome(NamedTuple):
    """`entry` is the resulting entry as text, without secrets; empty when it was removed."""

    path: Path
    changed: bool
    backup: Path | None
    entry: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join((*([self.entry] if self.entry else ()), *self.sentences))


def setup(wish: Wish, *, executable: Sequence[str], environ: Mapping[str, str], home: Path) -> Outcome:
    """`executable` is what a client has to start, its arguments included. Blocking.

    Raises:
        BadConfiguration: nothing was changed, and why.
    """
    client = client_named(wish.client)
    file = ConfigFile(client.config_path(environ, home, sys.platform))
    text = file.text()
    document = _understood(client, file, text)
    if wish.remove:
        return _remove(client, file, text, print_only=wish.print_only)
    _insist_on_settings(wish.values, home)
    if not Path(executable[0]).is_absolute():
        raise BadConfiguration(f"{executable[0]!r} is not an absolute path, and clients start programs from anywhere; give one.")
    entry = _wanted(client, document, executable, wish)
    try:
        after = client.put(text, entry)
    except (CannotEdit, NotUnderstood) as exc:
        raise BadConfiguration(_by_hand(client, file, entry, exc)) from None
    changed = after != text
    backup = file.replace(after) if changed and not wish.print_only else None
    result = client.entry(client.read(after)) or {}
    sentences = [
        *_done(client, file, wish, changed, backup),
        *_about_the_old(client, document, wish),
        *_about_the_key(file, result, environ, home),
        *([f"Restart {client.title} to let it find {NAME}."] if changed and not wish.print_only else ()),
    ]
    return Outcome(file.path, changed and not wish.print_only, backup, _shown(client, result), tuple(sentences))


def _understood(client: Client, file: ConfigFile, text: str) -> Any:
    try:
        document = client.read(text)
    except NotUnderstood as exc:
        raise BadConfiguration(f"{file.path} does not parse and was left as it is: {exc}. Correct it and try again.") from None
    if document is not None and not isinstance(document, dict):
        raise BadConfiguration(f"{file.path} does not hold an object in braces and was left as it is; look at it.")
    return document


def _insist_on_settings(values: Mapping[str, str], home: Path) -> None:
    for name in values:
        proxies = (*bridge.DAEMON_PROXIES, *(proxy.lower() for proxy in bridge.DAEMON_PROXIES))
        if not bridge.settings_of({name: ""}) and name not in proxies and not name.startswith("SSL_CERT_"):
            raise BadConfiguration(f"{scrubbed(name)!r} is not a setting of {NAME}; see Settings in the README.")
    Settings.parse(values, home_dir=home)


def _wanted(client: Client, document: Any, executable: Sequence[str], wish: Wish) -> dict[str, object]:
    """The members that must be in our entry, and their values."""
    adopted: dict[str, str] = {}
    if wish.adopt:
        for _, old in client.old_entries(document):
            adopted = {**bridge.settings_of(environment_of(old)), **adopted}
    present = client.entry(document) or {}
    environment = {**adopted, **environment_of(present), **wish.values}
    entry: dict[str, object] = {"type": "stdio"} if client.typed else {}
    entry |= {"command": executable[0], "args": list(executable[1:])}
    env = present.get("env")
    others = {name: value for name, value in env.items() if name not in environment} if isinstance(env, dict) else {}
    return entry | ({"env": {**others, **environment}} if environment else {})


def _remove(client: Client, file: ConfigFile, text: str, *, print_only: bool) -> Outcome:
    entry = client.entry(client.read(text))
    if entry is None:
        return Outcome(file.path, False, None, "", (f"{NAME} is not in {file.path}; nothing was changed.",))
    if print_only:
        sentence = f"This would be taken out of {file.path}; nothing was changed."
        return Outcome(file.path, False, None, _shown(client, entry), (sentence,))
    try:
        earlier = _as_it_was(client, file, text, entry)
        after = client.take(text) if earlier is None else earlier
    except CannotEdit as exc:
        raise BadConfiguration(f"{file.path} was left as it is: {exc}. Take the entry out by hand.") from None
    backup = file.replace(after)
    sentences = [f"{NAME} was taken out of {file.path}.", f"The file as it was before: {backup}", f"Restart {client.title}."]
    if environment_of(entry).get("OPENAI_API_KEY"):
        sentences.append(
            "That copy still holds the OPENAI_API_KEY, and earlier ones may; remove them once you need them no more."
        )
    return Outcome(file.path, True, backup, "", tuple(sentences))


def _as_it_was(client: Client, file: ConfigFile, text: str, entry: Mapping[str, object]) -> str | None:
    """The copy that becomes this very text when the entry is added: what was there before, to the byte."""
    for earlier in file.backups():
        try:
            if client.entry(client.read(earlier)) is None and client.put(earlier, entry) == text:
                return earlier
        except (NotUnderstood, CannotEdit):
            continue
    return None


def _done(client: Client, file: ConfigFile, wish: Wish, changed: bool, backup: Path | None) -> list[str]:
    if not changed:
        return [f"{NAME} is already in {file.path} as it should be; nothing was changed."]
    if wish.print_only:
        return [f"This belongs into {file.path}; nothing was changed."]
    if backup is None:
        return [f"{file.path} was not there and was made; {client.title} reads it once it is installed."]
    return [f"{NAME} is now in {file.path}.", f"The file as it was before: {backup}"]


def _about_the_old(client: Client, document: Any, wish: Wish) -> list[str]:
    found = [(place, sorted(bridge.settings_of(environment_of(entry)))) for place, entry in client.old_entries(document)]
    said = []
    for place, names in found:
        said.append(f"{place} starts the earlier program, {OLD_PROGRAM}; it stays. Remove it when you no longer need it.")
        if names and wish.adopt:
            said.append(f"Its settings were taken over: {', '.join(names)}.")
        elif names:
            said.append(f"It sets {', '.join(names)}; to take them over add --adopt.")
    return [scrubbed(sentence) for sentence in said]


def _about_the_key(file: ConfigFile, entry: Mapping[str, object], environ: Mapping[str, str], home: Path) -> list[str]:
    env_file = home / ".config" / "imaged" / ".env"
    settings = environment_of(entry)
    if settings.get("IMAGED_BACKEND") == "offline":
        return []
    if settings.get("OPENAI_API_KEY"):
        said = f"The entry holds OPENAI_API_KEY; a key in {env_file} would serve every client and stand in one place."
        return [said] if file.is_private else [said, f"Other users can read {file.path}; run: chmod 600 {file.target}"]
    try:
        if bridge.with_env_file({"HOME": str(home)}).get("OPENAI_API_KEY"):
            return [f"The key is read from {env_file}."]
    except bridge.Trouble as exc:
        return [str(exc)]
    copied = "The key of this shell is not copied, and a client does not see it. " if environ.get("OPENAI_API_KEY") else ""
    return [
        f"No key is in the entry. {copied}Put the line OPENAI_API_KEY=… into {env_file}, where every client finds it, "
        f"and run: chmod 600 {env_file}"
    ]


def _by_hand(client: Client, file: ConfigFile, entry: Mapping[str, object], why: Exception) -> str:
    return f"{file.path} was left as it is: {why}. Add this by hand:\n{_shown(client, entry)}"


def _shown(client: Client, entry: Mapping[str, object]) -> str:
    """Secrets are shown as an ellipsis: whatever is not known to be none."""
    env = entry.get("env")
    harmless: dict[str, object] = dict(entry)
    if isinstance(env, dict):
        harmless["env"] = {name: value if not value or name.startswith(SHOWN_PREFIXES) else HIDDEN for name, value in env.items()}
    return scrubbed(client.shown(harmless).rstrip("\n"))
