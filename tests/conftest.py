"""What several tests need from outside, installed by the tests themselves and failing, not skipping, where it cannot be."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import program, steps

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS_MAX = 300


def beside_python(program: str) -> str:
    """node and npm come with the test extras; a system's own will do as well."""
    own = Path(sys.executable).with_name(program)
    found = str(own) if own.exists() else shutil.which(program)
    assert found, f"{program} is missing; install the test extras"
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the executable first, so that one worker has them all and no other waits for its being built."""
    items.sort(key=lambda item: "frozen" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def long_steps_are_told(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Of the daemons that ran while a test did; which of several tests it was is not always known."""
    yield
    for file, told in program.step_files.items():
        lines = list(steps.long_steps(file))
        for line in lines[told:]:
            record_property("long step", line)
        program.step_files[file] = max(told, len(lines))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    steps.tell(terminalreporter)


@contextmanager
def once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder for all workers of a run, and whether it is for this one to fill. The others wait until it is."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    place.mkdir(exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as it takes one to fill it, which has a limit of its own
        filled = place / ".filled"
        yield place, not filled.exists()
        filled.touch()


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of tests/clients/package.json and the scripts beside it."""
    with once(tmp_path_factory, "npm") as (place, empty):
        if empty:
            _install(place)
    return place


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pyinstaller build.spec` makes: `imaged/`, `imaged-onefile`, bundles; and `imaged-later/`, of a later version."""
    with once(tmp_path_factory, "frozen") as (place, empty):
        if empty:
            _build(place)
    return place / "dist"


def _build(place: Path) -> None:
    command = [beside_python("pyinstaller"), "--distpath", str(place / "dist"), "--workpath", str(place / "build")]
    spec = Path(__file__).parent / "frozen" / "two_versions.spec"
    done = subprocess.run(
        [*command, "--log-level=WARN", str(spec)],
        cwd=place,
        env={**os.environ, "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1700000000", "IMAGED_REPOSITORY": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=INSTALL_SECONDS_MAX,
    )
    assert done.returncode == 0, f"the program could not be built (it needs objdump and strip):\n{done.stdout.decode()}"


def _install(place: Path) -> None:
    for path in CLIENTS.glob("*.*js*"):
        shutil.copy(path, place / path.name)
    command = [beside_python("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    subprocess.run(command, cwd=place, check=True, timeout=INSTALL_SECONDS_MAX, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def exiftool(npm_packages: Path) -> Sequence[str]:
    """The real exiftool, as a command: the system's or, without one, npm's copy under the system's Perl."""
    own = shutil.which("exiftool")
    if own:
        return [own]
    perl = shutil.which("perl")
    assert perl, "exiftool is missing and so is perl; install the Debian package libimage-exiftool-perl"
    return [perl, str(npm_packages / "node_modules/exiftool-vendored.pl/bin/exiftool")]
