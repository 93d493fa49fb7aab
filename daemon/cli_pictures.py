"""Pictures in the terminal itself, where it can show them: kitty's graphics protocol, or iTerm2's.

Rule: never a question to the terminal. Its answer would come out of the same pipe as what is typed, late, or never; so
what it is stands in the environment or is not known, and then nothing is shown. Nothing inside tmux or screen, which
would swallow it. https://sw.kovidgoyal.net/kitty/graphics-protocol/ · https://iterm2.com/documentation-images.html
"""

import base64
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

from daemon import bridge, config
from daemon.cli_terminal import has_escapes
from daemon.client import Connection
from daemon.errors import NotRunning, Refused

EDGE_PX = 800  # some 24 lines on a dense screen; larger ones only take longer to send
QUALITY = 85
LINES_MAX = 20  # so that what was said above stays in sight
CELL_RATIO = 2  # a cell is about twice as high as wide
CHUNK_CHARACTERS = 4096  # the most that kitty takes at once
KONSOLE_MIN = 220400  # the first Konsole that shows pictures

Protocol = Literal["kitty", "iterm2"]


def protocol(environ: Mapping[str, str]) -> Protocol | None:
    """What the terminal speaks, as far as it says so."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("screen", "tmux")):
        return None
    if term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    konsole = environ.get("KONSOLE_VERSION", "")
    if konsole.isdigit() and int(konsole) >= KONSOLE_MIN and "XTERM_VERSION" not in environ:
        return "kitty"
    return None


def show(connection: Connection, uuid: str, numbers: range, *, wanted: bool) -> None:
    """Pictures of a generation, from 1, on stdout if it is such a terminal. What cannot be shown is not missed: its
    path has been told.
    """
    spoken = protocol(config.process_environment()) if wanted and has_escapes(sys.stdout) else None
    if spoken is None:
        return
    from tools.pictures import BadPicture

    for number in numbers:
        try:
            sequence = drawn(connection.picture(uuid, number), spoken, shutil.get_terminal_size().columns)
        except (Refused, BadPicture):
            continue
        except (NotRunning, bridge.Trouble):  # the picture is there and its path told; that is what was asked for
            return
        print(sequence, flush=True)  # noqa: T201


def drawn(data: bytes, spoken: Protocol, columns: int) -> str:
    """The escape sequence that shows a picture, made small.

    Raises:
        tools.pictures.BadPicture: it cannot be decoded, or is an svg.
    """
    from tools import decoder
    from tools.pictures import measure

    jpeg, _ = decoder.preview(data, (EDGE_PX,), QUALITY, bytes_max=len(data))
    _, width, height = measure(jpeg)
    lines = max(1, min(LINES_MAX, columns * height // (width * CELL_RATIO)))
    if spoken == "iterm2":
        shape = f"inline=1;size={len(jpeg)};height={lines};preserveAspectRatio=1"
        return f"\x1b]1337;File={shape}:{base64.b64encode(jpeg).decode()}\x07"
    return "".join(_kitty(base64.b64encode(decoder.png(jpeg)).decode(), lines))


def _kitty(encoded: str, lines: int) -> Iterator[str]:
    """`q=2`: the terminal answers nothing, which would look as if it had been typed."""
    for at in range(0, len(encoded), CHUNK_CHARACTERS):
        first = f"a=T,f=100,q=2,r={lines}," if at == 0 else "q=2,"
        more = int(at + CHUNK_CHARACTERS < len(encoded))
        yield f"\x1b_G{first}m={more};{encoded[at : at + CHUNK_CHARACTERS]}\x1b\\"
