"""How long a client waits for its first answer, and what that takes: the program's forms and other MCP servers, side by side.

    .venv/bin/python tests/benchmarks/start.py [--runs N] [--frozen PATH] [--onefile PATH] [--other LINE] [-- COMMAND ...]

A run begins before the process is made and ends with the last byte of the answer to `initialize`. *Warm*: a daemon of the
same form is there and has answered before. *Cold*: none runs. What a server puts into a session of its own is its daemon; it
is ended after each run unless the variant is warm.

Rule: all that is started bears its variant's private IMAGED_HOME in its environment; by this it is found, measured and ended,
and nothing else is. The variants take turns, and another one begins each round, so that a noisy neighbour hits all of them
alike. The first round fills caches and homes, starts the warm daemons, and does not count.
"""

import argparse
import json
import os
import platform
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import isnan, nan
from pathlib import Path
from statistics import median

from daemon import bridge, client
from daemon.config import Places
from daemon.errors import NotRunning

RUNS = 15  # with fewer, a median still follows single outliers
ANSWER_SECONDS_MAX = 60.0  # a cold daemon takes 1-2 s, a package runner that first has to fetch something longer
LEAVE_SECONDS_MAX = 2.0  # the official SDKs wait as long after closing stdin, and after each signal
END_SECONDS_MAX = 40.0  # a daemon that is asked to end gives its pictures 30 s
LOOK_SECONDS = 0.005
CLIENT_NAMES = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")  # all that the official SDKs hand on
CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}}
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": CLIENT}
HAS_PROC = Path("/proc/self/environ").exists()
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """Ends the benchmark with its sentence: what is missing could no longer be compared."""


@dataclass(frozen=True)
class Variant:
    name: str
    command: tuple[str, ...]
    directory: Path  # its own, absolute
    warm: bool = False
    is_imaged: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """What a client gives, and the private home. Strangers keep the real HOME: package runners have their caches there."""
        given = {name: os.environ[name] for name in CLIENT_NAMES if name in os.environ}
        own = {"HOME": f"{self.directory}/user"} if self.is_imaged else {}
        return {**given, **own, "IMAGED_HOME": f"{self.directory}/imaged"}

    @property
    def mark(self) -> bytes:
        return f"IMAGED_HOME={self.directory}/".encode()


@dataclass(frozen=True)
class Use:
    """What the processes of one side took; not a number where this system does not tell."""

    cpu_seconds: float
    rss_bytes: float


@dataclass(frozen=True)
class Run:
    """From spawn to answer. `daemon` is None if there is none."""

    wall_seconds: float
    front: Use
    daemon: Use | None

    @property
    def cpu_seconds(self) -> float:
        """Of both sides: what the machine had to do for the answer."""
        return self.front.cpu_seconds + (self.daemon.cpu_seconds if self.daemon else 0.0)


