"""Containers walked by hand: the same sizes as Pillow sees, and no cut, swap or splice goes unseen."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tools.pictures_for_tests import picture
from tools.pictures import BadPicture, measure, sniff

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
