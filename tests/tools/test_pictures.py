"""Containers walked by hand: the same sizes as Pillow sees, and no cut, swap or splice goes unseen."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tools.pictures_for_tests import picture
from tools.pictures import BadPicture, measure, sniff, thumbnail

KINDS = ("png", "jpeg", "webp", "gif")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (48, 32), (640, 17)])
def test_a_picture_is_measured_as_pillow_sees_it(kind: str, size: tuple[int, int]) -> None:
    assert measure(picture(kind, *size)) == (kind, *size)


def test_webp_is_measured_in_all_its_forms() -> None:
    for options in ({"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        out = io.BytesIO()
        Image.new("RGBA", (33, 77), (1, 2, 3, 4)).save(out, "WEBP", **options)
        assert measure(out.getvalue()) == ("webp", 33, 77)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_seen(kind: str) -> None:
    whole = picture(kind, 20, 20)
    for end in range(len(whole)):
        with pytest.raises(BadPicture):
            measure(whole[:end])


def test_a_damaged_png_header_is_seen() -> None:
    whole = bytearray(picture("png"))
    whole[18] ^= 1
    with pytest.raises(BadPicture, match="damaged"):
        measure(bytes(whole))


def test_bytes_behind_the_end_of_a_png_are_seen() -> None:
    with pytest.raises(BadPicture, match="3 bytes follow"):
        measure(picture("png") + b"PK\3")


def test_an_svg_has_an_end_and_no_size() -> None:
    assert measure(b"<svg xmlns='x'></svg>\n") == ("svg", 0, 0)
    with pytest.raises(BadPicture, match="cut off"):
        measure(b"<svg xmlns='x'><path d='M0")
    with pytest.raises(BadPicture, match="not rendered"):
        thumbnail(b"<svg xmlns='x'></svg>", 64, 60)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_garbage_is_refused_with_a_sentence_and_nothing_else(tail: bytes, kind: str) -> None:
    start = picture(kind)[:16]
    for data in (tail, start + tail):
        try:
            measure(data)
        except BadPicture as exc:
            assert str(exc)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<svg xmlns='x'></svg>", "svg"),
        (b'<?xml version="1.0"?>\n<svg ></svg>', "svg"),
        (b"\xef\xbb\xbf<!DOCTYPE svg PUBLIC 'x'>\n<!-- drawn --><svg>", "svg"),
        (b"<html>", None),
        (b"", None),
        (b"MZ", None),
    ],
)
def test_kinds_are_told_by_bytes(data: bytes, kind: str | None) -> None:
    assert sniff(data) == kind


def test_a_thumbnail_fits_and_is_never_enlarged() -> None:
    for size, expected in (((400, 200), (128, 64)), ((20, 10), (20, 10))):
        small = thumbnail(picture("png", *size, mode="RGBA"), 128, 60)
        assert measure(small) == ("jpeg", *expected)


def test_what_is_transparent_is_shown_on_white() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(out, "PNG")
    with Image.open(io.BytesIO(thumbnail(out.getvalue(), 8, 90))) as small:
        assert small.mode == "RGB" and min(small.getpixel((4, 4))) >= 250  # type: ignore[arg-type]
        assert small.info.get("progressive")


def test_a_jpeg_that_gives_two_sizes_is_not_decoded_at_the_larger() -> None:
    small, large = picture("jpeg", 16, 16), picture("jpeg", 320, 320)
    frame = large.index(b"\xff\xc0")
    length = 2 + int.from_bytes(large[frame + 2 : frame + 4], "big")
    spliced = small[:2] + large[frame : frame + length] + small[2:]
    with pytest.raises(BadPicture):
        thumbnail(spliced, 8, 60)


def test_a_gif_with_a_frame_larger_than_its_screen_is_not_decoded() -> None:
    spliced = bytearray(picture("gif", 300, 200))
    spliced[6:10] = (8).to_bytes(2, "little") * 2
    assert measure(bytes(spliced)) == ("gif", 8, 8)
    with pytest.raises(BadPicture, match="two different sizes"):
        thumbnail(bytes(spliced), 8, 60)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_a_damaged_picture_gives_a_thumbnail_or_a_sentence(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(picture(kind, 24, 24))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert sniff(thumbnail(bytes(data), 16, 60)) == "jpeg"
    except BadPicture as exc:
        assert str(exc)


def test_a_bomb_is_not_decoded() -> None:
    out = io.BytesIO()
    Image.new("1", (8000, 8000)).save(out, "PNG")
    with pytest.raises(BadPicture, match="too many"):
        thumbnail(out.getvalue(), 128, 60)


def test_a_picture_that_cannot_be_decoded_is_refused_not_a_crash() -> None:
    whole = bytearray(picture("png", 64, 64))
    middle = len(whole) // 2
    whole[middle : middle + 20] = bytes(20)
    with pytest.raises(BadPicture):
        thumbnail(bytes(whole), 32, 60)
