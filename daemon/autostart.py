"""Lets the system start the daemon at every login: `imaged setup --service`.

Rule: the file is ours alone and says so; one that does not is left as it is. No key ever stands in it. What the system's
own command cannot do, because there is none or it fails, is left to the user, who is told which commands they are.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon.autostart_files import MARK, Agent, Command, agent_of, proxies_of
from daemon.bridge import settings_of
from daemon.errors import BadConfiguration
from daemon.setup import Outcome
from daemon.setup_files import ConfigFile

COMMAND_SECONDS_MAX = 60.0  # starting waits until the doors are open, stopping for the jobs that run


class Wish(NamedTuple):
    remove: bool = False
    print_only: bool = False


class Ran(NamedTuple):
    """How a command ended; `status` is None if it is not there or did not end in time."""

    status: int | None
    said: str = ""


Run = Callable[[Command, Mapping[str, str]], Ran]


def setup(
    wish: Wish,
    *,
    executable: Sequence[str],
    environ: Mapping[str, str],
    home: Path,
    run: Run | None = None,
    platform: str = sys.platform,
) -> Outcome:
    """Installs, shows or removes what runs `executable serve` from every login on. Blocking.

    `environ` is the user's, with what the `.env` file adds. `run` runs the system's commands; left out, it does.

    Raises:
        BadConfiguration: nothing was changed, and why.
    """
    _insist_on_own_login(environ, home)
    if not Path(executable[0]).is_absolute():
        raise BadConfiguration(f"{executable[0]!r} is not an absolute path, and a login has no working directory; give one.")
    agent = agent_of([*executable, "serve"], environ, home, platform)
    file = ConfigFile(agent.path)
    present = file.text()
    if file.exists and MARK not in present:
        raise BadConfiguration(f"{agent.path} was not written by imaged and was left as it is; move it away and try again.")
    system = _System(run or run_command, environ)
    if wish.remove:
        return _remove(agent, file, system, print_only=wish.print_only)
    if wish.print_only:
        return _show(agent, present)
    if present != agent.text:
        backup = file.replace(agent.text)
        if backup:  # of what we wrote ourselves, and can write again
            backup.unlink()
    said = [*_installed(agent, file, present, system), *_about_proxies(environ)]
    said.append("No key stands in it: keys come from the clients, or from ~/.config/imaged/.env.")
    return Outcome(agent.path, present != agent.text, None, "", tuple(said))


def run_command(command: Command, environ: Mapping[str, str]) -> Ran:
    """Runs it for at most COMMAND_SECONDS_MAX, without the libraries that came with us. Blocking."""
    clean = dict(environ)
    if getattr(sys, "frozen", False):
        clean.pop("LD_LIBRARY_PATH", None)
        if "LD_LIBRARY_PATH_ORIG" in environ:
            clean["LD_LIBRARY_PATH"] = environ["LD_LIBRARY_PATH_ORIG"]
    try:
        done = subprocess.run(
            command,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(None, f"it did not end within {COMMAND_SECONDS_MAX:.0f} s")
    except OSError as exc:
        return Ran(None, f"{command[0]}: {exc.strerror}")
    lines = (line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines())
    return Ran(done.returncode, " / ".join(line for line in lines if line) or f"status {done.returncode}")


class _System:
    """The system's own commands, run until one fails."""

    def __init__(self, run: Run, environ: Mapping[str, str]) -> None:
        self._run = run
        # Without this variable, which `su` and MCP clients drop, systemctl does not find the user's own systemd.
        complete = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **environ}
        self._environ = {name: value for name, value in complete.items() if name not in settings_of(environ)}  # no key

    def runs(self, agent: Agent) -> bool:
        """Whether the daemon was started by it and is there."""
        return self._run(agent.asks, self._environ).status == 0

    def do(self, commands: Sequence[Command]) -> tuple[list[str], bool]:
        """What was done, in sentences, and whether it was all. Where one fails, it and the rest are for the user."""
        said = []
        for number, command in enumerate(commands):
            status, why = self._run(command, self._environ)
            if status != 0:
                said.append(f"`{_line(command)}` failed ({why}). To finish, run: {_lines(commands[number:])}")
                return said, False
            said.append(f"Done: {_line(command)}")
        return said, True


def _insist_on_own_login(environ: Mapping[str, str], home: Path) -> None:
    if os.geteuid() == 0 and environ.get("SUDO_UID", "0") != "0":
        raise BadConfiguration("As root this would start a daemon when root logs in, not when you do; run it without sudo.")
    if home.exists() and home.stat().st_uid != os.geteuid():
        raise BadConfiguration(f"{home} does not belong to you, so nothing was changed in it; run this as its owner.")


def _show(agent: Agent, present: str) -> Outcome:
    where = "is already so" if present == agent.text else "would hold this"
    sentence = f"{agent.path} {where}; nothing was changed. To install it also runs: {_lines(agent.installs(False))}"
    return Outcome(agent.path, False, None, agent.text.rstrip("\n"), (sentence,))


def _installed(agent: Agent, file: ConfigFile, present: str, system: _System) -> list[str]:
    changed = present != agent.text
    done = "is already as it should be" if not changed else "was replaced" if file.exists else "was made"
    ran = system.runs(agent)
    told, all_done = system.do(agent.installs(ran))
    said = [f"{agent.path} {done}.", *told]
    if ran and changed:
        said.append(f"The daemon that runs goes on as it was started; to start it anew run: {_lines(agent.starts_anew)}")
    elif all_done and system.runs(agent):
        said.append("It runs, and from now on it is started at every login.")
    elif all_done:
        said.append(
            "It is started at every login. Until the next one, another daemon that a client has started runs in its place; "
            f"to change over now, run: imaged stop; {_lines(agent.starts_anew)}"
        )
    return said


def _about_proxies(environ: Mapping[str, str]) -> list[str]:
    secret = sorted(set(proxies_of(environ, secret=True)))
    if not secret:
        return []
    return [
        f"{', '.join(secret)} may hold a password and was not written down; the daemon of a login does without it. To give it "
        "one, set it for the whole login: in ~/.config/environment.d on Linux, with launchctl setenv on macOS."
    ]


def _remove(agent: Agent, file: ConfigFile, system: _System, *, print_only: bool) -> Outcome:
    if not file.exists:
        return Outcome(agent.path, False, None, "", (f"{agent.path} is not there; nothing was changed.",))
    if print_only:
        return Outcome(agent.path, False, None, "", (f"{agent.path} would be removed; nothing was changed.",))
    before = agent.removes(system.runs(agent))
    said, all_done = system.do(before)
    if not all_done:  # those commands want the file, which is about to go
        said = [said[-1].partition(" To finish")[0] + " A daemon that runs goes on; to end it run: imaged stop"]
    try:
        agent.path.unlink()
        if agent.link is not None and agent.link.is_symlink():
            agent.link.unlink()
    except OSError as exc:
        raise BadConfiguration(f"{exc.filename} cannot be removed: {exc.strerror}. Remove it by hand.") from exc
    said.append(f"{agent.path} was removed. Clients still start the daemon when they need it.")
    if all_done:
        said += system.do(agent.forgets)[0]
    return Outcome(agent.path, True, None, "", tuple(said))


def _line(command: Command) -> str:
    return shlex.join(command)


def _lines(commands: Sequence[Command]) -> str:
    return "; ".join(_line(command) for command in commands) or "nothing"
