"""What starts the daemon at login is written for the system to read, is ours alone, and never holds a key."""

import os
import plistlib
import re
import shlex
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import autostart, bridge, readiness
from daemon.autostart import Ran, Wish
from daemon.autostart_files import LABEL, Agent, Command, agent_of
from daemon.ending import SHUTDOWN_SECONDS_MAX
from daemon.errors import BadConfiguration
from daemon.setup import Outcome

KEY = "sk-proj-canary0123456789abcdefghij"
PROGRAM = "/opt/imaged/imaged"
ODD = '/opt/with space/100%n/$HOME ${HOME}/"quoted"/it\'s/back\\slash/絵\n/imaged'
RELOAD = "systemctl --user daemon-reload"
ENABLE = "systemctl --user enable --now imaged.service"
DISABLE = "systemctl --user disable --now imaged.service"


class System:
    """Stands for systemctl and launchctl: what was run, whether the daemon runs, and which commands fail with what."""

    def __init__(self, home: Path, platform: str, *, another_serves: bool = False) -> None:
        self.home, self.platform = home, platform
        self.another_serves = another_serves
        self.runs = False
        self.fails: dict[str, Ran] = {}
        self.ran: list[str] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, command: Command, environ: Mapping[str, str]) -> Ran:
        self.environments.append(environ)
        if "is-active" in command or "print" in command:
            return Ran(0 if self.runs else 3)
        self.ran.append(shlex.join(command))
        for word, ran in self.fails.items():
            if word in command:
                return ran
        if "--now" in command or "bootstrap" in command or "bootout" in command:
            self.runs = ("enable" in command or "bootstrap" in command) and not self.another_serves
        return Ran(0)

    def setup(self, *, remove: bool = False, print_only: bool = False, program: str = PROGRAM, **environ: str) -> Outcome:
        found = autostart.setup(
            Wish(remove=remove, print_only=print_only),
            executable=[program],
            environ={"HOME": str(self.home), "OPENAI_API_KEY": KEY, **environ},
            home=self.home,
            run=self,
            platform=self.platform,
        )
        assert KEY not in found.text
        return found

    def commands(self) -> list[str]:
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def linux(tmp_path: Path) -> System:
    return System(tmp_path, "linux")


@pytest.fixture
def mac(tmp_path: Path) -> System:
    return System(tmp_path, "darwin")


def agent(program: str, platform: str = "linux", **environ: str) -> Agent:
    return agent_of([program, "serve"], environ, Path("/home/u"), platform)


def directives(unit: str) -> dict[str, list[str]]:
    """What a unit sets, each name with all its values."""
    found: dict[str, list[str]] = {}
    for line in re.split("[\\r\\n]", unit):
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def read_as_systemd(value: str) -> list[str]:
    """The words of a setting, as systemd.syntax(7) has them: double quotes, \\xNN within them, and %% for a percent sign."""
    words = re.findall(r'"([^"]*)"(?: |$)', value)
    assert '"' + '" "'.join(words) + '"' == value
    read = [re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), word) for word in words]
    for word in words:
        assert "%" not in word.replace("%%", "") and re.sub(r"\\x[0-9a-f]{2}", "", word).count("\\") == 0
        assert word.isprintable() or any(c > "\x7f" for c in word)
    return [word.replace("%%", "%") for word in read]


def started(unit: str) -> list[str]:
    """The program and arguments that systemd.service(5) makes of ExecStart, with the rules of the program's path."""
    (line,) = directives(unit)["ExecStart"]
    program, *arguments = read_as_systemd(line)
    # What systemd refuses in a path, and what it would take for a variable.
    assert program.startswith("/") and not re.search(r"[\x00-\x1f\x7f\"'\\$]", program)
    for argument in arguments:
        assert "$" not in argument.replace("$$", "")
    arguments = [argument.replace("$$", "$") for argument in arguments]
    if program == "/bin/sh":
        assert arguments[:2] == ["-c", 'exec "$0" "$@"']
        return arguments[2:]
    return [program, *arguments]


def test_installing_writes_the_unit_for_the_user_alone_and_says_what_was_run(linux: System, tmp_path: Path) -> None:
    found = linux.setup()
    assert found.path == tmp_path / ".config/systemd/user/imaged.service" and found.changed and found.backup is None
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
    assert linux.commands() == [RELOAD, ENABLE]
    assert f"Done: {RELOAD}" in found.text and f"Done: {ENABLE}" in found.text and "started at every login" in found.text
    assert KEY not in found.path.read_text("utf-8") and "~/.config/imaged/.env" in found.path.read_text("utf-8")
    assert not any(KEY in environ.values() for environ in linux.environments)
    # Without this systemctl does not find the user's own systemd, and many who start us drop it.
    assert all(environ["XDG_RUNTIME_DIR"] == f"/run/user/{os.geteuid()}" for environ in linux.environments)