def main(arguments: Sequence[str]) -> int:
    options, strangers = read_arguments(arguments)
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)  # every one of them leaves nothing running
    try:
        # In /tmp, whatever TMPDIR says: the name of a socket has to fit behind it.
        with tempfile.TemporaryDirectory(prefix="start-", dir="/tmp", ignore_cleanup_errors=True) as root:
            print(figures(list(make_variants(options, strangers, Path(root).resolve())), options.runs))
    except Failed as exc:
        print(f"start.py: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[list[str]]]:
    """The options, and the commands of other servers."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    what, _, usage = (__doc__ or "").split("\n")[:3]
    parser = argparse.ArgumentParser(description=what, usage=usage.strip())
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"counted runs of each variant; {RUNS} unless told")
    parser.add_argument("--frozen", type=Path, metavar="PATH", help="the executable in the folder that build.spec makes")
    parser.add_argument("--onefile", type=Path, metavar="PATH", help="the single file that build.spec makes")
    parser.add_argument("--other", action="append", default=[], metavar="LINE", help="another MCP server, quoted; repeatable")
    options = parser.parse_args(arguments[:end])
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}; give 1 or more, and {RUNS} or more for figures to keep")
    try:
        strangers = [shlex.split(line) for line in options.other] + [list(arguments[end + 1 :])] * ("--" in arguments)
    except ValueError as exc:
        parser.error(f"--other cannot be read as a shell reads it: {exc}; give one quoted command line")
    if not all(strangers):
        parser.error("a command line is empty; give one that starts an MCP server on stdio, such as --other 'node server.js'")
    return options, strangers


def make_variants(options: argparse.Namespace, strangers: Sequence[Sequence[str]], root: Path) -> Iterator[Variant]:
    forms = {"venv": Path(sys.executable).with_name("imaged"), "folder": options.frozen, "single file": options.onefile}
    for form, path in forms.items():
        if path is None:
            continue
        if not path.is_file() or not os.access(path, os.X_OK):
            raise Failed(f"the {form} form, {path}, is not an executable file; install or build it first, or name another one.")
        for warm in (True, False):
            state = "warm" if warm else "cold"
            yield Variant(f"{form}, {state}", (str(path.absolute()), "mcp"), root / f"{form[0]}-{state}", warm)
    for number, command in enumerate(strangers, 1):
        words = " ".join(word.rsplit("/", 1)[-1] for word in command)
        yield Variant(words if len(words) <= 40 else words[:39] + "…", tuple(command), root / f"{number}", is_imaged=False)


def figures(variants: Sequence[Variant], count: int) -> str:
    """What is printed. Nothing is left running, whatever happens."""
    before = os.getloadavg()[0]
    try:
        runs = take_turns(variants, count)
    finally:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)  # bounded by END_SECONDS_MAX
        for variant in variants:
            end_everything(variant)
    text = f"{machine()}; load average {before:.1f} before, {os.getloadavg()[0]:.1f} after.\n\n{table(variants, runs)}"
    return text if count >= RUNS else f"{text}\n\nA first look: figures to keep want --runs {RUNS} or more."


def take_turns(variants: Sequence[Variant], count: int) -> list[list[Run]]:
    """The counted runs of each variant."""
    runs: list[list[Run]] = [[] for _ in variants]
    for number in range(count + 1):
        if sys.stderr.isatty():
            print(f"\rround {number} of {count} ", end="\n" if number == count else "", file=sys.stderr, flush=True)
        for turn in range(len(variants)):
            place = (turn + number) % len(variants)
            variant, kept = variants[place], living(variants[place])
            if number and bool(kept) != variant.warm:
                raise Failed(f"{variant.name}: a daemon should {'' if variant.warm else 'not '}be running before a run.")
            run = measure(variant, kept)
            if not variant.warm:
                end_everything(variant)
            elif number and living(variant).keys() != kept.keys():
                raise Failed(f"{variant.name}: the daemon that answered is not the one that was there.")
            if number:
                runs[place].append(run)
    return runs


def measure(variant: Variant, kept: Mapping[int, int]) -> Run:
    """One run, after which the front is gone. `kept` are the processes of the variant that are there before it."""
    spent = {pid: cpu_seconds(pid) for pid in kept if HAS_PROC}
    with Front(variant) as front:
        wall_seconds = front.wait_for_answer() - front.begun_at
        found = living(variant)
        far = {pid for pid, session in found.items() if session != front.pid}
        front_use, daemon_use = use_of({front.pid, *found} - far, {}), use_of(far, spent)
    if not HAS_PROC:
        front_use = Use(front.life_cpu_seconds, nan)  # with what leaving took: the system tells no less
    return Run(wall_seconds, front_use, daemon_use if far else None)


class Front:
    """The process that a client starts. After the `with` it is gone, as are the others of its session."""

    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self.life_cpu_seconds = nan  # known when it is gone
        (variant.directory / "user").mkdir(parents=True, exist_ok=True)
        with (variant.directory / "stderr").open("wb") as stderr:
            self.begun_at = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    variant.command,
                    env=variant.environment,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C is ours to answer
                )
            except OSError as exc:
                raise Failed(f"{variant.name}: {variant.command[0]} cannot be started: {exc.strerror}.") from exc
        self.pid = self._process.pid

    def __enter__(self) -> "Front":
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        for number in (0, signal.SIGTERM, signal.SIGKILL):  # in a client's order; 0 is no signal
            with suppress(PermissionError):  # what macOS says of a group that has ended already
                os.killpg(self.pid, number)
            if wait_until(self._has_ended, LEAVE_SECONDS_MAX):
                break
        left = [pid for pid, session in living(self._variant).items() if session == self.pid]  # by a package runner, say
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _has_ended(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.life_cpu_seconds = usage.ru_utime + usage.ru_stime
        return pid != 0

    def wait_for_answer(self) -> float:
        """The moment at which the answer to `initialize` was there whole.

        Raises:
            Failed: it is an error, or none came; with what the server said last on stderr.
        """
        assert self._process.stdin and self._process.stdout
        give_up_at = time.monotonic() + ANSWER_SECONDS_MAX
        received = b""
        with suppress(BrokenPipeError):  # then it has ended, which reading tells
            self._process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        while select.select([self._process.stdout], [], [], max(0.0, give_up_at - time.monotonic()))[0]:
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            arrived_at = time.monotonic()
            if not piece:
                raise Failed(f"{self._variant.name}: it ended without an answer.{last_words(self._variant)}")
            *lines, received = (received + piece).split(b"\n")
            for line in lines:
                if _answers(self._variant, line):
                    return arrived_at
        raise Failed(f"{self._variant.name}: no answer within {ANSWER_SECONDS_MAX:.0f} s.{last_words(self._variant)}")


def _answers(variant: Variant, line: bytes) -> bool:
    """Log messages may come before the answer, and some servers greet in plain words."""
    try:
        message = json.loads(line)
    except ValueError:
        return False
    if not isinstance(message, dict) or message.get("id") != INITIALIZE["id"]:
        return False
    if "result" not in message:
        raise Failed(f"{variant.name}: `initialize` was answered with {line[:300].decode('utf-8', 'replace')}")
    return True


def last_words(variant: Variant) -> str:
    lines = (variant.directory / "stderr").read_text("utf-8", "replace").strip().splitlines()
    return " It said last: " + " / ".join(lines[-3:]) if lines else " It said nothing on stderr."


def living(variant: Variant) -> dict[int, int]:
    """The session of every process that bears the variant's mark, by pid. Without /proc only a daemon that answers is found."""
    if not HAS_PROC:
        try:
            answer = client.ask(Places(variant.directory / "imaged"), "get_status", {}, variant.environment)
        except (NotRunning, bridge.Trouble):
            return {}
        return {answer["result"]["pid"]: answer["result"]["pid"]} if "result" in answer else {}
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # somebody else's, or just gone
            if any(entry.startswith(variant.mark) for entry in (directory / "environ").read_bytes().split(b"\0")):
                found[int(directory.name)] = int(_stat(int(directory.name))[3])
    return found


def is_alive(pid: int) -> bool:
    """A zombie is not: not every container's first process waits for its orphans."""
    with suppress(OSError):
        os.kill(pid, 0)
        return not HAS_PROC or _stat(pid)[0] not in "ZX"
    return False


def end_everything(variant: Variant) -> None:
    """Ends every process that bears the variant's mark, and waits until it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):  # the last is for what was born meanwhile
        pids = living(variant)
        for pid, session in pids.items():
            # The first of a session passes SIGTERM on (a single file is two processes); twice would mean: at once.
            if number == signal.SIGKILL or pid == session:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        if wait_until(lambda: not any(map(is_alive, pids)), END_SECONDS_MAX) and not living(variant):  # noqa: B023
            return
    raise Failed(f"{variant.name}: {sorted(living(variant))} do not end; look at them with ps.")


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    give_up_at = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up_at:
            return False
        select.select([], [], [], LOOK_SECONDS)
    return True


def use_of(pids: set[int], spent: Mapping[int, float]) -> Use:
    """What they took together, without the CPU seconds they had `spent` before. Pages they share count for each of them."""
    if not HAS_PROC:
        return Use(nan, nan)
    return Use(sum(cpu_seconds(pid) - spent.get(pid, 0.0) for pid in pids), sum(map(rss_bytes, pids)))


def cpu_seconds(pid: int) -> float:
    """Of all its threads, and of the children it has waited for. Zero if it has gone since it was found."""
    with suppress(OSError):
        # What clock_getcpuclockid(3) computes. It counts nanoseconds; the times in /proc/<pid>/stat are hundredths
        # of a second, and schedstat knows the first thread only.
        return time.clock_gettime(~pid << 3 | 2) + sum(map(int, _stat(pid)[13:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def rss_bytes(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    return 0


def _stat(pid: int) -> list[str]:
    """The fields of proc(5) from the third one, the state, on; the second may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def table(variants: Sequence[Variant], runs: Sequence[Sequence[Run]]) -> str:
    """Medians, in Markdown. Ratios are to the first line, those of CPU of front and daemon together."""
    rows = [["variant", "n", "wall ms", "least", "ratio", "CPU ms: front", "daemon", "ratio", "RSS MB: front", "daemon"]]
    for variant, mine in zip(variants, runs, strict=True):
        walls, cpus = [run.wall_seconds for run in mine], [run.cpu_seconds for run in mine]
        daemons = [run.daemon for run in mine if run.daemon]
        rows.append(
            [
                variant.name,
                str(len(mine)),
                _median(walls, 1e-3),
                f"{min(walls) * 1e3:.1f}",
                _median(walls, median(run.wall_seconds for run in runs[0])),
                _median([run.front.cpu_seconds for run in mine], 1e-3),
                _median([side.cpu_seconds for side in daemons], 1e-3),
                _median(cpus, median(run.cpu_seconds for run in runs[0])),
                _median([run.front.rss_bytes for run in mine], 1e6),
                _median([side.rss_bytes for side in daemons], 1e6),
            ]
        )
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {name:<{widths[0]}} | {' | '.join(map(str.rjust, cells, widths[1:]))} |" for name, *cells in rows)


def _median(values: Sequence[float], unit: float) -> str:
    """A dash where no run had such a process."""
    if not values:
        return "-"
    value = median(values) / unit
    return "unknown" if isnan(value) else f"{value:.1f}"


def machine() -> str:
    """The day, and what the figures depend on."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    return f"{datetime.now().astimezone():%Y-%m-%d}: {os.cpu_count()} cores, {memory_bytes / 1e9:.0f} GB of memory, {system}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
