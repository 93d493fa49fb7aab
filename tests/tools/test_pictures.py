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
