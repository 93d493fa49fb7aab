"""Pixels are decoded in processes that are thrown away: whatever these do, the asker gets a picture or a sentence."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tools.pictures_for_tests import picture, pixels
from tools import decoder
from tools.pictures import BadPicture, Measured, measure, sniff

KINDS = ("png", "jpeg", "webp", "gif")
ROOT = Path(__file__).resolve().parents[2]
PLENTY = 1_000_000

StartStem = Callable[[str], None]

_EVIL = """
import socket
control = socket.socket(fileno=0)
while True:
    _, descriptors, *_ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        break
    connection = socket.socket(fileno=descriptors[0])
    {behaviour}
"""


def jpeg_of(data: bytes, edge: int, quality: int = 60) -> bytes:
    return decoder.preview(data, (edge,), quality, bytes_max=PLENTY)[0]


@pytest.fixture
def start_stem(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartStem]:
    """Puts another program in the place of the stem."""
    stem = decoder._Stem()

    def start(program: str) -> None:
        monkeypatch.setattr(
            decoder, "command", lambda: [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{program}"]
        )
        monkeypatch.setattr(decoder, "_stem", stem)

    yield start
    stem.stop()


def test_a_preview_fits_and_is_never_enlarged() -> None:
    for size, expected in (((400, 200), (128, 64)), ((20, 10), (20, 10))):
        assert measure(jpeg_of(picture("png", *size, mode="RGBA"), 128)) == ("jpeg", *expected)


def test_a_preview_is_the_largest_that_has_room_or_else_the_smallest() -> None:
    data = picture("png", 800, 600)
    large, small = jpeg_of(data, 400), jpeg_of(data, 40)
    for room, expected in ((len(large), (400, len(large))), (len(large) - 1, (40, len(small))), (1, (40, len(small)))):
        jpeg, edge = decoder.preview(data, (400, 40), 60, bytes_max=room)
        assert (edge, len(jpeg)) == pytest.approx(expected, rel=0.1) and max(measure(jpeg)[1:]) == edge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_every_kind_is_decoded_where_nothing_can_be_opened(kind: str, mode: str) -> None:
    data = picture(kind, 300, 200, "RGB" if kind == "jpeg" and mode in ("RGBA", "P", "LA") else mode)
    assert measure(jpeg_of(data, 30)) == ("jpeg", 30, 20)
    assert measure(decoder.png(data)) == ("png", 300, 200)
    if kind != "gif":
        decoder.prove(data, measure(data))
        assert measure(decoder.turn(data, measure(data), 5, bytes_max=PLENTY)) == (kind, 200, 300)


def test_a_camera_s_jpeg_is_shown() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0128] = 6, 300.0, 2
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))], exif=exif)
    assert measure(jpeg_of(out.getvalue(), 32)) == ("jpeg", 32, 24)


def test_what_is_transparent_is_shown_on_white() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(out, "PNG")
    with Image.open(io.BytesIO(jpeg_of(out.getvalue(), 8, 90))) as small:
        assert small.mode == "RGB" and min(small.getpixel((4, 4))) >= 250  # type: ignore[arg-type]
        assert small.info.get("progressive")


def test_a_png_of_a_jpeg_has_its_pixels() -> None:
    data = picture("jpeg")
    assert pixels(decoder.png(data)) == pixels(data)


def test_pixels_come_as_large_as_asked() -> None:
    red = io.BytesIO()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(red, "PNG")
    assert decoder.fitted(red.getvalue(), 10, 10, cut=True) == ((10, 10), b"\xff\0\0\xff" * 100)
    assert decoder.fitted(red.getvalue(), 10, 10, cut=False) == ((10, 5), b"\xff\0\0\xff" * 50)


def test_an_svg_is_not_rendered() -> None:
    with pytest.raises(BadPicture, match="not rendered"):
        jpeg_of(b"<svg xmlns='x'></svg>", 64)


def test_a_jpeg_that_gives_two_sizes_is_not_decoded_at_the_larger() -> None:
    small, large = picture("jpeg", 16, 16), picture("jpeg", 320, 320)
    frame = large.index(b"\xff\xc0")
    length = 2 + int.from_bytes(large[frame + 2 : frame + 4], "big")
    with pytest.raises(BadPicture):
        jpeg_of(small[:2] + large[frame : frame + length] + small[2:], 8)


def test_a_gif_with_a_frame_larger_than_its_screen_is_not_decoded() -> None:
    spliced = bytearray(picture("gif", 300, 200))
    spliced[6:10] = (8).to_bytes(2, "little") * 2
    assert measure(bytes(spliced)) == ("gif", 8, 8)
    with pytest.raises(BadPicture, match="two different sizes"):
        jpeg_of(bytes(spliced), 8)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_a_damaged_picture_gives_a_preview_or_a_sentence(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(picture(kind, 24, 24))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert sniff(jpeg_of(bytes(data), 16)) == "jpeg"
    except BadPicture as exc:
        assert str(exc) and "took more memory" not in str(exc)


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    Image.new("1", (8000, 8000)).save(out, "PNG")
    monkeypatch.setattr(decoder, "_exchange", lambda *_: pytest.fail("it was given to a decoder"))
    with pytest.raises(BadPicture, match="too many"):
        jpeg_of(out.getvalue(), 128)


def test_a_picture_that_cannot_be_decoded_is_refused() -> None:
    whole = bytearray(picture("png", 64, 64))
    middle = len(whole) // 2
    whole[middle : middle + 20] = bytes(20)
    with pytest.raises(BadPicture, match="cannot be decoded"):
        jpeg_of(bytes(whole), 32)


SMALL = picture("jpeg", 8, 8).hex()


@pytest.mark.parametrize(
    "behaviour",
    [
        "connection.close()",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "connection.sendall(b'\\xff' * 5000); connection.close()",
        "connection.sendall(b'ok'); connection.close()",
        "connection.sendall(b'ok \\n'); connection.close()",
        "connection.sendall(b'ok 3 64\\nab'); connection.close()",
        "connection.sendall(b'ok 2 64\\nabc'); connection.close()",
        "connection.sendall(b'ok ' + b'9' * 6000 + b'\\n'); connection.close()",
        "connection.sendall(b'no ' + b'word ' * 6000); connection.close()",
        "connection.sendall(b'ok 3 64\\nabc'); connection.close()",
        f"body = bytes.fromhex('{SMALL}'); connection.sendall(b'ok %d 4\\n' % len(body) + body); connection.close()",
        f"body = bytes.fromhex('{SMALL}'); connection.sendall(b'ok %d\\n' % len(body) + body); connection.close()",
        f"body = bytes.fromhex('{picture('png', 8, 8).hex()}'); connection.sendall(b'ok %d 64\\n' % len(body) + body); "
        "connection.close()",
        f"body = bytes.fromhex('{picture('jpeg', 65, 8).hex()}'); connection.sendall(b'ok %d 64\\n' % len(body) + body); "
        "connection.close()",
        "try:\n        while True: connection.sendall(b'ok 1 ' * 10_000)\n    except OSError: pass",
    ],
)
def test_whatever_is_answered_instead_of_a_picture_is_a_refusal(start_stem: StartStem, behaviour: str) -> None:
    start_stem(_EVIL.format(behaviour=behaviour))
    with pytest.raises(BadPicture):
        jpeg_of(picture("png"), 64)


@pytest.mark.parametrize("answer", ["ok 64 4 4\\n", "ok 64 4\\n", "ok 64 8 8\\n", "ok 65 4 4\\n", "ok 64 4 4 4\\n"])
def test_pixels_are_believed_only_in_the_number_that_was_asked_for(start_stem: StartStem, answer: str) -> None:
    start_stem(_EVIL.format(behaviour=f"connection.sendall(b'{answer}' + bytes(64)); connection.close()"))
    if answer == "ok 64 4 4\\n":
        assert decoder.fitted(picture("png"), 4, 4, cut=True) == ((4, 4), bytes(64))
    else:
        with pytest.raises(BadPicture, match="broke the decoder"):
            decoder.fitted(picture("png"), 4, 4, cut=True)
    with pytest.raises(BadPicture, match="broke the decoder"):
        decoder.fitted(picture("png"), 3, 5, cut=True)  # fewer than that


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_what_was_turned_is_believed_only_in_its_format_and_size(start_stem: StartStem, kind: str) -> None:
    body = picture(kind, 32, 48)
    start_stem(
        _EVIL.format(
            behaviour=f"body = bytes.fromhex('{body.hex()}')\n    "
            "connection.sendall(b'ok %d\\n' % len(body) + body)\n    connection.close()"
        )
    )
    assert decoder.turn(picture(kind), Measured(kind, 48, 32), 6, bytes_max=PLENTY) == body
    for found, orientation in ((Measured(kind, 48, 32), 3), (Measured("webp", 48, 32), 6), (Measured(kind, 48, 33), 6)):
        with pytest.raises(BadPicture, match="broke the decoder"):
            decoder.turn(picture(kind), found, orientation, bytes_max=PLENTY)


def test_what_never_answers_is_given_up(start_stem: StartStem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "WALL_SECONDS_MAX", 0.2)
    start_stem(_EVIL.format(behaviour="kept = connection"))
    for data in (picture("png"), picture("png") + bytes(5_000_000)):  # it does not even read
        with pytest.raises(BadPicture, match="takes longer"):
            decoder.prove(data, Measured("png", 48, 32))


def test_what_talks_slowly_without_end_is_given_up(start_stem: StartStem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "WALL_SECONDS_MAX", 0.4)
    slowly = "import time\n    try:\n        while True: connection.sendall(b'o'); time.sleep(0.05)\n    except OSError: pass"
    start_stem(_EVIL.format(behaviour=slowly))
    with pytest.raises(BadPicture, match="takes longer"):
        jpeg_of(picture("png"), 64)


def test_a_stem_that_has_ended_is_started_again() -> None:
    before = jpeg_of(picture("png"), 64)
    assert decoder._stem._process is not None
    decoder._stem._process.kill()
    decoder._stem._process.wait()
    assert jpeg_of(picture("png"), 64) == before


def test_a_stem_that_does_not_start_is_a_refusal(monkeypatch: pytest.MonkeyPatch, start_stem: StartStem) -> None:
    start_stem("sys.exit(1)")
    with pytest.raises(BadPicture):
        jpeg_of(picture("png"), 64)
    monkeypatch.setattr(decoder, "_stem", decoder._Stem())
    monkeypatch.setattr(decoder, "command", lambda: ["/nonexistent/program"])
    with pytest.raises(BadPicture, match="cannot be started"):
        jpeg_of(picture("png"), 64)


@pytest.mark.parametrize(
    ("limit", "hostile"),
    [
        ("MEMORY_BYTES_MAX = 300 << 20", "bytearray(400 << 20)"),
        ("CPU_SECONDS_MAX = 1", "max(iter(int, 1))"),
        ("WALL_SECONDS_MAX = 1", "__import__('threading').Event().wait()"),
    ],
)
def test_memory_processor_and_time_are_limited(
    start_stem: StartStem, limit: str, hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "WALL_SECONDS_MAX", 20)
    start_stem(
        f"from tools import decoder, pixels\ndecoder.{limit}\npixels.load = lambda: None\n"
        f"pixels.make = lambda request, data: {hostile} or pixels.Made((), b'')\nsys.exit(decoder.serve())"
    )
    with pytest.raises(BadPicture, match="memory or time"):
        decoder.prove(picture("png"), Measured("png", 48, 32))


def test_memory_that_does_not_suffice_is_a_sentence(start_stem: StartStem) -> None:
    out = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(out, "PNG", compress_level=1)
    start_stem("from tools import decoder\ndecoder.MEMORY_BYTES_MAX = 120 << 20\nsys.exit(decoder.serve())")
    with pytest.raises(BadPicture, match="more memory"):
        jpeg_of(out.getvalue(), 64)


CONFINED = """
import os, socket, sys
from tools import decoder
ours, theirs = socket.socketpair()
if os.fork() == 0:
    said = []
    try:
        decoder.confine(theirs.fileno())
        opening = lambda: open("/etc/passwd"), socket.socket, lambda: os.open("/", 0), os.pipe, lambda: os.dup(0)
        for attempt in (*opening, lambda: os.write(1, b"x")):
            try:
                said.append(repr(attempt()))
            except OSError as exc:
                said.append(str(exc.errno))
    finally:
        os.write(0, " ".join(said).encode())
        os._exit(0)
