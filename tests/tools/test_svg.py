"""An svg is put in its place only if it does nothing but draw."""

import pytest

from tools import svg
from tools.pictures import BadPicture

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 10 10">'


def drawing(inside: str) -> bytes:
    return f"{HEAD}{inside}</svg>".encode()


@pytest.mark.parametrize(
    "inside",
    [
        '<rect width="10" height="10" fill="url(#sky)"/>',
        '<use href="#shape"/><use xlink:href="#shape"/>',
        '<image href="data:image/png;base64,AAAA"/>',
        "<style>rect { fill: red; clip-path: url( '#a' ) }</style>",
        "<text>on the road, url of nothing</text>",
    ],
)
def test_what_only_draws_passes(inside: str) -> None:
    svg.check(drawing(inside))


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<SCRIPT>alert(1)</SCRIPT>",
        '<rect onclick="alert(1)"/>',
        '<g ONLOAD="alert(1)"/>',
        "<foreignObject><p/></foreignObject>",
        '<a href="https://example.org"><text>x</text></a>',
        '<use xlink:href="other.svg#x"/>',
        '<image href="data:image/svg+xml;base64,AAAA"/>',
        '<image href="data:text/html,x"/>',
        "<style>@import 'x.css'</style>",
        '<rect style="fill: url(https://example.org/x)"/>',
        "<rect fill=\"url( '//example.org/x')\"/>",
        '<animate attributeName="href" to="javascript:alert(1)"/>',
        '<set attributeName="onmouseover" to="alert(1)"/>',
        '<a href="javascript:alert(1)"/>',
        "<style>@\\69mport 'http://x'</style>",
        '<rect style="fill: u\\72l(http://x)"/>',
        "<style>a { background: image-set('//x' 1x) }</style>",
        '<h:meta xmlns:h="http://www.w3.org/1999/xhtml" http-equiv="refresh"/>',
        '<a ping="x"/>',
        '<g xml:base="x"/>',
    ],
)
def test_what_runs_loads_or_changes_is_refused(inside: str) -> None:
    with pytest.raises(BadPicture):
        svg.check(drawing(inside))


@pytest.mark.parametrize(
    "data",
    [
        b'<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>',
        b'<?xml-stylesheet href="x.css"?><svg/>',
        b"<svg><g></svg>",
        b"not xml at all",
    ],
)
def test_entities_style_sheets_and_what_is_no_xml_are_refused(data: bytes) -> None:
    with pytest.raises(BadPicture):
        svg.check(data)
