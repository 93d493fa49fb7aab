"""The command line as people see it: on a pseudo-terminal of a known width, by the real program."""

import base64
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from rich.cells import cell_len

from daemon import cli_pictures
from daemon.cli_pictures import Protocol
from tests.program import IMAGED, SECONDS_MAX, Program, running, wait_until
from tests.standin import Request, StandIn
from tests.test_readme import ROOT
from tests.tools.pictures_for_tests import picture
from tools.pictures import BadPicture

KEY = "sk-test-canary-0123456789"
EVIL = "逆光 [red]fox[/red] :smile: \u202e north"
SHOWN = r"逆光 [red]fox[/red] :smile: \u{202e} north"
ERASED = b"\r\x1b[1A\x1b[2K"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Scene(NamedTuple):
    program: Program
    standin: StandIn
    uuid: str


class Screen:
    """One command with a terminal on stdin and stderr, and on stdout unless that is wanted apart."""

    def __init__(self, program: Program, *words: str, columns: int = 80, apart: bool = False, **settings: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.shown = b""
        self._out = (program.home / "stdout.txt").open("w+b")
        self._process = subprocess.Popen(
            [*IMAGED, *words],
            env={**program.environment, "TERM": "xterm-256color", **settings},
            cwd=ROOT,
            stdin=theirs,
            stdout=self._out if apart else theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(SECONDS_MAX)
        self._out.close()
        os.close(self._ours)

    def until(self, text: bytes) -> "Screen":
        wait_until(lambda: text in self.shown or not self._more(), f"{text!r} on the screen")
        assert text in self.shown, self.shown
        return self

    def type(self, text: bytes) -> "Screen":
        os.write(self._ours, text)
        return self

    def interrupt(self, number: int = signal.SIGINT) -> "Screen":
        os.kill(self._process.pid, number)
        return self

    def end(self) -> int:
        wait_until(lambda: not self._more(), "the command to end")
        return self._process.wait(SECONDS_MAX)

    @property
    def lines(self) -> list[str]:
        return ESCAPE.sub("", self.shown.decode()).replace("\r\n", "\n").splitlines()

    @property
    def apart(self) -> str:
        self._out.seek(0)
        return self._out.read().decode()

    def _more(self) -> bool:
        """Reads what there is; False when nobody can write any more."""
        ready, _, _ = select.select([self._ours], [], [], 0.05)
        if not ready:
            return True
        try:
            piece = os.read(self._ours, 1 << 16)
        except OSError:  # how Linux says that the last writer has gone
            return False
        self.shown += piece
        return bool(piece)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One daemon and one picture for everything here."""
    home = tmp_path_factory.mktemp("terminal")
    with StandIn() as standin:
        settings = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": standin.url}
        with running(home, **settings) as program:
            drawn = program.ask("generate_image", prompt=EVIL, size="1024x1024", quality="low")
            yield Scene(program, standin, drawn["result"]["job_id"])


def shown(scene: Scene, *words: str, columns: int = 80, **settings: str) -> Screen:
    with Screen(scene.program, *words, columns=columns, **settings) as screen:
        assert screen.end() == 0, screen.shown
        return screen


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("words", [("history",), ("jobs", "list"), ("spending", "--by", "model"), ("models",)], ids=" ".join)
def test_tables_are_aligned_fit_the_width_and_show_whole_ids(scene: Scene, words: tuple[str, ...], columns: int) -> None:
    screen = shown(scene, *words, columns=columns)
    title, *rows = [line for line in screen.lines if not line.startswith("imaged: ")]
    assert re.fullmatch(r"[A-Z]+(  +[A-Z]+( [A-Z]+)?)+ *", title) and rows
    assert all(cell_len(line) <= columns for line in (title, *rows)), rows
    assert b"\x1b[1m" in screen.shown
    if words[0] in ("history", "jobs"):
        row = next(row for row in rows if row.startswith(f"{scene.uuid}  "))
        assert (SHOWN in row) is (columns == 140) and SHOWN[:10] in row and "\u202e" not in row
        assert row.rstrip().endswith("…") is (columns == 80)
        assert ("MODEL" in title) is (columns == 140)


@pytest.mark.parametrize("quiet", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb", "FORCE_COLOR": "1"}], ids=str)
def test_no_colour_and_a_dumb_terminal_get_no_escape_at_all(scene: Scene, quiet: dict[str, str]) -> None:
    table = shown(scene, "history", **quiet)
    assert b"\x1b" not in table.shown and table.lines[0].startswith("ID  ") and table.lines[-1].startswith(scene.uuid)
    drawn = shown(scene, "generate", "a fox", "--size", "1024x1024", "--quality", "low", TERM_PROGRAM="iTerm.app", **quiet)
    assert b"\x1b" not in drawn.shown and b"drawing 1 picture with" in drawn.shown and b"History ID" in drawn.shown


def test_a_bar_moves_while_it_is_drawn_and_leaves_a_clean_screen(scene: Scene) -> None:
    drawing, enough = threading.Event(), threading.Event()

    def slowly(request: Request) -> None:
        drawing.set()
        assert enough.wait(SECONDS_MAX)
        request.reply(200, request.good_reply())

    scene.standin.will(slowly)
    words = ("generate", "[bold]a fox", "--size", "1024x1024", "--quality", "low")
    with Screen(scene.program, *words, apart=True, FORCE_COLOR="1") as screen:
        screen.until(b"drawing 1 picture with")
        assert drawing.wait(SECONDS_MAX)
        screen.until("━".encode()).until(b"0:00:0")
        enough.set()
        assert screen.end() == 0
        assert screen.shown.count(b"\x1b[2K") > 1 and b"\x1b[?25l" in screen.shown
        left = screen.shown[screen.shown.rindex(ERASED) + len(ERASED) :]
        assert b"\x1b" not in left and left.startswith(b"imaged: 1 picture was made"), left
        assert screen.shown.rindex(b"\x1b[?25h") > screen.shown.rindex(b"\x1b[?25l"), "the cursor is back"
        assert Path(screen.apart.removesuffix("\n")).exists(), "stdout is the path and nothing else"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_its_kin_leave_the_job_and_say_how_to_come_back(scene: Scene, number: int) -> None:
    enough = threading.Event()

    def slowly(request: Request) -> None:
        assert enough.wait(SECONDS_MAX)
        request.reply(200, request.good_reply())

    scene.standin.will(slowly)
    with Screen(scene.program, "generate", "a fox", "--size", "1024x1024", "--quality", "low") as screen:
        assert screen.until(b"drawing 1 picture").interrupt(number).end() == 130
        said = screen.shown[screen.shown.rindex(ERASED) + len(ERASED) :].decode()
    found = re.fullmatch(
        r"imaged: Job (\S+) goes on\. To wait for it: imaged jobs wait (\S+); to stop it: imaged jobs cancel (\S+)\r\n", said
    )
    assert found is not None and len(set(found.groups())) == 1, said
    enough.set()
    waited = shown(scene, "jobs", "wait", found[1])
    path = next(line for line in waited.lines if line.startswith("/"))
    assert Path(path).exists()


def test_events_are_followed_as_they_are_written_until_ctrl_c(scene: Scene) -> None:
    position = scene.program.ask("get_status")["result"]["log_position"]
    with Screen(scene.program, "events", "--follow", "--after", str(position)) as screen:
        screen.until(b"get_status")
        drawn = scene.program.ask("generate_image", prompt="a heron", size="1024x1024", quality="low")["result"]["job_id"]
        screen.until(f"JobCompleted {drawn}".encode())
        assert screen.interrupt().end() == 130 and b"Traceback" not in screen.shown


@pytest.mark.parametrize(
    ("environ", "spoken"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "230800"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "210000"}, None),
        ({"TERM": "xterm", "KONSOLE_VERSION": "230800", "XTERM_VERSION": "XTerm(380)"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux-1/default,1,0"}, None),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_believed_only_what_its_environment_says(environ: dict[str, str], spoken: Protocol | None) -> None:
    assert cli_pictures.protocol(environ) == spoken


def test_the_picture_itself_is_shown_where_the_terminal_can(scene: Scene) -> None:
    kitty = shown(scene, "show", scene.uuid, TERM="xterm-kitty").shown.decode()
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert all(len(data) <= 4096 for _, data in pieces) and pieces[0][0].startswith("a=T,f=100,q=2,r=20,m=1")
    assert [keys[-1] for keys, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces)))) as image:
        assert (image.format, image.size) == ("PNG", (800, 800))
    iterm = shown(scene, "jobs", "wait", scene.uuid, TERM_PROGRAM="iTerm.app").shown.decode()
    (found,) = re.findall(r"\x1b\]1337;File=inline=1;size=(\d+);height=20;preserveAspectRatio=1:([^\x07]*)\x07", iterm)
    assert len(base64.b64decode(found[1])) == int(found[0])
    for words, settings in (
        (("show", scene.uuid, "--no-inline"), {"TERM": "xterm-kitty"}),
        (("show", scene.uuid, "--json"), {"TERM": "xterm-kitty"}),
        (("show", scene.uuid), {"TERM": "xterm-kitty", "NO_COLOR": "1"}),
        (("show", scene.uuid), {"TERM": "xterm-256color"}),
    ):
        assert b"\x1b" not in shown(scene, *words, **settings).shown, (words, settings)


def test_a_wide_picture_takes_fewer_lines_and_none_takes_more_than_it_may() -> None:
    assert ",r=5," in cli_pictures.drawn(picture("png", 400, 100), "kitty", 40)
    assert ";height=20;" in cli_pictures.drawn(picture("jpeg", 100, 400), "iterm2", 200)
    with pytest.raises(BadPicture):
        cli_pictures.drawn(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "kitty", 80)