def test_the_unit_says_ready_stops_gently_and_takes_another_daemon_for_success(linux: System) -> None:
    unit = directives(linux.setup().path.read_text("utf-8"))
    assert unit["Type"] == ["notify"] and unit["WantedBy"] == ["default.target"] and unit["Restart"] == ["on-failure"]
    already = [str(bridge.EXIT_ALREADY_RUNNING)]
    assert unit["SuccessExitStatus"] == unit["RestartPreventExitStatus"] == already == ["75"]
    assert float(unit["TimeoutStopSec"][0]) > SHUTDOWN_SECONDS_MAX
    assert unit["KillMode"] == ["mixed"] and unit["TimeoutStartSec"] == ["infinity"]
    assert unit["NoNewPrivileges"] == ["yes"] and {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(
        unit["RestrictAddressFamilies"][0].split()
    )
    hides_folders = {"ProtectHome", "ProtectSystem", "PrivateTmp", "ReadOnlyPaths", "InaccessiblePaths", "PrivateUsers"}
    assert not hides_folders & set(unit)


def test_the_second_time_the_file_is_left_and_the_commands_do_no_harm(linux: System, mac: System) -> None:
    for system in (linux, mac):
        path = system.setup().path
        before = path.stat()
        system.commands()
        again = system.setup()
        assert not again.changed and "already as it should be" in again.text
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert [path.name for path in path.parent.iterdir()] == [path.name]
    assert linux.commands() == [RELOAD, "systemctl --user enable imaged.service"] and not mac.commands()


def test_a_new_path_replaces_the_file_without_a_copy_and_leaves_the_running_daemon(linux: System, mac: System) -> None:
    for system, anew in ((linux, "systemctl --user restart imaged.service"), (mac, "launchctl bootout")):
        path = system.setup().path
        system.commands()
        found = system.setup(program="/new/imaged")
        assert found.changed and "was replaced" in found.text and "/new/imaged" in path.read_text("utf-8")
        assert "goes on as it was started" in found.text and anew in found.text
        assert not [command for command in system.commands() if "restart" in command or "bootout" in command]
        assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_print_shows_the_whole_file_and_the_commands_and_does_nothing(linux: System, mac: System, tmp_path: Path) -> None:
    for system, command in ((linux, ENABLE), (mac, "launchctl bootstrap")):
        found = system.setup(print_only=True)
        assert not found.changed and command in found.text and str(found.path) in found.text
        assert not list(tmp_path.iterdir()) and not system.ran
    assert started(linux.setup(print_only=True).entry) == [PROGRAM, "serve"]
    assert plistlib.loads(mac.setup(print_only=True).entry.encode())["Label"] == LABEL
    linux.setup()
    linux.commands()
    assert "is already so" in linux.setup(print_only=True).text
    assert "would be removed" in linux.setup(remove=True, print_only=True).text
    assert not linux.ran and linux.setup(print_only=True).path.exists()


def test_removing_stops_it_and_leaves_nothing_behind(linux: System, mac: System) -> None:
    for system in (linux, mac):
        path = system.setup().path
        system.commands()
        found = system.setup(remove=True)
        assert found.changed and not path.exists() and "was removed" in found.text and not system.runs
        assert not system.setup(remove=True).changed
    assert linux.commands() == [DISABLE, RELOAD]
    assert mac.commands() == [f"launchctl bootout gui/{os.geteuid()}/{LABEL}"]


@pytest.mark.parametrize("why", [Ran(None, "systemctl: No such file or directory"), Ran(1, "Failed to connect to bus")])
def test_where_systemd_cannot_be_asked_the_file_is_written_and_the_commands_are_told(linux: System, why: Ran) -> None:
    linux.fails = {"systemctl": why}
    found = linux.setup()
    assert found.changed and found.path.exists() and linux.commands() == [RELOAD]
    assert f"failed ({why.said})" in found.text and f"run: {RELOAD}; {ENABLE}" in found.text
    assert "Done" not in found.text and "started at every login" not in found.text
    link = found.path.parent / "default.target.wants" / "imaged.service"
    link.parent.mkdir()
    link.symlink_to(found.path)  # as the user did by hand since
    taken = linux.setup(remove=True)
    assert not found.path.exists() and not link.is_symlink()
    assert why.said in taken.text and "imaged stop" in taken.text and linux.commands() == [DISABLE]


def test_only_what_is_left_to_do_is_told_when_the_second_command_fails(linux: System) -> None:
    linux.fails = {"enable": Ran(1, "Access denied")}
    found = linux.setup()
    assert f"Done: {RELOAD}" in found.text and f"`{ENABLE}` failed (Access denied). To finish, run: {ENABLE}" in found.text


def test_a_daemon_that_a_client_started_goes_on_and_it_is_said_how_to_change_over(tmp_path: Path) -> None:
    system = System(tmp_path, "linux", another_serves=True)
    assert "imaged stop; systemctl --user restart imaged.service" in system.setup().text


def test_a_file_that_is_not_ours_is_neither_replaced_nor_removed(linux: System, mac: System) -> None:
    for system in (linux, mac):
        path = system.setup(print_only=True).path
        path.parent.mkdir(parents=True)
        path.write_text("[Service]\nExecStart=/usr/bin/mine\n", "utf-8")
        for remove in (False, True):
            with pytest.raises(BadConfiguration, match="was not written by imaged and was left as it is; move it away"):
                system.setup(remove=remove)
        path.write_bytes(b"")
        with pytest.raises(BadConfiguration, match="not written by imaged"):
            system.setup()
        assert not path.read_bytes() and not system.ran


def test_nothing_is_installed_or_removed_for_somebody_else(
    linux: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = linux.setup(print_only=True).path
    somebody = tmp_path.stat().st_uid + 1
    for installed in (False, True):
        if installed:
            linux.setup()
            linux.commands()
        before = path.read_bytes() if installed else None
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: 0)
            with pytest.raises(BadConfiguration, match="run it without sudo"):
                linux.setup(program="/new/imaged", SUDO_UID="1000")
            patch.setattr(os, "geteuid", lambda: somebody)
            for remove in (False, True):
                with pytest.raises(BadConfiguration, match="does not belong to you"):
                    linux.setup(program="/new/imaged", remove=remove)
        assert (path.read_bytes() if path.exists() else None) == before and not linux.ran


def test_what_cannot_be_started_at_login_is_refused(linux: System, mac: System, tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="'imaged' is not an absolute path"):
        linux.setup(program="imaged")
    for character in "\udcff\ufffe\ufdd0\U0001ffff":
        with pytest.raises(BadConfiguration, match="not text in UTF-8"):
            linux.setup(program=f"/opt/{character}/imaged")
    for character in "\x01\r":
        with pytest.raises(BadConfiguration, match="no property list can hold"):
            mac.setup(program=f"/opt/{character}/imaged")
    with pytest.raises(BadConfiguration, match=r"On 'win32'.*Linux and macOS"):
        System(tmp_path, "win32").setup()
    assert not list(tmp_path.iterdir())


def test_the_configuration_folder_may_be_elsewhere(linux: System, tmp_path: Path) -> None:
    assert linux.setup(XDG_CONFIG_HOME=f"{tmp_path}/c").path == tmp_path / "c/systemd/user/imaged.service"
    assert linux.setup(print_only=True, XDG_CONFIG_HOME="not/absolute").path == tmp_path / ".config/systemd/user/imaged.service"


def test_places_and_proxies_of_the_user_reach_the_daemon_but_no_password_does(linux: System, mac: System) -> None:
    told = {
        "IMAGED_HOME": "/data/100% 絵",
        "https_proxy": "http://proxy:3128",
        "HTTP_PROXY": "http://me:secret-word@proxy:3128",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "IMAGED_BACKEND": "offline",
    }
    carried = {name: told[name] for name in ("IMAGED_HOME", "SSL_CERT_FILE", "https_proxy")}
    found = linux.setup(**told)
    text = found.path.read_text("utf-8")
    environment = [word for value in directives(text)["Environment"] for word in read_as_systemd(value)]
    assert environment == [f"{name}={value}" for name, value in carried.items()]
    assert "HTTP_PROXY may hold a password" in found.text and "secret-word" not in text + found.text
    plist = plistlib.loads(mac.setup(**told).path.read_bytes())
    assert plist["EnvironmentVariables"] == carried


def test_the_launchd_agent_starts_at_login_in_the_background_and_again_only_after_a_crash(mac: System, tmp_path: Path) -> None:
    found = mac.setup(program=ODD)
    assert found.path == tmp_path / "Library/LaunchAgents" / f"{LABEL}.plist"
    assert mac.commands() == [shlex.join(["launchctl", "bootstrap", f"gui/{os.geteuid()}", str(found.path)])]
    plist: dict[str, Any] = plistlib.loads(found.path.read_bytes())
    assert plist.pop("ExitTimeOut") > SHUTDOWN_SECONDS_MAX
    assert plist == {
        "Label": LABEL,
        "ProgramArguments": [ODD, "serve"],
        "RunAtLoad": True,
        "KeepAlive": {"Crashed": True},
        "ProcessType": "Background",
        "Umask": 0o077,
    }


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (PROGRAM, '"/opt/imaged/imaged" "serve"'),
        ("/home/絵 1/imaged", '"/home/絵 1/imaged" "serve"'),
        ("/a%b/imaged", '"/a%%b/imaged" "serve"'),
        ("/a$b/imaged", r'"/bin/sh" "-c" "exec \x22$$0\x22 \x22$$@\x22" "/a$$b/imaged" "serve"'),
        ('/a"b/imaged', r'"/bin/sh" "-c" "exec \x22$$0\x22 \x22$$@\x22" "/a\x22b/imaged" "serve"'),
        ("/a\\b/imaged", r'"/bin/sh" "-c" "exec \x22$$0\x22 \x22$$@\x22" "/a\x5cb/imaged" "serve"'),
        ("/a'b/imaged", r'"/bin/sh" "-c" "exec \x22$$0\x22 \x22$$@\x22" "/a' + "'" + r'b/imaged" "serve"'),
    ],
)
def test_the_line_that_starts_it_is_spelt_as_systemd_reads_it(program: str, line: str) -> None:
    assert directives(agent(program).text)["ExecStart"] == [line]


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from(" %$\"'\\{}#;@:-!+~\n\r\t\x7f絵\u2028"),
            st.characters(exclude_characters="\0", exclude_categories=("Cn", "Cs")),
        ),
        max_size=12,
    )
)
def test_whatever_the_path_is_systemd_starts_that_very_program(name: str) -> None:
    assert started(agent(f"/opt/{name}/imaged").text) == [f"/opt/{name}/imaged", "serve"]
    (value,) = directives(agent(PROGRAM, IMAGED_HOME=f"/h/{name}").text)["Environment"]
    assert read_as_systemd(value) == [f"IMAGED_HOME=/h/{name}"]


