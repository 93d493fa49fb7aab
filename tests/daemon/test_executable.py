"""The single file: what it puts where it lasts, and what it sweeps. As PyInstaller lays it out, without being it."""

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import executable
from daemon.executable import CARRIED
from eventlog.disk import Disk

DEAD = 4_190_000  # beyond what Linux gives out by default, and macOS ever


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def unpack(temporary: Path, pid: int = DEAD, ours: bool = True) -> Path:
    """As a process with this id did an hour ago."""
    place = temporary / f"_MEI{pid:08x}Ab3xYz"
    (place / "libraries").mkdir(parents=True)
    (place / "libraries" / "libpng.so").write_bytes(b"png")
    (place / "libpng.so").symlink_to("libraries/libpng.so")
    if ours:
        (place / CARRIED).write_bytes(b"the program of the folder")
    os.utime(place, (time.time() - 3600,) * 2)
    return place


@pytest.fixture
def running(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is the single file, unpacked there."""
    place = unpack(temporary, os.getpid())
    monkeypatch.setattr(sys, "_MEIPASS", str(place), raising=False)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(executable, "_held", [])
    return place


def test_what_is_no_single_file_lasts_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executable.lasting(["/x/imaged", "mcp"], tmp_path) == ["/x/imaged", "mcp"]
    (tmp_path / "_internal").mkdir()  # the folder form has such a place, too, and nothing is carried in it
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "_internal"), raising=False)
    executable.keep(tmp_path)
    assert executable.lasting(["/x/imaged", "mcp"], tmp_path) == ["/x/imaged", "mcp"]
    assert [path.name for path in tmp_path.iterdir()] == ["_internal"]


def test_the_single_file_puts_a_whole_folder_where_it_lasts_and_only_once(running: Path, tmp_path: Path) -> None:
    command = executable.lasting(executable.mcp_command(), tmp_path / "home")
    program = Path(command[0])
    assert command[1:] == ["mcp"] and program.name == "imaged" and not program.exists()
    executable.keep(tmp_path / "home")
    assert program.read_bytes() == b"the program of the folder" and os.access(program, os.X_OK)
    libraries = program.parent / "_internal"
    assert sorted(path.name for path in libraries.iterdir()) == ["libpng.so", "libraries"]
    assert (libraries / "libpng.so").is_symlink() and (libraries / "libpng.so").read_bytes() == b"png"
    programs = program.parent.parent
    made = programs.stat().st_mtime_ns
    executable.keep(tmp_path / "home")
    assert programs.stat().st_mtime_ns == made, "something was made there for a moment"


def test_another_build_of_the_same_version_gets_another_folder(running: Path, tmp_path: Path) -> None:
    executable.keep(tmp_path)
    first = executable.lasting(["x"], tmp_path)
    (running / CARRIED).write_bytes(b"the program, built again")
    assert executable.lasting(["x"], tmp_path) != first
    executable.keep(tmp_path)
    assert Path(first[0]).read_bytes() == b"the program of the folder"
    assert Path(executable.lasting(["x"], tmp_path)[0]).read_bytes() == b"the program, built again"


def test_a_folder_that_cannot_be_finished_leaves_nothing(running: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        executable.keep(tmp_path / "home")
    assert list((tmp_path / "home" / "programs").iterdir()) == []


def test_two_that_unpack_at_once_leave_one_whole_folder(running: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        """Somebody else has just finished."""
        shutil.copytree(self, target, symlinks=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    executable.keep(tmp_path)
    assert len(list((tmp_path / "programs").iterdir())) == 1
    assert Path(executable.lasting(["x"], tmp_path)[0]).exists()


def test_what_a_dead_process_left_is_swept(temporary: Path) -> None:
    place = unpack(temporary)
    assert executable.sweep() == [place] and not place.exists()
    assert executable.sweep() == []


def test_what_is_held_is_never_swept_whoever_holds_it(temporary: Path) -> None:
    place = unpack(temporary)  # its first half is dead; the other, perhaps in another container, still needs it
    mark = os.open(place / CARRIED, os.O_RDONLY)
    Disk().share(mark)
    assert executable.sweep() == [] and place.exists()
    os.close(mark)
    assert executable.sweep() == [place]


def test_a_running_single_file_holds_its_own_place(running: Path) -> None:
    executable.hold()
    executable.hold()
    mark = os.open(running / CARRIED, os.O_RDONLY)
    assert len(executable._held) == 1 and not Disk().lock(mark)
    os.close(mark)
    os.close(executable._held[0])


def test_what_is_held_never_takes_the_place_of_a_closed_stdin(running: Path) -> None:
    stdin = os.dup(0)
    os.close(0)
    try:
        executable.hold()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    mark = os.open(running / CARRIED, os.O_RDONLY)
    assert executable._held[0] > 2 and not Disk().lock(mark)
    os.close(mark)
    os.close(executable._held[0])


def younger(place: Path) -> None:
    os.utime(place, (time.time() - 30,) * 2)


def without_mark(place: Path) -> None:
    (place / CARRIED).unlink()


def with_a_link_as_mark(place: Path) -> None:
    (place / CARRIED).rename(place / "elsewhere")
    (place / CARRIED).symlink_to("elsewhere")


def with_a_pipe_as_mark(place: Path) -> None:
    (place / CARRIED).unlink()
    os.mkfifo(place / CARRIED)


def of_another_name(place: Path) -> None:
    place.rename(place.with_name("_MEIxyz"))


def of_a_living_process(place: Path) -> None:
    place.rename(place.with_name(f"_MEI{os.getpid():08x}Ab3xYz"))


def of_a_process_that_is_not_ours(place: Path) -> None:
    place.rename(place.with_name("_MEI00000001Ab3xYz"))


def a_link(place: Path) -> None:
    moved = place.with_name("moved")
    place.rename(moved)
    place.symlink_to(moved)
    os.utime(place, (1, 1), follow_symlinks=False)


@pytest.mark.parametrize(
    "changed",
    [
        younger,
        without_mark,
        with_a_link_as_mark,
        with_a_pipe_as_mark,
        of_another_name,
        of_a_living_process,
        of_a_process_that_is_not_ours,
        a_link,
    ],
)
def test_what_may_be_somebody_elses_or_in_use_is_left_alone(changed: Callable[[Path], None], temporary: Path) -> None:
    place = unpack(temporary)
    changed(place)
    if changed is not younger:
        for each in temporary.glob("_MEI*"):
            os.utime(each, (1, 1))
    before = sorted(temporary.rglob("*"))
    assert executable.sweep() == [] and sorted(temporary.rglob("*")) == before


def test_what_belongs_to_another_user_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = unpack(temporary)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert executable.sweep() == [] and place.exists()


def test_a_process_that_has_ended_and_was_not_fetched_is_dead(temporary: Path) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    place = unpack(temporary, child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has fetched it yet
    assert executable.sweep() == [place]
    os.waitpid(child, 0)
