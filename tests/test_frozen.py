"""The executable itself, started as clients start it: drawn with, killed, moved, made read-only and replaced by a later one."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from PIL import Image

from daemon import client
from daemon.config import Places
from daemon.errors import NotRunning
from eventlog.events import AttemptStarted, DaemonStarted, DaemonStopped, JobCompleted, JobInterrupted
from eventlog.segments import read_log
from tests.program import SECONDS_MAX, Stdio, environment, wait_until
from tests.test_clients import draw_with_python

NOBODY = 65534
HELLO = {"protocolVersion": "2025-11-25", "clientInfo": {"name": "test-client", "version": "1"}}


class Installed:
    """The program in some place, and a home of its own."""

    def __init__(self, program: Path, home: Path, **settings: str) -> None:
        self.program = program
        self.environment = environment(home, **settings)
        self.places = Places(Path(self.environment["IMAGED_HOME"]))
        self.pictures = Path(self.environment["OPENAI_IMAGE_OUTPUT_DIR"])

    def front(self, program: Path | None = None) -> Stdio:
        return Stdio(self.environment, [str(program or self.program), "mcp"])

    def run(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        command = [str(self.program), *arguments]
        return subprocess.run(
            command, env=self.environment, cwd="/", capture_output=True, text=True, timeout=SECONDS_MAX, check=False, **how
        )

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        result: dict[str, Any] = client.ask(self.places, operation, arguments, self.environment)["result"]
        return result

    def daemon(self) -> int:
        pid: int = self.ask("get_status")["pid"]
        return pid

    def is_served(self) -> bool:
        try:
            self.daemon()
        except NotRunning:
            return False
        return True

    def kill_daemon(self) -> None:
        os.kill(self.daemon(), signal.SIGKILL)
        wait_until(lambda: not self.is_served(), "the daemon to be gone")  # with its threads; its pid tells less

    def facts(self, *kinds: type) -> list[Any]:
        commits = [located.commit for located in read_log(self.places.events, None)]
        return [event for commit in commits for event in commit.events if isinstance(event, kinds)]


@contextmanager
def installed(program: Path, home: Path, **settings: str) -> Iterator[Installed]:
    """The daemons that it starts end with the body."""
    one = Installed(program, home, **settings)
    try:
        yield one
    finally:
        if one.is_served():
            one.kill_daemon()


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(partial(is_gone, pid), f"process {pid} to end")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return True


def linked(program: Path, folder: Path) -> Path:
    """The same files in another folder, without the bytes."""
    shutil.copytree(program.parent, folder, copy_function=os.link, symlinks=True)
    return folder / program.name


@pytest.fixture(scope="session")
def folder(frozen: Path) -> Path:
    return frozen / "imaged" / "imaged"


@pytest.fixture(scope="session")
def single_file(frozen: Path) -> Path:
    return frozen / "imaged-onefile"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_official_clients_of_both_eras_are_served_by_a_daemon_that_starts_by_itself(
    mode: str, folder: Path, tmp_path: Path
) -> None:
    with installed(folder, tmp_path) as program:
        trio.run(partial(draw_with_python, tmp_path, mode, [str(folder)]))
        assert Path(f"/proc/{program.daemon()}/exe").readlink() == folder
        assert Path(f"/proc/{program.daemon()}/cwd").readlink() == Path("/")


def test_everything_that_is_packed_with_it_is_there(folder: Path, tmp_path: Path) -> None:
    """Libraries that are imported late, data files, Pillow's formats, the calendar of human words."""
    with installed(folder, tmp_path) as program:
        for name in ("plain.png", "photo.jpg", "small.webp", "moves.gif"):
            drawn = program.run("generate", "a red fox, 赤い狐", "-o", str(tmp_path / name), "--model", "gpt-image-2.6-flare")
            assert drawn.returncode == 0, drawn.stderr
            with Image.open(tmp_path / name) as picture:
                picture.load()
                assert picture.size == (1024, 1024)
        edited = program.run("edit", "bluer", str(tmp_path / "photo.jpg"), "-o", str(tmp_path / "edited.png"))
        assert edited.returncode == 0, edited.stderr
        for since in ("last week", "先週"):
            assert len(program.run("history", "--since", since, "--json").stdout) > 1000
        sound = program.run("audit", "verify", "--json")
        assert sound.returncode == 0 and json.loads(sound.stdout)["head_hash"]
        assert program.run("models").stdout.startswith("gpt-image-")
        assert "daemon" in program.run("doctor").stdout
        assert "complete" in program.run("completion", "bash").stdout
        with program.front() as front:
            front.initialize()
            answer = front.call("generate_image", prompt="a fox", include_thumbnail=True, return_base64=True)
            assert {content["type"] for content in answer["content"]} == {"text", "image", "resource_link"}