theirs.close()
print(ours.recv(1000).decode())
"""


def test_a_decoder_can_open_neither_files_nor_sockets() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, timeout=60, cwd=ROOT, check=True)
    assert done.stdout.decode().split() == ["24"] * 5 + ["9"]  # EMFILE, and EBADF: nothing but its connection is open


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_stem_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.setattr(decoder, "_stem", decoder._Stem())
    with socket.socket() as ours:
        os.set_inheritable(ours.fileno(), True)
        jpeg_of(picture("png"), 64)
    assert decoder._stem._process is not None
    place = Path(f"/proc/{decoder._stem._process.pid}")
    assert (place / "environ").read_bytes() == b""
    assert (place / "cwd").readlink() == Path("/")
    assert sorted(file.name for file in (place / "fd").iterdir()) == ["0", "1", "2"]
    assert os.getsid(decoder._stem._process.pid) == decoder._stem._process.pid
    decoder._stem.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_nothing_is_left_of_what_was_thrown_away() -> None:
    for _ in range(5):
        jpeg_of(picture("png"), 64)
    assert decoder._stem._process is not None
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        jpeg_of(picture("png"), 64)
    pid = decoder._stem._process.pid
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    states = [Path(f"/proc/{child}/stat").read_text() for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert not [state for state in states if ") Z " in state]


def test_the_stand_in_only_draws() -> None:
    assert "Image.open" not in (ROOT / "daemon" / "offline.py").read_text()
