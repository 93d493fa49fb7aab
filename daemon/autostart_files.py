"""What starts the daemon at login: a systemd user unit on Linux, a launchd agent on macOS, and the commands for either.

Rule: nothing is done here; `autostart` does it. Whatever path or value there is, the system reads back the very same.
"""

import os
import plistlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon.bridge import DAEMON_PROXIES, EXIT_ALREADY_RUNNING
from daemon.errors import BadConfiguration

UNIT = "imaged.service"
LABEL = "local.imaged"  # launchd wants a domain's name backwards; `local` belongs to nobody
MARK = "Written by imaged itself"

STOP_SECONDS_MAX = 45  # the daemon gives running jobs 30 s to end
CARRIED = ("IMAGED_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")  # with the proxies: what a daemon takes over and is no secret

# With any of these in its path systemd refuses a program, however it is quoted, or would put a variable in its place.
_NOT_IN_A_PROGRAM = re.compile(r"[\x00-\x1f\x7f\"'\\$]")
_ESCAPED = re.compile(r"[\x00-\x1f\x7f\"\\]")

Command = tuple[str, ...]


class Agent(NamedTuple):
    """`asks` ends with 0 while the system runs it (launchd: knows it). `link` is what installing adds beside the file.

    `install` belongs to a file that was just written, `remove` to one that is about to go, `forgets` to one that went;
    each pair is for when the daemon does not run, and for when it does.
    """

    path: Path
    text: str
    link: Path | None
    asks: Command
    install: tuple[tuple[Command, ...], tuple[Command, ...]]
    remove: tuple[tuple[Command, ...], tuple[Command, ...]]
    forgets: tuple[Command, ...]
    starts_anew: tuple[Command, ...]

    def installs(self, runs: bool) -> tuple[Command, ...]:
        return self.install[runs]

    def removes(self, runs: bool) -> tuple[Command, ...]:
        return self.remove[runs]


def agent_of(command: Sequence[str], environ: Mapping[str, str], home: Path, platform: str) -> Agent:
    """What runs `command` at login on this platform.

    Raises:
        BadConfiguration: it cannot be written down, or there is no way here.
    """
    carried = {name: environ[name] for name in CARRIED if environ.get(name, "").strip()}
    carried |= {name: environ[name] for name in proxies_of(environ, secret=False)}
    for word in (*command, *carried.values()):
        if not _is_text(word):
            raise BadConfiguration(f"{word!r} is not text in UTF-8, so it cannot be written down; rename it.")
    match platform:
        case "linux":
            return _systemd(command, carried, environ.get("XDG_CONFIG_HOME", ""), home)
        case "darwin":
            return _launchd(command, carried, home)
    raise BadConfiguration(f"On {platform!r} imaged cannot be started at login; on Linux and macOS it can.")


def proxies_of(environ: Mapping[str, str], *, secret: bool) -> Iterator[str]:
    """The names of those that may hold a password, or of those that do not."""
    for name, value in environ.items():
        if name.upper() in DAEMON_PROXIES and value.strip() and ("@" in value) is secret:
            yield name


def _is_text(word: str) -> bool:
    """Neither half of a pair nor one of the code points that stand for no character: systemd skips a line with one."""
    codes = map(ord, word)
    return not any(0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE for code in codes)


def _systemd(command: Sequence[str], carried: Mapping[str, str], config_home: str, home: Path) -> Agent:
    folder = (Path(config_home) if config_home.startswith("/") else home / ".config") / "systemd" / "user"
    systemctl = ("systemctl", "--user")
    reload, enable = (*systemctl, "daemon-reload"), (*systemctl, "enable")
    stop = (*systemctl, "disable", "--now", UNIT)
    return Agent(
        path=folder / UNIT,
        text=_unit(command, carried),
        link=folder / "default.target.wants" / UNIT,
        asks=(*systemctl, "is-active", "--quiet", UNIT),
        install=((reload, (*enable, "--now", UNIT)), (reload, (*enable, UNIT))),
        remove=((stop,), (stop,)),
        forgets=(reload,),
        starts_anew=((*systemctl, "restart", UNIT),),
    )


def _unit(command: Sequence[str], carried: Mapping[str, str]) -> str:
    """The hardening needs no mount namespace: those would hide folders in which the user wants pictures."""
    environment = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in carried.items())
    return f"""\
# {MARK}, which also replaces it (imaged setup --service); what is yours belongs into {UNIT}.d/*.conf.
# No key belongs here: keys come from the clients, or from ~/.config/imaged/.env.

[Unit]
Description=imaged, which draws pictures for MCP clients
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
# In its single-file form the daemon is a child of what unpacked it.
NotifyAccess=all
ExecStart={_command_line(command)}
{environment}Restart=on-failure
RestartSec=5
# Another daemon serves this home already, so there is nothing to do.
SuccessExitStatus={EXIT_ALREADY_RUNNING}
RestartPreventExitStatus={EXIT_ALREADY_RUNNING}
# A long log is read before the doors open.
TimeoutStartSec=infinity
# Running jobs get a moment to end; asked twice, the daemon would leave at once.
TimeoutStopSec={STOP_SECONDS_MAX}
KillMode=mixed
UMask=0077
LimitCORE=0
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def _command_line(command: Sequence[str]) -> str:
    if _NOT_IN_A_PROGRAM.search(command[0]):
        command = ("/bin/sh", "-c", 'exec "$0" "$@"', *command)
    program, *arguments = command
    return " ".join([_quoted(program), *(_quoted(argument).replace("$", "$$") for argument in arguments)])


def _quoted(word: str) -> str:
    """As systemd reads it back; a dollar sign means something in arguments only."""
    escaped = _ESCAPED.sub(lambda found: f"\\x{ord(found[0]):02x}", word)
    return '"' + escaped.replace("%", "%%") + '"'


def _launchd(command: Sequence[str], carried: Mapping[str, str], home: Path) -> Agent:
    path = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    domain = f"gui/{os.geteuid()}"
    start, stop = ("launchctl", "bootstrap", domain, str(path)), ("launchctl", "bootout", f"{domain}/{LABEL}")
    return Agent(
        path=path,
        text=_plist(command, carried),
        link=None,
        asks=("launchctl", "print", f"{domain}/{LABEL}"),
        install=((start,), ()),
        remove=((), (stop,)),
        forgets=(),
        starts_anew=(stop, start),
    )


def _plist(command: Sequence[str], carried: Mapping[str, str]) -> str:
    wanted: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        # Not `SuccessfulExit`: launchd takes every status but 0 for a failure, and while another daemon serves this home
        # ours ends with its own. It would be started again every ten seconds.
        "KeepAlive": {"Crashed": True},
        "ProcessType": "Background",
        "ExitTimeOut": STOP_SECONDS_MAX,
        "Umask": 0o077,
    }
    if carried:
        wanted["EnvironmentVariables"] = dict(carried)
    try:
        data = plistlib.dumps(wanted, sort_keys=False)
    except ValueError:
        data = b""
    if not data or plistlib.loads(data) != wanted:  # a carriage return comes back as another character
        raise BadConfiguration(f"{' '.join(command)!r} has a character that no property list can hold; rename it.")
    first, rest = data.decode().split("\n", 1)
    said = f"{MARK}, which also replaces it. No key belongs here: keys come from the clients, or from ~/.config/imaged/.env."
    return f"{first}\n<!-- {said} -->\n{rest}"
