"""Only whole pictures leave, with every pixel they had and nothing of what they told about their owner."""

import base64
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from tests.tools.pictures_for_tests import picture, pixels
from tools import decoder, sources
from tools import pixels as decoding
from tools.errors import Refused
from tools.models import catalogue
from tools.pictures import PNG, jpeg_pieces, measure, png_chunks, webp_chunks
from tools.sources import Source, check_markup, check_mask, decode, vet

CANARY = "CANARY-35.6586N-139.7454E"
XMP = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a>{CANARY}</a></x:xmpmeta>".encode()
KINDS = ("png", "jpeg", "webp")
LIMITS = catalogue().limits
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ROOT = Path(__file__).resolve().parents[2]


def exif(orientation: int | None = None) -> Image.Exif:
    block = Image.Exif()
    block[0x010E] = CANARY  # description
    block.get_ifd(0x8825)[1] = CANARY  # GPS
    block.get_ifd(0x8769)[0x9286] = CANARY.encode()  # comment
    if orientation is not None:
        block[0x0112] = orientation
    return block


def image(mode: str = "RGB", width: int = 48, height: int = 32) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 30).convert(mode)


def saved(kind: str, drawn: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    drawn.save(out, kind.upper(), **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(data: bytes, *chunks: bytes, behind: bytes = b"IHDR") -> bytes:
    end = next(found.end for found in png_chunks(data) if found.kind == behind)
    return data[:end] + b"".join(chunks) + data[end:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def webp_with(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    body = data[8:] + b"".join(kind + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for kind, b in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def telling(kind: str, orientation: int | None = None) -> bytes:
    """A picture that tells about its owner in every place its kind has for that."""
    marked = CANARY.encode()
    if kind == "png":
        words = PngImagePlugin.PngInfo()
        words.add_text("Comment", CANARY)
        words.add_text("Compressed", CANARY, zip=True)
        words.add_itxt("XML:com.adobe.xmp", XMP.decode())
        data = saved(kind, image(), exif=exif(orientation), pnginfo=words, icc_profile=PROFILE)
        own = (chunk(b"prVt", marked), chunk(b"tIME", b"\x07\xea\1\1\1\1\1"), chunk(b"sPLT", marked), chunk(b"gAMA", marked))
        return png_with(data, *own) + marked
    if kind == "jpeg":
        data = saved(kind, image(), exif=exif(orientation), comment=marked, xmp=XMP, icc_profile=PROFILE, quality=90)
        own = [segment(marker, marked) for marker in (*range(0xE1, 0xEE), 0xEF, 0xFE, 0xE0, 0xEE)]
        own += [segment(0xED, b"Photoshop 3.0\x008BIM" + marked), segment(0xE2, b"FPXR\0" + marked)]
        own += [segment(0xE0, b"JFXX\0\x10" + marked), segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + marked)]
        jfif = b"JFIF\0\1\1\0\0\1\0\1\1\4" + marked[:12]
        return jpeg_with(data, segment(0xE0, jfif), *own) + marked + saved(kind, image(width=16, height=16))
    data = saved(kind, image(), exif=exif(orientation), xmp=XMP, icc_profile=PROFILE, lossless=True)
    return webp_with(data, (b"prvt", marked), (b"XMP ", XMP)) + marked


def refusal(data: bytes, *, name: str = "reference_image_path") -> Refused:
    with pytest.raises(Refused) as caught:
        vet(data, name=name)
    assert caught.value.argument == name and name in str(caught.value) and str(caught.value).endswith(".")
    return caught.value


def kept(data: bytes) -> set[bytes | int]:
    match measure(data).format:
        case "png":
            return {found.kind for found in png_chunks(data)}
        case "jpeg":
            return {marker for marker, _, _ in jpeg_pieces(data)}
        case _:
            return {found.kind for found in webp_chunks(data)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_picture_tells_about_its_owner_stays_here(kind: str) -> None:
    data = telling(kind)
    assert CANARY.encode() in data
    found = vet(data, name="x")
    assert found[1:] == (kind, 48, 32)
    for hint in (CANARY.encode(), b"Exif", b"xmp", b"Photoshop", b"JFXX", b"FPXR"):
        assert hint not in found.data
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(found.data)) as after:
        assert after.info["icc_profile"] == before.info["icc_profile"] == PROFILE
        assert not after.getexif() and not {"comment", "exif", "xmp", "photoshop", "mp", "Comment"} & set(after.info)
        assert after.tobytes() == before.tobytes() and after.mode == before.mode
    assert vet(found.data, name="x") == found


def test_what_announces_the_cut_out_parts_is_cut_out_with_them() -> None:
    webp, jpeg = (vet(telling(kind), name="x").data for kind in ("webp", "jpeg"))
    assert next(found.body[0] for found in webp_chunks(webp) if found.kind == b"VP8X") == 0x20  # only the profile
    assert b"JFIF\0\1\1\0\0\1\0\1\0\0" in jpeg and b"JFIF\0\1\1\0\0\1\0\1\1\4" not in jpeg  # no preview


def test_a_large_colour_profile_in_a_png_is_kept_and_not_unpacked() -> None:
    profile = chunk(b"iCCP", b"large\0\0" + zlib.compress(bytes(5_000_000)))
    data = png_with(picture("png"), profile)
    assert vet(data, name="x").data == data


@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_finds_nothing_of_the_owner_either(kind: str, exiftool: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    for data, told in ((telling(kind), True), (vet(telling(kind), name="x").data, False)):
        path.write_bytes(data)
        command = [*exiftool, "-a", "-G1", "-ee", "-b", str(path)]
        shown = subprocess.run(command, check=False, capture_output=True, timeout=60).stdout
        assert (CANARY.encode() in shown) is told
        assert told or b"GPS" not in shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_tells_nothing_leaves_as_it_came(kind: str) -> None:
    data = picture(kind)
    assert vet(data, name="x") == Source(data, kind, 48, 32)


def test_what_a_viewer_needs_stays() -> None:
    words = [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", bytes(32)), chunk(b"pHYs", bytes(9))]
    words += [chunk(b"sBIT", b"\5\6\5"), chunk(b"cICP", b"\1\x0d\0\1"), chunk(b"mDCV", bytes(24)), chunk(b"cLLI", bytes(8))]
    words += [chunk(b"sRGB", b"\0")]
    data = png_with(saved("png", image("P"), transparency=3), *words)
    assert vet(data, name="x").data == data
    adobe = saved("jpeg", image("CMYK"))
    assert 0xEE in kept(adobe) and vet(adobe, name="x").data == adobe


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_is_accepted_in_every_mode(mode: str) -> None:
    drawn = image("L").convert(mode) if mode != "I;16" else Image.new("I;16", (48, 32), 40_000)
    data = saved("png", drawn)
    assert vet(data, name="x").data == data


def test_png_of_16_bits_and_interlaced_is_accepted_as_it_is() -> None:
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    deep = PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert vet(deep, name="x").data == deep


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_accepted_in_every_mode(mode: str, options: dict[str, object]) -> None:
    data = saved("jpeg", image(mode, 300, 200), **options)
    assert vet(data + b"trailer \xff\xd9", name="x").data == data


def test_webp_is_accepted_in_every_form() -> None:
    for mode in ("RGB", "RGBA"):
        for options in ({"lossless": True}, {"quality": 50}, {"quality": 50, "icc_profile": PROFILE}):
            data = saved("webp", image(mode), **options)
            assert vet(data + b"trailer", name="x").data == data
            found = vet(webp_with(saved("webp", image(mode), xmp=XMP, **options)), name="x")
            assert pixels(found.data) == pixels(data) and XMP not in found.data
            assert int.from_bytes(found.data[4:8], "little") == len(found.data) - 8


def test_the_second_picture_of_a_telephone_s_jpeg_goes_the_first_stays() -> None:
    data = saved("mpo", image(), save_all=True, append_images=[image(width=16, height=16)])
    found = vet(data, name="x")
    assert b"MPF" in data and b"MPF" not in found.data and found.data.count(b"\xff\xd8\xff") == 1
    assert pixels(found.data) == pixels(data)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_baked_as_pillow_would(kind: str, orientation: int) -> None:
    data = telling(kind, orientation)
    found = vet(data, name="x")
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened)
    with Image.open(io.BytesIO(found.data)) as upright:
        assert upright.size == expected.size == (found.width, found.height) == measure(found.data)[1:]
        assert upright.info["icc_profile"] == PROFILE and not upright.getexif()
        if kind == "jpeg":
            pairs = zip(upright.convert("RGB").tobytes(), expected.convert("RGB").tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) < 40
            assert orientation < 2 or upright.layer[0][1:3] == upright.layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]
        else:
            assert upright.tobytes() == expected.tobytes() and upright.mode == expected.mode
    assert CANARY.encode() not in found.data
    assert vet(found.data, name="x") == found


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_turned_png_keeps_its_mode_its_transparency_and_its_colours(mode: str) -> None:
    drawn = image("L").convert(mode) if mode != "I;16" else Image.new("I;16", (48, 32), 40_000)
    options = {"transparency": 0} if mode == "P" else {}
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    data = png_with(saved("png", drawn, exif=exif(6), **options), gamma)
    found = vet(data, name="x")
    with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(found.data)) as upright:
        expected = ImageOps.exif_transpose(opened)
        assert upright.mode == opened.mode and upright.tobytes() == expected.tobytes()
        assert upright.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()
    assert gamma in found.data and kept(found.data) <= {b"IHDR", b"gAMA", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def test_a_turned_cmyk_jpeg_stays_cmyk() -> None:
    found = vet(saved("jpeg", image("CMYK"), exif=exif(3)), name="x")
    with Image.open(io.BytesIO(found.data)) as upright:
        assert upright.mode == "CMYK"
        near = image("CMYK").transpose(Image.Transpose.ROTATE_180).tobytes()
        assert sum(abs(a - b) for a, b in zip(upright.tobytes(), near, strict=True)) / len(near) < 8


def test_a_picture_turned_twice_in_its_exif_follows_the_first() -> None:
    data = saved("jpeg", image(), exif=exif(6))
    assert vet(jpeg_with(data, segment(0xE1, b"Exif\0\0" + exif(1).tobytes()[6:])), name="x")[2:] == (48, 32)


@pytest.mark.parametrize(
    "block",
    [b"", b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\1\x12\0\3\0\0\0\1\0", b"junk" * 9,
     b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0"],
)  # fmt: skip
def test_an_exif_that_makes_no_sense_is_dropped(block: bytes) -> None:
    data = jpeg_with(picture("jpeg"), segment(0xE1, b"Exif\0\0" + block))
    assert vet(data, name="x").data == picture("jpeg")


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_refused(kind: str) -> None:
    whole = picture(kind, 20, 20)
    for end in range(16, len(whole)):
        assert refusal(whole[:end]).code == "bad_picture"


def test_damage_is_refused() -> None:
    png = bytearray(picture("png"))
    png[len(png) // 2] ^= 0xFF
    assert "IDAT" in str(refusal(bytes(png)))
    webp = bytearray(picture("webp"))
    webp[21:23] = b"\xff\xff"  # the length of its first partition
    jpeg = picture("jpeg")
    scan = next(end for marker, _, end in jpeg_pieces(jpeg) if marker == 0xDB)
    short = PNG + b"".join(chunk(found.kind, bytes(found.body[:40])) for found in png_chunks(picture("png")))
    hollow = b"RIFF\x04\0\0\0WEBP"
    for data in (
        bytes(webp), jpeg[:scan] + b"\0\0" + jpeg[scan:], jpeg_with(jpeg, segment(0xF7, b"1")), jpeg[:2] + b"\xff\xd9",
        jpeg_with(jpeg, jpeg), short, hollow, PNG + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b""),
        png_with(picture("png"), chunk(b"CgBI", bytes(4))), png_with(picture("png"), chunk(b"\0\0\0\0", b"")),
        webp_with(picture("webp"), (b"VP8 ", b"x" * 10)), PNG + b"<html>", b"\xff\xd8\xff<?php",
    ):  # fmt: skip
        assert refusal(data).code == "bad_picture", data[:20]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (picture("gif"), "GIF"), (b"<svg xmlns='x'></svg>", "SVG"), (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"), (b"\0\0\0\x18ftypisom\0\0\0\0", "video"), (b"%PDF-1.7\n", "PDF"),
        (b"II*\0\x08\0\0\0", "TIFF"), (saved("bmp", image()), "BMP"), (saved("tiff", image()), "TIFF"),
        (b"PK\3\4 and more", "ZIP"), (b"8BPS\0\1", "Photoshop"), (b"\0\0\1\0\1\0", "icon"), (b"", "empty"),
        (b"root:x:0:0:", "text"), ("漢字".encode() * 400, "text"), (b"\x7fELF\2\1\1\0", "unknown"), (b"\xfe\xff\xfe", "unknown"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"), (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named_for_what_it_is(data: bytes, said: str) -> None:
    caught = refusal(data, name="mask_image_path")
    assert caught.code == "unsupported_source" and said in str(caught)
    assert "root:x" not in str(caught)


def test_animations_are_refused() -> None:
    frames = [image(), image().transpose(Image.Transpose.ROTATE_180)]
    for kind in ("png", "webp"):
        caught = refusal(saved(kind, frames[0], save_all=True, append_images=frames[1:]))
        assert caught.code == "unsupported_source" and "animation" in str(caught)


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    flat = Image.new("1", (8000, 8000))
    jpeg = saved("jpeg", Image.new("L", (8000, 8000)), quality=1)
    return {
        "header": huge_png(60_000, 60_000),
        "png": saved("png", flat),
        "jpeg": jpeg,
        "webp": saved("webp", Image.new("RGB", (7100, 7100)), lossless=True, method=0),
    }


@pytest.mark.parametrize("kind", ["header", "png", "jpeg", "webp"])
def test_a_bomb_is_refused_without_being_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bombs()[kind]
    assert len(data) < 2_000_000

    def exploded(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(decoder, "_exchange", exploded)
    caught = refusal(data)
    size = measure(data)
    assert caught.code == "too_large" and f"{size.width * size.height:,} pixels" in str(caught)
    assert f"{LIMITS.edit_input_pixels_max:,}" in str(caught)


def smaller_than_it_is(kind: str) -> bytes:
    """Its beginning speaks of 8x8 pixels, its bytes hold 3000x3000."""
    large = Image.new("RGB", (3000, 3000))
    if kind == "webp":
        data = saved("webp", large, lossless=True)
        vp8x = struct.pack("<I", 10) + bytes(4) + (7).to_bytes(3, "little") * 2
        return b"RIFF" + struct.pack("<I", len(data) - 8 + 18) + b"WEBPVP8X" + vp8x + data[12:]
    if kind == "png":
        data = saved("png", large)
        return png_with(PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + data[len(PNG) :])
    data = saved("jpeg", large)
    frame = next((start, end) for marker, start, end in jpeg_pieces(data) if marker == 0xC0)
    small = bytearray(data[slice(*frame)])
    small[5:9] = b"\0\x08\0\x08"
    return data[: frame[1]] + bytes(small) + data[frame[1] :]


def decode_in_this_process(line: bytes, data: bytes, answer_bytes_max: int) -> bytes:
    try:
        decoding.make(line.decode(), data)
    except decoding.Undecodable as exc:
        return f"no {exc}\n".encode()
    return b"ok 0\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_larger_than_it_says_is_refused_without_being_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def exploded(*args: object) -> None:
        raise AssertionError("it was decoded")

    data = smaller_than_it_is(kind)
    assert measure(data)[1:] == (8, 8)
    assert refusal(data).code == "bad_picture"
    monkeypatch.setattr(Image.Image, "load", exploded)
    monkeypatch.setattr(decoder, "_exchange", decode_in_this_process)
    assert refusal(data).code == "bad_picture"


def test_rows_beyond_the_last_one_are_never_unpacked() -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(600_000_000), 9)
    data = PNG + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    script = (
        "import resource, sys; from tools.sources import vet;"
        "data = sys.stdin.buffer.read(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(vet(data, name='x')[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, timeout=60, cwd=ROOT, check=True)
    size, grown = done.stdout.decode().rsplit(" ", 1)
    assert size == "('png', 8, 8)"
    assert int(grown) < 100_000 * (1024 if sys.platform == "darwin" else 1)  # kilobytes; Linux counts in them


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_in_too_many_pieces_is_not_walked_to_its_end(kind: str) -> None:
    data = picture(kind)
    many = {
        "png": lambda: png_with(data, chunk(b"tEXt", b"") * 200_000),
        "jpeg": lambda: jpeg_with(data, segment(0xFE, b"") * 200_000),
        "webp": lambda: webp_with(data, *[(b"prvt", b"")] * 200_000),
    }[kind]()
    caught = refusal(many)
    assert caught.code == "bad_picture" and "100,000" in str(caught)


def test_a_jpeg_of_markers_that_stand_alone_is_not_walked_to_its_end() -> None:
    assert refusal(jpeg_with(picture("jpeg"), b"\xff\xd0" * 200_000)).code == "bad_picture"
    assert refusal(b"\xff\xd8" + b"\xff" * 5_000_000).code == "bad_picture"


def test_a_jpeg_of_countless_scans_is_not_decoded() -> None:
    data = saved("jpeg", image(), progressive=True)
    start, end = next((start, end) for marker, start, end in jpeg_pieces(data) if marker == 0xDA)
    caught = refusal(data[:start] + data[start:end] * 200 + data[end:])
    assert caught.code == "bad_picture" and "scans" in str(caught)


def test_too_many_bytes_are_refused_before_anything_else() -> None:
    caught = refusal(bytes(LIMITS.edit_input_bytes_max))
    assert caught.code == "too_large" and "50,000,000 bytes" in str(caught)


def test_a_picture_that_grows_too_large_when_it_is_turned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved("webp", Image.effect_noise((200, 200), 90).convert("RGB"), quality=5, exif=exif(6))
    limits = structs.replace(LIMITS, edit_input_bytes_max=len(data) + 1)
    monkeypatch.setattr(sources, "catalogue", lambda: structs.replace(catalogue(), limits=limits))
    assert refusal(data).code == "too_large"


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    orientation=st.sampled_from([None, 6]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_picture_is_vetted_or_refused_with_a_sentence(
    kind: str, orientation: int | None, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(TELLING[kind, orientation])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = vet(bytes(data), name="x")
        assert measure(found.data) == found[1:]
    except Refused as exc:
        assert exc.code in ("bad_picture", "unsupported_source", "too_large") and str(exc)


TELLING = {(kind, orientation): telling(kind, orientation) for kind in KINDS for orientation in (None, 6)}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_garbage_is_refused_with_a_sentence(tail: bytes, kind: str) -> None:
    for data in (tail, picture(kind)[:30] + tail):
        assert refusal(data).code in ("bad_picture", "unsupported_source", "too_large")


FIRST = Source(b"", "jpeg", 48, 32)


def mask(mode: str = "RGBA", size: tuple[int, int] = (48, 32), alpha: int = 0, **options: object) -> bytes:
    drawn = Image.new(mode, size)
    if mode in ("RGBA", "LA"):
        drawn.putalpha(255)
        drawn.putpixel((5, 5), (*[0] * (len(mode) - 1), alpha))
    return saved("png", drawn, **options)


CHECKS = [(check_mask, "bad_mask", "mask_image"), (check_markup, "bad_markup", "markup_image")]


@pytest.mark.parametrize(("check", "code", "name"), CHECKS)
def test_a_mask_that_fits_and_is_transparent_somewhere_is_taken(check: object, code: str, name: str) -> None:
    for data in (mask(), mask("LA"), mask("P", transparency=0), mask("RGB", transparency=(0, 0, 0)), mask(alpha=254)):
        assert check(data, FIRST) == Source(data, "png", 48, 32)  # type: ignore[operator]
    cleaned = check(png_with(mask(), chunk(b"tEXt", CANARY.encode())) + b"trailer", FIRST)  # type: ignore[operator]
    assert cleaned.data == mask()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (mask(size=(48, 33)), "48x33 pixels, the first picture, upright, 48x32"),
        (mask(size=(32, 48)), "32x48"),
        (mask("RGB"), "no alpha channel"),
        (mask("L"), "no alpha channel"),
        (mask(alpha=255), "opaque everywhere"),
        (mask("RGB", transparency=(1, 2, 3)), "opaque everywhere"),
        (saved("webp", Image.new("RGBA", (48, 32))), "webp"),
        (picture("jpeg"), "jpeg"),
        (picture("gif"), "GIF"),
        (mask()[:-1], "cut off"),
        (huge_png(60_000, 60_000), "3,600,000,000 pixels"),
    ],
)
@pytest.mark.parametrize(("check", "code", "name"), CHECKS)
def test_a_mask_that_would_be_of_no_use_is_refused(data: bytes, said: str, check: object, code: str, name: str) -> None:
    for arguments in ({}, {"name": f"{name}_path"}):
        with pytest.raises(Refused) as caught:
            check(data, FIRST, **arguments)  # type: ignore[operator]
        assert said in str(caught.value) and caught.value.code == code
        assert caught.value.argument == arguments.get("name", name) and caught.value.argument in str(caught.value)


def test_a_mask_is_compared_with_the_first_picture_as_it_is_seen() -> None:
    first = vet(saved("jpeg", image(), exif=exif(6)), name="x")
    assert check_mask(mask(size=(32, 48)), first)[2:] == (32, 48)
    assert check_mask(mask(exif=exif(6)), first)[2:] == (32, 48)
    with pytest.raises(Refused, match="32x48; make it the same size"):
        check_mask(mask(), first)


def test_a_mask_has_its_own_limit_of_bytes() -> None:
    noise = Image.effect_noise((1200, 1200), 90)
    data = saved("png", Image.merge("RGBA", [noise, noise.rotate(90), noise.rotate(180), noise.rotate(270)]))
    assert len(data) > LIMITS.mask_bytes_max
    first = Source(b"", "png", 1200, 1200)
    with pytest.raises(Refused) as caught:
        check_mask(data, first)
    assert caught.value.code == "bad_mask" and f"{len(data):,} bytes" in str(caught.value) and "4,000,000" in str(caught.value)
    assert check_markup(data, first).data == data


DATA = bytes(range(256)) + b"\xfb\xff"
PLAIN, SAFE = base64.b64encode(DATA).decode(), base64.urlsafe_b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN, SAFE, PLAIN.rstrip("="), f" \r\n{PLAIN}\n", "\n".join(PLAIN[i : i + 76] for i in range(0, len(PLAIN), 76)),
        f"data:image/png;base64,{PLAIN}", f"DATA:;BASE64,{PLAIN}", f"data:image/png;name=x.png;base64,\n{PLAIN}",
        f"data:text/plain;base64,{SAFE}",
    ],
)  # fmt: skip
def test_base64_is_read_in_all_the_ways_it_is_written(text: str) -> None:
    assert decode(text, name="reference_image_base64", bytes_max=len(DATA)) == DATA


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"), (" \n", "empty"), ("====", "empty"), ("data:image/png;base64,", "empty"),
        ("data:image/svg+xml,<svg/>", "without base64"), ("data:image/png;base64", "without base64"),
        ("QUJD*A==", "U+002A"), ("QUJDé", "U+00E9"), ("https://x.example/a.png", "U+003A"), ("/home/me/a.png", "U+002E"),
        ("QQ==QUJD", "U+003D"), ("QUJ+-_", "U+002D"), ("QUJDR", "cut off"), ("QQ=", "padded"), ("QUI===", "padded"),
        ("QUJD=", "padded"), ("QUJD\0", "U+0000"), ("QU\u3000JD", "U+3000"),
    ],
)  # fmt: skip
def test_what_is_no_base64_is_refused(text: str, said: str) -> None:
    with pytest.raises(Refused) as caught:
        decode(text, name="mask_image_base64", bytes_max=1000)
    assert (caught.value.code, caught.value.argument) == ("bad_base64", "mask_image_base64")
    assert said in str(caught.value) and "mask_image_base64" in str(caught.value)


def test_base64_of_too_much_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def exploded(*args: object, **kwargs: object) -> bytes:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(sources.binascii, "a2b_base64", exploded)
    with pytest.raises(Refused) as caught:
        decode(PLAIN, name="x", bytes_max=len(DATA) - 1)
    assert caught.value.code == "too_large"
    assert f"{len(DATA)} bytes" in str(caught.value) and f"{len(DATA) - 1} are allowed" in str(caught.value)


@given(st.binary(min_size=1, max_size=100), st.booleans(), st.booleans())
def test_whatever_was_encoded_comes_back(data: bytes, safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    assert decode(text if padded else text.rstrip("="), name="x", bytes_max=len(data)) == data


@given(st.text(max_size=60))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        assert len(decode(text, name="x", bytes_max=20)) <= 20
    except Refused as exc:
        assert exc.code in ("bad_base64", "too_large")