def test_a_killed_front_takes_no_job_along_and_a_killed_daemon_no_session(folder: Path, tmp_path: Path) -> None:
    with installed(folder, tmp_path, IMAGED_OFFLINE_SECONDS="1") as program:
        with program.front() as front:
            front.initialize()
            job = front.call("start_generation_job", tool_name="generate_image", prompt="a fox")["structuredContent"]["job_id"]
        wait_until(lambda: program.facts(JobCompleted), "the job to be completed without its client")
        with program.front() as front:
            front.initialize()
            front.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "another fox"}})
            wait_until(lambda: len(program.facts(AttemptStarted)) == 2, "the second picture to be drawn")
            program.kill_daemon()
            assert front.answer(front._id)["result"]["isError"]
            assert front.call("get_job_result", job_id=job)["structuredContent"]["state"] == "completed"
        assert len(program.facts(DaemonStarted)) == 2 and len(program.facts(JobInterrupted)) == 1


def test_twenty_fronts_that_start_at_once_from_cold_are_all_served_by_one_daemon(folder: Path, tmp_path: Path) -> None:
    with installed(folder, tmp_path) as program, ExitStack() as stack:
        fronts = [stack.enter_context(program.front()) for _ in range(20)]
        for front in fronts:
            front.request(
                "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            )
        assert {front.answer(1)["result"]["serverInfo"]["name"] for front in fronts} == {"imaged"}
        assert program.ask("get_status")["sessions"] == 20
        assert len(program.facts(DaemonStarted)) == 1


def test_spaces_and_japanese_in_every_path_are_no_hindrance(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "私の 家"
    home.mkdir()
    with installed(linked(folder, tmp_path / "プログラム フォルダ"), home) as program:
        with program.front() as front:
            front.initialize()
            answer = front.call("generate_image", prompt="赤い 狐", output_path="赤い 狐.png")
        picture = program.pictures / "赤い 狐.png"
        assert answer["structuredContent"]["images"][0]["path"] == str(picture) and picture.exists()
        shown = program.run("setup", "cursor")
        entry = json.loads((home / "user" / ".cursor" / "mcp.json").read_text("utf-8"))["mcpServers"]["imaged"]
        assert shown.returncode == 0 and entry["command"] == str(program.program)


def test_a_program_folder_that_cannot_be_written_is_enough(folder: Path, tmp_path: Path) -> None:
    """Run by somebody else where we are root, whom no mode stops."""
    place = tmp_path / "program"
    shutil.copytree(folder.parent, place, symlinks=True)
    home = tmp_path / "home"
    home.mkdir()
    paths = [place, *place.rglob("*")]
    for path in paths:
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    before = {path: path.lstat().st_mtime_ns for path in paths}
    who = {}
    if os.geteuid() == 0:
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        os.chown(home, NOBODY, NOBODY)
        for above in tmp_path.parents[:-2]:
            above.chmod(0o755)
        tmp_path.chmod(0o755)
    program = Installed(place / "imaged", home)
    drawn = program.run("generate", "a fox", "-o", str(home / "fox.png"), **who)
    try:
        assert drawn.returncode == 0 and (home / "fox.png").exists(), drawn.stderr
        stopped = program.run("stop", **who)
        assert stopped.returncode == 0, stopped.stderr
    finally:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
    assert {path: path.lstat().st_mtime_ns for path in [place, *place.rglob("*")]} == before


def test_without_a_home_the_password_database_is_asked(folder: Path, tmp_path: Path) -> None:
    with installed(folder, tmp_path) as program:
        del program.environment["HOME"]
        with program.front() as front:
            front.initialize()
            assert not front.call("generate_image", prompt="a fox").get("isError")
        if os.geteuid() == 0:  # a user that the database does not know, as in many containers
            refused = program.run("mcp", user=54321, group=54321, extra_groups=[], stdin=subprocess.DEVNULL)
            assert refused.returncode == 1 and "HOME is not set" in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(("closed", "named"), [("<&-", "stdin"), (">&-", "stdout")])
@pytest.mark.parametrize("form", ["folder", "single_file"])
def test_a_closed_end_is_one_sentence(form: str, closed: str, named: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path: Path = request.getfixturevalue(form)
    line = f"exec {shlex.quote(str(path))} mcp {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env=environment(tmp_path),
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 1 and f"{named} is closed" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "imaged").exists()


def test_a_later_version_takes_over_when_nothing_runs_and_no_job_is_lost(frozen: Path, folder: Path, tmp_path: Path) -> None:
    later = frozen / "imaged-later" / "imaged"
    with installed(folder, tmp_path, IMAGED_OFFLINE_SECONDS="1.5", IMAGED_MAX_CONCURRENT="1") as program:
        with program.front() as old, ExitStack() as stack:
            old.initialize()
            first_daemon = program.daemon()
            jobs = [
                old.call("start_generation_job", tool_name="generate_image", prompt=f"fox {n}")["structuredContent"]["job_id"]
                for n in range(2)
            ]
            wait_until(lambda: program.ask("get_status")["jobs_running"], "the first job to run")
            new = stack.enter_context(program.front(later))
            new.initialize()  # is served at once, by the daemon that is there
            assert program.daemon() == first_daemon
            waiting = new.request("tools/call", {"name": "generate_image", "arguments": {"prompt": "a new fox"}})
            wait_until(partial(is_gone, first_daemon), "the first daemon to make way")
            wait_until(lambda: program.is_served() and program.daemon() != first_daemon, "the next one to be there")
            told = new.answer(waiting)["result"]["structuredContent"]
            assert told["state"] == "pending"  # as an ordinary answer: it is asked for again, not ordered again
            jobs.append(told["job_id"])
            for front, job in ((old, jobs[0]), (old, jobs[1]), (new, jobs[2])):
                wait_until(partial(has_state, front, job, "completed"), f"job {job} to be completed")
        assert program.ask("get_status")["software"] == "999.0.0"
        assert [fact.software for fact in program.facts(DaemonStarted)] == [client.VERSION, "999.0.0"]
        assert [fact.reason for fact in program.facts(DaemonStopped)] == ["imaged 999.0.0 takes over"]
        assert len(program.facts(JobCompleted)) == 3 and not program.facts(JobInterrupted)


def has_state(front: Stdio, job: str, state: str) -> bool:
    return bool(front.call("check_job_status", job_id=job)["structuredContent"]["state"] == state)


def test_an_earlier_version_is_served_by_the_later_one(frozen: Path, folder: Path, tmp_path: Path) -> None:
    with installed(frozen / "imaged-later" / "imaged", tmp_path) as program:
        with program.front() as new, ExitStack() as stack:
            new.initialize()
            later = program.daemon()
            old = stack.enter_context(program.front(folder))
            assert old.initialize()["serverInfo"]["version"] == "999.0.0"
            assert program.daemon() == later
        own = Installed(folder, tmp_path)
        assert own.run("generate", "a fox", "-o", str(tmp_path / "fox.png")).returncode == 0
        assert program.daemon() == later


def test_a_later_command_lets_its_own_version_take_over(frozen: Path, folder: Path, tmp_path: Path) -> None:
    with installed(folder, tmp_path) as program:
        assert program.run("generate", "a fox", "-o", str(tmp_path / "one.png")).returncode == 0
        later = Installed(frozen / "imaged-later" / "imaged", tmp_path)
        assert later.run("status").returncode == 0 and program.ask("get_status")["software"] == client.VERSION
        assert later.run("generate", "a fox", "-o", str(tmp_path / "two.png")).returncode == 0
        assert program.ask("get_status")["software"] == "999.0.0"


def test_a_daemon_goes_on_when_its_program_is_taken_away(folder: Path, tmp_path: Path) -> None:
    """As clients do that put a new version of a bundle in the place of the old one."""
    with installed(linked(folder, tmp_path / "bundle"), tmp_path) as program, program.front() as front:
        front.initialize()
        wait_until(lambda: "everything is loaded" in diagnostics(program), "the daemon to load everything")
        shutil.rmtree(tmp_path / "bundle")
        for name in ("png", "webp", "jpeg"):
            answer = front.call("generate_image", prompt="a fox, 狐", output_format=name, include_thumbnail=True)
            assert not answer.get("isError") and any(part["type"] == "image" for part in answer["content"]), answer
        picture = answer["structuredContent"]["images"][0]["path"]
        answer = front.call(
            "edit_image", prompt="bluer", reference_image_path=picture, output_path="blue.png", return_base64=True
        )
        assert not answer.get("isError"), answer
        for tool, arguments in (("list_history", {"query": "fox"}), ("get_spending", {}), ("list_generated_images", {})):
            assert not front.call(tool, **arguments).get("isError"), tool
        assert not front.call("get_metadata_from_image", image_path=picture).get("isError")
        front.request("prompts/list")
        front.answer(front._id)
        front.request("resources/list")
        assert front.answer(front._id)["result"]["resources"]
        assert "Traceback" not in diagnostics(program) + (program.places.logs / "daemon.stderr").read_text("utf-8")


def diagnostics(program: Installed) -> str:
    return "".join(path.read_text("utf-8") for path in program.places.logs.glob("*") if path.is_file())


def test_the_single_file_draws_and_its_daemon_runs_from_a_folder_that_lasts(single_file: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with installed(single_file, tmp_path, TMPDIR=str(temporary)) as program:
        with program.front() as front:
            front.initialize()
            assert not front.call("generate_image", prompt="a fox").get("isError")
            started_from = Path(f"/proc/{program.daemon()}/exe").readlink()
            assert started_from.is_relative_to(program.places.home / "programs")
            assert len(list(temporary.glob("_MEI*"))) == 1  # the front's own
            assert program.run("setup", "cursor").returncode == 0
            assert front.process.stdin
            front.process.stdin.close()
            front.process.wait(SECONDS_MAX)
        entry = json.loads((tmp_path / "user" / ".cursor" / "mcp.json").read_text("utf-8"))["mcpServers"]["imaged"]
        assert entry["command"] == str(started_from)
        assert not list(temporary.iterdir()), "each front cleans up behind it"
        with Stdio(program.environment, [entry["command"], "mcp"]) as front:
            front.initialize()


def test_what_killed_single_files_leave_behind_is_swept_at_the_next_start(single_file: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with installed(single_file, tmp_path, TMPDIR=str(temporary)) as program, ExitStack() as stack:
        used, killed = (stack.enter_context(program.front()) for _ in range(2))
        for front in (used, killed):
            front.initialize()
        (mine,) = [place for place in temporary.glob("_MEI*") if str(killed.process.pid) == str(int(place.name[4:12], 16))]
        child = int(Path(f"/proc/{killed.process.pid}/task/{killed.process.pid}/children").read_text("ascii").split()[0])
        killed.process.kill()  # the half that clients kill as their last resort; the other half lives on
        killed.process.wait(SECONDS_MAX)
        for place in temporary.glob("_MEI*"):
            os.utime(place, (1, 1))
        program.kill_daemon()
        used.call("list_jobs")  # starts the next daemon
        assert mine.exists(), "what a living process needs was swept"
        end(child)
        program.kill_daemon()
        used.call("list_jobs")
        wait_until(lambda: not mine.exists(), "the leftover to be swept")
        assert len(list(temporary.glob("_MEI*"))) == 1  # of the front that is in use


def test_the_bundle_holds_the_program_and_starts(frozen: Path, tmp_path: Path) -> None:
    (bundle,) = frozen.glob("*.mcpb")
    with zipfile.ZipFile(bundle) as packed:
        manifest = json.loads(packed.read("manifest.json"))
        for member in packed.infolist():
            Path(packed.extract(member, tmp_path / "bundle")).chmod(member.external_attr >> 16 & 0o777)
    with installed(tmp_path / "bundle" / manifest["server"]["entry_point"], tmp_path) as program, program.front() as front:
        assert front.initialize()["serverInfo"]["version"] == manifest["version"]
        assert not front.call("generate_image", prompt="a fox").get("isError")


def test_no_path_of_the_sources_is_in_what_is_built(frozen: Path) -> None:
    """Neither where they stood nor where they were built; Python's own place is in its libraries, and is nobody's secret."""
    sources = str(Path(__file__).resolve().parents[1])
    for form in ("imaged/imaged", "imaged-onefile"):
        listed = subprocess.run(
            [sys.executable, "-c", SEARCH, str(frozen / form), sources, str(frozen.parent)],
            capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        assert (listed.returncode, listed.stdout) == (0, ""), listed.stdout + listed.stderr
    for path in (frozen / "imaged" / "_internal").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert sources.encode() not in data and str(frozen.parent).encode() not in data, path


# Unpacks the modules, which are compressed one by one, and prints those that name one of the places.
SEARCH = """
import marshal, sys
from PyInstaller.archive.readers import CArchiveReader
archive, places = CArchiveReader(sys.argv[1]), [place.encode() for place in sys.argv[2:]]
for name in archive.toc:
    if name.endswith(".pyz"):
        modules = archive.open_embedded_archive(name)
        parts = [(module, marshal.dumps(modules.extract(module))) for module in modules.toc]
    else:
        parts = [(name, archive.extract(name))]
    for part, data in parts:
        if any(place in data for place in places):
            print(part)
"""
