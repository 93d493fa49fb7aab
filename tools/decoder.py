"""Pillow at arm's length: each picture is decoded in a process of its own, which is thrown away afterwards.

    asker ── one end of a socket pair ──► stem ── fork ──► throw-away process: decodes one picture, answers, ends

Rule: who asks has walked the container (`tools.pictures`) and believes of an answer only that it is bytes, which are
walked again. The stem is started with nothing of ours - no environment, no key, no file - never sees a picture, and has
imported everything, so that a fork costs milliseconds and goes on working when the program's files are replaced. What it
forks is limited in memory and time and can open neither files nor sockets. If that dies, hangs or talks nonsense, the
picture is a `BadPicture`; nothing else happens.

Works on systems with fork; the limit on memory is kept by Linux only.
"""

import array  # noqa: F401  # what `socket` imports when the first descriptor is handed over
import atexit
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tools.pictures import BadPicture, Measured, measure

WORD = "decode-pictures"  # the frozen program is the stem when it is its only argument
DECODED_PIXELS_MAX = 50_000_000  # six times the API's largest picture; more is not decoded for a preview
AT_ONCE_MAX = 2  # throw-away processes of one asker
# Turning the largest picture that may be sent takes 1.9 GB of address space (WebP) or 15 s of processor time (PNG) where
# tests/benchmarks/decode.py was last run; every other request takes much less.
MEMORY_BYTES_MAX = 5 << 29
CPU_SECONDS_MAX = 60
WALL_SECONDS_MAX = 90
REQUEST_LINE_BYTES_MAX = 1000
_DIED = "decoding it took more memory or time than one picture may have, or broke the decoder"
_WHY = {
    "damaged": "it cannot be decoded",
    "two-sizes": "it gives two different sizes of itself",
    "memory": "decoding it takes more memory than one picture may have",
}


class Decoded(NamedTuple):
    numbers: tuple[int, ...]
    data: bytes


def prove(data: bytes, found: Measured) -> None:
    """Blocking, as all here.

    Raises:
        BadPicture: it cannot be decoded.
    """
    _ask("prove", found, data=data, answer_bytes_max=0)


def is_opaque(data: bytes, found: Measured) -> bool:
    """Raises:
    BadPicture
    """
    return _ask("is-opaque", found, data=data, answer_bytes_max=0).numbers == (1,)


def turn(data: bytes, found: Measured, orientation: int, *, bytes_max: int) -> bytes:
    """Encoded anew in the same format, upright for the EXIF `orientation` that it has, 2 to 8; walked again.

    Raises:
        BadPicture: it cannot be decoded, or has more than `bytes_max` bytes then.
    """
    turned = _ask("turn", found, orientation, data=data, answer_bytes_max=bytes_max).data
    width, height = (found.height, found.width) if orientation >= 5 else (found.width, found.height)
    return _insist(turned, Measured(found.format, width, height))


def preview(data: bytes, edges_px: tuple[int, ...], quality: int, *, bytes_max: int) -> tuple[bytes, int]:
    """A JPEG that fits into a square, never enlarged, transparency on white; and the square's edge.

    The first of these edges of which it has at most `bytes_max` bytes, or the last.

    Raises:
        BadPicture: it cannot be decoded, or has too many pixels to try.
    """
    found = measure(data)
    if found.format == "svg":
        raise BadPicture("svg is not rendered")
    if found.width * found.height > DECODED_PIXELS_MAX:
        raise BadPicture(f"{found.width}x{found.height} pixels are too many to decode for a preview")
    room = 4 * max(edges_px) ** 2 + 10_000  # a JPEG is smaller than its pixels
    numbers, jpeg = _ask("preview", found, quality, bytes_max, *edges_px, data=data, answer_bytes_max=room)
    made = measure(jpeg)
    if made.format != "jpeg" or numbers[:1] not in [(edge,) for edge in edges_px] or max(made[1:]) > numbers[0]:
        raise BadPicture(_DIED)
    return jpeg, numbers[0]


def png(data: bytes) -> bytes:
    """The same as a PNG.

    Raises:
        BadPicture
    """
    found = measure(data)
    room = 4 * found.width * found.height * 11 // 10 + 10_000
    return _insist(_ask("png", found, data=data, answer_bytes_max=room).data, found._replace(format="png"))


def fitted(data: bytes, width: int, height: int, *, cut: bool) -> Decoded:
    """RGBA, line by line, without gaps; its width and height. With `cut` exactly so large, otherwise as large as fits.

    Raises:
        BadPicture
    """
    word = "cover" if cut else "contain"
    raw = _ask(word, measure(data), width, height, data=data, answer_bytes_max=4 * width * height)
    if len(raw.numbers) != 2 or raw.numbers[0] * raw.numbers[1] * 4 != len(raw.data):
        raise BadPicture(_DIED)
    return raw


def load() -> None:
    """Starts the stem and waits until it works: the first picture then finds it, and no later one needs the program's files."""
    with contextlib.suppress(BadPicture):  # that nothing is no picture; or that there is no stem, which is said when it is needed
        prove(b"", Measured("png", 1, 1))


def _insist(data: bytes, expected: Measured) -> bytes:
    if measure(data) != expected:
        raise BadPicture(_DIED)
    return data


