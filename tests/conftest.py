"""What several tests need from outside, installed by the tests themselves and failing, not skipping, where it cannot be."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS_MAX = 300


def beside_python(program: str) -> str:
    """node and npm come with the test extras; a system's own will do as well."""
    own = Path(sys.executable).with_name(program)
    found = str(own) if own.exists() else shutil.which(program)
    assert found, f"{program} is missing; install the test extras"
    return found


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of tests/clients/package.json and the scripts beside it. One for all workers of a run."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "npm"
    place.mkdir(exist_ok=True)
    installed = place / "installed"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as one installation takes, which has a limit of its own
        if not installed.exists():
            _install(place)
            installed.touch()
    return place


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