def test_a_command_is_run_with_what_it_says_and_without_our_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ("/bin/sh", "-c", 'echo " a $LD_LIBRARY_PATH"; echo; echo b >&2; exit 3')
    environ = {"LD_LIBRARY_PATH": "/ours", "LD_LIBRARY_PATH_ORIG": "/theirs"}
    assert autostart.run_command(shown, environ) == Ran(3, "a /ours / b")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert autostart.run_command(shown, environ) == Ran(3, "a /theirs / b")
    assert autostart.run_command(shown, {"LD_LIBRARY_PATH": "/ours"}) == Ran(3, "a / b")
    assert autostart.run_command(("/bin/sh", "-c", "exit 0"), {}) == Ran(0, "status 0")
    missing = autostart.run_command(("/nowhere/systemctl",), {})
    assert missing.status is None and "No such file" in missing.said
    monkeypatch.setattr(autostart, "COMMAND_SECONDS_MAX", 0.1)
    slow = autostart.run_command(("/bin/sh", "-c", "exec sleep 60"), {"PATH": "/usr/bin:/bin"})
    assert slow.status is None and "did not end within" in slow.said


@pytest.mark.parametrize("abstract", [False, True] if sys.platform == "linux" else [False])
def test_whoever_waits_for_the_daemon_is_told_that_it_is_ready(tmp_path: Path, abstract: bool) -> None:
    path = f"@imaged-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waits:
        waits.bind(path.replace("@", "\0", 1) if abstract else path)
        waits.settimeout(10)
        for state in (readiness.READY, readiness.STOPPING, readiness.SERVED_BY_ANOTHER):
            assert readiness.notify({"NOTIFY_SOCKET": path}, state)
            assert waits.recv(1000) == state.encode()
    assert readiness.READY == "READY=1" and readiness.STOPPING == "STOPPING=1"
    assert readiness.SERVED_BY_ANOTHER.splitlines()[0] == readiness.READY


def test_a_daemon_that_nobody_waits_for_tells_nobody_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    stranger.bind("relative")
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": "relative"}):
        assert not readiness.notify(environ, readiness.READY)
    assert not readiness.notify({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, readiness.READY)
    assert not readiness.notify({"NOTIFY_SOCKET": "/" + "x" * 500}, readiness.READY)
    stranger.close()