def _ask(word: str, found: Measured, *arguments: int, data: bytes, answer_bytes_max: int) -> Decoded:
    request = " ".join(map(str, (word, *found, *arguments)))
    with _stem.places:
        answer = _exchange(request.encode("ascii") + b"\n", data, REQUEST_LINE_BYTES_MAX + answer_bytes_max)
    line, _, body = answer.partition(b"\n")
    head, *words = line.decode("ascii", "replace").split()[:5] or [""]
    if head == "no":
        raise BadPicture(_WHY.get(" ".join(words), _DIED))
    if head != "ok" or not words or not all(number.isdecimal() and len(number) < 12 for number in words):
        raise BadPicture(_DIED)
    length, *numbers = (int(number) for number in words)
    if length != len(body) or length > answer_bytes_max:
        raise BadPicture(_DIED)
    return Decoded(tuple(numbers), body)


def _exchange(line: bytes, data: bytes, answer_bytes_max: int) -> bytes:
    """What the throw-away process answers, empty if it does not; at most one byte more than allowed."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _stem.hand_over(theirs)
        pieces, room = [], answer_bytes_max + 1
        deadline = time.monotonic() + WALL_SECONDS_MAX
        try:
            ours.settimeout(WALL_SECONDS_MAX)
            ours.sendall(line + data)
            ours.shutdown(socket.SHUT_WR)
            while room > 0:
                ours.settimeout(max(0.001, deadline - time.monotonic()))
                piece = ours.recv(min(room, 1 << 20))
                if not piece:
                    break
                pieces.append(piece)
                room -= len(piece)
        except TimeoutError:
            raise BadPicture("decoding it takes longer than one picture may take") from None
        except OSError:  # it has ended; what it said before may say why
            pass
    return b"".join(pieces)


class _Stem:
    """The process that forks the throw-away ones, started when it is first needed and again when it has ended."""

    def __init__(self) -> None:
        self.places = threading.BoundedSemaphore(AT_ONCE_MAX)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> socket.socket:
        """Raises OSError: it cannot be started."""
        with self._lock:
            if self._process is None or self._control is None or self._process.poll() is not None:
                self._end()
                self._control, theirs = socket.socketpair()
                try:
                    self._process = subprocess.Popen(
                        command(), stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        env={}, cwd="/", start_new_session=True,
                    )  # fmt: skip
                except OSError:
                    self._end()
                    raise
                finally:
                    theirs.close()
            return self._control

    def hand_over(self, connection: socket.socket) -> None:
        """Raises:
        BadPicture: there is no stem and none can be started.
        """
        for _ in range(2):  # one that has just ended is noticed by writing to it
            try:
                socket.send_fds(self.start(), [b"."], [connection.fileno()])
            except (BrokenPipeError, ConnectionResetError):
                self.stop()
            except OSError as exc:
                raise BadPicture(f"the process that decodes pictures cannot be started ({exc.strerror})") from exc
            else:
                return
        raise BadPicture("the process that decodes pictures ends as soon as it is started; start imaged anew")

    def stop(self) -> None:
        """What it has forked goes on to its end."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


_stem = _Stem()
atexit.register(_stem.stop)


def command() -> list[str]:
    """Starts this very program as the stem, with its own packages and Pillow, and nothing else that is installed."""
    if getattr(sys, "frozen", False):
        return [sys.executable, WORD]
    pillow = importlib.util.find_spec("PIL")
    places = [str(Path(__file__).parents[1]), *([str(Path(pillow.origin).parents[1])] if pillow and pillow.origin else [])]
    start = f"import sys; sys.path += {places!r}; from tools import decoder; sys.exit(decoder.serve())"
    return [sys.executable, "-I", "-S", "-c", start]


def serve() -> int:
    """The stem: forks once for every connection that arrives on descriptor 0, until that is closed. The exit status."""
    import resource  # noqa: F401  # for `confine`, where nothing can be opened any more

    from tools import pixels

    pixels.load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended: they answer or they do not
    control = socket.socket(fileno=0)
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        except OSError:
            return 0
        if not descriptors:
            return 0
        with contextlib.suppress(OSError):  # no process to be had: the connection is closed unanswered
            if os.fork() == 0:
                _throw_away(descriptors[0])
        os.close(descriptors[0])


def _throw_away(connection: int) -> None:
    """Answers one request and ends the process, whatever happens."""
    try:
        confine(connection)
        _answer(socket.socket(fileno=0))
    finally:
        os._exit(0)


def confine(connection: int) -> None:
    """This process keeps this descriptor, as number 0, and no other; it can open none, and has limits."""
    import resource

    os.setsid()
    os.dup2(connection, 0)
    os.closerange(1, 1024)
    signal.alarm(WALL_SECONDS_MAX)  # ends it even inside of a decoder
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES_MAX),
        (resource.RLIMIT_CPU, CPU_SECONDS_MAX),
        (resource.RLIMIT_NOFILE, 1),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError):  # macOS knows no limit on memory
            resource.setrlimit(kind, (limit, limit))


def _answer(connection: socket.socket) -> None:
    from tools import pixels

    pieces = []
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
    line, _, data = b"".join(pieces).partition(b"\n")
    del pieces
    try:
        made = pixels.make(line.decode("ascii"), data)
    except pixels.Undecodable as exc:
        connection.sendall(f"no {exc}\n".encode())
        return
    connection.sendall(" ".join(map(str, ("ok", len(made.data), *made.numbers))).encode() + b"\n")
    connection.sendall(made.data)
